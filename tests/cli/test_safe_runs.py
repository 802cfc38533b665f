"""A run directory is believed only as far as it agrees with itself, and has one owner.

The networks are drawn, not trained: nothing here looks at how good they are.
"""

import errno
import fcntl
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import jax
import pytest

import run_directories
from jaxprune._base.errors import InputError
from jaxprune.cli import (
    lock,
    process,
    run_directory,
    signals,
)
from jaxprune.cli.commands import compact, plot, report, shrink, sweep, train
from jaxprune.cli.settings import NetworkSettings, Settings
from jaxprune.data import datasets
from jaxprune.recipes import config
from jaxprune.training import checkpoint
from random_data import random_variables
from run_directories import FOLDER, SMALL, plant_run, reseal

RUN = Path("runs/digits_pair")
MODEL = "--model=digits_pair"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


pytestmark = pytest.mark.usefixtures("standard_promotion")


def fails(script, module, *arguments):
    """A command that must fail with one line and leave everything as it was."""

    def everything():
        return {str(p): p.is_file() and p.read_bytes() for p in Path().rglob("*")}

    before = everything()
    code, _, err = script(module, *arguments)
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
    assert everything() == before
    return err


@pytest.fixture
def swept(made_once, script):
    """The default run directory, with a checkpoint and a sweep."""

    def make(workdir):
        plant_run(workdir)
        code, _, err = script(sweep, MODEL, f"--workdir={workdir}")
        assert code == 0, err

    shutil.copytree(made_once("planted", make), RUN)
    return RUN


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("field", "value"), [("pixel_std", [25.0]), ("seed", 1), ("test_pairs", 40)]
)
@pytest.mark.parametrize("module", [train, sweep, compact])
def test_a_configuration_that_is_not_the_checkpoint_s(script, module, field, value):
    plant_run(RUN)
    edit(RUN / "config.json", **{field: value})
    line = fails(script, module, MODEL, *(["--k=1"] if module is compact else []))
    assert f"is not what {RUN}/checkpoints/1 was made with: {field} is" in line


def test_a_configuration_that_is_missing_is_the_checkpoint_s(script):
    made_with = plant_run(RUN)
    (RUN / "config.json").unlink()
    line = fails(script, sweep, MODEL, "--test_pairs=40")
    assert "holds another configuration: test_pairs is 30, not 40" in line
    code, _, err = script(train, f"--workdir={RUN}")
    assert code == 0, err
    settings = NetworkSettings(workdir=str(RUN))
    assert run_directory.resolve(settings, train_imported=False) == made_with


