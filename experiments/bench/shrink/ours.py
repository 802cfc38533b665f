"""This project's network for a budget of multiply-adds."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from experiments import finetuning
from experiments.bench.plan import OURS
from experiments.bench.shrink.stages import Competitor
from experiments.shrink.ladder import Ladder, Rung
from jaxprune.data.splits import Split

METHOD = "refitted"


def competitor(ladder: Ladder, rung: Rung, calibration: Split) -> Competitor:
    """The rung's network.

    Args:
      ladder: of the network that is cut.
      rung: the budget's.
      calibration: images to recalibrate on.
    """
    run, whole, small = ladder.run, ladder.whole, ladder.cut(rung).small
    program = whole.program(small.apply)

    def accuracy(variables: Any) -> float:
        return whole.accuracy(whole.evaluate(program, variables, OURS))

    def recalibrated(variables: Any) -> Any:
        return finetuning.recalibrated(run, small.apply, variables, calibration)[0]

    def epochs(variables: Any, rate: float) -> Iterator[tuple[Any, float]]:
        for epoch in finetuning.finetune(
            run, small.apply, variables, whole.variables, rate
        ):
            yield jax.tree.map(np.asarray, epoch.state.variables), epoch.loss

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
        epochs=epochs,
        save=lambda path: small.save(path),
    )
