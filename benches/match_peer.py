#!/usr/bin/env python3
"""Compares matching with pyahocorasick on the same captions, and checks that the hits are equal.

    benches/match_peer.py [CAPTIONS]

CAPTIONS is a text file with one caption per line. The default is the definitions and example
sentences of WordNet (Debian package wordnet-base, downloaded by apt-get). pyahocorasick and pyarrow
are installed in a virtual environment under target/bench. Both programs search on one core.
pyahocorasick gets queries and captions in token form, so that it only searches. The table is written
to target/bench/match.arrow.
"""

import os
import pathlib
import re
import subprocess
import sys
import time

import environment

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "target" / "bench" / "match"
PACKAGES = ["pyahocorasick==2.3.1", "pyarrow"]


def wordnet_captions():
    """The glosses of WordNet, split at semicolons, without quotation marks."""
    path = OUT / "wordnet.txt"
    if not path.exists():
        fetch = ["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", "wordnet-base"]
        subprocess.run(fetch, cwd=OUT, check=True)
        package = next(OUT.glob("wordnet-base_*.deb"))
        subprocess.run(["dpkg-deb", "-x", package, OUT / "wordnet"], check=True)
        lines = []
        for part in ["noun", "verb", "adj", "adv"]:
            with open(OUT / "wordnet/usr/share/wordnet" / f"data.{part}", encoding="utf-8") as data:
                for line in data:
                    if not line.startswith("  "):
                        lines += re.split(r";\s*", line.split("|", 1)[1].replace('"', ""))
        path.write_text("\n".join(line.strip() for line in lines if line.strip()) + "\n", encoding="utf-8")
    return path


def main():
    import ahocorasick
    import pyarrow
    import pyarrow.feather

    captions = pathlib.Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else wordnet_captions()
    variables = {**os.environ, "TWINLENS_CAPTIONS": str(captions), "TWINLENS_MATCH_EXPORT": str(OUT)}
    bench = [os.environ.get("CARGO", "cargo"), "bench", "-p", "twinlens-curate", "--bench", "match"]
    subprocess.run(bench, cwd=ROOT, env=variables, check=True)

    automaton = ahocorasick.Automaton()
    queries = {}
    for line in (OUT / "queries.txt").read_text(encoding="utf-8").split("\n")[:-1]:
        number, text = line.split("\t")
        queries.setdefault(text, []).append(int(number))
    start = time.perf_counter()
    for text, numbers in queries.items():
        if text:
            automaton.add_word(text, numbers)
    automaton.make_automaton()
    build = time.perf_counter() - start

    texts = (OUT / "captions.txt").read_text(encoding="utf-8").split("\n")
    shortest = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        found = [[numbers for _, numbers in automaton.iter(text)] for text in texts]
        shortest = min(shortest, time.perf_counter() - start)

    hits = (OUT / "hits.txt").read_text().split("\n")[:-1]
    assert len(hits) == len(texts), "hits and captions differ in number"
    for text, lists, hit in zip(texts, found, hits):
        expected = sorted({number for numbers in lists for number in numbers})
        if hit != ",".join(map(str, expected)):
            sys.exit(f"the hits differ in {text!r}:\n  twinlens       {hit}\n  pyahocorasick  {expected}")

    ours = dict(line.split("\t") for line in (OUT / "times.txt").read_text().splitlines())
    count = len(texts)
    rows = [
        ("twinlens", "normalise and search", float(ours["normalise_and_search_s"])),
        ("twinlens", "search", float(ours["search_s"])),
        ("pyahocorasick", "search", shortest),
    ]
    matches = sum(hit.count(",") + bool(hit) for hit in hits)
    print(f"{len(queries):,} queries, {count:,} captions of {int(ours['bytes']) / count:.0f} bytes, {matches:,} hits, identical")
    for engine, work, seconds in rows:
        print(f"{engine:14} {work:22} {seconds:8.3f} s {count / seconds:12,.0f} captions/s {shortest / seconds:7.1f} x")
    print(f"ready: twinlens {float(ours['load_s']):.3f} s from its file ({float(ours['build_and_keep_s']):.2f} s to build "
          f"and keep, {int(ours['heap_bytes']) / 2**20:.0f} MiB), pyahocorasick {build:.2f} s")
    table = pyarrow.table({
        "engine": [row[0] for row in rows],
        "work": [row[1] for row in rows],
        "captions": [count] * len(rows),
        "seconds": [row[2] for row in rows],
        "captions_per_second": [count / row[2] for row in rows],
        "times_pyahocorasick": [shortest / row[2] for row in rows],
    })
    pyarrow.feather.write_feather(table, str(OUT.parent / "match.arrow"), compression="uncompressed")


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    environment.enter(OUT.parent / "python", PACKAGES)
    main()
