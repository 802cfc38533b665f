"""The sweeps of one network: one trunk, one compilation.

Several criteria are compared, beside random orders.
"""

import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from jaxprune._base import processes
from jaxprune._base.errors import InputError
from jaxprune.cli import (
    calibration,
    cluster,
    process,
    provenance,
    run_directory,
    scoring,
    training_log,
)
from jaxprune.cli.sweep.plan import Key, Sweeps
from jaxprune.cli.sweep.report import print_comparison, print_curve, print_scores
from jaxprune.cli.weights import train_or_restore
from jaxprune.fills.fill import Fill, resolve_fill
from jaxprune.ranking import criteria
from jaxprune.report import curves, style
from jaxprune.report.criteria import draw_comparison
from jaxprune.results.comparison import Comparison, compare, measured
from jaxprune.results.load import AnyResult
from jaxprune.results.result import SweepResult
from jaxprune.results.saved import check_target
from jaxprune.results.task_result import TaskResult
from jaxprune.sweep.activations import TappedLayer
from jaxprune.sweep.checkpoint import SweepCheckpoint
from jaxprune.sweep.layer import sweep_orders


def sweep_all(sweeps: Sweeps, resume: bool = False) -> list[AnyResult]:
    """Trains or restores, gathers, scores, sweeps, saves and draws.

    Args:
      sweeps: the sweeps.
      resume: takes them as they are where all are saved.

    Returns:
      The result of each.
    """
    run, ks = sweeps.run, sweeps.ks
    for fill in sweeps.fills:
        calibration.check(run, sweeps.lead, fill)
        check = Comparison.check_target if sweeps.compared else check_target
        check(sweeps.target(fill))
    variables = train_or_restore(run)
    drop = sweeps.settings.max_drop
    allowed = {"max_drop": run.task.max_drop if drop is None else drop}
    about = {
        (name, fill): provenance.describe(run, sweeps.by(name), fill, variables)
        | allowed
        for name, fill in sweeps.keys
    }
    saved = {
        key: provenance.saved_sweep(sweeps.folder(*key), ks, about[key])
        for key in sweeps.keys
    }
    if resume and (found := _finished(sweeps, saved)):
        what = "comparison" if sweeps.compared else "sweeps"
        print(
            f"{what}: {', '.join(f'{sweeps.target(fill)}/' for fill in sweeps.fills)}"
        )
        return found
    try:
        return _sweep_all(sweeps, variables, about)
    except KeyboardInterrupt:
        raise process.Interrupted(run_directory.kept(run)) from None


def _sweep_all(
    sweeps: Sweeps, variables: Any, about: Mapping[Key, dict[str, Any]]
) -> list[AnyResult]:
    run, chosen = sweeps.run, sweeps.chosen
    started = time.perf_counter()
    layers = scoring.tap_all(run, chosen, variables, sweeps.criteria, sweeps.images)
    network = run.task.applied(run.network(variables))
    fitted = calibration.fit(run, sweeps.lead, sweeps.fills[-1], network)
    scores, too_slow = _scores(sweeps, layers[0], fitted)
    scored = time.perf_counter()
    if not sweeps.compared:
        print_scores(chosen.layer, scores[chosen.criterion])
    results: list[AnyResult] = []
    for fill in sweeps.fills:
        found, random, work = _sweep(sweeps, layers, fill, scores, fitted, about)
        results += found.values()
        if not sweeps.compared:
            _forget(sweeps, fill)
            print_curve(results[-1], sweeps.target(fill))
            continue
        seconds = {"scores": scored - started, "sweeps": time.perf_counter() - scored}
        first = about[next(iter(scores)), fill]
        shared = {key: value for key, value in first.items() if key != "criterion"}
        made = {"layer": chosen.layer, "fill": fill, **shared, **work}
        comparison = compare(found, random, made)
        comparison = replace(
            comparison,
            about=comparison.about
            | {
                "left_out": sweeps.left_out | too_slow,
                "seconds": {what: round(took, 1) for what, took in seconds.items()},
            },
        )
        if processes.is_first():
            comparison.save(sweeps.target(fill))
            _forget(sweeps, fill)
            draw_comparison(comparison, sweeps.target(fill))
        print_comparison(comparison)
    if processes.is_first():
        log = training_log.read(run.workdir)
        curves.draw_training(log, run.workdir, run.config.model)
        if len(sweeps.fills) > 1:
            style.save(curves.compare_fills(results), sweeps.of_fills)
    return results


def _forget(sweeps: Sweeps, fill: str) -> None:
    """Removes what a stopped sweep would have gone on from."""
    if processes.is_first():
        folder = sweeps.chosen.unfinished(sweeps.target(fill))
        shutil.rmtree(folder, ignore_errors=True)


