#!/usr/bin/env python3
"""Compares batches for PyTorch: `twinlens.torch.Pairs`, and webdataset with torchvision.

    benches/pairs.py [--images FOLDER] [--turns N]

To be run by a Python that has twinlens, torch, torchvision, webdataset and open_clip. The images are
those of benches/fetch (about 1000 x 800, quality 85), made on the first run, for a model of 224
pixels, and the same at 256 pixels. They are stored as tar files with captions. webdataset shuffles
and Pillow decodes; torchvision crops (at least 90% of the area), resizes and normalises, and
open_clip's tokenizer makes ids, in two worker processes. twinlens does the same in two threads. The
programs alternate on all cores; the best turn of each counts.
"""

import argparse
import gc
import io
import pathlib
import resource
import sys
import time

import open_clip
import torch
import torchvision.transforms.v2 as transforms
import webdataset
from decode_peer import photographs
from PIL import Image

import twinlens.torch

OUT = pathlib.Path(__file__).resolve().parent.parent / "target" / "bench"
BATCH, SIZE, WORKERS = 64, 224, 2
MEAN, STD = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
VOCABULARY = pathlib.Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"


def shards(images, folder, kind):
    """Writes tar files, as many as there are workers."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{kind}-{number}.tar" for number in range(WORKERS)]
    if not all(path.exists() for path in paths):
        repeats = 16 if kind == "large" else 64
        for part, path in enumerate(paths):
            with webdataset.TarWriter(str(path)) as tar:
                for number in range(part, repeats * len(images), WORKERS):
                    data = images[number % len(images)]
                    if kind == "small":
                        image, out = Image.open(io.BytesIO(data)).convert("RGB"), io.BytesIO()
                        image.resize((256, 256), Image.Resampling.BICUBIC).save(out, "jpeg", quality=90)
                        data = out.getvalue()
                    tar.write({"__key__": f"{number:06}", "jpg": data, "txt": f"a photograph of number {number}"})
    return [str(path) for path in paths]


def of_twinlens(paths):
    return twinlens.torch.Pairs(paths, VOCABULARY, SIZE, BATCH, threads=WORKERS)


def of_webdataset(paths):
    tokenize = open_clip.get_tokenizer("ViT-B-32")
    prepare = transforms.Compose([
        transforms.RandomResizedCrop(SIZE, scale=(0.9, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.ToImage(), transforms.ToDtype(torch.float32, scale=True), transforms.Normalize(MEAN, STD),
    ])  # fmt: skip
    pairs = webdataset.WebDataset(paths, shardshuffle=len(paths), nodesplitter=webdataset.split_by_node)
    pairs = pairs.shuffle(1000).decode("pilrgb").to_tuple("jpg", "txt")
    pairs = pairs.map_tuple(prepare, lambda text: tokenize(text)[0]).batched(BATCH, partial=False)
    return webdataset.WebLoader(pairs, batch_size=None, num_workers=WORKERS)


def cpu_seconds():
    """Of this process, and of those that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def speed(make, paths):
    """Pairs per second from the first batch on, so that the start of processes does not count; and
    pairs per second of all cores' time, with the start.
    """
    used = cpu_seconds()
    batches = iter(make(paths))
    pixels, ids = next(batches)
    assert pixels.shape == (BATCH, 3, SIZE, SIZE) and ids.shape == (BATCH, 77)
    start, count = time.perf_counter(), 0
    for pixels, _ in batches:
        count += len(pixels)
    seconds = time.perf_counter() - start
    del batches
    gc.collect()
    return count / seconds, (count + BATCH) / (cpu_seconds() - used)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=pathlib.Path)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    _, images = photographs(options.images)
    torch.set_num_threads(1)
    print(f"{len(images)} images, torch {torch.__version__}, webdataset {webdataset.__version__}", file=sys.stderr)
    for kind in ["large", "small"]:
        paths = shards(images, OUT / "pairs", kind)
        turns = {of_twinlens: [], of_webdataset: []}
        for _ in range(options.turns):
            for make, found in turns.items():
                found.append(speed(make, paths))
        ours, theirs = ([max(column) for column in zip(*found)] for found in turns.values())
        for what, a, b in zip(["pairs/s", "pairs/s of one core's time"], ours, theirs):
            print(f"{kind}: twinlens {a:.0f}, webdataset {b:.0f} {what}, ratio {a / b:.2f}", flush=True)


if __name__ == "__main__":
    main()
