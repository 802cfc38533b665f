r"""Ranks a layer's channels and measures the network with the k lowest pruned.

    python -m experiments.sweep --model=digits_pair
    python -m experiments.sweep --model=mnist_pair --data_dir=...
    python -m experiments.sweep --model=cifar_vgg --init_from=my_model.h5 --fill=all
    python -m experiments.sweep --model=digits_pair --seeds=0,1,2,3,4

Trains first where the run directory has no trained network. Writes one folder per
sweep, `sweep-<layer>-<criterion>-<fill>`. digits_pair takes about 2 minutes on 2 CPU
cores, training included; BUILD_NOTES.md has the figures to expect.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from experiments import calibration, choices, cli, cluster, facts, job, seeds
from experiments.choices import Choices
from experiments.flags import (
    define_batch_size,
    define_choices,
    define_max_drop,
    define_network,
    define_processes,
)
from experiments.job import Job
from experiments.weights import train_or_restore
from jaxprune import processes
from jaxprune.channels import taps
from jaxprune.channels.fills import FILLS, Fill, resolve_fill
from jaxprune.data import datasets
from jaxprune.data.splits import Split, check_classes
from jaxprune.errors import InputError
from jaxprune.ranking.order import check_ks, pruning_order
from jaxprune.report import curves
from jaxprune.sweep.certainty import points
from jaxprune.sweep.layer import sweep_layer
from jaxprune.sweep.result import SweepResult
from jaxprune.sweep.saved import check_target
from jaxprune.sweep.trunk import TappedLayer, tap_layer

FLAGS = flags.FLAGS
define_network()
define_processes()
define_batch_size()
define_choices()
define_max_drop()
flags.DEFINE_integer("mask_chunk", None, "Masks evaluated at once.", lower_bound=1)


def main() -> None:
    """Trains or restores, ranks, sweeps, saves and draws."""
    choices.check_names((*FILLS, "all"))
    if FLAGS.seeds is None:
        _one()
    else:
        seeds.sweep_each(lambda: _one(resume=True))


def _one(resume: bool = False) -> list[SweepResult]:
    """The sweeps of one network, a fill each; where all are saved, those to resume."""
    run = job.load(train_imported=False)
    chosen = choices.resolve(run)
    splits = _splits(run, chosen)
    layer = taps.find_conv(run.apply, run.shapes, run.image, chosen.layer)
    channels = layer.output.shape[-1]
    ks = check_ks(choices.parse_ks(channels), channels)
    fills = FILLS if chosen.fill == "all" else (chosen.fill,)
    for fill in fills:
        calibration.check(run, chosen, fill)
        check_target(chosen.sweep_folder(run.workdir, fill))

    variables = train_or_restore(run)
    max_drop = 0.01 if FLAGS.max_drop is None else FLAGS.max_drop
    about = {
        fill: {**facts.describe(run, chosen, fill, variables), "max_drop": max_drop}
        for fill in fills
    }
    folders = {fill: chosen.sweep_folder(run.workdir, fill) for fill in fills}
    saved = [_saved(folders[fill], ks, about[fill]) for fill in fills]
    found = [result for result in saved if result is not None]
    if resume and len(found) == len(fills):
        print(f"sweeps: {', '.join(map(str, folders.values()))}")
        return found
    try:
        tapped, *selecting = _tap(run, chosen, variables, splits)
        fitted = calibration.fit(run, chosen, fills[-1], variables)
        scores = calibration.score(chosen, tapped.mean_feature_map, fitted)
        _print_scores(chosen.layer, scores)
        results = [
            _save(
                _sweep(tapped, selecting, scores, fill, fitted, ks, about[fill]),
                folders[fill],
            )
            for fill in fills
        ]
    except KeyboardInterrupt:
        raise cli.Interrupted(
            f"interrupted: the trained network is kept in {run.checkpoints}, and every "
            "finished sweep beside it; run the same command again to start this sweep "
            "anew"
        ) from None
    if processes.is_first():
        curves.draw_training(run.workdir)
        if len(results) > 1:
            path = run.workdir / f"fills-{chosen.stem}.png"
            curves.save(curves.compare_fills(results), path)
            print(f"curves:      {path}")
    return results


def _splits(run: Job, chosen: Choices) -> dict[str, Split]:
    """The images by the names of their splits.

    Raises:
      InputError: a split that is unknown or empty, smaller than a batch, or without a
        class where classes are counted.
    """
    splits: dict[str, Split] = {}
    for which in (chosen.eval_split, chosen.select_split, chosen.rank_split):
        splits[which] = datasets.choose_split(run.splits, which)
    for which in (chosen.eval_split, chosen.select_split):
        check_classes(splits[which], which)
        run.batch_size(splits[which])
    return splits


def _tap(
    run: Job, chosen: Choices, variables: Any, splits: dict[str, Split]
) -> list[TappedLayer]:
    """Runs the trunk: on the images reported and, if others, those K is chosen on."""
    tapped: list[TappedLayer] = []
    for which in dict.fromkeys((chosen.eval_split, chosen.select_split)):
        split = splits[which]
        # The second is given the scores of the first.
        ranked = None
        if not tapped and chosen.rank_split != which:
            ranked = splits[chosen.rank_split]
        sources = [split] if ranked is None else [split, ranked]
        total = sum(len(processes.own(len(source))) for source in sources)
        with cluster.progress(total=total, unit="img", desc="feature maps") as bar:
            tapped.append(
                tap_layer(
                    run.apply,
                    variables,
                    split,
                    layer=chosen.layer,
                    tap=chosen.tap,
                    rank_split=ranked,
                    batch_size=run.batch_size(split),
                    mesh=cluster.local_mesh(),
                    on_images=bar.update,
                )
            )
    return tapped


def _sweep(
    tapped: TappedLayer,
    selecting: Sequence[TappedLayer],
    scores: np.ndarray,
    fill: str,
    fitted: Fill | None,
    ks: tuple[int, ...],
    about: dict[str, Any],
) -> SweepResult:
    """Sweeps with one fill; also over the other images that K is chosen on, if any."""
    resolved = resolve_fill(
        fitted if fill == "linear" and fitted is not None else fill,
        layer=tapped.name,
        bias=tapped.bias,
        mean=tapped.channel_means,
    )
    results = []
    for images in (tapped, *selecting):
        total = len(images.own) * len(ks)
        with cluster.progress(total=total, unit="eval", desc=f"fill {fill}") as bar:
            results.append(
                sweep_layer(
                    images,
                    scores,
                    fill=resolved,
                    ks=ks,
                    mask_chunk=FLAGS.mask_chunk,
                    about=about,
                    on_pairs=bar.update,
                )
            )
    result, *others = results
    return result.chosen_on(others[0]) if others else result


def _save(result: SweepResult, folder: Path) -> SweepResult:
    """Saves, draws and prints."""
    if processes.is_first():
        result.save(folder)
        curves.draw_sweep(result, folder)
    _print_curve(result, folder)
    return result


def _saved(
    folder: Path, ks: tuple[int, ...], about: dict[str, Any]
) -> SweepResult | None:
    """The folder's sweep, if there is one, as it would be made again.

    Raises:
      InputError: it was made otherwise.
    """
    if not (folder / "summary.json").exists():
        return None
    saved = SweepResult.load(folder)
    found = facts.differences(saved, about)
    if saved.ks != ks:
        found.append(f"it has {len(saved.ks)} values of K, not these {len(ks)}")
    if found:
        raise InputError(
            f"{folder} holds another sweep: {'; '.join(found)}. Remove it, "
            "or give another --workdir"
        )
    return replace(saved, about={**saved.about, **about})


def _print_scores(layer: str, scores: np.ndarray) -> None:
    """The lowest and highest channels with their scores, as the report prints them."""
    ranked = pruning_order(scores)

    def listing(channels: Iterable[int]) -> str:
        return ", ".join(f"{c}: {scores[c]:.4f}" for c in channels)

    print(f"layer {layer}, {len(ranked)} channels, channel: score")
    print(f"  lowest     {listing(ranked[:5])}")
    print(f"  highest    {listing(ranked[::-1][:5])}")


def _print_curve(result: SweepResult, folder: Path) -> None:
    allowed = points(result.max_drop)
    print(f"fill {result.about['fill']}{_how_fitted(result)}")
    for k, what in (
        (result.ks[0], "with 95 % intervals"),
        (
            result.largest_safe_k(result.max_drop),
            f"largest safe K: 95 % sure that less than {allowed} is lost",
        ),
        (
            result.largest_k_within(result.max_drop),
            f"largest K within {allowed}, as measured",
        ),
    ):
        at = result.at(k)
        print(f"  K = {k:<6} {_with_ends(at, 'accuracy')}", end="")
        print(f"  {_with_ends(at, 'balanced_accuracy')}  {what}")
        if k != result.ks[0]:
            print(f"             {_with_ends(at, 'change')}", end="")
            print(f"  McNemar's p = {at['mcnemar_p']:.2g}")
    for line in result.overlaps:
        print(f"  note       {line}")
    print(f"  files      {folder}/")


def _with_ends(at: dict[str, float], name: str) -> str:
    value, low, high = at[name], at[f"{name}_low"], at[f"{name}_high"]
    return f"{name.replace('_', ' ')} {value:.4f} ({low:.4f} .. {high:.4f})"


def _how_fitted(result: SweepResult) -> str:
    made = result.about.get("fill_facts")
    if not made:
        return ""
    images = f"{made['images']} images of {made['split']}"
    return f", fitted on {images}, ridge {made['ridge']:g}"


if __name__ == "__main__":
    cli.run(main)
