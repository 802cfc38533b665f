"""Recovery after pruning: BatchNorm statistics, fine-tuning, distillation."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax import Array
from jax.tree_util import Partial

from jaxprune._base.errors import InputError
from jaxprune.cli import cluster
from jaxprune.cli.baseline import Baseline
from jaxprune.cli.run_directory import Run
from jaxprune.compaction.network import Compact, flat
from jaxprune.compaction.recalibrate import recalibrate
from jaxprune.data import datasets
from jaxprune.data.splits import Split
from jaxprune.recipes import losses, training
from jaxprune.recipes.training import EpochResult

FLAGS = flags.FLAGS
# Training batches that BatchNorm statistics are estimated over.
_RECALIBRATION_BATCHES = 40
# What only changes the fine-tuning, and what only changes the distillation.
_OF_FINETUNING = (
    "finetune_learning_rate", "finetune_images", "distill", "distill_temperature",
    "distill_weight",
)  # fmt: skip
_OF_DISTILLATION = ("distill_temperature", "distill_weight")


def check_flags() -> None:
    """Checks the flags of `define_finetuning`, before any work is done.

    Raises:
      InputError: a flag that does nothing without another, or a value out of range.
    """
    if not FLAGS.finetune_epochs:
        refuse(_OF_FINETUNING, "--finetune_epochs")
    if not FLAGS.distill:
        refuse(_OF_DISTILLATION, "--distill")
    losses.check_distillation(FLAGS.distill_temperature, FLAGS.distill_weight)


def refuse(names: Iterable[str], without: str) -> None:
    """Raises InputError if one of the flags is given, which need another."""
    for name in names:
        flag = FLAGS[name]
        if not flag.using_default_value and flag.value is not False:
            raise InputError(f"--{name} does nothing without {without}: give both")


def check(run: Run) -> None:
    """Checks what the flags ask for, before any work is done.

    Raises:
      InputError: see `images`; a network that there is no recipe to train by.
    """
    if FLAGS.recalibrate or FLAGS.finetune_epochs:
        images(run)


def images(run: Run) -> Split:
    """The images of fine-tuning: --finetune_images of the training split.

    Raises:
      InputError: there are not as many, or they do not fill a batch.
    """
    conf = run.training
    split = datasets.choose_split(run.splits, conf.train_split)
    count = len(split) if FLAGS.finetune_images is None else FLAGS.finetune_images
    batch = conf.train_batch_size
    if count > len(split):
        raise InputError(
            f"--finetune_images={count}: {conf.train_split} has {len(split)}"
        )
    if FLAGS.finetune_epochs and count < batch:
        raise InputError(
            f"{count} images do not fill a batch of {batch} to fine-tune on: give more "
            "as --finetune_images"
        )
    return split.select(np.arange(count))


def describe(run: Run) -> dict[str, Any]:
    """The steps that the flags have asked for; JSON-able."""
    facts = {"recalibrated": FLAGS.recalibrate, **describe_epochs(run)}
    if FLAGS.finetune_epochs:
        facts["finetune_learning_rate"] = learning_rate(run)
    return facts


def describe_epochs(run: Run) -> dict[str, Any]:
    """How a network is fine-tuned, as the flags say; JSON-able."""
    facts: dict[str, Any] = {"finetune_epochs": FLAGS.finetune_epochs}
    if FLAGS.finetune_epochs:
        facts["finetune_images"] = len(images(run))
    if FLAGS.distill:
        facts["distill_temperature"] = FLAGS.distill_temperature
        facts["distill_weight"] = FLAGS.distill_weight
    return facts


def train_on(
    run: Run, whole: Baseline, small: Compact, accuracy_before: float
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
    if FLAGS.recalibrate:
        variables, images = recalibrated(run, small, variables)
        changes["accuracy_recalibrated"] = accuracy(variables)
        cluster.say(f"  recalibrated over {images} training images: accuracy "
                    f"{changes['accuracy_recalibrated']:.4f}")  # fmt: skip
    start = changes.get("accuracy_recalibrated", accuracy_before)
    lines = [{"epoch": 0, "test_accuracy": start}]
    if FLAGS.finetune_epochs:
        for result in finetune(run, small, variables, whole.variables):
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
                f"  fine-tuned, epoch {result.epoch}/{FLAGS.finetune_epochs}: loss "
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


def finetune(
    run: Run,
    small: Compact,
    variables: Any,
    whole: Any,
    way: Way | None = None,
) -> Iterator[EpochResult]:
    """Epochs of the same loop as training's, as the flags say.

    Args:
      run: the run directory's job.
      small: the network, on scaled images.
      variables: its variables.
      whole: variables of the whole network, which --distill learns from.
      way: how; by default the flags'.

    Raises:
      InputError: see `images`; or the model's own code, which is trained, computes
        something else with fewer channels.
    """
    conf, split = run.training, images(run)
    steps = FLAGS.finetune_epochs * training.steps_per_epoch(
        split, conf.train_batch_size
    )
    way = way or Way(learning_rate(run), gentle=FLAGS.distill)
    optimizer = training.adam(way.learning_rate, steps, 0)
    step = training.make_train_step(
        _as_it_predicts(small) if way.gentle else small.apply,
        optimizer,
        run.scale,
        seed=seed(run),
        l2={} if way.gentle else run.l2,
        augment=augmentation(run),
        teacher=_teacher(run, whole) if FLAGS.distill else None,
        temperature=FLAGS.distill_temperature,
        weight=FLAGS.distill_weight,
    )
    state = training.init_state(jax.tree.map(jnp.array, variables), optimizer)
    size = conf.train_batch_size

    def epochs() -> Iterator[EpochResult]:
        with cluster.progress(total=steps * size, unit="img", desc="tuning") as bar:
            yield from training.fit(
                step, state, split, epochs=FLAGS.finetune_epochs, batch_size=size,
                seed=seed(run), on_step=lambda metrics: bar.update(size),
            )  # fmt: skip

    return epochs()


def loss(run: Run, small: Compact, variables: Any, whole: Any) -> float:
    """Mean loss on the images that are fine-tuned on, as the flags have it.

    Without penalties, shifts and dropout, over whole batches; arguments as `finetune`.
    """
    split, size = images(run), run.training.train_batch_size
    teacher = _teacher(run, whole) if FLAGS.distill else None

    @jax.jit
    def of_batch(variables: Any, teacher: Any, batch: Array, labels: Array) -> Array:
        x = run.scale(batch)
        return losses.mean_loss(
            small.function(flat(variables), x), labels, teacher(x) if teacher else None,
            FLAGS.distill_temperature, FLAGS.distill_weight,
        )  # fmt: skip

    indices = np.split(np.arange(len(split) // size * size), len(split) // size)
    return float(
        np.mean(
            [
                of_batch(variables, teacher, split.read(i), split.labels[i])
                for i in indices
            ]
        )
    )


def learning_rate(run: Run) -> float:
    """The highest of fine-tuning."""
    return FLAGS.finetune_learning_rate or run.training.learning_rate / 10


def augmentation(run: Run) -> Callable[[Array, Array], Array]:
    """(key, images) -> images, as training has it; blended where no label is used."""

    def augment(key: Array, images: Array) -> Array:
        if run.recipe.crop_and_flip:
            images = training.crop_and_flip(key, images)
        if FLAGS.distill and FLAGS.distill_weight == 1:
            images = training.blend(jax.random.fold_in(key, 1), images)
        return images

    return augment


def seed(run: Run) -> int:
    """Of fine-tuning's order, augmentation and dropout: another than training's."""
    return run.config.seed + 1


def _as_it_predicts(small: Compact) -> Callable[..., Any]:
    """A network as in evaluation, called as in training."""

    def student(
        variables: Any, x: Array, *, train: bool, rngs: Any, mutable: list[str]
    ) -> tuple[Any, Any]:
        del train, rngs
        logits = small.function(flat(variables), x)
        return logits, {name: variables[name] for name in mutable}

    return student


def _teacher(run: Run, variables: Any) -> Partial:
    """The whole network on scaled images, with its variables on the device."""

    def logits(variables: Any, x: Array) -> Any:
        return run.model.apply(variables, x, **run.call)

    return Partial(logits, jax.tree.map(jnp.asarray, variables))
