r"""Proof that a compact network equals the masked one: equation by equation.

The masked network is run once, in float64, and all its values are kept. Then each
equation of the compact network is run on what is left of the masked network's own
values, with the arrays of the compact network. If every result is what is left of the
masked network's, but for rounding, then by induction over the equations both networks
compute the same function of these images. No error is carried from one equation to the
next, so that the bound is that of a single operation, whatever the depth of the network
and the number of its outputs.

A sum of n products, s = \sum_i w_i x_i, is right to n u \sum_i |w_i| |x_i| with unit
roundoff u (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1);
there is one such sum on either side. What a fold writes is taken before it is rounded
to the type in which it is kept: in half precision a bound with that type's u could be
larger than what the layer returns. It comes of other programs in float64, which
`_FOLDED` allows for. What is computed element by element is computed alike, if the same
indices are left of operands and results; where a fold has written one of them, a few u
are granted.

What the compact network computes in its own type is compared with the masked one's
results, too; rounding alone makes the difference. Where numbers are not finite, in
float64 or in the network's own type, nothing is proved.

Axes: N images, C classes, E equations.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int

from jaxprune._base import processes
from jaxprune._base.arguments import half_of_digits
from jaxprune._base.batch import size_of
from jaxprune._base.errors import InputError
from jaxprune.compaction.cut import KERNELS, Smaller, extras, offset_paths
from jaxprune.fills.fill import Constant
from jaxprune.fills.masked import Mask, mask_changes
from jaxprune.graph.evaluate import Narrowing, Runner, in_float64
from jaxprune.graph.labels import ELEMENTWISE, RULES
from jaxprune.graph.layers import OFFSETS
from jaxprune.graph.network import Graph, Network
from jaxprune.graph.trace import CONTRACTIONS, Equation

_U = float(np.finfo(np.float64).eps) / 2
# Roundings of an element that is computed by itself, as of exp.
_FEW = 64
# Of operations that are not listed, loops among them, in units of their largest result.
_MANY = 1e6
# Of folded kernels and biases, and of what is added as a map, which is float32.
_FOLDED = 1e-10
_MAP = float(np.finfo(np.float32).eps) / 2


@dataclass(frozen=True)
class Proof:
    """Comparison of the compact network with the masked one.

    Attributes:
      images: number of images compared.
      largest_difference: of two outputs, the compact network's in its own type; None
        where some are not finite.
      relative_difference: the same, divided by the image's largest absolute output.
      equations: number of equations compared, each by itself in float64; those that
        work element by element, by the indices that are left.
      bound_used: largest share of what rounding explains that the difference of an
        equation's results takes up, in [0, 1].
      equal_predictions: share of images with the same prediction, in [0, 1].
      different_predictions: number of images with another prediction.
      largest_margin_of_different: between the two largest masked logits there.
      accuracy_masked: share predicted right by the masked network, where labels are
        known.
      accuracy_compact: by the compact network.
      not_proved: why nothing is proved; None where it is.
    """

    images: int
    largest_difference: float | None
    relative_difference: float | None
    equations: int = 0
    bound_used: float = 0.0
    equal_predictions: float = 1.0
    different_predictions: int = 0
    largest_margin_of_different: float = 0.0
    accuracy_masked: float | None = None
    accuracy_compact: float | None = None
    not_proved: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The figures by name."""
        facts = asdict(self)
        if self.not_proved is None:
            del facts["not_proved"]
        return facts


def compare(
    masked: Any,
    compact: Any,
    labels: Int[np.ndarray, " N"] | None = None,
    coarsest: Any = None,
    *,
    unproved: bool = False,
) -> Proof:
    """Compares outputs for the same images; predictions, where they are logits [N, C].

    Args:
      masked: of the masked network: an array [N, ...], or a tree of such.
      compact: of the compact network.
      labels: class index of each image, where they are known.
      coarsest: the type of fewest digits that the images go through; by default that
        of the outputs.
      unproved: returns what is known where nothing is proved.

    Raises:
      InputError: see `Comparison.proof`.
    """
    axes = [np.ndim(leaf) for leaf in jax.tree.leaves(masked)]
    logits = _only if axes == [2] else None
    comparison = Comparison(logits, coarsest, unproved=unproved)
    comparison.add(masked, compact, labels)
    return comparison.proof()


