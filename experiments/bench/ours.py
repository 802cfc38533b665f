"""What `experiments.bench` measures of this project."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.measure import (
    STEPS,
    Bench,
    Prepared,
    batch_size,
    timed,
    trunk_and_heads,
    turn_of,
)
from jaxprune._base import mesh
from jaxprune.adapters.linen import at_path
from jaxprune.cli import cluster
from jaxprune.costs.multiply_adds import of_layer
from jaxprune.data import datasets
from jaxprune.data.splits import Split, batches
from jaxprune.evaluation.predict import compiled, predict
from jaxprune.fills.calibration import linear_fill
from jaxprune.fills.fill import Fill
from jaxprune.graph.network import IMAGES
from jaxprune.ranking import criteria
from jaxprune.recipes import training
from jaxprune.sweep.activations import tap_layer
from jaxprune.sweep.layer import sweep_layer
from jaxprune.sweep.taps import TAPS, capture_map, run_from_map
from jaxprune.training import loop

MATRIX = {"cpu": 2048, "gpu": 8192, "tpu": 8192}
# Products in one timed run, of which the median counts.
_PRODUCTS = 5


def matmul(bench: Bench) -> Prepared:
    """A square float32 matrix product."""
    size = MATRIX[jax.default_backend()]
    x = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(jnp.matmul)

    def once() -> None:
        product(x, x).block_until_ready()

    def turn() -> dict[str, Any]:
        return {"seconds": float(np.median([timed(once) for _ in range(_PRODUCTS)]))}

    once()
    return Prepared(turn, facts={"multiply_adds": size**3})


def evaluation(bench: Bench) -> Prepared:
    """The network's predictions of all images, once."""
    evaluate, compile_seconds = _evaluate(bench, bench.split)
    return Prepared(
        turn_of(lambda: evaluate(bench.variables)),
        compile_seconds=compile_seconds,
    )


def _evaluate(bench: Bench, split: Split) -> tuple[Callable[[Any], np.ndarray], float]:
    """The split's predictions by variables, ready to use, and the compile time."""
    devices, size = bench.run.mesh, batch_size(split)
    program = compiled(bench.run.apply, devices)

    def evaluate(variables: Any, images: Split = split) -> np.ndarray:
        logits = predict(program, variables, images, batch_size=size, mesh=devices)
        return logits.argmax(-1)

    evaluate(bench.variables, _first(split, size))
    return evaluate, program.compile_seconds


def _first(split: Split, count: int) -> Split:
    return split.select(np.arange(min(count, len(split))))


def _two_batches(split: Split) -> Split:
    return _first(split, 2 * batch_size(split))


def train(bench: Bench) -> Prepared:
    """STEPS training steps of one batch each; no augmentation, as PyTorch's."""
    conf = bench.run.training
    optimizer = loop.adam(conf.learning_rate, 100, 10)
    step = training.make_train_step(
        bench.run.model.apply, optimizer, bench.run.scale, seed=0, l2=bench.run.l2
    )
    devices = cluster.training_mesh(bench.run.mesh, conf.train_batch_size)
    index = np.arange(conf.train_batch_size) % len(bench.split)
    batch = mesh.spread((bench.split.read(index), bench.split.labels[index]), devices)
    state = mesh.replicate(training.init_state(bench.variables, optimizer), devices)
    started = time.perf_counter()
    program = step.lower(state, *batch).compile()  # type: ignore[attr-defined]
    compile_seconds = time.perf_counter() - started

    def steps() -> None:
        nonlocal state
        for _ in range(STEPS):
            state, _ = program(state, *batch)
        jax.block_until_ready(state)

    steps()
    return Prepared(turn_of(steps), compile_seconds=compile_seconds)


def sweep(bench: Bench, *, warm: bool = True, **options: Any) -> Prepared:
    """Trunk, ranking and every K over all images; compilation apart.

    Args:
      bench: network, images and settings.
      warm: begin with a sweep of two batches that does not count.
      **options: for `_sweep`.
    """
    if warm:
        _sweep(bench, _two_batches(bench.split), **options)
    return Prepared(
        lambda: _sweep(bench, bench.split, **options),
        facts={"multiply_adds": multiply_adds(bench)},
    )


def some(bench: Bench, *, inner: bool = False, **options: Any) -> Prepared:
    """A sweep on some of the images.

    Args:
      bench: network, images and settings.
      inner: of the convolution before the last one.
      **options: for `_sweep`.
    """
    if inner:
        layers = bench.run.network().layers.values()
        convs = [layer.name for layer in layers if layer.kind == "conv"]
        options["layer"] = convs[convs.index(bench.layer) - 1]
    _sweep(bench, _two_batches(bench.some), **options)
    return Prepared(
        lambda: _sweep(bench, bench.some, **options), share=bench.share_of_images
    )


