"""Models: embeddings and classes of images and texts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from . import _twinlens
from ._table import _library

if TYPE_CHECKING:
    import numpy


def _image(image: Any) -> Any:
    """An image as the module in Rust takes it."""
    if isinstance(image, (str, bytes, os.PathLike)):
        return image
    if isinstance(image, (bytearray, memoryview)):
        return bytes(image)
    mode = getattr(image, "mode", None)
    if mode is not None and mode != "RGB":
        raise ValueError(f"an image of Pillow has the mode {mode}; use `image.convert('RGB')`, or its file")
    numpy = _library("numpy")
    pixels = numpy.asarray(image)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != numpy.uint8:
        raise ValueError(
            f"an array of type {pixels.dtype} and shape {pixels.shape} is not an image: "
            "expected uint8 and (height, width, 3)"
        )
    height, width, _ = pixels.shape
    return height, width, pixels.tobytes()


class Clip:
    """A CLIP model with its tokenizer and preprocessing, on the CPU.

    Images are paths, the bytes of files, arrays of uint8 and shape ``(height, width, 3)``, or RGB
    images of Pillow. Results are read-only arrays of float32. Computation leaves the interpreter's
    lock and uses all cores.
    """

    def __init__(self, model: _twinlens.Model):
        self._model = model
        #: Configuration, preprocessing and hashes.
        self.description: dict[str, Any] = json.loads(model.description())

    @classmethod
    def load(cls, model: str | os.PathLike[str]) -> Clip:
        """Loads a model: the directory of a ``train`` stage (``runs/NAME/STAGE``), of a model of
        transformers or open_clip, or a model of the Hub (``hf://openai/clip-vit-base-patch32``).
        """
        return cls(_twinlens.Model.load(os.fspath(model)))

    @property
    def width(self) -> int:
        """Numbers in an embedding."""
        return self.description["embed"]

    @property
    def logit_scale(self) -> float:
        """Natural logarithm of the factor on similarities."""
        return self.description["logit_scale"]

    def encode_images(self, images: Iterable[Any]) -> numpy.ndarray:
        """Embeddings of unit length: ``[images, width]``."""
        return _library("numpy").asarray(self._model.encode_images([_image(one) for one in images]))

    def encode_texts(self, texts: Sequence[str]) -> numpy.ndarray:
        """Embeddings of unit length: ``[texts, width]``."""
        if isinstance(texts, str):
            raise TypeError("expected a list of texts, not one text")
        return _library("numpy").asarray(self._model.encode_texts(list(texts)))

    def zero_shot(
        self,
        images: Iterable[Any],
        classes: Sequence[str],
        templates: Sequence[str] = ("a photo of a {}.",),
    ) -> numpy.ndarray:
        """The probability of each class for each image: ``[images, classes]``.

        ``templates`` contain ``{}`` for the class, or are names of template sets (``ensemble``,
        ``imagenet-80``).
        """
        if isinstance(templates, str):
            templates = [templates]
        inputs = [_image(one) for one in images]
        return _library("numpy").asarray(self._model.zero_shot(inputs, list(classes), list(templates)))

    def save(self, dir: str | os.PathLike[str], format: Literal["hugging-face", "open-clip"]) -> None:
        """Writes the model with tokenizer and preprocessing into a new directory, which transformers
        (``CLIPModel`` and ``CLIPProcessor``) or open_clip (``local-dir:DIR``) loads as it is.
        """
        self._model.save(os.fspath(dir), format)

    def __repr__(self) -> str:
        about = self.description
        return f"<Clip {about['name']}, {about['image_size']} pixels, {about['embed']} wide>"
