"""Figures from a saved sweep; nothing here computes a network.

A function named after a picture returns a matplotlib Figure; `save` writes one.
P channels, K masks, C classes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from typing_extensions import TypedDict

from jaxprune._base import schema
from jaxprune._base.errors import InputError
from jaxprune.report.confidence import band, loss_curve, mark_chosen, note
from jaxprune.report.feature_maps import feature_maps
from jaxprune.report.style import add_grid, axes_of_k, legend_below, save, stacked
from jaxprune.report.task_curves import baseline, examples, in_words, score_vs_k
from jaxprune.results import metrics
from jaxprune.results.base import BaseResult
from jaxprune.results.confidence import Interval
from jaxprune.results.load import AnyResult
from jaxprune.results.result import SweepResult
from jaxprune.results.task_result import TaskResult

_ACCURACY, _BALANCED, _QUIET = "tab:blue", "tab:orange", "0.45"
# Colour, width and style of each fill's curve. Where two lie upon one another (a mean
# and a dropped channel often do the same), both must show.
_FILLS: dict[str, tuple[str, float, str]] = {
    "zero": ("tab:blue", 3.0, "-"),
    "bias": ("tab:orange", 1.5, "--"),
    "mean": ("tab:green", 3.0, "-"),
    "drop": ("black", 1.5, "--"),
    "linear": ("tab:red", 2.0, "-"),
    "values": ("tab:purple", 2.0, "-"),
}


def draw_sweep(
    result: AnyResult,
    folder: Path,
    *,
    order: str = "channel",
    normalize: str = "shared",
    k: int | None = None,
    suffix: str = "png",
) -> list[Path]:
    """Draws all pictures of one sweep into its folder; returns their paths.

    Args:
      result: the sweep.
      folder: the folder for the pictures.
      order: tiles of the feature maps by channel index or by rank.
      normalize: one scale for all tiles, or one for each.
      k: K of the second confusion matrix; by default the largest safe one.
      suffix: of the files, one of FORMATS.
    """
    figures = {
        "feature_maps": feature_maps(result, order=order, normalize=normalize),
        "scores": sorted_scores(result),
    }
    if isinstance(result, TaskResult):
        figures = {"score_vs_k": score_vs_k(result), **figures}
        if result.shown_outputs is not None:
            figures["examples"] = examples(result)
    else:
        figures = {"accuracy_vs_k": accuracy_vs_k(result), **figures}
        figures["confusion"] = confusion_matrices(result, k)
    return [save(each, folder / f"{name}.{suffix}") for name, each in figures.items()]


def draw_training(
    lines: Sequence[Mapping[str, Any]], folder: Path, model: str, suffix: str = "png"
) -> list[Path]:
    """Draws training.png from the log of a training; nothing where that is empty."""
    if not lines:
        return []
    return [save(training_curves(lines, model), folder / f"training.{suffix}")]


@schema.and_others
class EpochLine(TypedDict):
    """The fields that are drawn of an epoch's line; there are more."""

    epoch: int
    loss: float
    train_accuracy: float
    test_accuracy: float
    test_balanced_accuracy: float


@schema.and_others
class _Spread(TypedDict):
    lower_quartile: float
    median: float
    upper_quartile: float


@schema.and_others
class Quartiles(TypedDict):
    """The fields that are drawn of a network's times; there are more."""

    before: _Spread
    after: _Spread


def _baseline(axes: Axes, result: SweepResult, name: str = "accuracy") -> None:
    base = getattr(result, name)[0]
    label = f"baseline {_of(name, result)}{base:.4f}"
    axes.axhline(base, color=_QUIET, linestyle="--", linewidth=1, label=label)


def _chance(
    axes: Axes, result: SweepResult, name: str = "accuracy", color: str = _QUIET
) -> None:
    """The accuracy, or balanced accuracy, of a network that knows one class."""
    share = np.bincount(result.labels).max() / len(result.labels)
    if name == "balanced_accuracy":
        share = 1 / len(result.present)
    label = f"chance, always one class: {_of(name, result)}{share:.2f}"
    axes.axhline(share, color=color, linestyle=":", linewidth=1.2, label=label)


