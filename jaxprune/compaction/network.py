"""The network that is left when channels are removed: called, trained, saved."""

import copy
import dataclasses
import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from jaxprune._base import arguments, schema
from jaxprune._base.batch import path_name
from jaxprune._base.errors import InputError
from jaxprune._base.mesh import usual_options
from jaxprune.adapters import linen
from jaxprune.compaction import artefact
from jaxprune.compaction.cut import STORED, exactly, extras
from jaxprune.compaction.hand_back import differs, hand_back
from jaxprune.compaction.onnx import to_onnx
from jaxprune.compaction.pixels import check_pixels, listed
from jaxprune.compaction.proof import Proof
from jaxprune.fills.masked import Pruning, kept_of
from jaxprune.graph.evaluate import Narrowing, run
from jaxprune.graph.groups import LeafAxis
from jaxprune.graph.network import Graph, Network
from jaxprune.graph.trace import shape_of

# How a network's channels are read, where that is not the usual way.
_READ_AS = ("streams", "head_dimensions")
_PACKAGES = ("jaxprune", "jax", "jaxlib", "flax", "numpy", "safetensors")


@dataclass(frozen=True)
class PrunedLayer:
    """A layer that channels were removed from.

    Attributes:
      channels: number of channels at first.
      kept: those that remain, by their first index.
      fill: name of what a pruned channel had become.
      fill_facts: JSON-able facts of how that fill was made.
    """

    channels: int
    kept: tuple[int, ...]
    fill: str
    fill_facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Rest:
    """A compact network but for its arrays: the same wherever its function is."""

    network: "Compact"
    paths: tuple[str, ...]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Rest) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> Any:
        return self.network.function, self.paths


