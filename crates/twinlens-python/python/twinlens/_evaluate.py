"""Evaluation of any model: accuracies with intervals, warnings and hashes."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from . import _text_table, _twinlens
from ._clip import Clip
from ._html import image_bytes
from ._pipeline import run as run_pipeline
from ._run import Run
from ._table import _library

if TYPE_CHECKING:
    import numpy

#: The prompts of a `zero-shot` stage.
PROMPTS = ("{}", "a photo of a {}.", "ensemble")

_Encode = Callable[[list[Any]], "numpy.ndarray"]


def evaluate(
    model: Any,
    sets: str | Sequence[str],
    prompts: str | Sequence[str] = PROMPTS,
    *,
    data: str | os.PathLike[str] | None = None,
    preprocess: Callable[..., Any] | None = None,
    tokenizer: Callable[[list[str]], Any] | None = None,
    name: str | None = None,
    dir: str | os.PathLike[str] | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> Run:
    """Evaluates a model, and returns a run with the tables of a ``zero-shot`` stage, for sets of
    classes, and of a ``retrieval`` stage, for sets of captions: ``run.sql("select * from
    leaderboard")``.

    ``model`` is a :class:`Clip`, the name of one (a directory, ``runs/NAME/STAGE``, ``hf://..``), a
    model of transformers or open_clip, or any object with ``encode_image`` and ``encode_text``.

    ``sets`` are names of declared sets, whose data are in ``data``, files that declare a set, or
    data: a directory with a directory of images per class (``"./my-classes/"``) or a Parquet file
    of images with labels, or with captions, which are found by each other.
    ``prompts`` are templates with ``{}`` for the class, or names of template sets.

    An object gets lists of RGB images of Pillow, and lists of texts; with ``preprocess`` and
    ``tokenizer`` it gets a tensor of the images, each prepared by the former, and what the latter
    makes of the texts. For a model of transformers ``preprocess`` is its processor; without, that of
    the model's name is loaded. The hashes of its results are those of the texts' embeddings.
    """
    sets, prompts = [[one] if isinstance(one, str) else list(one) for one in (sets, prompts)]
    if not sets or not prompts:
        raise ValueError("expected at least one set and one template")
    if isinstance(model, Clip):
        model = model.description["name"]
    data = None if data is None else os.path.abspath(data)
    if isinstance(model, (str, os.PathLike)):
        model = os.fspath(model)
        name = name or _name(os.path.basename(model.rstrip("/")))
        folder = _folder(_twinlens.model_folder(model))
        by_name = {one["name"]: one for one in _plan(sets, data, prompts)}
        stages = _of_a_model(folder, sets, data, prompts, by_name, batch_size)
        return _run(name, stages, os.fspath(dir or f"runs/eval-{name}"), progress)
    name = _name(name or type(model).__name__)
    dir = os.fspath(dir or f"runs/eval-{name}")
    encode = _encoders(model, preprocess, tokenizer)
    plan = _plan(sets, data, prompts)
    stages = _of_an_object(encode, _logit_scale(model), plan, prompts, f"{dir}.inputs/", name, batch_size, progress)
    return _run(name, stages, dir, progress)


def _plan(sets: list[str], data: str | None, prompts: list[str]) -> list[dict[str, Any]]:
    """The sets whose data exist, and how each is read and scored."""
    return json.loads(_twinlens.evaluation(sets, data, prompts))["sets"]


def _of_a_model(
    folder: str, sets: list[str], data: str | None, prompts: list[str], plan: dict[str, Any], batch_size: int
) -> dict[str, Any]:
    """The stages that evaluate a model of this program."""
    retrieval = [one for one in plan.values() if one["kind"] == "retrieval"]
    names = {one["name"] for one in retrieval}
    classified = {"sets": [_located(one) for one in sets if one not in names]}
    classified |= {} if data is None else {"data": _folder(data)}
    found = [one["set"] | {"input": one["stage"]} for one in retrieval]
    reading = {one["stage"]: one["options"] for one in retrieval}
    return reading | _scoring(folder, prompts, classified, found, batch_size)


def _of_an_object(
    encode: tuple[_Encode, _Encode],
    logit_scale: float,
    plan: list[dict[str, Any]],
    prompts: list[str],
    inputs: str,
    name: str,
    batch_size: int,
    progress: bool,
) -> dict[str, Any]:
    """Embeds the images and the texts of sets, and returns the stages that evaluate the embeddings."""
    if not plan:
        raise ValueError("none of the sets is in `data`")
    reading = {one["stage"]: one["options"] for one in plan}
    pictures = run_pipeline({"name": "sets", "stages": reading}, dir=f"{inputs}sets", progress=progress)
    texts = {text for one in plan for text in one["texts"]}
    texts |= {text for one in plan if one["kind"] == "retrieval" for text in _captions(pictures[one["stage"]])}
    vectors = _stacked(encode[1](batch) for batch in _batched(sorted(texts), batch_size))
    folder = os.path.abspath(f"{inputs}{name}")
    _text_table.write(folder, sorted(texts), vectors, logit_scale)
    about = Clip.load(folder).description
    identity = f"{about['weights_hash']}, {about['preprocess']}"
    scored: dict[str, list[dict[str, Any]]] = {"zero-shot": [], "retrieval": []}
    for one in plan:
        file = os.path.abspath(f"{inputs}{one['stage']}.parquet")
        _embed(pictures[one["stage"]], encode[0], batch_size, identity, file)
        given = {key: value for key, value in one["set"].items() if value not in (None, {})}
        scored[one["kind"]].append(given | {"input": file})
    return _scoring(_folder(folder), prompts, {"sets": scored["zero-shot"]}, scored["retrieval"], batch_size)


def _scoring(
    folder: str, prompts: list[str], classified: dict[str, Any], found: list[dict[str, Any]], batch_size: int
) -> dict[str, Any]:
    """The stages that score sets of classes, and of captions."""
    common = {"model": folder, "batch_size": batch_size}
    stages = {}
    if classified["sets"]:
        stages["zero_shot"] = {"kind": "zero-shot", "prompts": prompts} | common | classified
    if found:
        stages["retrieval"] = {"kind": "retrieval", "sets": found} | common
    return stages


#: What captions are trimmed of: Unicode's `White_Space`, which is not what `strip` takes away.
_SPACE = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


def _captions(table: Any) -> Iterator[str]:
    """The captions of a set, as a ``retrieval`` stage embeds them."""
    for row in table.scan(columns=["captions"]):
        yield from filter(None, (caption.strip(_SPACE) for caption in row["captions"] or () if caption))


def _run(name: str, stages: dict[str, Any], dir: str, progress: bool) -> Run:
    return run_pipeline({"name": f"eval-{name}", "stages": stages}, dir=dir, progress=progress)


def _name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "-", text) or "model"


def _folder(path: str | os.PathLike[str]) -> str:
    """A directory as a pipeline names one."""
    return os.path.abspath(path) + "/"


def _located(one: str) -> str:
    """A set by its name, or by its path from anywhere."""
    if "/" not in one and not one.endswith((".toml", ".parquet")):
        return one
    return os.path.abspath(one) + ("/" if one.endswith("/") or os.path.isdir(one) else "")


def _batched(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    rows = iter(rows)
    while batch := list(islice(rows, size)):
        yield batch


def _stacked(pieces: Iterable[Any]) -> Any:
    return _library("numpy").concatenate(list(pieces))


def _array(values: Any, rows: int, what: str) -> Any:
    """Embeddings of a library as an array."""
    # transformers gives them with the states of the tower.
    values = getattr(values, "pooler_output", values)
    if hasattr(values, "detach"):
        values = values.detach().float().cpu().numpy()
    array = _library("numpy").asarray(values, "float32")
    if array.ndim != 2 or len(array) != rows:
        raise ValueError(f"`{what}` gave an array of shape {array.shape} for {rows} inputs; expected one row each")
    return array


def _encoders(model: Any, preprocess: Any, tokenizer: Any) -> tuple[_Encode, _Encode]:
    """What embeds images of Pillow, and texts."""
    if hasattr(model, "get_image_features") and hasattr(model, "get_text_features"):
        if preprocess is None:
            preprocess = _library("transformers").AutoProcessor.from_pretrained(model.name_or_path)
        words = {"padding": True, "truncation": True, "return_tensors": "pt"}
        image = lambda images: model.get_image_features(**_on(model, preprocess(images=images, return_tensors="pt")))  # noqa: E731
        text = lambda texts: model.get_text_features(**_on(model, preprocess(text=texts, **words)))  # noqa: E731
        names = "get_image_features", "get_text_features"
    else:
        missing = [name for name in ("encode_image", "encode_text") if not callable(getattr(model, name, None))]
        if missing:
            raise TypeError(f"a {type(model).__name__} has no method `{missing[0]}`, and is not the name of a model")
        if type(model).__module__.startswith("open_clip."):
            preprocess, tokenizer = _of_open_clip(model, preprocess, tokenizer)

        def image(images: list[Any]) -> Any:
            if preprocess is None:
                return model.encode_image(images)
            stacked = _library("torch").stack([preprocess(image) for image in images])
            return model.encode_image(_on(model, stacked))

        def text(texts: list[str]) -> Any:
            return model.encode_text(texts if tokenizer is None else _on(model, tokenizer(texts)))

        names = "encode_image", "encode_text"
    encode = lambda function, what: lambda rows: _array(_without_gradients(model, function, rows), len(rows), what)  # noqa: E731
    return encode(image, names[0]), encode(text, names[1])


def _of_open_clip(model: Any, preprocess: Any, tokenizer: Any) -> tuple[Any, Any]:
    """What open_clip has for a model, where it is not given."""
    open_clip = _library("open_clip")
    if preprocess is None:
        config = open_clip.transform.PreprocessCfg(**open_clip.get_model_preprocess_cfg(model))
        preprocess = open_clip.transform.image_transform_v2(config, is_train=False)
    if tokenizer is None:
        tokenizer = open_clip.tokenizer.SimpleTokenizer(context_length=model.context_length)
        if model.vocab_size != tokenizer.vocab_size:
            raise ValueError("the model has not CLIP's vocabulary: give its `tokenizer`")
    return preprocess, tokenizer


def _on(model: Any, inputs: Any) -> Any:
    """Tensors on the device of the model."""
    if not hasattr(model, "parameters") or not hasattr(inputs, "to"):
        return inputs
    return inputs.to(next(iter(model.parameters())).device)


def _without_gradients(model: Any, function: Callable[[list[Any]], Any], rows: list[Any]) -> Any:
    if not hasattr(model, "training"):
        return function(rows)
    was_training = model.training
    model.eval()
    try:
        with _library("torch").no_grad():
            return function(rows)
    finally:
        model.train(was_training)


def _logit_scale(model: Any) -> float:
    """Natural logarithm of the factor on similarities; the largest of CLIP if it is not known."""
    scale = getattr(model, "logit_scale", None)
    try:
        return float(scale.detach() if hasattr(scale, "detach") else scale)
    except TypeError:
        return math.log(100)


def _decoded(encoded: bytes | None) -> Any:
    """An image of Pillow; `None` if it cannot be decoded."""
    from PIL import Image

    try:
        return Image.open(io.BytesIO(encoded or b"")).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def _embed(table: Any, encode: _Encode, batch_size: int, identity: str, file: str) -> None:
    """Writes the rows of a table with embeddings instead of images, as an `embed` stage has them."""
    arrow, numpy = _library("pyarrow"), _library("numpy")
    _library("PIL")
    vectors, hashes = [], []
    for batch in _batched(table.scan(columns=["image"]), batch_size):
        encoded = [image_bytes(row["image"]) for row in batch]
        hashes += [hashlib.sha256(one or b"").hexdigest() for one in encoded]
        images = [_decoded(one) for one in encoded]
        good = [image for image in images if image is not None]
        made = iter(encode(good) if good else [])
        vectors += [None if image is None else next(made) for image in images]
    if not vectors:
        raise ValueError(f"the set `{table.name}` has no images")
    width = next((len(vector) for vector in vectors if vector is not None), 1)
    missing = numpy.array([vector is None for vector in vectors], bool)
    values = numpy.stack([numpy.zeros(width) if vector is None else vector for vector in vectors])
    # As of a model of this program: cosines are products of unit vectors.
    values /= numpy.maximum(numpy.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    flat = arrow.array(values.astype("float32").reshape(-1))
    rows = table.scan(columns=[name for name in table.columns if name != "image"]).to_arrow()
    rows = rows.append_column(
        "embedding", arrow.FixedSizeListArray.from_arrays(flat, width, mask=arrow.array(missing))
    )
    rows = rows.append_column("embedding_model", arrow.array([identity] * len(rows)))
    rows = rows.append_column("image_sha256", arrow.array(hashes))
    _library("pyarrow.parquet").write_table(rows, file)
