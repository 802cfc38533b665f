"""One compact network: its proof, its figures, its folder."""

from typing import Any, NamedTuple

from jaxprune.cli import finetuning, provenance
from jaxprune.cli.compact.masked import Masked
from jaxprune.cli.compact.plan import Plan
from jaxprune.cli.run_directory import Run
from jaxprune.cli.settings import SmallerSettings
from jaxprune.compaction.network import Compact
from jaxprune.compaction.proof import Proof
from jaxprune.report import compact, style


class Pruned(NamedTuple):
    """A compact network and what is known of it.

    Attributes:
      k: channels pruned.
      small: the network, as it is to be saved.
      proof: its comparison with the masked one, before any training.
      row: its figures.
      lines: one for each epoch of fine-tuning; the first is before it.
      files: its other forms, by the name of their file.
    """

    k: int
    small: Compact
    proof: Proof
    row: dict[str, Any]
    lines: list[dict[str, Any]]
    files: dict[str, bytes]


def save(
    run: Run, settings: SmallerSettings, plan: Plan, whole: Masked, pruned: Pruned
) -> None:
    """Writes the network's folder and, if it was fine-tuned, a picture beside it."""
    folder = plan.folder(run.workdir, pruned.k)
    pruned.small.save(
        folder,
        pixel_mean=run.config.pixel_mean,
        pixel_std=run.config.pixel_std,
        class_names=whole.split.class_names,
        pixels=whole.split.dtype,
        about={
            **provenance.describe(
                run, plan.choices, plan.choices.fill, whole.variables
            ),
            **plan.fill_facts,
            "test_proof": pruned.proof.to_json(),
            "after_the_proof": finetuning.describe(run, settings),
            "measure": run.task.measure,
            "measured": pruned.row,
        },
        stablehlo="stablehlo" in settings.export,
        files=pruned.files,
    )
    if len(pruned.lines) > 1:
        what = f"K = {pruned.k} of {len(plan.order)}"
        title = f"{run.config.model}, layer {plan.choices.layer}, {what}"
        figure = compact.finetuning(
            pruned.lines, whole.baseline, title, run.task.measure
        )
        style.save(figure, folder.with_suffix(".png"))
