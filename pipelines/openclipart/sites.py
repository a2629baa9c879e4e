"""Static web sites out of packages: an index, category pages, a figure for each image.

The texts are the packages' own, and stay as untidy as they are: boilerplate titles, e-mail addresses and double-escaped
entities in openclipart, captions in other languages in Tux Paint, duplicates by symbolic link, images of a gigapixel's tenth.
"""

import json
import os
import shutil
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from html import escape
from itertools import chain
from pathlib import Path
from urllib.parse import quote

from emojibase import Emoji, key

PER_PAGE = 60


@dataclass(frozen=True)
class Figure:
    src: str  # path from the root of the site
    alt: str | None = None
    title: str | None = None
    caption: str | None = None
    licence: str | None = None

    def html(self) -> str:
        attributes = "".join(
            f' {name}="{escape(value)}"' for name, value in [("alt", self.alt), ("title", self.title)] if value is not None
        )
        caption = f"<figcaption>{escape(self.caption)}</figcaption>" if self.caption else ""
        licence = f'<a rel="license" href="{escape(self.licence)}">licence</a>' if self.licence else ""
        return f'<figure><img src="/{quote(self.src)}"{attributes}>{caption}{licence}</figure>\n'


def page(title: str, body: str) -> str:
    return (
        f'<!DOCTYPE html>\n<html><head><meta charset="utf-8"><title>{escape(title)}</title></head>\n'
        f'<body><p><a href="/">home</a>\n<h1>{escape(title)}</h1>\n{body}</body></html>\n'
    )


def write_site(site: Path, name: str, files: dict[str, Path], categories: dict[str, list[Figure]]) -> dict[str, int]:
    """Writes the pages, and links `files` (name in the site: folder of a package)."""
    shutil.rmtree(site, ignore_errors=True)
    site.mkdir(parents=True)
    for target, source in files.items():
        (site / target).symlink_to(os.path.relpath(source, site), target_is_directory=True)
    pages, links = 1, []
    for category, figures in sorted(categories.items()):
        folder = site / category
        folder.mkdir(parents=True, exist_ok=True)
        links.append(f'<li><a href="/{quote(category)}/">{escape(category)}</a> ({len(figures)})')
        parts = [figures[at : at + PER_PAGE] for at in range(0, len(figures), PER_PAGE)]
        names = ["index.html"] + [f"page-{number}.html" for number in range(2, len(parts) + 1)]
        turn = "".join(f'<a href="{name}">{number}</a> ' for number, name in enumerate(names, start=1))
        for part, file in zip(parts, names):
            (folder / file).write_text(page(f"{category} - {name}", "".join(f.html() for f in part) + turn))
        pages += len(parts)
    (site / "index.html").write_text(page(name, "<ul>\n" + "\n".join(links) + "\n</ul>\n"))
    return {"pages": pages, "images": len({f.src for f in chain(*categories.values())})}


# openclipart
# ---------------------------------------------------------------------------------------------------------

DC = "{http://purl.org/dc/elements/1.1/}"


def described(svg: Path) -> dict[str, str | None]:
    """What the drawing's metadata say: the first non-empty title, description, creator and licence, all keywords."""
    found: dict[str, str | None] = {"title": None, "description": None, "creator": None, "licence": None, "keywords": None}
    try:
        root = ElementTree.parse(svg).getroot()
    except (OSError, ElementTree.ParseError):
        return found
    keywords: dict[str, None] = {}
    for work in root.iter():
        if not work.tag.endswith("}Work"):
            continue
        agents = work.find(f"{DC}creator")
        texts = {
            "title": work.findtext(f"{DC}title"),
            "description": work.findtext(f"{DC}description"),
            "creator": next((node.text for node in agents.iter(f"{DC}title")), None) if agents is not None else None,
        }
        for node in work.iter():
            if node.tag.endswith("}license") and not found["licence"]:
                found["licence"] = next((value for value in node.attrib.values() if value.startswith("http")), None)
            if node.tag.endswith("}li") and node.text and node.text.strip():
                keywords[node.text.strip()] = None
        for field, text in texts.items():
            found[field] = found[field] or (text or "").strip() or None
    found["keywords"] = ", ".join(keywords) or None
    return found


