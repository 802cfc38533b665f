"""Sweeps of any task against weights really zeroed and figures by the slow loop."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxprune
from jaxprune._base.errors import InputError
from jaxprune.results.task_figures import score_figures
from random_data import random_variables

N, SIDE, WIDTH = 21, 6, 5
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(N, SIDE, SIDE, 2)).astype(np.float32)


class Several(nn.Module):
    """Returns a map of classes, an image and a number."""

    @nn.compact
    def __call__(self, x):
        h = nn.relu(nn.Conv(WIDTH, (3, 3), name="inner")(x))
        return {
            "map": nn.Conv(3, (1, 1), name="map")(h),
            "image": nn.Conv(2, (3, 3), name="image")(h),
            "number": nn.Dense(1, name="number")(h.mean((1, 2))),
        }


VARIABLES = random_variables(Several(), IMAGES[:1])
WHOLE = jax.tree.map(np.asarray, Several().apply(VARIABLES, IMAGES))
TASKS = {
    "segmentation": (
        jaxprune.segmentation(output="map"), RNG.integers(0, 3, (N, SIDE, SIDE))
    ),
    "reconstruction": (
        jaxprune.reconstruction(output="image"),
        WHOLE["image"] + RNG.normal(0, 0.2, WHOLE["image"].shape).astype(np.float32),
    ),
    "regression": (
        jaxprune.regression(output="number"),
        WHOLE["number"][:, 0] + RNG.normal(0, 0.1, N).astype(np.float32),
    ),
    "several": (
        jaxprune.Task(
            "several",
            lambda o, t: jnp.square(o["number"][:, 0] - t["number"]),
            {
                "near": jaxprune.Score(
                    lambda o, t: jnp.abs(o["number"][:, 0] - t["number"]) < 0.2
                )
            },
        ),
        {"number": WHOLE["number"][:, 0]},
    ),
    "imitation": (jaxprune.imitation(), None),
}  # fmt: skip


CLASSES = TASKS["segmentation"][1]


def mine(loss=None, of_images=None, combine=None, predict=None):
    """A task of numbers whose parts are to be given."""
    right = lambda o, t: jnp.square(o["number"][:, 0] - t)  # noqa: E731
    score = jaxprune.Score(of_images or right, combine)
    return jaxprune.Task("mine", loss or right, {"s": score}, predict=predict)


def zeroed(order, k):
    """The network's output with the first k channels' weights zeroed."""
    variables = jax.tree.map(np.copy, VARIABLES)
    for leaf in variables["params"]["inner"].values():
        leaf[..., order[:k]] = 0
    return Several().apply(variables, IMAGES)


def tap(task, targets, variables=VARIABLES, **options):
    """The inner layer, after its ReLU."""
    split = jaxprune.image_split(IMAGES, targets=targets)
    return jaxprune.tap_layer(
        Several().apply, variables, split, task=task, layer="inner", tap="relu",
        **options,
    )  # fmt: skip


def picked(task, output):
    return output if task.output is None else output[task.output]


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("how", [{}, {"every_pair": True}, {"mask_chunk": 2}])
def test_every_k_equals_zeroed_weights(name, how):
    task, targets = TASKS[name]
    tapped = tap(task, targets, batch_size=8)
    scores = jaxprune.score(tapped, "mean")
    result = jaxprune.sweep_layer(tapped, scores, **how)
    assert isinstance(result, jaxprune.TaskResult)
    targets = jax.tree.map(jnp.asarray, WHOLE if targets is None else targets)
    outputs = [picked(task, zeroed(result.order, k)) for k in result.ks]
    judged = [jax.tree.map(np.asarray, task.judge(o, targets)) for o in outputs]
    np.testing.assert_allclose(
        result.losses, [each["loss"] for each in judged], rtol=1e-4, atol=1e-5
    )
    for i, (score_name, score) in enumerate(task.scores.items()):
        terms = np.stack([each[score_name] for each in judged])
        made = score_figures(terms, score.combine, score.higher_is_better)
        np.testing.assert_allclose(result.values[i], made.value, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            result.intervals[i], np.stack(made.interval), rtol=1e-3, atol=1e-4
        )
    assert result.measure == next(iter(task.scores))
    assert np.ptp(result.curve) > 0


@pytest.mark.parametrize("criterion", ["taylor", "fisher", "oracle"])
def test_criteria_go_by_the_task_s_loss(criterion):
    """The oracle's scores are the rise of the loss, by weights really zeroed."""
    task, targets = TASKS["reconstruction"]
    tapped = tap(task, targets, criteria=[criterion], batch_size=8)
    scores = jaxprune.score(tapped, criterion)

    def loss(variables):
        output = Several().apply(variables, IMAGES)["image"]
        return np.asarray(task.loss(output, jnp.asarray(targets))).mean()

    rises = []
    for channel in range(WIDTH):
        variables = jax.tree.map(np.copy, VARIABLES)
        for leaf in variables["params"]["inner"].values():
            leaf[..., channel] = 0
        rises.append(loss(variables) - loss(VARIABLES))
    if criterion == "oracle":
        np.testing.assert_allclose(scores, rises, rtol=1e-3, atol=1e-6)
    else:
        assert (
            np.corrcoef(np.argsort(scores).argsort(), np.argsort(rises).argsort())[0, 1]
            > 0.5
        )


