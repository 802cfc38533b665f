"""From what was gathered to scores.

Axes: P channels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxprune._base import arguments
from jaxprune._base.errors import InputError
from jaxprune._base.mesh import usual_options
from jaxprune.fills.fill import Fill, LinearFill, resolve_fill
from jaxprune.ranking.criteria import Criterion, Scores
from jaxprune.sweep.activations import Progress, TappedLayer, ignore
from jaxprune.sweep.oracle import MaskLosses
from jaxprune.sweep.statistics import find_criterion


@usual_options()
def score(
    tapped: TappedLayer,
    criterion: str | Criterion,
    *,
    fill: str | np.ndarray | Fill = "zero",
    linear: Fill | None = None,
    losses: MaskLosses | None = None,
    seed: int | Sequence[int] = 0,
) -> Scores:
    """Score of every channel by a criterion; the lowest is pruned first.

    Args:
      tapped: the layer, with what the criterion needs: give its name, or the criterion
        itself, to `tap_layer(..., criteria=...)`.
      criterion: a name of `criteria.CRITERIA`, or one of the user's own.
      fill: the fill of pruned channels where losses are measured.
      linear: the linear fill, for criteria that go by it; by default `fill`.
      losses: measures them; by default what `mask_losses` makes.
      seed: of random scores.

    Raises:
      InputError: an unknown criterion, or one whose needs are not there.
    """
    arguments.check_kind("tapped", tapped, TappedLayer, "what tap_layer returns")
    chosen = find_criterion(criterion)
    name = criterion if isinstance(criterion, str) else "of your own"
    made: dict[str, Any] = {**tapped.evidence, "channels": tapped.channels}
    for number in np.atleast_1d(np.asarray(seed, object)):
        arguments.check_number("seed", number, 0.0, np.inf)
    made["seed"] = seed
    if "consumers" in chosen.needs:
        linear = fill if linear is None and isinstance(fill, Fill) else linear
        if not isinstance(linear, LinearFill):
            raise InputError(
                f"criterion {name} goes by the linear fill: give what "
                "jaxprune.linear_fill returns"
            )
        made["consumers"] = linear.consumers
    if "losses" in chosen.needs and tapped.ranked:
        made["losses"] = losses or mask_losses(tapped, fill)
    if missing := [need for need in chosen.needs if need not in made]:
        raise InputError(
            f"criterion {name} needs {missing[0]}, which was not gathered: name it in "
            "tap_layer(..., criteria=[...])"
        )
    scores = chosen.score(*(made[need] for need in chosen.needs))
    if np.shape(scores) != (tapped.channels,) or not np.isfinite(scores).all():
        raise InputError(
            f"criterion {name} gave {np.shape(scores)} numbers, not "
            f"{tapped.channels} finite ones"
        )
    return np.asarray(scores, np.float64)


def mask_losses(
    tapped: TappedLayer,
    fill: str | np.ndarray | Fill,
    *,
    images: int | None = None,
    on_pairs: Progress = ignore,
) -> MaskLosses:
    """Measures losses on the ranking images that `tap_layer` kept for it.

    Args:
      tapped: the layer.
      fill: the fill of pruned channels.
      images: one of the numbers that `tap_layer` was given; by default the largest.
      on_pairs: called with the number of (image, mask) pairs done.

    Raises:
      InputError: none were kept, an unknown fill, or channels that it cannot be put in
        place of.
    """
    images = max(tapped.ranked, default=None) if images is None else images
    if images is None or images not in tapped.ranked:
        raise InputError(
            f"no {images or ''} images were kept to measure losses on: give "
            "tap_layer(..., criteria=[...], oracle_images=[...])"
        )
    resolved = resolve_fill(
        fill, layer=tapped.name, bias=tapped.bias, mean=tapped.channel_means
    ).among(tapped.network.layers)
    return MaskLosses(tapped.ranked[images], resolved, on_pairs=on_pairs)
