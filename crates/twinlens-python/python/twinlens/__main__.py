"""`python -m twinlens` is the command."""

from ._command import main

main()
