r"""Makes the whole network smaller to a budget, without training, and proves it.

    jaxprune shrink --model=cifar_vgg --speedup=2
    jaxprune shrink --model=cifar_vgg --latency=2 --batch=1
    jaxprune shrink --model=cifar_vgg --size=0.25
    jaxprune shrink --model=cifar_vgg --max_drop=0.01
    jaxprune shrink --model=cifar_resnet --speedup=2 --finetune_epochs=3 --distill

Which channels go together is found from the traced network; what each width costs, and
what every layer takes on this machine, is measured once. The ladder of budgets and the
one that is asked for share that. Writes shrink/ (layers.csv, pareto.csv and .png,
summary.json), the network, as shrink-<budget>/, and report.html. Run the same command
again after an interruption: what is finished is kept.
"""

import itertools
from dataclasses import dataclass

import numpy as np

from jaxprune._base import processes
from jaxprune._base.errors import InputError
from jaxprune.cli import (
    baseline,
    cluster,
    exports,
    finetuning,
    process,
    run_directory,
)
from jaxprune.cli.commands import report
from jaxprune.cli.settings import (
    BatchSettings,
    ProcessSettings,
    ReportSettings,
    SmallerSettings,
    TaskSettings,
    flag,
)
from jaxprune.cli.shrink.ladder import Ladder, LadderSettings, Rung, speedups
from jaxprune.cli.shrink.report import (
    print_budget,
    print_network,
    save_network,
    write_files,
)
from jaxprune.cli.weights import train_or_restore
from jaxprune.compaction import artefact
from jaxprune.shrinking.budget import Budget

FIRST = (
    "model data init_from workdir speedup "
    "size latency max_drop multiple_of finetune_epochs"
).split()
# Steps of --max_drop: each is this many times faster than the one before.
_STEP = 1.1


@dataclass(frozen=True, kw_only=True)
class Settings(
    TaskSettings,
    BatchSettings,
    ProcessSettings,
    LadderSettings,
    SmallerSettings,
    ReportSettings,
):
    """Settings of the command."""

    size: float | None = flag("Share of the parameters that may be left.")
    latency: float | None = flag("How many times less time, as predicted here.")
    ladder: tuple[str, ...] = flag(
        "Times fewer multiply-adds, for pareto.csv; empty for none.",
        default=("1.25", "1.5", "2", "2.5", "3", "4"),
    )


def main(settings: Settings) -> None:
    """Restores, analyses, cuts, proves, measures, saves."""
    budget = _budget(settings)
    steps = speedups("ladder", settings.ladder)
    exports.check_flags(settings)
    settings.batches()  # raises now where they are none
    finetuning.check_flags(settings)
    run = run_directory.load(settings, train_imported=False)
    run.check_drop(settings.max_drop)
    if settings.finetune_epochs or settings.recalibrate:
        cluster.require_one_process("fine-tuning")
    split, calibration = baseline.splits(run, settings)
    finetuning.check(run, settings)
    exports.check(run, settings)
    folder = run.workdir / f"shrink-{_name(settings, budget)}"
    artefact.check_target(folder)
    variables = train_or_restore(run)
    whole = baseline.Baseline(
        run, variables, split, run.batch_size(split), keeps_predictions=True
    )
    exported = exports.Exports(settings, whole)
    images = calibration.read(np.arange(len(calibration)))
    budgets = steps
    if budget is not None:
        budgets = [*(each for each in steps if each != budget), budget]
    networks = None if budget is None else len(budgets)
    ladder = Ladder(settings, whole, images, budget, networks)
    if budget is not None:
        ladder.candidates(budget)  # raises now where it is out of reach
    chosen: Rung | None = None
    try:
        with cluster.progress(
            total=len(budgets), unit="network", desc="budgets", hide=len(budgets) < 2
        ) as bar:
            for each in budgets:
                rung = ladder.rung(each)
                if each != budget:
                    print_budget(rung, run.task, settings.batch)
                bar.update()
        if budget is None:
            rung = _within(settings, ladder)
        chosen = rung
        print_network(chosen, run.task, settings.batch)
        small, changes, lines = finetuning.train_on(
            run,
            settings,
            whole,
            ladder.cut(chosen).small,
            chosen.row[run.task.measure],
        )
        files, figures = exported.of(small)
    except KeyboardInterrupt:
        if ladder.rungs and processes.is_first():
            write_files(ladder, chosen, {})
        raise process.Interrupted(
            f"interrupted: {ladder.folder} keeps what is measured and "
            f"{len(ladder.rungs)} finished budgets; run the same command again to go on"
        ) from None
    changes |= figures
    if processes.is_first():
        write_files(ladder, chosen, figures)
        save_network(folder, settings, ladder, chosen, small, changes, lines, files)
    page = report.write(run.workdir) if settings.report else []
    process.finish(*page, folder, ladder.folder / "pareto.png")


def _budget(settings: Settings) -> Budget | None:
    """The budget that the settings give; None where --max_drop decides."""
    values = {n: getattr(settings, n) for n in ("speedup", "size", "latency")}
    if [*values.values(), settings.max_drop].count(None) != 3:
        raise InputError(
            "say how far to go: one of --speedup, --size, --latency, --max_drop"
        )
    return None if settings.max_drop is not None else Budget(**values)


def _name(settings: Settings, budget: Budget | None) -> str:
    """As part of a folder's name.

    >>> _name(Settings(), Budget(speedup=2.0))
    'speedup2'
    """
    if budget is None:
        return f"max_drop{settings.max_drop:g}"
    batch = f"-batch{settings.batch}" if budget.latency is not None else ""
    return f"{budget.kind}{budget.value:g}{batch}"


def _within(settings: Settings, ladder: Ladder) -> Rung:
    """The last budget before the first whose drop may be as much as is not allowed.

    Budgets are tested one after another, up to the first failure, so that the whole
    choice has the confidence of one test, as a sweep's safe K does; see
    `jaxprune.results.confidence.passed`.
    """
    allowed = settings.max_drop
    assert allowed is not None  # or there is a budget
    passed: Rung | None = None
    for power in itertools.count(1):
        budget = Budget(speedup=round(_STEP**power, 3))
        if passed is not None and not ladder.reaches(budget):
            return passed
        rung = ladder.rung(budget)
        print_budget(rung, ladder.run.task, settings.batch)
        if rung.row["largest_drop"] >= allowed:
            break
        passed = rung
    if passed is None:
        raise InputError(
            f"--max_drop={allowed:g}: {budget.value:g} times fewer "
            f"multiply-adds may already cost {rung.row['largest_drop']:.4f}"
        )
    return passed
