r"""Ranks a layer's channels and measures the network with the k lowest pruned.

    python -m experiments.sweep --model=digits_pair
    python -m experiments.sweep --model=mnist_pair --data_dir=...
    python -m experiments.sweep --model=cifar_vgg --init_from=my_model.h5 --fill=all
    python -m experiments.sweep --model=digits_pair --criterion=all --random_orders=20

Trains first where the run directory has no trained network. Writes one folder per
sweep, `sweep-<layer>-<criterion>-<fill>`; of several criteria also a comparison,
`criteria-<layer>-<fill>`. digits_pair takes about 2 minutes on 2 CPU
cores, training included; BUILD_NOTES.md has the figures to expect.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from experiments import (
    calibration,
    choices,
    cli,
    cluster,
    comparison,
    facts,
    job,
    scoring,
)
from experiments.choices import Choices
from experiments.flags import (
    define_batch_size,
    define_choices,
    define_network,
    define_processes,
)
from experiments.job import Job
from experiments.weights import train_or_restore
from jaxprune import processes
from jaxprune.channels import taps
from jaxprune.channels.fills import FILLS, Fill
from jaxprune.data import datasets
from jaxprune.data.splits import check_classes
from jaxprune.ranking.order import check_ks, pruning_order
from jaxprune.report import curves
from jaxprune.sweep.layer import sweep_layer
from jaxprune.sweep.result import SweepResult
from jaxprune.sweep.trunk import TappedLayer

FLAGS = flags.FLAGS
define_network()
define_processes()
define_batch_size()
define_choices()
flags.DEFINE_integer("mask_chunk", None, "Masks evaluated at once.", lower_bound=1)
flags.DEFINE_integer(
    "random_orders", 0, "Random orders to compare the criteria with.", 0
)


def main() -> None:
    """Trains or restores, ranks, sweeps, saves and draws."""
    choices.check_names((*FILLS, "all"), several=True)
    run = job.load(train_imported=False)
    split = datasets.choose_split(run.splits, FLAGS.eval_split)
    rank_split = datasets.choose_split(run.splits, FLAGS.rank_split)
    check_classes(split, FLAGS.eval_split)
    batch_size = run.batch_size(split)
    chosen = choices.resolve(run)
    layer = taps.find_conv(run.apply, run.shapes, run.image, chosen.layer)
    channels = layer.output.shape[-1]
    ks = check_ks(choices.parse_ks(channels), channels)
    others = None if chosen.rank_split == chosen.eval_split else rank_split
    if choices.several_criteria() or FLAGS.random_orders:
        compared = comparison.Compared(run, chosen, split, others, batch_size, ks)
        comparison.main(compared)
        return
    fills = FILLS if chosen.fill == "all" else (chosen.fill,)
    for fill in fills:
        calibration.check(run, chosen, fill)
    scoring.check(run, chosen, chosen.criterion)

    variables = train_or_restore(run)
    about = {fill: facts.describe(run, chosen, fill, variables) for fill in fills}
    for fill in fills:
        facts.check_folder(chosen.sweep_folder(run.workdir, fill), ks, about[fill])
    try:
        tapped = scoring.tap(
            run, chosen, variables, [chosen.criterion], split, others, batch_size
        )
        fitted = calibration.fit(run, chosen, fills[-1], variables)
        scores = scoring.score_by(
            run, chosen, tapped, chosen.criterion, fills[0], fitted
        )
        _print_scores(chosen.layer, scores)
        results = [
            _sweep(run, chosen, tapped, scores, fill, fitted, ks, about[fill])
            for fill in fills
        ]
    except KeyboardInterrupt:
        raise cli.Interrupted(job.kept(run)) from None
    if not processes.is_first():
        return
    curves.draw_training(run.workdir)
    if len(results) > 1:
        path = run.workdir / f"fills-{chosen.stem}.png"
        curves.save(curves.compare_fills(results), path)
        print(f"curves:      {path}")


def _sweep(
    run: Job,
    chosen: Choices,
    tapped: TappedLayer,
    scores: np.ndarray,
    fill: str,
    fitted: Fill | None,
    ks: tuple[int, ...],
    about: dict[str, Any],
) -> SweepResult:
    """Sweeps with one fill, saves, draws and prints."""
    total = len(tapped.own) * len(ks)
    with cluster.progress(total=total, unit="eval", desc=f"fill {fill}") as bar:
        result = sweep_layer(
            tapped,
            scores,
            fill=fitted if fill == "linear" and fitted is not None else fill,
            ks=ks,
            mask_chunk=FLAGS.mask_chunk,
            about=about,
            on_pairs=bar.update,
        )
    folder = chosen.sweep_folder(run.workdir, fill)
    if processes.is_first():
        result.save(folder)
        curves.draw_sweep(result, folder)
    _print_curve(result, folder)
    return result


def _print_scores(layer: str, scores: np.ndarray) -> None:
    """The lowest and highest channels with their scores, as the report prints them."""
    ranked = pruning_order(scores)

    def listing(channels: Iterable[int]) -> str:
        return ", ".join(f"{c}: {scores[c]:.4f}" for c in channels)

    print(f"layer {layer}, {len(ranked)} channels, channel: score")
    print(f"  lowest     {listing(ranked[:5])}")
    print(f"  highest    {listing(ranked[::-1][:5])}")


def _print_curve(result: SweepResult, folder: Path) -> None:
    accuracy, balanced = result.accuracy, result.balanced_accuracy
    k = result.largest_k_within(0.01)
    row = result.ks.index(k)
    print(f"fill {result.about['fill']}{_how_fitted(result)}")
    print(f"  K = {result.ks[0]:<6} accuracy {accuracy[0]:.4f}", end="")
    print(f"  balanced accuracy {balanced[0]:.4f}")
    print(f"  K = {k:<6} accuracy {accuracy[row]:.4f}", end="")
    print(f"  balanced accuracy {balanced[row]:.4f}  (largest K within one point)")
    print(f"  files      {folder}/")


def _how_fitted(result: SweepResult) -> str:
    made = result.about.get("fill_facts")
    if not made:
        return ""
    images = f"{made['images']} images of {made['split']}"
    return f", fitted on {images}, ridge {made['ridge']:g}"


if __name__ == "__main__":
    cli.run(main)
