"""Fine-tuning and distillation of compact networks, whatever they are written in.

A compact network is a function of its arrays, so one loop trains those of every
framework: by the whole network's outputs, by labels or other targets, or by both.

Axes: N images, B images of a batch, C classes.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.tree_util import Partial
from jaxtyping import Array, Float

from jaxprune._base import arguments
from jaxprune._base.errors import InputError
from jaxprune._base.mesh import usual_options
from jaxprune.compaction.network import Compact
from jaxprune.graph.logits import are_probabilities, log_probabilities
from jaxprune.graph.network import Network
from jaxprune.tasks.classes import Classification
from jaxprune.tasks.task import Task
from jaxprune.training import losses, resume
from jaxprune.training.augmentation import blend as blended
from jaxprune.training.given import (
    Augment,
    check_outputs,
    given_images,
    given_inputs,
    task_of,
)
from jaxprune.training.hyperparameters import EVALUATION, TRAINING, Hyperparameters
from jaxprune.training.loop import (
    Step,
    StepMetrics,
    TrainState,
    adam,
    descend,
    fit,
    step_keys,
    steps_per_epoch,
)
from jaxprune.training.student import Student

# Adam's, where none is given.
LEARNING_RATE = 1e-4
# Of BatchNorm. Frameworks' own 0.99 is for trainings of many more steps.
MOMENTUM = 0.9


class Epoch(NamedTuple):
    """An epoch of fine-tuning.

    Attributes:
      epoch: its number, from 1 on.
      network: the network after it.
      loss: mean over its steps.
      accuracy: share of its images that were predicted right as they were given, in
        [0, 1]; NaN without labels, and where outputs are no classes.
      seconds: time that it took.
    """

    epoch: int
    network: Compact
    loss: float
    accuracy: float
    seconds: float


@usual_options()
def finetune(
    small: Compact,
    whole: Network | None,
    images: Any,
    labels: Any = None,
    *,
    task: Task | None = None,
    epochs: int,
    batch_size: int = 128,
    learning_rate: float | None = None,
    optimizer: optax.GradientTransformation | None = None,
    temperature: float = 4.0,
    weight: float | None = None,
    blend: bool | None = None,
    augment: Augment | None = None,
    batch_norm: str | None = None,
    momentum: float = MOMENTUM,
    seed: int = 0,
    mesh: Mesh | None = None,
    checkpoints: Path | str | None = None,
    on_step: Callable[[StepMetrics], Any] = lambda metrics: None,
    on_epoch: Callable[[Epoch], Any] = lambda epoch: None,
) -> Compact:
    """A compact network with its arrays trained, whatever framework it is of.

    The loss is the mean over a batch of

        weight D + (1 - weight) H

    with the distance D from the whole network's outputs and the task's loss H, which of
    logits is the cross-entropy with the labels. Of logits,
    D = T^2 KL(softmax(whole / T) || softmax(small / T)) with the temperature T (Hinton,
    Vinyals and Dean 2015); of other outputs it is the relative squared error, see
    `imitation`. Where a network ends with a softmax, the logarithms of its outputs are
    its logits. Nothing is dropped out or penalised.

    Args:
      small: the network. One that was loaded from its folder was loaded with its model.
      whole: the network that it learns from, as it was before channels were removed;
        None where labels have all the weight.
      images: [N, ...], or a tree of such arrays for a network of several inputs; or a
        `Split`, which has labels or targets.
      labels: class index of each image [N]; with a task, its targets, [N, ...] or a
        tree of such arrays. They are needed where the whole network has not all the
        weight; elsewhere they only tell the accuracy.
      task: what the outputs are for. By default logits [N, C] are of classes, and other
        outputs are to be the whole network's.
      epochs: how often all images are seen, each time in another order. Those that do
        not fill a batch wait for the next.
      batch_size: images in a step.
      learning_rate: the first of Adam, which falls to 0 along a cosine. Default: 1e-4.
      optimizer: an optax transformation in place of that. The arrays are given to it as
        a dictionary by path.
      temperature: that both networks' logits are divided by.
      weight: of the whole network in the loss, in [0, 1], labels having the rest; by
        default 1.
      blend: whether each image is mixed with another of its batch, which the whole
        network then labels (Beyer et al. 2022). By default where it has all the weight
        and the network takes floating-point numbers.
      augment: (key, images [B, ...]) -> what the network takes, a function for
        `jax.jit` that draws by the key. By default the images as they are.
      batch_norm: "evaluation", BatchNorm keeps its statistics, or "training", it uses
        each batch's. By default "training" where labels have all the weight: whatever
        moves a network that has a teacher costs more than it brings.
      momentum: share of its statistics that BatchNorm in training keeps in a step.
      seed: of the order of the images and of what is drawn for each step.
      mesh: devices that share each batch, see `make_mesh`; by default one.
      checkpoints: a folder, to which the state is written after each epoch. The same
        call goes on from there after a process was killed, and ends with the same
        arrays. `optimizer` and `augment` have to be the same then too; all else is
        compared.
      on_step: called after each step with its loss and accuracy.
      on_epoch: called after each epoch with an `Epoch`; not for those that were done
        before.

    Returns:
      The network with other arrays, in NumPy.

    Raises:
      InputError: labels are missing, or are no classes of the network; targets that do
        not fit the outputs; images that do not fill a batch, or that the network does
        not take; numbers out of range; a loss that is not finite; a folder of another
        fine-tuning.
    """
    given, labelled = given_images(images, labels, task)
    x = given_inputs(small, given, batch_size, augment)
    floating = all(
        jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(x)
    )
    if whole is not None:
        arguments.check_kind("whole", whole, Network, "a Network, or None with labels")
    if weight is None:
        weight = 0.0 if whole is None else 1.0
    elif whole is None and weight:
        raise InputError(f"weight={weight} is of a network to learn from: give whole")
    if learning_rate is None and optimizer is None:
        learning_rate = LEARNING_RATE
    how = Hyperparameters(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        temperature=temperature,
        weight=weight,
        blend=weight == 1 and floating if blend is None else blend,
        batch_norm=batch_norm or (TRAINING if whole is None else EVALUATION),
        momentum=momentum,
        seed=seed,
    )
    if how.weight < 1 and not labelled:
        raise InputError("labels are needed where no whole network has all the weight")
    if how.blend and not floating:
        types = sorted({str(leaf.dtype) for leaf in jax.tree.leaves(x)})
        raise InputError(f"blend takes floating-point images, got {', '.join(types)}")
    if mesh is not None and batch_size % mesh.size:
        raise InputError(
            f"batch_size={batch_size} does not divide among {mesh.size} devices"
        )
    student = Student(small, small.network.graph(x))
    task = task_of(task, small, x, labelled)
    check_outputs(task, small, whole, x, given if labelled else None)
    if how.batch_norm == TRAINING and student.norms.others:
        raise InputError(
            f"'{student.norms.others[0]}' is a BatchNorm's, used inside a loop or in a "
            "way that is not known: batch_norm='evaluation'"
        )
    per_epoch = steps_per_epoch(given, batch_size)
    optimizer = _optimizer(optimizer, how, epochs * per_epoch)
    state = _initial(student, optimizer)
    folder = None
    if checkpoints is not None:
        teacher = None if whole is None else whole.arrays
        counted = task.name if labelled else None
        key = resume.key(small.arrays, teacher, given, counted, how)
        folder = resume.Folder(Path(checkpoints), key)
        state = folder.restored(state, per_epoch)
    first = jax.tree.map(jnp.asarray, given.read(np.arange(batch_size)))
    if augment is not None:
        first = augment(jax.random.key(seed), first)
    outputs = task.part(jax.jit(small.function)(dict(small.arrays), first))
    softmax = task.logits and bool(are_probabilities(outputs))
    goal = Goal(task, log_probabilities if softmax else _as_they_are, labelled)
    step = _make_step(student, whole, optimizer, how, augment, goal)
    for result in fit(
        step, state, given, epochs=epochs, batch_size=batch_size, seed=seed, mesh=mesh,
        on_step=on_step,
    ):  # fmt: skip
        state = result.state
        if folder is not None:
            folder.save(result)
        network = _network(small, state)
        on_epoch(
            Epoch(result.epoch, network, result.loss, result.accuracy, result.seconds)
        )
    return _network(small, state)


def _as_they_are(outputs: Any) -> Any:
    return outputs


class Goal(NamedTuple):
    """What a network is trained towards.

    Attributes:
      task: what its outputs are for.
      logits_of: makes logits of probabilities.
      labelled: whether images have targets.
    """

    task: Task
    logits_of: Callable[[Any], Any]
    labelled: bool

    def part(self, outputs: Any) -> Any:
        """What the task goes by, as it takes it: numbers in float32 at least."""

        def wide(array: Array) -> Array:
            floating = jnp.issubdtype(array.dtype, jnp.floating)
            return array.astype(jnp.float32) if floating else array

        return jax.tree.map(wide, self.logits_of(self.task.part(outputs)))

    def accuracy(self, outputs: Any, targets: Any) -> Array:
        """Share of a batch that is predicted right; NaN where nothing says."""
        if self.labelled and isinstance(self.task, Classification):
            return losses.accuracy(outputs, targets)
        return jnp.full((), np.nan)


def _optimizer(
    given: Any, how: Hyperparameters, steps: int
) -> optax.GradientTransformation:
    """The one that is given; else Adam."""
    if given is None:
        assert how.learning_rate is not None
        return adam(how.learning_rate, steps, 0)
    if how.learning_rate is not None:
        raise InputError("give a learning rate or an optimizer, which has its own")
    arguments.check_kind("optimizer", given, optax.GradientTransformation, "optax's")
    optimizer: optax.GradientTransformation = given
    return optimizer


def _initial(student: Student, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step: what is trained, and what is not."""
    arrays = {path: jnp.array(a) for path, a in student.small.arrays.items()}
    params = {path: arrays.pop(path) for path in student.trained()}
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, (params, arrays), optimizer.init(params))


