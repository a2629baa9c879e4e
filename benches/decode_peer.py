#!/usr/bin/env python3
"""Compares decoding with Pillow and OpenCV: the same JPEGs to stored images of 256 pixels, on one core.

    benches/decode_peer.py [--images FOLDER]

The images are those of benches/fetch (about 1000 x 800, quality 85), made on the first run. Every
program decodes, resizes the shorter side to 256 and encodes as JPEG of quality 95: Pillow with
antialiased bicubic resizing like twinlens, at full size and with reduced decoding (`draft`); OpenCV
with area resizing as in img2dataset. twinlens also computes hashes (SHA-256 and perceptual). The
programs alternate, and the shortest of five times counts. The table is written to
target/bench/decode.arrow.
"""

import argparse
import io
import json
import os
import pathlib
import subprocess
import sys
import time

import environment

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "target" / "bench"
PACKAGES = ["numpy", "pillow", "opencv-python-headless", "pyarrow"]
SIZE, QUALITY, TURNS = 256, 95, 5


def photographs(folder):
    """The bytes of the images, which are made if missing."""
    if folder is None:
        sys.path.insert(0, str(ROOT / "benches" / "fetch"))
        import run

        OUT.mkdir(parents=True, exist_ok=True)
        run.photographs(OUT)
        folder = OUT / "images"
    return folder, [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]


def by_pillow(data, draft):
    from PIL import Image

    image = Image.open(io.BytesIO(data))
    factor = SIZE / min(image.size)
    target = round(image.width * factor), round(image.height * factor)
    if draft:
        image.draft("RGB", target)
    out = io.BytesIO()
    image.convert("RGB").resize(target, Image.Resampling.BICUBIC).save(out, "jpeg", quality=QUALITY)
    return out.getvalue()


def by_opencv(data):
    import cv2
    import numpy

    image = cv2.imdecode(numpy.frombuffer(data, numpy.uint8), cv2.IMREAD_COLOR)
    factor = SIZE / min(image.shape[:2])
    target = round(image.shape[1] * factor), round(image.shape[0] * factor)
    image = cv2.resize(image, target, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()


def by_twinlens(folder):
    """Seconds for all images: the shortest time that the Rust benchmark measured."""
    bench = [os.environ.get("CARGO", "cargo"), "bench", "-p", "twinlens-image", "--bench", "decode"]
    variables = {**os.environ, "TWINLENS_IMAGES": str(folder)}
    result = subprocess.run(bench, cwd=ROOT, env=variables, check=True, stdout=subprocess.PIPE)
    return json.loads(result.stdout.decode().strip().splitlines()[-1])


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--images", type=pathlib.Path, help="a directory of .jpg files")
    args = options.parse_args()
    environment.enter(OUT / "python-decode", PACKAGES)
    import cv2
    import pyarrow
    import pyarrow.feather

    cv2.setNumThreads(1)
    folder, images = photographs(args.images)
    ours = by_twinlens(folder.resolve())
    peers = {"Pillow": lambda data: by_pillow(data, False), "Pillow, draft": lambda data: by_pillow(data, True),
             "OpenCV": by_opencv}
    shortest = dict.fromkeys(peers, float("inf"))
    for _ in range(TURNS):
        for name, work in peers.items():
            start = time.perf_counter()
            for data in images:
                work(data)
            shortest[name] = min(shortest[name], time.perf_counter() - start)
    again = by_twinlens(folder.resolve())
    assert ours["refused"] == 0, "twinlens refuses some of the images"
    ours["seconds"] = min(ours["seconds"], again["seconds"])
    rows = [(f"twinlens, {ours['decoder']}", ours["seconds"]), *shortest.items()]
    print(f"{len(images)} images of {sum(map(len, images)) // len(images)} bytes")
    for name, seconds in rows:
        each = 1000 * seconds / len(images)
        print(f"{name:34} {each:7.2f} ms/image  {len(images) / seconds:8.1f} images/s  twinlens takes {ours['seconds'] / seconds:.2f} of its time")
    table = pyarrow.table({
        "program": [name for name, _ in rows],
        "images": [len(images)] * len(rows),
        "seconds": [seconds for _, seconds in rows],
        "images_per_second": [len(images) / seconds for _, seconds in rows],
        "twinlens_share_of_its_time": [ours["seconds"] / seconds for _, seconds in rows],
    })
    pyarrow.feather.write_feather(table, str(OUT / "decode.arrow"), compression="uncompressed")


if __name__ == "__main__":
    main()
