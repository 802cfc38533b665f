"""--model=my_module:build or net.keras: a network of one's own, by the same scripts."""

import json
import os
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import export
from PIL import Image
from safetensors.numpy import load_file

import jaxprune
from experiments.bench import __main__ as bench
from jaxprune._base import manifest
from jaxprune.cli.commands import compact, plot, shrink, sweep, train
from jaxprune.data import images
from random_data import random_split
from run_directories import opened
from selected import quick

SOURCE = """
import sys
import jax, jax.numpy as jnp, numpy as np
from flax import linen as nn


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.Conv(6, (3, 3), name="first")(x))
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        x = nn.relu(nn.Conv(5, (3, 3), strides=2, name="second")(x))
        return nn.Dense(4, name="out")(x.mean((1, 2)))


def build(seed=0):
    x = np.zeros((1, 8, 8, 3))
    model = Net()
    key = jax.random.key(seed, impl="threefry2x32")
    shapes = jax.eval_shape(lambda: model.init(key, jnp.asarray(x), train=False))
    rng = np.random.default_rng(seed)
    draw = lambda s: rng.normal(0, 0.5, s.shape).astype(s.dtype)
    variables = jax.tree.map(draw, shapes)
    variables["batch_stats"]["norm"]["var"] **= 2
    # Every class but one is some image's.
    variables["params"]["out"]["bias"] = np.float32([670, 34, 679, -716]) / 9
    return model, variables, x, {"train": False}


other_weights = lambda: build(1)
a_number = 3
takes = lambda width: build()
three = lambda: build()[:3]
none = lambda: None
not_linen = lambda: (abs, *build()[1:])
empty = lambda: (build()[0], {"params": {}}, *build()[2:])
unlike = lambda: (build()[0], {"params": {"conv": np.ones(2)}}, *build()[2:])
no_params = lambda: (build()[0], build()[1]["params"], *build()[2:])
no_call = lambda: (*build()[:3], {})
an_array = lambda: (*build()[:3], {"train": False, "mask": np.ones(2)})
no_logits = lambda: (nn.Conv(3, (1, 1)), *nn_conv(), {})
in_bytes = lambda: (*build()[:2], np.zeros((1, 8, 8, 3), np.uint8), {"train": False})
wide = lambda: (*build()[:2], np.zeros((1, 8, 9, 3)), {"train": False})
no_batch = lambda: (*build()[:2], np.zeros((8, 8, 3), np.float32), {"train": False})


def nn_conv():
    x = jnp.zeros((1, 8, 8, 3))
    return {"params": {"kernel": np.ones((1, 1, 3, 3), np.float32),
                       "bias": np.ones(3, np.float32)}}, x


def raises():
    raise RuntimeError("no weights here\\nand more")


def ends():
    sys.exit("usage")
"""
# One function in every form that `build` may return it in.
OTHERS = """
import jax, jax.numpy as jnp, numpy as np
import jaxprune

IMAGES = np.zeros((2, 8, 8, 3), np.float32)
rng = np.random.default_rng(2)
SHAPES = {"first": (3, 3, 3, 6), "second": (3, 3, 6, 5), "out": (5, 4)}
PARAMS = {
    name: {"kernel": rng.normal(0, 0.3, shape).astype(np.float32),
           "bias": rng.normal(0, 0.1, shape[-1:]).astype(np.float32)}
    for name, shape in SHAPES.items()
}


def function(params, x):
    for name in ("first", "second"):
        layer = params[name]
        x = jax.lax.conv_general_dilated(
            x, layer["kernel"], (1, 1), "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = jax.nn.relu(x + layer["bias"])
    return x.mean((1, 2)) @ params["out"]["kernel"] + params["out"]["bias"]


# Every class is some image's.
PARAMS["out"]["bias"] += np.float32([0.54, 1.96, 0.96, 0.22])


def plain():
    return jaxprune.Network(function, PARAMS, IMAGES)


def nnx():
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.first = nnx.Conv(3, 6, (3, 3), rngs=rngs)
            self.second = nnx.Conv(6, 5, (3, 3), rngs=rngs)
            self.out = nnx.Linear(5, 4, rngs=rngs)

        def __call__(self, x):
            x = nnx.relu(self.second(nnx.relu(self.first(x))))
            return self.out(x.mean((1, 2)))

    net = Net()
    for name, layer in PARAMS.items():
        own = getattr(net, name)
        own.kernel[...], own.bias[...] = map(jnp.asarray, layer.values())
    return jaxprune.from_nnx(net, IMAGES)


def bare_equinox():
    import equinox as eqx

    class Net(eqx.Module):
        first: eqx.nn.Conv2d
        second: eqx.nn.Conv2d
        out: eqx.nn.Linear

        def __call__(self, x):
            x = jax.nn.relu(self.second(jax.nn.relu(self.first(x))))
            return self.out(x.mean((1, 2)))

    def conv(name):
        kernel, bias = PARAMS[name].values()
        layer = eqx.nn.Conv2d(*kernel.shape[2:], 3, padding=1, key=jax.random.key(0))
        arrays = kernel.transpose(3, 2, 0, 1), bias[:, None, None]
        return eqx.tree_at(lambda l: (l.weight, l.bias), layer, arrays)

    out = eqx.nn.Linear(5, 4, key=jax.random.key(0))
    arrays = PARAMS["out"]["kernel"].T, PARAMS["out"]["bias"]
    out = eqx.tree_at(lambda l: (l.weight, l.bias), out, arrays)
    return Net(conv("first"), conv("second"), out)


def equinox():
    return jaxprune.from_equinox(bare_equinox(), example=IMAGES.transpose(0, 3, 1, 2))


def keras(shape=(8, 8, 3)):
    import keras
    from keras import layers

    with jax.default_prng_impl("threefry2x32"):  # the only one that Keras draws with
        return keras_model(keras, layers, shape)


def keras_model(keras, layers, shape):
    image = keras.Input(shape)
    x = layers.Conv2D(6, 3, padding="same", activation="relu", name="first")(image)
    x = layers.Conv2D(5, 3, padding="same", activation="relu", name="second")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, layers.Dense(4, "softmax", name="out")(x))
    for name, layer in PARAMS.items():
        model.get_layer(name).set_weights([*layer.values()])
    return model


bare_nnx = lambda: nnx().origin.model
a_layer = lambda: keras().get_layer("first")
no_example = lambda: plain().with_example(None)
of_bytes = lambda: plain().with_example(IMAGES.astype(np.uint8))
"""
SPLIT = random_split(n=90, shape=(8, 8, 3), classes=4)
ARRAYS = {
    "images": SPLIT.images[:60], "labels": SPLIT.labels[:60],
    "class_names": np.array(["cat", "dog", "owl", "yak"]),
    "train_images": SPLIT.images[60:], "train_labels": SPLIT.labels[60:],
}  # fmt: skip
OWN = ("--model=nets.small:build", "--data=my.npz")
TUNED = (*OWN, "--k=1", "--finetune_epochs=1")
SCALED = (*OWN, "--pixel_mean=100,90,80", "--pixel_std=50")
RUN = Path("runs/nets.small.build")
QUICK = ("--repeats=2", "--latency_batches=2")
FOLDER = RUN / "sweep-second-abs_mean-linear"

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(autouse=True)
def nets(tmp_path, monkeypatch):
    """A package and a file in the folder that scripts run in."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "small.py").write_text(SOURCE)
    (tmp_path / "nets" / "others.py").write_text(OTHERS)
    np.savez(tmp_path / "my.npz", **ARRAYS)
    monkeypatch.chdir(tmp_path)
    yield
    for name in [n for n in sys.modules if n.split(".")[0] == "nets"]:
        del sys.modules[name]


@pytest.fixture
def swept(script, tmp_path_factory):
    """A run directory with a finished sweep, made once."""
    made = tmp_path_factory.getbasetemp() / "own-swept"
    if not made.exists():
        code, _, err = script(sweep, *SCALED)
        assert code == 0, err
        shutil.copytree("runs", made)
    else:
        shutil.copytree(made, "runs")


def build(**scaled):
    """The network of SOURCE, and its logits of the file's images by plain Flax."""
    from nets import small

    model, variables, _, call = small.build()

    def logits(variables, images):
        scaled = (jnp.asarray(images, jnp.float32) - jnp.array([100.0, 90, 80])) / 50
        return np.asarray(model.apply(variables, scaled, **call))

    return model, variables, logits


