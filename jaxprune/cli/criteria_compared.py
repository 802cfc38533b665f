"""Criteria side by side, beside random orders: one trunk, one compilation.

`jaxprune sweep --criterion=all --random_orders=20` comes here.
"""

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from jaxprune._base import processes
from jaxprune._base.errors import InputError
from jaxprune.cli import (
    calibration,
    cluster,
    process,
    provenance,
    pruning_options,
    run_directory,
    scoring,
)
from jaxprune.cli.pruning_options import PruningOptions
from jaxprune.cli.run_directory import Run
from jaxprune.cli.weights import train_or_restore
from jaxprune.data.splits import Split
from jaxprune.fills.fill import Fill, resolve_fill
from jaxprune.ranking import criteria
from jaxprune.report.criteria import draw_comparison
from jaxprune.report.curves import draw_training
from jaxprune.results.comparison import Comparison, compare
from jaxprune.results.confidence import points
from jaxprune.results.result import SweepResult
from jaxprune.sweep.activations import TappedLayer
from jaxprune.sweep.checkpoint import SweepCheckpoint
from jaxprune.sweep.layer import sweep_orders

FLAGS = flags.FLAGS


@dataclass(frozen=True)
class Compared:
    """What is compared, and on which images.

    Attributes:
      run: the run directory's job.
      chosen: layer, tap, fill and splits.
      images: by the names of their splits.
      ks: numbers of pruned channels.
    """

    run: Run
    chosen: PruningOptions
    images: dict[str, Split]
    ks: tuple[int, ...]

    def by(self, criterion: str) -> PruningOptions:
        """The same choices with one criterion."""
        return replace(self.chosen, criterion=criterion)

    def folder(self, criterion: str) -> Path:
        """Where a criterion's sweep is saved."""
        return self.by(criterion).sweep_folder(self.run.workdir, self.chosen.fill)


def main(compared: Compared, resume: bool = False) -> list[SweepResult]:
    """Trains or restores, gathers, scores, sweeps, saves and draws.

    Args:
      compared: what to compare.
      resume: takes the comparison as it is where it is saved.

    Returns:
      The sweep of each criterion.
    """
    run, chosen = compared.run, compared.chosen
    names, left_out = _names(compared)
    lead = next((n for n in names if compared.by(n).calibration(chosen.fill)), names[0])
    calibration.check(run, compared.by(lead), chosen.fill)
    Comparison.check_target(chosen.comparison_folder(run.workdir))
    variables = train_or_restore(run)
    about = {
        name: provenance.describe(run, compared.by(name), chosen.fill, variables)
        | provenance.allowed()
        for name in names
    }
    saved = {
        name: provenance.saved_sweep(compared.folder(name), compared.ks, about[name])
        for name in names
    }
    folder = chosen.comparison_folder(run.workdir)
    if resume and (found := _finished(folder, saved)):
        print(f"comparison: {folder}/")
        return found
    try:
        started = time.perf_counter()
        tapped, selecting = scoring.tap_all(
            run, chosen, variables, names, compared.images
        )
        fitted = calibration.fit(run, compared.by(lead), chosen.fill, variables)
        scores, too_slow = _scores(compared, tapped, names, fitted)
        left_out |= too_slow
        scored = time.perf_counter()
        results, result = _sweep(compared, (tapped, selecting), scores, fitted, about)
    except KeyboardInterrupt:
        raise process.Interrupted(run_directory.kept(run)) from None
    seconds = {"scores": scored - started, "sweeps": time.perf_counter() - scored}
    about_all = {
        "left_out": left_out,
        "seconds": {what: round(took, 1) for what, took in seconds.items()},
    }
    result = replace(result, about=result.about | about_all)
    if processes.is_first():
        result.save(folder)
        shutil.rmtree(chosen.unfinished(folder), ignore_errors=True)
        draw_comparison(result, folder)
        draw_training(run.workdir)
    _print(result)
    return results


def _finished(
    folder: Path, saved: Mapping[str, SweepResult | None]
) -> list[SweepResult] | None:
    """The sweeps of the folder's comparison, if it is the one that would be made."""
    if not (folder / "summary.json").exists():
        return None
    made = Comparison.load(folder)
    found = [r for r in map(saved.get, made.names) if r is not None]
    same = (
        len(found) == len(made.names)
        and saved.keys() <= {*made.names, *made.about["left_out"]}
        and len(made.random_accuracy) == FLAGS.random_orders
        and np.array_equal(made.accuracy, [r.accuracy for r in found])
        and made.safe_k == tuple(r.largest_safe_k(r.max_drop) for r in found)
        and made.about["max_drop"] == found[0].max_drop
    )
    return found if same else None


