#!/usr/bin/env python3
"""Compares fetching with img2dataset: fetch, resize to 256, encode, write; same list, same server.

    benches/fetch/run.py --twinlens target/release/twinlens [--rows 4000] [--work DIR]

The first run creates a virtual environment in the work directory and installs img2dataset there. The
images are about 1000 x 800: noise with the spectrum of photographs, edges and a little grain, as JPEG
of quality 85 (about 100 kB each). A server on loopback serves them from memory, on the same cores for
both programs. Measured are the wall time of the whole command, CPU seconds including its children, and
the peak of the summed proportional set sizes of its processes. The table is written to
target/bench/fetch.arrow.
"""

import argparse, json, os, resource, shutil, subprocess, sys, tempfile, threading, time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import environment

PACKAGES = ["img2dataset==1.47.0", "numpy", "pillow", "pyarrow"]
HERE = Path(__file__).resolve().parent
OUT = HERE.parent.parent / "target" / "bench"
DISTINCT = 96


def photograph(number, width=1000, height=800):
    """An image with a spectrum like that of photographs, some edges and some grain."""
    import numpy as np
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(number)
    power = np.fft.fftfreq(height)[:, None] ** 2 + np.fft.rfftfreq(width)[None, :] ** 2
    power[0, 0] = 1
    layers = []
    for _ in range(4):
        phase = np.exp(2j * np.pi * rng.random(power.shape)) * rng.rayleigh(1, power.shape)
        layer = np.fft.irfft2(power**-1.15 * phase, s=(height, width))
        layers.append((layer - layer.mean()) / layer.std())
    pixels = np.stack([0.75 * layers[0] + 0.35 * layer for layer in layers[1:]], -1) * 45 + 120
    image = Image.fromarray(np.clip(pixels, 0, 255).astype("uint8"))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y, r = rng.integers(0, width), rng.integers(0, height), rng.integers(10, 120)
        colour = tuple(int(value) for value in rng.integers(0, 255, 3))
        draw.ellipse([x - r, y - r, x + r, y + r], outline=colour, width=int(rng.integers(1, 12)))
    grain = np.asarray(image).astype("float") + rng.normal(0, 2.5, (height, width, 1))
    return Image.fromarray(np.clip(grain, 0, 255).astype("uint8"))


def photographs(work):
    folder = work / "images"
    folder.mkdir(exist_ok=True)
    for number in range(DISTINCT):
        path = folder / f"{number}.jpg"
        if not path.exists():
            # Sizes vary a little, as in a crawl.
            photograph(number, 960 + 16 * (number % 6), 760 + 16 * (number % 5)).save(path, quality=85)
    return [(folder / f"{number}.jpg").read_bytes() for number in range(DISTINCT)]


def serve(work):
    """Runs the server: asyncio over plain sockets, with prepared answers."""
    import asyncio

    head = b"HTTP/1.1 200 OK\r\ncontent-type: image/jpeg\r\ncontent-length: %d\r\n\r\n"
    answers = [head % len(image) + image for image in photographs(work)]
    missing = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"

    class Connection(asyncio.Protocol):
        def connection_made(self, transport):
            self.transport, self.buffer = transport, b""

        def data_received(self, data):
            self.buffer += data
            while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
                path = self.buffer.split(b" ", 2)[1]
                self.buffer = self.buffer[end + 4 :]
                number = path[1:].split(b".")[0]
                self.transport.write(answers[int(number) % DISTINCT] if number.isdigit() else missing)

    async def run():
        server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0, backlog=4096)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    asyncio.run(run())


def tree(root):
    """The process and all its descendants."""
    children = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                parent = Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()[1]
                children.setdefault(int(parent), []).append(int(entry))
            except OSError:
                pass
    found, queue = [], [root]
    while queue:
        process = queue.pop()
        found.append(process)
        queue.extend(children.get(process, []))
    return found


def memory(process):
    """The proportional set size in bytes, which counts shared pages once."""
    try:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    return 0


