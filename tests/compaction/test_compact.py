"""The compact network against weights written by hand, and networks that refuse."""

import copy
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxprune
import reference
from jaxprune._base.errors import InputError
from jaxprune.compaction import proof
from jaxprune.ranking import criteria
from jaxprune.ranking.order import prefix_masks
from jaxprune.recipes.models import CifarVGG, PairCNN
from jaxprune.sweep.activations import tap_layer
from jaxprune.sweep.layer import sweep_layer
from masked import masked_logits, pruning_of
from random_data import random_split, random_variables
from selected import quick

PAIR = PairCNN(widths=(3, 5, 7), dense=(10, 4))
VGG = CifarVGG(widths=(3, 4, 4, 5, 5, 4, 6, 6, 7, 6, 6, 8, 9), dense=(12, 10, 8, 4))
slow = pytest.mark.slow
FILLS = ("zero", "bias", "mean", "drop")
# Sums of at most a few hundred float32 products, in networks whose logits are near 1.
ROUNDING = 2e-5


def network(model, shape, n=5):
    images = random_split(n=n, shape=shape).images
    x = jnp.asarray(images, jnp.float32) / 255
    return random_variables(model, x), images, x


def mask(p, *pruned):
    keep = np.ones(p, bool)
    keep[list(pruned)] = False
    return keep


