"""From the values of all images at every K to the result that is saved.

Axes: K masks, N images, P channels.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxprune.evaluation.program import Plan
from jaxprune.results import thumbnails
from jaxprune.results.load import AnyResult
from jaxprune.results.result import SweepResult
from jaxprune.results.task_figures import score_figures
from jaxprune.results.task_result import TaskResult, figures_of
from jaxprune.sweep import examples
from jaxprune.sweep.activations import TappedLayer
from jaxprune.tasks.classes import CLASS, IN_TOP, Classification
from jaxprune.tasks.task import LOSS

# What a task keeps of each pair, by name: [K, N, ...].
Values = dict[str, np.ndarray]


def make_result(
    tapped: TappedLayer,
    plan: Plan,
    scores: Float[np.ndarray, " P"],
    values: Values,
    losses: Float[np.ndarray, "2 K"],
    about: dict[str, Any],
) -> AnyResult:
    """The result of a sweep.

    Args:
      tapped: the layer.
      plan: masks.
      scores: of the channels.
      values: what the task keeps of each image at each K.
      losses: means of losses and of their squares.
      about: JSON-able facts of how it was made.
    """
    common: dict[str, Any] = {
        "ks": plan.ks,
        "order": plan.order,
        "scores": scores,
        "mean_feature_map": _three_axes(tapped.mean_feature_map),
    }
    if isinstance(tapped.task, Classification):
        return _of_classes(tapped, values, losses, {**common, "about": about})
    about = {"task": tapped.task.name, "max_drop": tapped.task.max_drop, **about}
    return _of_task(tapped, plan, values, {**common, "about": about})


def _of_classes(
    tapped: TappedLayer, values: Values, losses: np.ndarray, common: dict[str, Any]
) -> SweepResult:
    predictions, (mean, mean_square) = values[CLASS], losses
    split = tapped.split
    result = SweepResult(
        **common,
        predictions=predictions,
        labels=split.labels,
        class_names=split.class_names,
        in_top=values.get(IN_TOP),
        cross_entropy=mean,
        cross_entropy_std=np.sqrt(np.maximum(mean_square - mean**2, 0)),
    )
    if not split.are_pictures:
        return result
    shown = thumbnails.shown(predictions == split.labels)
    small = thumbnails.of_split(split, shown)
    return replace(result, thumbnail_images=small.images, thumbnails=small.pixels)


def _of_task(
    tapped: TappedLayer, plan: Plan, values: Values, common: dict[str, Any]
) -> TaskResult:
    figures = {
        name: score_figures(values[name], score.combine, score.higher_is_better)
        for name, score in tapped.task.scores.items()
    }
    better = [score.higher_is_better for score in tapped.task.scores.values()]
    result = TaskResult(**common, **figures_of(figures, better), losses=values[LOSS])
    if not tapped.split.are_pictures:
        return result
    ks, last = plan.ks, len(plan.ks) - 1
    seen = sorted({ks[0], result.largest_safe_k(), ks[(last + 1) // 2]})
    shown = examples.most_moved(result.losses, ks.index(seen[-1]))
    moved = thumbnails.moved(result.losses)
    first = np.concatenate([shown, moved[~np.isin(moved, shown)]])
    small = thumbnails.of_split(tapped.split, first)
    return replace(
        result,
        thumbnail_images=small.images,
        thumbnails=small.pixels,
        **examples.pictures(tapped, plan, shown, seen),
    )


def _three_axes(feature_map: np.ndarray) -> np.ndarray:
    """[H, W, P], with H = W = 1 or W = 1 where the layer has fewer axes."""
    p = feature_map.shape[-1]
    height = feature_map.shape[0] if feature_map.ndim > 1 else 1
    return feature_map.reshape(height, -1, p).astype(np.float32)
