"""A network of residual blocks through the scripts, with and without a teacher."""

import json

import numpy as np
import pytest

import jaxprune
from jaxprune.cli.commands import compact, sweep, train
from jaxprune.recipes import config
from jaxprune.recipes.recipe import RECIPES
from jaxprune.results.result import SweepResult
from run_directories import plant_run

NETWORK = (
    "--model=cifar_resnet", "--depth=8", "--widths=3,4,6", "--dataset=digits",
    "--pixel_mean=0", "--pixel_std=255", "--epochs=1", "--train_batch_size=32",
    "--train_split=train[:96]",
)  # fmt: skip
QUICK = ("--eval_split=test[:60]", "--rank_split=test[:60]", "--repeats=1",
         "--latency_batches=1")  # fmt: skip


@pytest.fixture
def run(script, tmp_path, standard_promotion):
    """Runs a script in the run directory of a network."""
    workdir = tmp_path / "run"
    plant_run(workdir, model="cifar_resnet")

    def call(module, *arguments):
        return script(module, f"--workdir={workdir}", *arguments), workdir

    return call


@pytest.mark.slow
def test_sweep_and_compact_prune_the_last_inner_convolution(run):
    (code, out, err), workdir = run(sweep, *QUICK[:2], "--ks=0,2,4")
    assert code == 0, err
    folder = workdir / "sweep-stage3_block0.conv1-mean-zero"
    assert SweepResult.load(folder).about["tap"] == "conv"
    (code, out, err), _ = run(compact, "--k=4", *QUICK)
    assert code == 0, err
    assert "60 images: 0 predictions differ" in out
    small = jaxprune.load_compact(workdir / "compact-stage3_block0.conv1-mean-zero-k4")
    assert len(small.layers["stage3_block0/conv1"].kept) == 2
    kernel = small.variables["params"]["stage3_block0"]["conv2"]["kernel"]
    assert kernel.shape == (3, 3, 2, 6)
    logits = small(np.zeros((2, 28, 28, 1), np.float32))
    assert logits.shape == (2, 10)


@pytest.mark.slow
def test_an_inner_layer_recalibrated_and_taught(run):
    (code, out, err), workdir = run(
        compact, "--layer=stage2_block0/conv1", "--k=2", *QUICK, "--recalibrate",
        "--finetune_epochs=2", "--finetune_images=64", "--distill",
        "--distill_temperature=2", "--distill_weight=0.5",
    )  # fmt: skip
    assert code == 0, err
    assert "recalibrated over 96" in out and "fine-tuned, epoch 2/2" in out
    folder = workdir / "compact-stage2_block0.conv1-mean-zero-k2"
    spec = json.loads((folder / "spec.json").read_text())
    assert spec["about"]["after_the_proof"] == {
        "recalibrated": True, "finetune_epochs": 2, "finetune_split": "train[:96]",
        "finetune_images": 64, "finetune_batch_size": 32,
        "finetune_learning_rate": pytest.approx(2e-4), "batch_norm": "evaluation",
        "distill_temperature": 2.0, "distill_weight": 0.5,
    }  # fmt: skip
    small = jaxprune.load_compact(folder)
    assert small.proof is None
    block = small.variables["params"]["stage2_block0"]
    assert block["conv1"]["kernel"].shape == (3, 3, 3, 2)
    assert folder.with_suffix(".png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--distill"], "--distill does nothing without --finetune_epochs"),
        (["--distill_weight=1"], "--distill_weight does nothing without --finetune"),
        (["--finetune_images=64"], "--finetune_images does nothing without --finetune"),
        (["--finetune_epochs=1", "--distill_temperature=4"], "without --distill"),
        (
            ["--finetune_epochs=1", "--distill", "--distill_temperature=0"],
            "a temperature is positive",
        ),
        (
            ["--finetune_epochs=1", "--distill", "--distill_weight=1.1"],
            "distill_weight",
        ),
        (["--finetune_epochs=1", "--finetune_images=0"], "finetune_images"),
        (["--finetune_epochs=1", "--finetune_images=97"], "train[:96] has 96"),
        (["--finetune_epochs=1", "--finetune_images=31"], "do not fill a batch of 32"),
        (["--depth=14"], "depth is 8, not 14"),
    ],
)
def test_bad_input(run, arguments, message):
    (code, _, err), workdir = run(compact, "--k=1", *QUICK, *arguments)
    assert code == 2
    assert message in err and err.startswith("error: ") and err.count("\n") == 1
    assert not list(workdir.glob("compact*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*NETWORK, "--depth=9"], "6n + 2 (8, 14, 20), got 9"),
        ([*NETWORK, "--depth=2"], "depth"),
        ([*NETWORK, "--widths=3,4"], "takes 3 positive numbers"),
        ([*NETWORK, "--dense=3"], "takes 0 positive numbers"),
        (["--model=digits_pair", "--depth=20"], "digits_pair takes no --depth"),
    ],
)
@pytest.mark.parametrize("module", [train, sweep])
def test_a_network_that_there_is_not(script, tmp_path, module, arguments, message):
    code, _, err = script(module, *arguments)
    assert code == 2 and message in err and err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_configuration_that_lacks_a_field(tmp_path):
    path = tmp_path / "config.json"
    config.write(RECIPES["digits_pair"].config, tmp_path)
    text = path.read_text()
    path.write_text(text.replace('  "seed": 0,\n', ""))
    assert path.read_text() != text
    with pytest.raises(jaxprune.InputError, match="it lacks seed"):
        config.read(path)