def cut_pair(variables, i, keep):
    """PairCNN's conv{i} sliced by hand, as pruning libraries do it: nothing folded."""
    v = copy.deepcopy(variables)
    p, s = v["params"], v["batch_stats"]
    p[f"conv{i}"] = {k: w[..., keep] for k, w in p[f"conv{i}"].items()}
    p[f"bn{i}"] = {k: w[keep] for k, w in p[f"bn{i}"].items()}
    s[f"bn{i}"] = {k: w[keep] for k, w in s[f"bn{i}"].items()}
    if i < 3:
        p[f"conv{i + 1}"]["kernel"] = p[f"conv{i + 1}"]["kernel"][:, :, keep]
    else:
        rows = np.tile(keep, len(p["dense1"]["kernel"]) // len(keep))
        p["dense1"]["kernel"] = p["dense1"]["kernel"][rows]
    return v


@pytest.mark.parametrize(
    "fills",
    [("zero", "bias", "mean"), ("drop",) * 3,
     *(pytest.param(fills, marks=pytest.mark.slow)
       for fills in (("bias", "mean", "zero"), ("mean", "zero", "bias")))],
    ids=" ".join,
)  # fmt: skip
def test_pair_with_all_layers_cut_equals_written_weights(fills):
    """Every fill at every layer, each beside others."""
    variables, images, x = network(PAIR, (14, 14, 2))
    layers, pruned = {}, variables
    for i, fill in enumerate(fills, 1):
        layer, keep = f"conv{i}", mask((3, 5, 7)[i - 1], 0, 2)
        mean = np.linspace(-1, 1, len(keep)).astype(np.float32)
        layers[layer] = (keep, mean if fill == "mean" else fill)
        if fill == "drop":
            pruned = cut_pair(pruned, i, keep)
        else:
            gone = np.flatnonzero(~keep)
            pruned = reference.prune(pruned, layer, gone, fill, mean)
    small = jaxprune.compact_layers(PAIR, variables, layers, example=x)
    expected = reference.pair_cnn(pruned, images)
    np.testing.assert_allclose(small(x), expected, atol=ROUNDING, rtol=0)
    assert {name: layer.kept for name, layer in small.layers.items()} == {
        name: tuple(np.flatnonzero(keep)) for name, (keep, _) in layers.items()
    }


# One layer at a time, as most are cut: in the ordinary run the one in the middle.
@pytest.mark.parametrize(
    ("i", "fill"),
    [
        pytest.param(
            i, fill, marks=[] if i == 2 and fill in ("mean", "drop") else [slow]
        )
        for i in (1, 2, 3) for fill in FILLS
    ],
)  # fmt: skip
def test_pair_equals_written_weights(i, fill):
    variables, images, x = network(PAIR, (14, 14, 2))
    layer, keep = f"conv{i}", mask((3, 5, 7)[i - 1], 0, 2)
    mean = np.linspace(-1, 1, len(keep)).astype(np.float32)
    small = jaxprune.compact(
        PAIR, variables, layer, keep, fill=mean if fill == "mean" else fill, example=x
    )
    if fill == "drop":
        expected = reference.pair_cnn(cut_pair(variables, i, keep), images)
    else:
        pruned = reference.prune(variables, layer, np.flatnonzero(~keep), fill, mean)
        expected = reference.pair_cnn(pruned, images)
    np.testing.assert_allclose(small(x), expected, atol=ROUNDING, rtol=0)
    assert small.variables["params"][layer]["kernel"].shape[-1] == keep.sum()
    logits = jax.jit(small.apply)(small.variables, x)
    np.testing.assert_allclose(logits, small(x), atol=ROUNDING)
    if "offsets" not in small.variables:
        # The class itself runs the variables, with nothing of jaxprune around it.
        kernels = [small.arrays[f"params/conv{j}/kernel"] for j in (1, 2, 3)]
        narrow = PairCNN(tuple(kernel.shape[-1] for kernel in kernels), PAIR.dense)
        logits = jax.jit(narrow.apply)(small.variables, x)
        np.testing.assert_allclose(logits, small(x), atol=ROUNDING)
    assert small.layers[layer].kept == tuple(np.flatnonzero(keep))


VGG_PRUNED = {"conv2d": 3, "conv2d_1": 4, "conv2d_8": 7, "conv2d_12": 9}


@slow
def test_vgg_with_four_layers_cut_equals_written_weights():
    variables, images, x = network(VGG, (32, 32, 3), n=4)
    masks = {name: mask(p, 1, p - 1) for name, p in VGG_PRUNED.items()}
    small = jaxprune.compact_layers(
        VGG, variables, {name: (keep, "zero") for name, keep in masks.items()},
        example=x,
    )  # fmt: skip
    pruned = variables
    for name, keep in masks.items():
        pruned = reference.prune(pruned, name, np.flatnonzero(~keep), "zero")
    expected = reference.cifar_vgg(pruned, images)
    np.testing.assert_allclose(small(x), expected, atol=ROUNDING, rtol=0)
    for name, p in VGG_PRUNED.items():
        assert small.arrays[f"params/{name}/kernel"].shape[-1] == p - 2
    assert len(VGG_PRUNED) == 4


@slow
@pytest.mark.parametrize(("layer", "p"), VGG_PRUNED.items())
def test_vgg_equals_written_weights(layer, p):
    variables, images, x = network(VGG, (32, 32, 3), n=4)
    keep = mask(p, 1, p - 1)
    small = jaxprune.compact(VGG, variables, layer, keep, example=x)
    pruned = reference.prune(variables, layer, np.flatnonzero(~keep), "zero")
    expected = reference.cifar_vgg(pruned, images)
    np.testing.assert_allclose(small(x), expected, atol=ROUNDING, rtol=0)
    assert small.arrays[f"params/{layer}/kernel"].shape[-1] == p - 2


@pytest.mark.parametrize("i", [1, 2, 3])
def test_slicing_without_folding_is_caught(i):
    variables, images, x = network(PAIR, (14, 14, 2))
    layer, keep = f"conv{i}", mask((3, 5, 7)[i - 1], 0, 2)
    variables["params"][f"bn{i}"]["bias"][[0, 2]] = 1  # more than ReLU takes away
    small = jaxprune.compact(PAIR, variables, layer, keep, example=x)
    whole = reference.pair_cnn(
        reference.prune(variables, layer, [0, 2], "zero"), images
    )
    sliced = reference.pair_cnn(cut_pair(variables, i, keep), images)
    assert small.proof.largest_difference < 1e-3 * np.abs(sliced - whole).max()
    with pytest.raises(InputError, match="rounding does not explain"):
        proof.compare(whole, sliced.astype(np.float32))


def test_one_channel_is_left():
    variables, _, x = network(PAIR, (14, 14, 2))
    small = jaxprune.compact(PAIR, variables, "conv3", mask(7, *range(6)), example=x)
    assert small.variables["params"]["conv3"]["kernel"].shape == (3, 3, 5, 1)
    assert small.variables["params"]["dense1"]["kernel"].shape == (1, 10)


def test_full_mask_changes_nothing():
    variables, _, x = network(PAIR, (14, 14, 2))
    small = jaxprune.compact(PAIR, variables, "conv2", mask(5), example=x)
    jax.tree.map(np.testing.assert_array_equal, small.variables, variables)


@pytest.mark.slow
def test_twice_equals_once():
    variables, _, x = network(PAIR, (14, 14, 2))
    once = jaxprune.compact(PAIR, variables, "conv2", mask(5, 0, 2, 3), example=x)
    half = jaxprune.compact(PAIR, variables, "conv2", mask(5, 2), example=x)
    twice = jaxprune.compact(half, half.variables, "conv2", mask(4, 0, 2), example=x)
    assert twice.layers == once.layers
    assert twice.layers["conv2"].kept == (1, 4)
    assert twice.layers["conv2"].channels == 5
    np.testing.assert_allclose(twice(x), once(x), atol=ROUNDING, rtol=0)


@slow
@pytest.mark.parametrize(
    ("fill", "step"),
    [(fill, step) for fill in ("zero", "bias", "drop") for step in (1, -1)],
)
def test_layer_after_layer_equals_all_at_once(fill, step):
    variables, _, x = network(PAIR, (14, 14, 2))
    masks = {"conv1": mask(3, 1), "conv2": mask(5, 0, 4), "conv3": mask(7, 3, 4, 5)}
    whole = jaxprune.compact_layers(
        PAIR, variables, {k: (m, fill) for k, m in masks.items()}, example=x
    )
    small = PAIR
    for name in list(masks)[::step]:
        current = variables if small is PAIR else small.variables
        small = jaxprune.compact(
            small, current, name, masks[name], fill=fill, example=x
        )
    for name, keep in masks.items():
        kernel = f"params/{name}/kernel"
        assert small.arrays[kernel].shape == whole.arrays[kernel].shape
        assert small.arrays[kernel].shape[-1] == keep.sum()
    np.testing.assert_allclose(small(x), whole(x), atol=ROUNDING, rtol=0)


class FlaxMnist(nn.Module):
    """The network of flax's own examples/mnist."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(features=8, kernel_size=(3, 3))(x)
        x = nn.relu(x)
        x = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = nn.Conv(features=16, kernel_size=(3, 3))(x)
        x = nn.relu(x)
        x = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = x.reshape((x.shape[0], -1))  # flatten
        x = nn.Dense(features=32)(x)
        x = nn.relu(x)
        x = nn.Dense(features=10)(x)
        return x


class ReluFirst(nn.Module):
    """The order of cifar_vgg's layers."""

    @nn.compact
    def __call__(self, x):
        for name, features in (("first", 7), ("second", 5)):
            x = nn.relu(nn.Conv(features, (3, 3), name=name)(x))
            x = nn.BatchNorm(use_running_average=True, name=f"norm_{name}")(x)
            x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(4, name="out")(x.reshape(x.shape[0], -1))


CONCATENATED = ("stem", "narrow0", "grow0", "transition", "grow2")


class DenseBlocks(nn.Module):
    """DenseNet-like: every layer reads the outputs of all before it."""

    @nn.compact
    def __call__(self, x, train: bool):
        def norm(x):
            return nn.relu(nn.BatchNorm(use_running_average=not train)(x))

        x = nn.Conv(6, (3, 3), use_bias=False, name="stem")(x)
        for i in range(3):
            y = nn.Conv(5, (1, 1), use_bias=False, name=f"narrow{i}")(norm(x))
            y = nn.Conv(4, (3, 3), use_bias=False, name=f"grow{i}")(norm(y))
            x = jnp.concatenate([x, y], axis=-1)
            if i == 1:
                x = nn.Conv(7, (1, 1), use_bias=False, name="transition")(norm(x))
                x = nn.avg_pool(x, (2, 2), (2, 2))
        return nn.Dense(3, use_bias=False)(norm(x).mean((1, 2)))


@jax.numpy_dtype_promotion("standard")  # nn.avg_pool divides by an integer
@pytest.mark.parametrize("layer", ["Conv_0", "Conv_1"])
def test_flax_mnist_unchanged(layer):
    model = FlaxMnist()
    variables, _, x = network(model, (12, 12, 1))
    p = {"Conv_0": 8, "Conv_1": 16}[layer]
    keep = mask(p, 0, 3, 5)
    small = jaxprune.compact(model, variables, layer, keep, fill="bias", example=x)
    pruned = reference.prune(variables, layer, [0, 3, 5], "bias")
    expected = jax.jit(model.apply)(pruned, x)
    np.testing.assert_allclose(small(x), expected, atol=ROUNDING, rtol=0)
    assert small.variables["params"][layer]["kernel"].shape[-1] == p - 3
    assert small.proof.bound_used < 1


@slow
@jax.numpy_dtype_promotion("standard")  # nn.avg_pool divides by an integer
@pytest.mark.parametrize(
    "layers",
    [CONCATENATED, *(pytest.param((name,), id=name) for name in CONCATENATED)],
)
def test_concatenating_network(layers):
    model = DenseBlocks()
    images = random_split(n=5).images
    x = jnp.asarray(images, jnp.float32) / 255
    bound = functools.partial(model.init, train=False)
    variables = random_variables(type("M", (), {"init": staticmethod(bound)}), x)
    widths = {name: variables["params"][name]["kernel"].shape[-1] for name in layers}
    masks = {
        name: (mask(p, 1, 2), np.linspace(-1, 2, p).astype(np.float32))
        for name, p in widths.items()
    }
    small = jaxprune.compact_layers(
        model, variables, masks, example=x, call={"train": False}
    )
    given = functools.partial(model.apply, train=False), variables, x
    prunings = [pruning_of(*given, name, *how) for name, how in masks.items()]
    expected = masked_logits(*given, prunings)
    np.testing.assert_allclose(small(x), expected, atol=ROUNDING, rtol=0)
    before, after = (
        sum(leaf.size for leaf in jax.tree.leaves(v["params"]))
        for v in (variables, small.variables)
    )
    assert after < before
    # And once more, starting from the smaller network.
    again = jaxprune.compact_layers(
        small, small.variables,
        {name: (mask(p - 2, 0), "drop") for name, p in widths.items()}, example=x,
    )  # fmt: skip
    kept = {name: layer.kept for name, layer in again.layers.items()}
    assert kept == {name: tuple(range(3, p)) for name, p in widths.items()}


class Blocks(nn.Module):
    """What may follow a convolution, each in another way."""

    kind: str

    @nn.compact
    def __call__(self, x):
        y = x = nn.Conv(6, (3, 3), name="first")(x)
        if self.kind == "residual":
            y = x + nn.relu(nn.Conv(6, (3, 3), name="second")(nn.relu(x)))
        if self.kind == "depthwise":
            y = nn.Conv(6, (3, 3), feature_group_count=6, name="depthwise")(x)
        if self.kind == "layer norm":
            y = nn.LayerNorm(name="norm")(x)
        if self.kind == "group norm":
            y = nn.GroupNorm(num_groups=2, name="norm")(x)
        if self.kind == "instance norm":
            y = nn.InstanceNorm(name="norm")(x)
        if self.kind == "softmax":
            y = nn.softmax(x)
        if self.kind == "sort":
            y = jnp.sort(x, axis=1)
        if self.kind == "sorted channels":
            y = jnp.sort(x, axis=3)
        if self.kind == "gate":
            gate = nn.sigmoid(nn.Dense(6, name="gate")(x.mean((1, 2))))
            y = x * gate[:, None, None]
        if self.kind == "maxout":
            y = jnp.maximum(x[..., :3], x[..., 3:])
        if self.kind == "half":
            y = nn.Conv(3, (1, 1), name="reads")(x[..., :3])
        if self.kind == "swapped":
            first, second = jnp.split(x, 2, axis=-1)
            y = jnp.concatenate([second, first], axis=-1)
        if self.kind == "written size":
            return nn.Dense(4, name="out")(x.reshape((-1, 8 * 8 * 6)))
        if self.kind == "channels first":
            x = x.transpose(0, 3, 1, 2)
            return nn.Dense(4, name="out")(x.reshape((len(x), -1)))
        if self.kind == "parameter":
            y = x * self.param("factor", nn.initializers.ones, (6,))
        if self.kind == "transposed":
            y = nn.ConvTranspose(4, (2, 2), name="up")(x)
        if self.kind == "output":
            return y.mean((1, 2))
        return nn.Dense(4, name="out")(y.mean((1, 2)))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("residual", "'add' in Blocks .* joins them with what depends on the image"),
        ("layer norm", "'reduce_sum' in Blocks/norm"),
        ("group norm", "channels 0 and 1 go together"),
        ("softmax", "'reduce_max' in Blocks"),
        ("sorted channels", "'sort' in Blocks"),
        ("gate", "'mul' in Blocks .* joins them with what depends on the image"),
        ("maxout", "channels 0 and 3 go together"),
        ("half", "no layer reads channel 3"),
        ("output", "they are the network's output"),
    ],
)
def test_channels_that_cannot_leave_alone(kind, message):
    model = Blocks(kind)
    variables, _, x = network(model, (8, 8, 3))
    with pytest.raises(InputError, match=message) as error:
        jaxprune.compact(model, variables, "first", mask(6, 1, 4), example=x)
    assert "\n" not in str(error.value)