def _only(outputs: Any) -> Any:
    (array,) = jax.tree.leaves(outputs)
    return array


class Comparison:
    """A comparison of a compact network's outputs with the masked one's, by batches.

    Attributes:
      different_predictions: number of images with another prediction, so far.

    Args:
      logits: outputs -> logits [N, ..., C], whose largest is the prediction; None where
        outputs are no logits.
      coarsest: the type of fewest digits that the images go through; by default that
        of the outputs.
      unproved: returns what is known where nothing is proved.
    """

    def __init__(
        self,
        logits: Callable[[Any], Any] | None = None,
        coarsest: Any = None,
        *,
        unproved: bool = False,
    ):
        self._logits, self._coarsest, self._unproved = logits, coarsest, unproved
        self._images = 0
        self._leaves: list[_Leaf] = []
        self.different_predictions, self._margin = 0, 0.0
        self._right, self._labelled = np.zeros(2), False

    def add(self, masked: Any, compact: Any, labels: Any = None) -> None:
        """Compares the outputs for some images.

        Args:
          masked: of the masked network: a tree of arrays.
          compact: of the compact network.
          labels: class index of each, where they are known.
        """
        both = zip(jax.tree.leaves(masked), jax.tree.leaves(compact), strict=True)
        pairs = [
            (np.atleast_1d(before), np.atleast_1d(after))
            for before, after in both
            if np.size(before) and jnp.issubdtype(before.dtype, jnp.floating)
        ]
        self._leaves = self._leaves or [_Leaf() for _ in pairs]
        for leaf, (before, after) in zip(self._leaves, pairs, strict=True):
            leaf.add(before, after)
        self._images += max((len(before) for before, _ in pairs), default=0)
        if self._logits is not None:
            self._add_predictions(self._logits(masked), self._logits(compact), labels)

    def _add_predictions(self, masked: Any, compact: Any, labels: Any) -> None:
        masked, compact = np.asarray(masked), np.asarray(compact)
        before, after = masked.argmax(-1), compact.argmax(-1)
        differs = before != after
        images = differs.reshape(len(differs), -1).any(-1)
        self.different_predictions += int(images.sum())
        top = np.sort(masked[differs], axis=-1).astype(np.float64)
        margins = top[:, -1] - top[:, -2] if top.shape[-1] > 1 else np.zeros(len(top))
        margins = margins[np.isfinite(margins)]
        self._margin = float(margins.max(initial=self._margin))
        if labels is not None:
            self._labelled = True
            self._right += [(found == labels).sum() for found in (before, after)]

    def join_processes(self) -> None:
        """Takes account of the images of all processes, in each of them."""
        leaves = self._leaves
        counts = [self._images, self.different_predictions, *self._right]
        largest = [self._margin]
        for leaf in leaves:
            counts += [leaf.images, *leaf.not_finite.values()]
            largest += [leaf.largest, leaf.relative]
        every = iter(processes.total(np.array(counts, np.float64)).tolist())
        most = iter(np.max(processes.gather(np.array([largest])), axis=0)[0].tolist())
        self._images, self.different_predictions = int(next(every)), int(next(every))
        self._right, self._margin = np.array([next(every), next(every)]), next(most)
        for leaf in leaves:
            leaf.images = int(next(every))
            leaf.not_finite = {which: int(next(every)) for which in leaf.not_finite}
            leaf.largest, leaf.relative = next(most), next(most)

    @property
    def relative_difference(self) -> float:
        """Largest difference so far, divided by the image's largest absolute output."""
        return max((leaf.relative for leaf in self._leaves), default=0.0)

    def proof(self) -> Proof:
        """The figures of all images.

        Raises:
          InputError: outputs differ in more than half of the digits of their type; or,
            unless `unproved`, they hold infinities or NaN, so that nothing is proved.
        """
        proofs = [leaf.proof(self._coarsest) for leaf in self._leaves]
        proof = max(proofs, key=_difference, default=Proof(self._images, 0.0, 0.0))
        if proof.not_proved is not None:
            _check_proved(proof.not_proved, self._unproved)
        shares = (self._right / self._images).tolist() if self._labelled else [None] * 2
        return replace(
            proof,
            images=self._images,
            equal_predictions=1 - self.different_predictions / max(self._images, 1),
            different_predictions=self.different_predictions,
            largest_margin_of_different=self._margin,
            accuracy_masked=shares[0],
            accuracy_compact=shares[1],
        )


