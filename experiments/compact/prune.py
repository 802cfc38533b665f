"""One compact network: its proof, its figures, its folder."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import facts, finetuning
from experiments.compact.masked import Masked
from experiments.compact.plan import Plan
from experiments.job import Job
from jaxprune.compaction import cost
from jaxprune.compaction.network import Compact
from jaxprune.compaction.proof import Proof, compare
from jaxprune.report import compact, curves

FLAGS = flags.FLAGS

# How much more sensitive to rounding any image may be than the most sensitive of the
# examples that the bound is worked out for.
_MARGIN = 4.0


class Pruned(NamedTuple):
    """A compact network and what is known of it.

    Attributes:
      k: channels pruned.
      small: the network, as it is to be saved.
      proof: its comparison with the masked one, before any training.
      row: its figures.
      lines: one for each epoch of fine-tuning; the first is before it.
    """

    k: int
    small: Compact
    proof: Proof
    row: dict[str, Any]
    lines: list[dict[str, Any]]


def prove(whole: Masked, small: Compact, k: int) -> Proof:
    """Compares both networks on the whole split.

    The bound is the largest of the examples', times a margin for images that are more
    sensitive than they.
    """
    masked = whole.logits[k]
    program = whole.program(small.apply)
    after = whole.evaluate(program, small.variables, "compact network")
    assert small.proof is not None
    bound = np.full(masked.shape, _MARGIN * small.proof.bound)
    return compare(masked, after, bound, whole.split.labels)


def figures(
    whole: Masked,
    small: Compact,
    proof: Proof,
    batches: Sequence[int],
    repeats: int,
) -> dict[str, Any]:
    """Sizes and times, before and after."""
    images = jnp.broadcast_to(whole.example[:1], (32, *whole.example.shape[1:]))
    after = cost.cost(small.apply, small.variables, images)
    sizes: dict[str, Any] = {}
    for name in ("parameters", "multiply_adds", "file_bytes", "memory_bytes",
                 "working_bytes"):  # fmt: skip
        sizes[f"{name}_before"] = getattr(whole.cost, name)
        sizes[name] = getattr(after, name)
    functions = [
        partial(jax.jit(lambda v, x, apply=apply: apply(v, x)), jax.device_put(v))
        for apply, v in ((whole.apply, whole.variables), (small.apply, small.variables))
    ]
    latency = {}
    for batch in batches:
        x = jnp.resize(whole.example, (batch, *whole.example.shape[1:]))
        pair = cost.latencies(functions, x, repeats)
        latency[str(batch)] = {
            "before": asdict(pair[0]),
            "after": asdict(pair[1]),
            "speedup": pair[0].median / pair[1].median,
        }
    return {
        "baseline_accuracy": whole.accuracy,
        "accuracy": proof.accuracy_compact,
        "different_predictions": proof.different_predictions,
        "largest_difference": proof.largest_difference,
        **sizes,
        "theoretical_speedup": whole.cost.multiply_adds / after.multiply_adds,
        "latency": latency,
    }


def save(run: Job, plan: Plan, whole: Masked, pruned: Pruned) -> None:
    """Writes the network's folder and, if it was fine-tuned, a picture beside it."""
    folder = plan.folder(run.workdir, pruned.k)
    pruned.small.save(
        folder,
        pixel_mean=run.config.pixel_mean,
        pixel_std=run.config.pixel_std,
        class_names=whole.split.class_names,
        about={
            **facts.describe(run, plan.choices, plan.choices.fill, whole.variables),
            **plan.fill_facts,
            "test_proof": pruned.proof.to_json(),
            "after_the_proof": finetuning.describe(run),
            "measured": pruned.row,
        },
        stablehlo=FLAGS.export == "stablehlo",
    )
    if len(pruned.lines) > 1:
        what = f"K = {pruned.k} of {len(plan.order)}"
        title = f"{run.config.model}, layer {plan.choices.layer}, {what}"
        figure = compact.finetuning(pruned.lines, whole.accuracy, title)
        curves.save(figure, folder.with_suffix(".png"))
    files = ", ".join(path.name for path in sorted(folder.iterdir()))
    print(f"  saved      {folder}/ ({files})")
