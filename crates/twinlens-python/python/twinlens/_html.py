"""What notebooks and terminals show."""

from __future__ import annotations

import base64
import html
import sys
from collections.abc import Iterable
from typing import Any

from . import _twinlens

#: The longest text in a cell, in characters.
CELL = 200


def image_bytes(value: Any) -> bytes | None:
    """The encoded image in a value of an image column."""
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        value = value["bytes"]
    return value if isinstance(value, bytes) else None


def picture(encoded: bytes) -> str | None:
    """A small picture, if the bytes are an image that can be decoded."""
    small = _twinlens.thumbnail(encoded)
    if small is None:
        return None
    return f'<img src="data:image/jpeg;base64,{base64.b64encode(small).decode()}" alt="">'


def cell(value: Any) -> str:
    """A value in a cell of a table."""
    encoded = image_bytes(value)
    if encoded is not None:
        return picture(encoded) or f"{len(encoded):,} bytes"
    text = "" if value is None else f"{value:,.4g}" if isinstance(value, float) else str(value)
    return html.escape(text if len(text) <= CELL else text[:CELL] + "…")


def table(columns: list[str], rows: Iterable[dict[str, Any]], note: str = "") -> str:
    """Rows as a table."""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{cell(row[column])}</td>" for column in columns) + "</tr>" for row in rows
    )
    note = f"<p>{html.escape(note)}</p>" if note else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{note}"


def grid(cells: Iterable[tuple[bytes | None, str]]) -> str:
    """Pictures with captions."""
    style = "display:inline-block;width:150px;margin:4px;vertical-align:top;font-size:12px"
    figures = []
    for encoded, caption in cells:
        shown = (picture(encoded) if encoded is not None else None) or "(no image)"
        figures.append(
            f'<figure style="{style}">{shown}<figcaption>{html.escape(caption)}</figcaption></figure>'
        )
    return f"<div>{''.join(figures)}</div>"


class Display:
    """A value that changes where it is shown: in the output of a cell, or in lines of a terminal.
    Elsewhere a text is printed when it has changed.
    """

    def __init__(self) -> None:
        self._handle: Any = None
        self._shown: str | None = None

    def show(self, value: Any) -> None:
        if "ipykernel" in sys.modules:
            from IPython.display import display

            if self._handle is None:
                self._handle = display(value, display_id=True)
            else:
                self._handle.update(value)
            return
        text = repr(value)
        if text == self._shown:
            return
        # Up to the first line, and nothing below.
        up = f"\x1b[{self._shown.count(chr(10)) + 1}F\x1b[J" if self._shown and sys.stdout.isatty() else ""
        print(up + text, flush=True)
        self._shown = text
