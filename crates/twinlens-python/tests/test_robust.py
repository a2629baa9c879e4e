"""Wrong types, deleted folders, threads and forks: an exception at worst, never a panic or a crash."""

import importlib.util
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import draw, equal, options

import twinlens
from twinlens import _twinlens

numpy = pytest.importorskip("numpy")

STRANGE = [
    None, True, 0, 3, -1, 2**63, 2**70, 3.5, float("nan"), float("inf"), "", "x", "x\0y", "\ud800", "hf://", "{}",
    (0, 0), (5, 0), (0, 3), "*" * 40, b"", b"\xff\xd8\xff", [], [None], ["x"], [b"x"], (1, 2), ((1, 2, 3), (0, 1)), {},
    {"a": None}, {1: 2}, {"name": "n", "stages": {}}, object(), pathlib.Path("nowhere"), lambda *_: 1 / 0, range(3),
    numpy.zeros(3), numpy.zeros((2, 2, 3), numpy.uint8), numpy.zeros((0, 0, 3), numpy.uint8), memoryview(b"x"),
]  # fmt: skip


def calls(run, clip, place):
    """Every function and method, with arguments that it would take."""
    native = [
        (_twinlens.run, [{"file": None, "name": "n", "text": "x"}, {}, None]),
        (_twinlens.check, [{"file": None, "name": "n", "text": "x"}, []]),
        (_twinlens.plan, [{"file": "x", "name": None, "text": None}, {}]),
        (_twinlens.status, [run.dir]),
        (_twinlens.report, [run.dir, []]),
        (_twinlens.evaluation, [["x"], None, ["{}"]]),
        (_twinlens.model_folder, [f"{run.dir}/clip"]),
        (_twinlens.thumbnail, [b"x"]),
        (_twinlens.pixels, [[b"x"], 8, None, None]),
        (_twinlens.sql, [run.dir, "select 1", []]),
        (_twinlens.scan, [run.dir, "images", None, None, 3]),
        (_twinlens.tables, [run.dir]),
        (_twinlens.Model.load, ["x"]),
        (_twinlens.PairSet.open, ["{}"]),
        (_twinlens.PairSet.open(twinlens.Pairs(**options(run))._json()).batches, [(0, 1), (0, 1)]),
        (run.sql("select 1 as x")._stream().array, ["x"]),
        (run.sql("select 1 as x")._stream().__arrow_c_stream__, [None]),
    ]
    ours = [
        (twinlens.run, [place / "shapes.toml"]),
        (twinlens.check, [place / "shapes.toml"]),
        (twinlens.plan, [place / "shapes.toml"]),
        (twinlens.open, [run.dir]),
        (twinlens.Clip.load, ["x"]),
        (twinlens.Pairs, [f"{run.dir}/images", f"{run.dir}/clip", 8, 4, 1]),
        (twinlens.evaluate, [clip, ["x"], ["{}"]]),
        (twinlens.stage, [{"a": "int32"}]),
        (run.sql, ["select 1"]),
        (run.__getitem__, ["images"]),
        (run.sample, ["images", 3]),
        (run.report, [{}]),
        (run["images"].to_numpy, ["width"]),
        (clip.encode_images, [[b"x"]]),
        (clip.encode_texts, [["x"]]),
        (clip.zero_shot, [[b"x"], ["x"], ["{}"]]),
        (clip.save, [place / "saved", "open-clip"]),
    ]
    return native + ours


