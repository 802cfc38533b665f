"""Scores of whole networks that are cut to budgets, against what they cost."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NotRequired

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from typing_extensions import TypedDict

from jaxprune._base import schema
from jaxprune.report.curves import Quartiles
from jaxprune.report.measures import ACCURACY, check_measure, in_words
from jaxprune.report.style import add_grid, legend_below, save

_MARKERS = "osD^v"


@schema.and_others
class _Rung(TypedDict):
    """The fields that are drawn of a budget; there are more."""

    largest_drop: float
    multiply_adds: int
    multiply_adds_before: int
    parameters: int
    parameters_before: int
    latency: dict[str, Quartiles]


@schema.and_others
class _About(TypedDict):
    model: str


@schema.and_others
class _Ladder(TypedDict):
    about: _About
    measure: NotRequired[str]
    higher_is_better: NotRequired[bool]
    rungs: list[_Rung]


def draw_budgets(folder: Path, suffix: str = "png") -> list[Path]:
    """Draws pareto.png beside summary.json; its path, or none without budgets.

    Raises:
      InputError: summary.json is damaged.
    """
    ladder = schema.read(folder / "summary.json", _Ladder)
    if not ladder["rungs"]:
        return []
    title = f"{ladder['about']['model']}: smaller networks, nothing trained"
    path, measure = folder / "summary.json", ladder.get("measure", ACCURACY)
    check_measure(path, measure, ladder["rungs"])
    better = ladder.get("higher_is_better", True)
    figure = pareto(ladder["rungs"], title, measure, better)
    return [save(figure, folder / f"pareto.{suffix}")]


def pareto(
    rows: Sequence[dict[str, Any]],
    title: str,
    measure: str = ACCURACY,
    higher_is_better: bool = True,
) -> Figure:
    """A score against multiply-adds, parameters and measured time.

    A bar down from a point ends at what the network may really have, with 95 %
    confidence; one across it joins the quartiles of its time.

    Args:
      rows: one for each budget, as `jaxprune shrink` keeps them. Figures of the
        whole network are the same in every row.
      title: of the sheet.
      measure: the score.
      higher_is_better: whether a lower score is a loss.
    """
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    score = measure, higher_is_better
    whole = rows[0][f"baseline_{measure}"]
    for axes, key in zip(panels, ("multiply_adds", "parameters"), strict=False):
        share = [row[key] / row[f"{key}_before"] for row in rows]
        _points(axes, rows, *score, share, fmt="o", color="tab:blue")
        values = [row[measure] for row in rows]
        path = sorted([*zip(share, values, strict=True), (1, whole)])
        axes.plot(*zip(*path, strict=True), color="tab:blue", linewidth=1)
        axes.plot([1], [whole], "o", color="0.45", markersize=4)
        label = key.replace("_", "-")
        axes.set_xlabel(f"{label}, share of the whole network's")
    _times(panels[2], rows, score)
    for axes in panels:
        axes.axhline(
            whole, color="0.45", linestyle="--", linewidth=1,
            label=f"whole network {whole:.4f}",
        )  # fmt: skip
        add_grid(axes)
    worse = "down: what may be left" if higher_is_better else "up: what it may be"
    panels[2].set_title(
        f"{worse}, with 95 % confidence; across: quartiles",
        fontsize=8, color="0.35", loc="right",
    )  # fmt: skip
    panels[0].set_ylabel(in_words(measure))
    figure.suptitle(title)
    legend_below(figure, panels[2:], columns=6)
    return figure


def _times(axes: Axes, rows: Sequence[dict[str, Any]], score: tuple[str, bool]) -> None:
    """Points alone: times of like networks differ by chance, and a line would turn."""
    latest = 1.0
    for i, batch in enumerate(sorted(rows[0]["latency"], key=int)):
        pairs = [row["latency"][batch] for row in rows]
        low, share, high = (
            [pair["after"][key] / pair["before"]["median"] for pair in pairs]
            for key in ("lower_quartile", "median", "upper_quartile")
        )
        latest = max(latest, *share)
        quartiles = [
            [x - end for x, end in zip(share, low, strict=True)],
            [end - x for x, end in zip(share, high, strict=True)],
        ]
        _points(
            axes, rows, *score, share, xerr=quartiles, fmt=_MARKERS[i % len(_MARKERS)],
            color=f"C{i}", label=f"batch {batch}",
        )  # fmt: skip
    axes.set_xlim(0, 1.05 * latest)  # a quartile may lie far beyond all medians
    axes.axvline(1, color="0.45", linestyle=":", linewidth=1)
    axes.set_xlabel("measured time, share of the whole network's")


def _points(
    axes: Axes,
    rows: Sequence[dict[str, Any]],
    measure: str,
    higher_is_better: bool,
    share: list[float],
    **style: Any,
) -> None:
    sign = 1 if higher_is_better else -1
    values = [row[measure] for row in rows]
    # How far it may really be on the worse side.
    worse = [
        max(0, sign * (row[measure] - row[f"baseline_{measure}"]) + row["largest_drop"])
        for row in rows
    ]
    bars = [worse, [0] * len(rows)][::sign]
    axes.set_xlim(0, 1.05)
    axes.errorbar(
        share, values, yerr=bars, markersize=4, elinewidth=0.8, alpha=0.8, **style
    )
