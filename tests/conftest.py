"""Before anything imports jax: eight CPU devices, no silent promotion of types.

Compiled programs are kept for as long as the tests run, for all their processes.
Fixtures are in `shared_fixtures`.
"""

import atexit
import gc
import os
import shutil
import sys
import tempfile
from pathlib import Path

import tally
import versions

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"  # as nobody reads them
os.environ["MPLBACKEND"] = "agg"
os.environ["KERAS_BACKEND"] = "jax"
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

# Where `forked` is: in a folder of its own that children of tests may have on their
# path.
sys.path.append(str(Path(__file__).parent / "faults"))


def pytest_configure(config):
    """Imports nothing in a process that only hands tests out."""
    if config.option.markexpr in ("not slow", "versions"):
        # XLA compiles small programs in two thirds of the time. Long tests, and scripts
        # in processes of their own, run what users run.
        os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", 0):
        config.pluginmanager.import_plugin("shared_fixtures")


def pytest_collection_modifyitems(items):
    """Marks the tests that run under every version of Python and JAX."""
    for item in items:
        if item.nodeid.split("[")[0].removeprefix("tests/") in versions.SELECTED:
            item.add_marker("versions")


def pytest_collection_finish():
    """What is imported stays: the garbage collector need not look at it again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


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
