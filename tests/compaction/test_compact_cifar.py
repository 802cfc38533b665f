"""cifar_vgg with its real weights on real images: what folding is for."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune._base.errors import InputError
from jaxprune.compaction import artefact
from jaxprune.compaction.proof import compare
from jaxprune.data import tfds
from jaxprune.recipes.keras_import import import_keras
from jaxprune.recipes.models import CifarVGG
from jaxprune.recipes.recipe import RECIPES
from masked import masked_logits, pruning_of
from programs import run_program

RECIPE = RECIPES["cifar_vgg"].config


@pytest.fixture(scope="module")
def real(data_dir, decoded):
    """(model, variables, images, scaled images)"""
    weights = Path(data_dir).parent / "keras" / "cifar_vgg.h5"
    if not weights.is_file():
        pytest.skip(f"there is no {weights}")
    images, _, _ = tfds.load("cifar10", "test", data_dir, decoded)
    mean, std = (np.float32(v) for v in (RECIPE.pixel_mean, RECIPE.pixel_std))
    x = (jnp.asarray(images[:48], jnp.float32) - mean) / std
    model = CifarVGG()
    like = jax.eval_shape(model.init, jax.random.key(0), x[:1])
    network = jaxprune.from_linen(model, like, x[:1], train=False)
    variables = import_keras(weights, network, x[:1])
    return model, variables, images[:48], x


# To compile a program of 80 MB takes long; test_artefact.py runs a small one.
@pytest.mark.slow
def test_folding_makes_the_difference(real, tmp_path):
    model, variables, images, x = real
    keep = np.arange(512) % 2 == 0
    small = jaxprune.compact(model, variables, "conv2d_12", keep, example=x[:1])
    assert small.variables["params"]["conv2d_12"]["kernel"].shape == (3, 3, 512, 256)
    pruning = pruning_of(model.apply, variables, x[:1], "conv2d_12", keep, "zero")
    expected = masked_logits(model.apply, variables, x, [pruning])
    # The same class, as wide as that: nothing of jaxprune around it.
    narrow = CifarVGG(widths=(*CifarVGG.widths[:-1], 256))
    logits = jax.jit(narrow.apply)(small.variables, x)
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
    # 17 layers of sums of up to 4,608 float32 products, logits near 10.
    np.testing.assert_allclose(small(x), expected, atol=1e-4, rtol=0)
    # The same kernels without the constants are another network.
    unfolded = jax.tree.map(lambda leaf: leaf, small.variables)
    unfolded["params"]["dense"]["bias"] = variables["params"]["dense"]["bias"]
    sliced = small.with_arrays(unfolded)(x)
    with pytest.raises(InputError, match="rounding does not explain"):
        compare(expected, np.asarray(sliced))
    small.save(
        tmp_path / "small",
        pixel_mean=RECIPE.pixel_mean,
        pixel_std=RECIPE.pixel_std,
        stablehlo=True,
    )
    drop = jaxprune.compact(
        model, variables, "conv2d_12", keep, fill="drop", example=x[:2]
    )
    np.testing.assert_allclose(drop(x), sliced, atol=1e-4, rtol=0)
    logits = run_program(tmp_path / "small", images)
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
    size = (tmp_path / "small" / artefact.WEIGHTS).stat().st_size
    # Of 21,557,322 numbers: 256 channels' 4,609 weights, 4 numbers of BatchNorm, and
    # 4,096 rows' part, one for each unit of the first dense layer.
    removed = 256 * (9 * 512 + 1 + 4 + 4096)
    assert abs(size - 4 * (21_557_322 - removed)) < 20_000
