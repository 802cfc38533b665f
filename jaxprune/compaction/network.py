"""The network that is left when channels are removed: called, saved and loaded."""

import dataclasses
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Num

from jaxprune import arguments, schema
from jaxprune.channels import taps
from jaxprune.channels.flow import READERS
from jaxprune.compaction import artefact
from jaxprune.compaction.proof import Proof
from jaxprune.errors import InputError, first_line
from jaxprune.networks.conv import with_offset
from jaxprune.networks.models import CifarResNet, CifarVGG, PairCNN

# This project's networks: an artefact says what they are built from.
OWN: dict[str, type[nn.Module]] = {
    "CifarVGG": CifarVGG,
    "PairCNN": PairCNN,
    "CifarResNet": CifarResNet,
}
# Those of them whose `widths` are their convolutions' channels.
_BY_WIDTHS: tuple[type[nn.Module], ...] = (CifarVGG, PairCNN)
_PACKAGES = ("jaxprune", "jax", "jaxlib", "flax", "numpy", "safetensors")


@dataclass(frozen=True)
class PrunedLayer:
    """What was removed of one layer.

    Attributes:
      channels: how many it had at first.
      kept: those that remain, by their first index.
      fill: name of what a pruned channel had become.
      fill_facts: JSON-able facts of how that fill was made.
    """

    channels: int
    kept: tuple[int, ...]
    fill: str
    fill_facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Compact:
    """A network with channels removed, ready to be called.

    Attributes:
      model: CifarVGG or PairCNN with smaller `widths`; any other model as it was.
      variables: the smaller variables.
      call: keyword arguments of the model's call, such as `{"train": False}`.
      layers: what was removed, by layer.
      input_shape: of one example.
      proof: the comparison with the masked network on the example; None once the
        variables have been changed.
      group_sizes: channels in a group of each GroupNorm.
    """

    model: nn.Module
    variables: Any
    call: Mapping[str, Any]
    layers: Mapping[str, PrunedLayer]
    input_shape: tuple[int, ...]
    proof: Proof | None
    group_sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def apply(self, variables: Any, x: Array, **kwargs: Any) -> Any:
        """The network, see `jaxprune.channels.taps`; `kwargs` go to the model."""
        kwargs = {**self.call, **kwargs}
        if by_widths(self.model):
            return self.model.apply(variables, x, **kwargs)
        resize = partial(_resize, group_sizes=self.group_sizes)
        return taps.intercept(self.model.apply, resize)(variables, x, **kwargs)

    def __call__(
        self, x: Num[Array, "N *axes"] | Num[np.ndarray, "N *axes"]
    ) -> Float[Array, "N C"]:
        """Logits of a batch of inputs."""
        if np.shape(x)[1:] != self.input_shape:
            raise InputError(
                f"the network takes inputs of shape [N, "
                f"{', '.join(map(str, self.input_shape))}], got {list(np.shape(x))}"
            )
        arguments.check_real("the input", x)
        return self._compiled(self.variables, jnp.asarray(x))

    @cached_property
    def _compiled(self) -> Callable[[Any, Array], Any]:
        return jax.jit(lambda variables, x: self.apply(variables, x))

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
    ) -> None:
        """Writes the network to a folder; see `jaxprune.compaction.artefact`.

        Args:
          path: the folder.
          pixel_mean: subtracted from an image's pixels before the network takes them.
          pixel_std: divides them then.
          class_names: name of each class.
          pixels: their type, uint8 or float32.
          about: more JSON-able facts, such as measurements.
          stablehlo: also writes the program: images -> logits, scaling included.

        Raises:
          InputError: the folder holds something else, or arguments that are not those.
        """
        artefact.check_target(Path(path))
        schema.check_json("about", {} if about is None else about)
        names = class_names and arguments.check_names("class_names", class_names)
        mean, std = (
            arguments.check_numbers(name, value, (np.size(value),)).astype(np.float32)
            for name, value in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std))
        )
        channels = self.input_shape[-1]
        if {mean.size, std.size} - {1, channels}:
            raise InputError(f"pixel_mean and pixel_std take 1 or {channels} numbers")
        if not (std > 0).all():
            raise InputError(f"pixel_std must be positive, got {std.tolist()}")

        def program(images: Array) -> Any:
            variables = jax.tree.map(jnp.asarray, self.variables)
            return self.apply(variables, (images.astype(jnp.float32) - mean) / std)

        spec = {
            "model": _describe(self.model),
            "call": dict(self.call),
            "layers": {name: _facts(layer) for name, layer in self.layers.items()},
            "input_shape": list(self.input_shape),
            "preprocessing": {
                "input": f"{np.dtype(pixels)} pixels",
                "mean": mean.tolist(),
                "std": std.tolist(),
            },
            "class_names": list(names),
            "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
            "proof": self.proof.to_json() if self.proof else None,
            "group_sizes": dict(self.group_sizes),
            "about": dict(about or {}),
        }
        data = None
        if stablehlo:
            data = artefact.export_program(program, self.input_shape, pixels)
        artefact.write(Path(path), self.variables, spec, data)