class _Leaf:
    """One array of the outputs, of all images so far.

    Attributes:
      images: their number.
      largest: largest difference.
      relative: the same, divided by the image's largest absolute output.
      not_finite: images whose outputs are not finite, by network.
    """

    def __init__(self) -> None:
        self.images = 0
        self.largest, self.relative = 0.0, 0.0
        self.not_finite = {"masked": 0, "compact": 0}
        self._types: dict[str, np.dtype] = {}

    def add(self, masked: np.ndarray, compact: np.ndarray) -> None:
        """Some more images."""
        self._types = {"masked": masked.dtype, "compact": compact.dtype}
        rows = [a.astype(np.float64).reshape(len(a), -1) for a in (masked, compact)]
        finite = [np.isfinite(each).all(-1) for each in rows]
        for which, each in zip(self.not_finite, finite, strict=True):
            self.not_finite[which] += int((~each).sum())
        before, after = (each[finite[0] & finite[1]] for each in rows)
        self.images += len(masked)
        if before.size:
            difference = np.abs(before - after)
            scale = np.maximum(np.abs(before).max(-1), np.finfo(np.float32).tiny)
            self.largest = max(self.largest, float(difference.max()))
            relative = (difference.max(-1) / scale).max()
            self.relative = max(self.relative, float(relative))

    def proof(self, coarsest: Any) -> Proof:
        """The figures of this array."""
        for which, count in self.not_finite.items():
            if count:
                why = (
                    f"the {which} network returns infinities or NaN, in "
                    f"{self._types[which]}, for {count} of {self.images} images"
                )
                return Proof(self.images, None, None, not_proved=why)
        if not self.relative <= half_of_digits(coarsest or self._types["compact"]):
            raise InputError(
                f"the compact network differs from the masked one by "
                f"{self.largest:.3g}, {self.relative:.3g} of the largest output, "
                "which rounding does not explain: nothing is returned"
            )
        return Proof(self.images, self.largest, self.relative)


def _check_proved(why: str, unproved: bool) -> None:
    if not unproved:
        raise InputError(
            f"not proved: {why}; with `unproved` the network is returned all the same"
        )


def prove(
    network: Network,
    masks: Sequence[Mask],
    narrowing: Narrowing,
    arrays: Smaller,
    batch: Any,
    own: Callable[[Any], Any],
    *,
    unproved: bool = False,
) -> Proof:
    """Compares a compact network with the masked one.

    Args:
      network: the whole network.
      masks: of its channels.
      narrowing: removed indices of the network's values, for this batch's shape.
      arrays: the compact network's.
      batch: inputs.
      own: inputs -> what the compact network makes of them in its own type.
      unproved: returns what is known where nothing is proved.

    Raises:
      InputError: an equation's results differ by more than rounding explains; the
        layer or operation is named. Or, unless `unproved`, nothing is proved.
    """
    graph = network.graph(batch)
    filled = _filled(masks)
    exact = {**arrays.arrays, **arrays.exact}
    changes = written(graph, narrowing, network.arrays, exact)
    with in_float64():
        given = jax.tree.map(np.asarray, (network.arrays, exact, batch))

        # Two programs: in one, a value could be computed twice and rounded otherwise.
        @jax.jit
        def run(arrays: Any, x: Any, masks: Any) -> tuple[list[Array], Masked]:
            masked = masked_values(graph, arrays, x, masks, filled)
            return [masked.values[value] for value in graph.program.results], masked

        @jax.jit
        def share(masked: Masked, arrays: Any) -> dict[int, Array]:
            return step_shares(graph, narrowing, masked, arrays, changes)

        whole, left, x = given
        results, masked = run(whole, x, list(masks))
        results, shares = jax.tree.map(np.asarray, (results, share(masked, left)))
    used, why = check_shares(graph, shares)
    if why is not None:
        _check_proved(why, unproved)
    coarsest, compact = graph.program.coarsest, jax.tree.leaves(own(batch))
    proof = compare(results, compact, coarsest=coarsest, unproved=unproved)
    return replace(
        proof, images=size_of(batch), equations=len(shares), bound_used=used,
        not_proved=why or proof.not_proved,
    )  # fmt: skip


