"""The linear fill of a run directory's network."""

from dataclasses import replace

import numpy as np

from jaxprune._base.errors import InputError
from jaxprune.cli.pruning_options import PruningOptions
from jaxprune.cli.run_directory import Run
from jaxprune.data import datasets
from jaxprune.fills.calibration import linear_fill
from jaxprune.fills.fill import Fill
from jaxprune.graph.network import Network


def check(run: Run, choices: PruningOptions, fill: str) -> None:
    """Checks what the linear fill needs, before any work is done.

    Raises:
      InputError: a split that holds images that K is chosen on or that are reported.
    """
    if choices.allow_overlap or not choices.calibration(fill):
        return
    for flag, shared in _overlaps(run, choices).items():
        raise InputError(
            f"--calibration_split={choices.calibration_split} holds {shared} images of "
            f"--{flag}={getattr(choices, flag)}: choose others, or --allow_overlap"
        )


def fit(run: Run, choices: PruningOptions, fill: str, network: Network) -> Fill | None:
    """The linear fill of a network, where the fill or the criterion needs it."""
    if not choices.calibration(fill):
        return None
    split = datasets.choose_split(run.splits, choices.calibration_split)
    given = run.settings.batch_size
    fitted = linear_fill(
        network,
        split.read(np.arange(len(split))),
        layer=choices.layer,
        ridge=choices.ridge,
        batch_size=run.batch_size(split) if given is None else min(given, len(split)),
        mesh=run.mesh,
    )
    facts = {**fitted.facts, "split": choices.calibration_split}
    for flag, shared in _overlaps(run, choices).items():
        facts[f"images_of_{flag}"] = shared
    return replace(fitted, facts=facts)


def _overlaps(run: Run, choices: PruningOptions) -> dict[str, int]:
    """Images that the calibration split shares with others, where there are any."""
    splits = {"eval_split": choices.eval_split, "select_split": choices.select_split}
    if choices.select_split == choices.eval_split:
        del splits["select_split"]
    shared = {
        flag: datasets.overlap(run.splits, choices.calibration_split, split)
        for flag, split in splits.items()
    }
    return {flag: count for flag, count in shared.items() if count}
