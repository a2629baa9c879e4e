#!/usr/bin/env python3
"""Compares a training step with PyTorch: same weights, batches, optimiser and threads, alternating.

    benches/train_peer.py [--models vit resnet resnet-x3] [--texts full captions] [--turns 3]
                          [--steps 22] [--threads 2] [--compile]

`vit` has 64 x 64 pixels, patches of 8, width 192, 6 layers per tower, context 32 and 8,192 tokens;
`resnet` and `resnet-x3` are `rn-tiny-64` and `rn-tiny-64x3`. Batches have 128 pairs. Each model is
measured with texts that fill the context, and with texts as long as captions (4 to 19 tokens), where
twinlens computes only the actual tokens and PyTorch, like open_clip, the whole context. Each turn is
a process; the median over turns of the median over steps counts. The loss curves must agree. The
table is written to target/bench/train.arrow.
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
LR, BETAS, EPS, DECAY = 5e-4, (0.9, 0.98), 1e-6, 0.2
BATCH, DISTINCT, WARM = 128, 8, 2


def text(width, layers, heads):
    return {"context": 32, "vocab": 8192, "width": width, "layers": layers, "heads": heads}


def resnet(width, stages):
    return {"image_size": 64, "width": width, "stages": stages, "heads": width // 2}


MODELS = {
    "vit": {"embed": 192, "vision": {"image_size": 64, "patch": 8, "width": 192, "layers": 6, "heads": 3}, "text": text(192, 6, 3)},
    "resnet": {"embed": 128, "vision": resnet(16, [1, 1, 1, 1]), "text": text(128, 2, 4)},
    "resnet-x3": {"embed": 128, "vision": resnet(32, [1, 2, 2, 1]), "text": text(128, 2, 4)},
}


def model(name):
    """CLIP from PyTorch's modules, with open_clip's names and about its initialisation."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    shape = MODELS[name]
    embed, vision, text = shape["embed"], shape["vision"], shape["text"]

    class Block(nn.Module):
        def __init__(self, width, heads):
            super().__init__()
            self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
            self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.mlp = nn.Sequential()
            self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
            self.mlp.add_module("gelu", nn.GELU())
            self.mlp.add_module("c_proj", nn.Linear(4 * width, width))

        def forward(self, x, mask):
            h = self.ln_1(x)
            x = x + self.attn(h, h, h, need_weights=False, attn_mask=mask, is_causal=mask is not None)[0]
            return x + self.mlp(self.ln_2(x))

    class Transformer(nn.Module):
        def __init__(self, width, layers, heads):
            super().__init__()
            self.resblocks = nn.ModuleList(Block(width, heads) for _ in range(layers))

        def forward(self, x, mask=None):
            for block in self.resblocks:
                x = block(x, mask)
            return x

    class VisionTransformer(nn.Module):
        def __init__(self, image_size, patch, width, layers, heads):
            super().__init__()
            self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
            self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
            self.positional_embedding = nn.Parameter(torch.randn((image_size // patch) ** 2 + 1, width) * width**-0.5)
            self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
            self.transformer = Transformer(width, layers, heads)
            self.proj = nn.Parameter(torch.randn(width, embed) * width**-0.5)

        def forward(self, pixels):
            x = self.conv1(pixels).flatten(2).transpose(1, 2)
            x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
            return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj

    class Bottleneck(nn.Module):
        def __init__(self, inputs, planes, stride):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(inputs, planes, 1, bias=False), nn.BatchNorm2d(planes)
            self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False), nn.BatchNorm2d(planes)
            self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
            self.conv3, self.bn3 = nn.Conv2d(planes, 4 * planes, 1, bias=False), nn.BatchNorm2d(4 * planes)
            self.downsample = nn.Identity()
            if stride > 1 or inputs != 4 * planes:
                self.downsample = nn.Sequential()
                self.downsample.add_module("-1", nn.AvgPool2d(stride))
                self.downsample.add_module("0", nn.Conv2d(inputs, 4 * planes, 1, bias=False))
                self.downsample.add_module("1", nn.BatchNorm2d(4 * planes))

        def forward(self, x):
            y = F.relu(self.bn1(self.conv1(x)), inplace=True)
            y = self.avgpool(F.relu(self.bn2(self.conv2(y)), inplace=True))
            return F.relu(self.bn3(self.conv3(y)) + self.downsample(x), inplace=True)

    class AttentionPool(nn.Module):
        def __init__(self, tokens, width, heads):
            super().__init__()
            self.heads, self.positional_embedding = heads, nn.Parameter(torch.randn(tokens + 1, width) * width**-0.5)
            self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
            self.c_proj = nn.Linear(width, embed)

        def forward(self, x):
            x = x.flatten(2).transpose(1, 2)
            x = torch.cat([x.mean(1, keepdim=True), x], 1) + self.positional_embedding
            q, k, v = (p(t).unflatten(2, (self.heads, -1)).transpose(1, 2)
                       for p, t in ((self.q_proj, x[:, :1]), (self.k_proj, x), (self.v_proj, x)))
            return self.c_proj(F.scaled_dot_product_attention(q, k, v).flatten(1))

    class ModifiedResNet(nn.Module):
        """The paper's ResNet: a stem of three convolutions, average pooling for strides, attention pooling."""

        def __init__(self, image_size, width, stages, heads):
            super().__init__()
            for i, (inputs, outputs) in enumerate([(3, width // 2), (width // 2, width // 2), (width // 2, width)], 1):
                self.add_module(f"conv{i}", nn.Conv2d(inputs, outputs, 3, 2 if i == 1 else 1, 1, bias=False))
                self.add_module(f"bn{i}", nn.BatchNorm2d(outputs))
            self.avgpool, inputs = nn.AvgPool2d(2), width
            for stage, count in enumerate(stages):
                layer, planes = nn.Sequential(), width << stage
                for block in range(count):
                    layer.append(Bottleneck(inputs, planes, 2 if block == 0 and stage > 0 else 1))
                    inputs = 4 * planes
                self.add_module(f"layer{stage + 1}", layer)
            self.attnpool = AttentionPool((image_size // 32) ** 2, inputs, heads)

        def forward(self, x):
            for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
                x = F.relu(norm(conv(x)), inplace=True)
            return self.attnpool(self.layer4(self.layer3(self.layer2(self.layer1(self.avgpool(x))))))

    class Clip(nn.Module):
        def __init__(self):
            super().__init__()
            width, context = text["width"], text["context"]
            self.visual = VisionTransformer(**vision) if "patch" in vision else ModifiedResNet(**vision)
            self.transformer = Transformer(width, text["layers"], text["heads"])
            self.token_embedding = nn.Embedding(text["vocab"], width)
            self.positional_embedding = nn.Parameter(torch.randn(context, width) * 0.01)
            nn.init.normal_(self.token_embedding.weight, std=0.02)
            self.ln_final = nn.LayerNorm(width)
            self.text_projection = nn.Parameter(torch.randn(width, embed) * width**-0.5)
            self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
            self.register_buffer("mask", torch.full((context, context), float("-inf")).triu(1), persistent=False)

        def forward(self, pixels, ids):
            image = F.normalize(self.visual(pixels), dim=-1)
            x = self.transformer(self.token_embedding(ids) + self.positional_embedding, self.mask)
            texts = self.ln_final(x)[torch.arange(len(ids), device=ids.device), ids.argmax(-1)] @ self.text_projection
            logits = self.logit_scale.exp() * image @ F.normalize(texts, dim=-1).T
            target = torch.arange(len(ids), device=ids.device)
            return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    torch.manual_seed(17)
    return Clip()


def make(folder, name, full):
    """Writes weights and batches for both programs."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.contiguous() for key, value in model(name).state_dict().items() if "num_batches" not in key}
    save_file(state, folder / "model.safetensors")
    shape = MODELS[name]
    (folder / "config.json").write_text(json.dumps(shape | {"activation": "gelu"}))
    side, context, end = shape["vision"]["image_size"], shape["text"]["context"], shape["text"]["vocab"] - 1
    random = torch.Generator().manual_seed(18)
    pixels = torch.randn(DISTINCT, BATCH, 3, side, side, generator=random)
    ids = torch.randint(1, end, (DISTINCT, BATCH, context), generator=random)
    ends = torch.full((DISTINCT, BATCH, 1), context - 1) if full else torch.randint(3, 19, (DISTINCT, BATCH, 1), generator=random)
    places = torch.arange(context).expand_as(ids)
    ids = torch.where(places < ends, ids, torch.where(places == ends, end, 0))
    save_file({"pixels": pixels, "ids": ids}, folder / "batches.safetensors")


def by_pytorch(folder, name, steps, threads, compiled, channels_last):
    """One turn of PyTorch, in this process."""
    import resource

    import torch
    from safetensors.torch import load_file

    torch.set_num_threads(threads)
    clip = model(name)
    clip.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    if channels_last:
        clip.visual.to(memory_format=torch.channels_last)
    parts = [[p for p in clip.parameters() if p.ndim >= 2], [p for p in clip.parameters() if p.ndim < 2]]
    groups = [{"params": parts[0], "weight_decay": DECAY}, {"params": parts[1], "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPS, fused=True)
    batches = load_file(folder / "batches.safetensors")
    step_of = torch.compile(clip) if compiled else clip
    times, losses = [], []
    for step in range(steps):
        pixels, ids = batches["pixels"][step % DISTINCT], batches["ids"][step % DISTINCT]
        if channels_last:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
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
    # Some machines set this, which slows down one of the programs.
    kept = {key: value for key, value in os.environ.items() if key != "OPENBLAS_CORETYPE"}
    result = subprocess.run(command, cwd=ROOT, env={**kept, **variables}, check=True, stdout=subprocess.PIPE)
    return json.loads(result.stdout.decode().strip().splitlines()[-1])


def gflop_of_a_step(name, folder):
    """Operations of the matrix products and convolutions in a step, in GFLOP, for the actual tokens.
    The backward pass counts as twice the forward pass."""
    import torch
    from safetensors.torch import load_file
    from torch.utils.flop_counter import FlopCounterMode

    def blocks(width, layers, lengths):
        return layers * sum(24 * width**2 * length + 4 * width * length**2 for length in lengths)

    batches, vision, text = load_file(folder / "batches.safetensors"), MODELS[name]["vision"], MODELS[name]["text"]
    if "patch" in vision:
        patches, width = (vision["image_size"] // vision["patch"]) ** 2, vision["width"]
        pixels = 2 * BATCH * patches * 3 * vision["patch"] ** 2 * width
        images = pixels + blocks(width, vision["layers"], [patches + 1] * BATCH)
    else:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(name).visual(batches["pixels"][0])
        images = counter.get_total_flops()
    texts = blocks(text["width"], text["layers"], (batches["ids"] > 0).sum(-1).float().mean(0).tolist())
    return 3 * (images + texts) / 1e9


def measure(name, full, args):
    """Measures one model with one length of texts; returns table rows."""
    folder = OUT / f"train-{name}-{'full' if full else 'captions'}"
    make(folder, name, full)
    bench = [os.environ.get("CARGO", "cargo"), "bench", "--workspace", "--bench", "train"]
    turn = [sys.executable, __file__, "--steps", str(args.steps), "--threads", str(args.threads), "--pytorch", str(folder), name]
    settings = {"TWINLENS_TRAIN": str(folder), "TWINLENS_STEPS": str(args.steps), "RAYON_NUM_THREADS": str(args.threads)}
    # As the program sets it during training.
    settings["MIMALLOC_PURGE_DELAY"] = "5000"
    programs = {"twinlens": (bench, settings), "PyTorch": (turn, {})}
    if name != "vit":
        programs["PyTorch, channels last"] = (turn + ["--channels-last"], {})
    if args.compile:
        programs["PyTorch, compiled"] = (turn + ["--compile"], {})
    turns = {program: [] for program in programs}
    for _ in range(args.turns):
        for program, (command, variables) in programs.items():
            turns[program].append(last_json(command, variables))
    curves = [turns[program][0]["losses"] for program in ("twinlens", "PyTorch")]
    difference = max(abs(a - b) for a, b in zip(*curves))
    texts = "as long as the context" if full else "as long as captions"
    print(f"{name}, texts {texts}: {args.steps} steps, losses differ by at most {difference:.1e} ({curves[0][0]:.4f} to {curves[0][-1]:.4f})")
    gflop = gflop_of_a_step(name, folder)
    reference = statistics.median(found["step_ms"] for found in turns["PyTorch"])
    rows = []
    for program, found in turns.items():
        middle = {key: statistics.median(turn[key] for turn in found) for key in found[0] if key != "losses"}
        share = middle["step_ms"] / reference
        print(f"  {program:22} forward {middle['forward_ms']:7.1f}  backward {middle['backward_ms']:7.1f}  optimiser "
              f"{middle['optimizer_ms']:5.1f}  step {middle['step_ms']:7.1f} ms  {share:.2f} of PyTorch  peak {middle['peak_mib']:6.0f} MiB")
        rows.append({"model": name, "texts": texts, "program": program, "share_of_pytorch": share, "gflop": gflop} | middle)
    reached, most = gflop / rows[0]["step_ms"] * 1000, rows[0]["matmul_gflops"]
    print(f"  a step has {gflop:.0f} GFLOP of matrix products: {reached:.0f} GFLOP/s, {100 * reached / most:.0f} % of "
          f"the {most:.0f} GFLOP/s of a large product", flush=True)
    return rows


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--turns", type=int, default=3)
    options.add_argument("--steps", type=int, default=22)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    options.add_argument("--texts", nargs="+", choices=["full", "captions"], default=["full", "captions"])
    options.add_argument("--compile", action="store_true", help="also measure torch.compile")
    options.add_argument("--channels-last", action="store_true", help=argparse.SUPPRESS)
    options.add_argument("--pytorch", nargs=2, metavar=("FOLDER", "MODEL"), help=argparse.SUPPRESS)
    args = options.parse_args()
    environment.enter(OUT / "python-train", PACKAGES)
    if args.pytorch:
        folder, name = args.pytorch
        return by_pytorch(pathlib.Path(folder), name, args.steps, args.threads, args.compile, args.channels_last)
    import pyarrow
    import pyarrow.feather

    rows = [row for name in args.models for texts in args.texts for row in measure(name, texts == "full", args)]
    pyarrow.feather.write_feather(pyarrow.Table.from_pylist(rows), str(OUT / "train.arrow"), compression="uncompressed")


if __name__ == "__main__":
    main()
