"""The devices and processes that a script works on, and its compilation cache."""

import os
import sys
import threading
import warnings
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from jaxprune._base import mesh, processes
from jaxprune._base.errors import InputError, first_line
from jaxprune.cli.settings import NetworkSettings
from jaxprune.data.cache import cache_folder

# Seconds that processes wait for one another to start.
_TIMEOUT = 50
# The bar that is shown; a closed one is disabled.
_shown: list[tqdm] = []


def start(settings: NetworkSettings) -> None:
    """Joins the other processes, if there are any, and checks that they are alike.

    Where --coordinator is not given, a TPU pod or Slurm may still say that there are
    several processes.

    Raises:
      InputError: flags that do not fit together, or hosts with different devices.
    """
    _use_compilation_cache(settings)
    if jax.distributed.is_initialized():
        return
    _join_others(settings)
    _check_platform()
    if jax.process_count() > 1:
        _check_hosts(settings.devices)
        if not processes.is_first():
            nowhere = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - it lasts
            sys.stdout = nowhere
    local_mesh(settings.devices)  # raises now where there are not as many devices


def _check_platform() -> None:
    """Raises InputError where JAX has no device of the kind that is asked for."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        asked = jax.config.jax_platforms  # type: ignore[attr-defined]
        raise InputError(
            f"JAX finds no device for JAX_PLATFORMS={asked}: {first_line(error)}"
        ) from error


def _join_others(settings: NetworkSettings) -> None:
    """Joins the other processes, if there are any, and checks that they are alike."""
    address, count = settings.coordinator, settings.num_processes
    index = settings.process_id
    if (address, count, index) != (None, None, None):
        if address is None or count is None or index is None:
            raise InputError(
                "--coordinator, --num_processes and --process_id are given together"
            )
        if index >= count:
            raise InputError(
                f"--process_id={index} of {count} processes: they are counted from 0"
            )
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise InputError(f"--coordinator takes host:port, got {address}")
        _join(address, count, index)
    elif _is_cluster():
        _join(None, None, None)


def require_one_process(script: str) -> None:
    """Raises InputError if several processes run the script together."""
    if jax.process_count() > 1:
        raise InputError(f"{script} runs in one process")


def local_mesh(count: int | None) -> Mesh:
    """The mesh over so many devices of this process, by default all."""
    devices = jax.local_devices()
    count = len(devices) if count is None else count
    if not 1 <= count <= len(devices):
        raise InputError(f"--devices={count}: there are {len(devices)} devices here")
    return mesh.make_mesh(devices[:count])


def training_mesh(local: Mesh, batch_size: int) -> Mesh:
    """The mesh over all processes' devices, or as many as divide the batch.

    Args:
      local: the mesh over this process's, which has as many as every other's.
      batch_size: images in a batch.

    Raises:
      InputError: several processes, and a batch that does not divide among them.
    """
    here = local.devices.ravel().tolist()
    count = jax.process_count()
    if batch_size % count:
        raise InputError(
            f"--train_batch_size={batch_size} does not divide among {count} processes"
        )
    used = max(n for n in range(1, len(here) + 1) if batch_size % (n * count) == 0)
    if used < len(here):
        print(
            f"training on {used * count} of {len(here) * count} devices: more do not "
            f"divide a batch of {batch_size}"
        )
    if count == 1:
        return mesh.make_mesh(here[:used])
    by_process = [
        [d for d in jax.devices() if d.process_index == i][:used] for i in range(count)
    ]
    return mesh.make_mesh([d for devices in by_process for d in devices])


def progress(*, hide: bool = False, **options: Any) -> tqdm:
    """A progress bar with the time left, shown by the first process.

    One is shown at a time: inside another's block it only names the stage there, since
    that one has the time left of the whole.

    Args:
      hide: shows none, but those inside its block.
      **options: tqdm's, such as total, unit and desc.
    """
    outer = _shown[-1] if _shown and not _shown[-1].disable else None
    if outer is not None:
        outer.set_postfix_str(options.get("desc", ""))
    hide = hide or outer is not None or not processes.is_first()
    bar = tqdm(leave=False, disable=hide, **options)
    if not hide:
        _shown[:] = [bar]
    return bar


def say(text: str) -> None:
    """Prints above the bar that is shown, if there is one."""
    tqdm.write(text)


def _join(address: str | None, count: int | None, index: int | None) -> None:
    """Starts `jax.distributed`; where nothing is given, it finds its cluster."""

    def give_up() -> None:
        # JAX would abort this process with a stack trace.
        print(
            f"error: not all of {count} processes met at coordinator {address} within "
            f"{_TIMEOUT} s (this is process {index}): are all started, and is that "
            "address reachable from here?",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)

    timer = threading.Timer(_TIMEOUT, give_up)
    timer.daemon = True
    timer.start()
    # It would take SIGTERM for itself.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            address, count, index, initialization_timeout=2 * _TIMEOUT
        )
    except (RuntimeError, ValueError, OSError) as error:
        line = str(error).splitlines()[0]
        raise InputError(f"coordinator {address}: {line}") from error
    finally:
        timer.cancel()
    processes.watch()


def _is_cluster() -> bool:
    """Whether Slurm or a TPU pod says that several processes run together."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "")
    return (tasks.isdecimal() and int(tasks) > 1) or "," in hosts


def _check_hosts(devices: int | None) -> None:
    kind = jax.local_devices()[0].device_kind
    text = f"{devices or jax.local_device_count()} x {kind}"
    everywhere = [
        row.tobytes().decode()
        for row in processes.gather(np.frombuffer(text.encode(), np.uint8))
    ]
    if len(set(everywhere)) > 1:
        raise InputError(f"the processes have different devices: {everywhere}")


def _use_compilation_cache(settings: NetworkSettings) -> None:
    if not settings.compilation_cache:
        return
    folder = cache_folder(settings.cache_dir).resolve() / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # a machine without a cache folder compiles every time
    # A cache that cannot be used (a full disk) is no concern of the user's.
    message = "Error (reading|writing) persistent compilation cache"
    warnings.filterwarnings("ignore", message=message)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
