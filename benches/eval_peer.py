#!/usr/bin/env python3
"""Compares zero-shot evaluation with CLIP_benchmark and open_clip: same weights, set, prompts and CPU.

    benches/eval_peer.py [--twinlens target/release/twinlens] [--images 1000] [--format jpeg] [--turns 3]
                         [--models vit,resnet,vit-b-32] [--threads 2]

The set is synthetic: JPEG images of coloured shapes in CLIP_benchmark's layout (tar files). `vit` and
`resnet` are small open_clip models trained for a minute, so that predictions are meaningful;
`vit-b-32` has open_clip's shape with random weights, to measure its cost. Both programs read the same
directory of weights.

Whole commands are timed: `clip_benchmark eval` with full precision (--no_amp; the better of 1 worker
and one per thread), and `twinlens eval` in a new run directory. Then both run again with other
prompts only. All predictions are compared: those of CLIP_benchmark's functions with those in the
run's table. The programs alternate, and medians over turns count. The table is written to
target/bench/eval.arrow.
"""

import argparse
import csv
import io
import json
import math
import os
import pathlib
import random
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
import time

import environment

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "target" / "bench" / "eval"
# CLIP_benchmark converts arrays of one element to numbers, which numpy 2.4 rejects, and does not
# declare that it needs requests.
PACKAGES = ["torch", "torchvision", "open_clip_torch", "clip-benchmark", "safetensors", "numpy<2.4", "pillow", "pyarrow", "requests"]
COLOURS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220), "yellow": (230, 210, 50)}
SHARDS = os.cpu_count()
SHAPES = ["circle", "square", "triangle", "cross"]
CLASSES = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
PROMPTS = {
    "first": ["a photo of a {c}.", "a drawing of a {c}.", "a picture that shows a {c}."],
    "second": ["an image of a {c}.", "one {c} on a plain background.", "the {c}.", "a small {c}."],
}
SMALL_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 192, "heads": 3, "layers": 3}
MODELS = {
    "vit": {"embed_dim": 128, "vision_cfg": {"image_size": 96, "patch_size": 16, "width": 192, "layers": 6, "head_width": 64}, "text_cfg": SMALL_TEXT},
    "resnet": {"embed_dim": 128, "vision_cfg": {"image_size": 96, "layers": [2, 2, 2, 2], "width": 32}, "text_cfg": SMALL_TEXT},
    "vit-b-32": {
        "embed_dim": 512,
        "vision_cfg": {"image_size": 224, "patch_size": 32, "width": 768, "layers": 12},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
    },
}
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def picture(rng, label):
    """An image of a class: a shape of random size and position on a noisy background."""
    import numpy as np
    from PIL import Image, ImageDraw

    width, height = rng.randint(280, 420), rng.randint(220, 380)
    ground = [rng.randint(90, 255) for _ in range(3)]
    image = Image.new("RGB", (width, height), tuple(ground))
    draw = ImageDraw.Draw(image)
    colour, shape = CLASSES[label].split()
    side = rng.randint(70, 160)
    x, y = (width - side) // 2 + rng.randint(-25, 25), (height - side) // 2 + rng.randint(-25, 25)
    box, fill = [x, y, x + side, y + side], COLOURS[colour]
    if shape == "circle":
        draw.ellipse(box, fill=fill)
    elif shape == "square":
        draw.rectangle(box, fill=fill)
    elif shape == "triangle":
        draw.polygon([(x, y + side), (x + side, y + side), (x + side // 2, y)], fill=fill)
    else:
        third = side // 3
        draw.rectangle([x + third, y, x + 2 * third, y + side], fill=fill)
        draw.rectangle([x, y + third, x + side, y + 2 * third], fill=fill)
    noise = np.random.default_rng(rng.getrandbits(32)).normal(0, 14, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def make_set(count, kind):
    """Writes the set in CLIP_benchmark's layout, once per prompt file and once for twinlens."""
    folder = OUT / f"sets-{count}-{kind}"
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        rng = random.Random(17)
        (folder / "shapes" / "test").mkdir(parents=True)
        # webdataset needs at least one shard per worker.
        for shard in range(SHARDS):
            with tarfile.open(folder / "shapes" / "test" / f"{shard}.tar", "w") as tar:
                for index in range(count * shard // SHARDS, count * (shard + 1) // SHARDS):
                    label = index % len(CLASSES)
                    image = io.BytesIO()
                    picture(rng, label).save(image, kind, quality=90)
                    for ending, data in (({"jpeg": "jpg"}.get(kind, kind), image.getvalue()), ("cls", str(label).encode())):
                        info = tarfile.TarInfo(f"{index:07}.{ending}")
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))
        (folder / "shapes" / "test" / "nshards.txt").write_text(f"{SHARDS}\n")
        (folder / "shapes" / "classnames.txt").write_text("\n".join(CLASSES) + "\n")
        for name, templates in PROMPTS.items():
            peer = folder / f"peer-{name}"
            shutil.copytree(folder / "shapes", peer)
            (peer / "zeroshot_classification_templates.txt").write_text("\n".join(templates) + "\n")
            (folder / f"{name}.txt").write_text("\n".join(templates) + "\n")
        lines = [
            'name = "shapes"', 'title = "Shapes"', f"classes = {json.dumps(CLASSES)}", 'licence = "none"',
            'source = "benches/eval_peer.py"', 'how_to_get = "run the benchmark"',
        ]
        (folder / "shapes.toml").write_text("\n".join(lines) + "\n")
        (folder / "done").touch()
    return folder


def make_model(name):
    """Writes a directory with open_clip's weights and configuration, and CLIP's vocabulary."""
    folder = OUT / f"model-{name}"
    if (folder / "open_clip_model.safetensors").exists():
        return folder
    import open_clip
    import torch
    from open_clip.loss import ClipLoss
    from open_clip.model import CLIP
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(5)
    config = MODELS[name]
    model = CLIP(**config)
    if name != "vit-b-32":
        train(model, config["vision_cfg"]["image_size"], ClipLoss(), open_clip.get_tokenizer("ViT-B-32"))
    preprocess = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    state = {key: value.contiguous() for key, value in model.state_dict().items() if key != "attn_mask"}
    vocabulary = pathlib.Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    shutil.copy(vocabulary, folder / vocabulary.name)
    save_file(state, folder / "part", metadata={"format": "pt"})
    (folder / "part").rename(folder / "open_clip_model.safetensors")
    return folder


def train(model, size, loss_of, tokenizer, steps=160, batch=64):
    """Trains for about a minute on other images of the same kind."""
    import torch
    from open_clip.transform import image_transform

    transform = image_transform(size, is_train=False, mean=MEAN, std=STD)
    rng = random.Random(29)
    pool = [(transform(picture(rng, label)), label) for label in range(len(CLASSES)) for _ in range(40)]
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.1)
    templates = PROMPTS["first"] + PROMPTS["second"]
    for step in range(steps):
        chosen = [rng.choice(pool) for _ in range(batch)]
        texts = tokenizer([rng.choice(templates).format(c=CLASSES[label]) for _, label in chosen])
        found = model(torch.stack([pixels for pixels, _ in chosen]), texts)
        image, text, scale = found[:3]
        loss = loss_of(image, text, scale)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 40 == 39:
            print(f"    step {step + 1}: loss {loss.item():.3f}", file=sys.stderr)
    model.eval()


def peer_predictions(model, data, threads):
    """Predictions, labels and margins from CLIP_benchmark's functions."""
    import torch
    from clip_benchmark.datasets.builder import build_dataset
    from clip_benchmark.metrics import zeroshot_classification as zero_shot
    from clip_benchmark.models import load_clip

    torch.set_num_threads(threads)
    clip, transform, tokenizer = load_clip("open_clip", f"local-dir:{model}", "", None, device="cpu")
    clip.eval()
    dataset = build_dataset("wds/shapes", root=str(data), transform=transform, split="test", download=False)
    loader = torch.utils.data.DataLoader(dataset.batched(64), batch_size=None)
    classifier = zero_shot.zero_shot_classifier(clip, tokenizer, dataset.classes, dataset.templates, "cpu", amp=False)
    logits, labels = zero_shot.run_classification(clip, classifier, loader, "cpu", amp=False)
    best = logits.topk(2).values
    return logits.argmax(1).tolist(), labels.tolist(), (best[:, 0] - best[:, 1]).tolist()


def timed(command, env=None):
    start = time.perf_counter()
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}")
    return seconds, done.stdout


def run_peer(model, data, threads, workers):
    env = dict(os.environ, OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))
    output = OUT / "peer.json"
    output.unlink(missing_ok=True)
    command = [
        pathlib.Path(sys.executable).with_name("clip_benchmark"), "eval", "--dataset", "wds/shapes", "--dataset_root", data,
        "--task", "zeroshot_classification", "--model", f"local-dir:{model}", "--pretrained", "", "--no_amp",
        "--num_workers", str(workers), "--output", output,
    ]
    seconds, _ = timed(list(map(str, command)), env)
    return seconds, json.loads(output.read_text())["metrics"]["acc1"]


