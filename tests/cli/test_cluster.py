"""Several devices and processes, as the scripts use them."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxprune
from jaxprune.cli import cluster
from jaxprune.cli.commands import shrink, sweep
from jaxprune.cli.process import BAD_INPUT, guard
from jaxprune.results.result import SweepResult
from run_directories import FOLDER, SMALL, plant_run


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


pytestmark = pytest.mark.usefixtures("standard_promotion")


CRITERIA = ("abs_mean", "taylor", "wanda", "oracle")
LINEAR = ("--fill=linear", f"--criterion={','.join(CRITERIA)}", "--oracle_images=50")
RUN = (
    "from jaxprune.cli import process; from jaxprune.cli.commands import sweep;"
    "process.run(sweep.main)"
)


def start(*arguments, code=RUN, cache="--nocompilation_cache"):
    """A script in a process of its own, with the tests' compiled programs."""
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_NUMPY_DTYPE_PROMOTION": "standard",
        "XDG_CACHE_HOME": str(Path("cache").resolve()),
    }
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments, cache],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def free_address():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{s.getsockname()[1]}"


@pytest.mark.slow
def test_two_processes_train_and_sweep_together(script):
    """One result, as of one process: trained over four devices, swept over two each.

    The linear fill is fitted by both, each on its share of the images; so is what
    criteria go by gathered, and losses are measured.
    """
    flags = ("--coordinator=" + free_address(), "--num_processes=2")
    pair = [start(*SMALL, *LINEAR, *flags, f"--process_id={i}") for i in range(2)]
    outputs = [process.communicate(timeout=240) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], outputs
    assert "safe K" in outputs[0][0] and "safe K" not in outputs[1][0]
    folders = [FOLDER.with_name(f"sweep-conv3-{name}-linear") for name in CRITERIA]
    together = [SweepResult.load(folder) for folder in folders]
    # The same weights, swept by one process.
    code, _, err = script(sweep, *SMALL, *LINEAR, "--workdir=again")
    assert code == 0, err
    Path("again/checkpoints").rename("unused")
    Path("runs/digits_pair/checkpoints").rename("again/checkpoints")
    for path in Path("again").glob("sweep-*/*"):
        path.unlink()
    code, _, err = script(sweep, *SMALL, *LINEAR, "--workdir=again")
    assert code == 0, err
    for folder, both in zip(folders, together, strict=True):
        alone = SweepResult.load(Path("again") / folder.name)
        assert alone.about["weights"] == both.about["weights"]
        # float32's sums over other batches; a loss's rise is a difference.
        np.testing.assert_allclose(alone.scores, both.scores, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(alone.predictions, both.predictions)
        np.testing.assert_allclose(alone.cross_entropy, both.cross_entropy, rtol=1e-5)


SHRINK = (
    "--eval_split=test[:61]", "--calibration_split=train[:67]", "--repeats=1",
    "--latency_batches=1", "--multiple_of=1", "--speedup=1.5", "--ladder=",
)  # fmt: skip


@pytest.mark.slow
def test_two_processes_shrink_together(script):
    """The widths, the weights and the scores of one; the first one writes."""
    for folder in ("together", "alone"):
        plant_run(folder, model="cifar_resnet", widths=(4, 6, 8))
    flags = ("--coordinator=" + free_address(), "--num_processes=2", *SHRINK)
    code = RUN.replace("sweep", "shrink")
    pair = [
        start("--workdir=together", *flags, f"--process_id={i}", code=code)
        for i in range(2)
    ]
    outputs = [process.communicate(timeout=400) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], outputs
    assert "61 images: 0 predictions differ" in outputs[0][0]
    assert "speedup" not in outputs[1][0]
    code, _, err = script(shrink, "--workdir=alone", *SHRINK)
    assert code == 0, err
    found = []
    for folder in map(Path, ("together", "alone")):
        (rung,) = json.loads((folder / "shrink/summary.json").read_text())["rungs"]
        small = jaxprune.load_compact(folder / "shrink-speedup1.5")
        found.append((rung, small))
    (both, small), (one, other) = found
    assert both["widths"] == one["widths"]
    for figure in ("accuracy", "baseline_accuracy", "agreement", "largest_drop"):
        assert both[figure] == pytest.approx(one[figure], abs=1e-6)
    # Rounding of float32's sums, through one least-squares fit after another.
    for path, array in other.arrays.items():
        np.testing.assert_allclose(small.arrays[path], array, rtol=1e-3, atol=2e-3)


FAILING = """
import sys
from jaxprune.cli import process, weights
from jaxprune.cli.commands import train

def full(*arguments):
    raise OSError(28, "No space left on device")

if "--process_id=WHO" in sys.argv:
    weights.metrics.confusion = full
process.run(train.main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("who", [0, 1])
def test_one_process_that_fails_ends_all_with_its_error(who):
    flags = (*SMALL, "--coordinator=" + free_address(), "--num_processes=2")
    code = FAILING.replace("WHO", str(who))
    pair = [start(*flags, f"--process_id={i}", code=code) for i in range(2)]
    errors = [process.communicate(timeout=240)[1] for process in pair]
    assert [process.returncode for process in pair] == [2, 2], errors
    lines = [error.strip().splitlines()[-1] for error in errors]
    assert lines[who] == "error: No space left on device"
    assert re.fullmatch(
        f"error: process {who} on .*: No space left on device", lines[1 - who]
    )
    assert not any("Traceback" in e or "abort" in e.lower() for e in errors), errors


def test_a_coordinator_that_does_not_answer_is_named():
    address = free_address()
    code = f"from jaxprune.cli import cluster; cluster._TIMEOUT = 2; {RUN}"
    started = time.monotonic()
    process = start(
        *SMALL, f"--coordinator={address}", "--num_processes=2", "--process_id=1",
        code=code,
    )  # fmt: skip
    _, err = process.communicate(timeout=60)
    assert process.returncode == BAD_INPUT
    assert err.strip().splitlines()[-1].startswith("error: not all of 2 processes")
    assert address in err
    assert time.monotonic() - started < 60
    assert cluster._TIMEOUT < 60


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--devices=9"], "--devices=9: there are 8 devices here"),
        (["--devices=0"], "--devices=0: there are 8 devices here"),
        (["--coordinator=here:1"], "are given together"),
        (["--num_processes=2", "--process_id=0"], "are given together"),
        (
            ["--coordinator=here:1", "--num_processes=2", "--process_id=2"],
            "--process_id=2 of 2 processes",
        ),
        (
            ["--coordinator=here", "--num_processes=2", "--process_id=1"],
            "--coordinator takes host:port",
        ),
    ],
)
def test_bad_flags(script, flags, message):
    code, _, err = script(sweep, *SMALL, *flags)
    assert code == BAD_INPUT
    assert message in err.splitlines()[-1]
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
    ],
)
def test_what_slurm_and_tpu_pods_say(monkeypatch, environment, several):
    for name in ("SLURM_STEP_NUM_TASKS", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cluster._is_cluster() == several


def test_hosts_with_different_devices_are_refused(monkeypatch):
    monkeypatch.setattr(
        cluster.processes, "gather",
        lambda a: [a, np.frombuffer(b"4 x TPU v4", np.uint8)],
    )  # fmt: skip
    with pytest.raises(cluster.InputError, match=r"8 x cpu.*4 x TPU v4"):
        cluster._check_hosts(None)


@pytest.mark.slow
def test_the_second_run_compiles_nothing(script):
    """What JAX keeps beside a program is when it was last used."""
    folder = Path("cache/jaxprune/compiled")
    kept = []
    for i in range(2):
        process = start(*SMALL, "--epochs=1", "--ks=0,3", f"--workdir={i}",
                        cache="--compilation_cache")  # fmt: skip
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        kept.append(sorted(path.name for path in folder.iterdir()))
    assert len(kept[0]) > 3
    assert kept[0] == kept[1]


@pytest.mark.slow
def test_the_compilation_cache_can_be_turned_off(script):
    process = start(*SMALL, "--epochs=1", "--ks=0,3")
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert not Path("cache/jaxprune/compiled").exists()


def test_out_of_memory_says_what_to_lower(capsys):
    with pytest.raises(SystemExit) as end:
        guard(
            lambda settings: jax.numpy.zeros(2**45, np.uint8).block_until_ready(),
            sweep.Settings(),
        )
    assert end.value.code == BAD_INPUT
    assert "error: out of memory: lower --batch_size" in capsys.readouterr().err
