"""Rows as Arrow streams, frames, arrays and pictures."""

import importlib.util
import subprocess
import sys

import pytest

import twinlens

numpy = pytest.importorskip("numpy")
pyarrow = pytest.importorskip("pyarrow")


def needs(name):
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")


def test_rows_are_read_again_and_again(run):
    rows = run.sql("select colour, n from counts")
    assert rows.columns == ["colour", "n"] and rows.types["n"] == "int64"
    expected = [{"colour": colour, "n": 12} for colour in ["black", "blue", "green", "red", "yellow"]]
    assert rows.to_pylist() == expected == list(rows)
    table = rows.to_arrow()
    assert table.to_pylist() == expected == pyarrow.table(rows).to_pylist()
    # The first reader takes the stream; afterwards it is gone.
    stream = rows._stream()
    stream.__arrow_c_stream__()
    with pytest.raises(ValueError, match="have been read"):
        stream.__arrow_c_stream__()


#: SQL of a value, and what pyarrow makes of it.
VALUES = [
    ("null", "null"),
    ("true", "bool"),
    ("arrow_cast(-3, 'Int8')", "int8"),
    ("arrow_cast(3, 'UInt8')", "uint8"),
    ("arrow_cast(-3, 'Int16')", "int16"),
    ("arrow_cast(3, 'UInt16')", "uint16"),
    ("arrow_cast(-3, 'Int32')", "int32"),
    ("arrow_cast(3, 'UInt32')", "uint32"),
    ("-3", "int64"),
    ("arrow_cast(3, 'UInt64')", "uint64"),
    ("arrow_cast(0.5, 'Float16')", "halffloat"),
    ("arrow_cast(0.5, 'Float32')", "float"),
    ("0.5", "double"),
    ("'tëxt'", "string"),
    ("arrow_cast('tëxt', 'LargeUtf8')", "large_string"),
    ("arrow_cast('a text that is longer than a view', 'Utf8View')", "string_view"),
    ("arrow_cast('bytes', 'Binary')", "binary"),
    ("arrow_cast('bytes', 'LargeBinary')", "large_binary"),
    ("arrow_cast('bytes that are longer than a view', 'BinaryView')", "binary_view"),
    ("arrow_cast(arrow_cast('bytes', 'Binary'), 'FixedSizeBinary(5)')", "fixed_size_binary[5]"),
    ("arrow_cast(1.25, 'Decimal128(6, 3)')", "decimal128(6, 3)"),
    ("arrow_cast(1.25, 'Decimal256(60, 3)')", "decimal256(60, 3)"),
    ("date '2026-01-02'", "date32[day]"),
    ("arrow_cast('2026-01-02T00:00:00', 'Date64')", "date64[ms]"),
    ("arrow_cast('00:16:40', 'Time32(s)')", "time32[s]"),
    ("arrow_cast(1000, 'Time64(ns)')", "time64[ns]"),
    ("arrow_cast(1000, 'Duration(ms)')", "duration[ms]"),
    ("timestamp '2026-01-02 03:04:05'", "timestamp[ns]"),
    ("arrow_cast('2026-01-02T03:04:05Z', 'Timestamp(us, \"+02:00\")')", "timestamp[us, tz=+02:00]"),
    ("interval '2 days'", "month_day_nano_interval"),
    ("make_array(1, null, 3)", "list<"),
    ("arrow_cast(make_array(1, 2), 'LargeList(Int64)')", "large_list<"),
    ("arrow_cast(make_array(1, 2), 'FixedSizeList(2, Int32)')", "fixed_size_list<"),
    ("named_struct('a', 1, 'b', make_array('x'))", "struct<a: int64"),
    ("map(['k'], [1])", "map<string, int64"),
    ("arrow_cast('word', 'Dictionary(Int32, Utf8)')", "dictionary<values=string, indices=int32"),
]


