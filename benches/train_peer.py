#!/usr/bin/env python3
"""A training step beside PyTorch's: the same weights, batches, optimiser and threads, in turns.

    benches/train_peer.py [--turns 3] [--steps 22] [--threads 2] [--compile]

The model is the one of 64 x 64 pixels, patches of 8, width 192, 6 layers in both towers, context 32, 8,192 tokens; batches of
128. It is measured twice: with texts that fill the context, and with texts as long as captions are (4 to 19 tokens), where
twinlens computes the tokens that there are and PyTorch, as open_clip does, the whole context. A turn is a process; the median
over turns of the median over steps counts. The loss curves must agree. The table goes to target/bench/train.arrow.
"""

import argparse
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import time

import environment

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "target" / "bench"
PACKAGES = ["torch", "numpy", "safetensors", "pyarrow"]
EMBED, IMAGE, PATCH, WIDTH, LAYERS, HEADS, CONTEXT, VOCAB, BATCH = 192, 64, 8, 192, 6, 3, 32, 8192, 128
LR, BETAS, EPS, DECAY = 5e-4, (0.9, 0.98), 1e-6, 0.2
DISTINCT, WARM = 8, 2


def model():
    """CLIP in PyTorch's own modules, with open_clip's names and initial spreads."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
            self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.mlp = nn.Sequential()
            self.mlp.add_module("c_fc", nn.Linear(WIDTH, 4 * WIDTH))
            self.mlp.add_module("gelu", nn.GELU())
            self.mlp.add_module("c_proj", nn.Linear(4 * WIDTH, WIDTH))

        def forward(self, x, mask):
            h = self.ln_1(x)
            x = x + self.attn(h, h, h, need_weights=False, attn_mask=mask, is_causal=mask is not None)[0]
            return x + self.mlp(self.ln_2(x))

    class Transformer(nn.Module):
        def __init__(self):
            super().__init__()
            self.resblocks = nn.ModuleList(Block() for _ in range(LAYERS))

        def forward(self, x, mask=None):
            for block in self.resblocks:
                x = block(x, mask)
            return x

    class Vision(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
            self.class_embedding = nn.Parameter(torch.randn(WIDTH) * WIDTH**-0.5)
            self.positional_embedding = nn.Parameter(torch.randn((IMAGE // PATCH) ** 2 + 1, WIDTH) * WIDTH**-0.5)
            self.ln_pre, self.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.transformer = Transformer()
            self.proj = nn.Parameter(torch.randn(WIDTH, EMBED) * WIDTH**-0.5)

        def forward(self, pixels):
            x = self.conv1(pixels).flatten(2).transpose(1, 2)
            x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
            return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj

    class Clip(nn.Module):
        def __init__(self):
            super().__init__()
            self.visual, self.transformer = Vision(), Transformer()
            self.token_embedding = nn.Embedding(VOCAB, WIDTH)
            self.positional_embedding = nn.Parameter(torch.randn(CONTEXT, WIDTH) * 0.01)
            nn.init.normal_(self.token_embedding.weight, std=0.02)
            self.ln_final = nn.LayerNorm(WIDTH)
            self.text_projection = nn.Parameter(torch.randn(WIDTH, EMBED) * WIDTH**-0.5)
            self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
            self.register_buffer("mask", torch.full((CONTEXT, CONTEXT), float("-inf")).triu(1), persistent=False)

        def forward(self, pixels, ids):
            import torch.nn.functional as F

            image = F.normalize(self.visual(pixels), dim=-1)
            x = self.transformer(self.token_embedding(ids) + self.positional_embedding, self.mask)
            text = self.ln_final(x)[torch.arange(len(ids)), ids.argmax(-1)] @ self.text_projection
            logits = self.logit_scale.exp() * image @ F.normalize(text, dim=-1).T
            target = torch.arange(len(ids))
            return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    torch.manual_seed(17)
    return Clip()


def make(folder, full):
    """Weights and batches, for both programs."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: parameter.detach().clone().contiguous() for name, parameter in model().named_parameters()}
    save_file(weights, folder / "model.safetensors")
    vision = {"image_size": IMAGE, "patch": PATCH, "width": WIDTH, "layers": LAYERS, "heads": HEADS}
    text = {"context": CONTEXT, "vocab": VOCAB, "width": WIDTH, "layers": LAYERS, "heads": HEADS}
    config = {"embed": EMBED, "vision": vision, "text": text, "activation": "gelu"}
    (folder / "config.json").write_text(json.dumps(config))
    random = torch.Generator().manual_seed(18)
    pixels = torch.randn(DISTINCT, BATCH, 3, IMAGE, IMAGE, generator=random)
    ids = torch.randint(1, VOCAB - 1, (DISTINCT, BATCH, CONTEXT), generator=random)
    ends = torch.randint(3, 19, (DISTINCT, BATCH, 1), generator=random) if not full else torch.full((DISTINCT, BATCH, 1), CONTEXT - 1)
    places = torch.arange(CONTEXT).expand_as(ids)
    ids = torch.where(places < ends, ids, torch.where(places == ends, VOCAB - 1, 0))
    save_file({"pixels": pixels, "ids": ids}, folder / "batches.safetensors")


