"""What to prune: the settings' choices, or the run's defaults."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from jaxprune._base.errors import InputError, check_choice
from jaxprune.cli.run_directory import Run
from jaxprune.cli.settings import PruningSettings
from jaxprune.data import datasets
from jaxprune.ranking.criteria import CRITERIA
from jaxprune.sweep.taps import TAPS, default_tap


@dataclass(frozen=True, kw_only=True)
class PruningOptions(PruningSettings):
    """The settings with the run's defaults where they leave something open.

    Attributes:
      layer: whose channels.
      criterion: that ranks them.
      tap: the place of the feature map, one of `TAPS`.
      fill: the fill's name; "all" where each fill is swept.
      select_split: images that K is chosen on.
    """

    layer: str
    criterion: str
    tap: str
    fill: str
    select_split: str

    @property
    def stem(self) -> str:
        """The stem of file and folder names."""
        return stem(self.layer, self.criterion)

    def sweep_folder(self, workdir: Path, fill: str) -> Path:
        """Where the sweep with a fill is saved."""
        return workdir / f"sweep-{self.stem}-{fill}"

    def comparison_folder(self, workdir: Path) -> Path:
        """Where a comparison of criteria with this fill is saved."""
        return workdir / f"criteria-{stem(self.layer, self.fill)}"

    @staticmethod
    def unfinished(folder: Path) -> Path:
        """Where a sweep's finished images are until it is saved in its folder."""
        return folder.with_name(f"unfinished-{folder.name}")

    def calibration(self, fill: str) -> dict[str, Any]:
        """Facts that decide the linear fill, where fill or criterion needs it."""
        if fill != "linear" and "consumers" not in CRITERIA[self.criterion].needs:
            return {}
        return {"calibration_split": self.calibration_split, "ridge": self.ridge}


def stem(layer: str, name: str) -> str:
    """A layer and a criterion or fill as part of a file's name.

    >>> stem("block_1/conv", "mean")
    'block_1.conv-mean'
    """
    return f"{layer.replace('/', '.')}-{name}"


def resolve(run: Run, settings: PruningSettings) -> PruningOptions:
    """The settings' choices and, where they make none, the run's defaults.

    Raises:
      InputError: a split that there is not, or a ridge that is none, used or not.
    """
    select_split = settings.select_split or settings.eval_split
    for split in (
        settings.rank_split,
        select_split,
        settings.eval_split,
        settings.calibration_split,
    ):
        datasets.choose_split(run.splits, split)
    if settings.ridge is not None and not settings.ridge > 0:
        raise InputError(f"--ridge must be positive, got {settings.ridge}")
    network = run.task.applied(run.network())
    layer = settings.layer or run.defaults.layer or network.graph().last_conv()
    tap = settings.tap or run.defaults.tap or default_tap(network, layer)
    values = {
        field.name: getattr(settings, field.name) for field in fields(PruningSettings)
    }
    chosen = {
        "layer": layer,
        "criterion": settings.criterion or run.defaults.criterion,
        "tap": tap,
        "fill": settings.fill or run.defaults.fill,
        "select_split": select_split,
    }
    return PruningOptions(**values | chosen)


def several_criteria(settings: PruningSettings) -> tuple[str, ...]:
    """The names in --criterion=all or a,b,c; empty where it is one, or not given.

    Raises:
      InputError: an unknown criterion, or one twice.
    """
    text = settings.criterion
    if text == "all":
        return tuple(CRITERIA)
    if text is None or "," not in text:
        return ()
    names = tuple(text.split(","))
    for name in names:
        check_choice("criterion", name, CRITERIA)
    if len(set(names)) < len(names):
        raise InputError(f"--criterion={text} names a criterion twice")
    return names


def check_names(
    settings: PruningSettings, fills: Sequence[str], *, several: bool = False
) -> None:
    """Checks names that need no data, before any work is done.

    Args:
      settings: with the names.
      fills: those that the script knows.
      several: whether the script takes several criteria.

    Raises:
      InputError: an unknown criterion, tap, or fill.
    """
    criteria = (*CRITERIA, "all") if several else tuple(CRITERIA)
    choices = {
        "criterion": (settings.criterion, criteria),
        "fill": (settings.fill, fills),
        "tap": (settings.tap, TAPS),
    }
    if several and several_criteria(settings):
        del choices["criterion"]
    for name, (given, known) in choices.items():
        if given is not None:
            check_choice(name, given, known)


def parse_ks(text: str | None, p: int) -> Sequence[int]:
    """--ks as Python's range(start, stop, step), or a comma-separated list.

    Args:
      text: of the flag; None takes every K.
      p: channels of the layer.

    Raises:
      InputError: neither of the two.
    """
    if text is None:
        return range(p)
    try:
        if ":" not in text:
            return [int(k) for k in text.split(",")]
        parts = [int(part) if part else None for part in text.split(":")]
        start, stop, step = (*parts, None, None)[:3]
        if len(parts) > 3 or (step is not None and step < 1):
            raise ValueError
    except ValueError:
        raise InputError(f"--ks takes start:stop:step or a,b,c; got '{text}'") from None
    return range(start or 0, p if stop is None else stop, step or 1)