def test_wrong_types_raise(run, place, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    clip = twinlens.Clip.load(f"{run.dir}/clip")
    rng = random.Random(3)
    functions = calls(run, clip, place)
    raised = set()
    for number in range(3000):
        function, arguments = functions[number % len(functions)]
        arguments = list(arguments)
        for _ in range(rng.choice([1, 1, 2])):
            arguments[rng.randrange(len(arguments))] = rng.choice(STRANGE)
        try:
            result = function(*arguments)
            if isinstance(result, (twinlens.Rows, twinlens.Pairs)):
                next(iter(result), None)
        # A panic of pyo3 is no `Exception`, and would end the test.
        except Exception as error:
            assert not isinstance(error, twinlens.InternalError), (function, arguments, error)
            raised.add(type(error).__name__)
    assert {"Error", "TypeError", "ValueError"} <= raised, raised


def test_folders_that_are_deleted(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run.dir, copy)
    opened = twinlens.open(copy)
    table, rows = opened["images"], opened.sql("select * from images")
    pairs = twinlens.Pairs(**options(run) | {"data": f"{copy}/images"})
    clip = twinlens.Clip.load(f"{copy}/clip")
    shutil.rmtree(copy)
    for call in [
        opened.status, opened.report, opened.tables, lambda: opened.sql("select 1"), lambda: opened["images"],
        lambda: len(table), lambda: opened.sample("images"), lambda: twinlens.Clip.load(f"{copy}/clip"),
        lambda: twinlens.Pairs(**options(run) | {"data": f"{copy}/images"}),
    ]:  # fmt: skip
        with pytest.raises(twinlens.Error):
            call()
    # What was opened has its files still open, or says what is missing.
    for iterable in [table, rows, pairs]:
        try:
            list(iterable)
        except twinlens.Error as error:
            assert not isinstance(error, twinlens.InternalError) and str(error)
    assert clip.encode_texts(["a"]).shape == (1, 16)


def test_threads_share_what_is_open(run, expected):
    clip = twinlens.Clip.load(f"{run.dir}/clip")
    texts = clip.encode_texts(["a red circle"])
    pairs = twinlens.Pairs(**options(run))
    failed = []

    def work(number):
        try:
            for _ in range(5):
                assert (clip.encode_texts(["a red circle"]) == texts).all()
                assert len(run.sql(f"select {number} as n, caption from images").to_pylist()) == 60
                own = twinlens.Pairs(**options(run))
                assert equal([tuple(map(numpy.array, batch)) for batch in own], expected[:5])
                len(run["images"].scan(where=f"width > {60 + number}"))
                # One position for all: each batch is given to one of them.
                next(iter(pairs), None)
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed


FORKS = """
import os, signal, sys
import pyarrow
import twinlens

run = twinlens.open(sys.argv[1])
clip = twinlens.Clip.load(f"{run.dir}/clip")
pairs = twinlens.Pairs(f"{run.dir}/images", f"{run.dir}/clip", 32, 12, 5, context=24)
batches, rows = iter(pairs), iter(run.sql("select * from images"))
first, row, stream = next(batches), next(rows), run.sql("select 1 as x")
reader = pyarrow.RecordBatchReader.from_stream(run.sql("select * from images"))
for number in range(6):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        problems = []
        for call in [
            lambda: clip.encode_texts(["a"]), lambda: list(rows), lambda: stream.__arrow_c_stream__(), reader.read_all
        ]:
            try:
                call()
            except (ValueError, pyarrow.ArrowException) as error:
                problems.append(str(error))
        assert len(problems) == 4 and all("forked" in problem for problem in problems), problems
        # What is opened here works, and the end of what the other process has open deletes nothing.
        assert len(list(pairs)) == 4 and run.sql("select 1 as x").to_pylist() == [{"x": 1}]
        assert twinlens.Clip.load(f"{run.dir}/clip").encode_texts(["a"]).shape == (1, 16)
        del clip, rows, stream, batches, reader
        # With all that an interpreter does at its end.
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
assert len(list(batches)) == 4 and len(list(rows)) == 59 and reader.read_all().num_rows == 60
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="pyarrow is not installed")
def test_forks_with_everything_open(run):
    done = subprocess.run([sys.executable, "-c", FORKS, run.dir], capture_output=True, text=True, timeout=300)
    assert done.stdout == "done\n", done.stderr


def test_watch_follows_a_run(place, tmp_path):
    """A training in another process, until that is interrupted."""
    script = f"""
import twinlens
try:
    twinlens.run({str(place / "shapes.toml")!r}, dir={str(tmp_path / "run")!r}, set={{"clip.steps": 1000000}},
                 progress=False)
except KeyboardInterrupt:
    pass
"""
    child = subprocess.Popen([sys.executable, "-c", script])
    while not (tmp_path / "run" / ".live" / "run.json").exists():
        assert child.poll() is None
    watch = f"import twinlens; twinlens.open({str(tmp_path / 'run')!r}).watch(0.2)"
    watching = subprocess.Popen([sys.executable, "-c", watch], stdout=subprocess.PIPE, text=True)
    assert any("clip: " in line for line in watching.stdout)
    child.send_signal(signal.SIGINT)
    assert child.wait(60) == 0
    last = watching.communicate(timeout=60)[0]
    assert watching.returncode == 0 and "images  60 rows  1 rejects  complete" in last, last


WAITING = """
import sys, time, twinlens
run = twinlens.open(sys.argv[1])
# Its first row comes only after all others.
rows = run.sql(
    "select count(*) as n from (select unnest(range(1000000)) as a), (select unnest(range(1000000)) as b) where a + b < 0")
try:
    print("waiting", flush=True)
    list(rows)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_ends_a_query(run):
    child = subprocess.Popen([sys.executable, "-c", WAITING, run.dir], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "waiting\n"
        # It may still be about to wait.
        time.sleep(0.5)
        child.send_signal(signal.SIGINT)
        assert child.communicate(timeout=60)[0] == "interrupted\n"
        assert child.returncode == 0
    finally:
        child.kill()


PHOTOS = """
name = "photos"
max_reject_share = 1
{isolate}

[stages.photos]
kind = "folder"
folders = ["pictures"]
"""
RUN = "import sys, twinlens; twinlens.run(sys.argv[1], dir=sys.argv[2], progress=False)"


@pytest.mark.parametrize("isolate", [False, True])
def test_an_image_that_kills_a_process_is_one_reject(tmp_path, isolate):
    """Libraries without optimisation abort at an image that holds TWINLENS_ABORT_ON."""
    (tmp_path / "pictures").mkdir()
    for number in range(5):
        draw(tmp_path / "pictures" / f"{number}.png", "red", "circle", number)
        (tmp_path / "pictures" / f"{number}.txt").write_text(f"picture {number}")
    with open(tmp_path / "pictures" / "3.png", "ab") as file:
        file.write(b"POISON")
    pipeline, directory = tmp_path / "photos.toml", tmp_path / "run"
    pipeline.write_text(PHOTOS.format(isolate="isolate = true" if isolate else ""))
    process = [sys.executable, "-c", RUN, pipeline, directory]
    environment = os.environ | {"TWINLENS_ABORT_ON": "POISON"}
    runs = [subprocess.run(process, env=environment, cwd=tmp_path).returncode for _ in range(1 if isolate else 2)]
    assert runs == ([0] if isolate else [-signal.SIGABRT, 0])
    rejects = twinlens.open(directory)["photos.rejects"].to_pylist()
    assert [(one["reject_code"], "3.png" in str(one)) for one in rejects] == [("killed_the_process", True)]
    assert len(twinlens.open(directory)["photos"].to_pylist()) == 4
