"""Functions of Python as stages, and trackers."""

import importlib.util
import os
import subprocess
import sys

import pytest

import twinlens
from twinlens import trackers

pyarrow = pytest.importorskip("pyarrow")

SCRIPT = '''
import pyarrow as pa
import twinlens

print("imported")

@twinlens.stage(adds={"words": "int32", "first": "list<string>"}, send=["caption"])
def words(batch):
    """Counts words."""
    print("what is printed goes to the log")
    captions = batch["caption"]
    codes = ["red" if "red" in caption else None for caption in captions]
    return {"words": [len(c.split()) for c in captions], "first": [c.split()[:2] for c in captions],
            "reject_code": codes}

@twinlens.stage(adds={"size": "int64", "image": "image"}, send=["image"])
def sizes(batch):
    assert all(isinstance(image, bytes) for image in batch["image"])
    return {"size": [len(image) for image in batch["image"]], "image": batch["image"]}

@twinlens.stage(adds={"n": "float32"}, send=["words"], arrow=True)
def numbers(batch):
    return {"n": batch["words"].cast(pa.float32())}

@twinlens.stage(adds={"n": "float32"})
def wrong(batch):
    return {"m": []}

if __name__ == "__main__":
    raise SystemExit("must not run")
'''


@pytest.fixture(scope="module")
def script(place):
    file = place / "functions.py"
    file.write_text(SCRIPT)
    spec = importlib.util.spec_from_file_location("functions", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules["functions"] = module
    spec.loader.exec_module(module)
    return module


def test_functions_are_stages(script, place):
    assert script.words({"caption": ["a b"]})["words"] == [2] and script.words.__doc__ == "Counts words."
    images = {"kind": "folder", "folders": [place / "pictures"]}
    pipeline = {
        "name": "functions",
        "stages": {
            "images": images,
            "counted": {"kind": script.words, "input": "images", "batch_rows": 7},
            "sized": {"kind": script.sizes, "input": "counted"},
            "numbered": {"kind": script.numbers, "input": "sized"},
        },
    }
    run = twinlens.run(pipeline, dir=place / "functions", progress=False)
    rows = run["numbered"].to_pylist()
    assert len(rows) == 48 and all(row["n"] == 5 and row["first"][0] == "a" for row in rows)
    assert all(row["size"] == len(row["image"]["bytes"]) for row in rows)
    rejects = run.sql("select reject_code, count(*) as n from rejects where reject_stage = 'counted' group by 1")
    assert rejects.to_pylist() == [{"reject_code": "red", "n": 12}]


def test_a_function_that_breaks_its_promise_ends_the_run(script, place):
    stages = {
        "images": {"kind": "folder", "folders": [place / "pictures"]},
        "bad": {"kind": script.wrong, "input": "images"},
    }
    with pytest.raises(twinlens.Error, match="which is not among `adds`"):
        twinlens.run({"name": "bad", "stages": stages}, dir=place / "bad", progress=False)
    nowhere = twinlens.stage(adds={"n": "int32"})(eval("lambda batch: {}"))
    with pytest.raises(twinlens.Error, match="is in no file"):
        twinlens.check({"name": "bad", "stages": {"one": {"kind": nowhere}}})


EVENTS = [
    {"event": "stage_started", "stage": "clip"},
    {"event": "train_step", "stage": "clip", "step": 1, "steps": 2, "loss": 2.0, "lr": 0.1,
     "samples_per_second": 9.0, "logit_scale": 2.6, "grad_norm": 1.0},
    {"event": "evaluated", "stage": "clip", "step": 1, "set": "names", "prompts": "{}", "metric": "top1",
     "value": 0.5, "chance": 0.1, "n": 10},
]  # fmt: skip


def has(name):
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")


def test_events_have_metrics():
    assert trackers.metrics(EVENTS[0]) is None
    values, step = trackers.metrics(EVENTS[1])
    assert step == 1 and values["clip/loss"] == 2.0 and len(values) == 5
    assert trackers.metrics(EVENTS[2]) == ({"clip/names/{}/top1": 0.5}, 1)


@has("wandb")
def test_wandb(tmp_path, monkeypatch):
    import wandb

    monkeypatch.chdir(tmp_path)
    with wandb.init(project="t", mode="offline", dir=tmp_path, settings=wandb.Settings(silent=True)) as tracked:
        for event in EVENTS:
            trackers.wandb(tracked)(event)
        # The values of a step are taken when the next one begins.
        tracked.log({}, step=2)
        summary = dict(tracked.summary)
    assert summary["clip/loss"] == 2.0 and summary["clip/names/{}/top1"] == 0.5


@has("mlflow")
def test_mlflow(tmp_path, monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    with mlflow.start_run() as tracked:
        for event in EVENTS:
            trackers.mlflow()(event)
    logged = mlflow.get_run(tracked.info.run_id).data.metrics
    assert logged["clip/loss"] == 2.0 and logged["clip/names/__/top1"] == 0.5


@has("trackio")
def test_trackio(tmp_path):
    """In a process of its own, since it takes its folder from the environment as it is imported.

    trackio 0.43 does not allow the newest Pillow, so that CI does not install it.
    """
    script = f"""
import trackio
from trackio.sqlite_storage import SQLiteStorage
from twinlens import trackers

trackio.init(project="t", name="r")
for event in {EVENTS!r}:
    trackers.trackio()(event)
trackio.finish()
print([(log["step"], [name for name in log if "/" in name]) for log in SQLiteStorage.get_logs("t", "r")])
"""
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    logged = eval(done.stdout.splitlines()[-1])
    assert [step for step, _ in logged] == [1, 1] and logged[1][1] == ["clip/names/{}/top1"], done.stderr
