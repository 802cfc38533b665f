"""This project's network for a budget of multiply-adds."""

from typing import Any

import jax
import numpy as np

from experiments.bench.plan import OURS
from experiments.bench.shrink.stages import Competitor
from jaxprune.cli import finetuning
from jaxprune.cli.finetuning import Finetuning
from jaxprune.cli.shrink.ladder import Ladder, Rung
from jaxprune.compaction.network import flat
from jaxprune.data.splits import Split

METHOD = "refitted"


def competitor(
    tuning: Finetuning, ladder: Ladder, rung: Rung, calibration: Split
) -> Competitor:
    """The rung's network.

    Args:
      tuning: the fine-tuning.
      ladder: of the network that is cut.
      rung: the budget's.
      calibration: images to recalibrate on.
    """
    run, whole, small = ladder.run, ladder.whole, ladder.cut(rung).small
    program = whole.program(small.function)

    def accuracy(variables: Any) -> float:
        return whole.accuracy(whole.evaluate(program, flat(variables), OURS))

    def recalibrated(variables: Any) -> Any:
        return finetuning.recalibrated(run, small, variables, calibration)[0]

    def finetuned(variables: Any, way: finetuning.Way) -> Any:
        *_, last = tuning.epochs(small, variables, whole.variables, way)
        return jax.tree.map(np.asarray, last.state.variables)

    return Competitor(
        by=OURS,
        method=METHOD,
        labels=False,
        facts={
            "multiply_adds": rung.row["multiply_adds"],
            "parameters": rung.row["parameters"],
            "widths": rung.widths,
        },
        state=small.variables,
        accuracy=accuracy,
        recalibrated=recalibrated,
        finetuned=finetuned,
        loss=lambda v: tuning.loss(small, v, whole.variables),
        save=lambda path: small.save(path),
    )
