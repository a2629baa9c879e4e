#!/usr/bin/env python3
"""Compares two builds of twinlens, such as of two editions: fetch, eval and loader.

    benches/builds.py fetch OLD NEW [--turns 6] [--rows 4000]
    benches/builds.py eval OLD NEW [--turns 6] [--images 1000] [--models vit,resnet,vit-b-32]
    benches/builds.py loader OLD NEW [--turns 6]

OLD and NEW are programs: `twinlens` for the first two, the bench `loader` of twinlens-train for the
third. They do the same work in turns whose order alternates: what is measured is that of fetch/run.py,
eval_peer.py and loader_peer.py, without the peers. A ratio is NEW's time divided by OLD's: of the
least of all turns, and of the medians.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile

import environment

HERE = pathlib.Path(__file__).resolve().parent
OUT = HERE.parent / "target" / "bench"


def of_file(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def alternate(programs, turns, measure):
    """Seconds by name and program; `measure` gives a dictionary of name to seconds."""
    found = {}
    for turn in range(turns):
        for which in (0, 1) if turn % 2 else (1, 0):
            for name, seconds in measure(programs[which]).items():
                found.setdefault(name, ([], []))[which].append(seconds)
        print(f"  turn {turn + 1}: {os.getloadavg()[0]:.1f} load", file=sys.stderr)
    return found


def fetch(args):
    run = of_file(HERE / "fetch" / "run.py")
    work = pathlib.Path(tempfile.gettempdir()) / "twinlens-bench-fetch"
    work.mkdir(parents=True, exist_ok=True)
    environment.enter(work / "venv", run.PACKAGES)
    run.photographs(work)
    command = [sys.executable, str(HERE / "fetch" / "run.py"), "--serve", "--work", str(work)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE)

    def measure(program):
        folder = work / "run"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        result = run.run_twinlens(program, folder, urls)
        if result["images"] != args.rows:
            sys.exit(f"{program}: {result['images']} images")
        return {"fetch, wall": result["seconds"], "fetch, processor": result["cpu_seconds"]}

    try:
        port = int(server.stdout.readline())
        urls = [f"http://127.0.0.1:{port}/{number}.jpg" for number in range(args.rows)]
        return alternate(args.programs, args.turns, measure)
    finally:
        server.kill()


def evaluate(args):
    import eval_peer as peer

    environment.enter(peer.OUT / "venv", peer.PACKAGES)
    folder, found = peer.make_set(args.images, "jpeg"), {}
    for name in args.models.split(","):
        model = peer.make_model(name)

        def measure(program):
            run, times = peer.OUT / f"run-{name}", {}
            shutil.rmtree(run, ignore_errors=True)
            for prompts in ("first", "second"):
                seconds, _ = peer.run_twinlens(program, model, folder, prompts, run, os.cpu_count())
                times[f"eval, {name}, {prompts} prompts"] = seconds
            return times

        found |= alternate(args.programs, args.turns, measure)
    return found


def loader(args):
    import loader_peer as peer

    environment.enter(OUT / "python-loader", peer.PACKAGES)
    folder = OUT / "loader"
    peer.shards(peer.photographs(None)[1], folder)
    variables = dict(os.environ, TWINLENS_LOADER=str(folder), TWINLENS_THREADS="1")

    def measure(program):
        text = subprocess.run([program], env=variables, capture_output=True, text=True, check=True).stdout
        rows = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        # Lines about checksums are of later builds only.
        rows = [row for row in rows if "verify" not in row]
        rate = "samples_per_second"
        name = lambda row: ", ".join(str(value) for key, value in row.items() if key not in (rate, "decoder"))
        return {f"loader, {name(row)}, 1,000 samples": 1000 / row[rate] for row in rows}

    return alternate(args.programs, args.turns, measure)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["fetch", "eval", "loader"])
    parser.add_argument("programs", nargs=2, type=lambda path: pathlib.Path(path).resolve(strict=True))
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--models", default="vit,resnet,vit-b-32")
    args = parser.parse_args()
    found = {"fetch": fetch, "eval": evaluate, "loader": loader}[args.what](args)
    print("| seconds | old | new | ratio | of medians |\n|---|---|---|---|---|")
    for name, (old, new) in found.items():
        medians = statistics.median(new) / statistics.median(old)
        print(f"| {name} | {min(old):.3f} | {min(new):.3f} | {min(new) / min(old):.3f} | {medians:.3f} |")


if __name__ == "__main__":
    main()
