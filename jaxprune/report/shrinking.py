"""Accuracy of whole networks that are cut to budgets, against what they cost."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxprune.report.curves import add_grid


def pareto(rows: Sequence[dict[str, Any]], title: str) -> Figure:
    """Accuracy against multiply-adds, parameters and measured time.

    Args:
      rows: one for each budget, as `jaxprune shrink` keeps them. Figures of the
        whole network are the same in every row.
      title: of the sheet.
    """
    batches = sorted(rows[0]["latency"], key=int)
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for axes, key, label in (
        (panels[0], "multiply_adds", "multiply-adds"),
        (panels[1], "parameters", "parameters"),
    ):
        share = [row[key] / row[f"{key}_before"] for row in rows]
        _line(axes, rows, share, None)
        axes.set_xlabel(f"{label}, share of the whole network's")
    for batch in batches:
        times = [row["latency"][batch] for row in rows]
        share = [t["after"]["median"] / t["before"]["median"] for t in times]
        _line(panels[2], rows, share, f"batch {batch}")
    panels[2].set_xlabel("measured time, share of the whole network's")
    panels[2].legend(loc="lower right")
    whole = rows[0]["baseline_accuracy"]
    for axes in panels:
        axes.axhline(whole, color="0.45", linestyle="--", linewidth=1)
        axes.set_xlim(0, 1.05)
        add_grid(axes)
    panels[0].annotate(
        f"whole network {whole:.4f}", (0.02, whole), xytext=(0, -4),
        textcoords="offset points", verticalalignment="top", color="0.35",
    )  # fmt: skip
    panels[0].set_ylabel("accuracy")
    figure.suptitle(title)
    return figure


def _line(
    axes: Axes, rows: Sequence[dict[str, Any]], share: list[float], label: str | None
) -> None:
    points = sorted((x, row["accuracy"]) for x, row in zip(share, rows, strict=True))
    points.append((1.0, rows[0]["baseline_accuracy"]))
    axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=label)