def _finished(
    sweeps: Sweeps, saved: Mapping[Key, AnyResult | None]
) -> list[AnyResult] | None:
    """The saved sweeps, if all are there, and the comparison that would be made."""
    if not sweeps.compared:
        found = [result for result in saved.values() if result is not None]
        return found if len(found) == len(saved) else None
    (fill,) = sweeps.fills
    if not (sweeps.target(fill) / "summary.json").exists():
        return None
    made = Comparison.load(sweeps.target(fill))
    found = [r for name in made.names if (r := saved.get((name, fill))) is not None]
    same = (
        len(found) == len(made.names)
        and set(sweeps.criteria) <= {*made.names, *made.about["left_out"]}
        and len(made.random_accuracy) == sweeps.settings.random_orders
        and np.array_equal(made.accuracy, [r.curve for r in found])
        and made.safe_k == tuple(r.largest_safe_k(r.max_drop) for r in found)
        and made.about["max_drop"] == found[0].max_drop
    )
    return found if same else None


def _scores(
    sweeps: Sweeps, tapped: TappedLayer, fitted: Fill | None
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Scores by criterion; and why one takes too long that was not named."""
    scores: dict[str, np.ndarray] = {}
    left_out: dict[str, str] = {}
    for name in sweeps.criteria:
        if name == "abs_oracle" and "oracle" in scores:
            scores[name] = np.abs(scores["oracle"])  # measured already
            continue
        try:
            scores[name] = scoring.score_by(
                sweeps.run, sweeps.chosen, tapped, name, sweeps.fills[0], fitted
            )
        except InputError as error:
            if sweeps.settings.criterion != "all" or name != "greedy_oracle":
                raise
            left_out[name] = str(error)
    return scores, left_out


def _sweep(
    sweeps: Sweeps,
    layers: tuple[TappedLayer, TappedLayer | None],
    fill: str,
    scores: Mapping[str, np.ndarray],
    fitted: Fill | None,
    about: Mapping[Key, dict[str, Any]],
) -> tuple[dict[str, AnyResult], list[tuple[np.ndarray, np.ndarray]], dict[str, int]]:
    """Sweeps every order with one fill, and saves each criterion's result.

    The criteria's also over the other images that K is chosen on, if any.

    Returns:
      The results by criterion; the random orders' accuracy and balanced accuracy; the
      number of pairs, and of those evaluated.
    """
    tapped, selecting = layers
    resolved = resolve_fill(
        fitted if fill == "linear" and fitted is not None else fill,
        layer=tapped.name, bias=tapped.bias, mean=tapped.channel_means,
    )  # fmt: skip
    random = {
        f"random order {i}": criteria.random(
            tapped.channels, [sweeps.run.config.seed, i]
        )
        for i in range(sweeps.settings.random_orders)
    }
    orders = dict(scores) | random
    facts = {name: about[name, fill] for name in scores}
    deciding = provenance.deciding(next(iter(facts.values())))
    if sweeps.compared:
        deciding |= {"criterion": None}
    folder = sweeps.chosen.unfinished(sweeps.target(fill))
    parts = partial(SweepCheckpoint, folder, deciding)
    results: dict[str, AnyResult] = {}
    curves_of_random: list[tuple[np.ndarray, np.ndarray]] = []
    work = {"pairs": 0, "pairs_evaluated": 0}
    total = len(tapped.own) * len(orders)
    if selecting is not None:
        total += len(selecting.own) * len(scores)
    what = "orders" if sweeps.compared else f"fill {fill}"
    with cluster.progress(total=total * len(sweeps.ks), unit="eval", desc=what) as bar:
        sweep = partial(
            sweep_orders, fill=resolved, ks=sweeps.ks, about=facts,
            mask_chunk=sweeps.settings.mask_chunk, on_pairs=bar.update,
        )  # fmt: skip
        others = None
        if selecting is not None:
            others = sweep(selecting, scores, checkpoint=parts("select"))
        for name, result in sweep(tapped, orders, checkpoint=parts("eval")):
            work = {key: count + result.about[key] for key, count in work.items()}
            if name in random:
                curves_of_random.append(measured(result))
                continue
            if others is not None:
                result = _chosen_on(result, next(others)[1])
            results[name] = result
            if processes.is_first():
                result.save(sweeps.folder(name, fill))
                if not sweeps.compared:
                    curves.draw_sweep(result, sweeps.folder(name, fill))
    return results, curves_of_random, work


def _chosen_on(result: AnyResult, other: AnyResult) -> AnyResult:
    """The result with K chosen on the images of another sweep of the same task."""
    if isinstance(result, SweepResult):
        assert isinstance(other, SweepResult)
        return result.chosen_on(other)
    assert isinstance(other, TaskResult)
    return result.chosen_on(other)
