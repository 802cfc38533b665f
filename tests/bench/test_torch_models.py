"""The twins in PyTorch compute, count, recalibrate and train as the Flax networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench import __main__ as bench
from jaxprune.cli import finetuning, process, run_directory
from jaxprune.cli.settings import EpochSettings
from jaxprune.compaction.network import as_compact
from jaxprune.costs.multiply_adds import multiply_adds
from jaxprune.graph.network import Network
from jaxprune.recipes.models import CifarResNet, CifarVGG
from random_data import random_variables

torch = pytest.importorskip("torch")

from experiments.bench import torch_models  # noqa: E402 - after the skip
from experiments.bench.shrink import torch_training  # noqa: E402

VGG = CifarVGG(widths=range(2, 15), dense=(6, 5, 4, 10))
RESNET = CifarResNet(14, (3, 4, 6), 10)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(0, 1, (5, 32, 32, 3)), jnp.float32)


def channels_first(images):
    return torch.from_numpy(np.array(images).transpose(0, 3, 1, 2).copy())


@pytest.fixture(scope="module", params=[VGG, RESNET], ids=["vgg", "resnet"])
def pair(request, images):
    """A Flax network, its variables, and the twin."""
    model = request.param
    variables = random_variables(model, images)
    return model, variables, torch_models.Twin(model, variables, images[:1]).eval()


def test_the_same_logits(pair, images):
    model, variables, twin = pair
    with torch.inference_mode():
        logits = twin(channels_first(images)).numpy()
    expected = np.asarray(model.apply(variables, images, train=False))
    # Sums of up to 126 products in another order, through 17 layers: float32's
    # rounding, 6e-8, some ten times over.
    np.testing.assert_allclose(logits, expected, atol=2e-6 * np.abs(expected).max())


def test_the_same_counts(pair, images):
    model, variables, twin = pair
    expected = multiply_adds(Network(model.apply, variables, images[:1]))
    assert torch_models.multiply_adds(twin, channels_first(images[:1])) == expected
    assert torch_models.multiply_adds(twin, channels_first(images)) == 5 * expected
    leaves = jax.tree.leaves(variables)
    assert torch_models.parameters(twin) == sum(leaf.size for leaf in leaves)


def test_layers_have_flax_names(pair):
    _, variables, twin = pair
    names = {
        "/".join(key.key for key in path[:-1])
        for path, _ in jax.tree_util.tree_flatten_with_path(variables["params"])[0]
    }
    assert set(twin.layers) == names
    inside = {id(module) for module in twin.modules()}
    assert all(id(layer) in inside for layer in twin.layers.values())


NETWORK = (
    "--model=cifar_resnet", "--depth=8", "--widths=3,4,6", "--dataset=digits",
    "--pixel_mean=40", "--pixel_std=255", "--train_batch_size=32",
    "--train_split=train[:96]", "--learning_rate=0.004",
)  # fmt: skip


@pytest.fixture
def digits(tmp_path, monkeypatch):
    """A job on digits, with variables and the twin."""
    monkeypatch.chdir(tmp_path)
    argv = [bench.__name__, "--nocompilation_cache", *NETWORK]
    with jax.numpy_dtype_promotion("standard"):
        settings = process.parse(bench.Settings, argv)
        run = run_directory.load(settings, train_imported=False)
        variables = random_variables(run.model, run.scale(run.image))
        yield (
            run,
            variables,
            torch_models.Twin(run.model, variables, run.scale(run.image)),
        )


def as_it_is(run, variables):
    """The network as a compact one, of which nothing is cut."""
    x = run.scale(run.image)
    return as_compact(run.whole.with_params(variables).with_example(x))


def test_the_same_statistics_when_recalibrated(digits):
    """In one batch; PyTorch's variance is that of a sample, n / (n - 1) as large."""
    run, variables, twin = digits
    split = run.splits["train"].select(np.arange(32))
    tuning = finetuning.Finetuning(run, EpochSettings())
    expected = tuning.recalibrated(as_it_is(run, variables), split)[0].variables
    before = {key: value.clone() for key, value in twin.state_dict().items()}
    found = torch_training.recalibrated(run, twin, split, 32)
    for name, side in {"bn": 28, "stage2_block0/bn1": 14}.items():
        stats = expected["batch_stats"]
        for key in name.split("/"):
            stats = stats[key]
        norm, n = found.layers[name], 32 * side**2
        # Float32 sums of thousands of numbers.
        np.testing.assert_allclose(norm.running_mean, stats["mean"], atol=1e-5)
        np.testing.assert_allclose(
            norm.running_var, stats["var"] * n / (n - 1), rtol=1e-4
        )
        assert norm.momentum == pytest.approx(0.1) and not norm.training
    for key, value in twin.state_dict().items():
        assert torch.equal(value, before[key])


