"""The plan of `jaxprune compact`: the order of channels, and their number."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxprune._base.errors import InputError
from jaxprune.cli import calibration, provenance, scoring
from jaxprune.cli.pruning_options import PruningOptions
from jaxprune.cli.run_directory import Run
from jaxprune.data import datasets
from jaxprune.fills.fill import ConstantFill, Fill
from jaxprune.ranking.order import prefix_masks, pruning_order
from jaxprune.results.load import AnyResult, load
from jaxprune.sweep.activations import TappedLayer


class Allowed(NamedTuple):
    """A loss of accuracy; the K that is taken is the largest that may cost no more.

    Attributes:
      max_drop: the loss.
      naive: whether K goes by the accuracy as measured, without confidence.
    """

    max_drop: float
    naive: bool


@dataclass(frozen=True)
class Plan:
    """The plan: channels in order, and their number.

    Attributes:
      choices: layer, criterion and fill.
      order: channels, the first to be pruned first.
      fill: the fill, resolved where its name alone does not say.
      ks: numbers of channels to prune.
      curve: the saved sweep's K and first scores, where there is a sweep.
    """

    choices: PruningOptions
    order: np.ndarray
    fill: str | Fill
    ks: tuple[int, ...]
    curve: tuple[Sequence[int], Sequence[float]] | None = None

    @property
    def name(self) -> str:
        """The beginning of the names of what is written."""
        return f"compact-{self.choices.stem}-{self.choices.fill}"

    @property
    def fill_facts(self) -> dict[str, Any]:
        """The fill, for the files; JSON-able."""
        values = self.fill.values if isinstance(self.fill, ConstantFill) else None
        listed = None if values is None else values.tolist()
        return {"fill": self.choices.fill, "fill_values": listed}

    def keep(self, k: int) -> np.ndarray:
        """The mask with the k lowest channels pruned."""
        return prefix_masks(self.order, [k])[0]

    def folder(self, workdir: Path, k: int) -> Path:
        """Where the network with k channels pruned is saved."""
        return workdir / f"{self.name}-k{k}"


def make_plan(
    run: Run,
    choices: PruningOptions,
    variables: Any,
    ks: tuple[int, ...] | Allowed,
    batch_size: int,
) -> Plan:
    """The order of channels, from the saved sweep or scored now.

    Args:
      run: the run directory's job.
      choices: layer, criterion, fill and K.
      variables: the network's variables.
      ks: numbers of channels to prune, or what decides on one.
      batch_size: images in a batch.

    Raises:
      InputError: a saved sweep that was made otherwise, or none where K depends on it.
    """
    folder = choices.sweep_folder(run.workdir, choices.fill)
    fitted = calibration.fit(run, choices, choices.fill, run.network(variables))
    if (folder / "summary.json").exists():
        result = load(folder)
        about = provenance.describe(run, choices, choices.fill, variables)
        found = provenance.differences(result, about)
        if found:
            raise InputError(
                f"{folder} is another network's sweep or was made otherwise: "
                f"{'; '.join(found)}: run jaxprune sweep again in another "
                "--workdir, or give its flags"
            )
        if isinstance(ks, Allowed):
            ks = (_largest(result, folder, ks),)
        fill = _fill(choices, result.channel_means, fitted)
        curve = (result.ks, result.curve.tolist())
        return Plan(choices, result.order, fill, ks, curve)
    if isinstance(ks, Allowed):
        raise InputError(
            f"--max_drop needs a sweep in {folder}: run jaxprune sweep with the "
            "same flags first"
        )
    tapped = _tap(run, choices, variables, batch_size)
    scores = scoring.score_by(
        run, choices, tapped, choices.criterion, choices.fill, fitted
    )
    fill = _fill(choices, tapped.channel_means, fitted)
    return Plan(choices, pruning_order(scores), fill, ks)


def _largest(result: AnyResult, folder: Path, allowed: Allowed) -> int:
    """The largest K that the loss allows.

    Raises:
      InputError: none does.
    """
    drop = allowed.max_drop
    naive, safe = result.largest_k_within(drop), result.largest_safe_k(drop)
    if allowed.naive:
        print(f"K = {naive}: the largest within {drop} in {folder}, as measured")
        return naive
    if safe == result.ks[0]:
        raise InputError(
            f"--max_drop={drop:g}: no K of {folder} is safe, with 95 % confidence, on "
            f"the images of --select_split; --naive takes K = {naive}"
        )
    print(f"K = {safe}: the largest safe one for {drop} in {folder} (naive: {naive})")
    return safe


def _fill(
    choices: PruningOptions, means: np.ndarray, fitted: Fill | None
) -> str | Fill:
    """The fill by name, or with what it depends on."""
    if choices.fill == "mean":
        return ConstantFill("mean", np.asarray(means, np.float32))
    if choices.fill == "linear" and fitted is not None:
        return fitted
    return choices.fill


def _tap(
    run: Run, choices: PruningOptions, variables: Any, batch_size: int
) -> TappedLayer:
    """The statistics of the ranking images that the criterion needs."""
    split = datasets.choose_split(run.splits, choices.rank_split)
    size = min(batch_size, len(split))
    return scoring.tap(run, choices, variables, [choices.criterion], split, None, size)
