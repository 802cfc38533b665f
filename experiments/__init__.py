"""Scripts, run as `python -m experiments.NAME`; `--help` lists their flags."""

import sys

from jaxprune.cli import signals

if sys.argv[0] == "-m":  # one of them is about to be imported, which takes seconds
    signals.quit_at_once()
