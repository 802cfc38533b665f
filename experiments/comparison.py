"""Criteria side by side, beside random orders: one trunk, one compilation.

`experiments.sweep --criterion=all --random_orders=20` comes here.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from experiments import calibration, choices, cli, cluster, facts, job, scoring
from experiments.choices import Choices
from experiments.job import Job
from experiments.weights import train_or_restore
from jaxprune import processes
from jaxprune.channels.fills import Fill
from jaxprune.data.splits import Split
from jaxprune.errors import InputError
from jaxprune.ranking import criteria
from jaxprune.report.criteria import draw_comparison
from jaxprune.report.curves import draw_training
from jaxprune.sweep.comparison import Comparison, compare
from jaxprune.sweep.layer import sweep_orders
from jaxprune.sweep.result import SweepResult
from jaxprune.sweep.trunk import TappedLayer

FLAGS = flags.FLAGS


@dataclass(frozen=True)
class Compared:
    """What is compared, and on which images.

    Attributes:
      run: the run directory's job.
      chosen: layer, tap, fill.
      split: the images that predictions are made for.
      rank_split: the ranking images, where they are others.
      batch_size: images in a batch.
      ks: numbers of pruned channels.
    """

    run: Job
    chosen: Choices
    split: Split
    rank_split: Split | None
    batch_size: int
    ks: tuple[int, ...]

    def by(self, criterion: str) -> Choices:
        """The same choices with one criterion."""
        return replace(self.chosen, criterion=criterion)


def main(compared: Compared) -> None:
    """Trains or restores, gathers, scores, sweeps, saves and draws."""
    run, chosen = compared.run, compared.chosen
    names, left_out = _names(compared)
    lead = next((n for n in names if compared.by(n).calibration(chosen.fill)), names[0])
    calibration.check(run, compared.by(lead), chosen.fill)
    variables = train_or_restore(run)
    about = {
        name: facts.describe(run, compared.by(name), chosen.fill, variables)
        for name in names
    }
    for name in names:
        folder = compared.by(name).sweep_folder(run.workdir, chosen.fill)
        facts.check_folder(folder, compared.ks, about[name])
    try:
        started = time.perf_counter()
        tapped = scoring.tap(
            run, chosen, variables, names, compared.split, compared.rank_split,
            compared.batch_size,
        )  # fmt: skip
        fitted = calibration.fit(run, compared.by(lead), chosen.fill, variables)
        scores, too_slow = _scores(compared, tapped, names, fitted)
        left_out |= too_slow
        scored = time.perf_counter()
        result = _sweep(compared, tapped, scores, fitted, about)
    except KeyboardInterrupt:
        raise cli.Interrupted(job.kept(run)) from None
    seconds = {"scores": scored - started, "sweeps": time.perf_counter() - scored}
    about_all = {
        "left_out": left_out,
        "seconds": {what: round(took, 1) for what, took in seconds.items()},
    }
    result = replace(result, about=result.about | about_all)
    folder = chosen.comparison_folder(run.workdir)
    if processes.is_first():
        result.save(folder)
        draw_comparison(result, folder)
        draw_training(run.workdir)
    _print(result, folder)


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
    for name in choices.several_criteria() or (chosen.criterion,):
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
    tapped: TappedLayer,
    scores: Mapping[str, np.ndarray],
    fitted: Fill | None,
    about: Mapping[str, dict[str, Any]],
) -> Comparison:
    """Sweeps every order, and saves each criterion's."""
    run, chosen = compared.run, compared.chosen
    linear = chosen.fill == "linear" and fitted is not None
    random = {
        f"random order {i}": criteria.random(tapped.channels, [run.config.seed, i])
        for i in range(FLAGS.random_orders)
    }
    orders = dict(scores) | random
    results: dict[str, SweepResult] = {}
    curves: list[tuple[np.ndarray, np.ndarray]] = []
    work = {"pairs": 0, "pairs_evaluated": 0}
    total = len(tapped.own) * len(compared.ks) * len(orders)
    with cluster.progress(total=total, unit="eval", desc="orders") as bar:
        for name, result in sweep_orders(
            tapped, orders, fill=fitted if linear and fitted else chosen.fill,
            ks=compared.ks, mask_chunk=FLAGS.mask_chunk, about=about,
            on_pairs=bar.update,
        ):  # fmt: skip
            work = {key: count + result.about[key] for key, count in work.items()}
            if name in random:
                curves.append((result.accuracy, result.balanced_accuracy))
                continue
            results[name] = result
            if processes.is_first():
                result.save(compared.by(name).sweep_folder(run.workdir, chosen.fill))
    first = next(iter(results))
    shared = {k: v for k, v in about[first].items() if k != "criterion"}
    made = {"layer": chosen.layer, "fill": chosen.fill, **shared, **work}
    return compare(results, curves, made)


def _print(result: Comparison, folder: Path) -> None:
    print(f"{'criterion':<18}{'mean over K':>12}{'safe K':>8}{'Spearman':>10}", end="")
    print(f"{'beats random':>14}")
    rows = zip(
        result.names, result.mean_accuracy, result.safe_k, result.with_oracle,
        result.beaten, strict=True,
    )  # fmt: skip
    for name, mean, safe, rho, share in rows:
        print(f"{name:<18}{mean:>12.4f}{safe:>8}{_number(rho, '.2f'):>10}", end="")
        print(f"{_number(share, '.0%'):>14}")
    for name, why in result.about["left_out"].items():
        print(f"left out: {name}: {why}")
    print(f"files: {folder}/; pictures of each sweep: experiments.plot")


def _number(x: float, form: str) -> str:
    return "-" if np.isnan(x) else format(x, form)