def openclipart(packages: Path, site: Path, _: dict[str, Emoji]) -> dict[str, int]:
    png = packages / "openclipart-png/usr/share/openclipart/png"
    svg = packages / "openclipart-svg/usr/share/openclipart/svg"
    categories: dict[str, list[Figure]] = {}
    for file in sorted(png.rglob("*.png")):
        path = file.relative_to(png)
        about = described(svg / path.with_suffix(".svg"))
        caption = ". ".join(text for text in (about["title"], about["description"], about["keywords"]) if text)
        by = f"Clipart by {about['creator']}" if about["creator"] else None
        figure = Figure(f"png/{path}", about["title"], by, caption or None, about["licence"])
        categories.setdefault(str(path.parent), []).append(figure)
    counts = write_site(site, "Open Clip Art", {"png": png}, categories)
    return counts | {"symlinks": sum(file.is_symlink() for file in png.rglob("*.png"))}


# Emoji
# ---------------------------------------------------------------------------------------------------------------


def emoji_site(package: str, title: str, describe):
    """A site of one emoji font. `describe(emoji, entry)` gives (alt, title, caption); `entry` is the package's record."""

    def build(packages: Path, site: Path, labels: dict[str, Emoji]) -> dict[str, int]:
        folder = packages / package
        images = folder / "img" / package.removeprefix("emoji-") / "64"
        categories: dict[str, list[Figure]] = {}
        for entry in json.loads((folder / "emoji.json").read_text()):
            for rendering in [entry, *entry.get("skin_variations", {}).values()]:
                known = labels.get(key(rendering["unified"]))
                if known and (images / rendering["image"]).exists():
                    figure = Figure(f"img/{rendering['image']}", *describe(known, entry))
                    categories.setdefault(known.group, []).append(figure)
        return write_site(site, title, {"img": images}, categories)

    return build


def tidy(emoji: Emoji, entry: dict) -> tuple[str, str, str]:
    """Good alt texts: label, shortcode, label and group."""
    return emoji.label, f":{entry['short_name']}:", f"{emoji.label} ({emoji.group.replace('-', ' & ')})"


def tagged(emoji: Emoji, entry: dict) -> tuple[str, str | None, str]:
    """The old upper-case names as alt texts, tags as captions, no title."""
    name = (entry["name"] or emoji.label).lower()
    return name, None, ", ".join([emoji.label, *emoji.tags])


# Tux Paint
# -----------------------------------------------------------------------------------------------------------

LANGUAGES = ("fr", "de", "es", "ja")


def tuxpaint(packages: Path, site: Path, _: dict[str, Emoji]) -> dict[str, int]:
    stamps = packages / "tuxpaint-stamps-default/usr/share/tuxpaint/stamps"
    categories: dict[str, list[Figure]] = {}
    for file in sorted(chain(stamps.rglob("*.png"), stamps.rglob("*.svg"))):
        path = file.relative_to(stamps)
        text = file.with_suffix(".txt")
        lines = text.read_text(encoding="utf-8", errors="replace").splitlines() if text.exists() else []
        english = next((line.strip() for line in lines if line.strip()), None)
        # Mirrored and other secondary images have no text of their own: their alt is the file's
        # name, as on the web.
        figure = Figure(f"stamps/{path}", english or file.name, None, english)
        categories.setdefault(str(path.parent), []).append(figure)
        others = dict(line.split(".utf8=", 1) for line in lines if ".utf8=" in line)
        for language in LANGUAGES:
            if caption := others.get(language, "").strip():
                figure = Figure(f"stamps/{path}", caption)
                categories.setdefault(f"{language}/{path.parent}", []).append(figure)
    return write_site(site, "Tux Paint stamps", {"stamps": stamps}, categories)


SITES = {
    "openclipart": openclipart,
    "emoji-google": emoji_site("emoji-google", "Noto Emoji", tidy),
    "emoji-twitter": emoji_site("emoji-twitter", "Twemoji", tagged),
    "tuxpaint": tuxpaint,
}
