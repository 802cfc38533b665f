"""From a network and a few hundred images to a smaller network for any budget.

    analysis = analyse(model, variables, images, call={"train": False})
    small = analysis.shrink(Budget(speedup=2))

The analysis is made once: which channels go together, in which order they go, what
each width costs. A budget then takes a greedy descent and a pass of least squares;
nothing is trained, and no label is used.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxprune._base import arguments
from jaxprune._base.batch import check_batch, size_of, take
from jaxprune._base.errors import InputError, check_choice
from jaxprune._base.mesh import make_mesh
from jaxprune.adapters.networks import takes_network
from jaxprune.compaction.network import Compact, as_compact
from jaxprune.costs.widths import Costs, Number, network_costs
from jaxprune.fills.calibration import why_not_fitted
from jaxprune.graph.fast import with_fast_convolutions
from jaxprune.graph.groups import Groups, PruningGroup
from jaxprune.graph.network import Network
from jaxprune.shrinking.analysis import Analysis, cost_of
from jaxprune.shrinking.budget import Budget
from jaxprune.shrinking.curves import CURVES, Curve, measured_curves
from jaxprune.shrinking.estimates import estimated_curves
from jaxprune.shrinking.halves import halves
from jaxprune.tasks.imitation import (
    Probe,
    divergence,
    divergence_probe,
    imitation,
    like_whole,
    relative_error_probe,
)
from jaxprune.tasks.task import OfImages, Task, shapes

# Images that widths can be told apart on, at the least.
_FEWEST = 16
# Images that curves are measured on, at the most. More of them are worth their time in
# the fit, which has thousands of unknowns, not in the choice of widths.
_MOST = 512


@takes_network
def analyse(
    network: Network,
    images: Any,
    *,
    task: Task | None = None,
    keep_whole: Collection[str] = (),
    budget: Budget | None = None,
    curves: str = CURVES[0],
    known: Mapping[str, Curve] | None = None,
    mesh: Mesh | None = None,
    on_start: Callable[[int], Any] = lambda count: None,
    on_curve: Callable[[str, Curve], Any] = lambda name, curve: None,
) -> Analysis:
    """Finds what each group's widths cost.

    Args:
      network: the network; or in its place a linen model, or a network that has been
        compacted before, and its variables, with the keyword `call` the arguments of
        the model's call.
      images: a few hundred that it was made for, as the network takes them: [N, ...],
        or a tree of such; no labels. Widths are found on the first 512, layers fitted
        on all.
      task: what the outputs are for, which decides how far they are from the whole
        network's: of logits it is a divergence, of others a relative squared error,
        see `imitation`. By default outputs [N, C] are logits. Where the task has a
        part of the output, the other parts do not count.
      keep_whole: groups, or layers of groups, of which nothing is pruned.
      budget: that is to be met; no latency is known yet.
      curves: "estimated", of all groups and widths at once from a forward and a
        backward pass; those of a network without a derivative are measured. Or
        "measured", group by group, which takes many times as long.
      known: curves that have been found before, in the same way.
      mesh: the devices to work on, see `make_mesh`; by default all of this process.
      on_start: called with the number of groups whose curves are to be found.
      on_curve: called with each group's name and curve once it is found.

    Raises:
      InputError: too few images, a group that there is not, a budget beyond the
        narrowest network, or a network that does not run, or returns no floating-point
        numbers.
    """
    check_choice("curves", curves, CURVES)
    images = check_batch("images that widths are found on", images, _FEWEST)
    images = jax.tree.map(jnp.asarray, images)
    whole = as_compact(network.with_example(take(images, slice(1)))).network
    loss, probe = _loss(whole, task)
    groups = _fitted(whole, whole.groups)
    # These name the lines of the network's own code.
    reasons = network.with_example(whole.example).groups.whole
    said = {name: reasons.get(name, why) for name, why in groups.whole.items()}
    groups = Groups(groups.groups, said)
    cut = _to_cut(whole.groups, groups, keep_whole)
    costs = network_costs(whole)
    if budget is not None and budget.latency is None:
        _check_reach(costs, [group.name for group in cut], budget)
    found = dict(known or {})
    missing = [group for group in cut if group.name not in found]
    on_start(len(missing))
    mesh = make_mesh() if mesh is None else mesh
    few = take(images, slice(_MOST))
    estimated = probe if curves == "estimated" else None
    for name, curve in _curves(whole, few, missing, estimated, loss, mesh):
        found[name] = curve
        on_curve(name, curve)
    ordered = {group.name: found[group.name] for group in cut}
    return Analysis(whole, images, groups, ordered, costs, loss, mesh)


def _curves(
    network: Network,
    images: Any,
    groups: Sequence[PruningGroup],
    probe: Probe | None,
    loss: OfImages,
    mesh: Mesh,
) -> Iterator[tuple[str, Curve]]:
    """The curves of groups: estimated by a probe, and measured where that says nothing.

    Without a probe all are measured.
    """
    orders, fills = halves(network, images, groups, mesh)
    fast = with_fast_convolutions(network)
    if probe is not None and groups:
        for name, curve in estimated_curves(fast, fills, orders, probe, mesh).items():
            del orders[name]
            yield name, curve
    yield from measured_curves(fast, fills, orders, loss, mesh)


@takes_network
def shrink(
    network: Network,
    images: Any,
    *,
    task: Task | None = None,
    speedup: Number | None = None,
    size: Number | None = None,
    latency: Number | None = None,
    batch: int = 1,
    keep_whole: Collection[str] = (),
    multiple_of: int = 1,
    mesh: Mesh | None = None,
) -> Compact:
    """A smaller network for a budget, without training and without labels.

    Args:
      network: see `analyse`.
      images: a few hundred that it was made for, as the network takes them.
      task: what the outputs are for, see `analyse`.
      speedup: how many times fewer multiply-adds.
      size: share of the parameters that may be left.
      latency: how many times less time, as predicted from layers measured here.
      batch: images in a batch that the latency is for.
      keep_whole: groups of which nothing is pruned, see `find_groups`.
      multiple_of: widths are multiples of this, or the group's own.
      mesh: see `analyse`.

    Returns:
      The smaller network, proved equal to the whole one with refitted layers and the
      pruned channels masked.

    Raises:
      InputError: see `analyse` and `Analysis.candidates`; none or several budgets.
    """
    budget = Budget(speedup, size, latency)
    arguments.check_count("batch", batch)
    analysis = analyse(
        network, images, task=task, keep_whole=keep_whole, budget=budget, mesh=mesh
    )
    if latency is not None:
        analysis = analysis.timed(batch)
    return analysis.shrink(budget, multiple_of=multiple_of)


def _loss(network: Network, task: Task | None) -> tuple[OfImages, Probe]:
    """The loss of outputs, the whole network's being the targets, and its probe.

    Raises:
      InputError: the network has no output that has one.
    """
    outputs = jax.eval_shape(network.function, network.params, network.example)
    if task is not None:
        arguments.check_kind(
            "task", task, Task, "a Task, such as jaxprune.regression()"
        )
        outputs = jax.eval_shape(task.part, outputs)
        task = imitation(logits=task.logits, output=task.output)
    else:
        task = like_whole(outputs)
    images = size_of(network.example)
    if any(leaf.shape[:1] != (images,) for leaf in jax.tree.leaves(outputs)):
        raise InputError(
            f"the network's output must have the images on its first axis, got "
            f"{shapes(outputs)} for {images}"
        )
    task.check(outputs, outputs)
    part, loss = task.part, task.loss
    probe = divergence_probe() if loss is divergence else relative_error_probe()
    return (
        lambda found, whole: loss(part(found), part(whole)),
        Probe(
            lambda found, keys: probe.values(part(found), keys),
            lambda found, changes: probe.loss(part(found), changes),
        ),
    )


def _to_cut(
    found: Groups, fitted: Groups, keep_whole: Collection[str]
) -> list[PruningGroup]:
    """Those of the fitted groups that are not to be kept whole.

    Raises:
      InputError: a name that none of the network's groups has, or none is left.
    """
    for name in keep_whole:
        if name not in found.whole:
            found.find(name)
    kept = set(keep_whole)
    cut = [
        group
        for group in fitted.groups.values()
        if not {group.name, *group.producers} & kept
    ]
    if not cut:
        others = sorted(fitted.whole, key=lambda name: name in found.whole)
        why = [f"'{name}': {fitted.whole[name]}" for name in others]
        raise InputError(
            "the network has no channels whose loss can be made good"
            + "".join(f"; {reason}" for reason in why[:3])
        )
    return cut


def _fitted(network: Network, groups: Groups) -> Groups:
    """The groups whose units can be predicted; the others are left whole.

    Those are named by their layers or, where these have other groups too, by their own
    name.
    """
    why = {name: why_not_fitted(network, g) for name, g in groups.groups.items()}
    found = {name: group for name, group in groups.groups.items() if not why[name]}
    cut = {layer for group in found.values() for layer in group.producers}
    whole = dict(groups.whole)
    for name, group in groups.groups.items():
        if why[name]:
            layers = [layer for layer in group.producers if layer not in cut]
            whole |= dict.fromkeys(layers or [name], why[name])
    return Groups(found, whole)


def _check_reach(costs: Costs, groups: Collection[str], budget: Budget) -> None:
    """Raises InputError if a unit of each group is more than the budget allows."""
    cost, share = cost_of(costs, None, budget)
    least = cost({**costs.whole, **dict.fromkeys(groups, 1)}) / cost(costs.whole)
    if least > share:
        raise InputError(
            f"{budget.kind} {budget.value:g} is {share:.3g} of the whole network; the "
            f"least possible is {least:.3g}"
        )