def linear(bench: Bench) -> Prepared:
    """A sweep with the linear fill, on some of the images; fitting it is counted."""
    images = datasets.choose_split(bench.run.splits, "train[:512]")
    calibration = images.read(np.arange(len(images)))

    def fitted() -> Fill:
        return linear_fill(
            bench.run.network(bench.variables), calibration, layer=bench.layer,
            batch_size=batch_size(images), mesh=bench.run.mesh,
        )  # fmt: skip

    return some(bench, make_fill=fitted)


def _sweep(
    bench: Bench,
    split: Split,
    *,
    layer: str | None = None,
    make_fill: Callable[[], str | Fill] = lambda: "zero",
    **options: Any,
) -> dict[str, Any]:
    """One timed sweep, by default of the last layer."""
    started = time.perf_counter()
    fill = make_fill()
    tapped = tap_layer(
        bench.run.network(bench.variables), split, layer=layer or bench.layer,
        tap=bench.run.recipe.tap, batch_size=batch_size(split),
        mesh=bench.run.mesh,
    )  # fmt: skip
    scores = criteria.mean(tapped.mean_feature_map)
    about = sweep_layer(tapped, scores, fill=fill, **options).about
    compile_seconds = about["seconds"]["compilation"]
    # What else prepares it (checks, tracing) is counted.
    seconds = time.perf_counter() - started - compile_seconds
    return {
        "seconds": seconds,
        "compile_seconds": compile_seconds,
        "channels": len(scores),
        "pairs": about["pairs"],
        "pairs_evaluated": about["pairs_evaluated"],
    }


def one_pass(bench: Bench) -> Prepared:
    """For a few K: weights zeroed, and one pass over some of the images."""
    evaluate, compile_seconds = _evaluate(bench, bench.some)

    def loop() -> None:
        for k in bench.loop_ks:
            pruned = jax.tree.map(np.array, bench.variables)
            for array in at_path(pruned["params"], bench.layer).values():
                array[..., :k] = 0
            evaluate(pruned)

    return Prepared(
        turn_of(loop), share=bench.share_of_loop, compile_seconds=compile_seconds
    )


def cached_trunk(bench: Bench) -> Prepared:
    """The head for a few K on kept feature maps of some images; then the trunk's part.

    The trunk runs once, not once for every K, so it is measured by itself.
    """
    network, layer = bench.run.network(bench.variables), bench.layer
    activation = TAPS[bench.run.recipe.tap]

    @jax.jit
    def trunk(arrays: Any, images: Any) -> Any:
        return activation(capture_map(network, arrays, images, layer))

    @jax.jit
    def head(arrays: Any, images: Any, feature_map: Any, mask: Any) -> Any:
        masked = jnp.where(mask, feature_map, 0.0)
        logits = run_from_map(network, arrays, images, layer, masked)
        return jnp.argmax(logits, axis=-1)

    arrays = jax.device_put(network.arrays)
    some = [b.images for b in batches(bench.some, batch_size(bench.some))]

    def run_trunk() -> list[Any]:
        return jax.block_until_ready([trunk(arrays, images) for images in some])

    maps = run_trunk()

    def run_heads() -> None:
        for k in bench.loop_ks:
            mask = np.arange(bench.channels) >= k
            for images, feature_map in zip(some, maps, strict=True):
                np.asarray(head(arrays, images, feature_map, mask))

    run_heads()
    return Prepared(trunk_and_heads(bench, run_trunk, run_heads), extrapolated=True)


def multiply_adds(bench: Bench) -> tuple[int, int]:
    """Of one image: up to and with the layer, and from there on."""
    layers = bench.run.network().layers
    counts = {name: of_layer(layer) / IMAGES for name, layer in layers.items()}
    behind = list(counts).index(bench.layer) + 1
    head = sum(list(counts.values())[behind:])
    return round(sum(counts.values()) - head), round(head)


MEASURES: dict[str, Callable[[Bench], Prepared]] = {
    "matmul": matmul,
    "evaluation": evaluation,
    "training": train,
    "sweep": sweep,
    "some": some,
    "every_pair": partial(some, every_pair=True),
    "linear": linear,
    "inner": partial(some, inner=True),
    "inner_every_pair": partial(some, inner=True, every_pair=True),
    "one_pass": one_pass,
    "cached_trunk": cached_trunk,
    "scaling": partial(sweep, warm=False),
}