def zeroed(variables, layer, channels):
    changed = jax.tree.map(np.copy, variables)
    for leaf in changed["params"][layer].values():
        leaf[..., channels] = 0
    return changed


def test_a_sweep_is_that_of_really_zeroed_weights(script):
    """Of the file's images in their order; scored on a slice of them."""
    code, out, err = script(
        sweep, *SCALED, "--fill=zero", "--ks=0,3,5", "--rank_split=train",
        "--criterion=mean", "--layer=first",
    )  # fmt: skip
    assert code == 0, err
    folder = RUN / "sweep-first-mean-zero"
    first = [RUN / "report.html", folder / "accuracy_vs_k.png"]
    assert opened(out) == [*map(str, first), str(folder / "feature_maps.png")]
    assert "note" in out and "chosen on the images reported" in out
    assert "trained" not in out  # nobody has said on what
    model, variables, logits = build()
    result = jaxprune.SweepResult.load(RUN / "sweep-first-mean-zero")
    scaled = (ARRAYS["train_images"] - np.array([100.0, 90, 80])) / 50
    _, taken = model.apply(
        variables, jnp.float32(scaled), train=False,
        capture_intermediates=lambda module, _: module.name == "first",
    )  # fmt: skip
    maps = taken["intermediates"]["first"]["__call__"][0]
    order = np.argsort(np.asarray(maps).mean((0, 1, 2)), kind="stable")
    np.testing.assert_array_equal(result.order, order)
    np.testing.assert_array_equal(result.labels, ARRAYS["labels"])
    assert result.class_names == ("cat", "dog", "owl", "yak")
    for row, k in enumerate(result.ks):
        expected = logits(zeroed(variables, "first", order[:k]), ARRAYS["images"])
        np.testing.assert_array_equal(result.predictions[row], expected.argmax(-1))
    assert (result.predictions[0] != result.predictions[-1]).any()
    made = result.about
    assert (made["model"], made["dtype"]) == ("nets.small:build", "float32")


