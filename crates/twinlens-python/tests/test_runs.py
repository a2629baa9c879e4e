"""Runs, plans, errors, events, Ctrl-C."""

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

import twinlens

ONE = {"name": "one", "stages": {"one": {"kind": "sql", "query": "select 1 as n"}}}


def test_a_run_is_what_its_directory_holds(run, place):
    assert run.dir == str(place / "run")
    status = run.status()
    images = next(one for one in status["datasets"] if one["dataset"] == "images")
    assert (images["kept"], images["rejected"], images["complete"], images["balance"]) == (60, 1, True, "ok")
    assert "images  60 rows  1 rejects  complete" in repr(status)
    assert {stage["decision"] for stage in run.plan()} == {"reuse"}
    assert "<td>reuse: 60 rows</td>" in run.plan()._repr_html_()
    assert "<td>images</td>" in run._repr_html_()
    again = twinlens.open(place / "run")
    assert again.status() == status
    with pytest.raises(ValueError, match="twinlens.plan"):
        again.plan()


def test_pipelines_are_files_texts_and_dicts(tmp_path):
    text = 'name = "one"\n[stages.one]\nkind = "sql"\nquery = "select 1 as n"\n'
    (tmp_path / "p.toml").write_text(text)
    for number, pipeline in enumerate([str(tmp_path / "p.toml"), tmp_path / "p.toml", text, ONE]):
        run = twinlens.run(pipeline, dir=tmp_path / str(number), progress=False)
        assert run["one"].to_pylist() == [{"n": 1}]
    with pytest.raises(TypeError, match="not int"):
        twinlens.run(3)


def test_values_of_python_are_values_of_toml(tmp_path):
    texts = ['quotes " and \\ and \n line', "ünï©ode 😀", "\x7f\x01", ""]
    for text in texts:
        literal = text.replace("'", "''")
        stage = {"kind": "sql", "query": f"select '{literal}' as t, true as yes, 2 as n, 0.5 as x"}
        pipeline = {"name": "t", "seed": 7, "stages": {"a_b": stage}}
        run = twinlens.run(pipeline, dir=tmp_path / str(texts.index(text)), progress=False)
        assert run["a_b"].to_pylist() == [{"t": text, "yes": True, "n": 2, "x": 0.5}]
    with pytest.raises(twinlens.Error, match="`stages.one.query` is None: leave the option out"):
        twinlens.check({"name": "t", "stages": {"one": {"kind": "sql", "query": None}}})


def test_settings(tmp_path, place):
    pipeline = {
        "name": "t",
        "vars": {"word": "a"},
        "stages": {"one": {"kind": "sql", "query": "select '${word}' as w"}},
    }
    run = twinlens.run(pipeline, dir=tmp_path / "a", set={"word": "b"}, progress=False)
    assert run["one"].to_pylist() == [{"w": "b"}]
    query = {"one.query": "select 'c' as w", "seed": 5, "word": "d"}
    with pytest.raises(twinlens.Error, match="does not use"):
        twinlens.plan(pipeline, set=query)
    del query["word"]
    assert twinlens.plan(pipeline, dir=tmp_path / "a", set=query)[0]["decision"] == "run"
    until = twinlens.plan(place / "shapes.toml", dir=tmp_path / "b", until="words")
    assert [stage["stage"] for stage in until] == ["images", "words"]


def test_errors_know_their_place(place):
    text = 'name = "one"\n[stages.one]\nkind = "sqll"\nquery = 3\n[stages.two]\nkind = "folder"\n'
    with pytest.raises(twinlens.Error) as caught:
        twinlens.run(text)
    error = caught.value
    assert (error.file, error.line, error.column, error.hint) == ("<text>", 3, 8, "did you mean `sql`?")
    assert [place.line for place in error.places] == [3, 5]
    assert '3 | kind = "sqll"\n  |        ^^^^^^' in str(error)
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.places) == (str(error), error.places)
    for wrong, message in [
        (lambda: twinlens.open(place / "nowhere"), "does not exist"),
        (lambda: twinlens.open(place), "is not a run directory"),
        (lambda: twinlens.run(place / "nowhere.toml"), "cannot read the pipeline file"),
        (lambda: twinlens.run(place / "shapes.toml", dir=place / "other", until="nowhere"), "nowhere"),
    ]:
        with pytest.raises(twinlens.Error, match=message) as caught:
            wrong()
        assert caught.value.line is None