def _names(compared: Compared) -> tuple[list[str], dict[str, str]]:
    """The criteria to compare, and why others of "all" cannot be had.

    Raises:
      InputError: every fill at once, or a criterion named that cannot be had.
    """
    run, chosen = compared.run, compared.chosen
    if chosen.fill == "all":
        raise InputError("criteria are compared with one --fill, fills with one order")
    every = FLAGS.criterion == "all"
    names, left_out = [], {}
    for name in pruning_options.several_criteria() or (chosen.criterion,):
        if every and name == "random" and FLAGS.random_orders:
            continue  # that is what the band is
        scoring.images(run, chosen, name)  # a flag out of range is an error
        try:
            scoring.check(run, chosen, name)
            names.append(name)
        except InputError as error:
            if not every:
                raise
            left_out[name] = str(error)
    return names, left_out


def _scores(
    compared: Compared, tapped: TappedLayer, names: list[str], fitted: Fill | None
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """By criterion; and why one takes too long that was not named."""
    run, chosen = compared.run, compared.chosen
    scores: dict[str, np.ndarray] = {}
    left_out: dict[str, str] = {}
    for name in names:
        if name == "abs_oracle" and "oracle" in scores:
            scores[name] = np.abs(scores["oracle"])  # measured already
            continue
        try:
            scores[name] = scoring.score_by(
                run, chosen, tapped, name, chosen.fill, fitted
            )
        except InputError as error:
            if FLAGS.criterion != "all" or name != "greedy_oracle":
                raise
            left_out[name] = str(error)
    return scores, left_out


def _sweep(
    compared: Compared,
    layers: tuple[TappedLayer, TappedLayer | None],
    scores: Mapping[str, np.ndarray],
    fitted: Fill | None,
    about: Mapping[str, dict[str, Any]],
) -> tuple[list[SweepResult], Comparison]:
    """Sweeps every order, and saves each criterion's.

    The criteria's also over the other images that K is chosen on, if any.
    """
    run, chosen, (tapped, selecting) = compared.run, compared.chosen, layers
    fill = resolve_fill(
        fitted if chosen.fill == "linear" and fitted is not None else chosen.fill,
        layer=tapped.name, bias=tapped.bias, mean=tapped.channel_means,
    )  # fmt: skip
    random = {
        f"random order {i}": criteria.random(tapped.channels, [run.config.seed, i])
        for i in range(FLAGS.random_orders)
    }
    orders = dict(scores) | random
    results: dict[str, SweepResult] = {}
    curves: list[tuple[np.ndarray, np.ndarray]] = []
    work = {"pairs": 0, "pairs_evaluated": 0}
    total = len(tapped.own) * len(orders)
    if selecting is not None:
        total += len(selecting.own) * len(scores)
    with cluster.progress(
        total=total * len(compared.ks), unit="eval", desc="orders"
    ) as bar:
        sweep = partial(
            sweep_orders, fill=fill, ks=compared.ks, mask_chunk=FLAGS.mask_chunk,
            about=about, on_pairs=bar.update,
        )  # fmt: skip
        parts = partial(
            SweepCheckpoint, chosen.unfinished(chosen.comparison_folder(run.workdir)),
            provenance.deciding(next(iter(about.values()))) | {"criterion": None},
        )  # fmt: skip
        others = None
        if selecting is not None:
            others = sweep(selecting, scores, checkpoint=parts("select"))
        for name, result in sweep(tapped, orders, checkpoint=parts("eval")):
            work = {key: count + result.about[key] for key, count in work.items()}
            if name in random:
                curves.append((result.accuracy, result.balanced_accuracy))
                continue
            if others is not None:
                result = result.chosen_on(next(others)[1])
            results[name] = result
            if processes.is_first():
                result.save(compared.folder(name))
    first = next(iter(results))
    shared = {k: v for k, v in about[first].items() if k != "criterion"}
    made = {"layer": chosen.layer, "fill": chosen.fill, **shared, **work}
    return [*results.values()], compare(results, curves, made)


def _print(result: Comparison) -> None:
    print(f"{'criterion':<18}{'mean over K':>12}{'safe K':>8}{'Spearman':>10}", end="")
    print(f"{'beats random':>14}")
    rows = zip(
        result.names, result.mean_accuracy, result.safe_k, result.with_oracle,
        result.beaten, strict=True,
    )  # fmt: skip
    for name, mean, safe, rho, share in rows:
        print(f"{name:<18}{mean:>12.4f}{safe:>8}{_number(rho, '.2f'):>10}", end="")
        print(f"{_number(share, '.0%'):>14}")
    allowed = points(result.about["max_drop"])
    print(f"safe K: 95 % sure that less than {allowed} is lost")
    for line in result.about["overlaps"]:
        print(f"note: {line}")
    for name, why in result.about["left_out"].items():
        print(f"left out: {name}: {why}")
    print("pictures of each criterion's sweep: `jaxprune plot`")


def _number(x: float, form: str) -> str:
    return "-" if np.isnan(x) else format(x, form)