@pytest.mark.slow
def test_every_fill_and_every_criterion(script):
    flags = (*SCALED, "--ks=0,2,4")
    code, _, err = script(sweep, *flags, "--fill=all")
    assert code == 0, err
    for fill in jaxprune.FILLS:
        result = jaxprune.SweepResult.load(RUN / f"sweep-second-abs_mean-{fill}")
        assert result.ks == (0, 2, 4)
    code, out, err = script(sweep, *flags, "--criterion=all", "--random_orders=2")
    assert code == 0, err
    assert "left out: bn_scale" in out
    folder = RUN / "criteria-second-linear"
    expected = [RUN / "report.html", folder / "criteria.png", folder / "criteria.csv"]
    assert opened(out) == [*map(str, expected)]


def test_what_a_run_directory_is_of_is_never_changed(script, swept):
    conf = json.loads((RUN / "config.json").read_text())
    assert set(conf) == {
        "model", "weights", "dataset", "seed", "pixel_mean", "pixel_std",
        "task", "output", "ignore",
    }  # fmt: skip
    assert conf["pixel_mean"] == [100, 90, 80]
    assert conf["weights"] == f"sha256:{manifest.fingerprint(build()[1])}"

    def refused(*arguments):
        code, _, err = script(sweep, *arguments)
        assert code == 2 and err.count("\n") == 1
        return err

    there = f"--workdir={RUN}"
    err = refused("--model=nets.small:other_weights", "--data=my.npz", there)
    assert "model is nets.small:build, not nets.small:other_weights" in err
    assert "weights is sha256:" in err and "dataset" not in err
    np.savez("other.npz", **{**ARRAYS, "labels": 3 - ARRAYS["labels"]})
    err = refused(OWN[0], "--data=other.npz", "--seed=1", "--pixel_std=1")
    for text in ("seed is 0, not 1", "dataset is sha256:", "pixel_std is 50.0, not 1"):
        assert text in err
    assert "weights" not in err
    assert "holds another configuration" in refused("--model=digits_pair", there)
    assert "say which with --data" in refused(there)
    source = Path("nets/small.py")
    source.write_text(source.read_text().replace("0, 0.5", "0, 0.25"))
    del sys.modules["nets.small"]
    assert "configuration: weights is sha256:" in refused(OWN[0], "--data=my.npz")
    # The same file by another name, and nothing else that is given, goes on.
    source.write_text(SOURCE)
    del sys.modules["nets.small"]
    Path("my.npz").rename("renamed.npz")
    code, _, err = script(sweep, there, "--data=renamed.npz", "--ks=0,4", "--fill=zero")
    assert code == 0, err


def test_a_command_that_was_refused_settles_nothing(script, monkeypatch):
    """Its configuration is not held against the one that is right."""
    quick = (*QUICK, "--ladder=", "--speedup=1.1", "--workdir=run")
    code, _, err = script(shrink, *OWN, *quick, "--keep_whole=nothing")
    assert code == 2 and "nothing" in err
    np.savez("other.npz", **{**ARRAYS, "labels": 3 - ARRAYS["labels"]})
    home = str(Path.cwd())
    monkeypatch.setenv("HOME", home)
    own = (OWN[0], "--data=~/other.npz", "--workdir=~/run")
    code, _, err = script(sweep, *own, "--ks=0,4", "--fill=zero")
    assert code == 0, err
    code, _, err = script(sweep, *OWN, "--workdir=run", "--ks=0,4", "--fill=drop")
    assert code == 2 and "holds another configuration: dataset is" in err


