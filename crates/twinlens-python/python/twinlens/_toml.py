"""Python values as TOML."""

from __future__ import annotations

import json
import math
import os
import re
from typing import Any

from .errors import Error

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def document(tables: dict) -> str:
    """A pipeline given as a dict. Each stage has a table of its own, so that errors show its lines."""
    lines: list[str] = []
    _table(lines, (), tables)
    return "\n".join(lines).strip() + "\n"


def _table(lines: list[str], path: tuple[str, ...], table: dict) -> None:
    nested = []
    for key, item in table.items():
        if not isinstance(key, str):
            raise Error(f"{_name(path)}: the key {key!r} is not a string")
        # Tables below those of stages are part of an option.
        if isinstance(item, dict) and len(path) < 2 and (not path or path[0] == "stages"):
            nested.append((key, item))
        else:
            lines.append(f"{_key(key)} = {value(item, (*path, key))}")
    for key, item in nested:
        inner = (*path, key)
        if inner != ("stages",):
            lines.append(f"\n[{'.'.join(map(_key, inner))}]")
        _table(lines, inner, item)


def value(item: Any, path: tuple[str, ...] = ()) -> str:
    """A value as it stands in a pipeline file."""
    if isinstance(item, bool):
        return "true" if item else "false"
    if isinstance(item, str):
        # A string of JSON is one of TOML, but for this control character.
        return json.dumps(item, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(item, os.PathLike):
        return value(os.fspath(item), path)
    if isinstance(item, int):
        return str(int(item))
    if isinstance(item, float):
        item = float(item)
        return repr(item) if math.isfinite(item) else str(item)
    if isinstance(item, dict):
        pairs = (f"{_key(key)} = {value(inner, (*path, key))}" for key, inner in item.items())
        return "{ " + ", ".join(pairs) + " }"
    if isinstance(item, (list, tuple)):
        return "[" + ", ".join(value(inner, path) for inner in item) + "]"
    if hasattr(item, "item") and getattr(item, "shape", None) == ():  # a scalar of NumPy
        return value(item.item(), path)
    what = "None: leave the option out" if item is None else f"of type {type(item).__name__}"
    raise Error(f"{_name(path)} is {what}; a pipeline holds text, numbers, booleans, lists and dicts")


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else json.dumps(key, ensure_ascii=False)


def _name(path: tuple[str, ...]) -> str:
    return "`" + ".".join(path) + "`" if path else "the pipeline"


def settings(values: dict[str, Any]) -> list[str]:
    """The values of `set`, as the command's `--set` takes them."""
    # A variable is filled into strings as it stands; an option of a stage is a value.
    plain = lambda key, item: isinstance(item, str) and "." not in key  # noqa: E731
    return [f"{key}={item if plain(key, item) else value(item, (key,))}" for key, item in values.items()]