def _of(name: str, result: SweepResult) -> str:
    """A figure's name, where there are two of them."""
    return "" if result.is_balanced else f"{name.replace('_', ' ')} "


def accuracy_vs_k(result: SweepResult) -> Figure:
    """Accuracy and cross-entropy against K; for unbalanced classes what they hide.

    There, balanced accuracy is a second line, and a panel shows the share of images
    that the network predicts as each class. Bands are 95 % intervals.
    """
    unbalanced, with_loss = not result.is_balanced, result.cross_entropy is not None
    heights = [4.8] + [2.2] * (unbalanced + with_loss)
    figure, panels = stacked(heights)
    top = panels[0]
    top.plot(result.ks, result.accuracy, color=_ACCURACY, label="accuracy")
    band(top, result.ks, result.figures.accuracy, _ACCURACY)
    if unbalanced:
        balanced = result.balanced_accuracy
        top.plot(result.ks, balanced, color=_BALANCED, label="balanced accuracy")
        band(top, result.ks, result.figures.recalls.balanced, _BALANCED)
        _predicted_shares(panels[1], result)
    _baseline(top, result)
    _chance(top, result, color=_ACCURACY if unbalanced else _QUIET)
    if unbalanced:
        _chance(top, result, "balanced_accuracy", _BALANCED)
    mark_chosen(top, result)
    note(top, result)
    top.set_ylabel("accuracy")
    top.set_ylim(0, 1.02)
    top.set_title(result.title, pad=16)
    if result.cross_entropy is not None:
        loss_curve(panels[-1], result, _ACCURACY, "cross-entropy, nats")
    for axes in panels:
        axes_of_k(axes, result)
        axes.label_outer()
    legend_below(figure, [top], columns=2)
    return figure


def _predicted_shares(axes: Axes, result: SweepResult) -> None:
    """Share of images predicted as each class, beside the true share."""
    shares = metrics.predicted_share(result.confusion)
    counts = np.bincount(result.labels, minlength=len(result.class_names))
    truth = counts / counts.sum()
    for c, name in enumerate(result.class_names):
        (line,) = axes.plot(result.ks, shares[:, c], label=f"predicted '{name}'")
        axes.axhline(truth[c], color=line.get_color(), linestyle=":", linewidth=1)
    axes.set_ylim(-0.02, 1.02)
    axes.set_ylabel("share of images\n(dotted: true share)")
    axes.legend(loc="best", framealpha=0.95)


def compare_fills(results: Sequence[AnyResult]) -> Figure:
    """The score against K of sweeps that differ in what a pruned channel becomes.

    That is accuracy; for unbalanced classes, balanced accuracy is a second panel. Bands
    are 95 % intervals.
    """
    first = results[0]
    unbalanced = isinstance(first, SweepResult) and not first.is_balanced
    figure = Figure(figsize=(8, 8.6 if unbalanced else 5.4), layout="constrained")
    panels = figure.subplots(2 if unbalanced else 1, 1, squeeze=False)[:, 0]
    by_fill = {result.about["fill"]: result for result in results}
    for fill, (color, width, style) in _FILLS.items():
        if fill not in by_fill:
            continue
        result = by_fill[fill]
        for axes, (curve, interval) in zip(panels, _measured(result), strict=False):
            axes.plot(
                result.ks, curve, label=f"fill {fill}", color=color, linewidth=width,
                linestyle=style,
            )  # fmt: skip
            band(axes, result.ks, interval, color)
    title = f"{first.subject}: what a pruned channel becomes"
    panels[0].set_title(title, pad=16)
    note(panels[0], first)
    for axes, name in zip(panels, (first.measure, "balanced_accuracy"), strict=False):
        axes.set_ylabel(in_words(name))
        axes_of_k(axes, first)
        if isinstance(first, SweepResult):
            _baseline(axes, first, name)
            _chance(axes, first, name)
            axes.set_ylim(0, 1.02)
        else:
            baseline(axes, first)
    legend_below(figure, panels, columns=3 if unbalanced else 4)
    return figure


