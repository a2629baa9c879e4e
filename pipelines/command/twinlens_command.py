"""A Python function as a twinlens `command` stage. Copy this file beside your script; it needs pyarrow.

    from twinlens_command import serve
    serve(lambda batch: {"words": pa.array([len(c.as_py().split()) for c in batch["caption"]], pa.int32())})
"""

import os
import sys

import pyarrow as pa


def serve(function):
    """Answers each batch on stdin with `function(batch)`: columns by name, or a RecordBatch."""
    _write(map(function, pa.ipc.open_stream(sys.stdin.buffer)))


def serve_whole(function):
    """For `whole = true`: answers with `function(table)` over all rows, a Table with their `uid`."""
    tables = (function(stream.read_all()) for stream in [pa.ipc.open_stream(sys.stdin.buffer)])
    _write(batch for table in tables for batch in table.to_batches(max_chunksize=1000))


def serve_source(function):
    """Without an input: writes the batches that `function(split, splits)` yields."""
    _write(function(int(os.environ["TWINLENS_SPLIT"]), int(os.environ["TWINLENS_SPLITS"])))


def _write(answers):
    stdout = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # What the function prints goes to the log, not into the stream.
    writer = None
    for answer in answers:
        columns = answer if isinstance(answer, dict) else dict(zip(answer.schema.names, answer.columns))
        rows = max(map(len, columns.values()), default=0)
        for name in ("reject_code", "reject_detail"):  # Always there, so that all batches have one schema.
            columns[name] = pa.array(columns.get(name, [None] * rows), pa.string())
        batch = pa.RecordBatch.from_pydict(columns)
        writer = writer or pa.ipc.new_stream(stdout, batch.schema)
        writer.write_batch(batch)
        stdout.flush()
    if writer:
        writer.close()
    stdout.close()
