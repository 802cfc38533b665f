"""The plan of `jaxprune sweep`: which criteria, with which fills, for which K."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from jaxprune._base.errors import InputError
from jaxprune.cli import pruning_options, run_directory, scoring
from jaxprune.cli.pruning_options import PruningOptions
from jaxprune.cli.run_directory import Run
from jaxprune.cli.settings import (
    BatchSettings,
    MaxDropSettings,
    PruningSettings,
    TaskSettings,
    flag,
)
from jaxprune.data.splits import Split
from jaxprune.fills.fill import FILLS
from jaxprune.ranking.order import check_ks
from jaxprune.tasks.classes import Classification

# A criterion and a fill.
Key = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class SweepSettings(TaskSettings, PruningSettings, BatchSettings, MaxDropSettings):
    """Settings of the sweeps of one network."""

    mask_chunk: int | None = flag("Masks evaluated at once.", at_least=1)
    random_orders: int = flag(
        "Random orders to compare the criteria with.",
        at_least=0,
        at_most=1000,
        default=0,
    )


@dataclass(frozen=True)
class Sweeps:
    """The sweeps that the settings ask for.

    Attributes:
      settings: those.
      run: the run directory's network and data.
      chosen: layer, tap and splits.
      images: by the names of their splits.
      ks: numbers of pruned channels.
      criteria: names of the criteria.
      fills: names of the fills; one, where criteria are compared.
      left_out: reasons why other criteria of "all" cannot be had.
    """

    settings: SweepSettings
    run: Run
    chosen: PruningOptions
    images: dict[str, Split]
    ks: tuple[int, ...]
    criteria: tuple[str, ...]
    fills: tuple[str, ...]
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def compared(self) -> bool:
        """Whether criteria are compared with one another or with random orders."""
        several = pruning_options.several_criteria(self.settings)
        return bool(several or self.settings.random_orders)

    @property
    def keys(self) -> list[Key]:
        """A criterion and a fill for each sweep."""
        return [(name, fill) for name in self.criteria for fill in self.fills]

    @property
    def lead(self) -> PruningOptions:
        """The options of a criterion for which the linear fill is fitted, if any."""
        for name in self.criteria:
            if self.by(name).calibration(self.fills[-1]):
                return self.by(name)
        return self.by(self.criteria[0])

    def by(self, criterion: str) -> PruningOptions:
        """The same choices with one criterion."""
        return replace(self.chosen, criterion=criterion)

    def folder(self, criterion: str, fill: str) -> Path:
        """The folder of one sweep."""
        return self.by(criterion).sweep_folder(self.run.workdir, fill)

    def target(self, fill: str) -> Path:
        """The folder of the comparison, or of the one sweep with this fill."""
        if self.compared:
            return self.chosen.comparison_folder(self.run.workdir)
        return self.folder(self.criteria[0], fill)

    @property
    def to_open(self) -> list[Path]:
        """Files to look at, the first one first."""
        last = self.target(self.fills[-1])
        if self.compared:
            return [last / n for n in ("criteria.png", "criteria.csv", "agreement.png")]
        of_classes = isinstance(self.run.task, Classification)
        curve = "accuracy_vs_k.png" if of_classes else "score_vs_k.png"
        names = (curve, "feature_maps.png", "sweep.csv")
        several = [self.of_fills] if len(self.fills) > 1 else []
        return [*several, *(last / name for name in names)]

    @property
    def of_fills(self) -> Path:
        """The picture of several fills."""
        return self.run.workdir / f"fills-{self.chosen.stem}.png"


def asked(settings: SweepSettings) -> Sweeps:
    """The sweeps that the settings ask for.

    Raises:
      InputError: flags that are out of range or do not go together, or a criterion
        that the layer cannot have.
    """
    run = run_directory.load(settings, train_imported=False)
    run.check_drop(settings.max_drop)
    chosen = pruning_options.resolve(run, settings)
    images = scoring.splits(run, chosen)
    channels = run.network().graph().with_map(chosen.layer).channels
    ks = check_ks(pruning_options.parse_ks(settings.ks, channels), channels)
    fills = FILLS if chosen.fill == "all" else (chosen.fill,)
    sweeps = Sweeps(
        settings, run, chosen, images, ks, (chosen.criterion,), tuple(fills)
    )
    if sweeps.compared and len(fills) > 1:
        raise InputError("criteria are compared with one --fill, fills with one order")
    every = settings.criterion == "all"
    names, left_out = [], {}
    for name in pruning_options.several_criteria(settings) or (chosen.criterion,):
        if every and name == "random" and settings.random_orders:
            continue  # that is what the band is
        scoring.images(run, chosen, name)  # a flag out of range is an error
        try:
            scoring.check(run, chosen, name)
            names.append(name)
        except InputError as error:
            if not every:
                raise
            left_out[name] = str(error)
    return replace(sweeps, criteria=tuple(names), left_out=left_out)
