"""The contest: a whole network, cut by this project and by Torch-Pruning."""

import importlib.metadata
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from absl import flags

from experiments import cluster, finetuning, job
from experiments.bench.plan import OURS, PYTORCH
from experiments.bench.pytorch import ready, scaled
from experiments.bench.shrink import latency, ours, peer, report, theirs
from experiments.bench.shrink.stages import Competitor, figures, learning_rates
from experiments.bench.twins import TWINS, Twin
from experiments.flags import check_timing
from experiments.shrink.ladder import Ladder
from experiments.weights import train_or_restore
from experiments.whole import splits
from jaxprune.data.splits import Split
from jaxprune.errors import InputError
from jaxprune.shrinking.analysis import Budget

FLAGS = flags.FLAGS
PACKAGES = ("torch", "torch_pruning")
# Images that the twin's logits are compared on.
_EXAMPLES = 16


def main() -> None:
    """Cuts, recalibrates, fine-tunes, times, writes."""
    budget = Budget(speedup=FLAGS.speedup)
    batches = check_timing()
    finetuning.check_flags()
    run = job.load(train_imported=False)
    cluster.require_one_process("experiments.bench")
    split, calibration = splits(run)
    _check(run, calibration)
    variables = train_or_restore(run)
    images = calibration.read(np.arange(len(calibration)))
    ladder = Ladder(run, variables, split, images, batches)
    ladder.widths(budget)  # raises now where it is out of reach
    twin = ready(Twin(run.model, jax.device_get(variables), run.scale(run.image)))
    rows = [*_wholes(ladder, twin)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for framework in (OURS, PYTORCH):
            (folder / framework).mkdir()
        torch.save(twin, folder / PYTORCH / latency.WHOLE)
        for competitor in _competitors(ladder, budget, twin, calibration):
            rows.append(figures(run, competitor))
            competitor.save(folder / _framework(competitor.by) / competitor.method)
        times = latency.measure(folder, batches, FLAGS.repeats)
    for row in rows:
        _compare(row, rows[0], times[_framework(row["by"])])
    report.show(rows)
    target = run.workdir / f"bench-speedup{FLAGS.speedup:g}"
    report.save(target, _about(ladder, twin), rows)


def _check(run: job.Job, calibration: Split) -> None:
    """Raises InputError if the network or the images cannot be compared on."""
    size = run.config.train_batch_size
    if type(run.model) not in TWINS or run.config.dtype != "float32":
        raise InputError(
            "--what=shrink compares --model=cifar_vgg or cifar_resnet in float32, got "
            f"{run.config.model} in {run.config.dtype}"
        )
    if len(calibration) < size:
        raise InputError(
            f"--calibration_split={FLAGS.calibration_split} has {len(calibration)} "
            f"images, fewer than one batch of {size} to recalibrate on"
        )
    finetuning.images(run)  # raises now where there are too few


def _wholes(ladder: Ladder, twin: Twin) -> Iterator[dict[str, Any]]:
    """The rows of the whole network."""
    run, whole = ladder.run, ladder.whole
    for by, accuracy in (
        (OURS, ladder.baseline),
        (PYTORCH, peer.accuracy(run, twin, whole.split)),
    ):
        yield {
            "by": by,
            "method": latency.WHOLE,
            "labels": False,
            "multiply_adds": whole.cost.multiply_adds,
            "parameters": whole.cost.parameters,
            "accuracy": accuracy,
        }


def _competitors(
    ladder: Ladder, budget: Budget, twin: Twin, calibration: Split
) -> Iterator[Competitor]:
    """Each is made when the one before has been through all stages."""
    yield ours.competitor(ladder, ladder.rung(budget), calibration)
    limit = ladder.whole.cost.multiply_adds / budget.value
    for name in theirs.METHODS:
        yield theirs.competitor(ladder, twin, name, limit, calibration)


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


def _about(ladder: Ladder, twin: Twin) -> dict[str, Any]:
    """What a reader must know to trust or repeat the table."""
    run, split = ladder.run, ladder.whole.split
    images = split.read(np.arange(min(_EXAMPLES, len(split))))
    with torch.inference_mode():
        theirs_logits = twin(scaled(run.config, images)).cpu().numpy()
    logits = np.asarray(run.apply(ladder.whole.variables, jnp.asarray(images)))
    return {
        **ladder.facts,
        "versions": {
            **ladder.facts["versions"],
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        "speedup": FLAGS.speedup,
        "images": len(split),
        "largest_logit_difference_of_the_twin": float(
            np.abs(logits - theirs_logits).max()
        ),
        "turns": FLAGS.repeats,
        **finetuning.describe_epochs(run),
        **({"learning_rates": learning_rates(run)} if FLAGS.finetune_epochs else {}),
    }
