"""Numbers of extreme sizes and of few digits: proved in float64, or not at all."""

import json
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxprune
from jaxprune._base.errors import InputError
from jaxprune.cli.commands import compact
from jaxprune.compaction import cut
from random_data import random_split, random_variables


class Deep(nn.Module):
    """1 x 1 convolutions, so that channels are sums of as many products."""

    depth: int
    width: int = 6
    dtype: type = jnp.float32
    squashed: bool = False

    @nn.compact
    def __call__(self, x):
        types = {"dtype": self.dtype, "param_dtype": self.dtype}
        for i in range(self.depth):
            x = nn.relu(nn.Conv(self.width, (1, 1), name=f"layer{i}", **types)(x))
        x = nn.Dense(3, name="out", **types)(x.mean((1, 2)))
        return jnp.tanh(x / x.size) if self.squashed else x


def halve(model, scale=1.0, fill="zero", **options):
    """Half of the last convolution's channels go; weights are positive."""
    x = np.random.default_rng(0).uniform(size=(3, 2, 2, 2)).astype(np.float32)
    variables = random_variables(model, jnp.asarray(x, model.dtype))
    for layer in variables["params"].values():
        for name, array in layer.items():
            layer[name] = (np.abs(array) * scale).astype(model.dtype)
    keep = np.arange(model.width) % 2 > 0
    layer = f"layer{model.depth - 1}"
    if fill != "zero":
        fill = np.full(model.width, fill, np.float32)
    return jaxprune.compact(
        model, variables, layer, keep, fill=fill, example=x, **options
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
def test_one_channel_of_a_thousand_is_missed_in_any_type(dtype, monkeypatch):
    """With half a type's unit roundoff in it, the bound was larger than that."""
    model = Deep(1, 1000, dtype)
    assert halve(model, 1.0, 1.0).proof.bound_used <= 1
    sent = cut._sent

    def without_one(layer, constants, rows):
        constants[..., np.flatnonzero(constants)[0]] = 0
        return sent(layer, constants, rows)

    monkeypatch.setattr(cut, "_sent", without_one)
    with pytest.raises(InputError, match=r"at 'out', by .* rounding explains"):
        halve(model, 1.0, 1.0)


@pytest.mark.parametrize(
    ("model", "scale", "message"),
    [
        (Deep(5), 1e10, "compact network returns infinities or NaN, in float32, for"),
        (Deep(4, dtype=jnp.float16), 99, "returns infinities or NaN, in float16, for"),
        (Deep(12, squashed=True), 1e37, "what 'layer8' returns overflows float64"),
    ],
    ids=["float32", "float16", "float64"],
)
def test_what_overflows_is_not_proved(model, scale, message, tmp_path):
    with pytest.raises(InputError, match=f"^not proved: .*{message}"):
        halve(model, scale)
    small = halve(model, scale, unproved=True)
    assert message in small.proof.not_proved
    assert (small.proof.largest_difference is None) == ("returns inf" in message)
    small.save(tmp_path / "small")
    assert jaxprune.load_compact(tmp_path / "small").proof == small.proof


def test_what_is_too_large_to_be_folded_in():
    with pytest.raises(InputError, match="params/out/bias overflows float16"):
        halve(Deep(2, dtype=jnp.float16), fill=6e4, unproved=True)


@pytest.mark.parametrize(("depth", "scale"), [(2, 1e10), (2, 1e-10), (11, 1.0)])
def test_large_and_small_numbers_are_proved(depth, scale):
    proof = halve(Deep(depth), scale).proof
    assert proof.not_proved is None and "not_proved" not in proof.to_json()
    assert proof.bound_used <= 1 and proof.relative_difference < 1e-5


SOURCE = """
import jax, numpy as np
from flax import linen as nn


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(10):
            x = nn.relu(nn.Conv(4, (1, 1))(x))
        return nn.tanh(nn.Dense(2, name="out")(x[:, 0, 0]))


def build():
    x = np.zeros((1, 6, 6, 1), np.float32)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(Net().init, jax.random.key(0), x)
    draw = lambda s: np.float32(rng.uniform(1e37, 2e37, s.shape))
    return Net(), jax.tree.map(draw, shapes), x, {}
"""


@pytest.mark.usefixtures("standard_promotion")
def test_the_command_ends_with_2_unless_told(script, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    Path("overflows.py").write_text(SOURCE)
    split = random_split(n=40, shape=(6, 6, 1), classes=2)
    np.savez("my.npz", images=split.images, labels=split.labels)
    arguments = [
        "--model=overflows:build", "--data=my.npz", "--k=1", "--criterion=random",
        "--layer=Conv_0", "--fill=zero", "--repeats=1", "--latency_batches=1",
    ]  # fmt: skip
    code, _, err = script(compact, *arguments)
    assert code == 2 and "\rerror: not proved: what 'Conv_" in err, err
    assert not [*Path("runs").glob("*/compact*")]
    code, out, err = script(compact, *arguments, "--unproved")
    assert code == 0 and "  NOT PROVED what 'Conv_" in out, err
    (folder,) = Path("runs").glob("*/compact*")
    spec = json.loads((folder / "spec.json").read_text())
    for found in (spec["proof"], spec["about"]["test_proof"]):
        assert "overflows float64" in found["not_proved"]