def test_a_training_is_never_of_two_versions_of_jax(script, monkeypatch):
    conf, version = replace(plant_run(RUN), epochs=2), jax.__version__
    monkeypatch.setattr(jax, "__version__", "0.1.2")
    code, out, err = script(train, MODEL)
    assert code == 0 and "weights: " in out, err  # what is done stays
    shutil.rmtree(RUN)
    monkeypatch.setattr(jax, "__version__", version)
    plant_run(RUN, {"config": asdict(conf)})  # the first epoch of two
    config.write(conf, RUN)
    monkeypatch.setattr(jax, "__version__", "0.1.2")
    line = fails(script, train, MODEL)
    assert f"was trained under JAX {version}, and this is 0.1.2: go on under" in line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "an object, got []"),
        ("null", "an object, got None"),
        (b"\xff\x00", "Invalid JSON"),
        ({"model": "cifar_vg"}, "did you mean 'cifar_vgg'"),
        ({"seed": "0"}, "'seed' input should be a valid integer, got '0'"),
        ({"seed": -1}, "--seed takes finite numbers of at least 0"),
        ({"seed": 2**32}, "the largest is"),
        ({"widths": [2, 3]}, "takes 3 positive numbers"),
        ({"widths": [2, 3, -4]}, "takes 3 positive numbers"),
        ({"widths": 3}, "'widths' input should be a valid array, got 3"),
        ({"widths": [2, 3, "4"]}, "'widths[2]' input should be a valid integer"),
        ({"pixel_std": []}, "--pixel_std must be positive"),
        ({"pixel_std": [float("inf")]}, "--pixel_std takes finite numbers"),
        ({"warmup_epochs": float("nan")}, "--warmup_epochs takes finite numbers"),
        ({"epochs": -1}, "--epochs takes finite numbers of at least 0"),
        ({"dataset": "digit"}, "unknown dataset"),
        ({"colour": "red"}, "'colour' unexpected keyword argument"),
    ],
)
def test_a_config_json_of_another_shape(script, content, message):
    RUN.mkdir(parents=True)
    conf = plant_run("elsewhere")
    if isinstance(content, dict):
        config.write(conf, RUN)
        edit(RUN / "config.json", **content)
    else:
        text = content.encode() if isinstance(content, str) else content
        (RUN / "config.json").write_bytes(text)
    line = fails(script, train, MODEL)
    assert message in line and "runs/digits_pair/config.json" in line


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--pixel_std=inf", "--pixel_std takes finite numbers"),
        ("--pixel_mean=nan", "--pixel_mean takes finite numbers"),
        ("--warmup_epochs=inf", "--warmup_epochs takes a finite number, got inf"),
        ("--warmup_epochs=nan", "--warmup_epochs takes a finite number, got nan"),
        ("--learning_rate=nan", "--learning_rate takes a finite number"),
        ("--seed=-1", "seed"),
        (f"--seed={2**32}", "the largest is"),
        ("--layer=", "--layer= is empty"),
        ("--workdir=", "--workdir= is empty"),
        ("--data_dir=", "--data_dir= is empty"),
        ("--ks=0:99999999999", "0 .. 127"),
        ("--ks=-99999999999:3", "0 .. 127"),
        ("--devices=9", "there are 8 devices here"),
    ],
)
def test_values_that_make_no_sense(script, flag, message):
    started = time.monotonic()
    assert message in fails(script, sweep, MODEL, flag)
    assert time.monotonic() - started < 20


def test_compact_looks_at_devices_first(script):
    assert "there are 8 devices" in fails(
        script, compact, MODEL, "--k=1", "--devices=9"
    )


def test_a_sweep_is_that_of_its_configuration(script, swept):
    """The same weights, on other pairs and with another scaling."""
    shutil.rmtree(RUN / "checkpoints")
    plant_run(RUN, test_pairs=40, pixel_std=(25.0,))
    for module, more in ((sweep, []), (compact, ["--k=1"])):
        line = fails(script, module, MODEL, *more)
        assert "pixel_std is [255.0], not [25.0]" in line
        assert "test_pairs is 30, not 40" in line


@pytest.mark.parametrize(
    ("flag", "before"),
    [
        ("--tap=relu", "tap is conv"),
        ("--rank_split=train[:40]", "rank_split is test"),
        ("--select_split=train[:40]", "select_split is test"),
        ("--eval_split=test[:20]", "eval_split is test"),
        ("--ks=0:3", "it has 4 values of K, not these 3"),
    ],
)
def test_a_sweep_is_that_of_its_flags(script, swept, flag, before):
    assert before in fails(script, sweep, MODEL, flag)


@pytest.mark.parametrize("what", ["weights", "data"])
def test_a_sweep_is_that_of_its_weights_and_images(script, swept, what, monkeypatch):
    """Of one configuration, as another version may draw or read them."""
    if what == "weights":
        shutil.rmtree(RUN / "checkpoints")
        draw = functools.partial(random_variables, seed=1)
        monkeypatch.setattr(run_directories, "random_variables", draw)
        plant_run(RUN)
    else:
        monkeypatch.setattr(datasets.Splits, "fingerprint", "0" * 64)
    for module, more in ((sweep, []), (compact, ["--k=1"])):
        assert f"{what} is " in fails(script, module, MODEL, *more)


def test_a_changed_table_is_not_pruned_by(script, swept):
    path = FOLDER / "sweep.csv"
    path.write_text(path.read_text().replace("\n1,", "\n3,"))
    line = fails(script, compact, MODEL, "--max_drop=0.5")
    assert "sweep.csv does not match its sha256" in line


@pytest.mark.parametrize("key", ["layer", "criterion", "fill"])
def test_plot_writes_nowhere_else(script, swept, key):
    reseal(FOLDER, lambda facts: facts.update({key: "/../../x/y"}))
    assert f"'{key}'" in fails(script, plot, f"--workdir={RUN}")
    reseal(FOLDER, lambda facts: facts.pop(key))
    assert f"does not say {key}" in fails(script, plot, f"--workdir={RUN}")


