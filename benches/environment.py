"""The Python packages of a benchmark's peers, in a virtual environment of the benchmark's own."""

import os
import subprocess
import sys
from pathlib import Path


def enter(folder, packages):
    """Runs the script again with the interpreter of an environment in `folder` that has the packages; makes it where there is none."""
    folder = Path(folder)
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
    if Path(sys.prefix).resolve() != folder.resolve():
        os.execv(python, [str(python), *sys.argv])
