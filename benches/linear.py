#!/usr/bin/env python3
"""Twice the input, at most 2.3 times the work: counted in instructions (valgrind), not by the clock.

    benches/linear.py --twinlens target/debug/twinlens [NAME...]

Each case is measured with no input (what every call costs), with n and with 2n; the ratio is that
of the two differences. Fails if a ratio is above 2.3. On one thread, so that numbers repeat.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ALLOWED = 2.3


def toml_keys(folder, n):
    """Unknown keys of a stage, each reported with a suggestion."""
    keys = "".join(f"unknown_{key} = 1\n" for key in range(n))
    (folder / "p.toml").write_text(f'name = "p"\n[stages.t]\nkind = "table"\nfiles = ["a.csv"]\n{keys}')
    return ["check", "p.toml"]


def chain(n):
    stages = "".join(
        f'[stages.f{at}]\nkind = "filter"\ninput = "{f"f{at - 1}" if at else "t"}"\n'
        f'where = "char_length(caption) > {at % 7}"\n'
        for at in range(n)
    )
    return f'name = "p"\n[stages.t]\nkind = "table"\nfiles = ["a.csv"]\n{stages}'


def stages(folder, n):
    """A chain of filters, checked."""
    (folder / "p.toml").write_text(chain(n))
    return ["check", "p.toml"]


def fused(folder, n):
    """A chain of filters, run over a few rows."""
    table(folder, 10)
    (folder / "p.toml").write_text(chain(n))
    return ["run", "p.toml", "--dir", "run"]


def sweep(folder, n):
    """Values of a sweep, checked."""
    values = ", ".join(str(value + 1) for value in range(n))
    (folder / "p.toml").write_text(
        'name = "p"\n[stages.t]\nkind = "table"\nfiles = ["a.csv"]\n[stages.w]\nkind = "tokenizer"\ninput = "t"\n'
        f'[stages.w.sweep]\nvocab_size = [{values or 300}]\n'
    )
    return ["check", "p.toml"]


def table(folder, rows):
    lines = "".join(f"http://a.test/{row}.png,caption number {row:07}\n" for row in range(rows))
    (folder / "a.csv").write_text("url,caption\n" + lines)


def rows(folder, n):
    """Rows of a table, filtered."""
    table(folder, n + 1)
    (folder / "p.toml").write_text(chain(1))
    return ["run", "p.toml", "--dir", "run"]


SPLITS = """name = "p"
[stages.t]
kind = "table"
files = ["a.csv"]
[stages.f]
kind = "filter"
input = "t"
where = "char_length(caption) > 3 and caption <> 'caption number 0000000'"
split_rows = 2
"""


def splits(folder, n):
    """Splits of two rows, made."""
    table(folder, 2 * n + 2)
    (folder / "p.toml").write_text(SPLITS)
    return ["run", "p.toml", "--dir", "run"]


def made(folder, n, twinlens):
    args = splits(folder, n)
    if twinlens:
        subprocess.run([twinlens, *args], cwd=folder, check=True, capture_output=True)


def retry(folder, n, twinlens=None):
    """Retry of nothing, in a dataset of many splits."""
    made(folder, n, twinlens)
    return ["retry", "p.toml", "f", "--dir", "run", "--where", "reject_code = 'no such code'"]


def reuse(folder, n, twinlens=None):
    """A run that reuses a dataset of many splits."""
    made(folder, n, twinlens)
    return ["run", "p.toml", "--dir", "run"]


def status(folder, n, twinlens=None):
    """The status of a dataset of many splits."""
    made(folder, n, twinlens)
    return ["status", "run"]


def count(folder, n, twinlens=None):
    """A query over a dataset of many splits."""
    made(folder, n, twinlens)
    return ["sql", "run", "select count(*) from f"]


WARC = 'name = "p"\n[stages.w]\nkind = "warc"\nfiles = ["a.warc"]\n'


def records(folder, n):
    """Damaged records of an archive, each of which claims the rest of the file."""
    lines = "".join(
        f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://a.test/{at}\r\n"
        f"Content-Length: {(n - at) * 160 + 77}\r\n\r\n"
        for at in range(n)
    )
    page = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<img src=a.png alt=words>"
    good = (
        "WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://a.test/\r\n"
        f"Content-Length: {len(page)}\r\n\r\n{page}\r\n\r\n"
    )
    (folder / "a.warc").write_text(good + lines, newline="")
    (folder / "p.toml").write_text(WARC)
    return ["run", "p.toml", "--dir", "run"]


CASES = [
    (toml_keys, 2000),
    (stages, 200),
    (fused, 40),
    (sweep, 50),
    (rows, 4000),
    (splits, 60),
    (retry, 60),
    (reuse, 300),
    (status, 300),
    (count, 300),
    (records, 1000),
]


def instructions(twinlens, case, n):
    folder = Path(tempfile.mkdtemp())
    try:
        args = case(folder, n, twinlens) if case in (retry, reuse, status, count) else case(folder, n)
        one_thread = ["--threads", "1", "--progress", "never"] if args[0] in ("run", "retry") else []
        command = ["valgrind", "--tool=cachegrind", "--cache-sim=no", f"--cachegrind-out-file={folder}/out"]
        environment = {"SOURCE_DATE_EPOCH": "1700000000", "HOME": str(folder), "PATH": os.environ["PATH"]}
        done = subprocess.run(
            [*command, twinlens, *args, *one_thread], cwd=folder, env=environment, capture_output=True, text=True
        )
        found = re.search(r"I\s+refs:\s+([\d,]+)", done.stderr)
        if not found or "panicked" in done.stderr:
            sys.exit(f"{case.__name__}: {done.stderr}")
        return int(found[1].replace(",", ""))
    finally:
        shutil.rmtree(folder)


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--twinlens", required=True)
    arguments.add_argument("names", nargs="*")
    given = arguments.parse_args()
    twinlens = str(Path(given.twinlens).resolve())
    failed = False
    print("| input | n | n, million | 2n, million | ratio |")
    print("|---|---|---|---|---|", flush=True)
    for case, n in CASES:
        if given.names and case.__name__ not in given.names:
            continue
        nothing, once, twice = (instructions(twinlens, case, size) for size in (0, n, 2 * n))
        ratio = (twice - nothing) / max(once - nothing, 1)
        failed |= ratio > ALLOWED
        what = case.__doc__.rstrip(".")
        million = [f"{(number - nothing) / 1e6:,.0f}" for number in (once, twice)]
        print(f"| {what} | {n:,} | {million[0]} | {million[1]} | {ratio:.2f} |", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
