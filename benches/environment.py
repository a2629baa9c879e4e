"""Virtual environments with the Python packages of a benchmark's peers."""

import os
import subprocess
import sys
from pathlib import Path


def enter(folder, packages):
    """Restarts the script in the virtual environment `folder` with the packages, creating it if needed."""
    folder = Path(folder)
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
    if Path(sys.prefix).resolve() != folder.resolve():
        os.execv(python, [str(python), *sys.argv])
