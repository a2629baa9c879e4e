"""Writes a set of small JPEG images of coloured squares, in the layout of webdataset classification sets, for the evaluation in
benches/gpu/run: `images.py FOLDER COUNT`. Needs pillow."""

import io
import json
import pathlib
import random
import sys
import tarfile

from PIL import Image, ImageDraw

COLOURS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220), "yellow": (230, 210, 50)}
CLASSES = [f"{size} {colour} square" for size in ("small", "large") for colour in COLOURS]


def picture(rng, label):
    image = Image.new("RGB", (64, 64), tuple(rng.randint(90, 255) for _ in range(3)))
    size, colour, _ = CLASSES[label].split()
    side = rng.randint(10, 20) if size == "small" else rng.randint(32, 50)
    x, y = rng.randint(0, 64 - side), rng.randint(0, 64 - side)
    ImageDraw.Draw(image).rectangle([x, y, x + side, y + side], fill=COLOURS[colour])
    return image


def main():
    folder, count = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    rng, test = random.Random(17), folder / "squares" / "test"
    test.mkdir(parents=True, exist_ok=True)
    with tarfile.open(test / "0.tar", "w") as tar:
        for index in range(count):
            label, image = index % len(CLASSES), io.BytesIO()
            picture(rng, label).save(image, "jpeg", quality=85)
            for ending, data in (("jpg", image.getvalue()), ("cls", str(label).encode())):
                info = tarfile.TarInfo(f"{index:07}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    (test / "nshards.txt").write_text("1\n")
    (folder / "squares" / "classnames.txt").write_text("\n".join(CLASSES) + "\n")
    (folder / "squares.toml").write_text(
        f'name = "squares"\ntitle = "Squares"\nclasses = {json.dumps(CLASSES)}\nlicence = "none"\n'
        'source = "benches/gpu/images.py"\nhow_to_get = "run the script"\n'
    )


if __name__ == "__main__":
    main()