def _filled(masks: Sequence[Mask]) -> frozenset[str]:
    """Consumers that are given something else than 0 for what is pruned."""
    return frozenset(
        consumer
        for mask in masks
        for consumer, how in mask.at_consumers.items()
        if not isinstance(how, Constant) or np.any(how.values)
    )


def _difference(proof: Proof) -> tuple[bool, float]:
    """What is not proved first, then what differs most."""
    return bool(proof.not_proved), proof.relative_difference or 0.0


class Masked(NamedTuple):
    """The values of the masked network, in float64.

    Attributes:
      values: those that depend on the batch, by their numbers, before consumers are
        masked; and those that are stored.
      sizes: for each consumer that is given something for what is pruned, by its
        equation's number, the sums of the absolute products.
    """

    values: dict[int, Array]
    sizes: dict[int, Array]


def masked_values(
    graph: Graph,
    arrays: Mapping[str, Any],
    batch: Any,
    masks: Sequence[Mask],
    filled: Collection[str] | None = None,
) -> Masked:
    """Runs the masked network; all but the graph may be traced.

    Args:
      graph: of the whole network.
      arrays: its parameters.
      batch: inputs.
      masks: of its channels.
      filled: consumers that are given something else than 0 for what is pruned; by
        default, all may be.
    """
    program = graph.program
    before, after = mask_changes(graph, masks)
    runner = Runner(program, before, after, None, exact=True)
    env = runner.start(arrays, batch, {})
    runner.equations(program.equations, env)
    sizes: dict[int, Array] = {}
    for consumer in dict.fromkeys(name for mask in masks for name in mask.at_consumers):
        layer = graph.reader(consumer)
        if layer.in_a_loop or (filled is not None and consumer not in filled):
            continue
        features = jnp.abs(layer.features(env[layer.input]))
        hows = [(m.at_consumers.get(consumer), m.keep) for m in masks]
        for how, keep in sorted(hows, key=lambda how: not isinstance(how[0], Constant)):
            if how is not None:
                size = jnp.abs(getattr(how, "magnitude", how)(features, keep))
                features = jnp.maximum(features, size)
        operands = [jnp.abs(env[value]) for value in layer.equation.inputs]
        operands[layer.x] = layer.from_features(features)
        (found,) = Runner(program, {}, {}, None, True).alone(
            layer.equation, operands, env
        )
        sizes[layer.equation.number] = found
    kept = (*program.live, *graph.labels.stored)
    return Masked({value: env[value] for value in kept if value in env}, sizes)


class Written(NamedTuple):
    """Where a compact network's arrays are not what is left of the whole one's.

    Attributes:
      layers: those whose kernel, bias or map a fold has written.
      values: of all leaves that differ, and what is computed of them without a batch.
    """

    layers: set[str]
    values: set[int]


def written(
    graph: Graph,
    narrowing: Narrowing,
    whole: Mapping[str, Any],
    arrays: Mapping[str, Any],
) -> Written:
    """Compares the arrays of a compact network with what is left of the whole one's."""
    program = graph.program

    def differs(path: str) -> bool:
        left = narrowing.take(program.leaves[path], np.asarray(whole[path]))
        return not np.array_equal(left, np.asarray(arrays[path]))

    leaves = {path for path in program.leaves if path in whole and differs(path)}
    values = {program.leaves[path] for path in leaves}
    for eqn in program.equations:
        if values.intersection(eqn.inputs):
            values.update(set(eqn.outputs).difference(program.live))
    layers = set()
    for name, layer in graph.readers.items():
        rows = f"{OFFSETS}/{name}/rows"
        added = any(
            path in arrays and path not in whole for path in (f"{KERNELS}/{name}", rows)
        )
        if added or leaves.intersection((layer.leaf, layer.bias, rows)):
            layers.add(name)
    return Written(layers, values)


def _unit(dtype: Any) -> float:
    """Unit roundoff of a type; 0 where nothing is rounded."""
    inexact = jnp.issubdtype(dtype, jnp.inexact)
    return float(jnp.finfo(dtype).eps) / 2 if inexact else 0.0