def test_dropout_is_off_when_recalibrated(images):
    """Where it is on, no two calls give the same statistics."""
    twin = torch_models.Twin(VGG, random_variables(VGG, images), images[:1])

    class Run:
        class config:
            train_batch_size, pixel_mean, pixel_std = 4, (0.0,), (255.0,)

        training = config

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (9, 32, 32, 3), np.uint8)
    split = torch_training.Split(
        pixels, np.arange(9)[:, None], np.arange(9), tuple("abcdefghi")
    )
    first, second = (torch_training.recalibrated(Run, twin, split, 4) for _ in range(2))
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key])
    # Whole batches alone: the ninth image plays no part.
    third = torch_training.recalibrated(Run, twin, split.select(np.arange(8)), 4)
    for key, value in first.state_dict().items():
        assert torch.equal(value, third.state_dict()[key])


@pytest.mark.parametrize(
    "batch_norm", [pytest.param("training", marks=pytest.mark.slow), "evaluation"]
)
def test_the_same_fine_tuning(digits, batch_norm):
    """Both go the same way: images, flips, losses, rates."""
    run, variables, twin = digits
    other = jax.tree.map(lambda leaf: leaf * np.float32(0.9), variables)
    student = torch_models.Twin(run.model, other, run.scale(run.image))
    way = finetuning.Way(0.002, batch_norm)
    settings = EpochSettings(
        finetune_epochs=2, distill=True, distill_weight=0.7, distill_temperature=2.0
    )
    tuning = finetuning.Finetuning(run, settings)
    small, whole = (as_it_is(run, v) for v in (other, variables))
    tuned = tuning.tuned(small, whole.network, way)
    ours = tuned.variables
    theirs = torch_training.finetuned(tuning, student, twin.eval(), way)
    before, after = (
        (
            tuning.loss(ours_then, whole.network),
            torch_training.finetuning_loss(tuning, theirs_then, twin),
        )
        for ours_then, theirs_then in ((small, student), (tuned, theirs))
    )
    np.testing.assert_allclose(*before, rtol=1e-4)
    # Adam's first steps have the size of the rate, whatever the gradient's: where that
    # is nearly zero, rounding decides. Single weights may differ, their sum hardly.
    np.testing.assert_allclose(*after, rtol=1e-3)
    gentle = batch_norm == "evaluation"
    if gentle:  # else BatchNorm's statistics lag behind
        assert after[0] < before[0]
    stats = (v["batch_stats"]["bn"]["mean"] for v in (other, ours))
    assert gentle == np.array_equal(*stats)
    for name in ("conv", "dense", "stage1_block0/conv1"):
        params, start = ours["params"], other["params"]
        for key in name.split("/"):
            params, start = params[key], start[key]
        weight = theirs.layers[name].weight.detach().numpy()
        weight = weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T
        moved = np.asarray(params["kernel"]) - start["kernel"]
        difference = np.linalg.norm(weight - np.asarray(params["kernel"]))
        assert difference < 0.02 * np.linalg.norm(moved)
    assert torch.equal(
        student.layers["dense"].weight,
        torch.from_numpy(other["params"]["dense"]["kernel"].T.copy()),
    )


def test_accuracy_by_hand(digits):
    run, variables, twin = digits
    split = run.splits["test"].select(np.arange(50))
    logits = run.apply(variables, jnp.asarray(split.read(np.arange(50))))
    right = np.asarray(logits).argmax(-1) == split.labels
    assert torch_training.accuracy(run, twin, split) == pytest.approx(right.mean())