def test_the_smaller_network(script, swept):
    code, out, err = script(compact, *OWN, "--k=2", *QUICK, "--export=stablehlo")
    assert code == 0, err
    assert "60 images: 0 predictions differ" in out
    made = jaxprune.SweepResult.load(FOLDER).about["fill_facts"]
    assert (made["split"], made["images"]) == ("train[:512]", 30)
    folder = RUN / "compact-second-abs_mean-linear-k2"
    assert opened(out) == [f"{folder}/"]
    weights = load_file(folder / "weights.safetensors")
    assert weights["params/out/kernel"].shape == (3, 4)
    spec = json.loads((folder / "spec.json").read_text())
    assert spec["call"] == {"train": False}
    assert spec["class_names"] == ["cat", "dog", "owl", "yak"]
    assert spec["preprocessing"]["input"] == "uint8 pixels"
    assert spec["preprocessing"]["std"] == [50]
    model, _, _ = build()
    small = jaxprune.load_compact(folder, model)
    scaled = (ARRAYS["images"] - np.array([100.0, 90, 80])) / 50
    logits = np.asarray(small(jnp.float32(scaled)))
    program = export.deserialize((folder / "model.stablehlo").read_bytes())
    # One rounds the scaling in float64.
    np.testing.assert_allclose(program.call(ARRAYS["images"]), logits, atol=1e-4)
    order = np.load(FOLDER / "sweep.npz")["order"]
    assert sorted(small.layers["second"].kept) == sorted(order[2:])
    code, out, err = script(plot, f"--workdir={RUN}")
    assert code == 0, err
    assert len(opened(out)) == 3 and "4 pictures" in out


def test_the_whole_network(script, layers_untimed):
    code, out, err = script(
        shrink, *SCALED, "--speedup=1.5", "--ladder=", "--batch=2", "--multiple_of=1",
        *QUICK,
    )  # fmt: skip
    assert code == 0, err
    assert "60 images: 0 predictions differ from the masked network's" in out
    names = ("report.html", "shrink-speedup1.5/", "shrink/pareto.png")
    assert opened(out) == [f"{RUN}/{name}" for name in names]
    small = jaxprune.load_compact(RUN / "shrink-speedup1.5", build()[0])
    assert small.variables["params"]["first"]["kernel"].shape[-1] < 6


def saved(path, **options):
    """A file of the Keras model of OTHERS."""
    pytest.importorskip("keras")
    sys.path.insert(0, os.getcwd())
    from nets import others

    others.keras(**options).save(path)
    return path


FORMS = {
    "plain": "nets.others:plain", "nnx": "nets.others:nnx",
    "equinox": "nets.others:equinox", "keras": "nets.others:keras",
    "file": "net.keras", "file of any size": "any.h5",
}  # fmt: skip


@pytest.mark.parametrize("form", quick(FORMS, ("plain", "equinox", "file of any size")))
def test_every_form_of_a_network(script, form):
    """The same sweep, whatever the network is written in."""
    name = FORMS[form]
    if form in ("equinox", "keras"):
        pytest.importorskip(form)
    if form.startswith("file"):
        saved(name, shape=(8, 8, 3) if form == "file" else (None, None, 3))
    data = ("--data=my.npz", "--pixel_mean=100,90,80", "--pixel_std=50")
    flags = (f"--model={name}", *data, "--ks=0,2,4", "--fill=drop")
    code, out, err = script(sweep, *flags)
    assert code == 0, err
    assert ("takes channels first" in out) == (form == "equinox")
    (folder,) = Path("runs", name.replace(":", ".")).glob("sweep-*-abs_mean-drop")
    result = jaxprune.SweepResult.load(folder)
    from nets import others

    scaled = np.float32((ARRAYS["images"] - np.array([100.0, 90, 80])) / 50)
    for row, k in enumerate(result.ks):
        params = jax.tree.map(np.copy, others.PARAMS)
        for array in params["second"].values():
            array[..., result.order[:k]] = 0
        logits = np.asarray(others.function(params, scaled), np.float64)
        np.testing.assert_array_equal(result.predictions[row], logits.argmax(-1))
        losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(60), result.labels]
        np.testing.assert_allclose(result.cross_entropy[row], losses.mean(), rtol=1e-4)
    assert len({tuple(row) for row in result.predictions}) > 1
    assert result.about["model"] == name


