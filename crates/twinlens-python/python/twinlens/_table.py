"""Tables of a run, and the rows of queries."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from . import _html, _twinlens

if TYPE_CHECKING:
    import numpy
    import pandas
    import polars
    import pyarrow

#: Rows that a notebook shows.
SHOWN = 10


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"this needs {name}: pip install {name}", name=name) from error


class Rows:
    """The rows of a query, which is run each time that they are read.

    Any library that speaks the Arrow PyCapsule interface takes them as they are and without a copy,
    batch by batch: ``pyarrow.table(rows)``, ``polars.DataFrame(rows)``, ``duckdb.sql("from rows")``.
    """

    def __init__(self, open: Callable[[], _twinlens.Rows]):
        self._open = open
        # Errors are raised now, and the rows are for the first reader.
        self._opened: _twinlens.Rows | None = open()
        self._columns = self._opened.columns

    def _stream(self) -> _twinlens.Rows:
        opened, self._opened = self._opened, None
        return self._open() if opened is None else opened

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return [name for name, _ in self._columns]

    @property
    def types(self) -> dict[str, str]:
        """Names of the columns, and their types."""
        return dict(self._columns)

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._stream().__arrow_c_stream__(requested_schema)

    def __arrow_c_schema__(self) -> object:
        stream = self._stream()
        schema = stream.__arrow_c_schema__()
        self._opened = stream
        return schema

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The rows as dicts, read batch by batch."""
        stream = self._stream()
        while (rows := stream.next_dicts()) is not None:
            yield from rows

    def to_pylist(self) -> list[dict[str, Any]]:
        """All rows as dicts."""
        return list(self)

    def to_arrow(self) -> pyarrow.Table:
        """All rows as a table of PyArrow."""
        return _library("pyarrow").table(self)

    def to_pandas(self) -> pandas.DataFrame:
        """All rows as a data frame of pandas, which PyArrow makes."""
        _library("pandas")
        return self.to_arrow().to_pandas()

    def to_polars(self) -> polars.DataFrame:
        """All rows as a data frame of Polars."""
        return _library("polars").DataFrame(self)

    def to_numpy(self, column: str) -> numpy.ndarray:
        """A column of numbers, or of vectors such as embeddings, as one read-only array."""
        return _library("numpy").asarray(self._stream().array(column))

    def _first(self) -> list[dict[str, Any]]:
        rows = []
        for row in self:
            rows.append(row)
            if len(rows) > SHOWN:
                break
        return rows

    def _repr_html_(self) -> str:
        rows = self._first()
        note = "more rows follow" if len(rows) > SHOWN else ""
        return _html.table(self.columns, rows[:SHOWN], note)

    def __repr__(self) -> str:
        kinds = ", ".join(f"{name}: {kind}" for name, kind in self._columns)
        return f"<{type(self).__name__} {kinds}>"


class Table(Rows):
    """A table of a run, of which only what is used is read."""

    def __init__(
        self,
        dir: str,
        name: str,
        columns: list[str] | None = None,
        where: str | None = None,
        limit: int | None = None,
    ):
        self._dir, self.name = dir, name
        self._read = {"columns": columns, "where": where, "limit": limit}
        super().__init__(lambda: _twinlens.scan(dir, name, columns, where, limit))

    def scan(
        self, *, columns: list[str] | None = None, where: str | None = None, limit: int | None = None
    ) -> Table:
        """A part of the table: some columns, the rows for which a SQL predicate holds, and at most
        ``limit`` of these.

        Parquet's statistics decide what is read: a predicate on a column without images reads no
        image of other rows, and no column is read that is not asked for.
        """
        given = {"columns": columns, "where": where, "limit": limit}
        twice = [name for name, value in given.items() if value is not None and self._read[name] is not None]
        if twice:
            raise ValueError(f"`{twice[0]}` is given already")
        if limit is None and self._read["limit"] is not None and where is not None:
            raise ValueError("`where` after `limit` would read other rows; give both at once")
        both = {name: value if value is not None else self._read[name] for name, value in given.items()}
        return Table(self._dir, self.name, **both)

    def dataset_dir(self) -> str:
        """The directory of the dataset, of which this is the whole table."""
        if any(value is not None for value in self._read.values()) or "." in self.name:
            raise ValueError("expected the whole table of a dataset; make a stage of its part")
        return f"{self._dir}/{self.name}"

    def closed(self) -> Table:
        """The same table without an open stream, for another process."""
        closed = Table.__new__(Table)
        closed.__dict__ = self.__dict__ | {"_opened": None, "_open": None}
        return closed

    def opened(self) -> Table:
        """The same table, opened by this process."""
        return Table(self._dir, self.name, **self._read)

    def __len__(self) -> int:
        """The number of rows, by a query over the statistics."""
        limit, where = self._read["limit"], self._read["where"]
        known = dict(_twinlens.tables(self._dir)).get(self.name) if where is None else None
        if known is None:
            read = _twinlens.scan(self._dir, self.name, [], where, None)
            known = sum(len(rows) for rows in iter(read.next_dicts, None))
        return known if limit is None else min(known, limit)

    def _first(self) -> list[dict[str, Any]]:
        limit = SHOWN + 1 if self._read["limit"] is None else min(SHOWN + 1, self._read["limit"])
        return Table(self._dir, self.name, **(self._read | {"limit": limit})).to_pylist()
