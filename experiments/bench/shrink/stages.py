"""The stages after every cut, ours and Torch-Pruning's.

BatchNorm's statistics are estimated again on the calibration images, and it is
fine-tuned from there. A network that has lost much wants to be trained otherwise than
one that has lost little: unless --finetune_learning_rate says how, each is fine-tuned
in two ways: that of `jaxprune.cli.finetuning`, and with BatchNorm in training mode, at
training's rate. The one with the lower loss on those images counts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxprune.cli.finetuning import Finetuning, Way
from jaxprune.cli.settings import EpochSettings, NetworkSettings
from jaxprune.cli.shrink.ladder import LadderSettings
from jaxprune.training.hyperparameters import TRAINING


@dataclass(frozen=True, kw_only=True)
class ContestSettings(NetworkSettings, EpochSettings, LadderSettings):
    """Settings of the contest."""


@dataclass(frozen=True)
class Competitor:
    """A network that is cut. Its state is what recalibration and training change.

    Attributes:
      by: framework that cut it.
      method: how.
      labels: whether that took labels.
      facts: its multiply-adds, parameters and widths.
      state: as it was cut.
      accuracy: of a state on the evaluation split, in [0, 1].
      recalibrated: a state -> one with other BatchNorm statistics.
      finetuned: a state and how -> the state after the epochs.
      loss: of a state on the images that it is fine-tuned on.
      save: writes the network as it was cut.
    """

    by: str
    method: str
    labels: bool
    facts: dict[str, Any]
    state: Any
    accuracy: Callable[[Any], float]
    recalibrated: Callable[[Any], Any]
    finetuned: Callable[[Any, Way], Any]
    loss: Callable[[Any], float]
    save: Callable[[Path], None]

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.by}, {self.method}"


def ways(tuning: Finetuning) -> list[Way]:
    """How a network is fine-tuned, each to be tried."""
    found = [tuning.way]
    if tuning.settings.finetune_learning_rate is None:
        found.append(Way(tuning.run.training.learning_rate, TRAINING))
    return found


def figures(tuning: Finetuning, competitor: Competitor) -> dict[str, Any]:
    """The competitor's row: its facts, and its accuracy after each stage."""
    row = {
        "by": competitor.by,
        "method": competitor.method,
        "labels": competitor.labels,
        **competitor.facts,
        "accuracy": competitor.accuracy(competitor.state),
    }
    print(
        f"{competitor.name}: {row['accuracy']:.4f} straight after the cut", flush=True
    )
    state = competitor.recalibrated(competitor.state)
    row["accuracy_recalibrated"] = competitor.accuracy(state)
    print(f"  recalibrated {row['accuracy_recalibrated']:.4f}", flush=True)
    if not tuning.settings.finetune_epochs:
        return row
    best: tuple[float, Way, Any] | None = None
    for way in ways(tuning):
        trained = competitor.finetuned(state, way)
        loss = competitor.loss(trained)
        print(
            f"  fine-tuned, BatchNorm in {way.batch_norm}, at {way.learning_rate:g}: "
            f"loss {loss:.4f}",
            flush=True,
        )
        if best is None or loss < best[0]:
            best = loss, way, trained
    assert best is not None
    row["finetuning_loss"], way, state = best
    row |= way._asdict()
    row["accuracy_finetuned"] = competitor.accuracy(state)
    print(f"  fine-tuned   {row['accuracy_finetuned']:.4f}", flush=True)
    return row