ALONE = (
    "depthwise", "instance norm", "sort", "swapped", "written size", "channels first",
    "parameter", "transposed",
)  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "fill"),
    quick(
        itertools.product(ALONE, ("zero", "bias", "values", "drop")),
        {*((kind, "values") for kind in ALONE), ("transposed", "drop")},
    ),
)
def test_channels_that_leave_alone_equal_written_weights(kind, fill):
    """Whatever is between: against weights of linen's own network that are written."""
    model = Blocks(kind)
    variables, _, x = network(model, (8, 8, 3))
    values = np.linspace(-1, 1, 6).astype(np.float32)
    given = values if fill == "values" else fill
    small = jaxprune.compact(
        model, variables, "first", mask(6, 1, 4), fill=given, example=x
    )
    assert small.arrays["params/first/kernel"].shape == (3, 3, 3, 4)
    if fill == "drop":
        return  # compared with the masked one alone
    written = reference.prune(
        variables, "first", [1, 4], "mean" if fill == "values" else fill, values
    )
    expected = jax.jit(model.apply)(written, x)
    # A constant's norm is 0, but for rounding that is divided by the root of 1e-6.
    rounding = 10 * ROUNDING if kind == "instance norm" else ROUNDING
    np.testing.assert_allclose(small(x), expected, atol=rounding, rtol=0)


