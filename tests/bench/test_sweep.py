import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

import keras_files
from experiments.bench import __main__ as bench
from experiments.bench import ours
from experiments.bench.figure import Bar, bars
from experiments.bench.plan import RACES, Measured, ratios
from experiments.bench.race import Child, race
from jaxprune._base.errors import InputError
from jaxprune.recipes.models import CifarVGG
from random_data import random_variables
from run_directories import plant_cifar10

NETWORK = (
    "--cache_dir=planted", "--init_from=model.h5", "--dense=6,5,4",
    f"--widths={','.join(map(str, range(2, 15)))}",
)  # fmt: skip


@pytest.fixture
def planted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vgg = CifarVGG(widths=range(2, 15), dense=(6, 5, 4, 10))
    variables = random_variables(vgg, jax.numpy.zeros((1, 32, 32, 3)))
    keras_files.vgg(variables).save(tmp_path / "model.h5")
    plant_cifar10(tmp_path)


def run(*arguments):
    command = [sys.executable, "-m", "experiments.bench", *NETWORK, *arguments]
    environment = {
        **os.environ,
        "JAX_NUMPY_DTYPE_PROMOTION": "standard",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow  # every measurement has a process of its own
def test_everything_is_measured_and_written(planted):
    done = run("--images=30", "--some_images=20", "--runs=1", "--loop_ks=0,3",
               "--noscaling")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "sweep / floor" in done.stdout and "pairs evaluated" in done.stdout
    with open("runs/cifar_vgg/bench.csv") as file:
        rows = {row["what"]: row for row in csv.DictReader(file)
                if row["by"] == "jaxprune"}  # fmt: skip
    assert set(rows) == set(ours.MEASURES) - {"scaling"}
    assert float(rows["every_pair"]["measured_share"]) == pytest.approx(20 / 30)
    assert float(rows["one_pass"]["measured_share"]) == pytest.approx(2 / 14 * 20 / 30)
    assert all(float(row["seconds"]) > 0 for row in rows.values())
    assert float(rows["sweep"]["peak_memory_mb"]) > 100
    with open("runs/cifar_vgg/bench_ratios.csv") as file:
        found = {row["name"]: row for row in csv.DictReader(file)}
    evaluations = found["sweep / one jaxprune evaluation"]
    assert evaluations["in_turns"] == "True"
    assert evaluations["lowest"] == evaluations["median"] == evaluations["highest"]
    assert Path("runs/cifar_vgg/bench.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--model=mnist_pair", "measures --model=cifar_vgg only"),
        ("--loop_ks=0,14", "--loop_ks=14: the layer has 14"),
        ("--loop_ks=a", "--loop_ks takes a,b,c"),
        ("--images=99999", "--images: there are"),
        (
            "--what=nonsense",
            "unknown benchmark 'nonsense'; choices: sweep, host, rules, shrink",
        ),
        ("--devices=77", "--devices=77: there are 8 devices here"),
        ("--speedup=3", "--speedup does nothing without --what=shrink"),
        ("--distill", "--distill does nothing without --what=shrink"),
    ],
)
def test_bad_input(planted, script, flag, message):
    arguments = () if "model" in flag else (*NETWORK, "--loop_ks=0,3")
    code, _, err = script(bench, *arguments, flag)
    assert code == 2 and message in err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("missing", "name"), [("torch", "PyTorch"), ("torch_pruning", "Torch-Pruning")]
)
def test_without_the_peer(script, monkeypatch, missing, name):
    monkeypatch.setattr(
        bench.importlib.util,
        "find_spec",
        lambda module: None if module == missing else module,
    )
    code, _, err = script(bench, "--what=shrink")
    assert code == 2
    assert err == f"error: --what=shrink needs {name}: pip install 'jaxprune[bench]'\n"


def measured(by, what, *seconds, **facts):
    return Measured(by, what, seconds, 1.0, False, facts)


def by_key(*rows):
    return {(row.by, row.what): row for row in rows}


def test_ratios_by_hand():
    """10 images of 3 + 1 multiply-adds, half of 20 pairs: a floor of 4 s at 10 / s."""
    ours = by_key(
        measured("jaxprune", "matmul", 1.0, multiply_adds=10),
        measured("jaxprune", "evaluation", 2.0),
        measured("jaxprune", "training", 3.0),
        measured("jaxprune", "sweep", 8.0, multiply_adds=(3, 1), images=10, pairs=20,
                 pairs_evaluated=10),
        measured("jaxprune", "some", 8.0), measured("jaxprune", "every_pair", 16.0),
        measured("jaxprune", "one_pass", 80.0),
        measured("jaxprune", "cached_trunk", 24.0),
    )  # fmt: skip
    theirs = by_key(
        measured("PyTorch", "evaluation", 1.0),
        measured("PyTorch", "training", 6.0),
        measured("PyTorch", "one_pass", 40.0),
        measured("PyTorch", "cached_trunk", 32.0),
    )
    found = {ratio.name: ratio.median for ratio in ratios(ours | theirs)}
    assert found["sweep / floor"] == 2
    assert found["sweep / one PyTorch evaluation"] == 8
    assert found["PyTorch: the report's loop / sweep"] == 10
    assert found["PyTorch: loop with the trunk kept / sweep"] == 4
    assert found["every pair / sweep"] == 2
    assert found["evaluation, images/s over PyTorch's"] == 0.5
    assert found["training, images/s over PyTorch's"] == 2
    alone = {ratio.name for ratio in ratios(ours)}
    assert "sweep / floor" in alone and "sweep / one PyTorch evaluation" not in alone