def step_shares(
    graph: Graph,
    narrowing: Narrowing,
    masked: Masked,
    arrays: Mapping[str, Any],
    changes: Written,
) -> dict[int, Array]:
    """For each equation, the largest share of its bound that a difference takes up.

    NaN where a layer's results are not finite in the masked network.

    Args:
      graph: of the whole network.
      narrowing: removed indices of values.
      masked: what is left of these values is what equations are given, and what their
        results are compared with.
      arrays: the compact network's, not rounded.
      changes: where they are not what is left of the whole network's.
    """
    return _Steps(graph, narrowing, masked, arrays, changes).shares()


class _Steps:
    """Runs the compact network's equations on the masked network's values."""

    def __init__(
        self,
        graph: Graph,
        narrowing: Narrowing,
        masked: Masked,
        arrays: Mapping[str, Any],
        changes: Written,
    ):
        self.program, self.narrowing, self.masked = graph.program, narrowing, masked
        extra = extras(graph, narrowing, arrays)
        self.given = extra.given
        self.runner = Runner(self.program, {}, extra.after, narrowing, exact=True)
        self.env = self.runner.start(arrays, None, extra.given)
        self.left: dict[int, Any] = {}
        self.layers = {layer.equation.number: layer for layer in graph.layers.values()}
        self.of_layers = {
            eqn.number
            for layer in graph.readers.values()
            for eqn in (layer.equation, *layer.adds)
        }
        self.written = changes.values
        changed = [graph.readers[name] for name in changes.layers]
        # Where a fold may have moved a constant from one equation to another of its
        # layer, they are compared behind the last.
        self.inside = {value for layer in changed for value in layer.inner}
        self.bounds: dict[int, Array] = {}
        self.units: dict[int, float] = {}
        for layer in changed:
            is_map = offset_paths(layer)[0] in self.program.leaves
            unit = _MAP if is_map else _FOLDED
            self.units |= {eqn.number: unit for eqn in layer.adds}
            self.units[layer.equation.number] = _FOLDED

    def shares(self) -> dict[int, Array]:
        found: dict[int, Array] = {}
        for value in self.narrowing.stored:  # rounded to the type that it is kept in
            unit = _unit(self.program.types[value].dtype)
            number = self.program.made_by[value].number
            result = self.env[value]
            found[number] = self.share(value, result, 2 * unit * jnp.abs(result))
            self.env[value] = self.expected(value)
        for eqn in self.program.equations:
            if all(value in self.given for value in eqn.outputs):
                continue
            if self.alike(eqn):
                found[eqn.number] = jnp.zeros(())
                continue
            inputs = [self.value(value) for value in eqn.inputs]
            own = self.runner.alone(eqn, inputs, self.env)
            change = self.runner.after.get(eqn.number)
            results = own if change is None else change(own)
            self.env.update(zip(eqn.outputs, results, strict=True))
            for value, result in zip(eqn.outputs, results, strict=True):
                if value not in self.program.live or not self.program.is_float(value):
                    continue
                unit = self.units.get(eqn.number, 0.0)
                bound = self.bound(eqn, inputs, result, unit)
                if change is not None:
                    bound += _MAP * jnp.abs(result - own[0])
                bound += sum(self.bounds[v] for v in eqn.inputs if v in self.bounds)
                if value in self.inside:
                    self.bounds[value] = bound
                    continue
                share = self.share(value, result, bound)
                if eqn.number in self.of_layers:
                    finite = lax.is_finite(self.masked.values[value]).all()
                    share = jnp.where(finite, share, jnp.nan)
                if eqn.number in found:
                    share = jnp.maximum(found[eqn.number], share)
                found[eqn.number] = share
        return found

    def alike(self, eqn: Equation) -> bool:
        """Whether an equation computes what is left, told by indices alone.

        It does where it works element by element on what no fold has written, and the
        same indices are left of its operands and its result.
        """
        values = {*eqn.inputs, *eqn.outputs}
        if eqn.name not in ELEMENTWISE or (self.inside | self.written) & values:
            return False
        if eqn.number in self.units or eqn.number in self.runner.after:
            return False
        if not all(value in self.masked.values for value in eqn.outputs):
            return False
        (result,) = (self.narrowing.kept(value) for value in eqn.outputs)
        return all(
            len(keep) == 1 or np.array_equal(keep, left)  # one for all, or its own
            for value in eqn.inputs
            for keep, left in zip(self.narrowing.kept(value), result, strict=False)
        )

    def value(self, value: int) -> Any:
        """The operand of an equation for a value."""
        if value in self.masked.values and value not in self.inside:
            return self.expected(value)
        return self.env[value]

    def expected(self, value: int) -> Any:
        """What is left of a value of the masked network."""
        if value not in self.left:
            whole = self.masked.values[value]
            self.left[value] = self.narrowing.take(value, whole)
        return self.left[value]

    def share(self, value: int, result: Any, bound: Any) -> Array:
        """The largest share of the bound that the difference of a value takes up."""
        expected = self.expected(value)
        alike = (result == expected) | ((result != result) & (expected != expected))
        distance = jnp.where(alike, 0.0, lax.abs(result - expected))
        distance = jnp.where(distance != distance, jnp.inf, distance)
        bound = jnp.where(lax.is_finite(bound), bound, 0.0) + _TINY
        return jnp.max(distance / bound, initial=0.0)

    def bound(self, eqn: Equation, inputs: list[Any], result: Any, unit: float) -> Any:
        """The rounding error of an equation's results: one rule for each kind."""
        sizes = [jnp.abs(a) for a in inputs if jnp.issubdtype(a.dtype, jnp.floating)]
        if eqn.number in self.layers:
            layer = self.layers[eqn.number]
            (size,) = self.runner.alone(eqn, sizes, self.env)
            count = 2 * (layer.products_per_output + 2) * _U
            bound = (count + unit) * size
            if eqn.number in self.masked.sizes:
                whole = self.masked.sizes[eqn.number]
                count += 2 * layer.inputs * _U  # of predictions, themselves such sums
                bound += count * self.narrowing.take(eqn.outputs[0], whole)
            return bound
        if eqn.name in _SUMS:
            (size,) = self.runner.alone(eqn, sizes, self.env)
            bound = 2 * _added_up(eqn, inputs[0].shape) * _U * size
            if eqn.number in self.masked.sizes:
                (value,) = eqn.inputs
                count = _added_up(eqn, self.program.shape(value))
                whole = self.masked.sizes[eqn.number]
                bound += 2 * count * _U * self.narrowing.take(eqn.outputs[0], whole)
            return bound
        if eqn.name in ELEMENTWISE:
            written = unit * sum(sizes[1:], start=0.0) if unit else 0.0
            return _FEW * _U * (jnp.abs(result) + sum(sizes, start=0.0)) + written
        if eqn.name in RULES and not eqn.bodies:
            return _FEW * _U * jnp.abs(result)
        largest = jnp.max(jnp.abs(result), initial=0.0)
        return jnp.broadcast_to(_MANY * _U * largest, result.shape)


