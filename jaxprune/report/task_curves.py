"""Figures of a sweep whose outputs are no classes: scores, losses, images with outputs.

K masks, T images, R values of K.
"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxprune.report.confidence import band, loss_curve, mark_chosen, note
from jaxprune.report.measures import in_words
from jaxprune.report.style import axes_of_k, legend_below, stacked
from jaxprune.results.base import BaseResult
from jaxprune.results.confidence import Interval
from jaxprune.results.task_result import TaskResult

_COLOUR, _QUIET = "tab:blue", "0.45"


def score_vs_k(result: TaskResult) -> Figure:
    """The scores and the loss against K; bands are 95 % intervals.

    The first score, by which K is chosen, has the large panel.
    """
    heights = [4.8, *[2.2] * len(result.score_names)]
    figure, panels = stacked(heights)
    for i, (name, axes) in enumerate(zip(result.score_names, panels, strict=False)):
        axes.plot(result.ks, result.values[i], color=_COLOUR, label=in_words(name))
        band(axes, result.ks, Interval(*result.intervals[i]), _COLOUR)
        axes.set_ylabel(in_words(name))
    top, last = panels[0], panels[-1]
    baseline(top, result)
    mark_chosen(top, result)
    note(top, result)
    top.set_title(result.title, pad=16)
    loss_curve(last, result, _COLOUR)
    for axes in panels:
        axes_of_k(axes, result)
        axes.label_outer()
    legend_below(figure, [top], columns=2)
    return figure


def baseline(axes: Axes, result: BaseResult) -> None:
    """A line at the score of the whole network."""
    value = result.curve[0]
    label = f"baseline {value:.4g}"
    axes.axhline(value, color=_QUIET, linestyle="--", linewidth=1, label=label)


def examples(result: TaskResult) -> Figure:
    """Images, their targets, and the outputs at a few K: a row for each image."""
    shown, outputs, ks = result.shown, result.shown_outputs, result.shown_ks
    targets, images = result.shown_targets, result.thumbnail_images
    assert shown is not None and outputs is not None and ks is not None
    assert targets is not None and images is not None
    assert result.thumbnails is not None
    small = result.thumbnails[np.searchsorted(images, shown)]
    columns: list[tuple[str, Any]] = [("image", small), ("target", targets)]
    columns += [(f"K = {k}", outputs[:, r]) for r, k in enumerate(ks)]
    size = (1.7 * len(columns) + 0.6, 1.7 * len(shown) + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(shown), len(columns), squeeze=False)
    classes = max(int(targets.max()), int(outputs.max())) + 1
    of_classes = result.task == "segmentation"
    for column, (title, held) in enumerate(columns):
        panels[0, column].set_title(title, fontsize=10)
        for axes, picture in zip(panels[:, column], held, strict=True):
            _picture(axes, picture, classes if of_classes and column else None)
    first, last = result.losses[0], result.losses[result.ks.index(ks[-1])]
    for axes, image in zip(panels[:, 0], shown, strict=True):
        losses = f"loss {first[image]:.3g} → {last[image]:.3g}"
        axes.set_ylabel(f"image {image}\n{losses}", fontsize=8)
    figure.suptitle(f"{result.subject}: images whose loss moves most")
    return figure


def _picture(axes: Axes, picture: np.ndarray, classes: int | None) -> None:
    """A picture without an axis; of classes, in the colours of a map."""
    single = picture[..., 0] if picture.shape[-1] == 1 else picture
    colours: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 255}
    if classes is not None:
        count = 10 if classes <= 10 else 20
        colours = {"cmap": f"tab{count}", "vmin": 0, "vmax": count - 1}
        single = single % count
    axes.imshow(single, interpolation="nearest", **colours)
    axes.set_xticks([])
    axes.set_yticks([])
