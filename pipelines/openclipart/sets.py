"""Evaluation sets as Parquet, in the layout of Hugging Face's `datasets`: image struct<bytes, path>, label, class_name.

A label is the place of its class in the sorted list of names (Fashion-MNIST: its official ids), and the names are written
into the file's metadata, so that no reader has to guess what a number means.
"""

import gzip
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from emojibase import Emoji, key


@dataclass(frozen=True)
class Example:
    path: str
    png: bytes
    class_name: str


@dataclass(frozen=True)
class Examples:
    rows: list[Example]
    classes: list[str]

    @classmethod
    def of(cls, rows: list[Example]) -> "Examples":
        return cls(rows, sorted({row.class_name for row in rows}))


def write(folder: Path, name: str, examples: Examples) -> dict[str, int]:
    folder.mkdir(exist_ok=True)
    ids = {class_name: at for at, class_name in enumerate(examples.classes)}
    features = {
        "image": {"_type": "Image"},
        "label": {"names": examples.classes, "_type": "ClassLabel"},
        "class_name": {"dtype": "string", "_type": "Value"},
    }
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image), ("label", pa.int32()), ("class_name", pa.string())])
    rows = [
        {"image": {"bytes": row.png, "path": row.path}, "label": ids[row.class_name], "class_name": row.class_name}
        for row in examples.rows
    ]
    table = pa.Table.from_pylist(rows, schema=schema)
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    # Small row groups, so that a viewer can page; uncompressed columns, as images are compressed
    # already.
    pq.write_table(table, folder / f"{name}.parquet", row_group_size=100, compression="none")
    return {"images": len(rows), "classes": len(examples.classes)}


def all_sets(packages: Path, labels: dict[str, Emoji]) -> Iterator[tuple[str, Examples]]:
    fluent = list(fluent_3d(packages / "fluent-3d/assets", labels))
    yield "fluent-3d", Examples.of([row for _, row in fluent])
    yield "fluent-3d-groups", Examples.of([Example(row.path, row.png, words(group)) for group, row in fluent])
    for group in ("flags", "food-drink", "animals-nature", "objects", "travel-places"):
        yield f"fluent-3d-{group}", Examples.of([row for of, row in fluent if of == group])
    yield "iso-flags", Examples.of(list(iso_flags(packages, labels)))
    yield "fashion-mnist", fashion_mnist(packages / "dataset-fashion-mnist/usr/share/datasets")
    yield "mnist", mnist(packages / "mnist/src/digits")


def words(group: str) -> str:
    return group.replace("-", " & ")


def fluent_3d(assets: Path, labels: dict[str, Emoji]) -> Iterator[tuple[str, Example]]:
    """(group, example) for each emoji; skin tones are left out, since their classes would hardly differ."""
    for file in sorted(assets.glob("*.webp")):
        known = labels.get(key(file.stem))
        if known and not known.tone:
            yield known.group, Example(file.name, file.read_bytes(), known.label)


def iso_flags(packages: Path, labels: dict[str, Emoji]) -> Iterator[Example]:
    """One flag a country, named as its emoji is: the two letters are its two regional indicators."""
    for file in sorted((packages / "iso-flags-png-320x240/usr/share/iso-flags-png-320x240").glob("??.png")):
        known = labels.get("-".join(f"{0x1F1E6 + ord(letter) - ord('a'):x}" for letter in file.stem))
        if known:
            yield Example(file.name, file.read_bytes(), known.label)


# The official names and their order: https://github.com/zalandoresearch/fashion-mnist#labels
FASHION = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


def fashion_mnist(datasets: Path) -> Examples:
    """The 10,000 test images. The IDX format: a magic number, the sizes, the values, all big-endian."""
    images_file, labels_file = (
        gzip.decompress(next(datasets.rglob(f"t10k-{kind}-ubyte.gz")).read_bytes()) for kind in ("images-idx3", "labels-idx1")
    )
    magic, count, height, width = struct.unpack(">4I", images_file[:16])
    if magic != 0x803 or len(labels_file) != 8 + count:
        raise ValueError("dataset-fashion-mnist: not the expected IDX files")
    area = height * width
    rows = [
        Example(f"{at:05}.png", grey_png(images_file[16 + at * area :][:area], width), FASHION[labels_file[8 + at]])
        for at in range(count)
    ]
    return Examples(rows, FASHION)


def mnist(folder: Path) -> Examples:
    """The 10,000 digits of the npm package: a file a digit, 784 values from 0 to 1 an image."""
    rows = []
    for digit in range(10):
        values = json.loads((folder / f"{digit}.json").read_text())["data"]
        for at in range(len(values) // 784):
            pixels = bytes(round(255 * value) for value in values[784 * at : 784 * (at + 1)])
            rows.append(Example(f"{digit}-{at:04}.png", grey_png(pixels, 28), str(digit)))
    return Examples.of(rows)


def grey_png(values: bytes, width: int) -> bytes:
    """An 8-bit grey PNG (each row begins with filter type 0)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = [values[at : at + width] for at in range(0, len(values), width)]
    header = struct.pack(">2I5B", width, len(rows), 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