_TINY = float(np.finfo(np.float64).tiny)
_SUMS = ("reduce_sum", "reduce_window_sum", "cumsum", "dot_general", *CONTRACTIONS)


def _added_up(eqn: Equation, shape: Sequence[int]) -> int:
    """How many numbers are added up for one result."""
    params = eqn.params
    if "axes" in params:
        sizes = [shape[axis] for axis in params["axes"]]
    elif "axis" in params:
        sizes = [shape[params["axis"]]]
    else:
        sizes = params.get("window_dimensions", shape)
    return int(np.prod(sizes))


def check_shares(graph: Graph, shares: Mapping[int, Any]) -> tuple[float, str | None]:
    """The largest share of a bound; and why that proves nothing, if it does not.

    Raises:
      InputError: it is more than 1; the layer or operation is named.
    """
    names = {layer.equation.number: name for name, layer in graph.layers.items()}
    names |= {
        eqn.number: name for name, layer in graph.layers.items() for eqn in layer.adds
    }
    why = None
    for number, share in shares.items():
        where = graph.program.every[number].described
        if number in names:
            where = f"'{names[number]}'"
        if np.isnan(share):
            why = why or f"what {where} returns overflows float64"
        elif share > 1:
            raise InputError(
                f"the compact network differs from the masked one at {where}, by "
                f"{float(share):.3g} times what rounding explains: nothing is returned"
            )
    finite = (float(share) for share in shares.values() if not np.isnan(share))
    return max(finite, default=0.0), why