@pytest.mark.parametrize("kind", ["residual", "gate"])
def test_with_the_fill_drop_whatever_is_tied_goes_too(kind):
    model = Blocks(kind)
    variables, _, x = network(model, (8, 8, 3))
    small = jaxprune.compact(
        model, variables, "first", mask(6, 1, 4), fill="drop", example=x
    )
    other = {"residual": "second", "gate": "gate"}[kind]
    assert small.arrays[f"params/{other}/kernel"].shape[-1] == 4
    by_group = jaxprune.compact_groups(
        model, variables, {"first": (mask(6, 1, 4), "drop")}, example=x
    )
    np.testing.assert_array_equal(small(x), by_group(x))


def test_the_inside_of_a_residual_block_can_be_pruned():
    class Residual(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(6, (3, 3), name="stem")(x)
            y = nn.relu(nn.Conv(5, (3, 3), name="inner")(nn.relu(x)))
            x = x + nn.Conv(6, (3, 3), name="outer")(y)
            return nn.Dense(4, name="out")(x.mean((1, 2)))

    model = Residual()
    variables, _, x = network(model, (8, 8, 3))
    values = np.full(5, 0.5, np.float32)
    small = jaxprune.compact(
        model, variables, "inner", mask(5, 0), fill=values, example=x
    )
    offset = small.variables["offsets"]["outer"]
    assert offset["index"].shape == (8, 8)
    assert offset["rows"].shape == (9, 6)  # inside, four borders, four corners


@pytest.mark.parametrize("transform", [nn.remat, nn.jit])
def test_layers_inside_transformations(transform):
    class Part(nn.Module):
        @nn.compact
        def __call__(self, x):
            return jnp.tanh(nn.Conv(4, (3, 3), name="first")(x))

    class Whole(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = transform(Part)(name="part")(x)
            return nn.Dense(2, name="out")(x.mean((1, 2)))

    model = Whole()
    variables, _, x = network(model, (8, 8, 3))
    small = jaxprune.compact(model, variables, "part/first", mask(4, 1), example=x)
    written = jax.tree.map(np.copy, variables)
    for array in written["params"]["part"]["first"].values():
        array[..., 1] = 0
    expected = jax.jit(model.apply)(written, x)
    np.testing.assert_allclose(small(x), expected, atol=ROUNDING, rtol=0)


def test_padding_by_hand():
    class Padded(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = jnp.tanh(nn.Conv(4, (3, 3), name="first")(x))
            x = jnp.pad(x, ((0, 0), (1, 1), (2, 1), (0, 0)))
            x = nn.Conv(3, (3, 3), 2, padding="VALID", name="second")(x)
            return nn.Dense(2, name="out")(x.reshape(x.shape[0], -1))

    model = Padded()
    variables, _, x = network(model, (8, 8, 3))
    values = np.array([0.3, -1, 2, 0.5], np.float32)
    small = jaxprune.compact(
        model, variables, "first", mask(4, 1, 2), fill=values, example=x
    )
    assert small.proof.bound_used < 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keep": np.zeros(7, bool)}, "leaves no channel"),
        ({"keep": np.ones(6, bool)}, "mask of 7 booleans"),
        ({"keep": np.ones(7)}, "mask of 7 booleans"),
        ({"fill": "zeros"}, "did you mean 'zero'"),
        ({"fill": "mean"}, "depends on images"),
        ({"fill": np.zeros(6)}, r"of shape \(7,\), got \(6,\)"),
        ({"layer": "conv9"}, "unknown layer"),
        ({"example": np.zeros((2, 14, 14, 3), np.float32)}, "does not run"),
        ({"example": np.zeros((0, 14, 14, 2), np.float32)}, "batch of inputs"),
        ({"model": PairCNN(widths=(3, 5, 8), dense=(10, 4))}, "does not run"),
    ],
)
def test_bad_input(change, message):
    variables, _, x = network(PAIR, (14, 14, 2))
    arguments = {"model": PAIR, "layer": "conv3", "keep": mask(7, 0), "example": x}
    arguments |= change
    with pytest.raises(InputError, match=message) as error:
        jaxprune.compact(variables=variables, **arguments)
    assert "\n" not in str(error.value)


def test_inputs_of_another_shape_are_refused():
    variables, _, x = network(PAIR, (14, 14, 2))
    small = jaxprune.compact(PAIR, variables, "conv3", mask(7, 0), example=x)
    with pytest.raises(InputError, match=r"\[N, 14, 14, 2\]"):
        small(x[:, 1:])


@slow
@pytest.mark.parametrize(
    ("model", "shape", "layer", "tap", "ks"),
    [(PAIR, (14, 14, 2), "conv3", "conv", [2, 4]),
     (ReluFirst(), (8, 8, 3), "first", "relu", [2, 4]),
     (VGG, (32, 32, 3), "conv2d_9", "relu", [0, 2, 4])],
)  # fmt: skip
def test_sweep_with_fill_drop_is_the_curve_of_sliced_networks(
    model, shape, layer, tap, ks
):
    split = random_split(shape=shape)
    x = jnp.asarray(split.images, jnp.float32) / 255
    variables = random_variables(model, x)

    def apply(variables, images, **kwargs):
        return model.apply(variables, images.astype(jnp.float32) / 255, **kwargs)

    tapped = tap_layer(apply, variables, split, layer=layer, tap=tap,
                             batch_size=9)  # fmt: skip
    scores = criteria.mean(tapped.mean_feature_map)
    result = sweep_layer(tapped, scores, fill="drop", ks=ks)
    for k, predictions in zip(result.ks, result.predictions, strict=True):
        keep = prefix_masks(result.order, [k])[0]
        small = jaxprune.compact(model, variables, layer, keep, fill="drop",
                                 example=x[:2])  # fmt: skip
        reference.check_predictions(predictions, np.asarray(small(x), np.float64))


def test_a_sweep_with_drop_where_channels_join_others():
    """What reads the sum reads 0: as where both of its sides are."""
    model = Blocks("residual")
    split = random_split()
    variables = random_variables(model, jnp.zeros((1, 8, 8, 3)))

    def apply(variables, images, **kwargs):
        return model.apply(variables, images.astype(jnp.float32) / 255, **kwargs)

    tapped = tap_layer(apply, variables, split, layer="first")
    scores = criteria.mean(tapped.mean_feature_map)
    result = sweep_layer(tapped, scores, fill="drop", ks=[0, 2])
    small = jaxprune.compact(
        model, variables, "first", result.keep(2), fill="drop",
        example=jnp.asarray(split.images[:2], jnp.float32) / 255,
    )  # fmt: skip
    logits = small(jnp.asarray(split.images, jnp.float32) / 255)
    reference.check_predictions(result.predictions[1], np.asarray(logits, np.float64))


def test_networks_are_compared_at_full_precision(monkeypatch):
    seen = []

    def compared(masked, *others, **options):
        seen.append((masked[0].dtype, jax.config.jax_default_matmul_precision))
        return compare(masked, *others, **options)

    compare = proof.compare
    monkeypatch.setattr(proof, "compare", compared)
    variables, _, x = network(PAIR, (14, 14, 2))
    jaxprune.compact(PAIR, variables, "conv2", mask(5, 0), example=x)
    assert seen == [(np.float64, "highest")]