@pytest.mark.parametrize("form", quick(("file", "equinox"), ("file",)))
def test_the_smaller_network_of_another_framework(script, form, layers_untimed):
    name = FORMS[form]
    pytest.importorskip(form if form == "equinox" else "keras")
    if form == "file":
        saved(name)
    flags = (f"--model={name}", "--data=my.npz", "--pixel_mean=100,90,80", *QUICK)
    code, out, err = script(
        compact, *flags, "--k=2", "--fill=drop", "--export=stablehlo"
    )
    assert code == 0, err
    assert "60 images: 0 predictions differ" in out
    (folder,) = Path("runs", name.replace(":", ".")).glob("compact-*-k2")
    scaled = np.float32(ARRAYS["images"] - np.array([100.0, 90, 80]))
    if form == "equinox":
        scaled = scaled.transpose(0, 3, 1, 2)
    small = jaxprune.load_compact(folder)
    program = export.deserialize((folder / "model.stablehlo").read_bytes())
    pixels = ARRAYS["images"]
    if form == "equinox":  # as the network takes them
        pixels = pixels.transpose(0, 3, 1, 2)
    returned = program.call(pixels)
    np.testing.assert_allclose(returned, small(scaled), atol=1e-4)
    code, out, err = script(shrink, *flags, "--speedup=1.5", "--ladder=", "--batch=2",
                            "--multiple_of=1")  # fmt: skip
    assert code == 0, err
    assert "60 images: 0 predictions differ from the masked network's" in out


def test_recalibrated_and_taught(script, swept):
    """On its own training images, in one batch of them, without a recipe."""
    tuned = ("--recalibrate", "--finetune_epochs=3", "--finetune_learning_rate=1e-2")
    code, out, err = script(compact, *OWN, "--k=3", *QUICK, *tuned, "--distill")
    assert code == 0, err
    assert "recalibrated over 30" in out and "fine-tuned, epoch 3/3" in out
    folder = RUN / "compact-second-abs_mean-linear-k3"
    assert json.loads((folder / "spec.json").read_text())["about"][
        "after_the_proof"
    ] == {
        "recalibrated": True, "finetune_epochs": 3, "finetune_split": "train",
        "finetune_images": 30, "finetune_batch_size": 30,
        "finetune_learning_rate": 0.01, "batch_norm": "evaluation",
        "distill_temperature": 4.0, "distill_weight": 1.0,
    }  # fmt: skip
    losses = [
        float(x) for x in re.findall(r"fine-tuned, epoch ./3: loss ([\d.]+)", out)
    ]
    assert losses[2] < losses[0]
    _, variables, _ = build()
    small = jaxprune.load_compact(folder, build()[0])
    images = (ARRAYS["train_images"] - np.float32([100, 90, 80])) / np.float32(50)
    first = variables["params"]["first"]
    given = jax.nn.relu(nn.Conv(6, (3, 3)).apply({"params": first}, images))
    # BatchNorm's mean is that of its input, and its scale has been trained.
    found = small.variables["batch_stats"]["norm"]["mean"]
    np.testing.assert_allclose(found, given.mean((0, 1, 2)), rtol=1e-4)
    scale = small.variables["params"]["norm"]["scale"]
    assert not np.array_equal(scale, variables["params"]["norm"]["scale"])


def test_slices_of_the_file_and_images_in_common(script):
    slices = ("--rank_split=test[:30]", "--eval_split=test[30:]", "--ks=0,4")
    code, _, err = script(sweep, *OWN, *slices, "--calibration_split=test[20:31]")
    assert code == 2 and "holds 1 images of --eval_split=test[30:]" in err
    code, out, err = script(sweep, *OWN, *slices, "--calibration_split=test[:30]")
    assert code == 0, err
    assert "11 images" not in out and "30 images of test[:30]" in out
    result = jaxprune.SweepResult.load(FOLDER)
    np.testing.assert_array_equal(result.labels, ARRAYS["labels"][30:])
    assert result.about["overlaps"] == ["chosen on the images reported"]


