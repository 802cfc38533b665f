"""The sweeps of one network: several criteria with one fill, or one with several fills.

One trunk, one compilation. Several criteria are compared, beside random orders.
"""

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
from jaxprune.fills.fill import FILLS, Fill, resolve_fill
from jaxprune.ranking import criteria
from jaxprune.ranking.order import check_ks, pruning_order
from jaxprune.report import curves
from jaxprune.report.criteria import draw_comparison
from jaxprune.results.comparison import Comparison, compare
from jaxprune.results.confidence import points
from jaxprune.results.result import SweepResult
from jaxprune.results.saved import check_target
from jaxprune.sweep.activations import TappedLayer
from jaxprune.sweep.checkpoint import SweepCheckpoint
from jaxprune.sweep.layer import sweep_orders

FLAGS = flags.FLAGS
# A criterion and a fill.
Key = tuple[str, str]


@dataclass(frozen=True)
class Sweeps:
    """The sweeps that the flags ask for.

    Attributes:
      run: the run directory's network and data.
      chosen: layer, tap and splits.
      images: by the names of their splits.
      ks: numbers of pruned channels.
      criteria: names of the criteria.
      fills: names of the fills; one, where criteria are compared.
      left_out: reasons why other criteria of "all" cannot be had.
    """

    run: Run
    chosen: PruningOptions
    images: dict[str, Split]
    ks: tuple[int, ...]
    criteria: tuple[str, ...]
    fills: tuple[str, ...]
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def compared(self) -> bool:
        """Whether criteria are compared with one another or with random orders."""
        return bool(pruning_options.several_criteria() or FLAGS.random_orders)

    @property
    def keys(self) -> list[Key]:
        """A criterion and a fill for each sweep."""
        return [(name, fill) for name in self.criteria for fill in self.fills]

    @property
    def lead(self) -> PruningOptions:
        """The options of a criterion for which the linear fill is fitted, if any."""
        for name in self.criteria:
            if self.by(name).calibration(self.fills[-1]):
                return self.by(name)
        return self.by(self.criteria[0])

    def by(self, criterion: str) -> PruningOptions:
        """The same choices with one criterion."""
        return replace(self.chosen, criterion=criterion)

    def folder(self, criterion: str, fill: str) -> Path:
        """The folder of one sweep."""
        return self.by(criterion).sweep_folder(self.run.workdir, fill)

    def target(self, fill: str) -> Path:
        """The folder of the comparison, or of the one sweep with this fill."""
        if self.compared:
            return self.chosen.comparison_folder(self.run.workdir)
        return self.folder(self.criteria[0], fill)

    @property
    def to_open(self) -> list[Path]:
        """Files to look at, the first one first."""
        last = self.target(self.fills[-1])
        if self.compared:
            return [last / n for n in ("criteria.png", "criteria.csv", "agreement.png")]
        names = ("accuracy_vs_k.png", "feature_maps.png", "sweep.csv")
        several = [self.of_fills] if len(self.fills) > 1 else []
        return [*several, *(last / name for name in names)]

    @property
    def of_fills(self) -> Path:
        """The picture of several fills."""
        return self.run.workdir / f"fills-{self.chosen.stem}.png"


def asked() -> Sweeps:
    """The sweeps that the flags ask for.

    Raises:
      InputError: flags that are out of range or do not go together, or a criterion
        that the layer cannot have.
    """
    run = run_directory.load(train_imported=False)
    chosen = pruning_options.resolve(run)
    images = scoring.splits(run, chosen)
    channels = run.network().graph().conv(chosen.layer).channels
    ks = check_ks(pruning_options.parse_ks(channels), channels)
    fills = FILLS if chosen.fill == "all" else (chosen.fill,)
    sweeps = Sweeps(run, chosen, images, ks, (chosen.criterion,), tuple(fills))
    if sweeps.compared and len(fills) > 1:
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
    return replace(sweeps, criteria=tuple(names), left_out=left_out)


