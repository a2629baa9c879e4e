"""Batches and images in PyTorch, with its workers, torchdata and open_clip."""

import importlib.util
import itertools
import json
import os
import pathlib
import pickle
import subprocess
import sys

import pytest
from conftest import equal, options

import twinlens

numpy = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")
from twinlens.torch import Images, Pairs  # noqa: E402


def tensors(batches):
    return [(pixels.numpy().copy(), ids.numpy().copy()) for pixels, ids in batches]


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_workers_give_the_same_batches(run, expected, workers):
    for taken in [0, 3]:
        loader = Pairs(**options(run)).loader(num_workers=workers)
        assert len(loader) == 5
        batches = iter(loader)
        assert equal(tensors(itertools.islice(batches, taken)), expected[:taken])
        state = loader.state_dict()
        del batches
        # Any other number of workers continues.
        other = Pairs(**options(run)).loader(num_workers=(workers + 1) % 3)
        other.load_state_dict(state)
        assert equal(tensors(other), expected[taken:5])
        assert equal(tensors(other), expected[5:])


KILLED = """
import json, os, sys, numpy
import twinlens.torch

options, workers, world_size, steps, folder = json.loads(sys.argv[1])
path = f"{folder}/state.json"

def one_batch(step):
    # The position is that of the first rank: all have the same.
    for rank in range(world_size):
        pairs = twinlens.torch.Pairs(**options, rank=rank, world_size=world_size)
        loader = pairs.loader(workers)
        if step:
            loader.load_state_dict(json.load(open(path)))
        batch = next(iter(loader), None)
        if batch is None:
            # The end of the epoch.
            batch = next(iter(loader))
        numpy.savez(f"{folder}/{step}-{rank}.npz", pixels=batch[0].numpy(), ids=batch[1].numpy())
    json.dump(loader.state_dict(), open(path, "w"))
    os.kill(os.getpid(), 9)

for step in range(steps):
    # A child is quicker than a new process that imports PyTorch.
    child = os.fork()
    if child == 0:
        one_batch(step)
    assert os.waitpid(child, 0)[1] == 9
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("workers", [0, 1, 2, 4])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_process_that_is_killed_after_every_batch(run, expected, tmp_path, workers, world_size):
    steps = 7
    arguments = json.dumps([options(run), workers, world_size, steps, str(tmp_path)])
    subprocess.run([sys.executable, "-c", KILLED, arguments], check=True, timeout=300)

    def whole(step):
        parts = [numpy.load(tmp_path / f"{step}-{rank}.npz") for rank in range(world_size)]
        return tuple(numpy.concatenate([part[name] for part in parts]) for name in ("pixels", "ids"))

    assert equal([whole(step) for step in range(steps)], expected[:steps])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_plain_loader(run, expected, method):
    """PyTorch's own loader, with which the epoch is set."""
    pairs = Pairs(**options(run))
    loader = torch.utils.data.DataLoader(
        pairs, batch_size=None, num_workers=2, multiprocessing_context=method, persistent_workers=True
    )
    for epoch in range(2):
        pairs.set_epoch(epoch)
        assert equal(tensors(loader), expected[5 * epoch :][:5])


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_torchdata_keeps_the_position(run, expected, workers):
    stateful = pytest.importorskip("torchdata.stateful_dataloader")

    def loader(epoch):
        pairs = Pairs(**options(run))
        pairs.set_epoch(epoch)
        return pairs, stateful.StatefulDataLoader(pairs, batch_size=None, num_workers=workers)

    for taken in range(6):
        batches = loader(0)[1]
        assert equal(tensors(itertools.islice(batches, taken)), expected[:taken])
        state = pickle.loads(pickle.dumps(batches.state_dict()))
        pairs, resumed = loader(0)
        resumed.load_state_dict(state)
        assert equal(tensors(resumed), expected[taken:5]), taken
        pairs.set_epoch(1)
        assert equal(tensors(resumed), expected[5:])


def test_tensors_share_their_memory(run):
    pixels, ids = next(iter(Pairs(**options(run))))
    assert pixels.dtype == torch.float32 and ids.dtype == torch.int64 and pixels.is_contiguous()
    twinlens_array = next(pairs_stream(run))[0]
    array = numpy.asarray(twinlens_array)
    address = twinlens_array.__array_interface__["data"][0]
    assert torch.from_numpy(array).data_ptr() == array.ctypes.data == address
    # It lives as long as what is made of it.
    del twinlens_array
    array += 1
    assert numpy.isfinite(array).all()


def pairs_stream(run):
    return twinlens.Pairs(**options(run))._open().batches((0, 1), (0, 1))


@pytest.mark.skipif(importlib.util.find_spec("open_clip") is None, reason="open_clip is not installed")
def test_open_clip_resumes_in_the_same_weights(run, tmp_path, monkeypatch):
    """The example trains for 200 steps; another is killed some times on the way."""
    example = pathlib.Path(__file__).parent.parent / "examples" / "train_open_clip.py"
    command = [sys.executable, str(example), f"{run.dir}/images", f"{run.dir}/clip"]
    more = ["--batch-size", "20", "--size", "32", "--vocabulary", "300", "--context", "24"]

    def train(name):
        return [*command, str(tmp_path / name), *more]

    # The model is so small that several threads only wait for each other.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    subprocess.run(train("whole.pt"), check=True, stdout=subprocess.DEVNULL)
    for lines in [2, 4]:
        child = subprocess.Popen(train("killed.pt"), stdout=subprocess.PIPE, text=True)
        for _ in range(lines):
            assert child.stdout.readline().startswith("step ")
        child.kill()
        child.communicate()
    out = subprocess.run([*train("killed.pt"), "--workers", "2"], check=True, capture_output=True, text=True).stdout
    first = int(out.split(":")[0].removeprefix("step "))
    assert first > 100, out
    whole, killed = (torch.load(tmp_path / name) for name in ("whole.pt", "killed.pt"))
    assert whole["step"] == killed["step"] == 200 and whole["data"] == killed["data"]
    for name, weights in whole["model"].items():
        assert torch.equal(weights, killed["model"][name]), name


@pytest.mark.parametrize(("workers", "method"), [(0, None), (2, "fork"), (2, "spawn")])
def test_images_for_evaluation(run, workers, method):
    table = run["images"].scan(columns=["caption", "image"])
    images = Images(table, size=32, batch_size=7)
    assert len(images) == 9
    loader = torch.utils.data.DataLoader(
        images, batch_size=None, num_workers=workers, multiprocessing_context=method
    )
    batches = list(loader)
    assert [len(rows["caption"]) for _, rows in batches] == 8 * [7] + [4]
    pixels = torch.cat([pixels for pixels, _ in batches])
    assert pixels.shape == (60, 3, 32, 32) and pixels.dtype == torch.float32
    captions = [caption for _, rows in batches for caption in rows["caption"]]
    assert captions == [row["caption"] for row in table]
    with pytest.raises(ValueError, match="no column `picture`"):
        Images(table, image="picture")
