"""One analysis, and a network for each budget: cut, proved, measured, remembered."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxprune._base import processes
from jaxprune._base.batch import on_device, size_of
from jaxprune._base.errors import InputError
from jaxprune._base.journal import Journal
from jaxprune.cli import cluster, provenance
from jaxprune.cli.baseline import Baseline, Judged
from jaxprune.cli.settings import ImageSettings, TimingSettings, WidthSettings
from jaxprune.cli.shrink import forecast, measured
from jaxprune.costs.machine import machine
from jaxprune.data.cache import cache_folder
from jaxprune.graph.fast import with_fast_convolutions
from jaxprune.results.budgets import WHOLE, ImagesFile, Outcome
from jaxprune.results.task_figures import score_figures
from jaxprune.shrinking.analysis import Analysis, Cut
from jaxprune.shrinking.budget import Budget
from jaxprune.shrinking.curves import Curve
from jaxprune.shrinking.shrink import analyse
from jaxprune.tasks.classes import Classification


@dataclass(frozen=True, kw_only=True)
class LadderSettings(ImageSettings, TimingSettings, WidthSettings):
    """The settings that a ladder goes by."""


class Rung(NamedTuple):
    """A budget and what it comes to.

    Attributes:
      budget: the budget to meet.
      widths: units that each group keeps.
      row: figures of the network.
    """

    budget: Budget
    widths: dict[str, int]
    row: dict[str, Any]


def speedups(flag: str, texts: Sequence[str]) -> list[Budget]:
    """The budgets that a flag's numbers stand for, ascending; none of "".

    Raises:
      InputError: they are no numbers of at least 1.
    """
    given = [text for text in texts if text]
    try:
        return [Budget(speedup=step) for step in sorted({float(t) for t in given})]
    except ValueError:
        raise InputError(
            f"--{flag} takes numbers of at least 1, got {','.join(given)}"
        ) from None


def _key(budget: Budget) -> str:
    return f"{budget.kind}={budget.value:g}"


class Ladder:
    """The networks for several budgets, from one analysis.

    Attributes:
      run: the run directory's job.
      settings: images, batch sizes, and how widths are chosen.
      folder: the folder of the measurements.
      facts: network, images, device and versions, for the files.
      whole: the whole network over the evaluation split.
      baseline: its first score.
      images: what becomes of each image.
      analysis: of the network; timed where a budget is of latency.
      multiple_of: what widths are multiples of.
      rungs: finished budgets.
    """

    def __init__(
        self,
        settings: LadderSettings,
        whole: Baseline,
        images: Any,
        budget: Budget | None = None,
        networks: int | None = None,
    ):
        """Analyses the network, and says before what all will take.

        Args:
          settings: see above.
          whole: see above.
          images: calibration images.
          budget: one that is to be met.
          networks: number of budgets that are to be met; None where it is not known.
        """
        self.run = run = whole.run
        self.settings, self.whole = settings, whole
        self.batches = sorted({*settings.batches(), settings.batch})
        self._budget = budget
        self.folder = run.workdir / "shrink"
        self.facts = {
            **provenance.network(run, whole.variables),
            "eval_split": settings.eval_split,
            "calibration_split": settings.calibration_split,
        }
        facts = {name: self.facts[name] for name in measured.DECISIVE}
        decisive = {name: fact for name, fact in facts.items() if fact is not None}
        self._journal = Journal(self.folder / "state.json", decisive)
        self._state = measured.read(self._journal, settings.curves)
        self.images = ImagesFile(self.folder, decisive)
        processes.wait()  # before the first one writes
        program = whole.program(with_fast_convolutions(whole.network).function)
        if not self._state["curves"]:
            work = forecast.work(
                whole, program, size_of(images), self.batches, settings.repeats,
                networks, timed=self._of_latency,
            )  # fmt: skip
            cluster.say(f"this takes {work}")
        analysis = self._analyse(run.scale(on_device(images)))
        self.analysis = self._timed(analysis) if self._of_latency else analysis
        self.multiple_of = settings.multiple_of or processes.from_first(
            analysis.fastest_multiple(settings.batch, cache=self._cache)
        )
        made = whole.outputs(program, whole.network.params)
        self._judged = whole.judged(made, "whole network")
        self.baseline = whole.value(self._judged)
        self.rungs: dict[str, Rung] = {}
        self._last: tuple[dict[str, int], Cut] | None = None

    def candidates(self, budget: Budget) -> list[dict[str, int]]:
        """Units that each group keeps, one way or a few: see `Analysis.candidates`."""
        return self.analysis.candidates(budget, multiple_of=self.multiple_of)

    def reaches(self, budget: Budget) -> bool:
        """Whether the network can be cut to the budget."""
        try:
            self.candidates(budget)
        except InputError:
            return False
        return True

    def cut(self, rung: Rung) -> Cut:
        """The rung's network, made again where it is not the last that was made."""
        if self._last is None or self._last[0] != rung.widths:
            self._best([rung.widths])
        assert self._last is not None
        return self._last[1]

    def _best(self, candidates: Sequence[dict[str, int]]) -> dict[str, int]:
        """The best of several widths; its network is the last that was made."""
        fits = len(candidates) + (len(candidates) > 1)
        total = self.analysis.fitted_layers * fits
        with cluster.progress(total=total, unit="layer", desc="fitting") as bar:
            self._last = self.analysis.best(candidates, on_layer=lambda n: bar.update())
        return self._last[0]

    def rung(self, budget: Budget) -> Rung:
        """A budget's network, cut, proved and measured; or as this code found it."""
        key = _key(budget)
        if key in self.rungs:
            return self.rungs[key]
        candidates = processes.from_first(self.candidates(budget))
        made = {
            "machine": machine(),
            **{name: self.facts[name] for name in ("versions", "commit")},
        }
        saved = self._state["rungs"].get(key)
        same = (
            saved is not None
            and saved["widths"] in candidates
            and set(saved["row"]["latency"]) == {str(b) for b in self.batches}
            and all(saved[key] == value for key, value in made.items())
            and key in self.images
        )
        widths = saved["widths"] if same else self._best(candidates)
        rung = Rung(budget, widths, saved["row"] if same else {})
        if not same:
            row, judged = self._measured(rung)
            rung.row.update(row)
            if processes.is_first():
                self.images.keep({WHOLE: _outcome(self._judged), key: _outcome(judged)})
            self._state["rungs"][key] = {"widths": widths, "row": rung.row, **made}
            self._keep({"rungs": self._state["rungs"]})
        self.rungs[key] = rung
        return rung

    def _measured(self, rung: Rung) -> tuple[dict[str, Any], Judged]:
        """The figures of a rung, and what is known of its network's outputs."""
        cut, whole = self.cut(rung), self.whole
        small, arrays = cut.small, dict(cut.arrays)
        program = whole.program(cut.masked(with_fast_convolutions(cut.network)))
        proof, judged = whole.prove(whole.outputs(program, arrays), small)
        row = {
            **whole.scores(self._judged, judged),
            "proof": proof.to_json(),
            **whole.figures(small, self.batches, self.settings.repeats),
            **self._predicted(rung),
            **_agreement(self._judged.predictions, judged.predictions),
        }
        return row, judged

    def _predicted(self, rung: Rung) -> dict[str, float]:
        """The time that a budget of latency goes by; nothing for other budgets."""
        table, whole = self.analysis.latency, self.analysis.costs.whole
        if table is None or rung.budget.latency is None:
            return {}
        before, after = (table.seconds({**whole, **w}) for w in ({}, rung.widths))
        return {"predicted_speedup": before / after, "predicted_seconds": after}

    def _analyse(self, images: Any) -> Analysis:
        known = dict(self._state["curves"])
        with cluster.progress(desc="loss curves", unit="group") as bar:

            def keep(name: str, curve: Curve) -> None:
                self._state["curves"][name] = curve
                curves = self._state["curves"].items()
                kept = {"curves": {n: asdict(c) for n, c in curves}}
                self._keep({**kept, **measured.method(self.settings.curves)})
                bar.update()

            analysis = analyse(
                self.whole.network, images, task=self.run.task,
                keep_whole=self.settings.keep_whole, budget=self._budget,
                curves=self.settings.curves, known=known, mesh=self.run.mesh,
                on_start=bar.reset, on_curve=keep,
            )  # fmt: skip
        # Hosts of different kinds round differently, and orders may differ by that.
        return replace(analysis, curves=processes.from_first(dict(analysis.curves)))

    def _timed(self, analysis: Analysis) -> Analysis:
        total = len(analysis.costs.layers)
        with cluster.progress(total=total, desc="layers' times", unit="layer") as bar:
            timed = analysis.timed(
                self.settings.batch,
                cache=self._cache,
                on_layer=lambda name: bar.update(),
            )
        assert timed.latency is not None
        layers, rest = processes.from_first((timed.latency.layers, timed.latency.rest))
        table = replace(timed.latency, layers=layers, rest=rest)
        return replace(timed, latency=table)

    def _keep(self, entries: dict[str, Any]) -> None:
        if processes.is_first():
            self._journal.keep(entries)

    def keep_pictures(self) -> None:
        """Keeps pictures of the images that finished budgets lose and win."""
        rungs = [WHOLE, *(_key(rung.budget) for rung in self.by_cost())]
        labelled = isinstance(self.whole.task, Classification)
        self.images.keep_pictures(rungs, self.whole.split, labelled)

    def by_cost(self) -> list[Rung]:
        """Finished budgets, the largest network first."""
        rungs = self.rungs.values()
        return sorted(rungs, key=lambda rung: -rung.row["multiply_adds"])

    @property
    def _of_latency(self) -> bool:
        """Whether layers are to be timed."""
        return self._budget is not None and self._budget.latency is not None

    @property
    def _cache(self) -> Path:
        """Folder in which times are kept."""
        return cache_folder(self.run.settings.cache_dir)


def _outcome(judged: Judged) -> Outcome:
    """What is kept of a network's outputs: no predictions of an image's positions."""
    predictions = judged.predictions
    single = predictions is not None and predictions.ndim == 1
    return Outcome(judged.losses, predictions if single else None)


def _agreement(
    whole: np.ndarray | None, smaller: np.ndarray | None
) -> dict[str, float]:
    """The share of predictions that are the whole network's.

    And the least that it may be with 95 % confidence. Nothing where outputs are no
    logits.
    """
    if whole is None or smaller is None:
        return {}
    shares = (whole == smaller).reshape(len(whole), -1).mean(1)
    figures = score_figures(np.stack([np.ones_like(shares), shares]), None, True)
    lost = float(figures.drop_limit[1])
    return {"agreement": float(shares.mean()), "least_agreement": 1 - lost}
