"""--export: other forms of a smaller network, each run on all images first.

stablehlo is the program itself, for any platform. An ONNX model is run by onnxruntime,
a Keras model by Keras, from the file that is written.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxprune._base.batch import on_device
from jaxprune._base.errors import InputError, check_choice
from jaxprune.cli import cluster
from jaxprune.cli.baseline import Baseline, in_turns
from jaxprune.cli.run_directory import Run
from jaxprune.cli.settings import EXPORTS, SmallerSettings
from jaxprune.compaction import artefact, onnx
from jaxprune.compaction.network import Compact
from jaxprune.compaction.pixels import check_pixels
from jaxprune.data.splits import batches
from jaxprune.graph.network import Network
from jaxprune.recipes.config import Config
from jaxprune.report.measures import in_words

_KERAS = "Keras model"


def check_flags(settings: SmallerSettings) -> None:
    """Checks --export alone, before any work is done.

    Raises:
      InputError: an unknown form, or one whose packages are missing.
    """
    for name in settings.export:
        check_choice("export", name, EXPORTS)
    if "onnx" in settings.export:
        onnx.check_installed()


def check(run: Run, settings: SmallerSettings) -> None:
    """Raises InputError if a recipe's network, which is Flax's, is to be Keras's."""
    if "keras" in settings.export and isinstance(run.config, Config):
        raise InputError(_no_keras(run))


def _no_keras(run: Run) -> str:
    return f"--export=keras: {run.config.model} is no Keras model"


class Exports:
    """The other forms of a whole network's smaller ones.

    Raises:
      InputError: the whole network cannot be converted either.
    """

    def __init__(self, settings: SmallerSettings, whole: Baseline):
        self._settings, self._whole = settings, whole
        origin = whole.network.origin
        if "keras" in settings.export and getattr(origin, "framework", "") != _KERAS:
            raise InputError(_no_keras(whole.run))
        self._before: onnx.Program | None = None
        if "onnx" in settings.export:
            self._before = onnx.Program(self._to_onnx(whole.network))

    def of(self, small: Compact) -> tuple[dict[str, bytes], dict[str, Any]]:
        """A smaller network's files by name, and what they were measured to do.

        Raises:
          InputError: it cannot be converted.
        """
        if not {"onnx", "keras"} & {*self._settings.export}:
            return {}, {}
        files: dict[str, bytes] = {}
        figures: dict[str, dict[str, Any]] = {}
        if self._before is not None:
            files[artefact.ONNX] = data = self._to_onnx(small.network)
            figures["onnx"] = self._run_onnx(self._before, data, small)
        if "keras" in self._settings.export:
            files[artefact.KERAS], model = _keras_file(small)
            figures["keras"] = self._run_keras(model, small)
        return files, {"exports": figures}

    def _run_onnx(
        self, before: onnx.Program, data: bytes, small: Compact
    ) -> dict[str, Any]:
        after = onnx.Program(data)
        made = jax.eval_shape(small.function, dict(small.arrays), small.example)
        tree = jax.tree.structure(made)

        def outputs(images: np.ndarray) -> Any:
            return jax.tree.unflatten(tree, after(self._images(images)))

        figures = self._compared("onnx", outputs, small)
        one = self._images(self._whole.split.read(np.arange(1)))
        sizes, repeats = self._settings.batches(), self._settings.repeats
        figures["latency"] = in_turns([before, after], one, sizes, repeats)
        for batch, times in figures["latency"].items():
            seconds, less = times["before"]["median"], times["after"]["median"]
            cluster.say(
                f"    batch {batch:>4}  {1e3 * seconds:.1f} -> {1e3 * less:.1f} ms: "
                f"{times['speedup']:.2f} times faster, by onnxruntime"
            )
        return figures

    def _run_keras(self, model: Any, small: Compact) -> dict[str, Any]:
        def outputs(images: np.ndarray) -> Any:
            scaled = self._whole.run.scale(on_device(images))
            return model.predict_on_batch(np.asarray(scaled))

        return self._compared("keras", outputs, small)

    def _to_onnx(self, network: Network) -> bytes:
        config, split = self._whole.run.config, self._whole.split
        pixels = check_pixels(split.dtype, config.pixel_mean, config.pixel_std, network)
        return onnx.to_onnx(network, pixels, split.class_names)

    def _images(self, images: Any) -> Any:
        """Images with the axes that the network takes, or several inputs."""
        if self._whole.run.channels_first:
            images = np.moveaxis(images, -1, 1)
        return on_device(images)

    def _compared(
        self, what: str, run: Callable[[np.ndarray], Any], small: Compact
    ) -> dict[str, Any]:
        """Figures of a form's outputs, beside the compact network's."""
        whole = self._whole
        found = ((b, run(b.images)) for b in batches(whole.own, whole.batch_size))
        comparison = whole.comparison()
        judged = whole.compare(comparison, whole.small_outputs(small), found, what)
        measure, value = whole.task.measure, whole.value(judged)
        if whole.task.logits:
            differ = comparison.different_predictions
            figures = {"different_predictions": differ, measure: value}
            unlike = f"{differ} predictions differ from the compact network's"
        else:
            relative = comparison.relative_difference
            figures = {"relative_difference": relative, measure: value}
            unlike = f"{relative:.2e} relative difference from the compact network's"
        cluster.say(
            f"  {what:<10} {len(whole.split)} images: {unlike}, "
            f"{in_words(measure)} {value:.4f}"
        )
        return figures


def _keras_file(small: Compact) -> tuple[bytes, Any]:
    """The smaller Keras model as its file, and as Keras loads it from there."""
    from jaxprune.adapters.keras import from_keras

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / artefact.KERAS
        small.to_keras().save(path)
        return path.read_bytes(), from_keras(path).origin.model
