"""Runs, and what can be asked of them."""

from __future__ import annotations

import html
import json
import os
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import _html, _twinlens
from ._table import Rows, Table

if TYPE_CHECKING:
    from ._pipeline import Plan


class Status(dict):
    """The datasets of a run: a dict that a notebook shows as a table."""

    _COLUMNS = ["dataset", "kind", "complete", "rows_in", "kept", "rejected", "balance", "bytes"]

    def __repr__(self) -> str:
        lines = [f"pipeline {self['pipeline']} in {self['dir']}"]
        for one in self["datasets"]:
            state = "complete" if one["complete"] else f"{one['splits']} splits so far"
            lines.append(f"  {one['dataset']}  {one['kept']:,} rows  {one['rejected']:,} rejects  {state}")
        if self["running"]:
            lines += [f"  {one['stage']}: {one['line']}" for one in self["running"]["running"]]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        running = self["running"]["running"] if self["running"] else []
        note = "; ".join(f"{one['stage']}: {one['line']}" for one in running)
        return _html.table(self._COLUMNS, self["datasets"], note)


class Report:
    """The report of a run: one HTML page, which a notebook shows."""

    def __init__(self, page: str):
        self.html = page

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the page."""
        with open(path, "w", encoding="utf-8") as file:
            file.write(self.html)

    def _repr_html_(self) -> str:
        page = html.escape(self.html, quote=True)
        return f'<iframe srcdoc="{page}" style="width:100%;height:700px;border:0"></iframe>'

    def __repr__(self) -> str:
        return f"<Report of {len(self.html):,} characters>"


class Sample:
    """Some rows with images: a grid in a notebook, and a list of dicts elsewhere."""

    def __init__(self, rows: list[dict[str, Any]], image: str, caption: str | None):
        self.rows, self._image, self._caption = rows, image, caption

    def __iter__(self):
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def _repr_html_(self) -> str:
        def one(row: dict[str, Any]) -> tuple[bytes | None, str]:
            caption = row.get(self._caption) if self._caption else None
            return _html.image_bytes(row[self._image]), "" if caption is None else str(caption)

        return _html.grid(map(one, self.rows))

    def __repr__(self) -> str:
        return f"<Sample of {len(self.rows)} rows>"


class Run:
    """A run directory. What it shows is what was committed when it is asked."""

    def __init__(self, dir: str, plan: Callable[[], Plan] | None = None):
        self.dir = dir
        self._plan = plan

    def status(self) -> Status:
        """The datasets with their rows and rejects, and what a run in progress does."""
        return Status(json.loads(_twinlens.status(self.dir)))

    def watch(self, every: float = 1.0) -> None:
        """Shows what a run in progress does, in a terminal or a notebook, every so many seconds, until
        it ends or Ctrl-C. The run is in another process or thread.
        """
        shown = _html.Display()
        while True:
            status = self.status()
            shown.show(status)
            running = status["running"]
            if not running:
                return
            if time.time() - running["updated"] > max(10.0, 2 * every):
                print("the run does not report any more: it was killed")
                return
            time.sleep(every)

    def plan(self) -> Plan:
        """What running the pipeline again would do. For a run that :func:`twinlens.run` returned."""
        if self._plan is None:
            raise ValueError("the pipeline of an opened run is not known: use twinlens.plan(pipeline)")
        return self._plan()

    def report(self, beside: dict[str, str | os.PathLike[str]] | None = None) -> Report:
        """The report as an HTML page; ``beside`` gives another run by name and directory."""
        return Report(_twinlens.report(self.dir, _named(beside)))

    def sql(self, query: str, beside: dict[str, str | os.PathLike[str]] | None = None) -> Rows:
        """The rows of a SQL query over the datasets and views of the run.

        The tables of other runs, given by name and directory in ``beside``, are ``NAME.table``.
        """
        others = _named(beside)
        return Rows(lambda: _twinlens.sql(self.dir, query, others))

    def tables(self) -> dict[str, int | None]:
        """Names and rows of all tables; views have no count."""
        return dict(_twinlens.tables(self.dir))

    def __getitem__(self, table: str) -> Table:
        """A table: ``run["images"]``, ``run["images.rejects"]``, ``run["leaderboard"]``."""
        return Table(self.dir, table)

    def _ipython_key_completions_(self) -> list[str]:
        return list(self.tables())

    def sample(
        self,
        table: str,
        n: int = 12,
        *,
        seed: int = 0,
        where: str | None = None,
        image: str = "image",
        caption: str | None = "caption",
    ) -> Sample:
        """``n`` random rows of a table with images, the same for the same seed."""
        whole = self[table]
        columns = [name for name in whole.columns if name in (image, caption, "uid")]
        if image not in columns:
            raise ValueError(f"`{table}` has no column `{image}`; its columns are {', '.join(whole.columns)}")
        if "uid" not in columns:
            return Sample(whole.scan(columns=columns, where=where, limit=n).to_pylist(), image, caption)
        uids = sorted(row["uid"] for row in whole.scan(columns=["uid"], where=where))
        chosen = random.Random(seed).sample(uids, min(n, len(uids)))
        if not chosen:
            return Sample([], image, caption)
        literals = ", ".join("'" + str(uid).replace("'", "''") + "'" for uid in chosen)
        rows = whole.scan(columns=columns, where=f"uid in ({literals})").to_pylist()
        order = {uid: place for place, uid in enumerate(chosen)}
        return Sample(sorted(rows, key=lambda row: order[row["uid"]]), image, caption)

    def _repr_html_(self) -> str:
        return f"<p>run in {html.escape(self.dir)}</p>" + self.status()._repr_html_()

    def __repr__(self) -> str:
        return f"<Run {self.dir}>"


def _named(runs: dict[str, str | os.PathLike[str]] | None) -> list[tuple[str, str]]:
    return [(name, os.fspath(dir)) for name, dir in (runs or {}).items()]


def open_run(dir: str | os.PathLike[str]) -> Run:
    """Opens a run directory, local or in an object store (``s3://bucket/run``)."""
    run = Run(os.fspath(dir))
    run.status()
    return run
