"""Packages to evaluation sets; called by `prepare`. Usage: build.py DIR"""

import base64
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import resvg_py
from PIL import Image

import emojibase
import rendered
import sets
from emojibase import Emoji, key
from sets import Example, Examples

# The side to which drawings without pixels are rendered.
SIDE = 96


def all_sets(packages: Path, labels: dict[str, Emoji]) -> Iterator[tuple[str, Examples]]:
    fluent = list(sets.fluent_3d(packages / "fluent-3d/assets", labels))
    yield "fluent-3d", Examples.of([row for _, row in fluent])
    yield "fluent-3d-groups", Examples.of([Example(row.path, row.png, sets.words(group)) for group, row in fluent])
    for group in sorted({group for group, _ in fluent}):
        yield f"fluent-3d-{group}", Examples.of([row for of, row in fluent if of == group])
    yield "twemoji", Examples.of(list(datasource(packages / "emoji-twitter", "twitter", labels)))
    yield "noto", Examples.of(list(datasource(packages / "emoji-google", "google", labels)))
    yield "openmoji", Examples.of(list(iconify(packages / "openmoji")))
    yield "fluent-flat", Examples.of(list(iconify(packages / "fluent-flat")))
    yield "iso-flags", Examples.of(list(sets.iso_flags(packages, labels)))
    yield "fashion-mnist", sets.fashion_mnist(packages / "dataset-fashion-mnist/usr/share/datasets")
    yield "mnist", sets.mnist(packages / "mnist/src/digits")
    yield from rendered.all_sets(packages)


def datasource(package: Path, name: str, labels: dict[str, Emoji]) -> Iterator[Example]:
    """One emoji font of `emoji-datasource`, without skin tones."""
    images = package / "img" / name / "64"
    for entry in json.loads((package / "emoji.json").read_text()):
        known, file = labels.get(key(entry["unified"])), images / entry["image"]
        if known and not known.tone and file.exists():
            yield Example(file.name, file.read_bytes(), known.label)


def iconify(package: Path) -> Iterator[Example]:
    """A collection of Iconify: drawings by name. Skin tones are left out, and aliases, which are the same drawings."""
    collection = json.loads((package / "icons.json").read_text())
    width, height = collection.get("width", 16), collection.get("height", 16)
    for name, icon in sorted(collection["icons"].items()):
        if "skin-tone" in name or icon.get("hidden"):
            continue
        box = f'{icon.get("left", 0)} {icon.get("top", 0)} {icon.get("width", width)} {icon.get("height", height)}'
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box}">{icon["body"]}</svg>'
        yield Example(f"{name}.png", on_white(svg), name.replace("-", " "))


def on_white(svg: str) -> bytes:
    drawn = resvg_py.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE)
    drawn = Image.open(io.BytesIO(bytes(drawn) if not isinstance(drawn, str) else base64.b64decode(drawn))).convert("RGBA")
    page = Image.new("RGBA", drawn.size, "white")
    page.alpha_composite(drawn)
    out = io.BytesIO()
    page.convert("RGB").save(out, "png")
    return out.getvalue()


def main(root: Path) -> None:
    packages = root / ".packages"
    labels = emojibase.load(packages / "emojibase")
    counts = {}
    for name, examples in all_sets(packages, labels):
        counts[name] = sets.write(root, name, examples)
        print(f"set {name}: {counts[name]}", file=sys.stderr)
    (root / "counts.json").write_text(json.dumps(counts, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
