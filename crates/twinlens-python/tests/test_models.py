"""Models: embeddings, classes, and the same features in transformers and open_clip."""

import importlib.util
import json
import multiprocessing
import subprocess
import sys

import pytest

import twinlens

numpy = pytest.importorskip("numpy")
Image = pytest.importorskip("PIL.Image")

CAPTIONS = [f"a {colour} {shape}!" for colour in ["red", "Blue", "grün"] for shape in ["circle", "square  (2)"]]


@pytest.fixture(scope="module")
def clip(run):
    return twinlens.Clip.load(f"{run.dir}/clip")


@pytest.fixture(scope="module")
def pictures(place):
    return sorted((place / "pictures").glob("[0-9]*.png"))


def test_images_are_paths_bytes_arrays_and_pillows(clip, run, pictures):
    paths = clip.encode_images(pictures)
    assert paths.shape == (60, 16) == (60, clip.width) and paths.dtype == numpy.float32
    assert numpy.allclose(numpy.linalg.norm(paths, axis=1), 1, atol=1e-5)
    for other in [
        [str(path) for path in pictures],
        [path.read_bytes() for path in pictures],
        [Image.open(path) for path in pictures],
        [numpy.asarray(Image.open(path)) for path in pictures],
    ]:
        assert (clip.encode_images(other) == paths).all()
    # As the stage of the run has embedded them.
    rows = {row["caption"]: row["embedding"] for row in run["vectors"].scan(columns=["caption", "embedding"])}
    captions = [path.with_suffix(".txt").read_text().strip() for path in pictures]
    assert numpy.array_equal(paths, numpy.asarray([rows[caption] for caption in captions], numpy.float32))
    assert clip.encode_images([]).shape == (0, 16)


def test_texts_and_classes(clip, pictures):
    texts = clip.encode_texts(CAPTIONS)
    assert texts.shape == (6, 16) and clip.encode_texts([]).shape == (0, 16)
    images = clip.encode_images(pictures[:5])
    classes = ["red", "green"]
    found = clip.zero_shot(pictures[:5], classes, ["a {} circle"])
    logits = images @ clip.encode_texts([f"a {name} circle" for name in classes]).T * numpy.exp(clip.logit_scale)
    powers = numpy.exp(logits - logits.max(axis=1, keepdims=True))
    assert numpy.allclose(found, powers / powers.sum(axis=1, keepdims=True), atol=1e-5)
    assert clip.zero_shot([], classes).shape == (0, 2)
    assert clip.zero_shot(pictures[:2], classes, "ensemble").shape == (2, 2)


def test_what_is_no_image_or_model_is_refused(clip, place, run):
    for images, error, message in [
        ([place / "pictures/broken.png"], twinlens.Error, "image 0"),
        ([b"nothing"], twinlens.Error, "image 0"),
        ([place / "nowhere.png"], twinlens.Error, "nowhere.png"),
        ([numpy.zeros((4, 4), numpy.uint8)], ValueError, "is not an image"),
        ([numpy.zeros((4, 4, 3))], ValueError, "float64"),
        ([Image.new("RGBA", (4, 4))], ValueError, "mode RGBA"),
        ([3], ValueError, "is not an image"),
    ]:
        with pytest.raises(error, match=message):
            clip.encode_images(images)
    with pytest.raises(TypeError, match="list of texts"):
        clip.encode_texts("one")
    with pytest.raises(twinlens.Error, match="no `{}`|neither a template"):
        clip.zero_shot([], ["a"], ["a photo"])
    with pytest.raises(twinlens.Error, match="no classes"):
        clip.zero_shot([], [])
    for name, message in [("nowhere", "does not exist"), (run.dir, "config.json"), (f"{run.dir}/images", "config.json")]:
        with pytest.raises(twinlens.Error, match=message):
            twinlens.Clip.load(name)


def _encode(clip):
    try:
        clip.encode_texts(["a"])
    except ValueError as error:
        return str(error)
    return "no error"


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system has no fork")
def test_a_forked_process_is_told(clip):
    global _CLIP
    _CLIP = clip
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert "forked process" in pool.apply_async(_forked).get(timeout=30)


def _forked():
    return _encode(_CLIP)


def test_the_command_exports_models(run, tmp_path):
    command = [sys.executable, "-m", "twinlens", "model", "export", f"{run.dir}/clip"]
    out = tmp_path / "hf"
    done = subprocess.run([*command, str(out), "--to", "hugging-face"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    config = json.loads((out / "config.json").read_text())
    assert config["text_config"]["vocab_size"] == config["text_config"]["eos_token_id"] + 1
    assert config["vision_config"]["image_size"] == 32
    names = {"config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in out.iterdir()} == names
    again = subprocess.run([*command, str(out), "--to", "open-clip"], capture_output=True, text=True)
    assert again.returncode == 1 and "not an empty directory" in again.stderr
    # Read back by the program itself, with the same features.
    assert (twinlens.Clip.load(out).encode_texts(CAPTIONS) == twinlens.Clip.load(f"{run.dir}/clip").encode_texts(CAPTIONS)).all()
    with pytest.raises(ValueError, match="expected"):
        twinlens.Clip.load(out).save(tmp_path / "x", "onnx")


def has(*names):
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def ours(clip, pictures):
    return clip.encode_images(pictures), clip.encode_texts(CAPTIONS)


def unit(features):
    features = features.detach().numpy()
    return features / numpy.linalg.norm(features, axis=1, keepdims=True)


@has("torch", "transformers")
def test_transformers_loads_it_as_it_is(clip, pictures, tmp_path):
    import torch
    from transformers import CLIPModel, CLIPProcessor

    clip.save(tmp_path / "hf", format="hugging-face")
    model, report = CLIPModel.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    processor = CLIPProcessor.from_pretrained(tmp_path / "hf")
    # Images whose resized width leaves an even rest have the same central square there.
    images = [Image.open(path) for path in pictures]
    inputs = processor(text=CAPTIONS, images=images, return_tensors="pt", padding=True)
    with torch.no_grad():
        output = model.eval()(**inputs)
    image, text = ours(clip, pictures)
    assert numpy.abs(unit(output.text_embeds) - text).max() < 1e-5
    even = [i for i, picture in enumerate(images) if (int(32 * picture.width / min(picture.size)) - 32) % 2 == 0]
    assert len(even) > 20
    assert numpy.abs(unit(output.image_embeds) - image)[even].max() < 2e-2


@has("torch", "open_clip", "transformers")
def test_open_clip_loads_it_as_it_is(clip, pictures, tmp_path):
    import open_clip
    import torch

    clip.save(tmp_path / "oc", format="open-clip")
    name = f"local-dir:{tmp_path / 'oc'}"
    model, preprocess = open_clip.create_model_from_pretrained(name)
    tokenize = open_clip.get_tokenizer(name)
    with torch.no_grad():
        images = model.encode_image(torch.stack([preprocess(Image.open(path)) for path in pictures]))
        texts = model.encode_text(tokenize(CAPTIONS))
    image, text = ours(clip, pictures)
    assert numpy.abs(unit(texts) - text).max() < 1e-5
    assert numpy.abs(unit(images) - image).max() < 1e-5