def test_linear_fill_of_a_planted_sum_costs_nothing():
    """The last channel is the sum of two others: predicted, it can go."""
    variables = jax.tree.map(np.copy, VARIABLES)
    inner = variables["params"]["inner"]
    inner["bias"][:] = 9  # so that no ReLU acts
    for leaf in inner.values():
        leaf[..., 4] = leaf[..., 0] + leaf[..., 1]
    targets = np.asarray(Several().apply(variables, IMAGES)["image"])
    tapped = tap(TASKS["reconstruction"][0], targets, variables)
    fill = jaxprune.linear_fill(
        jaxprune.Network(Several().apply, variables, IMAGES[:2]), IMAGES,
        layer="inner", ridge=1e-6,
    )  # fmt: skip
    scores = np.array([1.0, 2, 3, 4, 0])
    linear = jaxprune.sweep_layer(tapped, scores, fill=fill, ks=[0, 1])
    zero = jaxprune.sweep_layer(tapped, scores, ks=[0, 1])
    assert linear.loss[1] < 1e-4 < zero.loss[1]
    assert linear.largest_safe_k() == 0 < linear.largest_k_within(200.0)


def test_a_saved_result_is_read_again(tmp_path):
    tapped = tap(*TASKS["segmentation"])
    scores = jaxprune.score(tapped, "mean")
    about = {"layer": "inner", "criterion": "mean"}
    result = jaxprune.sweep_layer(tapped, scores, about=about)
    other = jaxprune.sweep_layer(tapped, scores, about=about)
    result = result.chosen_on(other)
    result.save(tmp_path / "sweep")
    again = jaxprune.TaskResult.load(tmp_path / "sweep")
    assert again.summary() == result.summary()
    for name, array in result.columns().items():
        np.testing.assert_array_equal(again.columns()[name], array)
    assert again.largest_safe_k() == result.largest_safe_k()
    with pytest.raises(InputError, match=r"another kind of sweep: TaskResult\.load"):
        jaxprune.SweepResult.load(Path(tmp_path / "sweep"))


def test_a_stopped_sweep_goes_on_from_its_checkpoint(tmp_path):
    tapped = tap(*TASKS["segmentation"], batch_size=4)
    scores = jaxprune.score(tapped, "mean")
    expected = jaxprune.sweep_layer(tapped, scores)
    kept = jaxprune.SweepCheckpoint(tmp_path)
    done = 0

    def stop(count):
        nonlocal done
        done += count
        if done > 50:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jaxprune.sweep_layer(tapped, scores, checkpoint=kept, on_pairs=stop)
    assert list(tmp_path.iterdir())
    result = jaxprune.sweep_layer(tapped, scores, checkpoint=kept)
    np.testing.assert_array_equal(result.losses, expected.losses)
    np.testing.assert_array_equal(result.values, expected.values)


NUMBER = TASKS["regression"][1]


@pytest.mark.parametrize(
    ("task", "targets", "message"),
    [
        (None, NUMBER, "say what the split's targets are for"),
        (jaxprune.classification(), None, "needs a split with labels"),
        (jaxprune.regression(), None, "needs targets, and the split has none"),
        (jaxprune.regression(output="other"), NUMBER, "has no part 'other'; it has"),
        (jaxprune.regression(output="map"), NUMBER, "must be of one shape"),
        (
            jaxprune.segmentation(output="map"), NUMBER.astype(int),
            "takes logits .N, H, W, C. and integer targets",
        ),
        (
            jaxprune.Task(
                "mine", lambda o, t: o["number"], {"s": jaxprune.Score(lambda o, t: t)}
            ),
            NUMBER, "loss must be a number for each of 16 images",
        ),
        (
            jaxprune.Task(
                "mine", lambda o, t: o["nothing"], {"s": jaxprune.Score(lambda o, t: t)}
            ),
            NUMBER, "task 'mine' does not fit outputs image .*: 'nothing'",
        ),
        (
            jaxprune.segmentation(output="map"), np.where(CLASSES == 2, 255, CLASSES),
            "must lie in 0 .. 2, as there are 3 classes, got 255; ignore=255 leaves",
        ),
        (
            jaxprune.segmentation(output="map"), CLASSES - 1,
            "0 .. 2, .* got -1; ignore",
        ),
        (
            jaxprune.segmentation(output="map", ignore=255),
            np.where(CLASSES == 2, 254, CLASSES), "3 classes, got 254",
        ),
        (mine(lambda o, t: jnp.log(-1 - t * t)), NUMBER, "the loss of .* is NaN"),
        (
            mine(of_images=lambda o, t: t[:, None], combine=lambda s: s["a"]), NUMBER,
            r"combine of s fails on sums \[2, 1\]",
        ),
        (
            mine(of_images=lambda o, t: t[:, None], combine=lambda s: s), NUMBER,
            r"combine of s must make \[2\] of sums \[2, 1\], got \[2, 1\]",
        ),
        (
            mine(predict=lambda o: o["nothing"]), NUMBER,
            "task 'mine': its predict does not fit outputs image .*: 'nothing'",
        ),
        (
            jaxprune.regression(output=lambda o: o["number"] > 0), NUMBER,
            "has no floating-point array",
        ),
    ],
)  # fmt: skip
def test_a_task_that_does_not_fit(task, targets, message):
    with pytest.raises(InputError, match=message):
        tap(task, targets)


def test_targets_of_another_length():
    with pytest.raises(InputError, match=r"targets must be \[N, ...\], one for each"):
        jaxprune.image_split(IMAGES, targets=NUMBER[:3])
