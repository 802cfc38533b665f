"""GPU and TPU without having one: what is compiled there is lowered here.

On a mesh of eight devices. Off CPU every convolution must be XLA's own, as if the
network had been built from plain layers.
"""

import functools
import importlib.util
import re
from collections import Counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import export, lax
from jax.experimental import topologies
from jax.sharding import NamedSharding

import jaxprune
from jaxprune import conv
from jaxprune._base.mesh import Sharded, make_mesh, replicate, spread
from jaxprune.compaction import compact
from jaxprune.evaluation.predict import compiled
from jaxprune.recipes import models, training
from jaxprune.sweep.activations import tap_layer
from jaxprune.sweep.layer import sweep_layer
from jaxprune.training import loop
from jaxprune.training.augmentation import crop_and_flip
from random_data import random_split, random_variables

pytestmark = pytest.mark.usefixtures("standard_promotion")  # bfloat16 in BatchNorm

SHAPE, CLASSES, BATCH = (14, 14, 2), 4, 128
SHORT = {"float32": "f32", "bfloat16": "bf16"}
DTYPES = pytest.mark.parametrize("dtype", SHORT)
# What Winograd's algorithm and gathered receptive fields are made of, and what they
# stand for; with the type of what it returns.
OPERATIONS = re.compile(
    r"stablehlo\.(convolution|dot_general|optimization_barrier)\b"
    r".*(?:->|:) tensor<(?:\d+x)*(\w+)>"
)
# Of the TPU that Colab lends.
CHIP, CHIP_BYTES = "v5e", 16 * 2**30


class Program(NamedTuple):
    """A jitted function, and the shapes, types and shardings of its arguments."""

    function: Any
    arguments: Any


class Net(nn.Module):
    """Two layers read `first`, one of them by Winograd's algorithm on CPU.

    `last` is gathered there, since its maps have 3 x 3 positions.
    """

    dtype: Any
    product: Any

    @nn.compact
    def __call__(self, x):
        convolution = functools.partial(
            nn.Conv, dtype=self.dtype, conv_general_dilated=self.product
        )
        x = nn.relu(convolution(32, (3, 3), name="first")(x))
        sides = [convolution(32, (n, n), name=f"by_{n}")(x) for n in (3, 1)]
        x = nn.relu(jnp.concatenate(sides, axis=-1))
        x = conv.max_pool_2x2(conv.max_pool_2x2(x))
        x = nn.relu(convolution(16, (3, 3), name="last")(x)).reshape(x.shape[0], -1)
        return nn.Dense(CLASSES, dtype=self.dtype, name="out")(x)


@pytest.fixture
def programs(monkeypatch):
    """Those of `Sharded` in the order of their first calls, which are not run.

    What they return has the right shapes and no meaning: ones, zeros or False.
    """
    found: dict[Sharded, Program] = {}

    def call(self, *arguments):
        if self not in found:
            trees = zip(arguments, self._shardings, strict=True)
            specs = tuple(placed(tree, sharding) for tree, sharding in trees)
            found[self] = Program(self._function, specs)
        return jax.tree.map(_nothing, jax.eval_shape(self._function, *arguments))

    monkeypatch.setattr(Sharded, "__call__", call)
    return found


def _nothing(like):
    inexact = jnp.issubdtype(like.dtype, jnp.inexact)
    return jnp.asarray((np.ones if inexact else np.zeros)(like.shape, like.dtype))


def placed(tree, sharding):
    """Shapes and types of arrays that lie on a mesh."""
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree
    )


def operations(program, platforms=("cpu", "cuda", "tpu")):
    """How many there are in the StableHLO that each platform is given."""
    found = {}
    for platform in platforms:
        exported = export.export(program.function, platforms=[platform])(
            *program.arguments
        )
        sharding = jax.tree.leaves(program.arguments)[0].sharding
        devices = len(sharding.device_set)
        assert exported.nr_devices == devices or not exported.out_avals
        found[platform] = Counter(OPERATIONS.findall(exported.mlir_module()))
    return found


def is_faster_on_cpu(ours, plain):
    """Whether CPU alone is given something else than plain layers."""
    assert ours["cuda"] == ours["tpu"] == plain["tpu"]
    return ours["cpu"] != plain["tpu"]


def types(found):
    """That convolutions return on a TPU."""
    return {dtype for name, dtype in found["tpu"] if name == "convolution"}


@pytest.mark.parametrize(
    ("dtype", "last"), [("float32", "RunningSum"), ("bfloat16", "ChangedPairs")]
)
def test_a_sweep(programs, dtype, last):
    """The trunk, with the gradients that a criterion needs, and every evaluation."""
    ours, plain = (
        _of_a_sweep(programs, Net(jnp.dtype(dtype), product), last)
        for product in (conv.conv_general_dilated, lax.conv_general_dilated)
    )
    faster_on_cpu, found = set(), set()
    for program, plainly in zip(ours, plain, strict=True):
        lowered = operations(program)
        found |= types(lowered)
        if is_faster_on_cpu(lowered, operations(plainly, ["tpu"])):
            faster_on_cpu.add(program.function.__name__)
    assert faster_on_cpu == {"both_ways", "trunk", "compute", "evaluate"}
    assert found == {SHORT[dtype]}