def _measured(result: AnyResult) -> list[tuple[np.ndarray, Interval]]:
    """Curves and intervals of the panels: the score and, of classes, the balanced."""
    curves = [(result.curve, result.curve_interval)]
    if isinstance(result, SweepResult):
        balanced = result.figures.recalls.balanced
        curves.append((result.balanced_accuracy, balanced))
    return curves


def sorted_scores(result: BaseResult) -> Figure:
    """Scores in ascending order, the order of pruning."""
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    scores = result.scores[result.order]
    edges = np.arange(len(scores) + 1) - 0.5
    axes.stairs(scores, edges, fill=True, alpha=0.3)
    axes.stairs(scores, edges, color="tab:blue", linewidth=1.5)
    chosen = result.largest_safe_k(result.max_drop)
    if chosen:
        axes.axvline(
            chosen - 0.5,
            color="tab:red",
            linewidth=1,
            label=f"largest safe K, {chosen}: those to the left are pruned",
        )
        legend_below(figure, [axes], columns=1)
    axes.set_xlim(-0.5, len(scores) - 0.5)
    axes.set_ylim(min(0, scores.min() * 1.05), max(0, scores.max() * 1.05) or None)
    axes.set_xlabel("rank (0 is pruned first)")
    axes.set_ylabel(f"score: {result.about.get('criterion', 'given')}")
    axes.set_title(result.title)
    add_grid(axes)
    return figure


def confusion_matrices(result: SweepResult, k: int | None = None) -> Figure:
    """Confusion matrices of the whole network and at one K, in per cent of the class.

    Raises:
      InputError: the sweep has no such K.
    """
    k = result.largest_safe_k(result.max_drop) if k is None else k
    if k not in result.ks:
        raise InputError(f"the sweep has no K = {k}")
    names = result.class_names
    size = max(4.0, 0.55 * len(names))
    figure = Figure(figsize=(2 * size + 1.2, size + 1), layout="compressed")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, row in zip(panels, (0, result.ks.index(k)), strict=True):
        drawn = _confusion(axes, result.confusion[row])
        longest = max(map(len, names))
        turned = {"rotation": 45, "ha": "right"} if longest > 3 else {}
        axes.set_xticks(range(len(names)), names, **turned)
        axes.set_xlabel("predicted")
        axes.set_title(f"K = {result.ks[row]}, accuracy {result.accuracy[row]:.4f}")
    images = np.bincount(result.labels, minlength=len(names))
    of_class = [f"{name} ({n:,})" for name, n in zip(names, images, strict=True)]
    panels[0].set_yticks(range(len(names)), of_class)
    panels[0].set_ylabel("true (images)")
    figure.suptitle(result.title)
    figure.colorbar(drawn, ax=panels, label="% of the true class", shrink=0.8)
    return figure


def _confusion(axes: Axes, counts: Int[np.ndarray, "C C"]) -> AxesImage:
    """A matrix in per cent of each row, with its numbers."""
    share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    digits = 1 if len(counts) <= 4 else 0
    for (true, predicted), value in np.ndenumerate(share):
        axes.text(
            predicted, true, f"{value:.{digits}f}", ha="center", va="center",
            color="white" if value > 55 else "black", fontsize=9,
        )  # fmt: skip
    return axes.imshow(share, cmap="Blues", vmin=0, vmax=100)


def training_curves(lines: Sequence[Mapping[str, Any]], model: str) -> Figure:
    """Loss and accuracies against the epoch."""
    figure = Figure(figsize=(8, 6.4), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    epochs = [line["epoch"] for line in lines]
    marker = "o" if len(lines) <= 20 else None
    panels[0].plot(epochs, [line["loss"] for line in lines], marker=marker)
    panels[0].set_ylabel("training loss, nats")
    for key in ("train_accuracy", "test_accuracy", "test_balanced_accuracy"):
        values = [line[key] for line in lines]
        panels[1].plot(epochs, values, marker=marker, label=key.replace("_", " "))
    panels[1].set_ylabel("accuracy")
    panels[1].set_xlabel("epoch")
    panels[1].legend()
    panels[0].set_title(f"{model}: training")
    for axes in panels:
        add_grid(axes)
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure
