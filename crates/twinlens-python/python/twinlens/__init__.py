"""From web pages to a SQL table of zero-shot accuracies.

    >>> import twinlens
    >>> run = twinlens.run("pipelines/quickstart.toml")
    >>> run.sql("select set, value from leaderboard").to_pandas()

``twinlens help python`` in a terminal is the guide.
"""

from . import _children as _children
from ._clip import Clip
from ._evaluate import evaluate
from ._pairs import Pairs
from ._pipeline import Plan, check, plan, run
from ._run import Report, Run, Sample, Status
from ._run import open_run as open
from ._stage import Stage, stage
from ._table import Rows, Table
from ._twinlens import __version__
from .errors import Error, InternalError, RejectsError

__all__ = [
    "Clip",
    "Error",
    "InternalError",
    "Pairs",
    "Plan",
    "RejectsError",
    "Report",
    "Rows",
    "Run",
    "Sample",
    "Stage",
    "Status",
    "Table",
    "__version__",
    "check",
    "evaluate",
    "open",
    "plan",
    "run",
    "stage",
]