def by_widths(model: nn.Module) -> bool:
    """Whether the model with fewer channels is the same class with smaller `widths`.

    Any other is run with its layers resized to their kernels.
    """
    return type(model) in _BY_WIDTHS


def load_compact(path: Path | str, model: nn.Module | None = None) -> Compact:
    """Reads what `Compact.save` wrote.

    Args:
      path: the folder.
      model: the linen model it was made from, where that is not one of jaxprune's own.

    Raises:
      InputError: no artefact, a damaged or changed one, or of another model.
    """
    variables, spec = artefact.read(Path(path))
    where = Path(path) / artefact.SPEC
    about = spec["model"]
    if model is None:
        model = _own_model(spec, path)
    elif type(model).__name__ != about["class"]:
        raise InputError(
            f"{path} holds a network of the class {about['class']}, not "
            f"{type(model).__name__}"
        )
    small = Compact(
        model=model,
        variables=variables,
        call=spec["call"],
        layers={name: _layer(spec, name, where) for name in spec["layers"]},
        input_shape=tuple(spec["input_shape"]),
        proof=schema.check(spec["proof"], Proof | None, f"the proof in {where}"),
        group_sizes=spec["group_sizes"],
    )
    example = jax.ShapeDtypeStruct((1, *small.input_shape), np.float32)
    # Traces the network, which checks the shape of every parameter.
    taps.list_layers(small.apply, variables, example)
    return small


def _layer(spec: artefact.Spec, name: str, where: Path) -> PrunedLayer:
    """What was removed of a layer."""
    layer = schema.check(spec["layers"][name], PrunedLayer, where)
    if not set(layer.kept) <= set(range(layer.channels)):
        raise InputError(
            f"{where} is damaged: of '{name}', kept holds more than its "
            f"{layer.channels} channels"
        )
    return layer


def _own_model(spec: artefact.Spec, path: Path | str) -> nn.Module:
    """One of jaxprune's own, as an artefact describes it."""
    about = spec["model"]
    name = about["class"]
    if name not in OWN or "fields" not in about:
        raise InputError(
            f"{path} holds a network of the class {name}: give it as "
            "load_compact(path, model=...)"
        )
    known = {field.name for field in _own_fields(OWN[name])}
    fields = {k: _frozen(v) for k, v in about["fields"].items()}
    try:
        if set(fields) - known:
            raise ValueError(f"{name} has no {min(set(fields) - known)}")
        return OWN[name](**fields, dtype=jnp.dtype(about.get("dtype", "float32")))
    except (TypeError, ValueError) as error:
        raise InputError(f"{path} describes no {name}: {first_line(error)}") from error


def _facts(layer: PrunedLayer) -> dict[str, Any]:
    """Of a pruned layer, as JSON; no facts of a fill that has none."""
    facts = {k: v for k, v in dataclasses.asdict(layer).items() if v != {}}
    return {**facts, "kept": list(layer.kept)}


def _describe(model: nn.Module) -> dict[str, Any]:
    """The model's class and, for one of jaxprune's own, what it is built from."""
    name = type(model).__name__
    if OWN.get(name) is not type(model):
        return {"class": name}
    values = {field.name: getattr(model, field.name) for field in _own_fields(model)}
    fields = {k: v if isinstance(v, int) else list(v) for k, v in values.items()}
    dtype = getattr(model, "dtype", jnp.float32)
    return {"class": name, "fields": fields, "dtype": jnp.dtype(dtype).name}


def _own_fields(model: Any) -> list[dataclasses.Field]:
    """What a model is built from, but for its type."""
    others = ("parent", "name", "dtype")
    return [field for field in dataclasses.fields(model) if field.name not in others]


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _resize(call: taps.Call, group_sizes: Mapping[str, int]) -> Any:
    """Runs a layer with as many features, and groups, as its variables have.

    The module is the one that linen has made for this call. A clone would be another
    module to whoever intercepts too, so it is set for the length of the call.
    """
    module = call.module
    changes: dict[str, Any] = {}
    if call.name in group_sizes:
        changes["num_groups"] = call.input.shape[-1] // group_sizes[call.name]
    elif type(module) not in READERS:
        return call.run()
    if module.has_variable("params", "kernel"):
        kernel: Any = module.get_variable("params", "kernel")
        changes["features"] = kernel.shape[-1]
        if getattr(module, "feature_group_count", 1) != 1:
            groups = call.input.shape[-1] // kernel.shape[-2]
            changes["feature_group_count"] = groups
    if module.has_variable("offsets", "rows"):
        field, default = (
            ("conv_general_dilated", lax.conv_general_dilated)
            if isinstance(module, nn.Conv)
            else ("dot_general", lax.dot_general)
        )
        offset: Any = (module.get_variable("offsets", n) for n in ("rows", "index"))
        changes[field] = with_offset(getattr(module, field) or default, *offset)
    before = {name: getattr(module, name) for name in changes}
    try:
        for name, value in changes.items():
            object.__setattr__(module, name, value)
        return call.run()
    finally:
        for name, value in before.items():
            object.__setattr__(module, name, value)
