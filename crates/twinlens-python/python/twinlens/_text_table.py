"""A table of texts and their vectors in the form of a model.

The evaluation embeds its prompts by a model's text tower. What another library has embedded becomes
a tower that looks vectors up: each text is one token, and the only block passes the token's vector
to the end token, where a text is read.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ._table import _library

if TYPE_CHECKING:
    import numpy

_START, _END, _UNKNOWN = "<|startoftext|>", "<|endoftext|>", "<|unknown|>"
#: Width of an attention head.
_HEAD = 64


def _rotation(width: int, wide: int) -> Any:
    """Orthonormal rows ``[width, wide]`` whose numbers have the sum 0 (Helmert's matrix): layer norms
    change no vector that is made of them but in its length.
    """
    numpy = _library("numpy")
    rows = numpy.zeros((width, wide))
    for row in range(width):
        rows[row, : row + 1] = 1
        rows[row, row + 1] = -(row + 1)
        rows[row] /= math.sqrt((row + 1) * (row + 2))
    return rows


def _weights(vectors: numpy.ndarray, logit_scale: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """Configuration and weights of the model; the image tower is the smallest that there is."""
    numpy = _library("numpy")
    texts, width = vectors.shape
    wide = _HEAD * -(-(width + 1) // _HEAD)
    config = {
        "embed": width,
        "vision": {"image_size": 16, "patch": 16, "width": 8, "layers": 1, "heads": 1},
        "text": {"context": 3, "vocab": texts + 3, "width": wide, "layers": 1, "heads": wide // _HEAD},
    }
    rotation = _rotation(width, wide)
    tokens = numpy.zeros((texts + 3, wide))
    tokens[:texts] = vectors @ rotation * math.sqrt(wide)
    projection = numpy.zeros((3 * wide, wide))
    # Queries and keys are 0, so that each position counts alike; start and end token are 0.
    projection[2 * wide :] = numpy.eye(wide)
    weights = {
        "token_embedding.weight": tokens,
        "positional_embedding": numpy.zeros((3, wide)),
        "text_projection": rotation.T,
        "logit_scale": numpy.array(logit_scale),
        **_norm("ln_final", wide),
        **_block("transformer.resblocks.0", wide),
        "visual.class_embedding": numpy.zeros(8),
        "visual.conv1.weight": numpy.zeros((8, 3, 16, 16)),
        "visual.positional_embedding": numpy.zeros((2, 8)),
        "visual.proj": numpy.zeros((8, width)),
        **_norm("visual.ln_pre", 8),
        **_norm("visual.ln_post", 8),
        **_block("visual.transformer.resblocks.0", 8),
    }
    weights["transformer.resblocks.0.attn.in_proj_weight"] = projection
    weights["transformer.resblocks.0.attn.out_proj.weight"] = numpy.eye(wide)
    return config, weights


def _norm(name: str, width: int) -> dict[str, Any]:
    numpy = _library("numpy")
    return {f"{name}.weight": numpy.ones(width), f"{name}.bias": numpy.zeros(width)}


def _block(name: str, width: int) -> dict[str, Any]:
    zeros = _library("numpy").zeros
    return {
        **_norm(f"{name}.ln_1", width),
        f"{name}.attn.in_proj_weight": zeros((3 * width, width)),
        f"{name}.attn.in_proj_bias": zeros(3 * width),
        f"{name}.attn.out_proj.weight": zeros((width, width)),
        f"{name}.attn.out_proj.bias": zeros(width),
        **_norm(f"{name}.ln_2", width),
        f"{name}.mlp.c_fc.weight": zeros((4 * width, width)),
        f"{name}.mlp.c_fc.bias": zeros(4 * width),
        f"{name}.mlp.c_proj.weight": zeros((width, 4 * width)),
        f"{name}.mlp.c_proj.bias": zeros(width),
    }


def _tokenizer(texts: Sequence[str]) -> dict[str, Any]:
    """A `tokenizer.json` in which each text is a token."""
    vocabulary = {text: number for number, text in enumerate(texts)}
    special = {name: len(texts) + number for number, name in enumerate((_UNKNOWN, _START, _END))}
    if "" in vocabulary or vocabulary.keys() & special.keys():
        raise ValueError("a prompt is empty, or a special token")
    added = [
        {"id": special[name], "content": name, "special": True, "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False}
        for name in (_START, _END)
    ]  # fmt: skip
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": None, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary | special, "unk_token": _UNKNOWN},
    }  # fmt: skip


def _safetensors(weights: dict[str, Any]) -> bytes:
    header, data, end = {}, [], 0
    for name, values in weights.items():
        bytes_ = values.astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [end, end + len(bytes_)]}
        data.append(bytes_)
        end += len(bytes_)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(data)


def write(folder: str, texts: Sequence[str], vectors: numpy.ndarray, logit_scale: float) -> None:
    """Writes the model of texts and their vectors ``[texts, width]``, which are made unit vectors."""
    numpy = _library("numpy")
    vectors = numpy.asarray(vectors, numpy.float64)
    lengths = numpy.linalg.norm(vectors, axis=1, keepdims=True)
    if not (numpy.isfinite(lengths).all() and (lengths > 0).all()):
        row = int(numpy.argmin(numpy.isfinite(lengths) & (lengths > 0)))
        raise ValueError(f"the embedding of the text {texts[row]!r} is not finite, or zero")
    config, weights = _weights(vectors / lengths, logit_scale)
    os.makedirs(folder, exist_ok=True)
    for name, content in [
        ("config.json", json.dumps(config).encode()),
        ("tokenizer.json", json.dumps(_tokenizer(texts), ensure_ascii=False).encode()),
        ("model.safetensors", _safetensors(weights)),
    ]:
        with open(os.path.join(folder, name), "wb") as file:
            file.write(content)