@pytest.mark.parametrize(("sql", "kind"), VALUES, ids=[sql for sql, _ in VALUES])
def test_every_type_reaches_pyarrow(run, sql, kind):
    """Several rows with a null between them, and a part of a batch."""
    query = f"select i, case when i % 3 <> 1 then {sql} end as v from range(20) as t(i) order by i"
    if sql == "null":
        query = "select i, null as v from range(20) as t(i) order by i"
    for offset in ["", " offset 5"]:
        rows = run.sql(query.replace("range(20) as t(i)", "(select unnest(range(20)) as i)") + offset)
        table = rows.to_arrow()
        table.validate(full=True)
        assert str(table.schema.field("v").type).startswith(kind)
        # As written by the program itself in Parquet, and read by pyarrow.
        column = table.column("v").to_pylist()
        nulls = [value is None for value in column]
        first = 5 if offset else 0
        assert nulls == [sql == "null" or row % 3 == 1 for row in range(first, 20)]
        values = {repr(value) for value in column if value is not None}
        assert len(values) <= 1
        ours = [row["v"] for row in rows]
        if kind.startswith(("int", "uint", "bool", "string", "large_string", "double", "binary", "list<")):
            assert ours == column


def test_tables_are_scanned_in_part(run):
    images = run["images"]
    assert len(images) == 60 and "image" in images.columns
    part = images.scan(columns=["caption", "width"], where="caption like '%red%'").scan(limit=3)
    rows = part.to_pylist()
    assert len(rows) == 3 == len(part) and set(rows[0]) == {"caption", "width"}
    assert all("red" in row["caption"] for row in rows)
    assert len(images.scan(where="caption like '%red%'")) == 12
    assert images.scan(columns=[]).to_pylist() == [{}] * 60
    with pytest.raises(ValueError, match="given already"):
        part.scan(columns=["width"])
    with pytest.raises(ValueError, match="after `limit`"):
        images.scan(limit=3).scan(where="width > 1")
    with pytest.raises(twinlens.Error, match="has no column `captoin`") as caught:
        images.scan(columns=["captoin"])
    assert caught.value.hint == "did you mean `caption`?"
    with pytest.raises(twinlens.Error):
        images.scan(where="caption >")
    with pytest.raises(twinlens.Error, match="has no table `imagse`") as caught:
        run["imagse"]
    assert caught.value.hint == "did you mean `images`?"


def test_side_tables_and_views(run):
    tables = run.tables()
    assert tables["images"] == 60 and tables["images.rejects"] == 1 and "funnel" in tables
    assert run["images.rejects"].to_pylist()[0]["reject_code"] == "not_an_image"
    assert len(run["funnel"]) == len(run["funnel"].to_pylist())
    with pytest.raises(twinlens.Error, match="needs a table of accuracies"):
        run["leaderboard"]


def test_other_runs_are_beside(run):
    rows = run.sql("select count(*) as n from images join b.images as other using (uid)", beside={"b": run.dir})
    assert rows.to_pylist() == [{"n": 60}]


def test_errors_of_queries(run):
    for query, message in [
        ("selec 1", "Expected"),
        ("select nothing from images", "nothing"),
        ("copy images to 'x.csv'", "DML not supported|not supported"),
        ("", "expected a query"),
    ]:
        with pytest.raises(twinlens.Error, match=message):
            run.sql(query)
    # An error while rows are computed reaches the reader.
    rows = run.sql("select 1 / (width - width) as x from images")
    with pytest.raises((twinlens.Error, pyarrow.ArrowException), match="(?i)divide by zero"):
        rows.to_arrow()
    with pytest.raises(twinlens.Error, match="(?i)divide by zero"):
        list(run.sql("select 1 / (width - width) as x from images"))


@needs("pandas")
def test_pandas(run):
    frame = run.sql("select colour, n from counts").to_pandas()
    assert list(frame["n"]) == [12] * 5


@needs("polars")
def test_polars(run):
    import polars

    rows = run.sql("select caption, width, image from images order by caption")
    frame = rows.to_polars()
    assert frame.shape == (60, 3)
    assert polars.DataFrame(rows).equals(frame)
    assert frame["image"].struct.field("bytes")[0].startswith(b"\x89PNG")


@needs("duckdb")
def test_duckdb(run):
    import duckdb

    rows = run["images"].scan(columns=["caption", "width"])  # noqa: F841
    assert duckdb.sql("select count(*), min(width) from rows").fetchall() == [(60, 64)]


