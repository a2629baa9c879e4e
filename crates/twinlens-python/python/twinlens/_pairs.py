"""Batches of image-text pairs for a training in Python."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from . import _twinlens
from ._table import Table, _library

if TYPE_CHECKING:
    import numpy


def _inputs(data: Any) -> list[str]:
    """Names of what is read."""
    if isinstance(data, (list, tuple)):
        return [name for one in data for name in _inputs(one)]
    if isinstance(data, Table):
        return [data.dataset_dir()]
    return [os.fspath(data)]


class Pairs:
    """Batches of pixels and token ids, made in threads outside of the interpreter's lock.

    ``data`` is a dataset of a run (``"runs/q/train_pairs"``, ``run["train_pairs"]``), Parquet or tar
    files, a pattern of these, ``hf://datasets/org/name``, or a list. ``tokenizer`` is a model's
    directory, a ``tokenizer.json``, or a model of the Hub.

    The batch of a step depends on the data, the seed and the options alone: with ``world_size``
    ranks each of them gets its part of the same ``batch_size`` pairs, and a resumed training gets
    the batches that it would have got. Iterating gives the batches up to the end of the epoch, then
    those of the next epoch.

    ``crop`` is the smallest part of the area in a random square crop, or ``None`` for the central
    square. ``augment`` is a dict of strengths as in a ``train`` stage. An image that cannot be
    decoded is replaced by another of the same window.
    """

    def __init__(
        self,
        data: Any,
        tokenizer: str | os.PathLike[str],
        size: int = 224,
        batch_size: int = 256,
        seed: int = 0,
        *,
        context: int = 77,
        crop: float | None = 0.9,
        augment: dict[str, float] | None = None,
        rank: int = 0,
        world_size: int = 1,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        caption: str = "caption",
        captions: Literal["first", "random"] | None = None,
        image: str = "image",
        shuffle_bytes: int = 256 << 20,
        cache_bytes: int = 0,
        threads: int | None = None,
    ):
        if batch_size < 1 or world_size < 1 or batch_size % world_size:
            raise ValueError(f"batch_size {batch_size} is not a multiple of world_size {world_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not below world_size {world_size}")
        if crop is not None and not 0 < crop <= 1:
            raise ValueError(f"crop is {crop}, not a part of the area between 0 and 1")
        self._options = {
            "inputs": _inputs(data), "tokenizer": os.fspath(tokenizer), "size": size, "context": context,
            "batch_size": batch_size, "seed": seed, "crop": crop, "augment": augment,
            "mean": None if mean is None else list(mean), "std": None if std is None else list(std),
            "caption": caption, "image": image, "captions": captions,
            "shuffle_bytes": shuffle_bytes, "cache_bytes": cache_bytes, "threads": threads,
        }  # fmt: skip
        self._rank, self._world_size = rank, world_size
        self._step = 0
        self._opened: tuple[int, _twinlens.PairSet] | None = None
        self._open()

    def _open(self) -> _twinlens.PairSet:
        """The pairs, opened by this process."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), _twinlens.PairSet.open(json.dumps(self._options))
        return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    @property
    def pairs(self) -> int:
        """Pairs per epoch."""
        return self._open().pairs()

    def __len__(self) -> int:
        """Batches per epoch."""
        return max(1, self.pairs // self._options["batch_size"])

    def state_dict(self) -> dict[str, Any]:
        """The position: the step of the next batch, and what the batches depend on."""
        return {"step": self._step, "batches": self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues with the next batch of a state, in any number of ranks and workers."""
        if state["batches"] != self._identity():
            changed = [name for name, value in self._identity().items() if state["batches"].get(name) != value]
            raise ValueError(f"the state is of other batches: {', '.join(changed)} differ")
        self._step = state["step"]

    def set_epoch(self, epoch: int) -> None:
        """Continues with the first batch of an epoch, counted from 0."""
        self._step = epoch * len(self)

    def _identity(self) -> dict[str, Any]:
        """What the batches depend on, but for paths."""
        left_out = ("inputs", "tokenizer", "threads", "cache_bytes")
        given = {name: value for name, value in self._options.items() if name not in left_out}
        return given | {"pairs": self.pairs}

    def _batches(self, first: int, end: int, every: int = 1) -> Iterator[tuple[Any, Any]]:
        return self._open().batches((first, end, every), (self._rank, self._world_size))

    def _end(self) -> int:
        """The first step of the next epoch."""
        return (self._step // len(self) + 1) * len(self)

    def __iter__(self) -> Iterator[tuple[numpy.ndarray, numpy.ndarray]]:
        """Pixels ``[rows, 3, size, size]`` of float32 and ids ``[rows, context]`` of int64."""
        asarray = _library("numpy").asarray
        for pixels, ids in self._batches(self._step, self._end()):
            self._step += 1
            yield asarray(pixels), asarray(ids)
