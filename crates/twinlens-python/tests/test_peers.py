"""Shards and exports in the libraries that people read them with."""

import importlib.util
import subprocess
import sys

import pytest
from conftest import arrays, options

import twinlens


def has(name):
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")


@has("datasets")
def test_datasets_reads_shards(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from datasets import load_dataset

    files = f"{run.dir}/images/data/*.parquet"
    pairs = load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))
    assert len(pairs) == 60
    assert pairs[0]["image"].size == (pairs[0]["width"], pairs[0]["height"])
    assert pairs["caption"][:] == [row["caption"] for row in run["images"].scan(columns=["caption"])]


@has("webdataset")
def test_webdataset_reads_exports(run, tmp_path):
    import webdataset

    out = tmp_path / "out"
    command = [sys.executable, "-m", "twinlens", "export", f"{run.dir}/images", str(out), "--to", "webdataset"]
    subprocess.run(command, check=True, capture_output=True)
    shards = sorted(map(str, out.glob("*.tar")))
    pairs = webdataset.WebDataset(shards, shardshuffle=False).decode("pil").to_tuple("png;jpg;webp", "txt")
    captions = [row["caption"] for row in run["images"].scan(columns=["caption"])]
    found = list(pairs)
    assert [caption for _, caption in found] == captions and found[0][0].size[1] == 60
    # The same pairs by this program's own loader.
    batches = arrays(twinlens.Pairs(**options(run) | {"data": f"{out}/*.tar"}))
    expected = arrays(twinlens.Pairs(**options(run)))
    ids = lambda batches: sorted(tuple(row) for _, ids in batches for row in ids)  # noqa: E731
    assert ids(batches) == ids(expected)
