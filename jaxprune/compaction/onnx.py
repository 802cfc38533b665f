"""A network as an ONNX model, made by jax2onnx and tried by onnxruntime."""

import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import export, lax
from jax.extend.core import ClosedJaxpr, Literal

from jaxprune._base.arguments import is_close
from jaxprune._base.batch import path_name, take
from jaxprune._base.errors import InputError, first_line
from jaxprune.compaction.pixels import Inputs, Pixels
from jaxprune.graph.any_size import of_any_size
from jaxprune.graph.network import Network

INPUT = "images"
# The reasons that jax2onnx gives where it has no rule.
_UNKNOWN = re.compile(r"primitive '(\w+)'")


def check_installed() -> None:
    """Raises InputError if jax2onnx or onnxruntime cannot be imported."""
    try:
        import jax2onnx
        import onnxruntime
    except ImportError as error:
        raise InputError(f"{first_line(error)}: pip install 'jaxprune[onnx]'") from None
    del jax2onnx, onnxruntime


def to_onnx(
    network: Network, given: Pixels | Inputs, class_names: Sequence[str]
) -> bytes:
    """A network as an ONNX model: pixels -> what it returns, batch size left open.

    onnxruntime has returned what JAX does, to rounding, for the network's example and
    for one image alone. The model's metadata says what it is given.

    Args:
      network: the network, with an example.
      given: what the model is given: pixels, as `images`; or several inputs, each by
        its path in the batch.
      class_names: name of each class, or none.

    Raises:
      InputError: jax2onnx has no rule for one of its operations, or the model returns
        something else; or one of the packages is missing.
    """
    check_installed()

    def function(params: Any, images: Any) -> Any:
        return network.function(params, given.scale(images))

    images = given.like(network.example)
    facts = {
        "jaxprune": version("jaxprune"),
        **given.facts,
        "class_names": json.dumps(list(class_names)),
    }
    data = _made(of_any_size(function, network.params, images), images, facts)
    try:
        program = Program(data)
        for batch in (images, take(images, slice(1))):
            with jax.default_matmul_precision("highest"):
                expected = jax.tree.leaves(jax.jit(function)(network.params, batch))
            pairs = zip(program(batch), expected, strict=True)
            if not all(a.shape == b.shape and is_close(b, a) for a, b in pairs):
                raise InputError("the ONNX model returns something else than JAX does")
    except InputError:
        raise
    except Exception as error:  # whatever onnxruntime raises
        raise InputError(
            f"onnxruntime cannot run the ONNX model: {first_line(error)}"
        ) from error
    return data


class Program:
    """An ONNX model, as onnxruntime runs it on the CPU."""

    def __init__(self, data: bytes):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors are raised
        self._session = onnxruntime.InferenceSession(
            data, options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, batch: Any) -> list[np.ndarray]:
        """What it returns for images, or several inputs."""
        arrays = map(np.asarray, jax.tree.leaves(batch))
        given = dict(zip(_names(batch), arrays, strict=True))
        found: list[np.ndarray] = self._session.run(None, given)
        return found


def _names(batch: Any) -> list[str]:
    """Names of a model's inputs."""
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    return [path_name(path) or INPUT for path, _ in leaves]


def _made(
    of_batch: Callable[[Any], Any], images: Any, facts: Mapping[str, str]
) -> bytes:
    """The model, not tried yet."""
    import jax2onnx
    import onnx

    (size,) = export.symbolic_shape("N")
    shapes = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((size, *a.shape[1:]), a.dtype), images
    )
    try:
        closed, output = jax.make_jaxpr(of_batch, return_shape=True)(shapes)
    except Exception as error:  # of JAX, which cannot tell how sizes compare
        raise InputError(
            f"the network needs to know the batch size: {first_line(error)}"
        ) from error
    names = [
        "".join(["output", *map(str, path)])
        for path, _ in jax.tree_util.tree_leaves_with_path(output)
    ]
    try:
        with _quiet():
            model = jax2onnx.to_onnx(
                lambda *batch: tuple(_run(closed, batch)), jax.tree.leaves(shapes),
                model_name="jaxprune", input_names=_names(images), output_names=names,
            )  # fmt: skip
            onnx.helper.set_model_props(model, dict(facts))
            onnx.checker.check_model(model)
            data: bytes = model.SerializeToString(deterministic=True)
    except Exception as error:  # whatever jax2onnx raises
        unknown = _UNKNOWN.search(str(error))
        why = f"it has no rule for {unknown[0]}" if unknown else first_line(error)
        raise InputError(f"jax2onnx cannot convert the network: {why}") from error
    return data


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what these packages say of their own insides."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), jax.numpy_dtype_promotion("standard"):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _run(closed: ClosedJaxpr, batch: Sequence[Any]) -> list[Any]:
    """Runs equations for jax2onnx, in terms that it has better rules for."""
    jaxpr = closed.jaxpr
    env = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    env.update(zip(jaxpr.invars, batch, strict=True))

    def read(var: Any) -> Any:
        return var.val if isinstance(var, Literal) else env[var]

    for eqn in jaxpr.eqns:
        inputs = [read(var) for var in eqn.invars]
        term = _TERMS.get(eqn.primitive.name)
        found = term(*inputs, **eqn.params) if term else None
        if found is None:
            found = eqn.primitive.bind(
                *inputs, **eqn.primitive.get_bind_params(eqn.params)
            )
        outputs = found if eqn.primitive.multiple_results else [found]
        env.update(zip(eqn.outvars, outputs, strict=True))
    return [read(var) for var in jaxpr.outvars]