LINE = {
    "epoch": 1, "loss": 0.5, "train_accuracy": 0.5, "test_accuracy": 0.5,
    "test_balanced_accuracy": 0.5,
}  # fmt: skip


def log(lines):
    """The run directory with a checkpoint that keeps these lines."""
    conf = json.loads((RUN / "config.json").read_text())
    shutil.rmtree(RUN / "checkpoints")
    plant_run(RUN, facts={"config": conf, "log": lines})


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{}], "'[0].epoch' field required"),
        ([LINE, []], "'[1]' input should be"),
        ([LINE | {"loss": "0.5"}], "'[0].loss' input should be"),
    ],
)
def test_a_training_log_of_another_shape(script, swept, lines, message):
    log(lines)
    assert message in fails(script, plot, f"--workdir={RUN}")


LOG = [LINE, LINE | {"epoch": 2, "loss": 0.4}]


@pytest.mark.parametrize("found", [None, b"", b"\x80", json.dumps(LINE).encode()])
def test_the_training_log_is_the_checkpoint_s(script, swept, found):
    """What was lost of its copy, or changed in it, is written again."""
    log(LOG)
    path = RUN / "train.jsonl"
    if found is not None:
        path.write_bytes(found)
    code, _, err = script(train, f"--workdir={RUN}")
    assert code == 0, err
    assert [json.loads(line) for line in path.read_text().splitlines()] == LOG


def test_training_is_drawn_from_the_checkpoint(script, swept):
    log(LOG)
    (RUN / "train.jsonl").unlink(missing_ok=True)
    (RUN / "training.png").unlink(missing_ok=True)
    code, _, err = script(plot, f"--workdir={RUN}")
    assert code == 0, err
    assert (RUN / "training.png").exists()


def held_by_another(workdir, before=""):
    """A process that holds the run directory until it is killed."""
    code = (
        f"{before}import sys, pathlib, time; from jaxprune.cli import lock;"
        "lock.hold(pathlib.Path(sys.argv[1]));"
        "print('held', flush=True); time.sleep(99)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(workdir)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_process_says_who_is_there(script, swept):
    gone = subprocess.Popen(["true"])
    gone.wait()
    other = held_by_another(RUN)
    (RUN / f".curve.{gone.pid}.tmp.png").touch()  # left to whoever holds the folder
    try:
        Path("link").symlink_to(RUN)  # one folder, whatever it is called
        for module, *flags in (
            (train, MODEL), (sweep, MODEL), (compact, MODEL, "--k=1"),
            (shrink, MODEL, "--speedup=2"), (plot,), (report,),
        ):  # fmt: skip
            line = fails(script, module, *flags, "--workdir=link")
            assert re.search(rf"is in use by process {other.pid} on .* since 20", line)
    finally:
        other.kill()
        other.communicate()
    lock.hold(RUN)  # the system let go of it
    assert not list(RUN.glob(".curve.*"))
    lock.release()
    assert not [*RUN.glob(".*")]


def no_locks(*arguments):
    """What some file systems of clusters answer."""
    raise OSError(errno.ENOSYS, "Function not implemented")


NO_LOCKS = """
import errno, fcntl
def no_locks(*arguments):
    raise OSError(errno.ENOSYS, "Function not implemented")
fcntl.flock = no_locks
"""


def test_a_file_system_without_locks(monkeypatch):
    """Whoever is killed there locks nobody out, and whoever lives does."""
    monkeypatch.setattr(fcntl, "flock", no_locks)
    other = held_by_another(RUN, NO_LOCKS)
    try:
        with pytest.raises(InputError, match=rf"in use by process {other.pid} on .*if"):
            lock.hold(RUN)
    finally:
        other.kill()
        other.communicate()
    lock.hold(RUN)
    lock.release()
    assert not [*RUN.iterdir()]


HOLDER = {"process": "7 on elsewhere", "since": "2020-01-01", "command": "train"}


@pytest.mark.parametrize("has_locks", [True, False])
def test_what_another_host_left(monkeypatch, has_locks):
    """Nobody here can tell whether it lives, but by a lock of the system's."""
    RUN.mkdir(parents=True)
    (RUN / ".lock").write_text("7\nelsewhere\n1\n")
    (RUN / ".holder").write_text(json.dumps(HOLDER))
    if has_locks:
        lock.hold(RUN)
        assert str(os.getpid()) in (RUN / ".holder").read_text()
        lock.release()
        assert not [*RUN.iterdir()]
        return
    monkeypatch.setattr(fcntl, "flock", no_locks)
    line = rf"by process 7 on elsewhere since 2020.*if it is gone, remove {RUN}/\.lock"
    with pytest.raises(InputError, match=line):
        lock.hold(RUN)


@pytest.mark.parametrize("place", ["file", "file/x", "dangling", "dangling/x"])
def test_a_run_directory_that_is_none(script, place):
    Path("file").touch()
    Path("dangling").symlink_to("nowhere")
    line = fails(script, train, MODEL, f"--workdir={place}")
    assert f"{place[:-2] if '/' in place else place} is no folder" in line


@pytest.mark.slow
def test_two_trainings_in_one_new_folder():
    """One of them trains, whichever it is, and the folder is all of that one."""
    flags = [flag for flag in SMALL if "epochs" not in flag] + ["--epochs=1"]
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "jaxprune", "train", *flags, f"--seed={seed}",
             "--nocompilation_cache"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "JAX_NUMPY_DTYPE_PROMOTION": "standard"},
        )
        for seed in (1, 2)
    ]  # fmt: skip
    errors = [process.communicate()[1] for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) == [0, 2], errors
    assert re.search("is in use by|another configuration", errors[codes.index(2)])
    seed = codes.index(0) + 1
    assert json.loads((RUN / "config.json").read_text())["seed"] == seed
    assert checkpoint.facts(RUN / "checkpoints", 1)["config"]["seed"] == seed


