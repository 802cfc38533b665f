"""The contest: a whole network, cut by this project and by Torch-Pruning."""

import importlib.metadata
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from experiments.bench.plan import OURS, PYTORCH
from experiments.bench.pytorch import ready, scaled
from experiments.bench.shrink import (
    latency,
    ours,
    report,
    torch_pruning,
    torch_training,
)
from experiments.bench.shrink.stages import (
    Competitor,
    ContestSettings,
    figures,
    ways,
)
from experiments.bench.torch_models import TWINS, Twin
from jaxprune._base.errors import InputError
from jaxprune._base.journal import Journal
from jaxprune.cli import cluster, finetuning, process, run_directory
from jaxprune.cli.baseline import Baseline, splits
from jaxprune.cli.finetuning import Finetuning
from jaxprune.cli.shrink.ladder import Ladder
from jaxprune.cli.weights import train_or_restore
from jaxprune.data.splits import Split
from jaxprune.shrinking.budget import Budget

PACKAGES = ("torch", "torch_pruning")
# Images that the twin's logits are compared on.
_EXAMPLES = 16


def main(settings: ContestSettings) -> None:
    """Cuts, recalibrates, fine-tunes, times, writes."""
    budget = Budget(speedup=settings.speedup)
    batches = settings.batches()
    finetuning.check_flags(settings)
    run = run_directory.load(settings, train_imported=False)
    cluster.require_one_process("experiments.bench")
    split, calibration = splits(run, settings)
    _check(run, settings, calibration)
    variables = train_or_restore(run)
    images = calibration.read(np.arange(len(calibration)))
    whole = Baseline(
        run, variables, split, run.batch_size(split), keeps_predictions=True
    )
    ladder = Ladder(settings, whole, images, budget, networks=1)
    ladder.candidates(budget)  # raises now where it is out of reach
    twin = ready(Twin(run.model, jax.device_get(variables), run.scale(run.image)))
    target = run.workdir / f"bench-speedup{settings.speedup:g}"
    contest = Contest(target, settings, ladder, twin, budget, calibration)
    try:
        rows = contest.rows()
        times = latency.measure(contest.networks, batches, settings.repeats)
    except KeyboardInterrupt:
        raise process.Interrupted(
            f"interrupted: {target} keeps {len(contest.finished)} finished networks; "
            "run the same command again to go on"
        ) from None
    for row in rows:
        _compare(row, rows[0], times[_framework(row["by"])])
    report.show(rows)
    about = {
        **contest.about,
        "turns": settings.repeats,
        "largest_logit_difference_of_the_twin": _difference(ladder, twin),
    }
    report.save(target, about, rows)
    names = ("networks.png", "networks.csv", "summary.json")
    process.finish(*(target / name for name in names))


class Contest:
    """The networks and their rows, each kept as soon as it is finished.

    Attributes:
      about: facts that it takes to trust or repeat the rows.
      networks: the folder that the networks are kept in.
      finished: rows, by method.
    """

    def __init__(
        self,
        folder: Path,
        settings: ContestSettings,
        ladder: Ladder,
        twin: Twin,
        budget: Budget,
        calibration: Split,
    ):
        self.networks = folder / "networks"
        self._ladder, self._twin = ladder, twin
        self._tuning = Finetuning(ladder.run, settings)
        self._budget, self._calibration = budget, calibration
        self.about = _about(settings, ladder)
        key = {name: fact for name, fact in self.about.items() if name != "commit"}
        self._journal = Journal(folder / "finished.json", key)
        self.finished = self._journal.recover(dict[str, dict[str, Any]])

    def rows(self) -> list[dict[str, Any]]:
        """Those of the whole networks, then of those that are cut."""
        for framework in (OURS, PYTORCH):
            (self.networks / framework).mkdir(parents=True, exist_ok=True)
        torch_pruning.save(self._twin, self.networks / PYTORCH / latency.WHOLE)
        cut = [self._row(OURS, ours.METHOD, self._ours)]
        for name in torch_pruning.METHODS:
            cut.append(self._row(PYTORCH, name, partial(self._theirs, name)))
        return [*_wholes(self._ladder, self._twin), *cut]

    def _ours(self) -> Competitor:
        rung = self._ladder.rung(self._budget)
        return ours.competitor(self._tuning, self._ladder, rung, self._calibration)

    def _theirs(self, name: str) -> Competitor:
        limit = self._ladder.whole.cost.multiply_adds / self._budget.value
        return torch_pruning.competitor(
            self._tuning,
            self._ladder,
            self._twin,
            name,
            limit,
            self._calibration,
        )

    def _row(
        self, framework: str, name: str, make: Callable[[], Competitor]
    ) -> dict[str, Any]:
        """The row, as it is kept or after all stages."""
        network = self.networks / framework / name
        if name not in self.finished or not network.exists():
            competitor = make()
            competitor.save(network)
            self.finished[name] = figures(self._tuning, competitor)
            self._journal.keep({name: self.finished[name]})
        return self.finished[name]