def measure(command, **more):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    load, start, peak, done = os.getloadavg()[0], time.monotonic(), 0, threading.Event()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **more)

    def watch():
        nonlocal peak
        while not done.wait(0.1):
            peak = max(peak, sum(memory(one) for one in tree(process.pid)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, errors = process.communicate()
    seconds = time.monotonic() - start
    done.set()
    watcher.join()
    if process.returncode != 0:
        sys.exit(f"{command[0]} failed:\n{errors.decode(errors='replace')[-3000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_bytes": peak, "load_before": load}


def run_twinlens(binary, folder, urls):
    lines = (json.dumps({"url": url, "caption": f"caption {number}"}) for number, url in enumerate(urls))
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    shutil.copy(HERE / "pipeline.toml", folder)
    result = measure([str(binary), "run", str(folder / "pipeline.toml"), "--dir", str(folder / "run")], cwd=folder)
    import pyarrow.parquet as parquet

    shards = sorted((folder / "run" / "images").rglob("*.parquet"))
    kept = [shard for shard in shards if "rejects" not in str(shard)]
    tables = [parquet.read_table(shard, columns=["image", "width", "height"]) for shard in kept]
    images = [row["image"]["bytes"] for table in tables for row in table.slice(0, 20).to_pylist()]
    return result | {"images": sum(len(table) for table in tables), "stored_bytes": average(images)}


def run_img2dataset(folder, urls, threads, output):
    import pyarrow
    import pyarrow.parquet as parquet

    captions = [f"caption {number}" for number in range(len(urls))]
    parquet.write_table(pyarrow.table({"url": urls, "caption": captions}), folder / "pairs.parquet")
    program = Path(sys.prefix) / "bin" / "img2dataset"
    result = measure(
        [str(program), "--url_list", str(folder / "pairs.parquet"), "--input_format", "parquet", "--url_col", "url",
         "--caption_col", "caption", "--output_format", output, "--output_folder", str(folder / "out"),
         "--processes_count", str(len(os.sched_getaffinity(0))), "--thread_count", str(threads), "--image_size", "256",
         "--resize_mode", "keep_ratio", "--number_sample_per_shard", str(max(100, len(urls) // 8)),
         "--enable_wandb", "False"],
        cwd=folder,
        env=os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1"},
    )
    count = sum(json.loads(stats.read_text())["successes"] for stats in (folder / "out").glob("*_stats.json"))
    return result | {"images": count, "stored_bytes": 0}


def average(images):
    return sum(map(len, images)) // max(1, len(images))


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--twinlens", type=Path, help="the release binary")
    options.add_argument("--rows", type=int, default=4000)
    options.add_argument("--repeat", type=int, default=1)
    options.add_argument("--threads", type=int, nargs="+", default=[16, 64], help="values of img2dataset's thread_count; the best counts")
    options.add_argument("--output", default="webdataset", help="img2dataset's output_format")
    options.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "twinlens-bench-fetch")
    options.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = options.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    environment.enter(args.work / "venv", PACKAGES)
    if args.serve:
        return serve(args.work)
    photographs(args.work)
    server = subprocess.Popen([sys.executable, __file__, "--serve", "--work", str(args.work)], stdout=subprocess.PIPE)
    try:
        port = int(server.stdout.readline())
        urls = [f"http://127.0.0.1:{port}/{number}.jpg" for number in range(args.rows)]
        results = []
        for _ in range(args.repeat):
            runs = [("twinlens", lambda folder: run_twinlens(args.twinlens.resolve(), folder, urls))]
            for threads in args.threads:
                runs.append((f"img2dataset, {threads} threads",
                             lambda folder, threads=threads: run_img2dataset(folder, urls, threads, args.output)))
            for name, run in runs:
                folder = args.work / "run"
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                result = {"program": name, "rows": args.rows} | run(folder)
                result |= {"images_per_second": result["images"] / result["seconds"],
                           "cpu_ms_per_image": 1000 * result["cpu_seconds"] / max(1, result["images"])}
                results.append(result)
                print(f"{name:28} {result['images']:6} images  {result['seconds']:6.1f} s  {result['images_per_second']:7.1f} images/s  "
                      f"{result['cpu_ms_per_image']:6.2f} CPU ms/image  {result['peak_bytes'] / 2**20:6.0f} MB peak  "
                      f"(load before: {result['load_before']:.1f})", flush=True)
    finally:
        server.kill()
    ours = max((one for one in results if one["program"] == "twinlens"), key=lambda one: one["images_per_second"])
    peer = max((one for one in results if one["program"] != "twinlens"), key=lambda one: one["images_per_second"])
    print(f"\ntwinlens relative to {peer['program']}: {ours['images_per_second'] / peer['images_per_second']:.2f} times the images/s, "
          f"{ours['cpu_ms_per_image'] / peer['cpu_ms_per_image']:.2f} of the CPU per image, "
          f"{ours['peak_bytes'] / peer['peak_bytes']:.2f} of the peak memory")
    import pyarrow
    import pyarrow.feather

    OUT.mkdir(parents=True, exist_ok=True)
    pyarrow.feather.write_feather(pyarrow.Table.from_pylist(results), str(OUT / "fetch.arrow"), compression="uncompressed")


if __name__ == "__main__":
    main()
