"""Figure of a benchmark."""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.figure import Figure


class Bar(NamedTuple):
    """A measurement: median, lowest and highest seconds of its runs.

    Attributes:
      label: name of the measurement.
      seconds: median.
      lowest: of all runs.
      highest: of all runs.
      extrapolated: whether only a part was measured.
    """

    label: str
    seconds: float
    lowest: float
    highest: float
    extrapolated: bool


def bars(rows: Sequence[Bar], title: str) -> Figure:
    """Median seconds as horizontal bars, shortest on top, lines from lowest to highest.

    Args:
      rows: the measurements.
      title: of the figure.
    """
    rows = sorted(rows, key=lambda row: row.seconds)
    figure = Figure(figsize=(8, 1.2 + 0.34 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for y, row in enumerate(rows):
        axes.barh(
            y,
            row.seconds,
            color="white" if row.extrapolated else "tab:blue",
            edgecolor="tab:blue",
            hatch="///" if row.extrapolated else None,
            xerr=[[row.seconds - row.lowest], [row.highest - row.seconds]],
            capsize=3,
        )
        axes.annotate(
            _duration(row.seconds),
            (row.highest, y),
            (6, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    shortest, longest = rows[0].seconds, max(row.highest for row in rows)
    axes.set_xlim(shortest / 3, longest * 6)
    axes.set_xlabel("median seconds, lowest to highest; hatched: extrapolated")
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 7200:
        return f"{seconds / 60:.3g} min"
    return f"{seconds / 3600:.3g} h"
