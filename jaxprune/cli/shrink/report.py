"""The output of `jaxprune shrink`: printed lines, tables."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxprune._base.files import replacing, write_text
from jaxprune.cli import cluster, finetuning
from jaxprune.cli.compact.report import amount, score_line, speed
from jaxprune.cli.settings import SmallerSettings
from jaxprune.cli.shrink.ladder import Ladder, Rung
from jaxprune.compaction.network import Compact
from jaxprune.report import compact, shrinking, style
from jaxprune.report.measures import in_words
from jaxprune.tasks.task import Task


def print_budget(rung: Rung, task: Task, batch: int) -> None:
    """A budget's figures in one line; the speed is that of one batch size."""
    row, name = rung.row, task.measure
    higher = task.scores[name].higher_is_better
    most = f"at most {amount(name, row['largest_drop'])} {'lost' if higher else 'more'}"
    parts = [f"{in_words(name)} {row[name]:.4f}, {most} (95 % sure)"]
    if not task.imitates and "agreement" in row:
        parts.append(
            f"agreement {row['agreement']:.4f}, at least {row['least_agreement']:.4f}"
        )
    smaller = row["parameters_before"] / row["parameters"]
    parts += [
        f"multiply-adds / {row['theoretical_speedup']:.2f}, parameters / {smaller:.2f}",
        f"{speed(row['latency'][str(batch)]['speedup'])} at batch {batch}",
    ]
    cluster.say(f"{rung.budget.kind} {rung.budget.value:g}: {'; '.join(parts)}")


def print_network(rung: Rung, task: Task, predicted_batch: int) -> None:
    """All figures of the network that was asked for.

    Times are predicted for one batch size, where that is what the budget limits.
    """
    row, proof = rung.row, rung.row["proof"]
    cluster.say(f"asked for: {rung.budget.kind} {rung.budget.value:g}: widths "
          f"{' '.join(map(str, rung.widths.values()))}")  # fmt: skip
    cluster.say(score_line(row, task))
    if not task.imitates and "agreement" in row:
        cluster.say(
            f"  agreement  {row['agreement']:.4f} of the predictions are the whole "
            f"network's, at least {row['least_agreement']:.4f} with 95 % confidence"
        )
    differ = (
        f"{proof['different_predictions']} predictions differ from the masked "
        "network's, largest logit difference"
        if task.logits
        else "largest difference from the masked network's outputs"
    )
    cluster.say(
        f"  proof      {proof['images']} images: {differ} "
        f"{proof['largest_difference']:.2e}, {proof['equations']} equations equal in "
        f"float64"
    )
    cluster.say(
        f"  size       multiply-adds / {row['theoretical_speedup']:.3f}, parameters / "
        f"{row['parameters_before'] / row['parameters']:.2f}, "
        f"{row['file_bytes'] / 1e6:.2f} MB"
    )
    for batch, times in row["latency"].items():
        before, after = times["before"]["median"], times["after"]["median"]
        line = (
            f"  batch {batch:>4}  {1e3 * before:.1f} -> {1e3 * after:.1f} ms: "
            f"{speed(times['speedup'])}"
        )
        if int(batch) == predicted_batch and "predicted_seconds" in row:
            line += (
                f"; predicted {1e3 * row['predicted_seconds']:.1f} ms, "
                f"{speed(row['predicted_speedup'])}"
            )
        cluster.say(line)


