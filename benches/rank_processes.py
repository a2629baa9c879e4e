#!/usr/bin/env python3
"""Compares two ranks as processes over TCP with two ranks as threads: the same training, same cores.

    benches/rank_processes.py --twinlens target/release/twinlens --run runs/quickstart [--turns 3]

Trains on what a finished quickstart left: its pairs, words and model `vit-tiny-48`, for `--steps`
steps of 128 pairs. What counts is the time between the first and the last step in the training's log,
without starting. The programs alternate; their logs must be equal, but for times.
"""

import argparse
import os
import pathlib
import shutil
import socket
import statistics
import subprocess
import tempfile

PIPELINE = """
name = "ranks"

[stages.clip]
kind = "train"
input = "{run}/train_pairs"
tokenizer = "{run}/words"
model = "{model}"
batch_size = 128
steps = {steps}
"""


def run(args, folder, name, processes):
    (folder / "p.toml").write_text(PIPELINE.format(run=args.run.resolve(), model=args.model, steps=args.steps))
    dir = folder / name
    shutil.rmtree(dir, ignore_errors=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [args.twinlens, "run", folder / "p.toml", "--dir", dir, "--progress", "never"]
    if processes == 1:
        words += ["--threads", 2, "--set", "stages.clip.ranks=2"]
    else:
        words += ["--threads", 1, "--ranks", "tcp"]
    started = []
    for rank in range(processes):
        env = dict(os.environ, RANK=str(rank), WORLD_SIZE=str(processes), MASTER_ADDR="127.0.0.1",
                   MASTER_PORT=str(port))
        started.append(subprocess.Popen(list(map(str, words)), env=env, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.PIPE, text=True))
    for process in started:
        _, error = process.communicate()
        if process.returncode:
            raise SystemExit(error)
    query = "select step, loss, arrow_cast(wall, 'Int64') / 1e6 from clip where loss is not null order by step"
    text = subprocess.run([args.twinlens, "sql", dir, "--format", "csv", query],
                          capture_output=True, text=True, check=True).stdout
    rows = [line.split(",") for line in text.splitlines()[1:]]
    return float(rows[-1][2]) - float(rows[0][2]), [row[:2] for row in rows]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--twinlens", required=True, type=pathlib.Path)
    parser.add_argument("--run", required=True, type=pathlib.Path)
    parser.add_argument("--model", default="vit-tiny-48")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    args.twinlens = args.twinlens.resolve()
    threads, processes = [], []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.turns):
            one, log = run(args, pathlib.Path(folder), "threads", 1)
            two, other = run(args, pathlib.Path(folder), "processes", 2)
            if log != other:
                raise SystemExit("the losses differ")
            threads.append(one)
            processes.append(two)
    rate = lambda times: 128 * (args.steps - 1) / statistics.median(times)
    print(f"two threads {rate(threads):.0f} pairs/s, two processes {rate(processes):.0f} pairs/s, "
          f"{rate(processes) / rate(threads):.2f} times")


main()