def _pad(x: Any, value: Any, *, padding_config: Any) -> Any:
    """Padding by `jnp.pad`, which jax2onnx knows for an open batch; None for others."""
    if any(low < 0 or high < 0 or inside for low, high, inside in padding_config):
        return None
    pairs = [(int(low), int(high)) for low, high, _ in padding_config]
    return jnp.pad(x, pairs, constant_values=float(value))


class _Window(NamedTuple):
    """A window over one axis."""

    size: int
    stride: int
    padding: tuple[int, int]
    base_dilation: int
    dilation: int


_WHOLE = _Window(1, 1, (0, 0), 1, 1)


def _pool(
    reduce: Callable[[Any, list[_Window]], Any],
    x: Any,
    *,
    window_dimensions: Any,
    window_strides: Any,
    padding: Any,
    base_dilation: Any,
    window_dilation: Any,
    **_: Any,
) -> Any:
    """A pooling; None where no axis is left for images, or for channels.

    jax2onnx pools over all axes, of which onnxruntime takes three at the most. It knows
    flax's pooling, and convolutions, as over positions alone.
    """
    each = (window_dimensions, window_strides, padding, base_dilation, window_dilation)
    windows = [_Window(*numbers) for numbers in zip(*each, strict=True)]
    whole = [axis for axis, window in enumerate(windows) if window == _WHOLE]
    if len(whole) < 2:
        return None
    single = [axis for axis in whole[1:] if x.shape[axis] == 1][: len(whole) - 2]
    whole = [axis for axis in whole if axis not in single]
    first, last = whole[0], whole[-1]
    inside = [a for a in range(x.ndim) if a not in (first, last, *single)]
    order = [*single, first, *inside, last]
    x = x.transpose(order)
    y = reduce(x.reshape(x.shape[len(single) :]), [windows[axis] for axis in inside])
    return y.reshape((1,) * len(single) + y.shape).transpose(np.argsort(order))


def _max(x: Any, windows: list[_Window]) -> Any:
    """The maximum in each window of [N, *positions, C], by flax."""
    if any(w.base_dilation > 1 or w.dilation > 1 for w in windows):
        raise NotImplementedError("a dilated maximum")
    pairs = [(0, 0), *(w.padding for w in windows), (0, 0)]
    if any(map(any, pairs)):
        x = jnp.pad(x, pairs, constant_values=-np.inf)
    size, strides = (tuple(w[i] for w in windows) for i in range(2))
    return nn.max_pool(x, window_shape=size, strides=strides)


def _sum(x: Any, windows: list[_Window]) -> Any:
    """The sum in each window of [N, *positions, C], as a convolution."""
    size, strides, padding, base_dilation, dilation = zip(*windows, strict=True)
    channels, last = x.shape[-1], x.ndim - 1
    order = (0, last, *range(1, last))
    numbers = lax.ConvDimensionNumbers(order, tuple(range(x.ndim)), order)
    return lax.conv_general_dilated(
        x, jnp.ones((channels, 1, *size), x.dtype), strides, padding, base_dilation,
        dilation, numbers, channels,
    )  # fmt: skip


_TERMS: dict[str, Callable[..., Any]] = {
    "pad": _pad,
    "reduce_window_max": partial(_pool, _max),
    "reduce_window_sum": partial(_pool, _sum),
}
