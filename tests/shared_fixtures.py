"""Fixtures, and what makes tests repeatable and quick."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from filelock import FileLock
from flax.core.scope import Scope
from hypothesis import HealthCheck
from hypothesis import settings as of_hypothesis

import tally
from forked import Starter
from jaxprune.cli import process
from jaxprune.cli.settings import NetworkSettings
from jaxprune.costs import clock
from jaxprune.shrinking import analysis
from jaxprune.sweep import maps

# What scripts draw random numbers with, here and in processes of their own. No test
# looks at the numbers, and XLA compiles a small network's initialisation with Threefry
# for 7 s.
SCRIPTS_PRNG = os.environ["JAX_DEFAULT_PRNG_IMPL"] = "rbg"

_param = Scope.param


def _compared_by_shape(self, name, initialiser, *arguments, **options):
    """Flax's `param`, with its check of a parameter's shape, but without a trace.

    Whenever a network is traced, Flax traces each parameter's initialiser, to see what
    shape that would give it: two thirds of the time that a small network takes. But
    the initialisers of Flax's layers are told the shape.
    """
    shape = arguments[0] if arguments else None
    if isinstance(shape, tuple | list) and self.has_variable("params", name):
        value = self.get_variable("params", name)
        if np.shape(value) == tuple(shape):
            self.reserve(name, "params")
            return value
    return _param(self, name, initialiser, *arguments, **options)


Scope.param = _compared_by_shape

# Compilation makes single examples slow; a run in CI is repeatable.
of_hypothesis.register_profile(
    "jaxprune",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=bool(os.environ.get("CI")),
)
of_hypothesis.load_profile("jaxprune")


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

    def seconds(clock, product, kernel, x, described):
        return 1e-9 * float(np.prod(x.shape) * kernel.shape[-1])

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
        with jax.default_prng_impl(SCRIPTS_PRNG):
            try:
                argv = [module.__name__, *map(str, arguments)]
                settings = process.parse(module.Settings, argv)
                # JAX keeps the first cache folder of a process for good: the tests'.
                if isinstance(settings, NetworkSettings):
                    settings = replace(settings, compilation_cache=False)
                process.guard(module.main, settings)
            except SystemExit as end:
                code = end.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