def test_spread_of_ratios_by_hand():
    """A machine that is half as fast in the second round changes no ratio in turns."""
    found = {
        ratio.name: ratio
        for ratio in ratios(
            by_key(
                measured("jaxprune", "sweep", 10.0, 20.0, 12.0),
                measured("PyTorch", "evaluation", 2.0, 4.0, 2.0),
                measured("jaxprune", "some", 10.0, 20.0, 12.0),
                measured("jaxprune", "every_pair", 30.0, 60.0, 36.0),
            )
        )
    }
    assert found["sweep / one PyTorch evaluation"][1:] == (6, 5, 6, True)
    assert found["every pair / sweep"][1:] == (3, 3, 3, True)


def test_every_measurement_is_in_one_race():
    keys = [key for keys in RACES for key in keys]
    assert len(keys) == len(set(keys))
    whats = [what for by, what in keys if by == "jaxprune"]
    assert {*whats, "scaling"} == set(ours.MEASURES)


def test_bars_say_what_is_extrapolated():
    rows = [Bar("slow", 7300.0, 7000.0, 7900.0, True), Bar("fast", 1.5, 1, 2, False)]
    (axes,) = bars(rows, "title").axes
    assert [t.get_text() for t in axes.get_yticklabels()] == ["fast", "slow"]
    assert [bar.get_hatch() for bar in axes.patches] == [None, "///"]
    assert {"1.5 s", "2.03 h"} <= {t.get_text() for t in axes.texts}
    whiskers = [c.get_segments()[0][:, 0].tolist() for c in axes.collections]
    assert whiskers == [[1, 2], [7000, 7900]]


# Stands for Python: a child without JAX, which notes its turns and its process.
FAKE = """#!{python}
import json, os, sys
by, what = sys.argv[-1].removeprefix("--measure=").split(":")
with open("{log}", "a") as log:
    print(os.getpid(), file=log)
ready = {{"share": 0.5, "extrapolated": False, "compile_seconds": 7, "facts": {{}}}}
print(json.dumps(ready), flush=True)
for turn, line in enumerate(sys.stdin):
    with open("{log}", "a") as log:
        print(by, turn, file=log)
    if what == "broken" and turn == 1:
        sys.exit("RuntimeError: no luck")
    print(json.dumps({{"seconds": turn + 1, "peak_memory_mb": 5}}), flush=True)
"""
PAIR = (("jaxprune", "sound"), ("PyTorch", "sound"))


@pytest.fixture
def log(tmp_path, monkeypatch):
    """Where children that are none of ours write what they do."""
    log, python = tmp_path / "log", tmp_path / "python"
    python.write_text(FAKE.format(python=sys.executable, log=log))
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    return log


def all_have_ended(log):
    pids = [line for line in log.read_text().splitlines() if line.isdecimal()]
    return pids and not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_measurements_take_turns(log):
    found = race(PAIR, 2)
    assert log.read_text().splitlines()[2:] == [
        "jaxprune 0", "PyTorch 0", "jaxprune 1", "PyTorch 1"
    ]  # fmt: skip
    # Half of the work took 1 and 2 seconds.
    assert [m.seconds for m in found.values()] == [(2, 4), (2, 4)]
    assert found[PAIR[0]].facts["compile_seconds"] == 7
    assert found[PAIR[0]].extrapolated and all_have_ended(log)


def test_a_child_that_fails_is_named_and_none_is_left(log):
    keys = (PAIR[0], ("PyTorch", "broken"))
    with pytest.raises(InputError) as error:
        race(keys, 3)
    line = "measuring PyTorch, broken failed: RuntimeError: no luck"
    assert str(error.value) == line
    assert all_have_ended(log)


def test_ctrl_c_leaves_no_child(log, monkeypatch):
    turn = Child.turn

    def interrupt(child):
        if child.key == PAIR[1]:
            raise KeyboardInterrupt
        return turn(child)

    monkeypatch.setattr(Child, "turn", interrupt)
    with pytest.raises(KeyboardInterrupt):
        race(PAIR, 2)
    assert all_have_ended(log)


def test_a_child_ends_when_its_parent_has_gone():
    code = """
import time
from experiments.bench.measure import Prepared
from experiments.bench.race import serve
print("printed by somebody")
serve(lambda: (print("and this"), (Prepared(lambda: time.sleep(600)), {}))[1])
"""
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert child.stdout.readline() == b"printed by somebody\n"
    assert b"compile_seconds" in child.stdout.readline()
    child.stdin.write(b"run\n")
    child.stdin.flush()
    time.sleep(0.5)
    assert child.poll() is None
    child.stdin.close()
    assert child.wait(timeout=30) == 0
    child.stdout.close()
