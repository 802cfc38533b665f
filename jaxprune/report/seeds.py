"""Curves of several networks that differ in their seed alone."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from jaxprune.report.confidence import band
from jaxprune.report.style import add_grid, legend_below
from jaxprune.results.confidence import mean_interval
from jaxprune.results.result import SweepResult

_NAMES = {"accuracy": "tab:blue", "balanced_accuracy": "tab:orange"}


def compare_seeds(seeds: Sequence[int], results: Sequence[SweepResult]) -> Figure:
    """Each network's accuracy against K, their mean, and its 95 % interval.

    For unbalanced classes, balanced accuracy is a second panel. Dots are the networks'
    largest safe K.
    """
    first = results[0]
    names = list(_NAMES)[: 1 if first.is_balanced else 2]
    figure = Figure(figsize=(8, 1.5 + 3.8 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), 1, squeeze=False)[:, 0]
    for axes, name in zip(panels, names, strict=True):
        values = np.stack([getattr(r, name) for r in results])
        mean, interval = mean_interval(values)
        for seed, result, row in zip(seeds, results, values, strict=True):
            k = result.largest_safe_k(result.max_drop)
            axes.plot(result.ks, row, color="0.6", linewidth=0.8)
            axes.plot(
                [k], [row[result.ks.index(k)]], "o", markersize=4, zorder=3,
                label=f"seed {seed}: largest safe K {k}",
            )  # fmt: skip
        color = _NAMES[name]
        axes.plot(first.ks, mean, color=color, linewidth=2, label="mean")
        band(axes, first.ks, interval, color)
        axes.set_ylabel(name.replace("_", " "))
        axes.set_ylim(0, 1.02)
        axes.set_xlim(0, len(first.order))
        axes.set_xlabel(f"K, channels pruned of {len(first.order)}")
        add_grid(axes)
    legend_below(figure, panels[:1], columns=3)
    title = f"{first.title}: {len(seeds)} seeds (band: 95 % of their mean)"
    panels[0].set_title(title, fontsize=11)
    return figure
