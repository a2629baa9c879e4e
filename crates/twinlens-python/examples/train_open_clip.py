"""Trains a model of open_clip on pairs of twinlens; a training that was killed resumes exactly.

    python train_open_clip.py runs/quickstart/train_pairs runs/quickstart/clip out.pt --steps 200

The checkpoint has the weights, the state of the optimizer, and the position in the data. Run it
again after a kill: it ends in the same weights.
"""

import argparse
import os

import open_clip
import torch

import twinlens.torch


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", help="a dataset of a run, Parquet or tar files")
    parser.add_argument("tokenizer", help="a model's directory, or a tokenizer.json")
    parser.add_argument("checkpoint", help="where the training is saved and resumed from")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--size", type=int, default=64, help="of images, in pixels")
    parser.add_argument("--vocabulary", type=int, default=8192, help="at least that of the tokenizer")
    parser.add_argument("--context", type=int, default=32, help="tokens of a caption")
    parser.add_argument("--save-every", type=int, default=20)
    parser.add_argument("--workers", type=int, default=0)
    return parser.parse_args()


def model_of(options: argparse.Namespace) -> torch.nn.Module:
    """A small model with open_clip's towers."""
    torch.manual_seed(1)
    vision = {"image_size": options.size, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32}
    text = {
        "context_length": options.context, "vocab_size": options.vocabulary,
        "width": 64, "heads": 2, "layers": 2,
    }  # fmt: skip
    return open_clip.CLIP(embed_dim=32, vision_cfg=vision, text_cfg=text)


def save(path: str, state: dict) -> None:
    # A kill while it is written leaves the earlier one.
    torch.save(state, path + ".new")
    os.replace(path + ".new", path)


def main() -> None:
    options = parse()
    torch.use_deterministic_algorithms(True)
    pairs = twinlens.torch.Pairs(
        options.data, options.tokenizer, size=options.size, batch_size=options.batch_size,
        context=options.context, seed=1,
    )  # fmt: skip
    batches = pairs.loader(options.workers)
    model, loss_of = model_of(options), open_clip.ClipLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    step = 0
    if os.path.exists(options.checkpoint):
        saved = torch.load(options.checkpoint)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        batches.load_state_dict(saved["data"])
        step = saved["step"]
    while step < options.steps:
        for pixels, ids in batches:
            image, text, scale = model(pixels, ids)
            loss = loss_of(image, text, scale)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step % options.save_every == 0 or step == options.steps:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                save(options.checkpoint, state | {"data": batches.state_dict(), "step": step})
                print(f"step {step}: loss {loss.item():.4f}", flush=True)
            if step == options.steps:
                break


if __name__ == "__main__":
    main()
