"""Batches of pairs: the same for any ranks and workers, and exact when they resume."""

import itertools
import multiprocessing
import pickle
import subprocess
import sys

import pytest

import twinlens

numpy = pytest.importorskip("numpy")

BATCH = 12


def options(run, **more):
    given = {"size": 32, "batch_size": BATCH, "seed": 5, "context": 24, "threads": 2}
    return dict(data=f"{run.dir}/images", tokenizer=f"{run.dir}/clip", **(given | more))


def arrays(batches):
    return [(numpy.array(pixels), numpy.array(ids)) for pixels, ids in batches]


def equal(a, b):
    return len(a) == len(b) and all((x == y).all() for x, y in zip(itertools.chain(*a), itertools.chain(*b)))


@pytest.fixture(scope="module")
def expected(run):
    """The batches of two epochs."""
    pairs = twinlens.Pairs(**options(run))
    return arrays(pairs) + arrays(pairs)


def test_an_epoch_has_every_pair(run, expected):
    pairs = twinlens.Pairs(**options(run))
    assert (pairs.pairs, len(pairs)) == (60, 5)
    for pixels, ids in expected:
        assert pixels.shape == (BATCH, 3, 32, 32) and pixels.dtype == numpy.float32
        assert ids.shape == (BATCH, 24) and ids.dtype == numpy.int64
    captions = {tuple(row) for _, ids in expected[:5] for row in ids}
    assert len(captions) == 60
    assert not equal(expected[:5], expected[5:])
    # As the program's own tokenizer makes them, and with the other seed in another order.
    other = arrays(twinlens.Pairs(**options(run, seed=6)))
    assert {tuple(row) for _, ids in other for row in ids} == captions and not equal(other, expected[:5])


def test_data_may_be_tables_files_and_patterns(run, expected):
    table = run["images"]
    for data in [table, f"{run.dir}/images/data/*.parquet", [table]]:
        assert equal(arrays(twinlens.Pairs(**options(run) | {"data": data})), expected[:5])
    whole = arrays(twinlens.Pairs(**options(run, crop=None)))
    assert {tuple(row) for _, ids in whole for row in ids} == {tuple(row) for _, ids in expected[:5] for row in ids}
    with pytest.raises(ValueError, match="whole table"):
        twinlens.Pairs(**options(run) | {"data": table.scan(limit=3)})


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_have_parts_of_the_same_batches(run, expected, world_size):
    ranks = [
        arrays(twinlens.Pairs(**options(run, rank=rank, world_size=world_size))) for rank in range(world_size)
    ]
    whole = [tuple(map(numpy.concatenate, zip(*parts))) for parts in zip(*ranks)]
    assert equal(whole, expected[:5])


