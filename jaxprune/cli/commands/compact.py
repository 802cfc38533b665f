r"""Makes the network really smaller, proves it on the test set, and measures it.

    jaxprune compact --model=cifar_vgg --k=100
    jaxprune compact --model=cifar_vgg --max_drop=0.01
    jaxprune compact --model=cifar_vgg --k=250 --finetune_epochs=3
    jaxprune compact --model=cifar_vgg --k=400 --finetune_epochs=3 --distill
    jaxprune compact --model=cifar_vgg --layer=conv2d_8 --k=64 --export=stablehlo

Channels are ranked as `jaxprune sweep` ranks them; a saved sweep is used where there
is one. One K gives a folder compact-<layer>-<criterion>-<fill>-k<K>; --ks gives a table
and a picture. Most of the time goes to the test images and the timed calls.
"""

from dataclasses import dataclass
from typing import Any

from jaxprune._base.errors import InputError
from jaxprune.cli import (
    calibration,
    cluster,
    exports,
    finetuning,
    process,
    provenance,
    pruning_options,
    run_directory,
    scoring,
)
from jaxprune.cli.compact.masked import Masked
from jaxprune.cli.compact.plan import Allowed, Plan, make_plan
from jaxprune.cli.compact.prune import Pruned, save
from jaxprune.cli.compact.report import print_row, write_table
from jaxprune.cli.pruning_options import check_names, parse_ks
from jaxprune.cli.run_directory import Run
from jaxprune.cli.settings import (
    BatchSettings,
    PruningSettings,
    SmallerSettings,
    TaskSettings,
    flag,
)
from jaxprune.cli.weights import train_or_restore
from jaxprune.compaction import artefact
from jaxprune.compaction.compact import compact
from jaxprune.data import datasets
from jaxprune.fills.fill import FILLS
from jaxprune.ranking.order import check_ks

FIRST = (
    "model data init_from workdir k max_drop layer fill finetune_epochs export"
).split()


@dataclass(frozen=True, kw_only=True)
class Settings(TaskSettings, PruningSettings, BatchSettings, SmallerSettings):
    """Settings of the command."""

    k: int | None = flag("Channels to prune: the k lowest.", at_least=0)
    naive: bool = flag(
        "With --max_drop: the largest K that lost no more as measured.", default=False
    )
    unproved: bool = flag(
        "Keep the network, too, where overflow leaves nothing to compare.",
        default=False,
    )


def main(settings: Settings) -> None:
    """Restores, prunes, proves, measures, saves."""
    _check_flags(settings)
    settings.batches()  # raises now where they are none
    run = run_directory.load(settings, train_imported=False)
    run.check_drop(settings.max_drop)
    cluster.require_one_process("jaxprune compact")
    split = datasets.choose_split(run.splits, settings.eval_split)
    batch_size = run.batch_size(split)
    chosen = pruning_options.resolve(run, settings)
    ks = _ks(settings, run.network().graph().with_map(chosen.layer).channels)
    calibration.check(run, chosen, chosen.fill)
    scoring.check(run, chosen, chosen.criterion)
    finetuning.check(run, settings)
    exports.check(run, settings)
    variables = train_or_restore(run)
    plan = make_plan(run, chosen, variables, ks, batch_size)
    if settings.ks is None:
        artefact.check_target(plan.folder(run.workdir, plan.ks[0]))
    whole = Masked(run, variables, split, plan, batch_size)
    exported = exports.Exports(settings, whole) if settings.ks is None else None
    rows: list[dict[str, Any]] = []
    interrupted = False
    try:
        with cluster.progress(
            total=len(plan.ks), unit="network", desc="every K", hide=len(plan.ks) < 2
        ) as bar:
            for k in plan.ks:
                rows.append(_one(run, settings, plan, whole, exported, k))
                bar.update()
    except KeyboardInterrupt:
        if settings.ks is None or not rows:
            raise
        interrupted = True
    if settings.ks is not None:
        about = {
            **provenance.describe(run, chosen, chosen.fill, variables),
            "layer": chosen.layer,
            "measure": run.task.measure,
            **plan.fill_facts,
            "after_the_proof": finetuning.describe(run, settings),
        }
        write_table(run.workdir / plan.name, rows, about, plan.curve)
    if interrupted:
        raise process.Interrupted(
            f"interrupted: the table has {len(rows)} of {len(plan.ks)} K"
        )
    made = run.workdir / plan.name
    if settings.ks is None:
        made = plan.folder(run.workdir, plan.ks[0])
    process.finish(
        made, *(made.with_name(made.name + end) for end in (".png", ".csv", ".json"))
    )


def _check_flags(settings: Settings) -> None:
    if [settings.k, settings.max_drop, settings.ks].count(None) != 2:
        raise InputError("say how many channels to prune: one of --k, --max_drop, --ks")
    if settings.naive and settings.max_drop is None:
        raise InputError("--naive does nothing without --max_drop")
    if settings.fill == "all":
        raise InputError(f"--fill takes one of {', '.join(FILLS)} here")
    check_names(settings, tuple(FILLS))
    finetuning.check_flags(settings)
    exports.check_flags(settings)


def _ks(settings: Settings, p: int) -> tuple[int, ...] | Allowed:
    """K from --k or --ks; or the loss by which the sweep decides."""
    if settings.max_drop is not None:
        return Allowed(settings.max_drop, settings.naive)
    if settings.k is not None:
        return check_ks([settings.k], p)
    return check_ks(parse_ks(settings.ks, p), p)


def _one(
    run: Run,
    settings: Settings,
    plan: Plan,
    whole: Masked,
    exported: exports.Exports | None,
    k: int,
) -> dict[str, Any]:
    """Prunes k channels; returns the figures, and saves the network for a single K."""
    small = compact(
        whole.network, plan.choices.layer, plan.keep(k), fill=plan.fill,
        unproved=settings.unproved,
    )  # fmt: skip
    proof, judged = whole.prove(whole.masked(k), small, settings.unproved)
    row = {
        "k": k,
        "channels": len(plan.order),
        **whole.scores(whole.judged_whole, judged),
        "different_predictions": proof.different_predictions,
        "largest_difference": proof.largest_difference,
        **whole.figures(small, settings.batches(), settings.repeats),
    }
    if not run.task.logits:
        del row["different_predictions"]
    layer = f"layer {plan.choices.layer}, fill {plan.choices.fill}"
    print_row(row, proof, layer, run.task)
    small, changes, lines = finetuning.train_on(
        run, settings, whole, small, row[run.task.measure]
    )
    row |= changes
    if len(lines) > 1:
        row["epochs"] = lines
    if exported is not None:
        files, figures = exported.of(small)
        row |= figures
        save(run, settings, plan, whole, Pruned(k, small, proof, row, lines, files))
    return row
