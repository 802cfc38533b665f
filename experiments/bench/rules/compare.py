"""This project's smaller networks beside those of other papers' rules, by budget.

A rule says which units of a layer go, not how many of each layer. Each is measured
twice: with the same share of every layer, as most papers have it, and with the widths
that this project chooses for the budget.
"""

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.bench.plan import OURS
from experiments.bench.report import write_csv
from experiments.bench.rules import figure
from experiments.bench.rules.peers import Peers, Widths
from jaxprune._base.batch import on_device
from jaxprune._base.errors import InputError
from jaxprune._base.files import write_text
from jaxprune._base.journal import Journal
from jaxprune.cli import cluster, process, provenance, run_directory
from jaxprune.cli.baseline import Baseline, Judged, splits
from jaxprune.cli.settings import ImageSettings, NetworkSettings, WidthSettings, flag
from jaxprune.cli.shrink.ladder import speedups
from jaxprune.cli.weights import train_or_restore
from jaxprune.fills.masked import run_masked
from jaxprune.graph.fast import with_fast_convolutions
from jaxprune.report import style
from jaxprune.shrinking.analysis import Analysis
from jaxprune.shrinking.budget import Budget
from jaxprune.shrinking.shrink import analyse

# How the widths of a network are chosen.
SAME, CHOSEN = "same share", "chosen widths"


@dataclass(frozen=True, kw_only=True)
class RulesSettings(NetworkSettings, ImageSettings, WidthSettings):
    """Settings of the comparison."""

    budgets: tuple[str, ...] = flag(
        "Times fewer multiply-adds, of --what=rules.", default=("1.5", "2", "3", "4")
    )


def main(settings: RulesSettings) -> None:
    """Cuts, measures, writes; what is finished is kept."""
    budgets = speedups("budgets", settings.budgets)
    if not budgets:
        raise InputError("--budgets takes numbers of at least 1, got none")
    run = run_directory.load(settings, train_imported=False)
    cluster.require_one_process("experiments.bench")
    split, calibration = splits(run, settings)
    variables = train_or_restore(run)
    images = run.scale(on_device(calibration.read(np.arange(len(calibration)))))
    whole = Baseline(run, variables, split, run.batch_size(split))
    analysis = analyse(
        whole.network, images, task=run.task, keep_whole=settings.keep_whole,
        curves=settings.curves, mesh=run.mesh,
    )  # fmt: skip
    folder = run.workdir / "bench-rules"
    about = {
        **provenance.network(run, variables),
        "eval_split": settings.eval_split,
        "calibration_split": settings.calibration_split,
        "curves": settings.curves,
        "multiple_of": settings.multiple_of or 1,
    }
    comparison = Comparison(folder, whole, analysis, images, about)
    total = len(budgets) * 2 * (1 + len(comparison.peers.rules))
    with cluster.progress(total=total, unit="network", desc="rules") as bar:
        rows = []
        for row in comparison.rows(budgets):
            rows.append(row)
            bar.update()
    show(rows, run.task.measure)
    folder.mkdir(exist_ok=True)
    write_csv(folder / "rules.csv", list(rows[0]), rows)
    text = json.dumps({"about": about, "rows": rows}, indent=2) + "\n"
    write_text(folder / "summary.json", text)
    title = f"{run.config.model}, straight after the cut; {len(split):,} images"
    picture = figure.rules(rows, title, run.task.measure)
    style.save(picture, folder / "rules.png")
    process.finish(folder / "rules.png", folder / "rules.csv")


class Comparison:
    """The networks of all rules, each measured once.

    Attributes:
      peers: the rules of others.
    """

    def __init__(
        self,
        folder: Path,
        whole: Baseline,
        analysis: Analysis,
        images: Any,
        about: Mapping[str, Any],
    ):
        self._whole, self._analysis = whole, analysis
        self._multiple = about["multiple_of"]
        groups = {name: analysis.groups.groups[name] for name in analysis.curves}
        self.peers = Peers.fitted(whole.network, groups, images)
        key = {name: fact for name, fact in about.items() if name != "commit"}
        self._journal = Journal(folder / "finished.json", key)
        self._finished = self._journal.recover(dict[str, dict[str, Any]])
        fast = with_fast_convolutions(whole.network)
        # A program for each kind of mask.
        self._program = functools.lru_cache(
            lambda structure: whole.program(
                lambda weights, x: run_masked(fast, weights.arrays, x, weights.masks)
            )
        )
        made = whole.outputs(whole.program(fast.function), whole.network.params)
        self._judged = whole.judged(made, "whole network")

    def rows(self, budgets: list[Budget]) -> Iterator[dict[str, Any]]:
        """The rows: budget by budget, the same share of every layer first."""
        for budget in budgets:
            for how in (SAME, CHOSEN):
                for rule in (OURS, *self.peers.rules):
                    key = f"{budget.value:g}, {how}, {rule}"
                    if key not in self._finished:
                        self._finished[key] = self._row(budget, how, rule)
                        self._journal.keep(self._finished)
                    yield self._finished[key]

    def _row(self, budget: Budget, how: str, rule: str) -> dict[str, Any]:
        widths = self._same(budget) if how == SAME else self._chosen(budget)
        judged = self._ours(widths) if rule == OURS else self._of_peer(rule, widths)
        costs = self._analysis.costs
        share = costs.multiply_adds({**costs.whole, **widths})
        return {
            "speedup": budget.value,
            "widths": how,
            "rule": rule,
            "theoretical_speedup": costs.multiply_adds(costs.whole) / share,
            **self._whole.scores(self._judged, judged),
        }

    def _chosen(self, budget: Budget) -> Widths:
        """The widths that this project chooses."""
        return self._analysis.candidates(budget, multiple_of=self._multiple)[0]

    def _same(self, budget: Budget) -> Widths:
        """The same share of every group, the largest that meets the budget."""
        costs = self._analysis.costs
        limit = costs.multiply_adds(costs.whole) / budget.value
        units = {name: costs.whole[name] for name in self._analysis.curves}

        def of(share: float) -> dict[str, int]:
            return {name: max(1, round(share * n)) for name, n in units.items()}

        low, high = 0.0, 1.0
        for _ in range(30):
            middle = (low + high) / 2
            cost = costs.multiply_adds({**costs.whole, **of(middle)})
            low, high = (middle, high) if cost <= limit else (low, middle)
        return of(low)

    def _ours(self, widths: Widths) -> Judged:
        small = self._analysis.cut(widths).small
        return self._whole.judged(self._whole.small_outputs(small), OURS)

    def _of_peer(self, rule: str, widths: Widths) -> Judged:
        pruned = self.peers.rules[rule](widths)
        program = self._program(jax.tree.structure(pruned))
        made = self._whole.outputs(program, pruned)
        return self._whole.judged(made, rule)


def show(rows: list[dict[str, Any]], measure: str) -> None:
    """Prints the table: a line for each rule, a column for each budget."""
    speedups = list(dict.fromkeys(row["speedup"] for row in rows))
    columns = "".join(f"{f'{speedup:g} x':>10}" for speedup in speedups)
    whole = rows[0][f"baseline_{measure}"]
    print(f"\n{measure}, straight after the cut; whole {whole:.4f}")
    print(f"{'':22}{'':16}{columns}")
    for rule, how in dict.fromkeys((row["rule"], row["widths"]) for row in rows):
        values = [
            row[measure] for row in rows if (row["rule"], row["widths"]) == (rule, how)
        ]
        print(f"{rule:22}{how:16}" + "".join(f"{value:>10.4f}" for value in values))
