"""Evaluation of models by name and of objects: the same tables."""

import importlib.util

import pytest
from conftest import COLOURS, draw

import twinlens
from twinlens import _text_table

numpy = pytest.importorskip("numpy")
pytest.importorskip("pyarrow")
pytest.importorskip("PIL")

PROMPTS = ["{}", "a {} circle", "ensemble"]


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """A directory of images per class, and a file that is not an image."""
    folder = tmp_path_factory.mktemp("sets") / "colours"
    for number in range(40):
        colour = COLOURS[number % 5]
        (folder / colour).mkdir(parents=True, exist_ok=True)
        draw(folder / colour / f"{number}.png", colour, "circle", number)
    return folder


@pytest.fixture(scope="module")
def clip(run):
    return twinlens.Clip.load(f"{run.dir}/clip")


@pytest.fixture(scope="module")
def expected(clip, classes, tmp_path_factory):
    dir = tmp_path_factory.mktemp("eval") / "run"
    return twinlens.evaluate(clip, f"{classes}/", PROMPTS, dir=dir, progress=False)


ACCURACY = (
    "select set, split, prompts, metric, value, ci_low, ci_high, chance, n, set_hash, classes_hash, prompts_hash "
    "from zero_shot order by prompts, metric"
)


def same(one, other):
    """Equal tables; numbers may differ by what one other prediction makes."""
    assert one.sql(ACCURACY).to_pylist()
    for a, b in zip(one.sql(ACCURACY), other.sql(ACCURACY), strict=True):
        for name in ("set", "prompts", "metric", "n", "set_hash", "classes_hash", "prompts_hash", "chance"):
            assert a[name] == b[name], name
        assert all(abs(a[name] - b[name]) < 0.03 for name in ("value", "ci_low", "ci_high"))
    predictions = "select example, predicted from predictions where prompts = '{}' order by example"
    pairs = list(zip(one.sql(predictions), other.sql(predictions), strict=True))
    assert sum(a["predicted"] == b["predicted"] for a, b in pairs) >= len(pairs) - 1
    warnings = "select prompts, code, detail from warnings order by 1, 2, 3"
    assert one.sql(warnings).to_pylist() == other.sql(warnings).to_pylist()


class Ours:
    """A model of this program as any object."""

    def __init__(self, clip):
        self.clip, self.logit_scale = clip, clip.logit_scale

    def encode_image(self, images):
        # Not of unit length, which does not matter.
        return 3 * self.clip.encode_images(images)

    def encode_text(self, texts):
        return self.clip.encode_texts(texts) * 0.5


def test_an_object_gives_the_same_tables(clip, classes, expected, tmp_path):
    found = twinlens.evaluate(Ours(clip), f"{classes}/", PROMPTS, dir=tmp_path / "run", progress=False)
    same(expected, found)
    assert len(found.sql("select * from leaderboard").to_pylist()) > 0
    # It is reused, and made again for another model.
    other = Ours(clip)
    other.encode_text = lambda texts: -clip.encode_texts(texts)
    twinlens.evaluate(other, f"{classes}/", PROMPTS, dir=tmp_path / "run", progress=False)
    predicted = "select example, predicted from predictions where prompts = '{}' order by example"
    assert found.sql(predicted).to_pylist() != expected.sql(predicted).to_pylist()


def test_texts_become_a_model(tmp_path):
    rng = numpy.random.default_rng(1)
    for width in [3, 63, 512]:
        texts = ["a", "b " * 200, "ünï <|endoftext|> ©", "b", " a"]
        vectors = rng.normal(size=(5, width)) * 7
        folder = str(tmp_path / str(width))
        _text_table.write(folder, texts, vectors, 2.5)
        clip = twinlens.Clip.load(folder)
        unit = vectors / numpy.linalg.norm(vectors, axis=1, keepdims=True)
        assert numpy.abs(clip.encode_texts(texts) - unit).max() < 1e-5
        assert abs(clip.logit_scale - 2.5) < 1e-6 and clip.width == width
    with pytest.raises(ValueError, match="the text 'b' is not finite"):
        _text_table.write(str(tmp_path / "x"), ["a", "b"], [[1.0, 1.0], [0.0, 0.0]], 1.0)


