"""What can be won back without going back: BatchNorm statistics, and fine-tuning."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.compact.masked import Masked
from experiments.job import Job
from jaxprune.compaction.network import Compact
from jaxprune.data import datasets
from jaxprune.data.splits import Split
from jaxprune.networks import training
from jaxprune.networks.recalibrate import recalibrate

FLAGS = flags.FLAGS
# Training batches that BatchNorm statistics are estimated over.
_RECALIBRATION_BATCHES = 40


def train_on(
    run: Job, whole: Masked, small: Compact, accuracy_before: float
) -> tuple[Compact, dict[str, Any], list[dict[str, Any]]]:
    """Recalibrates and fine-tunes where that is asked for.

    Returns:
      The network, accuracies to add to the figures, and a line for each epoch, the
      first of which is before any training.
    """
    changes: dict[str, Any] = {}
    split = datasets.choose_split(run.splits, run.config.train_split)
    program = whole.program(small.apply)

    def accuracy(variables: Any) -> float:
        logits = whole.evaluate(program, variables, "test")
        return float((logits.argmax(-1) == whole.split.labels).mean())

    variables = small.variables
    if FLAGS.recalibrate:
        variables, images = _recalibrated(run, small, split)
        changes["accuracy_recalibrated"] = accuracy(variables)
        print(f"  recalibrated over {images} training images: accuracy "
              f"{changes['accuracy_recalibrated']:.4f}")  # fmt: skip
    start = changes.get("accuracy_recalibrated", accuracy_before)
    lines = [{"epoch": 0, "test_accuracy": start}]
    if FLAGS.finetune_epochs:
        for result in _finetune(run, small, variables, split):
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


def _recalibrated(run: Job, small: Compact, split: Split) -> tuple[Any, int]:
    """Variables with BatchNorm statistics of the pruned network, and images used."""
    size = run.config.train_batch_size
    order = np.random.default_rng([run.config.seed, 2]).permutation(len(split))
    count = min(_RECALIBRATION_BATCHES, training.steps_per_epoch(split, size))
    inputs = (
        run.scale(jnp.asarray(split.read(order[i * size : (i + 1) * size])))
        for i in range(count)
    )
    apply = partial(small.apply, train=True)
    return recalibrate(apply, small.variables, inputs), count * size


def _finetune(run: Job, small: Compact, variables: Any, split: Split) -> Any:
    """Epochs of the same loop as training's, at a lower rate."""
    conf, recipe = run.config, run.recipe
    rate = FLAGS.finetune_learning_rate or conf.learning_rate / 10
    steps = FLAGS.finetune_epochs * training.steps_per_epoch(
        split, conf.train_batch_size
    )
    optimizer = training.adam(rate, steps, 0)
    step = training.make_train_step(
        small.apply,
        optimizer,
        run.scale,
        seed=conf.seed + 1,
        l2=run.l2,
        augment=training.crop_and_flip if recipe.crop_and_flip else None,
    )
    state = training.init_state(jax.tree.map(jnp.array, variables), optimizer)
    return training.fit(
        step, state, split, epochs=FLAGS.finetune_epochs,
        batch_size=conf.train_batch_size, seed=conf.seed + 1,
    )  # fmt: skip
