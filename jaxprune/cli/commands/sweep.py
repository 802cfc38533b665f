r"""Ranks a layer's channels and measures the network with the k lowest pruned.

    jaxprune sweep --model=digits_pair
    jaxprune sweep --model=mnist_pair --data_dir=...
    jaxprune sweep --model=cifar_vgg --init_from=my_model.h5 --fill=all
    jaxprune sweep --model=digits_pair --criterion=all --random_orders=20
    jaxprune sweep --model=digits_pair --seeds=0,1,2,3,4

Trains first where the run directory has no trained network. Writes one folder per
sweep, `sweep-<layer>-<criterion>-<fill>`; of several criteria also a comparison,
`criteria-<layer>-<fill>`; and report.html, of all sweeps in the run directory.
digits_pair takes about 2 minutes on 2 CPU cores, training included.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from jaxprune._base import processes
from jaxprune._base.errors import InputError
from jaxprune.cli import (
    calibration,
    cluster,
    criteria_compared,
    process,
    provenance,
    pruning_options,
    run_directory,
    scoring,
    seeds,
)
from jaxprune.cli.commands import report
from jaxprune.cli.flags import (
    define_batch_size,
    define_choices,
    define_max_drop,
    define_network,
    define_processes,
)
from jaxprune.cli.weights import train_or_restore
from jaxprune.fills.fill import FILLS, Fill, resolve_fill
from jaxprune.ranking.order import check_ks, pruning_order
from jaxprune.report import curves, page
from jaxprune.results.confidence import points
from jaxprune.results.result import SweepResult
from jaxprune.results.saved import check_target
from jaxprune.sweep.activations import TappedLayer
from jaxprune.sweep.checkpoint import SweepCheckpoint
from jaxprune.sweep.layer import sweep_layer

FLAGS = flags.FLAGS
FIRST = (
    "model",
    "data",
    "data_dir",
    "init_from",
    "workdir",
    "layer",
    "criterion",
    "fill",
    "ks",
    "max_drop",
)
define_network()
define_processes()
define_batch_size()
define_choices()
define_max_drop()
flags.DEFINE_integer("mask_chunk", None, "Masks evaluated at once.", lower_bound=1)
flags.DEFINE_bool("report", True, "Write report.html, see `jaxprune report`.")
flags.DEFINE_integer(
    "random_orders", 0, "Random orders to compare the criteria with.", 0, 1000
)


def main() -> None:
    """Trains or restores, ranks, sweeps, saves and draws."""
    pruning_options.check_names((*FILLS, "all"), several=True)
    if FLAGS.seeds is None:
        process.finish(*_one().to_open)
    else:
        seeds.sweep_each(lambda: _one(resume=True).results)


class Swept(NamedTuple):
    """The sweeps of one network, and their files.

    Attributes:
      results: a fill or a criterion each.
      to_open: files to look at, the first one first.
    """

    results: list[SweepResult]
    to_open: list[Path]


def _one(resume: bool = False) -> Swept:
    """The sweeps of one network.

    Args:
      resume: takes them as they are where all are saved.
    """
    run = run_directory.load(train_imported=False)
    chosen = pruning_options.resolve(run)
    images = scoring.splits(run, chosen)
    channels = run.network().graph().conv(chosen.layer).channels
    ks = check_ks(pruning_options.parse_ks(channels), channels)
    if pruning_options.several_criteria() or FLAGS.random_orders:
        compared = criteria_compared.Compared(run, chosen, images, ks)
        results = criteria_compared.main(compared, resume)
        folder = chosen.comparison_folder(run.workdir)
        names = ("criteria.png", "criteria.csv", "agreement.png")
        to_open = [folder / name for name in names]
        return Swept(results, [*_report(run.workdir), *to_open])
    fills = FILLS if chosen.fill == "all" else (chosen.fill,)
    for fill in fills:
        calibration.check(run, chosen, fill)
        check_target(chosen.sweep_folder(run.workdir, fill))
    scoring.check(run, chosen, chosen.criterion)

    variables = train_or_restore(run)
    about = {
        fill: provenance.describe(run, chosen, fill, variables) | provenance.allowed()
        for fill in fills
    }
    folders = {fill: chosen.sweep_folder(run.workdir, fill) for fill in fills}
    to_open = [run.workdir / f"fills-{chosen.stem}.png"] if len(fills) > 1 else []
    for name in ("accuracy_vs_k.png", "feature_maps.png", "sweep.csv"):
        to_open.append(folders[fills[-1]] / name)
    saved = [provenance.saved_sweep(folders[fill], ks, about[fill]) for fill in fills]
    found = [result for result in saved if result is not None]
    if resume and len(found) == len(fills):
        print(f"sweeps: {', '.join(map(str, folders.values()))}")
        return Swept(found, to_open)
    try:
        tapped, selecting = scoring.tap_all(
            run, chosen, variables, [chosen.criterion], images
        )
        fitted = calibration.fit(run, chosen, fills[-1], variables)
        scores = scoring.score_by(
            run, chosen, tapped, chosen.criterion, fills[0], fitted
        )
        _print_scores(chosen.layer, scores)
        results = []
        for fill in fills:
            parts = chosen.unfinished(folders[fill])
            result = _sweep(
                tapped, selecting, scores, fill, fitted, ks, about[fill], parts
            )
            results.append(_save(result, folders[fill], parts))
    except KeyboardInterrupt:
        raise process.Interrupted(run_directory.kept(run)) from None
    if processes.is_first():
        curves.draw_training(run.workdir)
        if len(results) > 1:
            curves.save(curves.compare_fills(results), to_open[0])
    return Swept(results, [*_report(run.workdir), *to_open])


def _report(workdir: Path) -> list[Path]:
    """Writes the page; its path, or none where another sweep is damaged."""
    if not FLAGS.report or not processes.is_first():
        return []
    try:
        page.write(workdir, workdir / report.NAME)
    except InputError as error:
        print(f"{report.NAME} is not written: {error}")
        return []
    return [workdir / report.NAME]


def _sweep(
    tapped: TappedLayer,
    selecting: TappedLayer | None,
    scores: np.ndarray,
    fill: str,
    fitted: Fill | None,
    ks: tuple[int, ...],
    about: dict[str, Any],
    unfinished: Path,
) -> SweepResult:
    """Sweeps with one fill; also over the other images that K is chosen on, if any."""
    resolved = resolve_fill(
        fitted if fill == "linear" and fitted is not None else fill,
        layer=tapped.name,
        bias=tapped.bias,
        mean=tapped.channel_means,
    )
    results = []
    for split, images in (("eval", tapped), ("select", selecting)):
        if images is None:
            continue
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
                    checkpoint=SweepCheckpoint(
                        unfinished, provenance.deciding(about), split
                    ),
                    on_pairs=bar.update,
                )
            )
    result, *others = results
    return result.chosen_on(others[0]) if others else result


def _save(result: SweepResult, folder: Path, unfinished: Path) -> SweepResult:
    """Saves, draws and prints."""
    if processes.is_first():
        result.save(folder)
        shutil.rmtree(unfinished, ignore_errors=True)
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
