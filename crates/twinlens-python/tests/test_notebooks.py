"""The notebooks run from their first cell to the last."""

import importlib.util
import pathlib
import re

import pytest
from conftest import COLOURS, SHAPES, draw

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

FOLDER = pathlib.Path(__file__).parent.parent / "notebooks"


def execute(name, place, parameters):
    """Runs a notebook in a folder, with other values in its cell of parameters."""
    notebook = nbformat.read(FOLDER / name, as_version=4)
    nbformat.validate(notebook)
    [first] = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    names = set(re.findall(r"^(\w+) = ", first.source, re.MULTILINE))
    assert names >= parameters.keys()
    first.source += "".join(f"\n{name} = {value!r}" for name, value in parameters.items())
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(place)}}).execute()
    return notebook


def shown(notebook, kind):
    """What cells show, in one format."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output["data"][kind] for output in outputs if kind in output.get("data", {})]


def test_notebooks_have_no_outputs():
    for path in FOLDER.glob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells), path


def test_a_run_is_watched_in_a_cell(run, tmp_path):
    """What is shown changes in its place."""
    code = f"""
import twinlens
run = twinlens.open({run.dir!r})
states = iter([{{"running": [{{"stage": "clip", "line": "step 3"}}], "updated": 9e99}}, None])
ask = run.status
run.status = lambda: twinlens.Status(ask() | {{"running": next(states)}})
run.watch(0.1)
"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(tmp_path)}}).execute()
    [html] = shown(notebook, "text/html")
    assert "<td>images</td>" in html and "step 3" not in html


def test_quickstart_and_its_ten_questions(tmp_path):
    pipeline = FOLDER.parent.parent.parent / "pipelines" / "quickstart.toml"
    notebook = execute("quickstart.ipynb", tmp_path, {"pipeline": str(pipeline), "epochs": 1})
    tables = [html for html in shown(notebook, "text/html") if html.startswith("<table>")]
    # Each question has an answer of at least one row; the plan comes last.
    assert len(tables) == 11 and all(html.count("<tr>") > 1 for html in tables)
    assert "fused into" in tables[-1] and "reuse" in tables[-1] and ">run" in tables[-1]
    pictures, report = shown(notebook, "text/html")[1], shown(notebook, "text/html")[-2]
    assert pictures.count("<img") == 12 and "srcdoc" in report
    # The questions are those of the guide.
    guide = (FOLDER.parent.parent / "twinlens" / "docs" / "sql.md").read_text()
    queries = re.findall(r"```sql\n(.*?)\n```", guide.split("## Ten questions\n")[1].split("\n## ")[0], re.DOTALL)
    queries = queries or re.findall(r"```sql\n(.*?)\n```", guide.split("## Ten questions\n")[1], re.DOTALL)[:10]
    asked = [cell.source for cell in notebook.cells if cell.source.startswith("run.sql(")]
    assert asked == [f'run.sql("""\n{query}\n""")' for query in queries]


def test_own_folder(tmp_path):
    for number in range(80):
        colour, shape = COLOURS[number % 5], SHAPES[number // 5 % 2]
        folder = tmp_path / "photos" / f"{colour} {shape}"
        folder.mkdir(parents=True, exist_ok=True)
        draw(folder / f"{number}.png", colour, shape, number)
    notebook = execute("own_folder.ipynb", tmp_path, {"steps": 10})
    leaderboard = next(html for html in shown(notebook, "text/html") if "chance" in html)
    assert leaderboard.count("<tr>") > 2
    similarity = shown(notebook, "text/plain")[-1]
    assert similarity.startswith("array([[") and "float32" in similarity


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
def test_pytorch(run, tmp_path):
    parameters = {"data": f"{run.dir}/images", "tokenizer": f"{run.dir}/clip", "vocabulary": 300, "steps": 12}
    notebook = execute("pytorch.ipynb", tmp_path, parameters)
    assert shown(notebook, "text/plain")[-1] == "True"
