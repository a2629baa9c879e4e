#!/usr/bin/env python3
"""What distributing splits costs: runs over workers or executors on this machine, with splits that
sleep or do nothing.

    benches/splits.py overhead --twinlens target/release/twinlens [--workers]
    benches/splits.py sleep    --twinlens target/release/twinlens [--workers] [--seconds 1]
    benches/splits.py compute  --twinlens target/release/twinlens [--workers] [--images FOLDER]
    benches/splits.py many     --twinlens target/release/twinlens [--workers] [--splits 100000]

`overhead` makes 400 splits of one row by one process that makes eight at a time, and locally.
`sleep` makes 64 splits that sleep, by one, two and four processes that make one at a time (needs
pyarrow). `compute` decodes and resizes images (`.jpg` of FOLDER, such as those that benches/fetch
makes) by two processes of one thread, and by one process of two threads. `many` makes very many
of one row and shows the memory of the run and how long `status`, `plan` and a run with nothing to do
take. Without `--workers`, Ballista distributes them (feature
`cluster`).
"""
import argparse
import contextlib
import io
import os
import pathlib
import re
import resource
import shutil
import subprocess
import tarfile
import tempfile
import time

KEY = "0123456789abcdef0123456789abcdef"

ROWS = """
name = "splits"

[stages.rows]
kind = "table"
files = ["rows.csv"]
split_rows = 1
"""

SLEEP = """
name = "splits"

[stages.slept]
kind = "command"
command = ["sh", "-c", "sleep {seconds}; cat {rows}"]
columns = {{ uid = "string", url = "string", caption = "string" }}
splits = {splits}
"""

IMAGES = """
name = "splits"

[stages.images]
kind = "webdataset"
files = ["shards/*.tar"]
resize = { size = 256, mode = "shortest" }
"""


def peak(process):
    """The peak memory of a process, in MB; 0 if it has ended."""
    with contextlib.suppress(OSError, IndexError):
        status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1000
    return 0


