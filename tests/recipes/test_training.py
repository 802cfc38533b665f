import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxprune._base.errors import InputError
from jaxprune._base.mesh import make_mesh
from jaxprune.data.splits import Split
from jaxprune.recipes import losses as loss_terms
from jaxprune.recipes import training as train
from random_data import random_split, random_variables

pytestmark = pytest.mark.usefixtures("standard_promotion")


class Small(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Conv(4, (3, 3), name="conv")(x))
        x = nn.BatchNorm(use_running_average=not train, name="bn")(x)
        x = nn.Dropout(0.2, deterministic=not train)(x.reshape(x.shape[0], -1))
        return nn.Dense(4, name="out")(x)


MODEL = Small()


def scale(images):
    return images.astype(jnp.float32) / 255


def make(
    split, *, epochs=2, batch_size=5, learning_rate=1e-2, seed=0, l2=None,
    **distillation,
):  # fmt: skip
    steps = epochs * (len(split) // batch_size)
    optimizer = train.adam(learning_rate, steps, warmup_steps=2)
    step = train.make_train_step(
        MODEL.apply, optimizer, scale, seed=seed, l2=l2 or {},
        augment=train.crop_and_flip, **distillation,
    )  # fmt: skip
    variables = random_variables(MODEL, jnp.zeros((1, *split.image_shape)))
    return step, train.init_state(variables, optimizer)


def fit(split, *, epochs=2, batch_size=5, **options):
    step, state = make(split, epochs=epochs, batch_size=batch_size, **options)
    return list(
        train.fit(
            step, state, split, epochs=epochs, batch_size=batch_size,
            seed=options.get("seed", 0),
        )
    )  # fmt: skip


def assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_everything_follows_from_the_seed():
    split = random_split()
    first, again, other = (fit(split, seed=s)[-1].state for s in (0, 0, 1))
    assert_equal(first.variables, again.variables)
    kernels = (s.variables["params"]["out"]["kernel"] for s in (first, other))
    assert not np.array_equal(*kernels)


def test_going_on_from_an_epoch_ends_with_the_same_parameters():
    split = random_split()
    whole = fit(split, epochs=3)[-1].state
    step, state = make(split, epochs=3)
    loop = train.fit(step, state, split, epochs=3, batch_size=5, seed=0)
    stopped = jax.tree.map(jnp.copy, next(loop).state)
    step, _ = make(split, epochs=3)
    (*_, last) = train.fit(step, stopped, split, epochs=3, batch_size=5, seed=0)
    assert_equal(last.state, whole)


def test_it_learns_what_can_be_learnt():
    """Class = brightness: separable, so a working step must get it right."""
    labels = np.arange(40) % 4
    images = np.broadcast_to(
        (60 * labels).astype(np.uint8)[:, None, None, None], (40, 8, 8, 3)
    )
    split = Split(images, np.arange(40)[:, None], labels, ("a", "b", "c", "d"))
    results = fit(split, epochs=30, batch_size=20)
    assert results[-1].accuracy > 0.9
    assert results[-1].loss < results[0].loss / 2


def test_the_loss_is_cross_entropy_plus_kernel_squares():
    split = random_split(n=8)

    def loss(l2):
        step, state = make(split, l2=l2)
        kernel = state.variables["params"]["conv"]["kernel"]
        squares = float(np.sum(np.asarray(kernel, np.float64) ** 2))
        return float(step(state, split.images, split.labels)[1].loss), squares

    plain, squares = loss({})
    with_l2, _ = loss({"conv": 0.5})
    assert with_l2 - plain == pytest.approx(0.5 * squares, rel=1e-5)


def log_softmax(x):
    x = np.asarray(x, np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_distillation_equals_numpy():
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(0, 3, (2, 7, 5)).astype(np.float32)
    p, q = (log_softmax(x / 2.5) for x in (teacher, student))
    expected = 2.5**2 * (np.exp(p) * (p - q)).sum(-1)
    ours = loss_terms.distillation(jnp.asarray(student), jnp.asarray(teacher), 2.5)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    same = loss_terms.distillation(jnp.asarray(student), jnp.asarray(student), 2.5)
    np.testing.assert_array_equal(same, 0)


def teacher_of(split, seed=7, notes=None):
    """Another network of the same class; `notes` gets what each trace is given."""

    def logits(variables, x):
        if notes is not None:
            notes.append(x)
        return MODEL.apply(variables, x)

    variables = random_variables(MODEL, jnp.zeros((1, *split.image_shape)), seed)
    return jax.tree_util.Partial(logits, jax.tree.map(jnp.asarray, variables))


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_loss_weighs_teacher_and_labels(weight):
    """Both are asked about the same images, as augmented and scaled."""
    split, seen, logits = random_split(n=8), [], []

    def apply(variables, x, **kwargs):
        result = MODEL.apply(variables, x, **kwargs)
        jax.debug.callback(lambda *v: seen.append(v), x, result[0])
        return result

    def teacher(x):
        y = x.mean((1, 2, 3))[:, None] * jnp.arange(4.0)
        jax.debug.callback(lambda *v: logits.append(v), x, y)
        return y

    step = train.make_train_step(
        apply, train.adam(1e-2, 4, 2), scale, seed=0, l2={},
        augment=train.crop_and_flip, teacher=teacher, temperature=3.0, weight=weight,
    )  # fmt: skip
    _, state = make(split)
    loss = step(state, split.images, split.labels)[1].loss
    jax.effects_barrier()
    ((x, student),), ((given, target),) = seen, logits
    np.testing.assert_array_equal(x, given)
    p, q = (log_softmax(v / 3) for v in (target, student))
    divergence = 9 * (np.exp(p) * (p - q)).sum(-1).mean()
    entropy = -log_softmax(student)[np.arange(8), split.labels].mean()
    expected = weight * divergence + (1 - weight) * entropy
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def distilled(split, labels=None, **options):
    if labels is not None:
        split = Split(split.images, split.sources, labels, split.class_names)
    options = {"epochs": 1, "teacher": teacher_of(split), **options}
    return fit(split, **options)[-1].state.variables


def test_the_teacher_s_whole_weight_leaves_labels_out_and_temperature_matters():
    split = random_split()
    shuffled = np.random.default_rng(1).permutation(split.labels)
    assert (shuffled != split.labels).any()
    soft = distilled(split)
    assert_equal(soft, distilled(split, shuffled))
    hard = distilled(split, temperature=1.0)
    kernels = (v["params"]["conv"]["kernel"] for v in (soft, hard))
    assert not np.array_equal(*kernels)


def test_the_teacher_is_traced_once_and_does_not_change():
    split, traces = random_split(), []
    teacher = teacher_of(split, notes=traces)
    before = jax.tree.map(np.array, teacher.args)
    fit(split, teacher=teacher)
    assert len(traces) == 1
    assert_equal(teacher.args, before)


def test_the_student_comes_near_its_teacher():
    split = random_split()
    results = fit(split, epochs=20, batch_size=20, teacher=teacher_of(split))
    assert results[-1].loss < results[0].loss / 2


@pytest.mark.parametrize(
    "wrong", [{"temperature": 0.0}, {"temperature": np.nan}, {"weight": 1.5}]
)
def test_numbers_that_are_no_distillation_s(wrong):
    with pytest.raises(InputError, match="|".join(wrong)):
        make(random_split(), **wrong)


class Nested(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return Small(name="block")(x, train)


def test_a_layer_with_a_penalty_may_lie_in_a_block():
    split = random_split(n=8)
    variables = random_variables(Nested(), jnp.zeros((1, *split.image_shape)))
    kernel = variables["params"]["block"]["conv"]["kernel"]
    losses = []
    for l2 in ({}, {"block/conv": 0.5}):
        optimizer = train.adam(1e-2, 4, 2)
        step = train.make_train_step(Nested().apply, optimizer, scale, seed=0, l2=l2)
        state = train.init_state(variables, optimizer)
        losses.append(float(step(state, split.images, split.labels)[1].loss))
    squares = float(np.sum(np.asarray(kernel, np.float64) ** 2))
    assert losses[1] - losses[0] == pytest.approx(0.5 * squares, rel=1e-5)


def test_one_compilation_over_epochs():
    step, state = make(split := random_split())
    state = jax.tree.map(jnp.asarray, state)
    list(train.fit(step, state, split, epochs=2, batch_size=5, seed=0))
    assert step._cache_size() == 1


def test_crop_and_flip_moves_each_image_by_itself():
    images = np.zeros((64, 8, 8, 1), np.uint8)
    images[:, 3, 3] = 255
    moved = train.crop_and_flip(jax.random.key(0), jnp.asarray(images), pad=2)
    moved = np.asarray(moved)
    assert set(np.unique(moved)) == {0, 255}
    places = {tuple(np.argwhere(m)[0]) for m in moved}
    assert len(places) > 10 and all(m.sum() == 255 for m in moved)
    rows, columns = ({int(place[axis]) for place in places} for axis in (0, 1))
    assert rows == {1, 2, 3, 4, 5}
    assert columns == {1, 2, 3, 4, 5, 6}  # column 3 shifted, or 4 when flipped


def test_blend_adds_a_share_of_another_image():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64, 5, 4, 3), np.uint8)
    blended = train.blend(jax.random.key(0), jnp.asarray(images))
    flat, others = images.reshape(64, -1) * 1.0, np.roll(images, 1, 0).reshape(64, -1)
    difference = flat - others
    shares = ((np.asarray(blended).reshape(64, -1) - others) * difference).sum(1)
    shares /= (difference**2).sum(1)
    expected = others + shares[:, None] * difference
    np.testing.assert_allclose(blended.reshape(64, -1), expected, atol=1e-2)
    assert shares.min() > 0.5 - 1e-4 and shares.max() < 1 + 1e-4
    assert 0.6 < shares.mean() < 0.9 and len(np.unique(shares.round(3))) > 30


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step():
    split = random_split()
    step, state = make(split)
    state.variables["params"]["out"]["bias"][0] = np.inf
    with pytest.raises(InputError, match=r"at step 0 \(epoch 1\)"):
        list(train.fit(step, state, split, epochs=1, batch_size=5, seed=0))


def test_fewer_images_than_a_batch():
    with pytest.raises(InputError, match="fewer than one batch of 24"):
        fit(random_split(), batch_size=24)


def test_the_learning_rate_warms_up_and_decays():
    for steps, warmup in [(10, 3), (4, 4), (5, 0)]:
        optimizer = train.adam(1.0, steps, warmup)
        parameter = {"w": jnp.zeros(())}
        state, moves = optimizer.init(parameter), []
        for _ in range(steps):
            update, state = optimizer.update({"w": jnp.ones(())}, state)
            moves.append(-float(update["w"]))  # Adam's first moves have size rate
        assert max(moves) == pytest.approx(moves[min(warmup, steps - 1)], abs=1e-4)
        if warmup:
            assert moves[0] == 0


def test_eight_devices_train_as_one_does():
    """Loss, gradients and BatchNorm's statistics are those of the whole batch."""
    split = random_split(n=32)
    results = []
    for devices in (1, 8):
        step, state = make(split, batch_size=16)
        mesh = make_mesh(jax.local_devices()[:devices])
        epochs = train.fit(
            step, state, split, epochs=2, batch_size=16, seed=0, mesh=mesh
        )
        results.append(list(epochs)[-1])
    one, eight = results
    assert len(jax.tree.leaves(eight.state.variables)[0].devices()) == 8
    assert one.loss == pytest.approx(eight.loss, rel=1e-4)
    # Adam divides by the gradient's size: where that is rounding, so is the step.
    for a, b in zip(
        jax.tree.leaves(one.state.variables),
        jax.tree.leaves(eight.state.variables),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=2e-3)
