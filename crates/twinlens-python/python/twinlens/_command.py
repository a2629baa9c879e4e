"""The command `twinlens`."""

import sys

from . import _twinlens


def main() -> None:
    """Runs the command line of this process."""
    # Errors and help name the program as the user knows it.
    sys.exit(_twinlens.command_line(["twinlens", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
