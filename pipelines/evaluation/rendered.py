"""Texts drawn with fonts: sets that ask whether a model can read."""

import io
import random
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from sets import Example, Examples

SIDE = 96
SEED = 17
WORDS = """apple arm baby ball bank bear bed bell bird blue boat book bottle box bread bridge brother bus cake car cat chair child
city clock cloud coat coffee cold cow cup day desk doctor dog door dream dress ear east egg eye face farm father fire fish floor flower
fly food foot friend fruit garden girl glass gold grass green hair hand hat heart hill home horse hotel house ice island king kitchen
knife lake lamp leaf leg letter light lion milk money moon morning mother mountain mouse mouth music night north nose ocean open orange
paper park pen""".split()


def fonts(packages: Path) -> list[Path]:
    """Text fonts of the Debian packages, by name: those of symbols and of other scripts are left out."""
    found = sorted(path for package in packages.glob("fonts-*") for path in package.rglob("*.ttf") if not path.is_symlink())
    return [path for path in found if "Narrow" not in path.name and "Math" not in path.name]


def drawn(text: str, font: Path, chance: random.Random) -> bytes:
    """The text somewhere on a page, dark on light or light on dark, of a size that fits."""
    page, ink = ((chance.randint(200, 255),) * 3, tuple(chance.randint(0, 110) for _ in range(3)))
    if chance.random() < 0.3:
        page, ink = ink, page
    image = Image.new("RGB", (SIDE, SIDE), page)
    draw = ImageDraw.Draw(image)
    size = chance.randint(40, 80)
    while True:
        letters = ImageFont.truetype(str(font), size)
        left, top, right, bottom = draw.textbbox((0, 0), text, font=letters)
        if right - left <= SIDE - 8 and bottom - top <= SIDE - 8:
            break
        size = size * 9 // 10
    x = chance.randint(4, SIDE - 4 - (right - left)) - left
    y = chance.randint(4, SIDE - 4 - (bottom - top)) - top
    draw.text((x, y), text, fill=ink, font=letters)
    out = io.BytesIO()
    image.save(out, "png")
    return out.getvalue()


def set_of(name: str, texts: list[str], each: int, faces: list[Path]) -> Examples:
    chance = random.Random(f"{SEED}/{name}")
    rows = [
        Example(f"{text}-{at:03}.png", drawn(text, chance.choice(faces), chance), text) for text in texts for at in range(each)
    ]
    return Examples.of(rows)


def all_sets(packages: Path) -> Iterator[tuple[str, Examples]]:
    faces = fonts(packages)
    yield "letters", set_of("letters", [chr(letter) for letter in range(ord("A"), ord("Z") + 1)], 40, faces)
    yield "digits", set_of("digits", [str(digit) for digit in range(10)], 100, faces)
    yield "words", set_of("words", WORDS, 10, faces)