@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True, eq=False)
class Compact:
    """A network with channels removed, ready to be called.

    It is a pytree of its arrays, and can be given to a transformed function.

    Attributes:
      arrays: the smaller arrays by path, with those that `jaxprune.compaction.cut`
        adds.
      function: (arrays, batch) -> what the network returns: the whole network's own
        equations, on fewer channels.
      layers: removed channels, by layer or group.
      example: a few inputs, a NumPy array or a tree of them.
      proof: the comparison with the masked network on the example; None once the
        arrays have been changed.
      whole: the network that channels were removed of; its arrays are shapes. None for
        one that was loaded without its model.
      kept: of the axes of the whole network's leaves, the indices that are left.
    """

    arrays: Mapping[str, Any]
    function: Callable[[Any, Any], Any] = field(repr=False)
    layers: Mapping[str, PrunedLayer]
    example: Any
    proof: Proof | None
    whole: Network | None = None
    kept: Mapping[LeafAxis, np.ndarray] = field(default_factory=dict)

    def __repr__(self) -> str:
        removed = ", ".join(
            f"{name} {len(layer.kept)}/{layer.channels}"
            for name, layer in self.layers.items()
        )
        sizes = sum(np.size(array) for array in self.arrays.values())
        return f"Compact({removed or 'nothing removed'}; {sizes:,} values)"

    def __copy__(self) -> "Compact":
        return dataclasses.replace(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Compact":
        """With arrays of its own; what the functions are is never changed."""
        arrays, example = copy.deepcopy((dict(self.arrays), self.example), memo)
        return dataclasses.replace(self, arrays=arrays, example=example)

    def __reduce__(self) -> Any:
        raise InputError(
            "a compact network holds functions, which are not pickled: "
            "small.save(path), and load_compact(path)"
        )

    def tree_flatten_with_keys(self) -> Any:
        """Its arrays by path, and everything else."""
        keys = [jax.tree_util.DictKey(path) for path in self.arrays]
        rest = dataclasses.replace(self, arrays={}, proof=None)
        pairs = zip(keys, self.arrays.values(), strict=True)
        return [*pairs], _Rest(rest, tuple(self.arrays))

    @classmethod
    def tree_unflatten(cls, rest: "_Rest", arrays: Any) -> "Compact":
        """The same network with other arrays, without their proof."""
        named = dict(zip(rest.paths, arrays, strict=True))
        return dataclasses.replace(rest.network, arrays=named)

    @usual_options()
    def __call__(self, x: Any) -> Any:
        """The network's output for a batch of inputs [N, ...], or a tree of them.

        Inputs may have another size than the example's, as images of another height,
        where the network's code allows it and the fill is "drop", as it is of `shrink`:
        what other fills send on depends on where the borders are. The proof is of the
        example's size.

        Raises:
          InputError: they are no such inputs, or of a size that cannot be.
        """
        structure: Any = jax.tree.structure(self.example)
        if not self.takes_an_array and jax.tree.structure(x) != structure:
            raise InputError(
                f"the network takes {listed(self.example)}, got {listed(x)}"
            )
        given = [x] if self.takes_an_array else jax.tree.leaves(x)
        for i, one in enumerate(given):
            if not isinstance(one, jax.core.Tracer):
                array = arguments.check_real("the input", one)
                given[i] = one if isinstance(one, jax.Array) else array
        batch = jax.tree.unflatten(structure, map(jnp.asarray, given))
        self._check_size(batch)
        return self._compiled(dict(self.arrays), batch)

    def _check_size(self, batch: Any) -> None:
        """Raises InputError unless the network takes inputs of this shape."""
        pairs = zip(jax.tree.leaves(batch), jax.tree.leaves(self.example), strict=True)
        for one, other in pairs:
            if one.shape[1:] == other.shape[1:]:
                continue
            sizes = ", ".join(map(str, other.shape[1:]))
            wrong = (
                f"the network takes inputs of shape [N, {sizes}], got {list(one.shape)}"
            )
            if one.ndim != other.ndim:
                raise InputError(wrong)
            fills = {layer.fill for layer in self.layers.values()} - {"drop"}
            if fills:
                raise InputError(
                    f"{wrong}: the fill '{min(fills)}' was put in for that size"
                )
            try:
                jax.eval_shape(self.function, dict(self.arrays), batch)
            except Exception as error:  # of JAX, or of the network's own code
                raise InputError(wrong) from error

    @property
    def takes_an_array(self) -> bool:
        """Whether a batch is one array, and no tree of several."""
        return isinstance(self.example, np.ndarray)

    @cached_property
    def _compiled(self) -> Callable[[Any, Any], Any]:
        return jax.jit(self.function)

    @property
    def input_shape(self) -> Any:
        """Of one input; a tree of shapes, where the batch is a tree."""
        return jax.tree.map(lambda array: array.shape[1:], self.example)

    @cached_property
    def variables(self) -> Any:
        """The smaller arrays as nested dictionaries, such as a linen model's."""
        return nested(self.arrays, _keys(self.whole) if self.whole else {})

    @property
    def params(self) -> Any:
        """The smaller arrays in a tree like the whole network's parameters."""
        return self._of("params").tree(self.arrays)

    def _of(self, what: str) -> Network:
        if self.whole is None:
            raise InputError(
                f"a network that was loaded without its model has no {what}: "
                "load_compact(path, model)"
            )
        return self.whole

    @cached_property
    def network(self) -> Network:
        """The same as a network of its own, to be analysed, or pruned again."""
        network = Network(self.function, dict(self.arrays), self.example, self)
        return network if self.whole is None else network.read_as(self.whole)

    def as_network(self, variables: Any = None) -> Network:
        """The network with these variables; by default its own."""
        if variables is None:
            return self.network
        return self.network.with_params(flat(variables))

    def with_arrays(self, variables: Any) -> "Compact":
        """The same network with other arrays, as when it has been trained.

        Raises:
          InputError: some are missing, of another shape, or of no place in it.
        """
        arrays = flat(variables)
        if other := self.arrays.keys() ^ arrays.keys():
            paths = ", ".join(sorted(other)[:3])
            raise InputError(f"the arrays must be those of the network: not so {paths}")
        for path, array in arrays.items():
            arguments.check_byte_order(path, array)
            if np.shape(array) != np.shape(self.arrays[path]):
                raise InputError(
                    f"{path} must be of shape {list(np.shape(self.arrays[path]))}, got "
                    f"{list(np.shape(array))}"
                )
        return dataclasses.replace(self, arrays=arrays, proof=None)

    @cached_property
    def apply(self) -> Callable[..., Any]:
        """The linen model's own code on these variables: `apply(variables, x, ...)`.

        Layers are as wide as their kernels; keyword arguments go to the model's call.

        Raises:
          InputError: the network is no linen model's, or that code computes something
            else with fewer channels, as one that takes channels by their position.
        """
        whole = self._of("apply of its own")
        if not isinstance(whole.origin, linen.Linen):
            raise InputError("the network was no linen model: call it, or its function")
        apply = linen.narrowed(whole)
        if any(isinstance(x, jax.core.Tracer) for x in self.arrays.values()):
            raise InputError(
                "apply is compared with the network when it is first used: take it "
                "before a step is traced, apply = small.apply"
            )
        with jax.ensure_compile_time_eval():  # this may be inside a step's trace
            why = differs(apply, self.variables, self, whole)
        if why:
            raise InputError(
                "the model's own code computes something else with fewer channels "
                f"({why}): call the network itself, or its function"
            )
        needed = set(self.variables)

        def complete(variables: Any, *args: Any, **kwargs: Any) -> Any:
            if missing := needed - set(variables):
                raise InputError(
                    f"the variables lack {', '.join(sorted(missing))}: give apply all "
                    "collections of small.variables, also those that are not trained"
                )
            return apply(variables, *args, **kwargs)

        return complete

    def to_nnx(self) -> Any:
        """The smaller Flax NNX module: of the same classes, in its caller's mode.

        It can be trained, saved and loaded as any other. In evaluation mode it returns
        what this network does, which is tried on the example.

        Raises:
          InputError: the network was no NNX module; or its code computes something else
            with fewer channels, as one that keeps a number of channels of its own.
        """
        return hand_back(self, self._of("framework of its own"), "NNX module")

    def to_equinox(self) -> Any:
        """The smaller Equinox module, with its state if it has one: (module, state).

        See `to_nnx`, which holds for it too.
        """
        return hand_back(self, self._of("framework of its own"), "Equinox module")

    def to_keras(self) -> Any:
        """The smaller Keras model, made of its configuration with other numbers.

        See `to_nnx`, which holds for it too.
        """
        return hand_back(self, self._of("framework of its own"), "Keras model")

    @usual_options()
    def save(
        self,
        path: Path | str,
        *,
        pixel_mean: Sequence[float] = (0.0,),
        pixel_std: Sequence[float] = (1.0,),
        class_names: Sequence[str] = (),
        pixels: Any = np.uint8,
        about: Mapping[str, Any] | None = None,
        stablehlo: bool = False,
        onnx: bool = False,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        """Writes the network to a folder; see `jaxprune.compaction.artefact`.

        Args:
          path: the folder.
          pixel_mean: subtracted from an image's pixels before the network takes them:
            one number, or one for each channel. Channels are on the last axis or, where
            that has another size, on the first.
          pixel_std: divides them then; as `pixel_mean`.
          class_names: name of each class.
          pixels: their type, uint8 or float32.
          about: more JSON-able facts, such as measurements.
          stablehlo: also writes the program: images, scaled in it, or several inputs
            -> outputs.
          onnx: also writes it as an ONNX model, which onnxruntime has run on the
            example.
          files: more files for the folder, by name.

        Raises:
          InputError: the folder holds something else, or arguments that are not those;
            or the network cannot be exported in that form. Nothing is written then.
        """
        self._of("equations to export")
        artefact.check_target(Path(path))
        files = {} if files is None else files
        artefact.check_names(files)
        schema.check_json("about", {} if about is None else about)
        names = class_names and arguments.check_names("class_names", class_names)
        given = check_pixels(pixels, pixel_mean, pixel_std, self.network)
        origin = self.whole.origin if self.whole else None
        spec = {
            "model": type(origin.model).__name__ if origin else "",
            "call": _described(origin.call) if origin else {},
            "layers": {name: _facts(layer) for name, layer in self.layers.items()},
            "kept": artefact.describe_masks(self.kept),
            "keys": _keys(self.whole) if self.whole else {},
            **{name: True for name in _READ_AS if getattr(self.whole, name, False)},
            **artefact.describe_inputs(self.example),
            "preprocessing": given.to_json(),
            "class_names": list(names),
            "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
            "proof": self.proof.to_json() if self.proof else None,
            "about": dict(about or {}),
        }

        shapes = jax.tree.map(shape_of, dict(self.arrays))
        programs = {
            artefact.FUNCTION: artefact.export(self.function, self.example, shapes)
        }
        if stablehlo:
            arrays = jax.tree.map(jnp.asarray, dict(self.arrays))
            programs[artefact.PROGRAM] = artefact.export(
                lambda batch: self.function(arrays, given.scale(batch)),
                given.like(self.example),
            )
        if onnx:
            programs[artefact.ONNX] = to_onnx(self.network, given, names)
        artefact.write(
            Path(path), self.arrays, spec, {**programs, **files}, self.example
        )


def flat(variables: Any) -> dict[str, Any]:
    """Variables by path, "params/block_1/conv/kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(linen.plain(variables))
    return {path_name(path): leaf for path, leaf in leaves}


def nested(
    arrays: Mapping[str, Any], keys: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """The inverse of `flat`; for paths that a slash does not split, with their keys."""
    split = {tuple(keys.get(p, p.split("/"))): array for p, array in arrays.items()}
    found: dict[str, Any] = unflatten_dict(split)
    return found


def _keys(network: Network) -> dict[str, list[str]]:
    """Keys of the paths of leaves of which one holds a slash."""
    found = {}
    for path, _ in jax.tree_util.tree_leaves_with_path(network.params):
        keys = [jax.tree_util.keystr((key,), simple=True) for key in path]
        if any("/" in key for key in keys):
            found[path_name(path)] = keys
    return found


def as_compact(network: Network) -> Compact:
    """A network of which nothing has been removed yet, or not by this call.

    Args:
      network: the network, with an example; or the `Compact.network` of another call.
    """
    example = jax.tree.map(np.asarray, network.example)
    if isinstance(network.origin, Compact):
        whole = network.origin.whole
        if whole is not None:
            whole = whole.read_as(network)
        return dataclasses.replace(
            network.origin, arrays=network.arrays, example=example, whole=whole
        )
    arrays = {path: np.asarray(leaf) for path, leaf in network.arrays.items()}
    shapes = network.with_params(jax.tree.map(shape_of, network.params))
    return Compact(arrays, narrower(shapes, {}), {}, example, None, shapes)


def removed(
    before: Compact, prunings: Sequence[Pruning], arrays: Mapping[str, Any]
) -> Compact:
    """The network without what is pruned of another.

    Args:
      before: the network.
      prunings: masks and fills of what is removed.
      arrays: arrays that `cut` returns for them.
    """
    whole = before._of("channels that can be removed")
    kept = dict(before.kept)
    for (path, axis), keep in kept_of(prunings).items():
        if path not in whole.arrays:
            continue
        all_kept = np.array(kept.get((path, axis), np.ones(keep.shape, bool)))
        all_kept[all_kept] = keep
        kept[path, axis] = all_kept
    layers = {**before.layers, **{p.group.name: _pruned(before, p) for p in prunings}}
    if any(path.startswith(f"{STORED}/") for path in arrays) and before.kept:
        arrays = _stored_again(before, whole, kept, arrays)
    return dataclasses.replace(
        before, arrays=arrays, function=narrower(whole, kept), layers=layers,
        kept=kept, proof=None,
    )  # fmt: skip


def narrower(
    whole: Network, kept: Mapping[LeafAxis, np.ndarray]
) -> Callable[[Any, Any], Any]:
    """The whole network's function on what is left of its parameters."""
    narrowings: dict[Graph, Narrowing] = {}

    def function(arrays: Any, batch: Any) -> Any:
        graph = whole.graph(batch)
        if graph not in narrowings:
            narrowings[graph] = graph.narrowing(kept)
        narrowing = narrowings[graph]
        extra = extras(graph, narrowing, arrays)
        return run(
            graph.program, arrays, batch, given=extra.given, after=extra.after,
            narrowing=narrowing,
        )  # fmt: skip

    return function


def _stored_again(
    before: Compact,
    whole: Network,
    kept: Mapping[LeafAxis, np.ndarray],
    arrays: Mapping[str, Any],
) -> dict[str, Any]:
    """Arrays with what is stored numbered as the whole network needs it."""
    graph = whole.graph()
    first, both = graph.narrowing(before.kept), graph.narrowing(kept)
    extra = extras(graph, first, before.arrays)
    values = exactly(
        graph.program, before.arrays, both.stored, given=extra.given, narrowing=first
    )
    found = {k: a for k, a in arrays.items() if not k.startswith(f"{STORED}/")}
    for i, (value, array) in enumerate(zip(both.stored, values, strict=True)):
        axes = zip(first.kept(value), both.kept(value), strict=True)
        for axis, (one, other) in enumerate(axes):
            array = array.compress(other[one], axis)
        found[f"{STORED}/{i}"] = array
    return found


def _pruned(before: Compact, pruning: Pruning) -> PrunedLayer:
    """The record of a pruning, also where the layer has been pruned before."""
    earlier = before.layers.get(pruning.group.name)
    channels = pruning.group.units
    first = earlier.kept if earlier else range(channels)
    return PrunedLayer(
        channels=earlier.channels if earlier else channels,
        kept=tuple(c for c, keep in zip(first, pruning.keep, strict=True) if keep),
        fill=pruning.fill.name,
        fill_facts=pruning.fill.facts,
    )


# In a saved call, the names of the arguments that are no JSON.
NOT_KEPT = "..."


def _described(call: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a model's call, as far as a file keeps them."""
    found, others = {}, []
    for name, value in call.items():
        try:
            json.dumps(value, allow_nan=False)
            found[name] = value
        except (TypeError, ValueError):
            others.append(name)
    return {**found, NOT_KEPT: ", ".join(others)} if others else found


def _facts(layer: PrunedLayer) -> dict[str, Any]:
    """Of a pruned layer, as JSON; no facts of a fill that has none."""
    facts = {k: v for k, v in dataclasses.asdict(layer).items() if v != {}}
    return {**facts, "kept": list(layer.kept)}
