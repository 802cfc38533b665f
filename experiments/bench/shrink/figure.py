"""Smaller networks of several makers: accuracy stage by stage, and time."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxprune.report.style import add_grid

_STAGES = {
    "accuracy": "cut",
    "accuracy_recalibrated": "BatchNorm\nrecalibrated",
    "accuracy_finetuned": "fine-tuned",
}


def stages(rows: Sequence[dict[str, Any]], title: str) -> Figure:
    """Accuracy after each stage, and measured time with its quartiles.

    A network has one colour everywhere; the bars name it.

    Args:
      rows: as `experiments.bench --what=shrink` keeps them; those that have been
        through no stage but the first are whole networks.
      title: of the sheet.
    """
    batches = sorted(rows[0]["latency"], key=int)
    figure = Figure(figsize=(6 + 3 * len(batches), 4.6), layout="constrained")
    widths = [1.6] + [1.0] * len(batches)
    accuracy, *times = figure.subplots(1, 1 + len(batches), width_ratios=widths)
    for i, row in enumerate(rows):
        _accuracy(accuracy, row, f"C{i}")
    accuracy.set_ylabel("accuracy")
    accuracy.set_ylim(0, 1)
    add_grid(accuracy)
    for axes, batch in zip(times, batches, strict=True):
        _times(axes, rows, batch)
    times[0].set_yticks(range(len(rows)), [_name(row) for row in rows])
    for axes in times[1:]:
        axes.set_yticks(range(len(rows)), [""] * len(rows))
    figure.suptitle(title)
    return figure


def _name(row: dict[str, Any]) -> str:
    return f"{row['by']},\n{row['method']}"


def _accuracy(axes: Axes, row: dict[str, Any], color: str) -> None:
    stages = [key for key in _STAGES if key in row]
    if len(stages) == 1:
        axes.axhline(row["accuracy"], color=color, linestyle="--", linewidth=1)
        return
    values = [row[key] for key in stages]
    axes.plot([_STAGES[key] for key in stages], values, "o-", color=color)


def _times(axes: Axes, rows: Sequence[dict[str, Any]], batch: str) -> None:
    for y, row in enumerate(rows):
        low, middle, high = (
            1e3 * row["latency"][batch][key]
            for key in ("lower_quartile", "median", "upper_quartile")
        )
        axes.barh(
            y, middle, color=f"C{y}", xerr=[[middle - low], [high - middle]], capsize=3
        )
    axes.invert_yaxis()
    axes.set_xlabel(f"batch {batch}, ms")
    add_grid(axes)
