"""Figures of criteria side by side, from a saved comparison.

C criteria, R random orders, K masks.
"""

from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxprune.report.measures import in_words
from jaxprune.report.style import add_grid, save
from jaxprune.results.comparison import BAND, Comparison

# By criterion, so that a colour means the same in every picture: of one kin, the second
# is dashed. What is measured is black.
_STYLES: dict[str, tuple[str, str]] = {
    "mean": ("tab:blue", "-"),
    "abs_mean": ("tab:blue", "--"),
    "std": ("tab:cyan", "-"),
    "apoz": ("tab:olive", "-"),
    "l1": ("tab:orange", "-"),
    "l2": ("tab:orange", "--"),
    "bn_scale": ("tab:brown", "-"),
    "fpgm": ("tab:pink", "-"),
    "taylor": ("tab:green", "-"),
    "fisher": ("tab:green", "--"),
    "wanda": ("tab:purple", "-"),
    "linear": ("tab:red", "-"),
    "residual_variance": ("tab:red", "--"),
    "random": ("0.5", "-"),
    "oracle": ("black", "-"),
    "abs_oracle": ("black", ":"),
    "greedy_oracle": ("black", "--"),
}


# What is enlarged: values above this quantile of all, where they are in a small part of
# the axis.
_ENLARGED, _PART = 0.1, 0.3


def draw_comparison(
    comparison: Comparison, folder: Path, suffix: str = "png"
) -> list[Path]:
    """Draws both pictures into its folder; returns their paths."""
    figures = {
        "criteria": accuracy_by_criterion(comparison),
        "agreement": agreement(comparison),
    }
    return [save(each, folder / f"{name}.{suffix}") for name, each in figures.items()]


def accuracy_by_criterion(comparison: Comparison) -> Figure:
    """Accuracy against K of every criterion, over the 95 % band of random orders.

    For unbalanced classes, balanced accuracy has a second row. Where most of the curves
    lie in a small part of the axis, a second panel enlarges that. In the legend,
    criteria are in order of their mean accuracy over K.
    """
    kinds = [
        (
            in_words(comparison.measure),
            comparison.accuracy,
            comparison.random_accuracy,
        ),
        (
            "balanced accuracy",
            comparison.balanced_accuracy,
            comparison.random_balanced_accuracy,
        ),
    ]
    kinds = kinds[: 1 if comparison.is_balanced else 2]
    ranges = [_enlarged(curves) for _, curves, _ in kinds]
    columns = 2 if any(ranges) else 1
    size = (6 * columns + 2.5, 1.0 + 5.2 * len(kinds))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(kinds), columns, squeeze=False, sharex=True)
    for row, (name, curves, random), part in zip(panels, kinds, ranges, strict=True):
        for axes in row:
            _curves(axes, comparison, curves, random)
            axes.set_ylabel(name)
        if part:
            row[1].set_ylim(*part)
            row[1].set_ylabel(f"{name}, enlarged: from {part[0]:.3f}")
        elif columns == 2:
            row[1].remove()
    about = comparison.about
    figure.suptitle(
        f"{about.get('model', 'network')}, layer {about['layer']}, fill "
        f"{about['fill']}: which channels go first"
    )
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside right center",
        title="mean over K", alignment="left",
    )  # fmt: skip
    return figure


def _enlarged(curves: Float[np.ndarray, "C K"]) -> tuple[float, float] | None:
    """The part of the axis that most of the curves share; None if it is large."""
    low, high = np.quantile(curves, [_ENLARGED, 1])
    margin = 0.05 * (high - low)
    part = (float(low - margin), float(high + margin))
    return part if 0 < high - low < _PART else None


def _curves(
    axes: Axes, comparison: Comparison, curves: np.ndarray, random: np.ndarray
) -> None:
    ks, means = comparison.ks, comparison.mean_accuracy
    if len(random):
        low, high = np.quantile(random, BAND, axis=0)
        axes.fill_between(
            ks, low, high, color="0.85",
            label=f"95 % of {len(random)} random orders",
        )  # fmt: skip
        middle = comparison.random_accuracy.mean()
        axes.plot(
            ks, random.mean(0), color="0.5", linewidth=1, linestyle=":",
            label=f"{middle:.4f}  their mean",
        )  # fmt: skip
    for i in np.argsort(-means, kind="stable"):
        name = comparison.names[i]
        color, style = _STYLES.get(name, ("tab:gray", "-."))
        axes.plot(
            ks, curves[i], color=color, linestyle=style,
            linewidth=2.2 if "oracle" in name else 1.5,
            label=f"{means[i]:.4f}  {name}",
        )  # fmt: skip
    axes.set_xlim(0, comparison.scores.shape[1])
    axes.set_ylim(0, 1.02)
    axes.set_xlabel(f"K, channels pruned of {comparison.scores.shape[1]}")
    add_grid(axes)


def agreement(comparison: Comparison) -> Figure:
    """Spearman's rank correlation of every two criteria's scores, in numbers."""
    names, matrix = comparison.names, comparison.spearman
    size = 2.4 + 0.62 * len(names)
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axes = figure.subplots()
    colors = matplotlib.colormaps["RdBu_r"].with_extremes(bad="0.9")
    drawn = axes.imshow(np.ma.masked_invalid(matrix), cmap=colors, vmin=-1, vmax=1)
    for i, row in enumerate(matrix):
        for j, rho in enumerate(row):
            number = f"{round(rho, 2) + 0.0:.2f}"  # not -0.00
            number = number.replace("-", "\N{MINUS SIGN}")  # as on the colour bar
            axes.text(
                j, i, "n/a" if np.isnan(rho) else number, ha="center", va="center",
                color="white" if abs(rho) > 0.7 else "black", fontsize=9,
            )  # fmt: skip
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    about = comparison.about
    axes.set_title(
        f"{about.get('model', 'network')}, layer {about['layer']}: how criteria agree"
    )
    figure.colorbar(drawn, ax=axes, label="Spearman's rank correlation", shrink=0.8)
    return figure
