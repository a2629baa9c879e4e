"""Makes init.csv: how open_clip draws the first values of every parameter, for the shapes of `vit-tiny-48` and `rn-tiny-64`.

Run with open_clip_torch installed: `python make_init.py`. Over 16 fresh models: the spread (standard deviation), and the
largest distance from 0 in spreads (1.7 for a uniform draw, more for a normal one).
"""

from pathlib import Path

import torch
from open_clip.model import CLIP

SHAPES = {
    "vit-tiny-48": (dict(image_size=48, patch_size=8, width=128, layers=3, head_width=32), 4096),
    "rn-tiny-64": (dict(image_size=64, layers=[1, 1, 1, 1], width=16, head_width=64), 8192),
}
lines = ["model,name,numbers,mean,spread,peak"]
torch.manual_seed(1)
for model, (vision, vocab) in SHAPES.items():
    text = dict(context_length=32, vocab_size=vocab, width=128, heads=4, layers=2)
    drawn = {}
    for _ in range(16):
        for name, p in CLIP(embed_dim=128, vision_cfg=vision, text_cfg=text).named_parameters():
            drawn.setdefault(name, []).append(p.detach().flatten().double())
    for name, values in drawn.items():
        values = torch.cat(values)
        spread = values.std(unbiased=False).item()
        peak = values.abs().max().item() / spread if spread > 1e-9 else 0
        lines.append(f"{model},{name},{len(values)},{values.mean():.6g},{spread:.6g},{peak:.4g}")
Path(__file__).with_name("init.csv").write_text("\n".join(lines) + "\n")
