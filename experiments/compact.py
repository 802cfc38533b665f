r"""Makes the network really smaller, proves it on the test set, and measures it.

    python -m experiments.compact --model=cifar_vgg --k=100
    python -m experiments.compact --model=cifar_vgg --max_drop=0.01
    python -m experiments.compact --model=cifar_vgg --k=250 --finetune_epochs=3
    python -m experiments.compact --model=cifar_vgg --layer=conv2d_8 --k=64 \
        --export=stablehlo
    python -m experiments.compact --model=cifar_vgg --ks=64:512:64

Channels are ranked as experiments.sweep ranks them; a saved sweep is used where there
is one. One K gives a folder compact-<layer>-<criterion>-<fill>-k<K>; --ks gives a table
and a picture. On 2 CPU cores, cifar_vgg takes two minutes for each K, most of them for
the 10,000 test images and the timed calls.
"""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import (
    cli,
    cluster,
    compact_report,
    compact_training,
    job,
    sweep,
    train,
)
from experiments.job import Job
from experiments.masked import Masked, Plan
from jaxprune.channels import taps
from jaxprune.compaction import artefact, cost
from jaxprune.compaction import proof as proof_lib
from jaxprune.compaction.compact import compact
from jaxprune.compaction.network import Compact
from jaxprune.compaction.proof import Proof
from jaxprune.data import datasets
from jaxprune.data.splits import Split
from jaxprune.errors import InputError, check_choice
from jaxprune.ranking import order as ranking
from jaxprune.report import compact as plots_compact
from jaxprune.report import curves as plots
from jaxprune.sweep.layer import FILLS
from jaxprune.sweep.result import SweepResult
from jaxprune.sweep.trunk import tap_layer

FLAGS = flags.FLAGS
EXPORTS = ("stablehlo",)
flags.DEFINE_integer("k", None, "Channels to prune: the k lowest.", lower_bound=0)
flags.DEFINE_float(
    "max_drop", None, "Prune the largest K that loses no more accuracy in the sweep.",
    0.0, 1.0,
)  # fmt: skip
flags.DEFINE_string("export", None, f"Also write: {', '.join(EXPORTS)}.")
flags.DEFINE_integer("repeats", 10, "Timed calls at each batch size.", lower_bound=1)
flags.DEFINE_list("latency_batches", ["1", "32", "256"], "Batch sizes to time.")

# How much more sensitive to rounding any image may be than the most sensitive of the
# examples that the bound is worked out for.
_MARGIN = 4.0


def main() -> None:
    """Restores, prunes, proves, measures, saves."""
    _check_flags()
    run = job.load(train_imported=False)
    if jax.process_count() > 1:
        raise InputError("experiments.compact runs in one process")
    split = datasets.choose_split(run.splits, FLAGS.eval_split)
    batch_size = run.batch_size(split)
    batches = _latency_batches()
    layer = FLAGS.layer or taps.last_conv(run.apply, run.shapes, run.example)
    p = taps.find_conv(run.apply, run.shapes, run.example, layer).shape[-1]
    ks = _ks(p)
    variables = train.train_or_restore(run)
    plan = _plan(run, variables, split, layer, ks, batch_size)
    if FLAGS.ks is None:
        artefact.check_target(_folder(run, plan, plan.ks[0]))
    whole = Masked(run, variables, split, plan, batch_size)
    rows: list[dict[str, Any]] = []
    interrupted = False
    try:
        for k in plan.ks:
            rows.append(_one(run, plan, whole, k, batches))
    except KeyboardInterrupt:
        if FLAGS.ks is None or not rows:
            raise
        interrupted = True
    if FLAGS.ks is not None:
        about = {
            **sweep.describe(run, variables),
            "layer": plan.layer,
            "criterion": plan.criterion,
            "fill": plan.fill,
            "fill_values": plan.mean.tolist() if plan.fill == "mean" else None,
        }
        base = run.workdir / plan.name
        compact_report.write_table(base, rows, about, plan.curve)
    if interrupted:
        raise cli.Interrupted(
            f"interrupted: the table has {len(rows)} of {len(plan.ks)} K"
        )


def _check_flags() -> None:
    given = [name for name in ("k", "max_drop", "ks") if FLAGS[name].value is not None]
    if len(given) != 1:
        raise InputError("say how many channels to prune: one of --k, --max_drop, --ks")
    if FLAGS.export is not None:
        check_choice("export", FLAGS.export, EXPORTS)
    if FLAGS.fill == "all":
        raise InputError(f"--fill takes one of {', '.join(FILLS)} here")
    sweep.check_names()


def _latency_batches() -> list[int]:
    try:
        batches = [int(text) for text in FLAGS.latency_batches]
    except ValueError:
        batches = []
    if not batches or min(batches) < 1:
        raise InputError(
            f"--latency_batches takes positive numbers: {FLAGS.latency_batches}"
        )
    return batches


