"""Fine-tuning and distillation of compact networks, whatever they are written in.

A compact network is a function of its arrays, so one loop trains those of every
framework: by the whole network's predictions, by labels, or by both.

Axes: N images, B images of a batch, C classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, Num

from jaxprune._base import arguments
from jaxprune._base.errors import InputError, first_line
from jaxprune._base.mesh import usual_options
from jaxprune.compaction.network import Compact
from jaxprune.data.splits import Joined, Split
from jaxprune.graph.logits import are_probabilities, log_probabilities
from jaxprune.graph.network import Network
from jaxprune.training import losses, resume
from jaxprune.training.augmentation import blend as blended
from jaxprune.training.hyperparameters import EVALUATION, TRAINING, Hyperparameters
from jaxprune.training.loop import (
    Images,
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

Augment = Callable[[Array, Array], Array]
# Adam's, where none is given.
LEARNING_RATE = 1e-4
# Of BatchNorm. Frameworks' own 0.99 is for trainings of many more steps.
MOMENTUM = 0.9


class Epoch(NamedTuple):
    """An epoch of fine-tuning.

    Attributes:
      epoch: its number, from 1 on.
      network: the network after it.
      loss: mean over its steps, in nats.
      accuracy: share of its images that were predicted right as they were given, in
        [0, 1]; NaN without labels.
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
    images: Num[np.ndarray, "N ..."] | Num[Array, "N ..."] | Split,
    labels: Int[np.ndarray, " N"] | Int[Array, " N"] | None = None,
    *,
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

        weight T^2 KL(softmax(whole / T) || softmax(small / T)) + (1 - weight) H

    with the logits of both networks, the temperature T and the cross-entropy H with the
    labels (Hinton, Vinyals and Dean 2015). Where a network ends with a softmax, the
    logarithms of its outputs are its logits. Nothing is dropped out or penalised.

    Args:
      small: the network, with logits [N, C]. One that was loaded from its folder was
        loaded with its model.
      whole: the network that it learns from, as it was before channels were removed;
        None where labels have all the weight.
      images: [N, ...], or a `Split`, which has labels.
      labels: class index of each image. They are needed where the whole network has
        not all the weight; elsewhere they only tell the accuracy.
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
      InputError: labels are missing, or are no classes of the network; images that do
        not fill a batch, or that the network does not take; numbers out of range; a
        loss that is not finite; a folder of another fine-tuning.
    """
    given, labelled = _images(images, labels)
    x = _inputs(small, given, batch_size, augment)
    floating = bool(jnp.issubdtype(x.dtype, jnp.floating))
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
        raise InputError(f"blend takes floating-point images, got {x.dtype}")
    if mesh is not None and batch_size % mesh.size:
        raise InputError(
            f"batch_size={batch_size} does not divide among {mesh.size} devices"
        )
    student = Student(small, small.network.graph(x))
    _check_logits(student, whole, x, given.labels if labelled else None)
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
        key = resume.key(small.arrays, teacher, given, labelled, how)
        folder = resume.Folder(Path(checkpoints), key)
        state = folder.restored(state, per_epoch)
    first = jnp.asarray(given.read(np.arange(batch_size)))
    if augment is not None:
        first = augment(jax.random.key(seed), first)
    softmax = bool(
        are_probabilities(jax.jit(small.function)(dict(small.arrays), first))
    )
    logits = log_probabilities if softmax else _as_they_are
    step = _make_step(student, whole, optimizer, how, augment, logits, labelled)
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


def _as_they_are(outputs: Array) -> Array:
    return outputs


@dataclass(frozen=True, eq=False)
class _Array:
    """Images of an array; labels are 0 where there are none."""

    images: np.ndarray | Joined
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: np.ndarray) -> np.ndarray:
        """The images at `index`, of a type that JAX has."""
        rows = self.images[index]
        return rows.astype(jax.dtypes.canonicalize_dtype(rows.dtype), copy=False)


def _images(images: Any, labels: Any) -> tuple[Images, bool]:
    """The images as they are read, and whether they have labels.

    Raises:
      InputError: they are none, or there are not as many labels.
    """
    if isinstance(images, Split):
        if labels is not None:
            raise InputError("a Split has labels: give no others")
        return images, True
    if not isinstance(images, Joined):
        images = arguments.check_real("images", images)
    if images.ndim < 2 or not len(images):
        raise InputError(f"images must be [N, ...], got {list(images.shape)}")
    if labels is None:
        return _Array(images, np.zeros(len(images), np.int32)), False
    labels = arguments.as_array("labels", labels)
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise InputError(
            f"labels must be {len(images)} integers, one for each image, got "
            f"{labels.dtype} {list(labels.shape)}"
        )
    return _Array(images, labels), True


def _inputs(
    small: Any, images: Images, batch_size: int, augment: Augment | None
) -> jax.ShapeDtypeStruct:
    """The shape of what the network is given.

    Raises:
      InputError: it is no compact network that can be trained, or does not take it.
    """
    arguments.check_kind("small", small, Compact, "a compact network, as of shrink")
    if small.whole is None:
        raise InputError(
            "a network that was loaded without its model cannot be trained: "
            "load_compact(path, model)"
        )
    arguments.check_count("batch_size", batch_size)
    rows = images.read(np.arange(1))
    x = jax.ShapeDtypeStruct((batch_size, *rows.shape[1:]), rows.dtype)
    if augment is not None:
        try:
            x = jax.eval_shape(augment, jax.random.key(0), x)
        except Exception as error:  # whatever the caller's own code raises
            raise InputError(
                f"augment fails on images {list(x.shape)}: {first_line(error)}"
            ) from error
    takes, shape = small.example.dtype, (batch_size, *small.input_shape)
    kinds = [jnp.issubdtype(dtype, jnp.floating) for dtype in (takes, x.dtype)]
    if x.shape != shape or kinds[0] != kinds[1]:
        raise InputError(
            f"the network takes {takes} {list(shape)}, got {x.dtype} {list(x.shape)}: "
            "augment, (key, images) -> what it takes, prepares them"
        )
    return x


def _check_logits(
    student: Student,
    whole: Network | None,
    x: jax.ShapeDtypeStruct,
    labels: np.ndarray | None,
) -> None:
    """Raises InputError unless both networks return logits [N, C], of all labels."""
    shapes = [_shapes(student.small.network, x)]
    if whole is not None:
        shapes.append(_shapes(whole, x))
    if shapes[0] != shapes[-1] or [len(shape) for shape in shapes[0]] != [2]:
        raise InputError(
            "the networks must return logits [N, C], got "
            f"{' and '.join(map(str, shapes))}"
        )
    classes = shapes[0][0][1]
    if labels is not None and not 0 <= labels.min() <= labels.max() < classes:
        raise InputError(
            f"labels must lie in 0 .. {classes - 1}, as the network tells {classes} "
            f"classes apart; got {labels.min()} .. {labels.max()}"
        )


def _shapes(network: Network, x: jax.ShapeDtypeStruct) -> list[tuple[int, ...]]:
    """Of what a network returns for a batch."""
    program = network.graph(x).program
    return [program.shape(value) for value in program.results]


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
    logits_of: Callable[[Array], Array],
    labelled: bool,
) -> Step:
    """A jitted step: (state, images, labels) -> (state, metrics).

    The networks' logits are `logits_of` what they return.
    """
    norms = student.following(student.trained()) if how.batch_norm == TRAINING else []

    def objective(
        params: Any, others: Any, x: Array, labels: Array, target: Array | None
    ) -> tuple[Float[Array, ""], tuple[Any, Array]]:
        arrays = {**others, **params}
        outputs, changed = student.outputs(arrays, x, norms, how.momentum)
        logits = logits_of(outputs).astype(jnp.float32)
        loss = losses.mean_loss(logits, labels, target, how.temperature, how.weight)
        return loss, ({**others, **changed}, logits)

    def step(
        state: TrainState, images: Array, labels: Array, teacher: Any
    ) -> tuple[TrainState, StepMetrics]:
        key = step_keys(how.seed, state.step)[0]
        x = images if augment is None else augment(key, images)
        if how.blend:
            x = blended(jax.random.fold_in(key, 1), x).astype(x.dtype)
        target = None if teacher is None else logits_of(teacher(x))
        params, others = state.variables
        params, opt_state, loss, (others, logits) = descend(
            objective, optimizer, params, state.opt_state, others, x, labels, target
        )
        accuracy = losses.accuracy(logits, labels) if labelled else jnp.full((), np.nan)
        after = TrainState(state.step + 1, (params, others), opt_state)
        return after, StepMetrics(loss, accuracy)

    jitted = jax.jit(step, donate_argnums=0)
    teacher = None
    if whole is not None:
        teacher = Partial(whole.function, jax.tree.map(jnp.asarray, whole.params))
    return lambda state, images, labels: jitted(state, images, labels, teacher)
