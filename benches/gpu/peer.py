"""PyTorch's side of benches/gpu/run, from train_peer.py's model: the same weights, batches, losses and steps.

    peer.py make FOLDER MODEL BATCH COUNT           weights, configuration and batches for both
    peer.py values FOLDER MODEL --device --precision --steps
    peer.py steps MODEL BATCH --device --precision --steps [--compile]

`values` writes pytorch.safetensors into the folder; the others print a line of JSON.
"""

import argparse
import contextlib
import json
import math
import pathlib
import statistics
import time

import train_peer

WARM = 3


def vit(patch, size=224, width=768, layers=12, text_width=512, text_layers=12, heads=8, vocab=49408, embed=512):
    vision = {"image_size": size, "patch": patch, "width": width, "layers": layers, "heads": width // 64 or 1}
    text = {"context": 77, "vocab": vocab, "width": text_width, "layers": text_layers, "heads": heads}
    return {"embed": embed, "vision": vision, "text": text}


SMALL = {"embed": 32, "vision": {"image_size": 32, "patch": 8, "width": 64, "layers": 2, "heads": 2},
         "text": {"context": 16, "vocab": 300, "width": 48, "layers": 2, "heads": 3}}
MODELS = {"vit-b-32": vit(32), "vit-b-16": vit(16), "small": SMALL}
train_peer.MODELS.update(MODELS)


def cast(device, precision):
    """Products in bfloat16, if asked for, as in mixed-precision training."""
    import torch

    return torch.autocast(device, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


def optimiser(clip, device):
    import torch

    parts = [[p for p in clip.parameters() if p.ndim >= 2], [p for p in clip.parameters() if p.ndim < 2]]
    groups = [{"params": parts[0], "weight_decay": train_peer.DECAY}, {"params": parts[1], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=train_peer.LR, betas=train_peer.BETAS, eps=train_peer.EPS, fused=True)


def random_ids(count, batch, text, generator):
    """Texts that fill the context, the end token last."""
    import torch

    ids = torch.randint(1, text["vocab"] - 1, (count, batch, text["context"]), generator=generator)
    ids[..., -1] = text["vocab"] - 1
    return ids


def make(folder, name, batch, count):
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in train_peer.model(name).state_dict().items()}, folder / "model.safetensors")
    shape = MODELS[name]
    (folder / "config.json").write_text(json.dumps(shape | {"activation": "gelu"}))
    generator = torch.Generator().manual_seed(18)
    side = shape["vision"]["image_size"]
    pixels = torch.randn(count, batch, 3, side, side, generator=generator)
    save_file({"pixels": pixels, "ids": random_ids(count, batch, shape["text"], generator)}, folder / "batches.safetensors")


def step(clip, adam, pixels, ids, args):
    """The loss of one step; `clip` may be compiled."""
    import torch

    with cast(args.device.split(":")[0], args.precision):
        loss = clip(pixels, ids)
    adam.zero_grad(set_to_none=True)
    loss.backward()
    adam.step()
    return loss.detach()


def values(folder, name, args):
    import torch
    import torch.nn.functional as F
    from safetensors.torch import load_file, save_file

    clip = train_peer.model(name)
    clip.load_state_dict(load_file(folder / "model.safetensors"))
    clip.to(args.device)
    batches = {key: value.to(args.device) for key, value in load_file(folder / "batches.safetensors").items()}
    pixels, ids = batches["pixels"][0], batches["ids"][0]
    adam, found = optimiser(clip, args.device), {}
    with torch.no_grad(), cast(args.device.split(":")[0], args.precision):
        found["image"] = F.normalize(clip.visual(pixels).float(), dim=-1)
    with cast(args.device.split(":")[0], args.precision):
        clip(pixels, ids).backward()
    found |= {f"gradients/{key}": p.grad for key, p in clip.named_parameters()}
    losses = []
    for number in range(args.steps):
        which = number % len(batches["ids"])
        losses.append(step(clip, adam, batches["pixels"][which], batches["ids"][which], args))
        with torch.no_grad():
            clip.logit_scale.clamp_(0, math.log(100))
    found["losses"] = torch.stack(losses)
    save_file({key: value.detach().float().cpu().contiguous() for key, value in found.items()}, folder / "pytorch.safetensors")
    print(json.dumps({"steps": args.steps, "last_loss": losses[-1].item()}))


def flop_of_a_step(name, batch):
    """Matrix products of a step over full texts; the backward pass counts twice."""
    shape = MODELS[name]
    vision, text = shape["vision"], shape["text"]
    patches = (vision["image_size"] // vision["patch"]) ** 2

    def blocks(width, layers, length):
        return layers * (24 * width**2 * length + 4 * width * length**2)

    images = 6 * patches * vision["patch"] ** 2 * vision["width"] + blocks(vision["width"], vision["layers"], patches + 1)
    return 3 * batch * (images + blocks(text["width"], text["layers"], text["context"]))


def steps(name, batch, args):
    import torch

    shape, generator = MODELS[name], torch.Generator().manual_seed(18)
    clip = train_peer.model(name).to(args.device)
    side = shape["vision"]["image_size"]
    pixels = torch.randn(batch, 3, side, side, generator=generator).to(args.device)
    ids = random_ids(1, batch, shape["text"], generator)[0].to(args.device)
    adam, run, times = optimiser(clip, args.device), torch.compile(clip) if args.compile else clip, []
    wait = torch.cuda.synchronize if args.device.startswith("cuda") else lambda: None
    for number in range(WARM + args.steps):
        wait()
        start = time.perf_counter()
        step(run, adam, pixels, ids, args)
        wait()
        if number >= WARM:
            times.append(1000 * (time.perf_counter() - start))
    took = statistics.median(times)
    print(json.dumps({"batch": batch, "precision": args.precision, "step_ms": took, "samples_per_second": 1000 * batch / took}))


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("command", choices=["make", "values", "steps"])
    options.add_argument("arguments", nargs="+")
    options.add_argument("--device", default="cuda:0")
    options.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    options.add_argument("--steps", type=int, default=50)
    options.add_argument("--compile", action="store_true")
    args = options.parse_args()
    if args.command == "make":
        folder, name, batch, count = args.arguments
        make(pathlib.Path(folder), name, int(batch), int(count))
    elif args.command == "values":
        values(pathlib.Path(args.arguments[0]), args.arguments[1], args)
    else:
        steps(args.arguments[0], int(args.arguments[1]), args)


if __name__ == "__main__":
    main()