def sweep_all(sweeps: Sweeps, resume: bool = False) -> list[SweepResult]:
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
    about = {
        (name, fill): provenance.describe(run, sweeps.by(name), fill, variables)
        | provenance.allowed()
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
) -> list[SweepResult]:
    run, chosen = sweeps.run, sweeps.chosen
    started = time.perf_counter()
    layers = scoring.tap_all(run, chosen, variables, sweeps.criteria, sweeps.images)
    fitted = calibration.fit(run, sweeps.lead, sweeps.fills[-1], variables)
    scores, too_slow = _scores(sweeps, layers[0], fitted)
    scored = time.perf_counter()
    if not sweeps.compared:
        _print_scores(chosen.layer, scores[chosen.criterion])
    results: list[SweepResult] = []
    for fill in sweeps.fills:
        found, random, work = _sweep(sweeps, layers, fill, scores, fitted, about)
        results += found.values()
        if not sweeps.compared:
            _forget(sweeps, fill)
            _print_curve(results[-1], sweeps.target(fill))
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
        _print_comparison(comparison)
    if processes.is_first():
        curves.draw_training(run.workdir)
        if len(sweeps.fills) > 1:
            curves.save(curves.compare_fills(results), sweeps.of_fills)
    return results


def _forget(sweeps: Sweeps, fill: str) -> None:
    """Removes what a stopped sweep would have gone on from."""
    if processes.is_first():
        folder = sweeps.chosen.unfinished(sweeps.target(fill))
        shutil.rmtree(folder, ignore_errors=True)


def _finished(
    sweeps: Sweeps, saved: Mapping[Key, SweepResult | None]
) -> list[SweepResult] | None:
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
        and len(made.random_accuracy) == FLAGS.random_orders
        and np.array_equal(made.accuracy, [r.accuracy for r in found])
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
            if FLAGS.criterion != "all" or name != "greedy_oracle":
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
) -> tuple[dict[str, SweepResult], list[tuple[np.ndarray, np.ndarray]], dict[str, int]]:
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
        for i in range(FLAGS.random_orders)
    }
    orders = dict(scores) | random
    facts = {name: about[name, fill] for name in scores}
    deciding = provenance.deciding(next(iter(facts.values())))
    if sweeps.compared:
        deciding |= {"criterion": None}
    folder = sweeps.chosen.unfinished(sweeps.target(fill))
    parts = partial(SweepCheckpoint, folder, deciding)
    results: dict[str, SweepResult] = {}
    curves_of_random: list[tuple[np.ndarray, np.ndarray]] = []
    work = {"pairs": 0, "pairs_evaluated": 0}
    total = len(tapped.own) * len(orders)
    if selecting is not None:
        total += len(selecting.own) * len(scores)
    what = "orders" if sweeps.compared else f"fill {fill}"
    with cluster.progress(total=total * len(sweeps.ks), unit="eval", desc=what) as bar:
        sweep = partial(
            sweep_orders, fill=resolved, ks=sweeps.ks, mask_chunk=FLAGS.mask_chunk,
            about=facts, on_pairs=bar.update,
        )  # fmt: skip
        others = None
        if selecting is not None:
            others = sweep(selecting, scores, checkpoint=parts("select"))
        for name, result in sweep(tapped, orders, checkpoint=parts("eval")):
            work = {key: count + result.about[key] for key, count in work.items()}
            if name in random:
                curves_of_random.append((result.accuracy, result.balanced_accuracy))
                continue
            if others is not None:
                result = result.chosen_on(next(others)[1])
            results[name] = result
            if processes.is_first():
                result.save(sweeps.folder(name, fill))
                if not sweeps.compared:
                    curves.draw_sweep(result, sweeps.folder(name, fill))
    return results, curves_of_random, work


def _print_scores(layer: str, scores: np.ndarray) -> None:
    """The lowest and highest channels with their scores, as the report prints them."""
    ranked = pruning_order(scores)

    def listing(channels: np.ndarray) -> str:
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


def _print_comparison(result: Comparison) -> None:
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
