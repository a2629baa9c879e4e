"""Batches of pairs: the same for any ranks and workers, and exact when they resume."""

import itertools
import json
import multiprocessing
import pickle
import subprocess
import sys

import pytest
from conftest import BATCH, arrays, equal, options

import twinlens

numpy = pytest.importorskip("numpy")


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


def both(halves):
    """The batches of ranks, put together."""
    return [tuple(map(numpy.concatenate, zip(*parts))) for parts in zip(*map(arrays, halves))]


def test_positions_are_exact(run, expected):
    for taken in range(8):
        pairs = twinlens.Pairs(**options(run))
        batches = itertools.chain(pairs, pairs)
        assert equal(arrays(itertools.islice(batches, taken)), expected[:taken])
        state = pickle.loads(pickle.dumps(pairs.state_dict()))
        assert state["step"] == taken
        # Another number of ranks continues with the same batches.
        halves = [twinlens.Pairs(**options(run, rank=rank, world_size=2)) for rank in range(2)]
        for half in halves:
            half.load_state_dict(json.loads(json.dumps(state)))
        rest = both(halves)
        # After the last batch, the end of the epoch is still to come.
        assert equal(rest, expected[taken : 5 if taken <= 5 else 10])
        if taken <= 5:
            assert equal(both(halves), expected[5:])
    other = twinlens.Pairs(**options(run, seed=6))
    with pytest.raises(ValueError, match="seed differ"):
        other.load_state_dict(state)
    other = twinlens.Pairs(**options(run) | {"data": 2 * [f"{run.dir}/images"]})
    with pytest.raises(ValueError, match="data differ"):
        other.load_state_dict(state)


def test_a_cache_changes_no_batch(run, expected):
    pairs = twinlens.Pairs(**options(run, cache_bytes=64 << 20))
    assert equal(arrays(pairs) + arrays(pairs), expected)
    pairs.set_epoch(0)
    assert equal(arrays(itertools.islice(pairs, 3)), expected[:3])
    # An iteration that is left, and one that begins elsewhere.
    pairs.set_epoch(1)
    assert equal(arrays(pairs), expected[5:])


def test_epochs_are_set(run, expected):
    pairs = twinlens.Pairs(**options(run))
    pairs.set_epoch(1)
    assert equal(arrays(pairs), expected[5:])
    # Its end is the beginning of the next, and it may be given again.
    assert (pairs.state_dict()["epoch"], pairs.state_dict()["step"]) == (2, 10)
    pairs.set_epoch(1)
    first = arrays(itertools.islice(pairs, 2))
    # A loop that resumes sets the epoch in which it is.
    pairs.set_epoch(1)
    assert equal(first + arrays(pairs), expected[5:])
    pairs.set_epoch(0)
    assert equal(arrays(pairs) + arrays(pairs), expected)


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
        ({"size": 0}, twinlens.Error, "size"),
        ({"size": -1}, ValueError, "invalid value"),
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
