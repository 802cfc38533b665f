"""Before anything imports jax: eight CPU devices, no silent promotion of types.

Compiled programs are kept for as long as the tests run, for all their processes.
"""

import atexit
import os
import shutil
import sys
import tempfile

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["MPLBACKEND"] = "agg"
os.environ.pop("JAX_DEFAULT_PRNG_IMPL", None)
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers inherit what is set here
    _run = tempfile.mkdtemp(prefix="jaxprune-tests-")
    atexit.register(shutil.rmtree, _run, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{_run}/compiled"
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    os.environ["XDG_CACHE_HOME"] = f"{_run}/cache"
    os.environ["MPLCONFIGDIR"] = f"{_run}/matplotlib"  # lists fonts once
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = f"{_run}/hypothesis"

from pathlib import Path

# Where `forked` is: in a folder of its own that children of tests may have on their
# path. Beside tests/experiments it would hide the scripts from them.
sys.path.append(str(Path(__file__).parent / "faults"))

import jax
import numpy as np
import pytest
from absl.testing import flagsaver
from filelock import FileLock
from hypothesis import HealthCheck, settings

import tally
from experiments import cli, cluster  # noqa: F401 - defines flags of all scripts
from forked import Starter
from jaxprune.data.splits import Split
from jaxprune.shrinking import analysis, clock
from jaxprune.sweep import maps

# What scripts draw random numbers with, here and in processes of their own. No test
# looks at the numbers, and XLA compiles a small network's initialisation with Threefry
# for 7 s.
SCRIPTS_PRNG = os.environ["JAX_DEFAULT_PRNG_IMPL"] = "rbg"

# Compilation makes single examples slow; a run in CI is repeatable.
settings.register_profile(
    "jaxprune",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=bool(os.environ.get("CI")),
)
settings.load_profile("jaxprune")


def pytest_terminal_summary(terminalreporter):
    """What campaigns have counted, also in other processes."""
    tables = []
    for state in ("passed", "failed"):
        for report in terminalreporter.getreports(state):
            for name, value in report.user_properties:
                if name == "campaign":
                    tables.append(value)
                else:
                    terminalreporter.write_line(f"{report.nodeid}: {name}: {value}")
    if tables:
        terminalreporter.write_line(tally.table(tables))


@pytest.fixture(scope="session")
def starter(tmp_path_factory):
    """Starts scripts in forked processes; compiled programs are shared by all."""
    return Starter(tmp_path_factory.mktemp("logs"), Path(os.environ["XDG_CACHE_HOME"]))


@pytest.fixture(name="tally")
def counts(request, record_property):
    """Counts a campaign's trials, for the table."""
    return tally.Tally(request.node.name.removeprefix("test_"), record_property)


@pytest.fixture
def standard_promotion():
    """For scripts that train: optax's Adam mixes types."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def layers_untimed(monkeypatch):
    """A layer takes as long as it has inputs and outputs, the rest a second.

    Nothing is compiled to be timed.
    """

    def seconds(clock, module, shape, dtype):
        return 1e-9 * float(np.prod(shape) * module.features)

    monkeypatch.setattr(analysis, "_SPEEDUPS", ())
    monkeypatch.setattr(clock.Clock, "time", seconds)
    monkeypatch.setattr(clock.Clock, "measure_in_turns", lambda *_: np.ones(1))


@pytest.fixture(scope="session")
def data_dir() -> str:
    """The folder of prepared TFDS datasets, or a skip that says what is missing."""
    folder = os.environ.get("JAXPRUNE_DATA_DIR")
    if not folder:
        pytest.skip("JAXPRUNE_DATA_DIR names no folder of prepared TFDS datasets")
    return str(Path(folder).resolve())


@pytest.fixture(scope="session")
def of_all_workers(tmp_path_factory) -> Path:
    """One folder for all workers."""
    # A worker's folder lies in the run's.
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def decoded(of_all_workers) -> str:
    """One folder of decoded datasets for all workers."""
    return str(of_all_workers / "decoded")


@pytest.fixture
def made_once(of_all_workers):
    """Has the first worker that needs a folder make it: (name, make) -> folder."""

    def made(name, make):
        folder = of_all_workers / name
        with FileLock(folder.with_suffix(".lock")):
            if not folder.exists():
                try:
                    make(folder)
                except BaseException:
                    shutil.rmtree(folder, ignore_errors=True)
                    raise
        return folder

    return made


@pytest.fixture
def maps_places(monkeypatch) -> list[Path | None]:
    """The folders that feature maps are kept in from now on."""
    places, opened = [], maps.tempfile.TemporaryFile

    def spy(dir):
        places.append(dir)
        return opened(dir=dir)

    monkeypatch.setattr(maps.tempfile, "TemporaryFile", spy)
    return places


@pytest.fixture
def script(capsys, tmp_path, monkeypatch):
    """Runs a script's main in this process: (module, *arguments) -> code, out, err."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(module, *arguments):
        code = 0
        with flagsaver.flagsaver(), jax.default_prng_impl(SCRIPTS_PRNG):
            try:
                # JAX keeps the first cache folder of a process for good: the tests'.
                no_cache = "--nocompilation_cache"
                cli._parse([module.__name__, no_cache, *map(str, arguments)])
                cli._guard(module.main)
            except SystemExit as end:
                code = end.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def random_split(n=23, shape=(8, 8, 3), classes=4, seed=0) -> Split:
    """Random images that differ in more than noise, every class present."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)])
    pattern = rng.uniform(0, 1, (classes + 3, *shape))
    mixture = rng.dirichlet(np.full(len(pattern), 0.3), n)
    images = (255 * np.tensordot(mixture, pattern, 1)).astype(np.uint8)
    names = tuple(f"class {c}" for c in range(classes))
    return Split(images, np.arange(n)[:, None], labels, names)


def random_variables(model, x, seed=0):
    """Variables in which no BatchNorm is the identity and no bias is zero."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            fan_in = np.prod(leaf.shape[:-1])
            value = rng.normal(0, (2 / fan_in) ** 0.5, leaf.shape)
        elif name in ("var", "scale"):
            value = rng.uniform(0.5, 1.5, leaf.shape)
        else:
            value = rng.normal(0, 0.2, leaf.shape)
        return value.astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)