def test_what_cannot_be_evaluated(clip, classes, tmp_path):
    class Half:
        def encode_image(self, images):
            return numpy.zeros((1, 4))

    class Wrong(Half):
        def encode_text(self, texts):
            return numpy.zeros(3)

    for model, sets, error, message in [
        (Half(), f"{classes}/", TypeError, "no method `encode_text`"),
        (Wrong(), f"{classes}/", ValueError, "shape \\(3,\\) for"),
        (3, f"{classes}/", TypeError, "no method `encode_image`"),
        ("nowhere", f"{classes}/", twinlens.Error, "nowhere"),
        (Ours(clip), "cifar10", twinlens.Error, "needs --data|data"),
        (Ours(clip), [], ValueError, "at least one set"),
    ]:
        with pytest.raises(error, match=message):
            twinlens.evaluate(model, sets, dir=tmp_path / "run", progress=False)
    with pytest.raises(twinlens.Error, match="neither a template"):
        twinlens.evaluate(Ours(clip), f"{classes}/", "a photo", dir=tmp_path / "run", progress=False)


def has(*names):
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@has("torch", "open_clip", "transformers")
def test_open_clip(clip, classes, expected, tmp_path):
    import open_clip

    clip.save(tmp_path / "oc", format="open-clip")
    name = f"local-dir:{tmp_path / 'oc'}"
    model, preprocess = open_clip.create_model_from_pretrained(name)
    tokenizer = open_clip.get_tokenizer(name)
    model.train()
    found = twinlens.evaluate(
        model, f"{classes}/", PROMPTS, preprocess=preprocess, tokenizer=tokenizer, dir=tmp_path / "a", progress=False
    )
    same(expected, found)
    assert model.training
    # Its own preprocessing is known, its vocabulary is not.
    found = twinlens.evaluate(model, f"{classes}/", PROMPTS, tokenizer=tokenizer, dir=tmp_path / "b", progress=False)
    same(expected, found)
    with pytest.raises(ValueError, match="give its `tokenizer`"):
        twinlens.evaluate(model, f"{classes}/", PROMPTS, dir=tmp_path / "c", progress=False)


@has("torch", "transformers")
def test_transformers(clip, classes, expected, tmp_path):
    from transformers import CLIPModel

    clip.save(tmp_path / "hf", format="hugging-face")
    model = CLIPModel.from_pretrained(tmp_path / "hf")
    found = twinlens.evaluate(model, f"{classes}/", PROMPTS, dir=tmp_path / "run", progress=False)
    # Its central squares begin one pixel earlier for some images.
    for a, b in zip(expected.sql(ACCURACY), found.sql(ACCURACY), strict=True):
        assert a["prompts_hash"] == b["prompts_hash"] and abs(a["value"] - b["value"]) < 0.2


def test_retrieval(clip, classes, tmp_path):
    """Images and captions find each other, in an evaluation with a set of classes, too."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    files = sorted(classes.glob("*/*.png"))[:30]
    rows = {
        "image": [file.read_bytes() for file in files],
        "captions": [
            [f"a {file.parent.name} circle", f"\x1f number {number}\u2003", " "] for number, file in enumerate(files)
        ],
    }
    parquet.write_table(arrow.table(rows), tmp_path / "found.parquet")
    sets = [str(tmp_path / "found.parquet"), f"{classes}/"]
    results = "select metric, value, ci_low, ci_high, n, set_hash from retrieval order by metric"
    expected, found = (
        twinlens.evaluate(model, sets, ["{}"], dir=tmp_path / name, progress=False)
        for model, name in [(clip, "expected"), (Ours(clip), "found")]
    )
    assert len(expected.sql(results).to_pylist()) >= 6
    for a, b in zip(expected.sql(results), found.sql(results), strict=True):
        assert a["metric"] == b["metric"] and a["n"] == b["n"] and abs(a["value"] - b["value"]) < 0.05, (a, b)
    tasks = "select distinct task from leaderboard order by 1"
    assert [row["task"] for row in found.sql(tasks)] == ["retrieval", "zero-shot"]
    alone = twinlens.evaluate(Ours(clip), sets[0], dir=tmp_path / "alone", progress=False)
    assert alone.sql(results).to_pylist() == found.sql(results).to_pylist()