def test_a_file_without_test_images(script):
    """Says which splits there are, and takes those, in parts or several together."""
    names = {"images": "validation_images", "labels": "validation_labels"}
    np.savez("other.npz", **{names.get(name, name): ARRAYS[name] for name in ARRAYS})
    flags = [OWN[0], "--data=other.npz", "--ks=0,4"]
    for flag, which in (("rank_split", "train[30%:]+validation"),
                        ("eval_split", "validation[-40:]")):  # fmt: skip
        code, _, err = script(sweep, *flags)
        assert code == 2 and err.count("\n") == 1
        line = f"error: --{flag}: unknown split 'test'; choices: train, validation"
        assert err.startswith(line)
        flags.append(f"--{flag}={which}")
    code, out, err = script(sweep, *flags, "--calibration_split=train[:30%]")
    assert code == 0, err
    assert "40 of the images reported" not in out
    result = jaxprune.SweepResult.load(FOLDER)
    np.testing.assert_array_equal(result.labels, ARRAYS["labels"][20:])
    assert result.about["fill_facts"]["images"] == 9
    assert result.about["overlaps"] == ["ranked and chosen on the images reported"]
    code, _, err = script(sweep, *flags, "--calibration_split=train+validation[:21]")
    assert code == 2 and "holds 1 images of --eval_split=validation[-40:]" in err


def save_folder(place, split, ending="png"):
    """Writes the images of a split into a folder of images."""
    for i, (pixels, label) in enumerate(zip(split.images, split.labels, strict=True)):
        path = place / str(ARRAYS["class_names"][label]) / f"{i}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def test_a_folder_of_some_of_the_classes_by_number(script):
    """Classes 1 and 3 of four; a name that is no class's number is refused."""
    labels = np.where(SPLIT.labels % 2, 3, 1)
    for i, (pixels, label) in enumerate(zip(SPLIT.images, labels, strict=True)):
        path = Path("some") / f"{label:02d}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    flags = ("--rank_split=train[40:]", "--eval_split=train[40:]", "--fill=zero")
    own = (OWN[0], "--data=some", "--ks=0,4", *flags)
    code, _, err = script(sweep, *own)
    assert code == 0, err
    result = jaxprune.SweepResult.load(RUN / "sweep-second-abs_mean-zero")
    split = images.load_folder("some", 8, cache_dir="cache/jaxprune")["train"]
    assert result.class_names == ("0", "1", "2", "3")
    np.testing.assert_array_equal(result.labels, np.array([1, 3])[split.labels[40:]])
    Path("some/03").rename("some/04")
    code, _, err = script(sweep, *own, "--workdir=other")
    assert code == 2 and "some has 2 classes, and nets.small:build tells 4" in err


def test_a_folder_of_images(script):
    """Decoded once, at the size of the network's example."""
    save_folder(Path("photos"), SPLIT)
    own = (OWN[0], "--data=photos", "--ks=0,4")
    code, _, err = script(sweep, *own)
    assert code == 2 and "--rank_split: unknown split 'test'; choices: train\n" in err
    assert not Path("cache").exists()  # nothing was decoded before
    flags = ("--rank_split=train[40:]", "--eval_split=train[40:]")
    code, _, err = script(sweep, *own, *flags, "--calibration_split=train[:40]")
    assert code == 0, err
    result = jaxprune.SweepResult.load(FOLDER)
    split = images.load_folder("photos", 8, cache_dir="cache/jaxprune")["train"]
    np.testing.assert_array_equal(result.labels, split.labels[40:])
    assert result.class_names == ("cat", "dog", "owl", "yak")
    assert result.about["fill_facts"]["images"] == 40
    # It was decoded where the command keeps what it decodes.
    assert len([*Path("cache/jaxprune/image-folders").iterdir()]) == 1
    # The same images in another place are those of the run directory, others are not.
    Path("moved").mkdir()
    Path("photos").rename("moved/photos")
    fits = ("--calibration_split=train[:40]", f"--workdir={RUN}")
    moved = (OWN[0], "--data=moved/photos", "--ks=0,4", *flags, *fits)
    code, _, err = script(sweep, *moved)
    assert code == 0, err
    code, _, err = script(sweep, *moved, "--image_size=9")
    assert code == 2 and "dataset is sha256:" in err
    Path("moved/photos/cat/0.png").rename("moved/photos/cat/zero.png")
    code, _, err = script(sweep, *moved)
    assert code == 2 and "dataset is sha256:" in err and err.count("\n") == 1


def test_a_folder_of_splits_at_another_size(script):
    for name in ("train", "val"):
        save_folder(Path("photos") / name, SPLIT, "jpg")
    flags = (OWN[0], "--data=photos/", "--image_size=12", "--rank_split=validation",
             "--eval_split=validation")  # fmt: skip
    code, _, err = script(sweep, *flags, "--ks=0,4")
    assert code == 0, err
    _, _, logits = build()
    split = images.load_folder("photos", 12, cache_dir="cache/jaxprune")["validation"]
    result = jaxprune.SweepResult.load(FOLDER)
    scaled = split.images * np.float32(50) + np.float32([100, 90, 80])
    expected = logits(build()[1], scaled).argmax(-1)
    np.testing.assert_array_equal(result.predictions[0], expected)
    assert result.about["fill_facts"]["images"] == len(SPLIT)