def _ks(p: int) -> tuple[int, ...] | None:
    """K from --k or --ks; None where the sweep decides."""
    if FLAGS.max_drop is not None:
        return None
    return ranking.check_ks([FLAGS.k] if FLAGS.ks is None else sweep.parse_ks(p), p)


def _plan(
    run: Job,
    variables: Any,
    split: Split,
    layer: str,
    ks: tuple[int, ...] | None,
    batch_size: int,
) -> Plan:
    """The order of channels, from the saved sweep or scored now."""
    recipe = run.config.recipe
    criterion = FLAGS.criterion or recipe.criterion
    tap, fill = FLAGS.tap or recipe.tap, FLAGS.fill or recipe.fill
    folder = run.workdir / f"sweep-{layer.replace('/', '.')}-{criterion}-{fill}"
    curve = None
    if (folder / "summary.json").exists():
        result = SweepResult.load(folder)
        differences = sweep.differences(result, sweep.describe(run, variables))
        if differences:
            raise InputError(
                f"{folder} is another network's sweep or was made otherwise: "
                f"{'; '.join(differences)}: run experiments.sweep again in another "
                "--workdir, or give its flags"
            )
        order, maps = result.order, result.mean_feature_map
        curve = (result.ks, result.accuracy.tolist())
        if ks is None:
            ks = (result.largest_k_within(FLAGS.max_drop),)
            print(f"K = {ks[0]}: the largest within {FLAGS.max_drop} in {folder}")
    elif ks is None:
        raise InputError(
            f"--max_drop needs a sweep in {folder}: run experiments.sweep with the "
            "same flags first"
        )
    else:
        rank_split = datasets.choose_split(run.splits, FLAGS.rank_split)
        with cluster.progress(total=len(rank_split), unit="img", desc="scores") as bar:
            tapped = tap_layer(
                run.apply, variables, rank_split, layer=layer, tap=tap,
                batch_size=min(batch_size, len(rank_split)), on_images=bar.update,
            )  # fmt: skip
        maps = tapped.mean_feature_map
        order = ranking.rank_channels(ranking.CRITERIA[criterion](maps))
    mean = maps.reshape(-1, len(order)).mean(0).astype(np.float32)
    return Plan(layer, criterion, fill, order, mean, ks, curve)


def _one(
    run: Job, plan: Plan, whole: Masked, k: int, batches: Sequence[int]
) -> dict[str, Any]:
    """Prunes k channels; returns the figures, and saves the network for a single K."""
    small = compact(
        run.model, whole.variables, plan.layer, plan.keep(k),
        fill=plan.values, example=whole.example, call={"train": False},
    )  # fmt: skip
    proof = _prove(whole, small, k)
    row = _figures(whole, small, proof, batches)
    row = {"k": k, "channels": len(plan.order), **row}
    compact_report.print_row(row, proof, f"layer {plan.layer}, fill {plan.fill}")
    small, changes, lines = compact_training.train_on(
        run, whole, small, float(proof.accuracy_compact or 0)
    )
    row |= changes
    if len(lines) > 1:
        row["epochs"] = lines
    if FLAGS.ks is not None:
        return row
    folder = _folder(run, plan, k)
    small.save(
        folder,
        pixel_mean=run.config.pixel_mean,
        pixel_std=run.config.pixel_std,
        class_names=whole.split.class_names,
        about={
            **sweep.describe(run, whole.variables),
            "fill": plan.fill,
            "fill_values": plan.mean.tolist() if plan.fill == "mean" else None,
            "test_proof": proof.to_json(),
            "after_the_proof": {
                "recalibrated": FLAGS.recalibrate,
                "finetune_epochs": FLAGS.finetune_epochs,
            },
            "measured": row,
        },
        stablehlo=FLAGS.export == "stablehlo",
    )
    if len(lines) > 1:
        title = f"{run.config.model}, layer {plan.layer}, K = {k} of {len(plan.order)}"
        figure = plots_compact.finetuning(lines, whole.accuracy, title)
        plots.save(figure, folder.with_suffix(".png"))
    files = ", ".join(path.name for path in sorted(folder.iterdir()))
    print(f"  saved      {folder}/ ({files})")
    return row


def _folder(run: Job, plan: Plan, k: int) -> Path:
    return run.workdir / f"{plan.name}-k{k}"


def _prove(whole: Masked, small: Compact, k: int) -> Proof:
    """Compares both networks on the whole split.

    The bound is the largest of the examples', times a margin for images that are more
    sensitive than they.
    """
    masked = whole.logits[k]
    after = whole.evaluate(small.apply, small.variables, "compact network")
    assert small.report is not None
    bound = np.full(masked.shape, _MARGIN * small.report.bound)
    return proof_lib.compare(masked, after, bound, whole.split.labels)


def _figures(
    whole: Masked, small: Compact, proof: Proof, batches: Sequence[int]
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
        pair = cost.latencies(functions, x, FLAGS.repeats)
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


if __name__ == "__main__":
    cli.run(main)