def test_vectors_are_arrays(run):
    vectors = run["vectors"].to_numpy("embedding")
    assert vectors.shape == (60, 16) and vectors.dtype == numpy.float32
    assert numpy.allclose(numpy.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    table = pyarrow.table(run["vectors"].scan(columns=["embedding"]))
    assert vectors.tolist() == table.column("embedding").to_pylist()
    assert not vectors.flags.writeable
    widths = run["images"].to_numpy("width")
    assert widths.tolist() == [row["width"] for row in run["images"].scan(columns=["width"])]
    # A part of a batch, and many batches.
    part = run["vectors"].scan(limit=7).to_numpy("embedding")
    assert part.shape == (7, 16) and part.tolist() == vectors[:7].tolist()
    many = run.sql("select unnest(range(100000)) as n").to_numpy("n")
    assert many.tolist() == list(range(100000))
    assert run["vectors"].scan(where="false").to_numpy("embedding").shape == (0, 16)
    for column, message in [("caption", "not numbers"), ("nothing", "nothing")]:
        with pytest.raises(ValueError, match=message):
            run["images"].to_numpy(column)
    with pytest.raises(ValueError, match="has 10 nulls"):
        run.sql("select nullif(n % 2, 0) as v from (select unnest(range(20)) as n)").to_numpy("v")


def test_notebooks_show_pictures(run):
    html = run["images"].scan(columns=["caption", "image"])._repr_html_()
    assert html.count("<img src=\"data:image/jpeg;base64,") == 10 and "more rows follow" in html
    assert "&lt;b&gt;" in run.sql("select '<b>' as x")._repr_html_()
    sample = run.sample("images", 5, seed=1)
    assert len(sample) == 5 and sample._repr_html_().count("<img") == 5
    uids = [row["uid"] for row in sample]
    assert uids == [row["uid"] for row in run.sample("images", 5, seed=1)]
    assert uids != [row["uid"] for row in run.sample("images", 5, seed=2)]
    assert all("red" in row["caption"] for row in run.sample("images", 99, where="caption like '%red%'"))
    assert len(run.sample("images", 3, where="false")) == 0


def test_many_rows_stream(run):
    """Memory while reading is that of some batches: rows are not gathered anywhere."""
    code = f"""
import resource, twinlens
run = twinlens.open({run.dir!r})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
count = 0
import pyarrow
reader = pyarrow.RecordBatchReader.from_stream(run.sql(
    "select a.n * 1000 + b.n as n, a.n as m from (select unnest(range(3000)) as n) a, "
    "(select unnest(range(1000)) as n) b"))
for batch in reader:
    count += batch.num_rows
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(count, (after - before) // 1024)
"""
    count, megabytes = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert int(count) == 3_000_000 and int(megabytes) < 100, megabytes


@needs("polars")
def test_ten_million_rows_are_not_copied(run):
    """The peak is the table and 50 MB."""
    code = f"""
import resource, twinlens
run = twinlens.open({run.dir!r})
run.sql("select 1 as x").to_polars()
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
frame = run.sql(
    "select a.n * 1000 + b.n as n, a.n as m from (select unnest(range(10000)) as n) a, "
    "(select unnest(range(1000)) as n) b").to_polars()
print(len(frame), (peak() - before) * 1024 - frame.estimated_size())
"""
    count, beyond = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert int(count) == 10_000_000 and int(beyond) < 50e6, beyond


def test_rows_of_a_table_come_in_its_order(tmp_path):
    """Columns that are read one by one belong together."""
    query = "select n, repeat('x', cast(n % 50 as int)) as t from (select unnest(range(400000)) as n) order by n desc"
    run = twinlens.run({"name": "n", "stages": {"n": {"kind": "sql", "query": query}}}, dir=tmp_path, progress=False)
    numbers = run["n"].to_numpy("n")
    assert (numbers == numpy.arange(399_999, -1, -1)).all()
    texts = run["n"].scan(columns=["t"], where="n % 2 = 0").to_arrow().column("t").to_pylist()
    assert texts == ["x" * (n % 50) for n in range(399_998, -1, -2)]
