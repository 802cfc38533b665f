"""Scripts, run as `python -m experiments.NAME`; `--help` lists their flags."""
