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
    the batches that it would have got. Iterating gives the batches up to the end of the epoch, and
    iterating again those of the next epoch.

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
        #: The epoch, its next step counted over all epochs, and whether its batches were given.
        self._epoch, self._step, self._ended = 0, 0, False
        self._forget()
        opened = self._open()
        #: Pairs per epoch.
        self.pairs = opened.pairs()
        self._data = opened.identity()

    def _forget(self) -> None:
        self._opened: tuple[int, _twinlens.PairSet] | None = None
        self._stream: tuple[tuple[int, int, int], _twinlens.BatchStream] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None, "_stream": None}

    def _open(self) -> _twinlens.PairSet:
        """The pairs, opened by this process."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._forget()
            self._opened = os.getpid(), _twinlens.PairSet.open(self._json())
        return self._opened[1]

    def _json(self) -> str:
        return json.dumps(self._options)

    def __len__(self) -> int:
        """Batches per epoch."""
        return max(1, self.pairs // self._options["batch_size"])

    def state_dict(self) -> dict[str, Any]:
        """The position: the step of the next batch, and what the batches depend on."""
        epoch, step = self._epoch, self._step
        if self._ended:
            epoch, step = epoch + 1, (epoch + 1) * len(self)
        return {"epoch": epoch, "step": step, "batches": self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues with the next batch of a state, in any number of ranks and workers.

        A state of the end of an epoch, of which all batches but not the end was seen, continues with
        that end: iterating gives nothing, and then the next epoch.
        """
        mine, other = self._identity(), state["batches"]
        changed = sorted(name for name in mine.keys() | other.keys() if mine.get(name) != other.get(name))
        if changed:
            raise ValueError(f"the state is of other batches: {', '.join(changed)} differ")
        self._epoch, self._step, self._ended = state["epoch"], state["step"], False

    def set_epoch(self, epoch: int) -> None:
        """Moves to an epoch, counted from 0. In the epoch in which it is it stays at its batch, so
        that a loop over epochs may call this also where it resumes.
        """
        if self._ended or epoch != self._epoch:
            self._epoch, self._step, self._ended = epoch, epoch * len(self), False

    def _identity(self) -> dict[str, Any]:
        """What the batches depend on, but for paths."""
        left_out = ("inputs", "tokenizer", "threads", "cache_bytes")
        given = {name: value for name, value in self._options.items() if name not in left_out}
        return given | {"data": self._data}

    def _begin(self) -> None:
        """Goes to the next epoch after the end of one."""
        if self._ended:
            self.set_epoch(self._epoch + 1)

    def _batches(self, every: int = 1) -> Iterator[tuple[numpy.ndarray, numpy.ndarray]]:
        """Every such batch up to the end of the epoch."""
        asarray = _library("numpy").asarray
        end = (self._epoch + 1) * len(self)
        while self._step < end:
            pixels, ids = next(self._stream_at(self._step, every))
            self._step += every
            self._stream = (os.getpid(), self._step, every), self._stream[1]
            yield asarray(pixels), asarray(ids)
        self._ended = True

    def _stream_at(self, step: int, every: int) -> _twinlens.BatchStream:
        """The stream whose next batch is of a step. One goes on over the ends of epochs."""
        key = os.getpid(), step, every
        if self._stream is None or self._stream[0] != key:
            # Two at once would share a cache.
            self._stream = None
            stream = self._open().batches((step, every), (self._rank, self._world_size))
            self._stream = key, stream
        return self._stream[1]

    def __iter__(self) -> Iterator[tuple[numpy.ndarray, numpy.ndarray]]:
        """Pixels ``[rows, 3, size, size]`` of float32 and ids ``[rows, context]`` of int64."""
        self._begin()
        return self._batches()
