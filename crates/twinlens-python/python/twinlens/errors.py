"""The exceptions of twinlens."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Error", "InternalError", "Place", "RejectsError"]


class Place(NamedTuple):
    """A fault at a place of a pipeline."""

    file: str
    #: From 1.
    line: int
    #: In characters, from 1.
    column: int
    message: str
    hint: str | None


class Error(Exception):
    """An error of the user or of the environment, such as a full disk.

    ``str`` shows the message, for a pipeline with its source underlined, and the hint.
    ``file``, ``line`` and ``column`` are those of the first fault of a pipeline, else ``None``;
    ``places`` has them all.
    """

    def __init__(self, message: str, hint: str | None = None, places: list[tuple] = ()):
        super().__init__(message)
        self.message = message
        self.places = [Place(*place) for place in places]
        first = self.places[0] if self.places else None
        self.hint = hint if hint is not None else (first.hint if first else None)
        self._shown_hint = hint
        self.file = first.file if first else None
        self.line = first.line if first else None
        self.column = first.column if first else None

    def __str__(self) -> str:
        return self.message if self._shown_hint is None else f"{self.message}\nhint: {self._shown_hint}"

    def __reduce__(self):
        return type(self), (self.message, self._shown_hint, [tuple(place) for place in self.places])


class RejectsError(Error):
    """The run is done, but more rows were rejected than the pipeline allows."""


class InternalError(Error):
    """A bug in twinlens: please report it, with the pipeline."""
