"""How images are decoded in processes of their own: an interpreter that loads the library alone."""

import sys

from . import _twinlens

_CHILD = """
import sys
from importlib.util import module_from_spec, spec_from_file_location

spec = spec_from_file_location("_twinlens", sys.argv[1])
module = module_from_spec(spec)
spec.loader.exec_module(module)
module.serve_child(sys.argv[2])
"""

# A program that has Python inside cannot be started as an interpreter.
if sys.executable and not getattr(sys, "frozen", False):
    _twinlens.start_children_by(sys.executable, ["-I", "-S", "-c", _CHILD, str(_twinlens.__file__)])