def _network(small: Compact, state: TrainState) -> Compact:
    """The network with a state's arrays, in its own order."""
    params, others = jax.device_get(state.variables)
    arrays = {**params, **others}
    return small.with_arrays({path: arrays[path] for path in small.arrays})


def _make_step(
    student: Student,
    whole: Network | None,
    optimizer: optax.GradientTransformation,
    how: Hyperparameters,
    augment: Augment | None,
    goal: Goal,
) -> Step:
    """A jitted step: (state, images, targets) -> (state, metrics)."""
    norms = student.following(student.trained()) if how.batch_norm == TRAINING else []

    def objective(
        params: Any, others: Any, x: Any, targets: Any, taught: Any
    ) -> tuple[Float[Array, ""], tuple[Any, Any]]:
        arrays = {**others, **params}
        found, changed = student.outputs(arrays, x, norms, how.momentum)
        outputs = goal.part(found)
        loss = losses.mean_loss(
            goal.task, outputs, targets, taught, how.temperature, how.weight
        )
        return loss, ({**others, **changed}, outputs)

    def step(
        state: TrainState, images: Any, targets: Any, teacher: Any
    ) -> tuple[TrainState, StepMetrics]:
        key = step_keys(how.seed, state.step)[0]
        x = images if augment is None else augment(key, images)
        if how.blend:
            mixed = blended(jax.random.fold_in(key, 1), x)
            x = jax.tree.map(lambda a, b: a.astype(b.dtype), mixed, x)
        taught = None if teacher is None else goal.part(teacher(x))
        params, others = state.variables
        params, opt_state, loss, (others, outputs) = descend(
            objective, optimizer, params, state.opt_state, others, x, targets, taught
        )
        after = TrainState(state.step + 1, (params, others), opt_state)
        return after, StepMetrics(loss, goal.accuracy(outputs, targets))

    jitted = jax.jit(step, donate_argnums=0)
    teacher = None
    if whole is not None:
        teacher = Partial(whole.function, jax.tree.map(jnp.asarray, whole.params))
    return lambda state, images, targets: jitted(state, images, targets, teacher)
