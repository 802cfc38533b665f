"""This project's network for a budget of multiply-adds."""

from experiments.bench.plan import OURS
from experiments.bench.shrink.stages import Competitor
from jaxprune.cli.finetuning import Finetuning
from jaxprune.cli.shrink.ladder import Ladder, Rung
from jaxprune.compaction.network import Compact
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
    whole, small = ladder.whole, ladder.cut(rung).small
    program = whole.program(small.function)

    def accuracy(network: Compact) -> float:
        made = whole.outputs(program, dict(network.arrays))
        return whole.value(whole.judged(made, OURS))

    return Competitor(
        by=OURS,
        method=METHOD,
        labels=False,
        facts={
            "multiply_adds": rung.row["multiply_adds"],
            "parameters": rung.row["parameters"],
            "widths": rung.widths,
        },
        state=small,
        accuracy=accuracy,
        recalibrated=lambda network: tuning.recalibrated(network, calibration)[0],
        finetuned=lambda network, way: tuning.tuned(network, whole.network, way),
        loss=lambda network: tuning.loss(network, whole.network),
        save=lambda path: small.save(path),
    )
