"""A network of several inputs, whose names an .npz file has, by the same scripts."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxprune
from jaxprune.cli.commands import compact, shrink, sweep
from jaxprune.compaction import artefact

SOURCE = """
import jax, jax.numpy as jnp, numpy as np
from flax import linen as nn


class Net(nn.Module):
    @nn.compact
    def __call__(self, batch):
        image, time = {unpacked}
        h = nn.relu(nn.Conv(6, (3, 3), name="first")(image))
        h += nn.Dense(6, name="time")(time)[:, None, None]
        h = nn.relu(nn.Conv(8, (3, 3), name="second")(h))
        return nn.Dense(3, name="classes")(h.mean((1, 2)))


def build():
    image, time = np.zeros((1, 8, 8, 2), np.float32), np.zeros((1, 4), np.float32)
    batch = {packed}
    shapes = jax.eval_shape(Net().init, jax.random.key(0), batch)
    rng = np.random.default_rng(0)
    return Net(), jax.tree.map(
        lambda s: rng.normal(0, 0.5, s.shape).astype(s.dtype), shapes
    ), batch, {{}}
"""
KINDS = {
    "dict": ('batch["image"], batch["time"]', '{"image": image, "time": time}'),
    "pair": ("batch", "(image, time)"),
}
NAMES = {"dict": ("image", "time"), "pair": ("inputs_0", "inputs_1")}
RNG = np.random.default_rng(0)
N = 90
IMAGE = RNG.normal(size=(N, 8, 8, 2)).astype(np.float32)
TIME = RNG.normal(size=(N, 4))  # float64, as people have it
QUICK = ("--latency_batches=1", "--repeats=2")

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(params=KINDS)
def kind(request, tmp_path, monkeypatch):
    """Where the network and its examples lie; labels are mostly what it says."""
    monkeypatch.chdir(tmp_path)
    unpacked, packed = KINDS[request.param]
    Path("two.py").write_text(SOURCE.format(unpacked=unpacked, packed=packed))
    model, variables, batch, _ = build()
    apply = jax.jit(model.apply)
    values = jax.tree.unflatten(jax.tree.structure(batch), [IMAGE, np.float32(TIME)])
    labels = np.asarray(apply(variables, values)).argmax(1)
    labels[::9] = RNG.integers(0, 3, len(labels[::9]))
    first, second = NAMES[request.param]
    save(first, second, labels)
    yield request.param
    sys.modules.pop("two", None)


def save(first, second, labels, name="data.npz", **others):
    arrays = {first: IMAGE, second: TIME, "labels": labels}
    parts = {
        prefix + key: array[where]
        for prefix, where in (("", slice(40)), ("train_", slice(40, N)))
        for key, array in arrays.items()
    }
    np.savez(name, **{**parts, **others})
    return parts


def build():
    made: dict = {}
    exec(Path("two.py").read_text(), made)
    return made["build"]()


def test_from_a_sweep_to_smaller_networks(script, kind):
    flags = ("--model=two:build", "--data=data.npz")
    code, out, err = script(sweep, *flags, "--fill=zero")
    assert code == 0, err
    result = jaxprune.SweepResult.load(
        Path("runs/two.build/sweep-second-abs_mean-zero")
    )
    # Weights really zeroed, in the model's own code.
    model, variables, batch, _ = build()
    held = np.load("data.npz")
    values = jax.tree.unflatten(
        jax.tree.structure(batch), [np.float32(held[name]) for name in NAMES[kind]]
    )
    for k in (0, 3, 7):
        params = jax.tree.map(np.array, variables)
        for array in params["params"]["second"].values():
            array[..., result.order[:k]] = 0
        right = np.asarray(model.apply(params, values)).argmax(1) == held["labels"]
        assert result.accuracy[k] == pytest.approx(right.mean())
    assert (
        "images" in out
        and not Path("runs/two.build/sweep-second-abs_mean-zero/examples.png").exists()
    )
    code, out, err = script(
        compact, *flags, *QUICK, "--fill=zero", "--k=3", "--export=stablehlo",
        "--finetune_epochs=1", "--distill",
    )  # fmt: skip
    assert code == 0, err
    folder = Path("runs/two.build/compact-second-abs_mean-zero-k3")
    assert "0 predictions differ" in out
    small = jaxprune.load_compact(folder)
    program = jax.export.deserialize((folder / artefact.PROGRAM).read_bytes())
    np.testing.assert_allclose(program.call(values), small(values), atol=1e-5)
    spec = json.loads((folder / "spec.json").read_text())
    assert spec["preprocessing"] is None and spec["inputs"]
    code, out, err = script(
        shrink, *flags, *QUICK, "--speedup=1.5", "--ladder=", "--multiple_of=1"
    )
    assert code == 0, err
    assert "0 predictions differ" in out
    cut = jaxprune.load_compact("runs/two.build/shrink-speedup1.5")
    assert cut(values).shape == (40, 3)


def test_a_folder_of_their_arrays(script, kind):
    folder = Path("arrays")
    folder.mkdir()
    for name, array in np.load("data.npz").items():
        np.save(folder / f"{name}.npy", array)
    results = []
    for data in ("data.npz", "arrays"):
        code, _, err = script(
            sweep, "--model=two:build", f"--data={data}", "--fill=zero", "--noreport",
            f"--workdir=runs/{data}",
        )  # fmt: skip
        assert code == 0, err
        (found,) = Path("runs", data).glob("sweep-*")
        results.append(jaxprune.SweepResult.load(found))
    np.testing.assert_array_equal(*(result.predictions for result in results))
    code, _, err = script(
        sweep, "--workdir=runs/arrays", "--data=data.npz", "--fill=zero"
    )
    assert code == 2 and "dataset" in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--data=cifar10",), "takes several inputs: give {0}, {1} in an .npz file"),
        (("--data=data.npz", "--pixel_mean=127"), "takes several inputs: scale them"),
        (("--data=data.npz", "--image_size=8"), "is of a folder of images"),
        (("--data=other.npz",), "holds some of train_{0} and train_{1} and train_labe"),
        (("--data=shape.npz",), "{1} must be [N, 4], N at least 1; got [40, 3]"),
        (("--data=length.npz",), "must be arrays [N, ...] of one N"),
        (("--data=images.npz",), "has no {0} and no {1}, it holds images, labels"),
    ],
)
def test_what_does_not_fit_is_one_line(script, kind, flags, message):
    first, second = NAMES[kind]
    labels = np.arange(N) % 3
    parts = save(first, second, labels)
    np.savez("other.npz", **{k: a for k, a in parts.items() if k != f"train_{second}"})
    save(first, second, labels, "shape.npz", **{second: TIME[:40, :3]})
    save(first, second, labels, "length.npz", **{second: TIME[:39]})
    np.savez("images.npz", images=IMAGE, labels=labels)
    code, _, err = script(sweep, "--model=two:build", *flags)
    assert code == 2, err
    line = err.strip().splitlines()[-1]
    assert line.startswith("error: ") and message.format(first, second) in line
    assert not Path("runs").exists() or not [*Path("runs").rglob("*.npz")]


def test_an_input_with_the_name_of_labels_is_refused(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = SOURCE.format(
        unpacked='batch["image"], batch["labels"]',
        packed='{"image": image, "labels": time}',
    )
    Path("two.py").write_text(source)
    np.savez("data.npz", image=IMAGE, labels=TIME)
    code, _, err = script(sweep, "--model=two:build", "--data=data.npz")
    sys.modules.pop("two", None)
    assert code == 2 and "an input is called 'labels'" in err
