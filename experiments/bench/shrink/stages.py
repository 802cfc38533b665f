"""What every network goes through once it is cut, whoever cut it.

BatchNorm's statistics are estimated again on the calibration images, and it is
fine-tuned from there. A network that has lost much wants a higher learning rate than
one that has lost little: unless --finetune_learning_rate says which, each is fine-tuned
at two, that of `experiments.finetuning` and training's, and the one whose last epoch
has the lower training loss counts.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from absl import flags

from experiments import finetuning
from experiments.job import Job

FLAGS = flags.FLAGS


@dataclass(frozen=True)
class Competitor:
    """A network that is cut. Its state is what recalibration and training change.

    Attributes:
      by: who cut it.
      method: how.
      labels: whether that took labels.
      facts: its multiply-adds, parameters and widths.
      state: as it was cut.
      accuracy: of a state on the evaluation split, in [0, 1].
      recalibrated: a state -> one with other BatchNorm statistics.
      epochs: a state and the highest learning rate -> the state and the mean training
        loss after each epoch of fine-tuning.
      save: writes the network as it was cut.
    """

    by: str
    method: str
    labels: bool
    facts: dict[str, Any]
    state: Any
    accuracy: Callable[[Any], float]
    recalibrated: Callable[[Any], Any]
    epochs: Callable[[Any, float], Iterator[tuple[Any, float]]]
    save: Callable[[Path], None]

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.by}, {self.method}"


def learning_rates(run: Job) -> list[float]:
    """The highest of fine-tuning, each to be tried."""
    rates = [finetuning.learning_rate(run)]
    if FLAGS.finetune_learning_rate is None:
        rates.append(run.training.learning_rate)
    return rates


def figures(run: Job, competitor: Competitor) -> dict[str, Any]:
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
    if not FLAGS.finetune_epochs:
        return row
    best: tuple[float, float, Any] | None = None
    for rate in learning_rates(run):
        *_, (trained, loss) = competitor.epochs(state, rate)
        print(f"  fine-tuned at {rate:g}: loss {loss:.4f}", flush=True)
        if best is None or loss < best[0]:
            best = loss, rate, trained
    assert best is not None
    row["training_loss"], row["learning_rate"], state = best
    row["accuracy_finetuned"] = competitor.accuracy(state)
    print(f"  fine-tuned   {row['accuracy_finetuned']:.4f}", flush=True)
    return row