def test_positions_are_exact(run, expected):
    for taken in range(7):
        pairs = twinlens.Pairs(**options(run))
        batches = itertools.chain(pairs, pairs)
        assert equal(arrays(itertools.islice(batches, taken)), expected[:taken])
        state = pickle.loads(pickle.dumps(pairs.state_dict()))
        assert state["step"] == taken
        # Another number of ranks continues with the same batches.
        halves = [twinlens.Pairs(**options(run, rank=rank, world_size=2)) for rank in range(2)]
        for half in halves:
            half.load_state_dict(state)
        rest = [tuple(map(numpy.concatenate, zip(*parts))) for parts in zip(*map(arrays, halves))]
        assert equal(rest, expected[taken : taken // 5 * 5 + 5])
    pairs.set_epoch(1)
    assert equal(arrays(pairs), expected[5:])
    other = twinlens.Pairs(**options(run, seed=6))
    with pytest.raises(ValueError, match="seed differ"):
        other.load_state_dict(state)


def test_a_killed_process_resumes_exactly(run, expected, tmp_path):
    """The process saves its state after each batch, and is killed after some."""
    script = f"""
import json, os, sys, numpy, twinlens
pairs = twinlens.Pairs(**{options(run)!r})
path = {str(tmp_path / "state.json")!r}
if os.path.exists(path):
    pairs.load_state_dict(json.load(open(path)))
for number, (pixels, ids) in enumerate(pairs):
    numpy.savez(f"{tmp_path}/{{pairs.state_dict()['step'] - 1}}.npz", pixels=pixels, ids=ids)
    json.dump(pairs.state_dict(), open(path + ".new", "w"))
    os.replace(path + ".new", path)
    if number == 1:
        os.kill(os.getpid(), 9)
"""
    for _ in range(3):
        subprocess.run([sys.executable, "-c", script])
    saved = [numpy.load(tmp_path / f"{step}.npz") for step in range(5)]
    assert equal([(one["pixels"], one["ids"]) for one in saved], expected[:5])


def test_wrong_options_are_refused(run):
    for wrong, error, message in [
        ({"batch_size": 10, "world_size": 4}, ValueError, "multiple of world_size"),
        ({"rank": 1}, ValueError, "not below"),
        ({"crop": 2.0}, ValueError, "part of the area"),
        ({"batch_size": 61}, twinlens.Error, "fewer than a batch"),
        ({"caption": "captoin"}, twinlens.Error, "no column `captoin`.*did you mean"),
        ({"augment": {"hues": 1}}, ValueError, "unknown field `hues`"),
        ({"size": 0}, ValueError, "size"),
        ({"data": "nowhere/*.parquet"}, twinlens.Error, "nowhere"),
        ({"tokenizer": "nowhere"}, twinlens.Error, "nowhere"),
    ]:
        with pytest.raises(error, match=message):
            twinlens.Pairs(**options(run) | wrong)


def _forked(pairs, results):
    results.put(arrays(pairs))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_open_their_own(run, expected, method):
    pairs = twinlens.Pairs(**options(run))
    context = multiprocessing.get_context(method)
    results = context.Queue()
    child = context.Process(target=_forked, args=(pairs, results))
    child.start()
    assert equal(results.get(timeout=60), expected[:5])
    child.join()


# PyTorch is optional.

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


def test_a_training_resumes_in_the_same_weights(run):
    """A linear model of two towers over two epochs, and with a new process's state in between."""

    def train(pairs, model, optimizer, steps):
        for pixels, ids in itertools.islice(pairs, steps):
            image = torch.nn.functional.normalize(model["image"](pixels.flatten(1)))
            text = torch.nn.functional.normalize(model["text"](ids.float() / 300))
            loss = torch.nn.functional.cross_entropy(image @ text.T, torch.arange(len(ids)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def fresh():
        torch.manual_seed(3)
        model = torch.nn.ModuleDict({"image": torch.nn.Linear(3 * 32 * 32, 8), "text": torch.nn.Linear(24, 8)})
        return Pairs(**options(run)), model, torch.optim.SGD(model.parameters(), 0.1)

    pairs, model, optimizer = fresh()
    train(pairs, model, optimizer, 5)
    first, half, partial = fresh()
    train(first, half, partial, 2)
    state = first.state_dict()
    second = Pairs(**options(run))
    second.load_state_dict(state)
    train(second, half, partial, 3)
    for one, other in zip(model.parameters(), half.parameters()):
        assert torch.equal(one, other)


@pytest.mark.parametrize("workers", [0, 2])
def test_images_for_evaluation(run, workers):
    table = run["images"].scan(columns=["caption", "image"])
    images = Images(table, size=32, batch_size=7)
    assert len(images) == 9
    batches = list(torch.utils.data.DataLoader(images, batch_size=None, num_workers=workers))
    assert [len(rows["caption"]) for _, rows in batches] == 8 * [7] + [4]
    pixels = torch.cat([pixels for pixels, _ in batches])
    assert pixels.shape == (60, 3, 32, 32) and pixels.dtype == torch.float32
    captions = [caption for _, rows in batches for caption in rows["caption"]]
    assert captions == [row["caption"] for row in table]
    with pytest.raises(ValueError, match="no column `picture`"):
        Images(table, image="picture")
