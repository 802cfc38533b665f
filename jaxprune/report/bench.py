"""Figure of a benchmark."""

from collections.abc import Sequence

from matplotlib.figure import Figure


def bars(rows: Sequence[tuple[str, float, bool]], title: str) -> Figure:
    """Seconds as horizontal bars, shortest on top.

    Args:
      rows: label, seconds, and whether they are extrapolated.
      title: of the figure.
    """
    rows = sorted(rows, key=lambda row: row[1])
    figure = Figure(figsize=(8, 1.2 + 0.34 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for y, (_, seconds, extrapolated) in enumerate(rows):
        axes.barh(
            y,
            seconds,
            color="white" if extrapolated else "tab:blue",
            edgecolor="tab:blue",
            hatch="///" if extrapolated else None,
        )
        axes.annotate(
            _duration(seconds),
            (seconds, y),
            (4, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set_yticks(range(len(rows)), [label for label, *_ in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    longest, shortest = rows[-1][1], rows[0][1]
    axes.set_xlim(shortest / 3, longest * 6)
    axes.set_xlabel("seconds (hatched: measured in part and extrapolated)")
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 7200:
        return f"{seconds / 60:.3g} min"
    return f"{seconds / 3600:.3g} h"
