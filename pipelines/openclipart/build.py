"""Packages to web sites and evaluation sets; called by `prepare`. Usage: build.py DIR"""

import json
import sys
from pathlib import Path

import emojibase
import sets
import sites


def main(root: Path) -> None:
    packages = root / "packages"
    labels = emojibase.load(packages / "emojibase")
    counts = {"sites": {}, "sets": {}}
    for name, build in sites.SITES.items():
        counts["sites"][name] = build(packages, root / "sites" / name, labels)
        print(f"site {name}: {counts['sites'][name]}", file=sys.stderr)
    for name, examples in sets.all_sets(packages, labels):
        counts["sets"][name] = sets.write(root / "sets", name, examples)
        print(f"set {name}: {counts['sets'][name]}", file=sys.stderr)
    (root / "counts.json").write_text(json.dumps(counts, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
