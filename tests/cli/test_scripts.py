"""The scripts as a user types them: outputs, bad input, kill and resume."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import keras_files
from jaxprune._base import manifest
from jaxprune.cli.commands import plot, sweep, train
from jaxprune.recipes.models import CifarVGG, PairCNN
from jaxprune.results.result import SweepResult
from jaxprune.training import checkpoint
from random_data import random_variables
from run_directories import FOLDER, SMALL, plant_cifar10

pytestmark = pytest.mark.usefixtures("standard_promotion")


def files(folder="."):
    return {
        str(path): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file()
    }


def training_log(workdir):
    return [
        json.loads(x) for x in Path(workdir, "train.jsonl").read_text().splitlines()
    ]


def fails(script, module, *arguments):
    """Runs a command that must fail: one clear line, code 2, nothing changed."""
    before = files()
    code, _, err = script(module, *arguments)
    assert code == 2, err
    lines = err.strip().splitlines()
    assert lines[-1].startswith("error: ") and "Traceback" not in err
    after = files()
    assert before == after
    return lines[-1]


def refuses_what_was_made_otherwise(script):
    """In the run directory of a finished sweep."""
    line = fails(script, sweep, "--model=digits_pair", "--epochs=3", "--seed=1")
    assert "epochs is 2, not 3" in line and "seed is 0, not 1" in line
    line = fails(script, train, "--model=mnist_pair", "--workdir=runs/digits_pair")
    assert "model is digits_pair, not mnist_pair" in line
    line = fails(script, sweep, "--model=digits_pair", "--eval_split=test[:150]")
    assert "holds another sweep: " in line
    assert "eval_split is test, not test[:150]" in line

    # A damaged checkpoint.
    newest = Path("runs/digits_pair/checkpoints/2/variables")
    largest = max(
        (p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )
    largest.write_bytes(largest.read_bytes()[:100])
    line = fails(script, sweep, "--model=digits_pair")
    assert "checkpoints/2 is damaged" in line


@pytest.mark.slow
def test_from_nothing_to_the_pictures(script):
    code, out, _ = script(sweep, *SMALL)
    assert code == 0
    for word in ("lowest", "highest", "K = 0", "within one point", str(FOLDER)):
        assert word in out
    names = {path.name for path in FOLDER.iterdir()}
    assert names == {
        "sweep.csv", "sweep.npz", "summary.json", "accuracy_vs_k.png",
        "feature_maps.png", "scores.png", "confusion.png",
    }  # fmt: skip
    top = {path.name for path in Path("runs/digits_pair").iterdir()}
    assert top == {
        "config.json", "checkpoints", "train.jsonl", "training.png", FOLDER.name,
        "report.html",
    }  # fmt: skip
    summary = json.loads((FOLDER / "summary.json").read_text())
    assert summary["n_images"] == 200 and summary["n_channels"] == 8
    assert set(summary["seconds"]) == {"trunk", "head", "compilation"}
    for key in (
        "model", "dataset", "layer", "criterion", "fill", "tap", "rank_split",
        "eval_split", "baseline_accuracy", "largest_k_within_1_point",
        "largest_k_within_5_points", "device", "versions", "commit", "weights",
    ):  # fmt: skip
        assert key in summary
    lines = training_log("runs/digits_pair")
    assert [line["epoch"] for line in lines] == [1, 2]

    # The second run finds the network and gives the same predictions.
    first = SweepResult.load(FOLDER)
    code, out, _ = script(sweep, "--model=digits_pair", "--batch_size=64")
    assert code == 0 and "no checkpoint" not in out
    again = SweepResult.load(FOLDER)
    np.testing.assert_array_equal(first.predictions, again.predictions)

    # Pictures again, from the saved files alone.
    pictures = [*FOLDER.glob("*.png"), Path("runs/digits_pair/training.png")]
    for path in pictures:
        path.unlink()
    code, out, _ = script(
        plot,
        "--workdir=runs/digits_pair",
        "--order=rank",
        "--normalize=each",
        "--confusion_k=3",
    )
    assert code == 0 and all(path.exists() for path in pictures)

    # Every fill, another layer and criterion, fewer K.
    code, out, _ = script(
        sweep, "--model=digits_pair", "--fill=all", "--layer=conv2", "--criterion=mean",
        "--ks=0:6:2", "--rank_split=train[:100]", "--mask_chunk=2",
    )  # fmt: skip
    assert code == 0
    for fill in ("zero", "bias", "mean", "drop", "linear"):
        folder = Path(f"runs/digits_pair/sweep-conv2-mean-{fill}")
        assert SweepResult.load(folder).ks == (0, 2, 4)
    assert Path("runs/digits_pair/fills-conv2-mean.png").exists()

    refuses_what_was_made_otherwise(script)


BAD = [
    (sweep, ["--model=cifar_vg"], "did you mean 'cifar_vgg'"),
    (sweep, [], "say which network with --model"),
    (
        sweep,
        ["--model=digits_pair", "--dataset=digit_pair"],
        "did you mean 'digits_pair'",
    ),
    (sweep, ["--model=cifar_vgg", "--dataset=digits"], "at least 32 pixels"),
    (sweep, [*SMALL, "--layer=conv9"], "choices: conv1, conv2, conv3"),
    (sweep, [*SMALL, "--layer=bn1"], "unknown layer 'bn1'"),
    (sweep, [*SMALL, "--criterion=abs"], "choices: mean, abs_mean"),
    (sweep, [*SMALL, "--fill=zeros"], "did you mean 'zero'"),
    (sweep, [*SMALL, "--tap=relus"], "did you mean 'relu'"),
    (sweep, [*SMALL, "--ks=0:9"], "0 .. 7"),
    (sweep, [*SMALL, "--ks=3,1"], "strictly ascending"),
    (sweep, [*SMALL, "--ks=a:b"], "--ks takes"),
    (sweep, [*SMALL, "--ks=5:5"], "empty"),
    (sweep, [*SMALL, "--eval_split=test[:0]"], "empty"),
    (sweep, [*SMALL, "--eval_split=tests"], "did you mean 'test'"),
    (sweep, [*SMALL, "--select_split=train[:0]"], "empty"),
    (sweep, [*SMALL, "--rank_split=rain"], "did you mean 'train'"),
    (sweep, [*SMALL, "--max_drop=2"], "max_drop"),
    (sweep, [*SMALL, "--seeds=3"], "two or more different numbers"),
    (sweep, [*SMALL, "--seeds=0,1,0"], "two or more different numbers, got 0,1,0"),
    (sweep, [*SMALL, "--seeds=0,one"], "two or more different numbers"),
    (sweep, [*SMALL, "--seeds=0,1", "--seed=2"], "without --seed"),
    (sweep, ["--model=nope", "--seeds=0,1"], "unknown model 'nope'; choices:"),
    (sweep, [*SMALL, "--seeds=0,1", "--layer=conv9"], "choices: conv1, conv2, conv3"),
    (sweep, [*SMALL, "--batch_size=201"], "more than the split's 200"),
    (sweep, [*SMALL, "--batch_size=0"], "batch_size"),
    (sweep, [*SMALL, "--nonsense=1"], "nonsense"),
    (sweep, [*SMALL, "nonsense"], "unknown argument 'nonsense'"),
    (sweep, [*SMALL, "--epochs=two"], "epochs"),
    (sweep, [*SMALL, "--pixel_std=0"], "must be positive"),
    (sweep, [*SMALL, "--pixel_mean=1,2,3"], "takes 1 or 2 numbers"),
    (sweep, [*SMALL, "--pixel_mean=black"], "comma-separated numbers"),
    (sweep, ["--model=digits_pair", "--widths=4,6"], "takes 3 positive numbers"),
    (sweep, [*SMALL, "--dtype=float16"], "did you mean 'bfloat16'"),
    (sweep, [*SMALL, "--init_from=no.h5"], "there is no file no.h5"),
    (train, [*SMALL, "--train_split=train[:30]"], "fewer than one batch of 50"),
    (train, [*SMALL, "--train_pairs=3"], "at least 10 pairs"),
    (train, [*SMALL, "--learning_rate=-1"], "learning_rate"),
    (train, [*SMALL, "--cache_dir=/dev/null", "--dataset=mnist_pair"], "null"),
    (plot, [], "say which run with --workdir"),
    (plot, ["--workdir=nowhere"], "holds no sweep"),
    (plot, ["--workdir=.", "--order=size"], "choices: channel, rank"),
]


@pytest.mark.parametrize(
    ("module", "arguments", "message"), BAD, ids=[" ".join(b[1][-1:]) for b in BAD]
)
def test_bad_input(script, monkeypatch, module, arguments, message):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert message in fails(script, module, *arguments)


def test_a_loss_that_is_not_finite(script):
    code, _, err = script(train, *SMALL, "--learning_rate=1e30", "--warmup_epochs=0")
    assert code == 2
    assert "the loss is" in err and "at step" in err and "Traceback" not in err
    assert checkpoint.latest(Path("runs/digits_pair/checkpoints")) is None


@pytest.mark.slow
def test_a_full_disk_while_saving_the_sweep(script, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device", "sweep.npz")

    monkeypatch.setattr(np, "savez_compressed", full)
    code, _, err = script(sweep, *SMALL)
    assert code == 2 and "No space left on device" in err and "Traceback" not in err
    assert not FOLDER.exists()
    assert checkpoint.latest(Path("runs/digits_pair/checkpoints")) == 2


@pytest.mark.slow
def test_a_keras_file(script, tmp_path):
    """Sweeps imported weights as they are, and keeps them."""
    vgg = CifarVGG(widths=range(2, 15), dense=(6, 5, 4, 10))
    images = jax.numpy.zeros((1, 32, 32, 3))
    theirs = random_variables(vgg, images)
    keras_files.vgg(theirs).save(tmp_path / "model.h5")
    plant_cifar10(tmp_path)
    flags = ["--model=cifar_vgg", "--cache_dir=planted", "--dense=6,5,4"]
    flags.append(f"--widths={','.join(map(str, range(2, 15)))}")
    code, out, err = script(sweep, *flags, "--init_from=model.h5")
    assert code == 0, err
    summary = json.loads(
        Path("runs/cifar_vgg/sweep-conv2d_12-mean-zero/summary.json").read_text()
    )
    assert summary["weights"] == manifest.fingerprint(theirs)
    assert summary["tap"] == "relu"
    code, out, _ = script(sweep, "--model=cifar_vgg", "--cache_dir=planted", "--ks=0,5",
                          "--fill=mean")  # fmt: skip
    assert code == 0 and "checkpoints/0" in out
    # Another file is another configuration; a file of another network is refused.
    others = random_variables(vgg, images, seed=5)
    keras_files.vgg(others).save(tmp_path / "other.h5")
    line = fails(script, sweep, "--model=cifar_vgg", "--cache_dir=planted",
                 "--init_from=other.h5")  # fmt: skip
    assert "holds another configuration: init_from" in line
    line = fails(script, sweep, "--model=cifar_vgg", "--cache_dir=planted",
                 "--init_from=other.h5", "--workdir=new")  # fmt: skip
    assert "/conv2d' does not fit 'conv2d'" in line
    line = fails(script, train, "--model=cifar_vgg", "--cache_dir=planted")
    assert "epochs=0" in line


# A shell's background job ignores Ctrl-C, and so would its children.
HEED_INTERRUPT = """
import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("jaxprune", run_name="__main__", alter_sys=True)
"""


def start(tmp_path, module, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", HEED_INTERRUPT, module, *arguments,
         "--nocompilation_cache"],  # but the tests' own
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "JAX_NUMPY_DTYPE_PROMOTION": "standard"},
    )  # fmt: skip


def wait_for(path, process):
    for _ in range(4000):
        if path.exists() or process.poll() is not None:
            return
        time.sleep(0.05)


@pytest.mark.slow
def test_killed_and_started_again_ends_with_the_same_parameters(script, tmp_path):
    flags = [f for f in SMALL if "epochs" not in f] + ["--epochs=4"]
    assert script(train, *flags, "--workdir=whole")[0] == 0
    process = start(tmp_path, "train", *flags, "--workdir=killed")
    wait_for(tmp_path / "killed" / "checkpoints" / "1", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = checkpoint.latest(Path("killed/checkpoints"))
    assert before is not None and before < 4
    code, out, _ = script(train, *flags, "--workdir=killed")
    assert code == 0 and f"continuing from epoch {before} of 4" in out
    template = random_variables(
        PairCNN(widths=(4, 6, 8), dense=(10, 2)), jax.numpy.zeros((1, 28, 28, 2))
    )
    prints = [
        manifest.fingerprint(
            checkpoint.restore(Path(folder) / "checkpoints", 4, template)[0]
        )
        for folder in ("whole", "killed")
    ]
    assert prints[0] == prints[1]
    lines = training_log("killed")
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]


@pytest.mark.slow
def test_interrupted_says_what_is_kept(tmp_path):
    flags = [f for f in SMALL if "epochs" not in f] + ["--epochs=500"]
    process = start(tmp_path, "train", *flags)
    wait_for(tmp_path / "runs/digits_pair/checkpoints/2", process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    last = err.strip().splitlines()[-1]
    assert (
        "of 500 is kept in" in last and "run the same command again to continue" in last
    )
    assert "Traceback" not in err


def test_exit_code_of_the_real_command(tmp_path):
    command = [sys.executable, "-m", "jaxprune", "sweep", "--model=nope"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert (
        done.stderr.strip().splitlines()[-1].startswith("error: unknown model 'nope'")
    )
    assert "Traceback" not in done.stderr and done.stdout == ""


def test_a_consumer_that_has_gone_is_no_error():
    code = (
        "from jaxprune.cli import process;"
        "from jaxprune.cli.commands.report import Settings;"
        "process.run(lambda settings: print('x' * 10**6))"
    )
    command = f'{sys.executable} -c "{code}" | head -c 1'
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("x", "")
