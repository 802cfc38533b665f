"""Recovery after pruning: BatchNorm statistics, fine-tuning, distillation."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from jaxprune._base.errors import InputError
from jaxprune.cli import cluster
from jaxprune.cli.baseline import Baseline
from jaxprune.cli.run_directory import Run
from jaxprune.cli.settings import EpochSettings, FinetuningSettings
from jaxprune.compaction.network import Compact, flat
from jaxprune.compaction.recalibrate import recalibrate
from jaxprune.data import datasets
from jaxprune.data.splits import Split
from jaxprune.recipes import losses, training
from jaxprune.recipes.training import EpochResult

# Training batches that BatchNorm statistics are estimated over.
_RECALIBRATION_BATCHES = 40
# What only changes the fine-tuning, and what only changes the distillation.
_OF_FINETUNING = (
    "finetune_learning_rate", "finetune_images", "distill", "distill_temperature",
    "distill_weight",
)  # fmt: skip
_OF_DISTILLATION = ("distill_temperature", "distill_weight")


class Way(NamedTuple):
    """How a network is fine-tuned.

    Attributes:
      learning_rate: the highest.
      gentle: whether the network is trained as it predicts: BatchNorm keeps its
        statistics, nothing is dropped or penalised. With a teacher there is nothing to
        regularise, and whatever moves a network that has lost little costs more than
        some thousand images bring. Otherwise as in training.
    """

    learning_rate: float
    gentle: bool


@dataclass(frozen=True)
class Finetuning:
    """The fine-tuning of a run's networks, as the settings say.

    Attributes:
      run: the run directory's job.
      settings: of fine-tuning and distillation.
    """

    run: Run
    settings: EpochSettings

    def images(self) -> Split:
        """The images: --finetune_images of the training split.

        Raises:
          InputError: there are not as many, or they do not fill a batch.
        """
        conf = self.run.training
        split = datasets.choose_split(self.run.splits, conf.train_split)
        given = self.settings.finetune_images
        count = len(split) if given is None else given
        batch = conf.train_batch_size
        if count > len(split):
            raise InputError(
                f"--finetune_images={count}: {conf.train_split} has {len(split)}"
            )
        if self.settings.finetune_epochs and count < batch:
            raise InputError(
                f"{count} images do not fill a batch of {batch} to fine-tune on: give "
                "more as --finetune_images"
            )
        return split.select(np.arange(count))

    def describe(self) -> dict[str, Any]:
        """How a network is fine-tuned; JSON-able."""
        settings = self.settings
        facts: dict[str, Any] = {"finetune_epochs": settings.finetune_epochs}
        if settings.finetune_epochs:
            facts["finetune_images"] = len(self.images())
        if settings.distill:
            facts["distill_temperature"] = settings.distill_temperature
            facts["distill_weight"] = settings.distill_weight
        return facts

    @property
    def way(self) -> Way:
        """How a network is fine-tuned where nothing else is said."""
        rate = self.settings.finetune_learning_rate
        return Way(
            rate or self.run.training.learning_rate / 10, gentle=self.settings.distill
        )

    @property
    def seed(self) -> int:
        """Of the order, augmentation and dropout: another than training's."""
        return self.run.config.seed + 1

    def augment(self, key: Array, images: Array) -> Array:
        """Images as in training, and blended where no label is used."""
        if self.run.recipe.crop_and_flip:
            images = training.crop_and_flip(key, images)
        if self.settings.distill and self.settings.distill_weight == 1:
            images = training.blend(jax.random.fold_in(key, 1), images)
        return images

    def epochs(
        self, small: Compact, variables: Any, whole: Any, way: Way | None = None
    ) -> Iterator[EpochResult]:
        """Epochs of the same loop as training's.

        Args:
          small: the network, on scaled images.
          variables: its variables.
          whole: variables of the whole network, which --distill learns from.
          way: how; by default the settings'.

        Raises:
          InputError: see `images`; or the model's own code, which is trained, computes
            something else with fewer channels.
        """
        run, split, settings = self.run, self.images(), self.settings
        size, way = run.training.train_batch_size, way or self.way
        steps = settings.finetune_epochs * training.steps_per_epoch(split, size)
        optimizer = training.adam(way.learning_rate, steps, 0)
        step = training.make_train_step(
            _as_it_predicts(small) if way.gentle else small.apply,
            optimizer,
            run.scale,
            seed=self.seed,
            l2={} if way.gentle else run.l2,
            augment=self.augment,
            teacher=self._teacher(whole),
            temperature=settings.distill_temperature,
            weight=settings.distill_weight,
        )
        state = training.init_state(jax.tree.map(jnp.array, variables), optimizer)

        def epochs() -> Iterator[EpochResult]:
            with cluster.progress(total=steps * size, unit="img", desc="tuning") as bar:
                yield from training.fit(
                    step, state, split, epochs=settings.finetune_epochs,
                    batch_size=size, seed=self.seed,
                    on_step=lambda metrics: bar.update(size),
                )  # fmt: skip

        return epochs()

    def loss(self, small: Compact, variables: Any, whole: Any) -> float:
        """Mean loss on the images that are fine-tuned on.

        Without penalties, shifts and dropout, over whole batches; arguments as
        `epochs`.
        """
        split, size = self.images(), self.run.training.train_batch_size
        temperature = self.settings.distill_temperature

        @jax.jit
        def of_batch(
            variables: Any, teacher: Any, batch: Array, labels: Array
        ) -> Array:
            x = self.run.scale(batch)
            return losses.mean_loss(
                small.function(flat(variables), x), labels,
                teacher(x) if teacher else None, temperature,
                self.settings.distill_weight,
            )  # fmt: skip

        teacher = self._teacher(whole)
        indices = np.split(np.arange(len(split) // size * size), len(split) // size)
        return float(
            np.mean(
                [
                    of_batch(variables, teacher, split.read(i), split.labels[i])
                    for i in indices
                ]
            )
        )

    def _teacher(self, variables: Any) -> Partial | None:
        """The whole network on scaled images, with its variables on the device."""
        if not self.settings.distill:
            return None
        return Partial(self.run.whole.function, jax.tree.map(jnp.asarray, variables))


def check_flags(settings: EpochSettings) -> None:
    """Checks the flags alone, before any work is done.

    Raises:
      InputError: a flag that does nothing without another, or a value out of range.
    """
    if not settings.finetune_epochs:
        settings.refuse(_OF_FINETUNING, "--finetune_epochs")
    if not settings.distill:
        settings.refuse(_OF_DISTILLATION, "--distill")
    losses.check_distillation(settings.distill_temperature, settings.distill_weight)


def check(run: Run, settings: FinetuningSettings) -> None:
    """Checks what the settings ask for, before any work is done.

    Raises:
      InputError: see `Finetuning.images`; or a network without a recipe to train by.
    """
    if settings.recalibrate or settings.finetune_epochs:
        Finetuning(run, settings).images()


def describe(run: Run, settings: FinetuningSettings) -> dict[str, Any]:
    """The steps that the settings have asked for; JSON-able."""
    tuning = Finetuning(run, settings)
    facts = {"recalibrated": settings.recalibrate, **tuning.describe()}
    if settings.finetune_epochs:
        facts["finetune_learning_rate"] = tuning.way.learning_rate
    return facts


def train_on(
    run: Run,
    settings: FinetuningSettings,
    whole: Baseline,
    small: Compact,
    accuracy_before: float,
) -> tuple[Compact, dict[str, Any], list[dict[str, Any]]]:
    """Recalibrates and fine-tunes where that is asked for.

    Returns:
      The network, accuracies to add to the figures, and a line for each epoch, the
      first of which is before any training.
    """
    changes: dict[str, Any] = {}
    program = whole.program(small.function)

    def accuracy(variables: Any) -> float:
        return whole.accuracy(whole.evaluate(program, flat(variables), "test"))

    variables = small.variables
    if settings.recalibrate:
        variables, images = recalibrated(run, small, variables)
        changes["accuracy_recalibrated"] = accuracy(variables)
        cluster.say(f"  recalibrated over {images} training images: accuracy "
                    f"{changes['accuracy_recalibrated']:.4f}")  # fmt: skip
    start = changes.get("accuracy_recalibrated", accuracy_before)
    lines = [{"epoch": 0, "test_accuracy": start}]
    if settings.finetune_epochs:
        tuning = Finetuning(run, settings)
        for result in tuning.epochs(small, variables, whole.variables):
            variables = jax.tree.map(np.asarray, result.state.variables)
            lines.append(
                {
                    "epoch": result.epoch,
                    "loss": result.loss,
                    "train_accuracy": result.accuracy,
                    "test_accuracy": accuracy(variables),
                    "seconds": round(result.seconds, 2),
                }
            )
            cluster.say(
                f"  fine-tuned, epoch {result.epoch}/{settings.finetune_epochs}: loss "
                f"{result.loss:.4f}, test accuracy {lines[-1]['test_accuracy']:.4f}"
            )
        changes["accuracy_finetuned"] = lines[-1]["test_accuracy"]
    if changes:  # another network than the one that was compared
        small = small.with_arrays(variables)
    return small, changes, lines


def recalibrated(
    run: Run, small: Compact, variables: Any, split: Split | None = None
) -> tuple[Any, int]:
    """Variables with BatchNorm statistics of this network, and images used.

    Args:
      run: the run directory's job.
      small: the network, on scaled images.
      variables: its variables.
      split: the images; by default some of the training split, drawn.
    """
    conf = run.training
    size = conf.train_batch_size
    if split is None:
        split = datasets.choose_split(run.splits, conf.train_split)
        order = np.random.default_rng([conf.seed, 2]).permutation(len(split))
        split = split.select(order[: _RECALIBRATION_BATCHES * size])
    count = training.steps_per_epoch(split, size)
    inputs = (
        run.scale(jnp.asarray(split.read(np.arange(i * size, (i + 1) * size))))
        for i in range(count)
    )
    arrays = recalibrate(small.as_network(variables), inputs)
    return small.with_arrays(arrays).variables, count * size


def _as_it_predicts(small: Compact) -> Callable[..., Any]:
    """A network as in evaluation, called as in training."""

    def student(
        variables: Any, x: Array, *, train: bool, rngs: Any, mutable: list[str]
    ) -> tuple[Any, Any]:
        del train, rngs
        logits = small.function(flat(variables), x)
        return logits, {name: variables[name] for name in mutable}

    return student