def test_nothing_is_left_where_nothing_was_written():
    lock.hold(Path("a/b"))
    assert Path("a/b/.lock").exists()
    lock.release()
    assert not Path("a").exists()


SLOW_IMPORT = """
import os, signal, sys, threading
# A shell's background job ignores Ctrl-C, and so would its children.
signal.signal(signal.SIGINT, signal.default_int_handler)
threading.Timer(0.3, os.kill, (os.getpid(), int(sys.argv.pop(1)))).start()
import runpy
sys.argv[0] = "-m"
import experiments  # as python -m does first
import time
for _ in range(100):
    time.sleep(0.1)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_it_imports(number):
    command = [sys.executable, "-c", SLOW_IMPORT, str(int(number))]
    checkout = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 128 + number
    assert done.stderr == "\ninterrupted\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("where", ["main", "collector", "destructor"])
def test_an_interrupt_is_not_lost(number, where, capsys):
    """Python drops what is raised in a callback of its garbage collector."""

    def interrupt(*args):
        signal.raise_signal(number)

    def main(settings):
        import gc

        if where == "main":
            interrupt()
        elif where == "collector":
            gc.callbacks.append(interrupt)
            try:
                gc.collect()
            finally:
                gc.callbacks.remove(interrupt)
        else:
            type("Dropped", (), {"__del__": interrupt})()
        for _ in range(100):
            time.sleep(0.1)
        raise AssertionError("the interrupt was lost")

    before = {s: signal.signal(s, signal.default_int_handler) for s in signals._SIGNALS}
    try:
        with pytest.raises(SystemExit) as end:
            process.guard(main, Settings())
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
    assert end.value.code == 128 + number
    assert "interrupted; nothing was written" in capsys.readouterr().err


@pytest.mark.slow
def test_terminated_says_what_is_kept():
    flags = [flag for flag in SMALL if "epochs" not in flag] + ["--epochs=500"]
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxprune", "train", *flags, "--nocompilation_cache"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "JAX_NUMPY_DTYPE_PROMOTION": "standard"},
    )  # fmt: skip
    while not (RUN / "checkpoints/1").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143, err
    assert re.search(r"epoch \d+ of 500 is kept in", err.splitlines()[-1])
    assert "Traceback" not in err
    assert not [*RUN.glob(".*")]
