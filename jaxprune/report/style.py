"""What all figures have in common: how they are written, their grid and legend."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxprune._base.files import replacing
from jaxprune.results.base import BaseResult

# Formats that figures are written in.
FORMATS = ("png", "pdf", "svg")


def save(figure: Figure, path: Path) -> Path:
    """Writes the figure to `path`, whole or not at all, without empty margins."""
    # Publishers refuse Type 3 fonts, matplotlib's default in a PDF.
    with replacing(path) as temporary, matplotlib.rc_context({"pdf.fonttype": 42}):
        figure.savefig(temporary, dpi=150, bbox_inches="tight", pad_inches=0.08)
    return path


def stacked(heights: Sequence[float]) -> tuple[Figure, list[Axes]]:
    """A figure of panels one below the other, of these heights, with one axis of K."""
    figure = Figure(figsize=(8, 1 + sum(heights)), layout="constrained")
    panels = figure.subplots(
        len(heights), 1, squeeze=False, sharex=True,
        gridspec_kw={"height_ratios": heights},
    )  # fmt: skip
    return figure, list(panels[:, 0])


def add_grid(axes: Axes) -> None:
    """Thin lines behind what is drawn."""
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)


def axes_of_k(axes: Axes, result: BaseResult) -> None:
    """The axis of K, of all channels."""
    p = len(result.order)
    axes.set_xlim(0, p)
    axes.set_xlabel(f"K, channels pruned of {p}")
    add_grid(axes)


def legend_below(figure: Figure, panels: Iterable[Axes], columns: int) -> None:
    """One legend below all panels: curves that fall leave no corner free."""
    found = [axes.get_legend_handles_labels() for axes in panels]
    shown = {label: line for each in found for line, label in zip(*each, strict=True)}
    figure.legend(
        [*shown.values()], [*shown], loc="outside lower center", ncols=columns
    )