def by_pytorch(folder, steps, threads, compiled):
    """One turn of PyTorch, in this process."""
    import resource

    import torch
    from safetensors.torch import load_file

    torch.set_num_threads(threads)
    clip = model()
    clip.load_state_dict(load_file(folder / "model.safetensors"))
    parts = [[p for p in clip.parameters() if p.ndim >= 2], [p for p in clip.parameters() if p.ndim < 2]]
    groups = [{"params": parts[0], "weight_decay": DECAY}, {"params": parts[1], "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPS, fused=True)
    batches = load_file(folder / "batches.safetensors")
    step_of = torch.compile(clip) if compiled else clip
    times, losses = [], []
    for step in range(steps):
        pixels, ids = batches["pixels"][step % DISTINCT], batches["ids"][step % DISTINCT]
        marks = [time.perf_counter()]
        loss = step_of(pixels, ids)
        losses.append(loss.item())
        marks.append(time.perf_counter())
        adam.zero_grad(set_to_none=True)
        loss.backward()
        marks.append(time.perf_counter())
        adam.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(0, math.log(100))
        marks.append(time.perf_counter())
        times.append([1000 * (b - a) for a, b in zip(marks, marks[1:])] + [1000 * (marks[-1] - marks[0])])
    warm = [statistics.median(column) for column in zip(*times[WARM:])]
    names = ["forward_ms", "backward_ms", "optimizer_ms", "step_ms"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(dict(zip(names, warm)) | {"peak_mib": peak, "losses": losses}))


def last_json(command, variables):
    result = subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}, check=True, stdout=subprocess.PIPE)
    return json.loads(result.stdout.decode().strip().splitlines()[-1])


def gflop_of_a_step(tokens_of_texts):
    """Matrix products of a step, forward and twice as much backward, in GFLOP."""
    def tower(tokens, lengths):
        products = 24 * WIDTH**2 * tokens + sum(4 * WIDTH * length**2 for length in lengths)
        return LAYERS * products

    patches = (IMAGE // PATCH) ** 2
    image = BATCH * (2 * patches * 3 * PATCH**2 * WIDTH) + tower(BATCH * (patches + 1), [patches + 1] * BATCH)
    text = tower(sum(tokens_of_texts), tokens_of_texts)
    return 3 * (image + text) / 1e9


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--turns", type=int, default=3)
    options.add_argument("--steps", type=int, default=22)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--compile", action="store_true", help="torch.compile beside it")
    options.add_argument("--pytorch", type=pathlib.Path, help=argparse.SUPPRESS)
    args = options.parse_args()
    environment.enter(OUT / "python-train", PACKAGES)
    if args.pytorch:
        return by_pytorch(args.pytorch, args.steps, args.threads, args.compile)
    import pyarrow
    import pyarrow.feather
    from safetensors.torch import load_file

    bench = [os.environ.get("CARGO", "cargo"), "bench", "-p", "twinlens-train", "--bench", "train"]
    torch_turn = [sys.executable, __file__, "--steps", str(args.steps), "--threads", str(args.threads)]
    rows = []
    for texts, full in [("as long as the context", True), ("as long as captions are", False)]:
        folder = OUT / ("train-full" if full else "train-captions")
        make(folder, full)
        programs = {
            "twinlens": (bench, {"TWINLENS_TRAIN": str(folder), "TWINLENS_STEPS": str(args.steps),
                                 "RAYON_NUM_THREADS": str(args.threads)}),
            "PyTorch": (torch_turn + ["--pytorch", str(folder)], {}),
        }
        if args.compile:
            programs["PyTorch, compiled"] = (torch_turn + ["--pytorch", str(folder), "--compile"], {})
        turns = {name: [] for name in programs}
        for _ in range(args.turns):
            for name, (command, variables) in programs.items():
                turns[name].append(last_json(command, variables))
        curves = [turns[name][0]["losses"] for name in ("twinlens", "PyTorch")]
        apart = max(abs(a - b) for a, b in zip(*curves))
        lengths = (load_file(folder / "batches.safetensors")["ids"] > 0).sum(-1).float().mean(0).tolist()
        gflop = gflop_of_a_step(lengths)
        reference = statistics.median(turn["step_ms"] for turn in turns["PyTorch"])
        print(f"texts {texts}: {args.steps} steps, losses at most {apart:.1e} apart ({curves[0][0]:.4f} to {curves[0][-1]:.4f})")
        for name, found in turns.items():
            middle = {key: statistics.median(turn[key] for turn in found) for key in found[0] if key != "losses"}
            share = middle["step_ms"] / reference
            print(f"  {name:18} forward {middle['forward_ms']:7.1f}  backward {middle['backward_ms']:7.1f}  optimiser "
                  f"{middle['optimizer_ms']:5.1f}  step {middle['step_ms']:7.1f} ms  {share:.2f} of PyTorch's  peak {middle['peak_mib']:6.0f} MiB")
            rows.append({"texts": texts, "program": name, "share_of_pytorch": share, "gflop": gflop} | middle)
        ours = rows[-len(programs)]
        reached = gflop / ours["step_ms"] * 1000
        print(f"  a step's matrix products are {gflop:.0f} GFLOP: {reached:.0f} GFLOP/s of the {ours['matmul_gflops']:.0f} that a large "
              f"one reaches ({100 * reached / ours['matmul_gflops']:.0f} %)")
    pyarrow.feather.write_feather(pyarrow.Table.from_pylist(rows), str(OUT / "train.arrow"), compression="uncompressed")


if __name__ == "__main__":
    main()
