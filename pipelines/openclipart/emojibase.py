"""Emojibase: the English label, tags and group of every emoji, by its code points."""

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Emoji:
    label: str
    tags: tuple[str, ...]
    group: str
    tone: bool  # a skin tone of another emoji


def key(code: str) -> str:
    """Code points in lower case without padding or variation selectors: `00A9-FE0F` and `a9` are one emoji."""
    points = (f"{int(point, 16):x}" for point in code.split("-"))
    return "-".join(point for point in points if point != "fe0f")


def load(package: Path) -> dict[str, Emoji]:
    groups = json.loads((package / "meta/groups.json").read_text())["groups"]
    labels = {}
    for entry in json.loads((package / "en/data.json").read_text()):
        if entry.get("group") is None or groups[str(entry["group"])] == "component":
            continue
        group, tags = groups[str(entry["group"])], tuple(entry.get("tags", ()))
        labels[key(entry["hexcode"])] = Emoji(entry["label"], tags, group, tone=False)
        for skin in entry.get("skins", ()):
            labels[key(skin["hexcode"])] = Emoji(skin["label"], tags, group, tone=True)
    return labels
