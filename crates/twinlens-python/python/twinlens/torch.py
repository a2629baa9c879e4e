"""Batches and images for PyTorch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

try:
    import torch
    from torch.utils.data import DataLoader, IterableDataset, get_worker_info
except ImportError as error:
    raise ImportError("twinlens.torch needs PyTorch: pip install torch", name="torch") from error

import numpy

from . import _twinlens
from ._html import image_bytes
from ._pairs import Pairs as _Pairs

__all__ = ["Images", "Loader", "Pairs"]


class Pairs(_Pairs, IterableDataset):
    """:class:`twinlens.Pairs` as an ``IterableDataset`` of tensors, which share their memory.

    It decodes in threads of its own and makes whole batches: iterate over it, or over
    :meth:`loader` for workers or pinned memory. Workers share the steps, so that the batches and
    their order are the same for any number of them. Each opens the data for itself; none is usually
    fastest.

    ``DataLoader(pairs, batch_size=None)`` and torchdata's ``StatefulDataLoader`` take it too. Their
    workers have copies of it: call :meth:`set_epoch` before each epoch.
    """

    #: This worker and the number of them, where the position is its own.
    _worker: tuple[int, int] | None = None

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        worker = get_worker_info()
        if self._ended:
            self._worker = None
        self._begin()
        if worker is not None and self._worker is None:
            self._step += worker.id
            self._worker = worker.id, worker.num_workers
        every = 1 if worker is None else worker.num_workers
        return ((torch.from_numpy(pixels), torch.from_numpy(ids)) for pixels, ids in self._batches(every))

    def state_dict(self) -> dict[str, Any]:
        if self._worker is None:
            return super().state_dict() | {"worker": None}
        # The end of the epoch is known when all workers have come to it.
        position = {"epoch": self._epoch, "step": self._step, "worker": list(self._worker)}
        return position | {"batches": self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        info, worker = get_worker_info(), state.get("worker")
        if worker is not None and (info is None or worker != [info.id, info.num_workers]):
            raise ValueError(f"the state is of worker {worker[0]} of {worker[1]}, which this is not")
        super().load_state_dict(state)
        self._worker = None if worker is None else tuple(worker)

    def loader(self, num_workers: int = 0, pin_memory: bool | None = None, **options: Any) -> Loader:
        """The batches by a ``DataLoader``; ``pin_memory`` is on where CUDA is there."""
        return Loader(self, num_workers, torch.cuda.is_available() if pin_memory is None else pin_memory, options)


class Images(IterableDataset):
    """Batches of images as they are prepared for evaluation: pixels ``[rows, 3, size, size]``, and a
    dict of the other columns as lists.

    ``table`` is a table of a run (``run["held_out"]``, or a part of it by ``scan``). Batches are in
    the order of the rows, also with workers, which share them. An image that cannot be decoded is an
    error.
    """

    def __init__(
        self,
        table: Any,
        size: int = 224,
        batch_size: int = 64,
        *,
        image: str = "image",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ):
        if size < 1 or batch_size < 1:
            raise ValueError("size and batch_size must be at least 1")
        if image not in table.columns:
            raise ValueError(f"there is no column `{image}`; the columns are {', '.join(table.columns)}")
        # A table that is open does not work in a process that is forked.
        self._table, self._rows = table.closed(), len(table)
        self._size, self._batch_size, self._image = size, batch_size, image
        self._normalization = [None if values is None else list(values) for values in (mean, std)]

    def __len__(self) -> int:
        """The number of batches."""
        return -(-self._rows // self._batch_size)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, dict[str, list[Any]]]]:
        worker = get_worker_info()
        first, every = (0, 1) if worker is None else (worker.id, worker.num_workers)
        rows = iter(self._table.opened())
        for number in range(len(self)):
            batch = list(itertools.islice(rows, self._batch_size))
            if number % every == first:
                yield self._prepared(batch)

    def _prepared(self, batch: list[dict[str, Any]]) -> tuple[torch.Tensor, dict[str, list[Any]]]:
        images = [image_bytes(row.pop(self._image)) or b"" for row in batch]
        pixels = _twinlens.pixels(images, self._size, *self._normalization)
        columns = {name: [row[name] for row in batch] for name in batch[0]}
        return torch.from_numpy(numpy.asarray(pixels)), columns


class Loader:
    """Iterates over the batches of :class:`Pairs` up to the end of the epoch, with workers or
    without. Its state counts the batches that were given, not those that workers have made.
    """

    def __init__(self, pairs: Pairs, num_workers: int, pin_memory: bool, options: dict[str, Any]):
        self._pairs, self._num_workers = pairs, num_workers
        self._options = {"batch_size": None, "num_workers": num_workers, "pin_memory": pin_memory} | options

    def __len__(self) -> int:
        return len(self._pairs)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        pairs = self._pairs
        if not self._num_workers:
            yield from DataLoader(pairs, **self._options)
            return
        pairs._begin()
        for batch in DataLoader(pairs, **self._options):
            pairs._step += 1
            yield batch
        pairs._ended = True

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch that was given."""
        return self._pairs.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues with the batch after that of a state, with any number of workers."""
        self._pairs.load_state_dict(state)

    def set_epoch(self, epoch: int) -> None:
        """Moves to an epoch, as :meth:`Pairs.set_epoch`."""
        self._pairs.set_epoch(epoch)
