"""What `experiments.bench` measures of this project; each in a process of its own."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import cluster
from experiments.job import Job
from jaxprune import mesh
from jaxprune.channels import flow as dependence
from jaxprune.channels import taps
from jaxprune.channels.taps import at_path
from jaxprune.compaction import cost
from jaxprune.data.splits import Split, batches
from jaxprune.mesh import REPLICATED, SPREAD, Sharded
from jaxprune.networks import training as train
from jaxprune.ranking import order as ranking
from jaxprune.sweep import layer as sweep
from jaxprune.sweep.trunk import tap_layer

# A warm-up and so many steps are one timed run of training.
STEPS = 3
MATRIX = {"cpu": 2048, "gpu": 8192, "tpu": 8192}


@dataclass(frozen=True)
class Bench:
    """What is measured.

    Attributes:
      run: the network and its data.
      variables: its weights.
      split: all images.
      some: the images that slow loops are measured on.
      layer: the layer whose channels are pruned.
      runs: timed runs of each.
      loop_ks: values of K that slow loops are measured for.
    """

    run: Job
    variables: Any
    split: Split
    some: Split
    layer: str
    runs: int
    loop_ks: Sequence[int]

    @property
    def channels(self) -> int:
        """Channels of the layer, P."""
        return len(at_path(self.variables["params"], self.layer)["bias"])


def timed(function: Callable[[], Any], runs: int) -> list[float]:
    """Seconds of each of so many calls."""
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return seconds


def matmul(bench: Bench) -> dict[str, Any]:
    """A square float32 matrix product; `rate` is in multiply-adds per second."""
    size = MATRIX[jax.default_backend()]
    x = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    seconds = timed(lambda: product(x, x).block_until_ready(), 5 * bench.runs)
    return {"seconds": seconds, "rate": size**3 / float(np.median(seconds))}


def evaluation(bench: Bench) -> dict[str, Any]:
    """The network's predictions of all images, once."""
    predict = _predictor(bench)
    next(iter(_predict_all(predict, bench.variables, bench.split)))
    seconds = timed(
        lambda: list(_predict_all(predict, bench.variables, bench.split)), bench.runs
    )
    return {"seconds": seconds, "compile_seconds": predict.compile_seconds}


def _predictor(bench: Bench) -> Sharded:
    return Sharded(
        lambda variables, x: jnp.argmax(bench.run.apply(variables, x), axis=-1),
        cluster.local_mesh(),
        (REPLICATED, SPREAD),
        SPREAD,
    )


def _predict_all(predict: Sharded, variables: Any, split: Split) -> Any:
    devices = cluster.local_mesh()
    variables = mesh.replicate(variables, devices)
    for batch in batches(split, mesh.round_up(_batch_size(), devices.size)):
        yield np.asarray(predict(variables, batch.images))


def _batch_size() -> int:
    """Images at once: what keeps the device busy."""
    return 128 if jax.default_backend() == "cpu" else 2048


def training(bench: Bench) -> dict[str, Any]:
    """STEPS training steps of one batch each."""
    conf, recipe = bench.run.config, bench.run.config.recipe
    optimizer = train.adam(conf.learning_rate, 100, 10)
    step = train.make_train_step(
        bench.run.model,
        optimizer,
        bench.run.scale,
        seed=0,
        l2=recipe.l2,
        augment=train.crop_and_flip,
    )
    devices = cluster.training_mesh(conf.train_batch_size)
    index = np.arange(conf.train_batch_size) % len(bench.split)
    batch = mesh.spread((bench.split.read(index), bench.split.labels[index]), devices)
    state = mesh.replicate(train.init_state(bench.variables, optimizer), devices)
    started = time.perf_counter()
    compiled = step.lower(state, *batch).compile()  # type: ignore[attr-defined]
    compile_seconds = time.perf_counter() - started

    def steps() -> None:
        nonlocal state
        for _ in range(STEPS):
            state, _ = compiled(state, *batch)
        jax.block_until_ready(state)

    steps()
    return {"seconds": timed(steps, bench.runs), "compile_seconds": compile_seconds}


def whole_sweep(bench: Bench) -> dict[str, Any]:
    """Trunk, ranking and every K over all images; compilation apart."""
    return _sweep(bench, bench.split)


def dense_sweep(bench: Bench) -> dict[str, Any]:
    """The same with every pair evaluated, on some of the images."""
    return _sweep(bench, bench.some, dense=True)


