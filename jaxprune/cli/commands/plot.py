r"""Draws the pictures of a run directory again, from saved files alone.

    jaxprune plot --workdir=runs/cifar_vgg --order=rank --normalize=each
    jaxprune plot --workdir=runs/cifar_vgg --format=pdf

Nothing is computed with a network; --order and --normalize arrange the feature maps.
"""

from dataclasses import dataclass
from pathlib import Path

from jaxprune._base.errors import InputError, check_choice
from jaxprune.cli import lock, process, training_log
from jaxprune.cli.pruning_options import stem
from jaxprune.cli.settings import WorkdirSettings, flag
from jaxprune.report import compact, curves, shrinking, style
from jaxprune.report.criteria import draw_comparison
from jaxprune.report.feature_maps import ORDERS, SCALES
from jaxprune.results.comparison import Comparison
from jaxprune.results.load import AnyResult, load


@dataclass(frozen=True, kw_only=True)
class Settings(WorkdirSettings):
    """Settings of the command."""

    order: str = flag(f"Tiles by: {', '.join(ORDERS)}.", default="channel")
    normalize: str = flag(f"Scale of the tiles: {', '.join(SCALES)}.", default="shared")
    format: str = flag("Of the files.", choices=style.FORMATS, default="png")
    confusion_k: int | None = flag(
        "K of the second confusion matrix. Default: the largest safe one."
    )


def main(settings: Settings) -> None:
    """Draws every picture."""
    if settings.workdir is None:
        raise InputError("say which run with --workdir")
    check_choice("order", settings.order, ORDERS)
    check_choice("normalize", settings.normalize, SCALES)
    workdir = Path(settings.workdir)
    folders = sorted(path.parent for path in workdir.glob("sweep-*/summary.json"))
    tables = sorted(workdir.glob("compact-*.json"))
    budgets = list(workdir.glob("shrink/summary.json"))
    if not (folders or tables or budgets):
        raise InputError(f"{workdir} holds no sweep: run jaxprune sweep first")
    lock.hold(workdir)
    results = [_load(folder) for folder in folders]
    k = settings.confusion_k
    if k is not None and not all(k in result.ks for result in results):
        raise InputError(f"--confusion_k={k} is not in every sweep of {workdir}")
    made: list[Path] = []
    for folder, result in zip(folders, results, strict=True):
        made += curves.draw_sweep(
            result,
            folder,
            order=settings.order,
            normalize=settings.normalize,
            k=k,
            suffix=settings.format,
        )
    groups: dict[str, list[AnyResult]] = {}
    for result in results:
        key = stem(result.about["layer"], result.about["criterion"])
        groups.setdefault(key, []).append(result)
    for key, group in groups.items():
        if len(group) > 1:
            target = workdir / f"fills-{key}.{settings.format}"
            made.insert(0, style.save(curves.compare_fills(group), target))
    for path in sorted(workdir.glob("criteria-*/summary.json")):
        comparison = Comparison.load(path.parent)
        made[:0] = draw_comparison(comparison, path.parent, settings.format)
    for path in budgets:
        made += shrinking.draw_budgets(path.parent, settings.format)
    for path in tables:
        made += compact.draw_table(path, settings.format)
    named = (result.about.get("model") for result in results)
    model = next(filter(None, named), workdir.name)
    log = training_log.read(workdir)
    made += curves.draw_training(log, workdir, model, settings.format)
    print(f"{len(made)} pictures in {workdir}/")
    process.finish(*made)


def _load(folder: Path) -> AnyResult:
    """A sweep that says what it is of."""
    result = load(folder)
    missing = {"layer", "criterion", "fill"} - set(result.about)
    if missing:
        raise InputError(
            f"{folder / 'summary.json'} does not say {' and '.join(sorted(missing))}"
        )
    return result
