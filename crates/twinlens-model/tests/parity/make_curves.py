"""Makes curves.json: the losses of 50 training steps of open_clip's models, from the weights in vit.safetensors and
resnet.safetensors, on batches of noise that any language can make.

Run with open_clip_torch and safetensors installed, after make_fixtures.py: `python make_curves.py`.
"""

import json
from pathlib import Path

import numpy as np
import torch
from open_clip.loss import ClipLoss
from open_clip.model import CLIP
from safetensors.torch import load_file

HERE = Path(__file__).parent
PAIRS, BATCHES, STEPS, DECAY = 12, 3, 50, 0.2
# Of the ResNet, a steeper rate parts even open_clip in float32 from open_clip in float64 (4e-3 at
# 2e-3, 3e-4 at 5e-4).
SHAPES = {
    "vit": (dict(image_size=8, patch_size=4, width=16, layers=2, head_width=8), 2, 2e-3),
    "resnet": (dict(image_size=64, layers=[1, 2, 1, 1], width=2, head_width=32), 1, 5e-4),
}


def noise(n, state):
    """Numbers in -1..1: the test's generator, step for step."""
    out = np.empty(n, np.float32)
    for i in range(n):
        state = (state * 1664525 + 1013904223) % 2**32
        out[i] = (state >> 8) / 2**23 - 1
    return out


def batch(size, number):
    pixels = noise(PAIRS * 3 * size * size, 100 + number).reshape(PAIRS, 3, size, size)
    ids = [[18] + [(number * 5 + i * (t + 1)) % 18 for t in range(i % 5)] + [19] for i in range(PAIRS)]
    return torch.from_numpy(pixels), torch.tensor([row + [0] * (6 - len(row)) for row in ids])


curves = {}
for name, (vision, layers, rate) in SHAPES.items():
    text = dict(context_length=6, vocab_size=20, width=16, heads=2, layers=layers)
    model = CLIP(embed_dim=8, vision_cfg=vision, text_cfg=text, quick_gelu=True)
    weights = load_file(HERE / f"{name}.safetensors")
    weights = {n.removeprefix("weights/"): t for n, t in weights.items() if n.startswith("weights/")}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and all(n.endswith(("attn_mask", "num_batches_tracked")) for n in missing)
    model.train()
    with_decay = [p for p in model.parameters() if p.ndim >= 2]
    without = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": with_decay, "weight_decay": DECAY}, {"params": without, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), eps=1e-6)
    batches = [batch(vision["image_size"], number) for number in range(BATCHES)]
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = ClipLoss()(*model(*batches[step % BATCHES]))
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, np.log(100))
        losses.append(round(loss.item(), 6))
    curves[name] = {"rate": rate, "losses": losses}
(HERE / "curves.json").write_text(json.dumps(curves) + "\n")