BAD_FOLDERS = [
    (
        ["--data=photos", "--image_size=0"],
        "--image_size=0: 0 is not a positive integer",
    ),
    (["--data=photos", "--image_size=x"], "image_size"),
    (["--data=my.npz", "--image_size=8"], "of a folder of images, and --data names my"),
    (["--data=digits", "--image_size=8"], "of images, and --data names digits"),
    (["--image_size=8"], "of a folder of images, and --data names none"),
    (["--data=photos"], "photos has 3 classes, and nets.small:build tells 4 apart"),
    (["--data=./nets"], "nets holds no images: each lies in the subfolder"),
    (["--data=wide", "--model=nets.small:wide"], "wide has images [8, 8, 3], and ne"),
    (
        ["--data=photos", "--model=any.keras"],
        "any size: say which with --image_size",
    ),
]


@pytest.mark.parametrize(
    ("arguments", "message"), BAD_FOLDERS, ids=[" ".join(b[0]) for b in BAD_FOLDERS]
)
def test_bad_folders(script, arguments, message):
    some = SPLIT.labels < 3
    three = SimpleNamespace(images=SPLIT.images[some], labels=SPLIT.labels[some])
    save_folder(Path("photos"), three)
    save_folder(Path("wide"), SPLIT)
    if "--model=any.keras" in arguments:
        saved("any.keras", shape=(None, None, 3))
    code, out, err = script(sweep, OWN[0], *arguments)
    assert code == 2 and message in err and err.count("\n") == 1
    assert not Path("runs").exists() and not out
    assert not Path("cache").exists()


def test_images_by_the_name_of_a_dataset(script, monkeypatch):
    Path("nets/digits.py").write_text(
        SOURCE.replace("8, 8, 3", "28, 28, 1")
        .replace("Dense(4", "Dense(10")
        .replace("np.float32([670, 34, 679, -716]) / 9", "np.zeros(10, np.float32)")
    )
    flags = ("--model=nets.digits:build", "--data=digits", "--pixel_std=255")
    code, out, err = script(sweep, *flags, "--ks=0,4", "--eval_split=test[:200]")
    assert code == 0, err
    assert "512 images of train[:512]" in out
    conf = json.loads(Path("runs/nets.digits.build/config.json").read_text())
    assert conf["dataset"] == "digits"
    code, _, err = script(sweep, OWN[0], "--data=digits", "--workdir=new")
    assert code == 2 and "has images [28, 28, 1], and nets.small:build takes" in err


