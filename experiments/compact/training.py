"""A compact network after its proof: recalibrated and fine-tuned, as the flags say."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments import finetuning
from experiments.compact.masked import Masked
from experiments.job import Job
from jaxprune.compaction.network import Compact

FLAGS = flags.FLAGS


def train_on(
    run: Job, whole: Masked, small: Compact, accuracy_before: float
) -> tuple[Compact, dict[str, Any], list[dict[str, Any]]]:
    """Recalibrates and fine-tunes where that is asked for.

    Returns:
      The network, accuracies to add to the figures, and a line for each epoch, the
      first of which is before any training.
    """
    changes: dict[str, Any] = {}
    program = whole.program(small.apply)

    def accuracy(variables: Any) -> float:
        logits = whole.evaluate(program, variables, "test")
        return float((logits.argmax(-1) == whole.split.labels).mean())

    variables = small.variables
    if FLAGS.recalibrate:
        variables, images = finetuning.recalibrated(run, small.apply, variables)
        changes["accuracy_recalibrated"] = accuracy(variables)
        print(f"  recalibrated over {images} training images: accuracy "
              f"{changes['accuracy_recalibrated']:.4f}")  # fmt: skip
    start = changes.get("accuracy_recalibrated", accuracy_before)
    lines = [{"epoch": 0, "test_accuracy": start}]
    if FLAGS.finetune_epochs:
        for result in finetuning.finetune(run, small.apply, variables, whole.variables):
            variables = jax.tree.map(np.asarray, result.state.variables)
            lines.append(
                {
                    "epoch": result.epoch,
                    "loss": result.loss,
                    "train_accuracy": result.accuracy,
                    "test_accuracy": accuracy(variables),
                    "seconds": round(result.seconds, 2),
                }
            )
            print(
                f"  fine-tuned, epoch {result.epoch}/{FLAGS.finetune_epochs}: loss "
                f"{result.loss:.4f}, test accuracy {lines[-1]['test_accuracy']:.4f}"
            )
        changes["accuracy_finetuned"] = lines[-1]["test_accuracy"]
    if changes:  # another network than the one that was compared
        small = replace(small, variables=variables, proof=None)
    return small, changes, lines
