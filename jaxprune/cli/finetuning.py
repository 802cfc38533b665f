"""Recovery after pruning: BatchNorm statistics, fine-tuning, distillation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxprune._base.batch import on_device
from jaxprune._base.errors import InputError
from jaxprune.cli import cluster
from jaxprune.cli.baseline import Baseline
from jaxprune.cli.run_directory import Run
from jaxprune.cli.settings import EpochSettings, FinetuningSettings
from jaxprune.compaction.network import Compact
from jaxprune.compaction.recalibrate import recalibrate
from jaxprune.data import datasets
from jaxprune.data.splits import Split
from jaxprune.graph.network import Network
from jaxprune.recipes.config import Config
from jaxprune.recipes.recipe import RECIPES
from jaxprune.report.measures import in_words
from jaxprune.training import losses
from jaxprune.training.augmentation import blend, crop_and_flip
from jaxprune.training.finetune import LEARNING_RATE, Epoch, finetune
from jaxprune.training.hyperparameters import EVALUATION, TRAINING
from jaxprune.training.loop import steps_per_epoch

# Training batches that BatchNorm statistics are estimated over.
_RECALIBRATION_BATCHES = 40
# Images in a batch, where no recipe says how many, at the most.
_BATCH = 128
# What only changes the fine-tuning, and what only changes the distillation.
_OF_FINETUNING = (
    "finetune_learning_rate", "finetune_images", "distill", "distill_temperature",
    "distill_weight",
)  # fmt: skip
_OF_BOTH = ("finetune_split", "finetune_batch_size")
_OF_DISTILLATION = ("distill_temperature", "distill_weight")


class Way(NamedTuple):
    """How a network is fine-tuned.

    Attributes:
      learning_rate: the highest.
      batch_norm: "evaluation", BatchNorm keeps its statistics, or "training". With a
        teacher there is nothing to regularise, and whatever moves a network that has
        lost little costs more than some thousand images bring.
    """

    learning_rate: float
    batch_norm: str


@dataclass(frozen=True)
class Finetuning:
    """The fine-tuning of a run's networks, as the settings say.

    Where they do not, it goes by the recipe that the whole network was trained by. A
    network of one's own has none: its images are taken as they are.

    Attributes:
      run: the run directory's job.
      settings: of fine-tuning and distillation.
    """

    run: Run
    settings: EpochSettings

    @property
    def recipe(self) -> Config | None:
        """The configuration of the whole network's training, if it was trained here."""
        return self.run.config if isinstance(self.run.config, Config) else None

    @property
    def split(self) -> str:
        """The images to train on, as `choose_split` takes it."""
        return self.settings.finetune_split or self.run.config.train_split or "train"

    @property
    def batch_size(self) -> int:
        """Images in a step."""
        if self.settings.finetune_batch_size is not None:
            return self.settings.finetune_batch_size
        if self.recipe is not None:
            return self.recipe.train_batch_size
        return min(_BATCH, self._count(self._all()))

    def images(self) -> Split:
        """The images: --finetune_images of the training split.

        Raises:
          InputError: there are not as many, or they do not fill a batch.
        """
        split = self._all()
        count, batch = self._count(split), self.batch_size
        if count > len(split):
            raise InputError(
                f"--finetune_images={count}: {self.split} has {len(split)}"
            )
        if self.settings.finetune_epochs and count < batch:
            raise InputError(
                f"{count} images do not fill a batch of {batch} to fine-tune on: give "
                "more as --finetune_images"
            )
        return split.select(np.arange(count))

    def _all(self) -> Split:
        try:
            return datasets.choose_split(self.run.splits, self.split)
        except InputError as error:
            raise InputError(f"--finetune_split: {error}") from None

    def _count(self, split: Split) -> int:
        return self.settings.finetune_images or len(split)

    def describe(self) -> dict[str, Any]:
        """How a network is fine-tuned; JSON-able."""
        settings = self.settings
        facts: dict[str, Any] = {"finetune_epochs": settings.finetune_epochs}
        if settings.finetune_epochs:
            facts["finetune_split"] = self.split
            facts["finetune_images"] = len(self.images())
            facts["finetune_batch_size"] = self.batch_size
        if settings.distill:
            facts["distill_temperature"] = settings.distill_temperature
            facts["distill_weight"] = settings.distill_weight
        return facts

    @property
    def way(self) -> Way:
        """How a network is fine-tuned where nothing else is said."""
        rate = self.settings.finetune_learning_rate
        if rate is None:
            recipe = self.recipe
            rate = LEARNING_RATE if recipe is None else recipe.learning_rate / 10
        return Way(rate, EVALUATION if self.settings.distill else TRAINING)

    @property
    def seed(self) -> int:
        """Of the order and augmentation: another than training's."""
        return self.run.config.seed + 1

    def augment(self, key: Array, images: Array) -> Array:
        """What the network takes of images: as in training, where there is a recipe."""
        if self.recipe is not None and RECIPES[self.recipe.model].crop_and_flip:
            images = crop_and_flip(key, images)
        return self.run.scale(images)

    def inputs(self, key: Array, images: Array) -> Array:
        """The same, blended where `finetune` blends them."""
        x = self.augment(key, images)
        if self.settings.distill and self.settings.distill_weight == 1:
            x = blend(jax.random.fold_in(key, 1), x)
        return x

    def tuned(
        self,
        small: Compact,
        whole: Network,
        way: Way | None = None,
        on_epoch: Callable[[Epoch], Any] = lambda epoch: None,
    ) -> Compact:
        """The network after the epochs.

        Args:
          small: the network, on scaled images.
          whole: the whole network, which --distill learns from.
          way: how; by default the settings'.
          on_epoch: called after each epoch.

        Raises:
          InputError: see `images`.
        """
        split, size, settings = self.images(), self.batch_size, self.settings
        steps, way = steps_per_epoch(split, size), way or self.way
        total = settings.finetune_epochs * steps * size
        with cluster.progress(total=total, unit="img", desc="tuning") as bar:
            return finetune(
                small,
                whole if settings.distill else None,
                split,
                task=self.run.task,
                epochs=settings.finetune_epochs,
                batch_size=size,
                learning_rate=way.learning_rate,
                temperature=settings.distill_temperature,
                weight=settings.distill_weight if settings.distill else None,
                augment=self.augment,
                batch_norm=way.batch_norm,
                seed=self.seed,
                on_step=lambda metrics: bar.update(size),
                on_epoch=on_epoch,
            )

    def loss(self, small: Compact, whole: Network) -> float:
        """Mean loss on the images that are fine-tuned on.

        Without shifts and blending, over whole batches; arguments as `tuned`.
        """
        split, size, settings = self.images(), self.batch_size, self.settings

        @jax.jit
        def of_batch(arrays: Any, params: Any, batch: Array, labels: Any) -> Array:
            x = self.run.scale(batch)
            part = self.run.task.part
            return losses.mean_loss(
                self.run.task, part(small.function(arrays, x)), labels,
                part(whole.function(params, x)) if settings.distill else None,
                settings.distill_temperature, settings.distill_weight,
            )  # fmt: skip

        arrays = jax.tree.map(jnp.asarray, (dict(small.arrays), whole.params))
        indices = np.split(np.arange(len(split) // size * size), len(split) // size)
        given = ((split.read(i), split.read_targets(i)) for i in indices)
        return float(np.mean([float(of_batch(*arrays, *batch)) for batch in given]))

    def recalibrated(
        self, small: Compact, split: Split | None = None
    ) -> tuple[Compact, int]:
        """The network with BatchNorm statistics of its own, and images used.

        Args:
          small: the network, on scaled images.
          split: the images; by default some of those to train on, drawn.
        """
        run, size = self.run, self.batch_size
        if split is None:
            split = self._all()
            order = np.random.default_rng([run.config.seed, 2]).permutation(len(split))
            split = split.select(order[: _RECALIBRATION_BATCHES * size])
        count = steps_per_epoch(split, size)
        inputs = (
            run.scale(on_device(split.read(np.arange(i * size, (i + 1) * size))))
            for i in range(count)
        )
        return small.with_arrays(recalibrate(small.network, inputs)), count * size


def check_flags(settings: EpochSettings) -> None:
    """Checks the flags alone, before any work is done.

    Raises:
      InputError: a flag that does nothing without another, or a value out of range.
    """
    if not settings.finetune_epochs:
        settings.refuse(_OF_FINETUNING, "--finetune_epochs")
        if not getattr(settings, "recalibrate", False):
            settings.refuse(_OF_BOTH, "--finetune_epochs")
    if not settings.distill:
        settings.refuse(_OF_DISTILLATION, "--distill")
    losses.check_distillation(settings.distill_temperature, settings.distill_weight)


def check(run: Run, settings: FinetuningSettings) -> None:
    """Checks what the settings ask for, before any work is done.

    Raises:
      InputError: see `Finetuning.images`; or they are images that networks are measured
        on, which --allow_overlap would allow.
    """
    if not settings.recalibrate and not settings.finetune_epochs:
        return
    tuning = Finetuning(run, settings)
    tuning.images()
    shared = datasets.overlap(run.splits, tuning.split, settings.eval_split)
    if shared and not settings.allow_overlap:
        raise InputError(
            f"--finetune_split={tuning.split} holds {shared} images of "
            f"--eval_split={settings.eval_split}: choose others, or --allow_overlap"
        )


def describe(run: Run, settings: FinetuningSettings) -> dict[str, Any]:
    """The steps that the settings have asked for; JSON-able."""
    tuning = Finetuning(run, settings)
    facts = {"recalibrated": settings.recalibrate, **tuning.describe()}
    if settings.finetune_epochs:
        facts["finetune_learning_rate"] = tuning.way.learning_rate
        facts["batch_norm"] = tuning.way.batch_norm
    return facts


def train_on(
    run: Run,
    settings: FinetuningSettings,
    whole: Baseline,
    small: Compact,
    before: float,
) -> tuple[Compact, dict[str, Any], list[dict[str, Any]]]:
    """Recalibrates and fine-tunes where that is asked for.

    Args:
      run: the run directory's job.
      settings: which of both is asked for, and how.
      whole: the whole network over the evaluation split.
      small: the network.
      before: its first score, as it is.

    Returns:
      The network, scores to add to the figures, and a line for each epoch, the first of
      which is before any training.
    """
    changes: dict[str, Any] = {}
    program = whole.program(small.function)
    tuning, measure = Finetuning(run, settings), whole.task.measure
    words = in_words(measure)

    def test(network: Compact) -> float:
        made = whole.outputs(program, dict(network.arrays))
        return whole.value(whole.judged(made, "test"))

    start = before
    if settings.recalibrate:
        small, images = tuning.recalibrated(small)
        changes[f"{measure}_recalibrated"] = start = test(small)
        cluster.say(
            f"  recalibrated over {images} training images: {words} {start:.4f}"
        )
    lines: list[dict[str, Any]] = [{"epoch": 0, f"test_{measure}": start}]

    def note(epoch: Epoch) -> None:
        found = test(epoch.network)
        line: dict[str, Any] = {"epoch": epoch.epoch, "loss": epoch.loss}
        if not np.isnan(epoch.accuracy):
            line["train_accuracy"] = epoch.accuracy
        line |= {f"test_{measure}": found, "seconds": round(epoch.seconds, 2)}
        lines.append(line)
        cluster.say(
            f"  fine-tuned, epoch {epoch.epoch}/{settings.finetune_epochs}: loss "
            f"{epoch.loss:.4f}, test {words} {found:.4f}"
        )

    if settings.finetune_epochs:
        small = tuning.tuned(small, whole.network, on_epoch=note)
        changes[f"{measure}_finetuned"] = lines[-1][f"test_{measure}"]
    return small, changes, lines