def run_twinlens(program, model, folder, prompts, run, threads):
    command = [
        program, "eval", "--weights", model, "--sets", folder / "shapes.toml", "--data", folder, "--prompts", f"@{folder / prompts}.txt",
        "--dir", run, "--threads", threads, "--format", "csv", "--progress", "never",
    ]
    seconds, text = timed(list(map(str, command)))
    rows = list(csv.DictReader(io.StringIO(text)))
    return seconds, next(float(row["value"]) for row in rows if row["metric"] == "top1")


def twinlens_predictions(program, run):
    query = (
        "select v.place, p.predicted from zero_shot.predictions p join shapes_vectors v on p.example = v.uid"
    )
    text = subprocess.run([program, "sql", run, "--format", "csv", query], capture_output=True, text=True, check=True).stdout
    rows = csv.DictReader(io.StringIO(text))
    return {int(re.search(r"(\d{7})", row["place"]).group(1)): int(row["predicted"]) for row in rows}


def measure(name, program, folder, turns, threads):
    model = make_model(name)
    times = {key: [] for key in ("peer", "twinlens", "peer new prompts", "twinlens new prompts")}
    accuracy = {}
    best_workers = min((1, threads), key=lambda workers: run_peer(model, folder / "peer-first", threads, workers)[0])
    for turn in range(turns):
        run = OUT / f"run-{name}"
        shutil.rmtree(run, ignore_errors=True)
        for prompts, suffix in (("first", ""), ("second", " new prompts")):
            seconds, accuracy[f"twinlens {prompts}"] = run_twinlens(program, model, folder, prompts, run, threads)
            times["twinlens" + suffix].append(seconds)
            seconds, accuracy[f"peer {prompts}"] = run_peer(model, folder / f"peer-{prompts}", threads, best_workers)
            times["peer" + suffix].append(seconds)
        print(f"  {name} turn {turn + 1}: " + ", ".join(f"{key} {values[-1]:.2f} s" for key, values in times.items()), file=sys.stderr)
    predicted, labels, margins = peer_predictions(model, folder / "peer-second", threads)
    own = twinlens_predictions(program, OUT / f"run-{name}")
    if sorted(own) != list(range(len(predicted))):
        sys.exit(f"{name}: {len(own)} predictions of twinlens, {len(predicted)} of the peer")
    differ = [index for index, value in enumerate(predicted) if own[index] != value]
    medians = {key: statistics.median(values) for key, values in times.items()}
    return {
        "model": name,
        "images": len(predicted),
        "equal": 1 - len(differ) / len(predicted),
        "margins where they differ": [margins[index] for index in differ[:5]],
        "accuracy": accuracy,
        "seconds": medians,
        "all seconds": times,
        "workers of the peer": best_workers,
        "ratio": medians["peer"] / medians["twinlens"],
        "ratio new prompts": medians["peer new prompts"] / medians["twinlens new prompts"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--twinlens", type=pathlib.Path, default=ROOT / "target" / "release" / "twinlens")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--format", choices=["jpeg", "png"], default="jpeg", help="png: pixels do not depend on the decoder")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--models", default="vit,resnet,vit-b-32")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    environment.enter(OUT / "venv", PACKAGES)
    import pyarrow
    import pyarrow.feather

    folder = make_set(args.images, args.format)
    models = args.models.split(",")
    results = [measure(name, args.twinlens.resolve(), folder, args.turns, args.threads) for name in models]
    table = pyarrow.Table.from_pylist(results)
    pyarrow.feather.write_feather(table, str(OUT.parent / "eval.arrow"), compression="uncompressed")
    print("model      images  equal    accuracy twinlens / peer   first run: twinlens, peer, ratio   new prompts: twinlens, peer, ratio")
    for row in results:
        seconds, accuracy = row["seconds"], row["accuracy"]
        print(
            f"{row['model']:<9} {row['images']:>7}  {row['equal']:.4f}   {accuracy['twinlens second']:.4f} / {accuracy['peer second']:.4f}"
            f"          {seconds['twinlens']:>7.2f} s {seconds['peer']:>7.2f} s {row['ratio']:>5.2f}"
            f"          {seconds['twinlens new prompts']:>7.2f} s {seconds['peer new prompts']:>7.2f} s {row['ratio new prompts']:>5.1f}"
        )
    bad = [row for row in results if row["equal"] < 0.999 or not math.isclose(row["accuracy"]["twinlens second"], row["accuracy"]["peer second"], abs_tol=1e-3)]
    if bad:
        sys.exit("predictions differ: " + ", ".join(row["model"] for row in bad))


if __name__ == "__main__":
    main()
