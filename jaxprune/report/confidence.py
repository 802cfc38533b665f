"""How sure a curve is, on its picture: bands, the K to take, what to bear in mind."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from jaxprune.results.base import BaseResult, drop_in_words
from jaxprune.results.confidence import Interval

_CHOSEN = "tab:red"


def band(axes: Axes, ks: Sequence[int], interval: Interval, color: str) -> None:
    """A 95 % interval at every K."""
    axes.fill_between(ks, *interval, color=color, alpha=0.25, linewidth=0)


def mark_chosen(axes: Axes, result: BaseResult) -> None:
    """The largest safe K, and the largest as measured, on the curve."""
    allowed = drop_in_words(result.measure, result.max_drop)
    safe = result.largest_safe_k(result.max_drop)
    naive = result.largest_k_within(result.max_drop)
    for k, face, what in (
        (safe, _CHOSEN, "largest safe K"),
        (naive, "white", f"largest K within {allowed}, as measured"),
    ):
        at = result.curve[result.ks.index(k)]
        axes.plot(
            [k], [at], "o", color=_CHOSEN, markerfacecolor=face, zorder=3,
            label=f"{what}: {k} ({at:.4f})",
        )  # fmt: skip


def note(axes: Axes, result: BaseResult) -> None:
    """Above the axes, what was done on images that it should not know."""
    text = "; ".join(["bands: 95 % intervals", *result.overlaps])
    axes.annotate(
        text, (1, 1), (0, 3), xycoords="axes fraction", textcoords="offset points",
        ha="right", va="bottom", fontsize=8, color="0.35",
    )  # fmt: skip


def loss_curve(axes: Axes, result: BaseResult, color: str, name: str = "loss") -> None:
    """Mean loss against K; logarithmic, as it may rise a hundredfold."""
    axes.plot(result.ks, np.asarray(result.loss), color=color, label=name)
    axes.set_yscale("log", nonpositive="clip")
    if (interval := result.loss_interval) is not None:
        band(axes, result.ks, interval, color)
    low, high = axes.get_ylim()
    # Over many decades, 2 and 5 of each would crowd; within one step of these, a linear
    # axis' numbers are the only ones there are.
    subs = (1, 2, 5) if high < 300 * low else (1,)
    ticks = MaxNLocator(5) if high < 5 * low else LogLocator(subs=subs)
    axes.yaxis.set_major_locator(ticks)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel(name)
