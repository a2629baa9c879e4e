"""A finished run of 60 small pictures, with a tiny model, and the batches of a training on it."""

import itertools
import random

import pytest
from PIL import Image, ImageDraw

import twinlens

COLOURS = ["red", "green", "blue", "yellow", "black"]
SHAPES = ["circle", "square"]


def draw(path, colour, shape, seed):
    rng = random.Random(seed)
    image = Image.new("RGB", (64 + seed % 9, 60), "white")
    left, top = rng.randrange(20), rng.randrange(20)
    box = (left, top, left + 30, top + 30)
    pen = ImageDraw.Draw(image)
    (pen.ellipse if shape == "circle" else pen.rectangle)(box, fill=colour)
    image.save(path)


PIPELINE = """
name = "shapes"
seed = 3

[stages.images]
kind = "folder"
folders = ["pictures"]

[stages.words]
kind = "tokenizer"
input = "images"
vocab_size = 300

[stages.clip]
kind = "train"
input = "images"
tokenizer = "words"
steps = 4
batch_size = 16
[stages.clip.model]
embed = 16
vision = { image_size = 32, patch = 16, width = 32, layers = 2, heads = 2 }
text = { context = 24, vocab = 300, width = 32, layers = 2, heads = 2 }

[stages.vectors]
kind = "embed"
input = "images"
model = "clip"

[stages.counts]
kind = "sql"
query = "select split_part(caption, ' ', 2) as colour, count(*) as n from images group by 1 order by 1"
"""


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A folder with pictures and a pipeline file."""
    place = tmp_path_factory.mktemp("place")
    (place / "pictures").mkdir()
    for number in range(60):
        colour, shape = COLOURS[number % 5], SHAPES[number // 5 % 2]
        draw(place / "pictures" / f"{number:02}.png", colour, shape, number)
        (place / "pictures" / f"{number:02}.txt").write_text(f"a {colour} {shape} number {number}\n")
    (place / "pictures" / "broken.png").write_bytes(b"no image")
    (place / "pictures" / "broken.txt").write_text("a broken file\n")
    (place / "shapes.toml").write_text(PIPELINE)
    return place


@pytest.fixture(scope="session")
def run(place):
    """The pipeline of the folder, run once."""
    return twinlens.run(place / "shapes.toml", dir=place / "run", progress=False)


BATCH = 12


def options(run, **more):
    given = {"size": 32, "batch_size": BATCH, "seed": 5, "context": 24, "threads": 2}
    return dict(data=f"{run.dir}/images", tokenizer=f"{run.dir}/clip", **(given | more))


def arrays(batches):
    """Copies of batches."""
    import numpy

    return [(numpy.array(pixels), numpy.array(ids)) for pixels, ids in batches]


def equal(a, b):
    return len(a) == len(b) and all((x == y).all() for x, y in zip(itertools.chain(*a), itertools.chain(*b)))


@pytest.fixture(scope="session")
def expected(run):
    """The batches of two epochs."""
    pairs = twinlens.Pairs(**options(run))
    return arrays(pairs) + arrays(pairs)