def _check(
    run: run_directory.Run, settings: ContestSettings, calibration: Split
) -> None:
    """Raises InputError if the network or the images cannot be compared on."""
    tuning = Finetuning(run, settings)
    if type(run.model) not in TWINS or run.config.dtype != "float32":
        raise InputError(
            "--what=shrink compares --model=cifar_vgg or cifar_resnet in float32, got "
            f"{run.config.model} in {run.config.dtype}"
        )
    if len(calibration) < tuning.batch_size:
        raise InputError(
            f"--calibration_split={settings.calibration_split} has {len(calibration)} "
            f"images, fewer than one batch of {tuning.batch_size} to recalibrate on"
        )
    tuning.images()  # raises now where there are too few


def _wholes(ladder: Ladder, twin: Twin) -> Iterator[dict[str, Any]]:
    """The rows of the whole network."""
    run, whole = ladder.run, ladder.whole
    for by, accuracy in (
        (OURS, ladder.baseline),
        (PYTORCH, torch_training.accuracy(run, twin, whole.split)),
    ):
        yield {
            "by": by,
            "method": latency.WHOLE,
            "labels": False,
            "multiply_adds": whole.cost.multiply_adds,
            "parameters": whole.cost.parameters,
            "accuracy": accuracy,
        }


def _framework(by: str) -> str:
    return OURS if by == OURS else PYTORCH


def _compare(
    row: dict[str, Any],
    whole: dict[str, Any],
    times: dict[str, dict[str, dict[str, float]]],
) -> None:
    """Adds times, and ratios to the whole network in the same framework."""
    row["theoretical_speedup"] = whole["multiply_adds"] / row["multiply_adds"]
    row["smaller"] = whole["parameters"] / row["parameters"]
    row["latency"] = {
        batch: {
            **spread,
            "speedup": times[latency.WHOLE][batch]["median"] / spread["median"],
        }
        for batch, spread in times[row["method"]].items()
    }


def _difference(ladder: Ladder, twin: Twin) -> float:
    """The largest between a logit of the network and of its twin, on a few images."""
    run, split = ladder.run, ladder.whole.split
    images = split.read(np.arange(min(_EXAMPLES, len(split))))
    with torch.inference_mode():
        logits = twin(scaled(run.config, images)).cpu().numpy()
    expected = run.apply(ladder.whole.variables, jnp.asarray(images))
    return float(np.abs(logits - np.asarray(expected)).max())


def _about(settings: ContestSettings, ladder: Ladder) -> dict[str, Any]:
    """Facts that it takes to trust or repeat the rows."""
    tuning = Finetuning(ladder.run, settings)
    return {
        **ladder.facts,
        "versions": {
            **ladder.facts["versions"],
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        "speedup": settings.speedup,
        "images": len(ladder.whole.split),
        "multiple_of": ladder.multiple_of,
        "keep_whole": list(settings.keep_whole),
        **tuning.describe(),
        **(
            {"ways": [way._asdict() for way in ways(tuning)]}
            if settings.finetune_epochs
            else {}
        ),
    }