class Bench:
    def __init__(self, args, folder):
        self.args = args
        self.folder = folder
        self.env = {**os.environ, "TWINLENS_CLUSTER_KEY": KEY, "HOME": str(folder), "SOURCE_DATE_EPOCH": "1700000000"}

    def start(self, *words, stderr=subprocess.PIPE):
        return subprocess.Popen([self.args.twinlens, *map(str, words)], cwd=self.folder, env=self.env,
                                stderr=stderr, stdout=subprocess.DEVNULL, text=True)

    def pipeline(self, text, rows):
        (self.folder / "p.toml").write_text(text)
        lines = (f"http://a.example/{row}.jpg,caption {row}\n" for row in range(rows))
        (self.folder / "rows.csv").write_text("url,caption\n" + "".join(lines))

    @contextlib.contextmanager
    def helpers(self, number, slots, dir, threads=2):
        """Workers or executors; gives the arguments of the run."""
        running = []
        try:
            if self.args.workers:
                work = ["work", dir, "--splits", slots, "--threads", threads]
                # They tell of each split: a pipe that nobody reads would hold them.
                running += [self.start(*work, stderr=subprocess.DEVNULL) for _ in range(number)]
                yield ["--workers-only"]
            else:
                scheduler = self.start("scheduler", "--bind", "127.0.0.1:0")
                running.append(scheduler)
                port = re.search(r"listening at 127.0.0.1:(\d+)", scheduler.stderr.readline())[1]
                address = f"df://127.0.0.1:{port}"
                for _ in range(number):
                    words = ["executor", address, "--bind", "127.0.0.1", "--slots", slots, "--threads", threads]
                    running.append(self.start(*words, stderr=subprocess.DEVNULL))
                self.scheduler = scheduler
                yield ["--on", address]
        finally:
            self.peaks = [peak(process) for process in running]
            for process in running:
                process.kill()
                process.wait()

    def run(self, dir, *words):
        """Seconds and peak memory (MB) of a run."""
        before = time.perf_counter()
        process = self.start("run", "p.toml", "--progress", "never", "--dir", dir, *words)
        memory = 0
        while process.poll() is None:
            memory = peak(process) or memory
            time.sleep(0.02)
        seconds = time.perf_counter() - before
        if process.returncode:
            raise SystemExit(process.stderr.read())
        return seconds, memory

    def command(self, *words):
        before = time.perf_counter()
        process = self.start(*words)
        _, error = process.communicate()
        if process.returncode:
            raise SystemExit(error)
        return time.perf_counter() - before

    def fresh(self, name):
        shutil.rmtree(self.folder / name, ignore_errors=True)
        return f"file://{self.folder / name}"

    def overhead(self):
        splits = 400
        self.pipeline(ROWS, splits)
        local, _ = self.run(self.fresh("local"))
        dir = self.fresh("shared")
        with self.helpers(1, 8, dir) as words:
            shared, _ = self.run(dir, *words)
        each = 1000 / splits
        print(f"{splits} splits of one row: here {local:.1f} s ({local * each:.1f} ms each), "
              f"8 in flight elsewhere {shared:.1f} s ({shared * each:.1f} ms each)")

    def sleep(self):
        import pyarrow
        splits, first = 64, None
        rows = self.folder / "rows.arrow"
        table = pyarrow.table({"uid": ["1"], "url": ["http://a.example/1.jpg"], "caption": ["one"]})
        with pyarrow.ipc.new_stream(rows, table.schema) as writer:
            writer.write_table(table)
        text = SLEEP.format(seconds=self.args.seconds, rows=rows, splits=splits)
        (self.folder / "p.toml").write_text(text)
        for number in (1, 2, 4):
            dir = self.fresh("shared")
            with self.helpers(number, 1, dir) as words:
                seconds, _ = self.run(dir, *words)
            first = first or seconds
            ideal = splits * self.args.seconds / number
            print(f"{splits} splits that sleep {self.args.seconds} s, {number} processes: {seconds:.1f} s "
                  f"(ideal {ideal:.1f}), {first / seconds:.2f} times one")

    def compute(self):
        images = sorted(self.args.images.glob("*.jpg"))
        splits, each = 40, 160
        (self.folder / "shards").mkdir()
        for shard in range(splits):
            with tarfile.open(self.folder / "shards" / f"{shard:03}.tar", "w") as tar:
                for number in range(shard * each, (shard + 1) * each):
                    caption = f"caption {number}".encode()
                    tar.add(images[number % len(images)], f"{number:06}.jpg")
                    info = tarfile.TarInfo(f"{number:06}.txt")
                    info.size = len(caption)
                    tar.addfile(info, io.BytesIO(caption))
        (self.folder / "p.toml").write_text(IMAGES)
        here, shared, peaks = [], [], []
        for _ in range(3):
            here.append(self.run(self.fresh("local"), "--threads", 2))
            dir = self.fresh("shared")
            with self.helpers(2, 1, dir, threads=1) as words:
                shared.append(self.run(dir, *words)[0])
            peaks += self.peaks
        seconds, memory = (min(values) for values in zip(*here))
        print(f"{splits * each} images in {splits} files: here with two threads {seconds:.1f} s (peak {memory:.0f} MB), two "
              f"processes of one thread {min(shared):.1f} s (peak {max(peaks):.0f} MB), "
              f"{seconds / min(shared):.2f} of the rate")

    def many(self):
        splits = self.args.splits
        self.pipeline(ROWS, splits)
        dir = self.fresh("shared")
        with self.helpers(self.args.processes, 2, dir) as words:
            seconds, memory = self.run(dir, *words)
            if not self.args.workers:
                print(f"scheduler: peak {peak(self.scheduler):.0f} MB")
        manifest = sum(path.stat().st_size for path in (self.folder / "shared").glob("rows/manifest.jsonl/*")
                       if path.is_file())
        print(f"{splits} splits, {self.args.processes} processes: {seconds:.0f} s ({1000 * seconds / splits:.1f} ms each), "
              f"run: peak {memory:.0f} MB, manifest {manifest / 1e6:.1f} MB")
        print(f"status {self.command('status', dir):.2f} s, plan {self.command('plan', 'p.toml', '--dir', dir):.2f} s, "
              f"run with nothing to do {self.run(dir)[0]:.2f} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["overhead", "sleep", "compute", "many"])
    parser.add_argument("--twinlens", required=True, type=pathlib.Path)
    parser.add_argument("--workers", action="store_true")
    parser.add_argument("--images", type=pathlib.Path, default=pathlib.Path(tempfile.gettempdir()) / "twinlens-bench-fetch" / "images")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--splits", type=int, default=100_000)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    args.twinlens = args.twinlens.resolve()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    with tempfile.TemporaryDirectory() as folder:
        getattr(Bench(args, pathlib.Path(folder)), args.what)()


main()
