"""Compact networks from the folders that they were saved to."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from jaxprune._base import schema
from jaxprune._base.errors import InputError, first_line
from jaxprune._base.mesh import usual_options
from jaxprune.adapters import linen
from jaxprune.compaction import artefact
from jaxprune.compaction.cut import KERNELS, STORED
from jaxprune.compaction.hand_back import differs
from jaxprune.compaction.network import (
    NOT_KEPT,
    Compact,
    PrunedLayer,
    narrower,
    nested,
)
from jaxprune.compaction.proof import Proof
from jaxprune.graph.layers import OFFSETS
from jaxprune.graph.network import Network


@usual_options()
def load_compact(
    path: Path | str,
    model: nn.Module | Network | Callable[..., Any] | None = None,
    *,
    call: Mapping[str, Any] | None = None,
) -> Compact:
    """Reads what `Compact.save` wrote. Its program runs without the model's code.

    Args:
      path: the folder.
      model: what it was made of, to fine-tune the network, prune it further or hand it
        back: a linen model, a function, or a network, as `from_nnx` and others return;
        it must compute what the program does on the stored example.
      call: keyword arguments of a linen model's call; by default those that were saved.

    Raises:
      InputError: no artefact, a damaged or changed one, or of another model.
    """
    arrays, spec, function, example = artefact.read(Path(path))
    where = Path(path) / artefact.SPEC
    small = Compact(
        arrays=arrays,
        function=function,
        layers={name: _layer(spec, name, where) for name in spec["layers"]},
        example=example,
        proof=schema.check(spec["proof"], Proof | None, f"the proof in {where}"),
    )
    try:
        jax.eval_shape(function, arrays, example)
    except Exception as error:  # of JAX, where shapes do not fit
        raise InputError(
            f"{path} does not run on its own weights: {first_line(error)}"
        ) from error
    _check_runs(small, spec, path)
    if model is None:
        return small
    whole = _whole(model, spec, arrays, call, path).with_example(example)
    if spec.get("streams"):
        whole = whole.with_streams()
    if spec.get("head_dimensions"):
        whole = whole.with_head_dimensions()
    kept = artefact.masks(spec)
    own = dataclasses.replace(
        small, function=narrower(whole, kept), whole=whole, kept=kept
    )
    if why := differs(own.function, dict(arrays), small, whole):
        raise InputError(f"{path} is of another model than this: {why}")
    return own


def _whole(
    model: Any,
    spec: artefact.Spec,
    arrays: Mapping[str, Any],
    call: Mapping[str, Any] | None,
    path: Path | str,
) -> Network:
    """The network that channels were removed of, with shapes for parameters."""
    shapes = {}
    for name, array in arrays.items():
        if name.partition("/")[0] not in (OFFSETS, KERNELS, STORED):
            shape = list(np.shape(array))
            for axis, mask in spec["kept"].get(name, {}).items():
                shape[int(axis)] = mask["size"]
            shapes[name] = jax.ShapeDtypeStruct(tuple(shape), array.dtype)
    if isinstance(model, Network):
        if model.arrays.keys() != shapes.keys():
            name = min(model.arrays.keys() ^ shapes.keys())
            raise InputError(f"{path} is of another model than this: {name}")
        return model.with_params(model.tree(shapes))
    if call is None:
        call = spec["call"]
        if missing := call.get(NOT_KEPT):
            raise InputError(
                f"{path} was made with arguments of the model's call that no file "
                f"keeps ({missing}): give load_compact(path, model, call=...)"
            )
    tree = nested(shapes, spec["keys"])
    if isinstance(model, nn.Module):
        return linen.from_linen(model, tree, **call)
    return Network(model, tree)


def _check_runs(small: Compact, spec: artefact.Spec, path: Path | str) -> None:
    """Raises InputError where a program is of a JAX that is too new for this one."""
    before = spec.get("versions", {}).get("jax", jax.__version__)
    if before == jax.__version__:
        return
    try:
        jax.jit(small.function).lower(dict(small.arrays), small.example).compile()
    except Exception as error:  # of XLA, which does not know the program's format
        raise InputError(
            f"{path} was written under JAX {before}, and JAX {jax.__version__} does "
            f"not run it: load it under that version, or a later one"
        ) from error


def _layer(spec: artefact.Spec, name: str, where: Path) -> PrunedLayer:
    """The removed channels of a layer."""
    layer = schema.check(spec["layers"][name], PrunedLayer, where)
    if not set(layer.kept) <= set(range(layer.channels)):
        raise InputError(
            f"{where} is damaged: of '{name}', kept holds more than its "
            f"{layer.channels} channels"
        )
    return layer
