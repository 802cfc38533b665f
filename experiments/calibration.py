"""The linear fill of a run directory's network."""

from dataclasses import replace
from typing import Any

import numpy as np
from absl import flags

from experiments import cluster
from experiments.choices import Choices
from experiments.job import Job
from jaxprune.channels.calibration import linear_fill
from jaxprune.channels.fills import Fill
from jaxprune.data import datasets
from jaxprune.errors import InputError

FLAGS = flags.FLAGS


def check(run: Job, choices: Choices, fill: str) -> None:
    """Checks what the linear fill needs, before any work is done.

    Raises:
      InputError: a split that is empty or holds evaluation images, or a bad ridge.
    """
    if not choices.calibration(fill):
        return
    datasets.choose_split(run.splits, choices.calibration_split)
    if choices.ridge is not None and not 0 < choices.ridge < np.inf:
        raise InputError(f"--ridge must be positive and finite, got {choices.ridge}")
    shared = _overlap(run, choices)
    if shared and not FLAGS.allow_overlap:
        raise InputError(
            f"--calibration_split={choices.calibration_split} holds {shared} images of "
            f"--eval_split={choices.eval_split}: choose others, or --allow_overlap"
        )


def fit(run: Job, choices: Choices, fill: str, variables: Any) -> Fill | None:
    """The linear fill, where the fill or the criterion needs it."""
    if not choices.calibration(fill):
        return None
    split = datasets.choose_split(run.splits, choices.calibration_split)
    fitted = linear_fill(
        run.apply,
        variables,
        split.read(np.arange(len(split))),
        layer=choices.layer,
        ridge=choices.ridge,
        batch_size=run.batch_size(split)
        if FLAGS.batch_size is None
        else min(FLAGS.batch_size, len(split)),
        mesh=cluster.local_mesh(),
    )
    facts = {**fitted.facts, "split": choices.calibration_split}
    if shared := _overlap(run, choices):
        facts["images_of_eval_split"] = shared
    return replace(fitted, facts=facts)


def _overlap(run: Job, choices: Choices) -> int:
    return datasets.overlap(run.splits, choices.calibration_split, choices.eval_split)