def _of_a_sweep(programs, net, last):
    """All programs of sweeps of a layer with two consumers, and of the last."""
    programs.clear()
    variables = random_variables(net, jnp.zeros((1, *SHAPE)))
    split = random_split(n=BATCH, shape=SHAPE)

    def apply(variables, images, **kwargs):
        return net.apply(variables, images.astype(jnp.float32) / 255, **kwargs)

    def sweep(tapped, every_pair=False):
        scores = np.arange(float(tapped.channels))
        return sweep_layer(tapped, scores, every_pair=every_pair).about["evaluation"]

    tap = functools.partial(tap_layer, apply, variables, split, batch_size=BATCH)
    first = tap(layer="first", criteria=["taylor"])
    evaluations = sweep(first), sweep(first, every_pair=True), sweep(tap())
    assert evaluations == ("ChangedPairs", "EveryPair", last)
    return list(programs.values())


@DTYPES
def test_a_training_step(monkeypatch, dtype):
    """With augmentation."""
    model = models.PairCNN(dtype=jnp.dtype(dtype))
    ours = operations(_training_step(model, SHAPE, make_mesh()))
    assert types(ours) == {SHORT[dtype]}
    monkeypatch.setattr(models, "conv_general_dilated", lax.conv_general_dilated)
    plain = operations(_training_step(model, SHAPE, make_mesh()), ["tpu"])
    assert is_faster_on_cpu(ours, plain)


def _training_step(model, shape, mesh):
    optimizer = loop.adam(1e-3, 100, 10)
    step = training.make_train_step(
        model.apply, optimizer, lambda images: images.astype(jnp.float32) / 255,
        seed=0, l2={}, augment=crop_and_flip,
    )  # fmt: skip
    variables = random_variables(model, jnp.zeros((1, *shape)))
    leaves, tree = jax.tree.flatten(training.init_state(variables, optimizer))

    def run(leaves, images, labels):
        # A TrainState takes arrays alone, so shapes travel without it.
        return step(jax.tree.unflatten(tree, leaves), images, labels)

    batch = np.zeros((BATCH, *shape), np.uint8), np.zeros(BATCH, np.int32)
    arguments = replicate(leaves, mesh), *spread(batch, mesh)
    return Program(jax.jit(run, donate_argnums=0), arguments)


@DTYPES
def test_a_compact_network(programs, monkeypatch, dtype):
    """With the map of offsets that a padded convolution behind the cut has."""
    monkeypatch.setattr(compact, "prove", lambda *_, **__: None)  # it would compile
    model = models.PairCNN((32, 33, 16), (8, 2), jnp.dtype(dtype))
    x = jnp.zeros((1, *SHAPE))
    small = jaxprune.compact(
        model, random_variables(model, x), "conv2", np.arange(33) > 0, example=x
    )
    assert "offsets" in small.variables

    def program():
        network = compiled(small.function)
        network(dict(small.arrays), jnp.zeros((BATCH, *SHAPE)))
        return programs[network]

    ours = operations(program())
    assert types(ours) == {SHORT[dtype]}
    monkeypatch.setattr(models, "conv_general_dilated", lax.conv_general_dilated)
    assert is_faster_on_cpu(ours, operations(program(), ["tpu"]))


@pytest.fixture(scope="module")
def chips():
    """Eight TPUs that programs can be compiled for and not run on."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu, which compiles for TPU, comes with pip install '.[tpu]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # by tests side by side
        patch.setenv("TPU_LOG_DIR", "disabled")
        yield topologies.get_topology_desc(f"{CHIP}:2x4", platform="tpu").devices


def compile_for(chips, program):
    """Compiles a program of as many devices as there are chips; returns its bytes."""
    exported = export.export(program.function, platforms=["tpu"])(*program.arguments)
    mesh = make_mesh(chips)

    def on_chips(a):
        sharding = NamedSharding(mesh, a.sharding.spec)
        return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)

    arguments = jax.tree.map(on_chips, program.arguments)
    memory = jax.jit(exported.call).lower(*arguments).compile().memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
    )


@pytest.mark.slow
def test_a_sweep_of_cifar_vgg_fits_on_the_smallest_tpu(chips, programs, monkeypatch):
    """One chip, batches as large as they are on accelerators."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    model = models.CifarVGG()
    shape = (32, 32, 3)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)))
    variables = jax.tree.map(lambda a: np.ones(a.shape, a.dtype), shapes)
    split = random_split(n=1024, shape=shape, classes=10)

    def apply(variables, images, **kwargs):
        x = images.astype(jnp.float32) / 255
        return model.apply(variables, x, train=False, **kwargs)

    tapped = tap_layer(
        apply, variables, split, tap="relu", batch_size=len(split),
        criteria=["taylor"], mesh=make_mesh(jax.devices()[:1]),
    )  # fmt: skip
    for every_pair in (False, True):
        sweep_layer(tapped, np.arange(512.0), every_pair=every_pair)
    used = [compile_for(chips[:1], program) for program in programs.values()]
    assert 2**25 < max(used) < CHIP_BYTES


@pytest.mark.slow
def test_a_training_step_of_cifar_vgg_compiles_for_eight_tpus(chips):
    model = models.CifarVGG(dtype=jnp.bfloat16)
    step = _training_step(model, (32, 32, 3), make_mesh())
    used = compile_for(chips, step)
    assert 2**27 < used < CHIP_BYTES
