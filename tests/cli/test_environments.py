"""Commands under a locale, a style or options of JAX that are not theirs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from random_data import random_split

ROOT = Path(__file__).parents[2]
SOURCE = """
import jax, numpy as np
from flax import linen as nn


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        return nn.Dense(2)(x.mean((1, 2)))


def build():
    x = np.zeros((1, 6, 6, 1), np.float32)
    return Net(), Net().init(jax.random.key(0), x), x, {}
"""
STRICT = {
    "JAX_DISABLE_JIT": "1",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_TRANSFER_GUARD": "disallow",
    "LC_ALL": "C",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "net.py").write_text(SOURCE)
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfont.size: 40\n")
    split = random_split(n=120, shape=(6, 6, 1), classes=2)
    np.savez(
        tmp_path / "my.npz", images=split.images, labels=split.labels,
        class_names=np.array(["été", "冬"]),
    )  # fmt: skip
    return tmp_path


def run(folder, *arguments, options=(), **variables):
    environment = {**os.environ, **variables, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *options, "-m", "jaxprune", *arguments], cwd=folder,
        env=environment, capture_output=True, encoding="utf-8", errors="replace",
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("-O",), ("-OO",)])
def test_results_are_the_same(folder, options):
    own = ("--model=net:build", "--data=my.npz")
    tables = []
    for name, how, variables in (("plain", (), {}), ("other", options, STRICT)):
        ran = run(folder, "sweep", *own, f"--workdir={name}", options=how, **variables)
        assert ran.returncode == 0, ran.stderr
        (table,) = (folder / name).glob("sweep-*/sweep.csv")
        tables.append(table.read_bytes())
        assert (folder / name / "report.html").exists()
    assert tables[0] == tables[1]
    quick = ("--speedup=1.3", "--ladder=", "--repeats=2", "--latency_batches=2")
    ran = run(
        folder, "shrink", *own, "--workdir=other", *quick, options=options, **STRICT
    )
    assert ran.returncode == 0, ran.stderr


PARSED = """
import argparse, sys
from absl import flags

flags.DEFINE_string("model", "mine", "Which network.")
flags.DEFINE_integer("batch_size", 7, "Images in a batch.")
flags.DEFINE_bool("wandb", True, "As this command has it.")
flags.FLAGS(sys.argv)
parser = argparse.ArgumentParser()
parser.add_argument("--data", default="mine")
assert parser.parse_args().data == flags.FLAGS.model == "mine"
"""


def test_a_module_with_flags_of_its_own(folder):
    with open(folder / "net.py", "a") as file:
        file.write(PARSED)
    own = ("--model=net:build", "--data=my.npz", "--ks=0,1", "--batch_size=60")
    ran = run(folder, "sweep", *own, "--nowandb", "--workdir=made")
    assert ran.returncode == 0, ran.stderr
    with open(folder / "net.py", "a") as file:
        file.write("flags.DEFINE_string('layer', None, 'One.', required=True)\n")
        file.write("flags.FLAGS(sys.argv)\n")
    ran = run(folder, "sweep", *own)
    assert ran.returncode == 2 and ran.stderr.count("\n") == 1, ran.stderr
    assert "importing net failed: IllegalFlagValueError: flag --layer" in ran.stderr


def test_a_platform_that_is_not_here(folder):
    own = ("--model=net:build", "--data=my.npz")
    ran = run(folder, "sweep", *own, JAX_PLATFORMS="tpu")
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: JAX finds no device for JAX_PLATFORMS=tpu: ")
    assert ran.stderr.count("\n") == 1


def test_a_folder_that_has_gone(folder):
    gone = folder / "gone"
    gone.mkdir()
    command = [sys.executable, "-m", "jaxprune", "sweep", "--model=digits_pair"]
    ran = subprocess.run(
        ["bash", "-c", 'cd "$0" && rm -r "$0" && exec "$@"', str(gone), *command],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 2, ran.stderr
    assert ran.stderr.startswith("error: ") and ran.stderr.count("\n") == 1
    shutil.rmtree(gone, ignore_errors=True)
