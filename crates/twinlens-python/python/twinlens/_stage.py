"""Functions of Python as stages of kind `command`.

The module is also the program of such a stage: `python -m twinlens._stage FILE NAME`.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

from ._table import _library
from .errors import Error


class Stage:
    """A function that a pipeline may name as the kind of a stage. Calling it calls the function."""

    def __init__(self, function: Callable[[Any], Any], options: dict[str, Any], arrow: bool):
        self.function = function
        self.columns: dict[str, str] = options["columns"]
        self._options, self._arrow = options, arrow
        self.__doc__, self.__name__ = function.__doc__, function.__name__

    def __call__(self, batch: Any) -> Any:
        return self.function(batch)

    def options(self, **given: Any) -> dict[str, Any]:
        """The options of the stage in a pipeline, with others such as `input` and `workers`."""
        file = inspect.getsourcefile(self.function)
        if file is None or not os.path.isfile(file):
            raise Error(f"`{self.__name__}` is in no file, in which another process could find it")
        program = [sys.executable, "-m", "twinlens._stage", os.path.abspath(file), self.__name__]
        return {"kind": "command", "command": program} | self._options | given


def stage(
    adds: dict[str, str], *, send: list[str] | None = None, arrow: bool = False
) -> Callable[[Callable[[Any], Any]], Stage]:
    """Makes a function a stage: it gets a batch of rows and gives the columns that it adds or
    replaces.

        @twinlens.stage(adds={"words": "int32"}, send=["caption"])
        def words(batch):
            return {"words": [len(caption.split()) for caption in batch["caption"]]}

        twinlens.run({"name": "mine", "stages": {
            "images": {"kind": "folder", "folders": ["photos"]},
            "counted": {"kind": words, "input": "images"},
        }})

    ``adds`` has the types of a ``command`` stage. ``send`` names the columns that are sent, without
    it all but images. The batch is a dict of lists, in which images are bytes; with ``arrow`` it is
    a ``pyarrow.RecordBatch``, and the function may give arrays. Rows with a text in the list
    ``reject_code`` are rejected, with ``reject_detail``. What the function prints goes to the log.

    The function must be in a file, which is imported by other processes: what runs a pipeline there
    belongs below ``if __name__ == "__main__":``. A change of the file makes the stage stale.
    PyArrow must be installed.
    """
    options: dict[str, Any] = {"columns": dict(adds)}
    if send is not None:
        options["send"] = list(send)
    return lambda function: Stage(function, options, arrow)


def expanded(pipeline: dict[str, Any]) -> dict[str, Any]:
    """A pipeline with the options of its functions."""
    stages = pipeline.get("stages")
    if not isinstance(stages, dict):
        return pipeline

    def one(options: Any) -> Any:
        if isinstance(options, dict) and isinstance(options.get("kind"), Stage):
            rest = {name: value for name, value in options.items() if name != "kind"}
            return options["kind"].options(**rest)
        return options

    return pipeline | {"stages": {name: one(options) for name, options in stages.items()}}


_RESERVED = {"reject_code": "string", "reject_detail": "string"}


def _type(name: str) -> Any:
    """A type of PyArrow by its name in a pipeline."""
    arrow = _library("pyarrow")
    inner = re.fullmatch(r"list<(.*)>", name.strip())
    if inner:
        return arrow.list_(_type(inner[1]))
    if name == "image":
        return arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    return {"date": arrow.date32(), "timestamp": arrow.timestamp("us", "UTC"), "bool": arrow.bool_()}.get(
        name
    ) or arrow.type_for_alias(name)


def _array(values: Any, name: str) -> Any:
    arrow = _library("pyarrow")
    if isinstance(values, arrow.Array):
        return values.cast(_type(name))
    if name == "image":
        values = [{"bytes": one, "path": None} if isinstance(one, bytes) else one for one in values]
    return arrow.array(list(values), _type(name))


def _lists(batch: Any) -> dict[str, list[Any]]:
    """A batch as lists; the value of an image is its bytes."""

    def plain(value: Any) -> Any:
        return value["bytes"] if isinstance(value, dict) and set(value) == {"bytes", "path"} else value

    return {name: [plain(value) for value in batch[name].to_pylist()] for name in batch.schema.names}


def answer(function: Stage, batch: Any) -> Any:
    """The record batch that answers one."""
    arrow = _library("pyarrow")
    given = function.function(batch if function._arrow else _lists(batch))
    if isinstance(given, arrow.RecordBatch):
        given = dict(zip(given.schema.names, given.columns))
    types = function.columns | _RESERVED
    unknown = [name for name in given if name not in types]
    if unknown:
        raise ValueError(f"the function gives `{unknown[0]}`, which is not among `adds`: {', '.join(types)}")
    columns = {}
    for name, kind in types.items():
        if name not in given and name not in _RESERVED:
            raise ValueError(f"the function does not give `{name}`")
        columns[name] = _array(given.get(name, [None] * batch.num_rows), kind)
        if len(columns[name]) != batch.num_rows:
            raise ValueError(f"`{name}` has {len(columns[name])} values for {batch.num_rows} rows")
    return arrow.RecordBatch.from_pydict(columns)


def _load(file: str, name: str) -> Stage:
    # Modules beside the file are found as they are when it is run.
    sys.path.insert(0, os.path.dirname(file))
    spec = importlib.util.spec_from_file_location("_twinlens_stage_of", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return getattr(module, name)


def serve(file: str, name: str) -> None:
    """Answers the batches on stdin."""
    arrow = _library("pyarrow")
    stdout = os.fdopen(os.dup(1), "wb")
    # What the function prints goes to the log, not into the stream.
    os.dup2(2, 1)
    function = _load(file, name)

    def answers() -> Iterator[Any]:
        for batch in arrow.ipc.open_stream(sys.stdin.buffer):
            yield answer(function, batch)

    writer = None
    for batch in answers():
        writer = writer or arrow.ipc.new_stream(stdout, batch.schema)
        writer.write_batch(batch)
        stdout.flush()
    if writer:
        writer.close()
    stdout.close()


if __name__ == "__main__":
    # The decorator's classes are those of the imported module, not of `__main__`.
    from twinlens._stage import serve as _serve

    _serve(*sys.argv[1:])
