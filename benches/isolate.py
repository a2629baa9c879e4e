#!/usr/bin/env python3
"""What `--isolate` costs: images decoded by processes that can do nothing else, beside the same run
without it, in turns.

    benches/isolate.py --twinlens target/release/twinlens [--turns 5]

Fetches local files: 300 JPEG photographs of 1000 x 800 pixels, and 2,000 PNG of 64 x 64. Needs
numpy and Pillow.
"""
import argparse
import os
import pathlib
import shutil
import statistics
import subprocess
import tempfile
import time

import numpy
from PIL import Image

PIPELINE = """
name = "isolate"

[stages.pairs]
kind = "table"
files = ["{name}.csv"]

[stages.images]
kind = "fetch"
input = "pairs"
resize = {{ size = 64, mode = "shortest" }}
encode = {{ format = "jpeg" }}
"""


def make(folder, name, count, image):
    (folder / name).mkdir()
    rows = ["url,caption"]
    for number in range(count):
        path = f"{name}/{number}.{'jpg' if name == 'photographs' else 'png'}"
        image().save(folder / path, quality=88)
        rows.append(f"{path},{name} {number}")
    (folder / f"{name}.csv").write_text("\n".join(rows) + "\n")
    (folder / f"{name}.toml").write_text(PIPELINE.format(name=name))


def seconds(twinlens, folder, name, more):
    shutil.rmtree(folder / "runs", ignore_errors=True)
    began = time.monotonic()
    command = [twinlens, "run", f"{name}.toml", "--progress", "never", *more]
    subprocess.run(command, cwd=folder, env={**os.environ, "HOME": str(folder)}, check=True,
                   capture_output=True)
    return time.monotonic() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--twinlens", required=True, type=pathlib.Path)
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    twinlens = args.twinlens.resolve()
    random = numpy.random.default_rng(1)

    def noise(height, width):
        return Image.fromarray(random.integers(0, 255, (height, width, 3), dtype=numpy.uint8))

    kinds = {
        "photographs": (300, lambda: noise(40, 50).resize((1000, 800), Image.BICUBIC)),
        "small": (2000, lambda: noise(64, 64)),
    }
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for name, (count, image) in kinds.items():
            make(folder, name, count, image)
            turns = [[seconds(twinlens, folder, name, more) for more in ([], ["--isolate"])]
                     for _ in range(args.turns)]
            ratio = statistics.median(isolated / plain for plain, isolated in turns)
            more = statistics.median(isolated - plain for plain, isolated in turns) / count
            plain = statistics.median(plain for plain, _ in turns)
            print(f"{name}: {plain:.2f} s, with --isolate {ratio:.2f} times that, "
                  f"{1000 * more:.2f} ms more for an image")


if __name__ == "__main__":
    main()