def write_files(ladder: Ladder, chosen: Rung | None, figures: dict[str, Any]) -> None:
    """Writes layers.csv, pareto.csv, pareto.png, summary.json and images.npz.

    Args:
      ladder: the networks.
      chosen: the one that is saved.
      figures: of its other forms.
    """
    folder, task, curves = ladder.folder, ladder.run.task, ladder.analysis.curves
    if ladder.rungs:
        ladder.keep_pictures()
    rungs = ladder.by_cost()
    rows = [_flat(rung, task) for rung in rungs]
    _write_csv(folder / "pareto.csv", rows)
    if chosen is not None:
        _write_csv(folder / "layers.csv", _layers(ladder, chosen))
    text = {
        "about": ladder.facts,
        "measure": task.measure,
        "higher_is_better": task.scores[task.measure].higher_is_better,
        "multiple_of": ladder.multiple_of,
        "widths": {name: ladder.analysis.costs.whole[name] for name in curves},
        "left_whole": dict(ladder.analysis.groups.whole),
        "rungs": [
            {
                "budget": rung.budget.kind,
                "value": rung.budget.value,
                "widths": rung.widths,
                **rung.row,  # whose latency is what was measured
            }
            for rung in rungs[::-1]
        ],
        **figures,
    }
    write_text(folder / "summary.json", json.dumps(text, indent=2) + "\n")
    shrinking.draw_budgets(folder)
    for layer, reason in ladder.analysis.groups.whole.items():
        print(f"left whole: {layer}: {reason}")


def save_network(
    folder: Path,
    settings: SmallerSettings,
    ladder: Ladder,
    chosen: Rung,
    small: Compact,
    changes: dict[str, Any],
    lines: Sequence[dict[str, Any]],
    files: dict[str, bytes],
) -> None:
    """Writes the network and, if it was fine-tuned, a picture beside it."""
    config = ladder.run.config
    small.save(
        folder,
        pixel_mean=config.pixel_mean,
        pixel_std=config.pixel_std,
        class_names=ladder.whole.split.class_names,
        pixels=ladder.whole.split.dtype,
        about={
            **ladder.facts,
            "budget": {chosen.budget.kind: chosen.budget.value},
            "after_the_proof": finetuning.describe(ladder.run, settings),
            "measure": ladder.run.task.measure,
            "measured": {**chosen.row, **changes},
        },
        stablehlo="stablehlo" in settings.export,
        files=files,
    )
    if len(lines) > 1:
        title = f"{config.model}, {chosen.budget.kind} {chosen.budget.value:g}"
        measure = ladder.run.task.measure
        figure = compact.finetuning(lines, ladder.baseline, title, measure)
        style.save(figure, folder.with_name(f"{folder.name}.png"))


def _flat(rung: Rung, task: Task) -> dict[str, Any]:
    row = rung.row
    flat = {
        "budget": rung.budget.kind,
        "value": rung.budget.value,
        **{k: v for k, v in row.items() if not isinstance(v, dict)},
    }
    if task.logits:
        flat["different_predictions"] = row["proof"]["different_predictions"]
    for batch, times in row["latency"].items():
        for side in ("before", "after"):
            flat[f"latency_{batch}_{side}"] = times[side]["median"]
    return flat


def _layers(ladder: Ladder, chosen: Rung) -> list[dict[str, Any]]:
    """A row for each group that may be cut: widths, costs, loss curve."""
    analysis, table = ladder.analysis, ladder.analysis.latency
    before, after = analysis.costs.whole, {**analysis.costs.whole, **chosen.widths}
    rows = []
    for name, curve in analysis.curves.items():
        layers = analysis.groups.groups[name].producers
        products = {n: analysis.costs.layers[n] for n in layers}
        rows.append(
            {
                "group": name,
                "layers": " ".join(layers),
                "width_before": before[name],
                "width_after": after[name],
                **{
                    f"multiply_adds_{when}": sum(
                        round(p.count(widths)) for p in products.values()
                    )
                    for when, widths in (("before", before), ("after", after))
                },
                **{
                    f"seconds_{when}": sum(table.layer(n, widths) for n in layers)
                    if table.layers.keys() >= layers.keys()  # of attentions not timed
                    else ""
                    for when, widths in (("before", before), ("after", after))
                    if table is not None
                },
                "loss": curve.loss(after[name]),
                "curve": " ".join(
                    f"{width}:{loss:.3g}"
                    for width, loss in zip(curve.widths, curve.losses, strict=True)
                ),
            }
        )
    return rows


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        columns = dict.fromkeys(name for row in rows for name in row)
        table = csv.DictWriter(file, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
