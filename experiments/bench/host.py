"""What Python costs in a sweep: --what=host.

The network is so narrow that a device has next to nothing to do, but for the layer that
is swept, which has all of its channels; weights and images are drawn at random, and one
device is used. Beside the sweep stands a loop over K on the same feature maps, which
lie on the device, with one call for each K and batch.

Seconds of Python are those of its own thread at work, not waiting: what a faster device
cannot shorten. Compilation is apart. What is dispatched to a device is counted in a
trace by JAX's profiler.

Axes: K masks, N images.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.measure import timed
from experiments.bench.report import write_csv
from jaxprune._base.mesh import Sharded, make_mesh
from jaxprune.adapters.linen import from_linen
from jaxprune.cli import process
from jaxprune.data.splits import Split, image_split
from jaxprune.graph.network import Network
from jaxprune.ranking import criteria
from jaxprune.recipes.models import CifarVGG
from jaxprune.results.result import SweepResult
from jaxprune.sweep.activations import TappedLayer, tap_layer
from jaxprune.sweep.layer import sweep_layer
from jaxprune.sweep.taps import run_from_map

CHANNELS = 512
# By this the widths of all other layers are divided.
NARROWER = 16
# Images in a batch, as many as keep an accelerator busy with the whole network.
BATCH = 2048
# What JAX's profiler calls a program's start on one device.
_DISPATCH = "LoadedExecutable::ExecuteHelper"
_COLUMNS = ("what", "seconds", "lowest", "highest", "python_seconds", "dispatches")


def main(images: int, runs: int, folder: Path) -> None:
    """Measures, prints and writes bench_host.csv.

    Args:
      images: their number.
      runs: timed runs of each.
      folder: for the file.
    """
    network, split = _narrow(images)
    loop = _Loop(network, split)
    turns: dict[str, Callable[[], np.ndarray]] = {
        "trunk and sweep": lambda: _sweep(_tap(network, split)),
        "loop over K, maps kept": loop,
    }
    predicted = {what: turn() for what, turn in turns.items()}  # and warms them up
    one, other = predicted.values()
    if (differ := (one != other).mean()) > 1e-3:
        raise AssertionError(f"{differ:.2%} of the predictions differ")
    measured: dict[str, list[tuple[float, float]]] = {what: [] for what in turns}
    for _ in range(runs):
        for what, turn in turns.items():
            measured[what].append(_seconds(turn))
    rows = []
    for what, turn in turns.items():
        seconds, python = map(np.array, zip(*measured[what], strict=True))
        rows.append(
            {
                "what": what,
                "seconds": float(np.median(seconds)),
                "lowest": seconds.min(),
                "highest": seconds.max(),
                "python_seconds": float(np.median(python)),
                "dispatches": _dispatches(turn),
            }
        )
    batches = -(-images // BATCH)
    print(f"{images} images in {batches} batches, {CHANNELS} K; compilation apart")
    print(
        f"{'':26}{'seconds':>9}{'lowest':>9}{'highest':>9}{'Python':>9}{'dispatched':>12}"
    )
    for row in rows:
        print(
            f"{row['what']:26}{row['seconds']:>9.2f}{row['lowest']:>9.2f}"
            f"{row['highest']:>9.2f}{row['python_seconds']:>9.2f}{row['dispatches']:>12}"
        )
    write_csv(folder / "bench_host.csv", _COLUMNS, rows)
    process.finish(folder / "bench_host.csv")


def _narrow(images: int) -> tuple[Network, Split]:
    *others, _ = CifarVGG.widths
    *dense, classes = CifarVGG.dense
    model = CifarVGG(
        widths=(*(w // NARROWER for w in others), CHANNELS),
        dense=(*(w // NARROWER for w in dense), classes),
    )
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (images, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, classes, images)
    split = image_split(pixels, labels, [str(label) for label in range(classes)])
    example = jnp.zeros((1, 32, 32, 3))
    variables = jax.jit(model.init)(jax.random.key(0), example)
    network = from_linen(model, variables, example, train=False)

    def scaled(params: Any, x: Any) -> Any:
        return network.function(params, (x.astype(jnp.float32) - 127) / 128)

    return network.with_function(scaled), split


def _tap(network: Network, split: Split) -> TappedLayer:
    one = make_mesh(jax.local_devices()[:1])
    return tap_layer(
        network, split, tap="relu", batch_size=BATCH, maps="device", mesh=one
    )


def _sweep(tapped: TappedLayer) -> np.ndarray:
    """The predictions of all K, the trunk included."""
    result = sweep_layer(tapped, criteria.mean(tapped.mean_feature_map))
    assert isinstance(result, SweepResult)
    return result.predictions


class _Loop:
    """The network behind the layer, called once for each K and batch."""

    def __init__(self, network: Network, split: Split):
        """Runs the trunk, whose maps stay where they are."""
        self._tapped = tapped = _tap(network, split)
        order = np.argsort(criteria.mean(tapped.mean_feature_map), kind="stable")
        self._rank = jnp.asarray(np.argsort(order))
        self._batches = [*tapped.batches(BATCH)]

        @jax.jit
        def head(arrays: Any, images: Any, maps: Any, rank: Any, k: Any) -> Any:
            masked = jnp.where(rank >= k, maps, 0.0)
            found = run_from_map(tapped.network, arrays, images, tapped.name, masked)
            return jnp.argmax(found, axis=-1)

        self._head = head

    def __call__(self) -> np.ndarray:
        """The predictions of all K."""
        found = []
        for k in range(CHANNELS):
            row = [
                self._head(self._tapped.arrays, batch.images, maps, self._rank, k)
                for batch, maps in self._batches
            ]
            found.append(row)
        rows = [np.concatenate(row) for row in jax.device_get(found)]
        return np.stack(rows)[:, : len(self._tapped.split)]


def _seconds(turn: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of a turn, and of Python's thread in it, without compilation."""
    with _compiling() as compiled:
        python = time.thread_time()
        seconds = timed(turn)
        python = time.thread_time() - python
    return seconds - compiled["seconds"], python - compiled["python"]


@contextmanager
def _compiling() -> Iterator[dict[str, float]]:
    """Adds up what compilation takes meanwhile."""
    spent = {"seconds": 0.0, "python": 0.0}
    compile_program = Sharded.compile

    def measured(self: Sharded, *placed: Any) -> Any:
        started, python = time.perf_counter(), time.thread_time()
        found = compile_program(self, *placed)
        spent["seconds"] += time.perf_counter() - started
        spent["python"] += time.thread_time() - python
        return found

    with mock.patch.object(Sharded, "compile", measured):
        yield spent


def _dispatches(turn: Callable[[], Any]) -> int:
    """The programs that a turn starts on one device, as JAX's profiler counts them."""
    with tempfile.TemporaryDirectory() as folder:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0
        with jax.profiler.trace(folder, profiler_options=options):
            turn()
        (path,) = Path(folder).rglob("*.xplane.pb")
        planes = jax.profiler.ProfileData.from_file(str(path)).planes
        return sum(
            _DISPATCH in event.name
            for plane in planes
            for line in plane.lines
            for event in line.events
        )