def test_failed_tests_and_rejects_are_errors(place, tmp_path):
    failing = ONE | {"tests": [{"that": "n is 2", "sql": "select * from one where n <> 2", "expect": "empty"}]}
    with pytest.raises(twinlens.Error, match='test "n is 2" failed'):
        twinlens.run(failing, dir=tmp_path / "a", progress=False)
    stage = {"kind": "folder", "folders": [place / "pictures"]}
    rejecting = {"name": "r", "max_reject_share": 0.001, "stages": {"images": stage}}
    with pytest.raises(twinlens.RejectsError, match="more rows were rejected"):
        twinlens.run(rejecting, dir=tmp_path / "b", progress=False)


def test_events_are_told_in_this_thread(tmp_path):
    events, threads = [], set()

    def on_event(event):
        events.append(event)
        threads.add(threading.get_ident())

    twinlens.run(ONE, dir=tmp_path / "a", progress=False, on_event=on_event)
    assert [event["event"] for event in events] == ["stage_started", "split_committed", "stage_finished"]
    assert threads == {threading.get_ident()}
    events.clear()
    twinlens.run(ONE, dir=tmp_path / "a", progress=False, on_event=on_event)
    assert events == [{"event": "stage_reused", "stage": "one", "rows": 1}]

    def failing(event):
        raise LookupError("no tracker")

    with pytest.raises(LookupError, match="no tracker"):
        twinlens.run(ONE, dir=tmp_path / "b", progress=False, on_event=failing)


def test_ctrl_c_commits_and_the_run_resumes(place, tmp_path):
    """A training of very many steps is interrupted, by a real signal."""
    script = f"""
        import twinlens
        def on_event(event):
            if event["event"] == "train_step" and event["step"] == 3:
                print("training", flush=True)
        try:
            twinlens.run({str(place / "shapes.toml")!r}, dir={str(tmp_path / "run")!r},
                         set={{"clip.steps": 1000000}}, until="clip", progress=False, on_event=on_event)
        except KeyboardInterrupt:
            print("interrupted")
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "training\n"
    os.kill(child.pid, signal.SIGINT)
    assert child.communicate(timeout=60)[0] == "interrupted\n"
    run = twinlens.open(tmp_path / "run")
    state = {one["dataset"]: one["complete"] for one in run.status()["datasets"]}
    assert state == {"images": True, "words": True, "clip": False}
    plan = twinlens.plan(place / "shapes.toml", dir=run.dir, until="clip", set={"clip.steps": 1000000})
    assert [one["decision"] for one in plan] == ["reuse", "reuse", "resume"]


def test_the_command_is_in_the_package(place):
    command = [sys.executable, "-m", "twinlens"]
    shown = subprocess.run([*command, "status", str(place / "run")], capture_output=True, text=True)
    assert shown.returncode == 0 and "pipeline shapes" in shown.stdout, shown.stderr
    version = subprocess.run([*command, "--version"], capture_output=True, text=True).stdout
    assert version == f"twinlens {twinlens.__version__}\n"
    wrong = subprocess.run([*command, "runn"], capture_output=True, text=True)
    assert wrong.returncode == 1 and "similar subcommand" in wrong.stderr, wrong.stderr


def test_the_report_is_a_page(run, tmp_path):
    report = run.report()
    assert report.html.startswith("<!DOCTYPE html>") and "srcdoc=" in report._repr_html_()
    report.save(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == report.html


def test_the_import_is_quick():
    """The best of three, of Python's own start and of the module."""
    code = "import time; t = time.perf_counter(); import twinlens; print(time.perf_counter() - t)"
    times = [float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(3)]
    assert min(times) < 0.2, times
