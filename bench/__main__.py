"""`python -m bench`; what it does stands in `cli.py`."""

from bench.cli import main

main(prog_name="python -m bench")