def _sweep(bench: Bench, split: Split, **options: Any) -> dict[str, Any]:
    seconds, compile_seconds, about = [], [], {}
    for _ in range(bench.runs):
        started = time.perf_counter()
        tapped = tap_layer(
            bench.run.apply, bench.variables, split, layer=bench.layer, tap="relu",
            batch_size=_batch_size(), mesh=cluster.local_mesh(),
        )  # fmt: skip
        scores = ranking.mean(tapped.mean_feature_map)
        about = sweep.sweep_layer(tapped, bench.variables, scores, **options).about
        compile_seconds.append(about["seconds"]["compilation"])
        # What else prepares it (checks, tracing) is counted.
        seconds.append(time.perf_counter() - started - compile_seconds[-1])
    return {
        "seconds": seconds,
        "compile_seconds": float(np.median(compile_seconds)),
        "measured": len(split) / len(bench.split),
        "pairs": about["pairs"],
        "pairs_evaluated": about["pairs_evaluated"],
    }


def one_pass(bench: Bench) -> dict[str, Any]:
    """For a few K: weights zeroed, and one pass over some of the images."""
    predict = _predictor(bench)
    next(iter(_predict_all(predict, bench.variables, bench.some)))

    def loop() -> None:
        for k in bench.loop_ks:
            pruned = jax.tree.map(np.array, bench.variables)
            for array in at_path(pruned["params"], bench.layer).values():
                array[..., :k] = 0
            list(_predict_all(predict, pruned, bench.some))

    measured = len(bench.loop_ks) / bench.channels * len(bench.some) / len(bench.split)
    return {
        "seconds": timed(loop, bench.runs),
        "measured": measured,
        "compile_seconds": predict.compile_seconds,
    }


def cached_trunk(bench: Bench) -> dict[str, Any]:
    """The head for a few K on kept feature maps of some images; then the trunk's part.

    The trunk runs once, not once for every K, so it is measured by itself.
    """
    apply, layer = bench.run.apply, bench.layer

    @jax.jit
    def trunk(variables: Any, images: Any) -> Any:
        return taps.capture(apply, variables, images, layer, taps.TAPS["relu"])

    @jax.jit
    def head(variables: Any, images: Any, feature_map: Any, mask: Any) -> Any:
        masked = jnp.where(mask, feature_map, 0.0)
        logits = taps.replace(apply, variables, images, layer, masked)
        return jnp.argmax(logits, axis=-1)

    variables = jax.device_put(bench.variables)
    some = [b.images for b in batches(bench.some, _batch_size())]

    def run_trunk() -> list[Any]:
        return jax.block_until_ready([trunk(variables, images) for images in some])

    maps = run_trunk()

    def run_heads() -> None:
        for k in bench.loop_ks:
            mask = np.arange(bench.channels) >= k
            for images, feature_map in zip(some, maps, strict=True):
                np.asarray(head(variables, images, feature_map, mask))

    run_heads()
    return combine_trunk_and_heads(
        bench, timed(run_trunk, bench.runs), timed(run_heads, bench.runs)
    )


def combine_trunk_and_heads(
    bench: Bench, trunk: list[float], heads: list[float]
) -> dict[str, Any]:
    """Seconds for all images and every K, from a few K on some images."""
    images = len(bench.some) / len(bench.split)
    every = bench.channels / len(bench.loop_ks)
    seconds = [(t + h * every) / images for t, h in zip(trunk, heads, strict=True)]
    return {"seconds": seconds, "measured": 1.0, "extrapolated": True}


def multiply_adds(bench: Bench) -> tuple[int, int]:
    """Of one image up to the layer, and from there on."""
    run = bench.run
    calls = dependence.list_calls(run.apply, bench.variables, run.example)
    names = [call.name for call in calls]
    behind = calls[names.index(bench.layer) + 1 :]
    head = 0
    for call in behind:
        kernel = at_path(bench.variables["params"], call.name).get("kernel")
        if kernel is not None:
            positions = int(np.prod(call.output.shape[1:-1]))
            head += positions * int(np.prod(kernel.shape))
    return cost.multiply_adds(run.apply, bench.variables, run.example) - head, head


MEASURES: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "matmul": matmul,
    "evaluation": evaluation,
    "training": training,
    "sweep": whole_sweep,
    "dense": dense_sweep,
    "one_pass": one_pass,
    "cached_trunk": cached_trunk,
}