BAD = [
    (sweep, ["--model=nets.small:buidl"], "function of nets.small 'buidl'; did you m"),
    (sweep, ["--model=nets.smal:build"], "there is no module nets.smal in "),
    (sweep, ["--model=nest.small:build"], "there is no module nest in "),
    (sweep, ["--model=nets/small.py:build"], "is my_package.my_module:build"),
    (sweep, ["--model=nets.small:"], "is my_package.my_module:build"),
    (sweep, ["--model=nets.small:a_number"], "must be a function, got a int"),
    (sweep, ["--model=nets.small:takes"], "TypeError: <lambda>() missing 1"),
    (sweep, ["--model=nets.small:three"], "got a tuple of 3: Net, dict, ndarray"),
    (sweep, ["--model=nets.small:none"], "call), got a NoneType"),
    (sweep, ["--model=nets.small:not_linen"], "must be a flax.linen Module, got a bui"),
    (
        sweep,
        ["--model=nets.others:bare_nnx"],
        "got a flax.nnx Module: jaxprune.from_nnx(model)",
    ),
    (
        sweep,
        ["--model=nets.others:bare_equinox"],
        "got an Equinox module: jaxprune.from_equinox(model)",
    ),
    (
        sweep,
        ["--model=nets.others:a_layer"],
        "got a Keras layer: jaxprune.from_keras(keras.Seq",
    ),
    (sweep, ["--model=nets.others:no_example"], "must have an example of the images"),
    (sweep, ["--model=nets.others:of_bytes"], "float32 images [1, H, W, C], which is"),
    (sweep, ["--model=none.keras"], "there is no file none.keras"),
    (sweep, ["--model=bad.h5"], "Keras cannot read bad.h5"),
    (
        sweep,
        ["--model=bad.weights.h5"],
        "holds weights alone, without the arch",
    ),
    (sweep, ["--model=nets.small:empty"], "hold no floating-point array"),
    (sweep, ["--model=nets.small:unlike"], "does not run on the example"),
    (sweep, ["--model=nets.small:no_params"], "with a collection 'params'"),
    (sweep, ["--model=nets.small:no_call"], "Net cannot be called without 'train'"),
    (sweep, ["--model=nets.small:an_array"], "arguments must be JSON-able"),
    (sweep, ["--model=nets.small:no_logits"], "logits [N, classes], got [2, 8, 8, 3]"),
    (sweep, ["--model=nets.small:in_bytes"], "float32 images [1, H, W, C], which is"),
    (sweep, ["--model=nets.small:no_batch"], "got [8, 8, 3] of float32"),
    (sweep, ["--model=nets.small:raises"], "RuntimeError: no weights here (/"),
    (sweep, ["--model=nets.small:ends"], "failed: SystemExit: usage"),
    (sweep, ["--model=nets.broken:build"], "importing nets.broken failed: NameError:"),
    (sweep, ["--model=nets.needs:build"], "No module named 'nowhere_to_be_found'"),
    (sweep, [OWN[0], "--data=no.npz"], "--data: there is no file no.npz"),
    (sweep, [OWN[0], "--data=./nest"], "--data: there is no file or folder ./nest"),
    (sweep, [OWN[0]], "say on which images with --data"),
    (sweep, [*OWN, "--widths=3"], "--widths is an experiment's"),
    (sweep, [*OWN, "--epochs=3"], "--epochs is an experiment's"),
    (sweep, [*OWN, "--dataset=digits"], "--dataset is an experiment's"),
    (sweep, [*OWN, "--pixel_std=0"], "--pixel_std must be positive"),
    (sweep, [*OWN, "--pixel_mean=1,2"], "takes 1 or 3 numbers"),
    (sweep, [*OWN, "--pixel_mean=dark"], "takes comma-separated numbers"),
    (sweep, [*OWN, "--layer=third"], "choices: first, second"),
    (sweep, [*OWN, "--seeds=0,1"], "--seeds trains a network for each"),
    (sweep, ["--model=digits_pair", "--data=my.npz"], "--data is for a network of you"),
    (train, [*OWN], "nets.small:build comes trained"),
    (
        compact,
        [*TUNED, "--finetune_split=val"],
        "--finetune_split: unknown split 'v",
    ),
    (
        compact,
        [*TUNED, "--finetune_batch_size=31"],
        "30 images do not fill a batch of",
    ),
    (compact, [*TUNED, "--finetune_split=test"], "holds 60 images of --eval_split=tes"),
    (
        compact,
        [*OWN, "--k=1", "--finetune_split=train"],
        "nothing without --finetune_",
    ),
    (bench, [*OWN], "measures --model=cifar_vgg only"),
]


@pytest.mark.parametrize(
    ("module", "arguments", "message"), BAD, ids=[" ".join(b[1][-1:]) for b in BAD]
)
def test_bad_input(script, module, arguments, message):
    Path("nets/broken.py").write_text("x = 1\ny = undefined\n")
    Path("nets/needs.py").write_text("import nowhere_to_be_found\n")
    for name in ("bad.h5", "bad.weights.h5"):
        Path(name).write_text("no file of Keras's")
    if not any(a.startswith("--data") for a in arguments) and arguments != [OWN[0]]:
        arguments = [*arguments, "--data=my.npz"]
    code, out, err = script(module, *arguments)
    assert code == 2, err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert message in err
    assert not Path("runs").exists() and not out


def test_the_place_in_the_user_s_code_is_named(script, tmp_path):
    Path("nets/broken.py").write_text("x = 1\ny = undefined\n")
    _, _, err = script(sweep, "--model=nets.broken:build", "--data=my.npz")
    assert f"({tmp_path}/nets/broken.py, line 2)" in err
    line = SOURCE.splitlines().index(
        '    raise RuntimeError("no weights here\\nand more")'
    )
    _, _, err = script(sweep, "--model=nets.small:raises", "--data=my.npz")
    assert f"({tmp_path}/nets/small.py, line {line + 1})" in err


def test_a_file_that_is_no_such_file_is_named(script):
    Path("bad.npz").write_text("hello")
    code, _, err = script(sweep, OWN[0], "--data=bad.npz")
    assert code == 2 and "bad.npz is no .npz file" in err and err.count("\n") == 1
    np.savez("bad.npz", **{**ARRAYS, "images": ARRAYS["images"][:, :4]})
    code, _, err = script(sweep, OWN[0], "--data=bad.npz")
    assert code == 2 and "bad.npz: images are [4, 8, 3], train_images [8, 8, 3]" in err
