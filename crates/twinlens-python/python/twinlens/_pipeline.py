"""Pipelines, and how they are run."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from . import _toml, _twinlens
from ._html import table as html_table
from ._run import Run
from ._stage import expanded

Event = dict[str, Any]


def source(pipeline: str | os.PathLike[str] | dict[str, Any]) -> dict[str, Any]:
    """A file, or a text: one of several lines, or one that is made of a dict."""
    if isinstance(pipeline, dict):
        return {"file": None, "name": "<dict>", "text": _toml.document(expanded(pipeline))}
    if isinstance(pipeline, str) and "\n" in pipeline:
        return {"file": None, "name": "<text>", "text": pipeline}
    if isinstance(pipeline, (str, os.PathLike)):
        return {"file": os.fspath(pipeline), "name": None, "text": None}
    raise TypeError(f"a pipeline is a path, TOML text or a dict, not {type(pipeline).__name__}")


def options(**given: Any) -> dict[str, Any]:
    """Options with those that are not given."""
    default = {
        "dir": None, "set": {}, "until": None, "max_rows": None, "fresh": False,
        "threads": None, "memory": None, "progress": False, "tensorboard": None, "on": None,
    }  # fmt: skip
    all_of = default | given
    directory, set_ = all_of["dir"], all_of["set"]
    all_of["dir"] = None if directory is None else os.fspath(directory)
    all_of["set"] = _toml.settings(set_ or {})
    return all_of


def run(
    pipeline: str | os.PathLike[str] | dict[str, Any],
    *,
    dir: str | os.PathLike[str] | None = None,
    set: dict[str, Any] | None = None,
    until: str | None = None,
    on: str | None = None,
    max_rows: int | None = None,
    fresh: bool = False,
    threads: int | None = None,
    memory: int | None = None,
    progress: bool = True,
    tensorboard: str | os.PathLike[str] | None = None,
    on_event: Callable[[Event], object] | None = None,
) -> Run:
    """Runs a pipeline, or resumes it, and returns the run.

    ``pipeline`` is the path of a file, TOML text of several lines, or a dict. Relative paths in it
    start at the file, else at the current directory. The other arguments are the options of
    ``twinlens run``; ``set`` is a dict of variables, options (``"clip.lr"``) and top-level keys,
    and ``on`` the scheduler of a cluster, ``"df://host:50050"``, whose executors make the splits.

    ``on_event`` is called in this thread with each event as a dict: ``stage_started``,
    ``split_committed``, ``stage_finished``, ``stage_reused``, ``train_step``, ``evaluated``,
    ``note``.
    Ctrl-C, and an exception of ``on_event``, stop the run after the splits in flight are committed,
    which takes at most 10 seconds; the same call resumes it.

    Raises ``twinlens.Error``.
    """
    shown = progress
    if progress and "ipykernel" in sys.modules:
        # What is drawn on a terminal does not reach a notebook.
        shown, on_event = False, _printing(on_event)
    given = options(
        dir=dir, set=set, until=until, on=on, max_rows=max_rows, fresh=fresh,
        threads=threads, memory=memory, progress=shown, tensorboard=tensorboard,
    )  # fmt: skip
    call = None if on_event is None else lambda event: on_event(json.loads(event))
    directory, _ = _twinlens.run(source(pipeline), given, call)
    return Run(directory, lambda: plan(pipeline, dir=directory, set=set))


def _printing(then: Callable[[Event], object] | None) -> Callable[[Event], object]:
    """Prints a line for each stage that is done."""

    def on_event(event: Event) -> None:
        name = event["event"]
        if name == "stage_finished":
            rejects = f"  {event['rejects']:,} rejects" if event["rejects"] else ""
            print(f"{event['stage']}  {event['rows']:,} rows{rejects}  {event['seconds']:.1f}s")
        elif name == "stage_reused":
            print(f"{event['stage']}  {event['rows']:,} rows  (reused)")
        elif name == "note":
            print(f"{event['stage']}: {event['message']}")
        if then is not None:
            then(event)

    return on_event


def check(pipeline: str | os.PathLike[str] | dict[str, Any], *, set: dict[str, Any] | None = None) -> None:
    """Checks a pipeline, and the columns of the files that it names. Raises ``twinlens.Error``."""
    _twinlens.check(source(pipeline), _toml.settings(set or {}))


class Plan(list):
    """What a run would do with each stage: a list of dicts that a notebook shows as a table."""

    def _rows(self) -> list[dict[str, Any]]:
        def what(stage: dict[str, Any]) -> str:
            if stage["dataset"] != stage["stage"]:
                return f"fused into {stage['dataset']}"
            details = {"reuse": f"{stage.get('rows', 0):,} rows", "resume": f"{stage.get('splits')} splits done"}
            return f"{stage['decision']}: {details.get(stage['decision'], stage.get('why', ''))}"

        return [{"stage": one["stage"], "kind": one["kind"], "decision": what(one)} for one in self]

    def __repr__(self) -> str:
        return "\n".join("{stage}  {kind}  {decision}".format(**row) for row in self._rows())

    def _repr_html_(self) -> str:
        return html_table(["stage", "kind", "decision"], self._rows())


def plan(
    pipeline: str | os.PathLike[str] | dict[str, Any],
    *,
    dir: str | os.PathLike[str] | None = None,
    set: dict[str, Any] | None = None,
    until: str | None = None,
    max_rows: int | None = None,
) -> Plan:
    """What :func:`run` would do with each stage, and why. Changes nothing."""
    given = options(dir=dir, set=set, until=until, max_rows=max_rows)
    return Plan(json.loads(_twinlens.plan(source(pipeline), given)))
