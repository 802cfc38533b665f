"""Scores of a run directory's layer, by one criterion or several in one pass."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from jaxprune._base import processes
from jaxprune._base.errors import InputError
from jaxprune.cli import cluster
from jaxprune.cli.pruning_options import PruningOptions
from jaxprune.cli.run_directory import Run
from jaxprune.data import datasets
from jaxprune.data.splits import Split
from jaxprune.fills.fill import Fill
from jaxprune.ranking.criteria import CRITERIA
from jaxprune.sweep import maps as places
from jaxprune.sweep.activations import TappedLayer, tap_layer
from jaxprune.sweep.checks import map_of_one
from jaxprune.sweep.score import mask_losses, score
from jaxprune.sweep.statistics import Gathering

_ORACLE_IMAGES = 2000
# Seconds that greedy_oracle may take.
_GREEDY_SECONDS = 1200.0


def check(run: Run, chosen: PruningOptions, criterion: str) -> None:
    """Checks what a criterion needs, before any work is done.

    Raises:
      InputError: something that the layer, the fill or the ranking split has not, or
        no room for the feature maps.
    """
    split = datasets.choose_split(run.splits, chosen.eval_split)
    needed = _maps_bytes(run, chosen, len(split))
    places.choose(chosen.maps, needed, run.mesh, _maps_dir(chosen))
    needs = CRITERIA[criterion].needs
    network = run.network()
    if chosen.tap == "relu":
        network = network.with_relu(chosen.layer)
    Gathering(network, chosen.layer, chosen.tap, needs, run.task)
    if "losses" not in needs:
        return
    if chosen.fill == "all":
        raise InputError(
            f"criterion {criterion} goes by what a pruned channel becomes: name one "
            "--fill"
        )
    images(run, chosen, criterion)


def images(run: Run, chosen: PruningOptions, criterion: str) -> int | None:
    """How many ranking images a criterion measures losses on; None where it does not.

    Raises:
      InputError: more than there are.
    """
    if "losses" not in CRITERIA[criterion].needs:
        return None
    total = len(datasets.choose_split(run.splits, chosen.rank_split))
    flag, given = "oracle_images", chosen.oracle_images
    if criterion == "greedy_oracle" and chosen.greedy_images is not None:
        flag, given = "greedy_images", chosen.greedy_images
    if given is not None and given > total:
        raise InputError(f"--{flag}={given}: {chosen.rank_split} has {total} images")
    return given or min(_ORACLE_IMAGES, total)


def facts(run: Run, chosen: PruningOptions) -> dict[str, Any]:
    """Facts that decide a criterion's scores beside network and splits."""
    count = images(run, chosen, chosen.criterion)
    return {} if count is None else {"loss_images": count}


def tap(
    run: Run,
    chosen: PruningOptions,
    variables: Any,
    criteria: Collection[str],
    split: Split,
    rank_split: Split | None,
    batch_size: int,
) -> TappedLayer:
    """Runs the trunk, and gathers what the criteria need.

    Args:
      run: the run directory's job.
      chosen: layer and tap.
      variables: the network's.
      criteria: their names.
      split: the images whose feature maps are kept.
      rank_split: the ranking images, where they are others.
      batch_size: images in a batch.
    """
    sources = [split] if rank_split is None else [split, rank_split]
    total = sum(len(processes.own(len(source))) for source in sources)
    measured = {images(run, chosen, name) for name in criteria}
    counts = {count for count in measured if count is not None}
    needed = _maps_bytes(run, chosen, len(split), *counts)
    kind = places.choose(chosen.maps, needed, run.mesh, _maps_dir(chosen))
    if kind != (chosen.maps or places.usual(run.mesh)):
        print(
            f"feature maps: {places.size(needed)} are more than half of the devices' "
            "free memory, so they go to a temporary file"
        )
    what = "feature maps"
    if kind != "recompute":
        what += f", {places.size(needed)} on the {kind}"
    with cluster.progress(total=total, unit="img", desc=what) as bar:
        return tap_layer(
            run.network(variables),
            split,
            task=run.task,
            layer=chosen.layer,
            tap=chosen.tap,
            rank_split=rank_split,
            criteria=criteria,
            oracle_images=counts,
            batch_size=batch_size,
            maps=kind,
            maps_dir=_maps_dir(chosen),
            mesh=run.mesh,
            on_images=bar.update,
        )


def _maps_dir(chosen: PruningOptions) -> Path | None:
    folder = chosen.maps_dir
    return None if folder is None else Path(folder)


def _maps_bytes(run: Run, chosen: PruningOptions, *images: int) -> int:
    """The size of the feature maps of this process's share of the images."""
    one = map_of_one(run.network(), run.image, chosen.layer)
    own = sum(len(processes.own(count)) for count in images)
    return own * one.size * one.dtype.itemsize


def splits(run: Run, chosen: PruningOptions) -> dict[str, Split]:
    """The images by the names of their splits.

    Raises:
      InputError: a split that is unknown or empty, or smaller than a batch.
    """
    found: dict[str, Split] = {}
    for which in (chosen.eval_split, chosen.select_split, chosen.rank_split):
        found[which] = datasets.choose_split(run.splits, which)
    for which in (chosen.eval_split, chosen.select_split):
        run.batch_size(found[which])
    return found


def tap_all(
    run: Run,
    chosen: PruningOptions,
    variables: Any,
    criteria: Collection[str],
    images: dict[str, Split],
) -> tuple[TappedLayer, TappedLayer | None]:
    """Runs the trunk on the images reported and, if others, those K is chosen on.

    Args:
      run: the run directory's job.
      chosen: layer, tap and splits.
      variables: the network's.
      criteria: their names.
      images: splits, as `splits` returns them.
    """
    split, ranked = images[chosen.eval_split], None
    if chosen.rank_split != chosen.eval_split:
        ranked = images[chosen.rank_split]
    size = run.batch_size(split)
    tapped = tap(run, chosen, variables, criteria, split, ranked, size)
    if chosen.select_split == chosen.eval_split:
        return tapped, None
    # It is given the scores of the first.
    split = images[chosen.select_split]
    return tapped, tap(run, chosen, variables, (), split, None, run.batch_size(split))


def score_by(
    run: Run,
    chosen: PruningOptions,
    tapped: TappedLayer,
    criterion: str,
    fill: str,
    fitted: Fill | None,
) -> np.ndarray:
    """The channels' scores by one criterion.

    Args:
      run: the run directory's job.
      chosen: layer, criterion, fill and K.
      tapped: with what the criterion needs.
      criterion: its name.
      fill: the fill's name.
      fitted: the linear fill, where the fill or the criterion needs it.

    Raises:
      InputError: greedy_oracle would take too long.
    """
    count = images(run, chosen, criterion)
    resolved = fitted if fill == "linear" and fitted is not None else fill
    losses = None
    with cluster.progress(total=0, unit="eval", desc=criterion, delay=1) as bar:
        if count is not None:
            losses = mask_losses(tapped, resolved, images=count, on_pairs=bar.update)
            masks = tapped.channels + 1
            if criterion == "greedy_oracle":
                losses.check_greedy(_GREEDY_SECONDS)
                masks = losses.greedy_masks
            bar.reset(masks * losses.own_images)
        return score(
            tapped, criterion, fill=resolved, linear=fitted, losses=losses,
            seed=run.config.seed,
        )  # fmt: skip
