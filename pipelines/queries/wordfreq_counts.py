"""Turns one of wordfreq's frequency lists into lines of `word<TAB>count`.

    wordfreq_counts.py large_en.msgpack.gz OUT

The format ("cB"): a gzipped MessagePack array; a header {format: cB, version: 1}, then one array of words for each
frequency of 0, -1, -2, ... centibels, a frequency of -n centibels being 10^(-n/100). The counts written are those in a
corpus of 10^10 words, in which the rarest words of the large lists occur about 100 times.
"""

import gzip
import struct
import sys

CORPUS = 10**10


def unpack(data, at):
    """The MessagePack value at `at` and where the next one begins: what this format uses of MessagePack, no more."""
    kind = data[at]
    if kind < 0x80:
        return kind, at + 1
    if 0x80 <= kind < 0x90:
        return items(data, at + 1, 2 * (kind & 15), lambda flat: dict(zip(flat[::2], flat[1::2])))
    if 0x90 <= kind < 0xA0:
        return items(data, at + 1, kind & 15, list)
    if 0xA0 <= kind < 0xC0:
        return text(data, at + 1, kind & 31)
    if kind == 0xD9:
        return text(data, at + 2, data[at + 1])
    if kind == 0xDA:
        return text(data, at + 3, struct.unpack_from(">H", data, at + 1)[0])
    if kind == 0xDC:
        return items(data, at + 3, struct.unpack_from(">H", data, at + 1)[0], list)
    if kind == 0xDD:
        return items(data, at + 5, struct.unpack_from(">I", data, at + 1)[0], list)
    raise ValueError(f"byte {at}: MessagePack type {kind:#x} is not part of the format")


def text(data, start, length):
    return data[start : start + length].decode(), start + length


def items(data, at, count, build):
    values = []
    for _ in range(count):
        value, at = unpack(data, at)
        values.append(value)
    return build(values), at


def main(source, target):
    with gzip.open(source) as file:
        (header, *levels), _ = unpack(file.read(), 0)
    if header != {"format": "cB", "version": 1}:
        raise SystemExit(f"{source}: unexpected header {header}")
    with open(target, "w", encoding="utf-8") as out:
        for centibels, words in enumerate(levels):
            count = round(CORPUS * 10 ** (-centibels / 100))
            for word in words:
                out.write(f"{word}\t{count}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
