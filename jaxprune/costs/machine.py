"""The machine that times are of."""

import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import jax


def machine() -> dict[str, str]:
    """The machine: device, processor, JAX. JAX calls all processors "cpu"."""
    return {
        "device": jax.devices()[0].device_kind,
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "jax": version("jax"),
    }


def _processor() -> str:
    """The name that Linux knows, or whatever the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1] for line in lines if line.startswith("model name"))
    return " ".join(next(names, platform.processor() or platform.machine()).split())


def bytes_in_use() -> int:
    """Bytes that are in use of a device's memory, or on CPU were at the most.

    0 where the system does not say.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_in_use" in stats:
        return int(stats["bytes_in_use"])
    try:
        import resource
    except ImportError:  # on Windows
        return 0
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else 1024 * used
