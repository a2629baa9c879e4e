#!/usr/bin/env python3
"""Compares loading with webdataset and Pillow: from shards to batches of 128, on one core.

    benches/loader_peer.py [--images FOLDER]

The images are those of benches/fetch (about 1000 x 800, quality 85), made on the first run, for a
model of 224 pixels, and the same at 96 pixels for a model of 64. They are stored in a tar file and in
a Parquet file as on the Hugging Face Hub. webdataset shuffles, Pillow decodes, crops a random square
(at least 90% of the area) and resizes it, and numpy normalises: as open_clip does, but without torch.
This is measured with full decoding and with Pillow's reduced decoding (`draft`), which open_clip does
not use. twinlens also tokenizes the captions. The programs share one core and alternate; the best
turn of each counts. The table is written to target/bench/loader.arrow.
"""

import argparse
import io
import json
import os
import pathlib
import subprocess
import time

import environment
from decode_peer import photographs

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "target" / "bench"
PACKAGES = ["numpy", "pillow", "webdataset", "pyarrow"]
BATCH, TURNS = 128, 3
SIDES = {"large": 224, "small": 64}
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def shards(images, folder):
    """Writes `large` and `small` as tar and Parquet, with distinct captions."""
    import pyarrow
    import pyarrow.parquet
    import webdataset
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for kind in SIDES:
        if (folder / f"{kind}.parquet").exists():
            continue
        rows = []
        # Images are repeated, or an epoch would be too short to measure; captions differ.
        for number in range(len(images) * (8 if kind == "large" else 32)):
            data = images[number % len(images)]
            if kind == "small":
                image, out = Image.open(io.BytesIO(data)).convert("RGB"), io.BytesIO()
                image.resize((96, 96), Image.Resampling.BICUBIC).save(out, "jpeg", quality=90)
                data = out.getvalue()
            rows.append((data, f"a photograph of number {number}"))
        with webdataset.TarWriter(str(folder / f"{kind}.tar")) as tar:
            for number, (data, caption) in enumerate(rows):
                tar.write({"__key__": f"{number:06}", "jpg": data, "txt": caption})
        table = pyarrow.table({
            "image": pyarrow.array([{"bytes": data, "path": None} for data, _ in rows],
                                   pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])),
            "caption": [caption for _, caption in rows],
        })
        pyarrow.parquet.write_table(table, folder / f"{kind}.parquet", row_group_size=100)


def by_webdataset(tar, side, draft):
    """Samples per second over one epoch."""
    import random

    import numpy
    import webdataset
    from PIL import Image

    mean, std = (numpy.array(values, numpy.float32)[:, None, None] for values in (MEAN, STD))

    def pixels(data):
        image = Image.open(io.BytesIO(data))
        if draft:
            image.draft("RGB", (side * 8 // 7, side * 8 // 7))
        image = image.convert("RGB")
        square = round(min(image.size) * random.uniform(0.9, 1) ** 0.5)
        left, top = (random.randint(0, length - square) for length in image.size)
        image = image.resize((side, side), Image.Resampling.BICUBIC, box=(left, top, left + square, top + square))
        return (numpy.asarray(image, numpy.float32).transpose(2, 0, 1) / 255 - mean) / std

    data = webdataset.WebDataset(str(tar), shardshuffle=False).shuffle(1000).to_tuple("jpg", "txt")
    data = data.map_tuple(pixels, lambda text: text.decode()).batched(BATCH)
    start, count = time.perf_counter(), 0
    for batch, _ in data:
        assert batch.shape[1:] == (3, side, side) and batch.dtype == numpy.float32
        count += len(batch)
    return count / (time.perf_counter() - start)


def by_twinlens(folder):
    bench = [os.environ.get("CARGO", "cargo"), "bench", "-p", "twinlens-train", "--bench", "loader"]
    subprocess.run([*bench, "--no-run"], cwd=ROOT, check=True)
    variables = {**os.environ, "TWINLENS_LOADER": str(folder)}
    run = subprocess.run(bench, cwd=ROOT, env=variables, check=True, stdout=subprocess.PIPE, preexec_fn=one_core)
    return [json.loads(line) for line in run.stdout.decode().splitlines() if line.startswith("{")]


def one_core():
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--images", type=pathlib.Path, help="a directory of .jpg files")
    args = options.parse_args()
    environment.enter(OUT / "python-loader", PACKAGES)
    import pyarrow
    import pyarrow.feather

    _, images = photographs(args.images)
    folder = OUT / "loader"
    shards(images, folder)
    best = {}

    def note(kind, program, rate):
        best[kind, program] = max(best.get((kind, program), 0), rate)

    for turn in range(TURNS):
        for row in by_twinlens(folder):
            note(row["images"], f"twinlens, {row['from']} ({row['decoder']})", row["samples_per_second"])
        mask = os.sched_getaffinity(0)
        one_core()
        for kind, side in SIDES.items():
            for draft in (False, True):
                name = "webdataset + Pillow" + (", draft" if draft else "")
                note(kind, name, by_webdataset(folder / f"{kind}.tar", side, draft))
        os.sched_setaffinity(0, mask)
    rows = [(kind, program, rate, rate / best[kind, "webdataset + Pillow"]) for (kind, program), rate in sorted(best.items())]
    for kind, program, rate, ratio in rows:
        print(f"{kind:6} to {SIDES[kind]:3}  {program:44} {rate:9.1f} samples/s  {ratio:5.2f} x webdataset + Pillow")
    columns = zip(*rows)
    names = ["images", "program", "samples_per_second", "times_webdataset_pillow"]
    table = pyarrow.table({name: list(column) for name, column in zip(names, columns)})
    pyarrow.feather.write_feather(table, str(OUT / "loader.arrow"), compression="uncompressed")


if __name__ == "__main__":
    main()
