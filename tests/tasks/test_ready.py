"""Ready tasks against scikit-learn's metrics and plain NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy
from sklearn import metrics

import jaxprune
from jaxprune._base.errors import InputError
from jaxprune.results.task_figures import score_figures
from jaxprune.tasks.classes import IN_TOP
from jaxprune.tasks.task import LOSS

RNG = np.random.default_rng(0)
N, H, W, C = 7, 5, 4, 3


def judged(task, outputs, targets):
    """The loss of each image, and the scores of all."""
    kept = task.judge(jnp.asarray(outputs), jnp.asarray(targets))
    values = {}
    for name, score in task.scores.items():
        terms = np.asarray(kept[name], np.float64)[None]
        made = score_figures(terms, score.combine, score.higher_is_better)
        values[name] = float(made.value[0])
    return np.asarray(kept[LOSS]), values


@pytest.mark.parametrize("ignore", [None, 255])
def test_segmentation(ignore):
    logits = RNG.normal(size=(N, H, W, C)).astype(np.float32)
    # Class 2 is predicted, and never true.
    targets = RNG.integers(0, 2, (N, H, W))
    here = np.ones(targets.shape, bool)
    if ignore is not None:
        here = RNG.random(targets.shape) < 0.6
        targets = np.where(here, targets, ignore)
    losses, scores = judged(jaxprune.segmentation(ignore=ignore), logits, targets)
    predicted, true = logits.argmax(-1)[here], targets[here]
    iou = metrics.jaccard_score(true, predicted, average="macro", labels=range(C))
    assert scores["mean_IoU"] == pytest.approx(iou)
    accuracy = metrics.accuracy_score(true, predicted)
    assert scores["pixel_accuracy"] == pytest.approx(accuracy)
    share = scipy.special.softmax(logits.astype(float), -1)
    for i in range(N):
        rows = share[i][here[i]]
        own = rows[np.arange(len(rows)), targets[i][here[i]]]
        assert losses[i] == pytest.approx(-np.log(own).mean(), rel=1e-5)


@pytest.mark.parametrize("shape", [(N,), (N, 1), (N, 3)])
def test_regression(shape):
    targets = RNG.normal(2, 1, shape).astype(np.float32)
    outputs = (targets + RNG.normal(0, 0.5, shape)).astype(np.float32)
    losses, scores = judged(jaxprune.regression(), outputs, targets)
    flat = [a.reshape(N, -1).astype(float) for a in (targets, outputs)]
    r2 = metrics.r2_score(*flat, multioutput="variance_weighted")
    assert scores["R2"] == pytest.approx(r2, rel=1e-4)
    squared = metrics.mean_squared_error(*flat)
    assert scores["squared_error"] == pytest.approx(squared, rel=1e-5)
    assert losses.mean() == pytest.approx(squared, rel=1e-5)
    absolute = metrics.mean_absolute_error(*flat)
    assert scores["absolute_error"] == pytest.approx(absolute, rel=1e-5)


def test_r_squared_far_from_zero():
    """Numbers of variance 1 near 1e4: as near 0, their intervals too."""
    numbers = RNG.normal(size=(400, 2))
    found = []
    for level in (0.0, 1e4):
        y = (level + numbers).astype(np.float32)
        made = [y + s * np.float32(RNG.standard_normal(y.shape)) for s in (0.3, 0.5)]
        task = jaxprune.regression().for_targets(y, [y[:100], y[100:]])
        score = task.scores["R2"]
        terms = np.stack([score.of_images(*map(jnp.asarray, (o, y))) for o in made])
        figures = score_figures(terms, score.combine, True)
        expected = [
            metrics.r2_score(*(a.astype(float).ravel() for a in (y - level, o - level)))
            for o in made
        ]
        np.testing.assert_allclose(figures.value, expected, rtol=1e-3)
        found.append(np.stack(figures.interval))
    np.testing.assert_allclose(*found, atol=0.02)


def test_reconstruction():
    targets = RNG.random((N, H, W, 2)).astype(np.float32)
    outputs = targets + RNG.normal(0, 0.1, targets.shape).astype(np.float32)
    _, scores = judged(jaxprune.reconstruction(peak=2.0), outputs, targets)
    errors = ((outputs - targets).astype(float) ** 2).mean((1, 2, 3))
    expected = (10 * np.log10(4 / errors)).mean()
    assert scores["PSNR"] == pytest.approx(expected, rel=1e-5)
    _, same = judged(jaxprune.reconstruction(), targets, targets)
    assert np.isfinite(same["PSNR"])


def test_imitation_of_logits_and_of_anything():
    whole = RNG.normal(size=(N, C)).astype(np.float32)
    other = whole + RNG.normal(0, 0.3, whole.shape).astype(np.float32)
    losses, scores = judged(jaxprune.imitation(logits=True), other, whole)
    p, q = (scipy.special.softmax(a.astype(float), -1) for a in (whole, other))
    np.testing.assert_allclose(losses, scipy.stats.entropy(p, q, axis=1), atol=1e-6)
    assert scores["agreement"] == (whole.argmax(1) == other.argmax(1)).mean()
    losses, scores = judged(jaxprune.imitation(), other, whole)
    expected = ((other - whole) ** 2).sum(1) / (whole**2).sum(1)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert scores["relative_error"] == pytest.approx(np.sqrt(expected).mean(), rel=1e-5)


def test_the_true_class_among_five():
    logits = RNG.normal(size=(40, 12)).astype(np.float32)
    labels = RNG.integers(0, 12, 40)
    task = jaxprune.classification()
    kept = task.judge(jnp.asarray(logits), jnp.asarray(labels))
    expected = metrics.top_k_accuracy_score(labels, logits, k=5, labels=range(12))
    assert np.asarray(kept[IN_TOP]).mean() == pytest.approx(expected)


def test_means_have_student_s_intervals_and_shares_exact_ones():
    a = RNG.normal(1, 1, 30)
    terms = np.stack([a, a + RNG.normal(0.2, 0.5, 30)])
    made = score_figures(terms, None, False)
    found = scipy.stats.ttest_rel(terms[1], terms[0])
    np.testing.assert_allclose(
        [made.change.low[1], made.change.high[1]], found.confidence_interval(0.95)
    )
    one_sided = scipy.stats.ttest_rel(terms[1], terms[0], alternative="less")
    limit = one_sided.confidence_interval(0.95).high
    np.testing.assert_allclose(made.drop_limit[1], limit)
    np.testing.assert_allclose(
        score_figures(terms, None, True).drop_limit[1],
        -scipy.stats.ttest_rel(
            terms[1], terms[0], alternative="greater"
        ).confidence_interval(0.95).low,
    )  # fmt: skip
    right = np.array([[1.0] * 40, [1.0] * 37 + [0.0] * 3])
    shares = score_figures(right, None, True)
    counts = jaxprune.results.confidence.discordant(right == 1)
    np.testing.assert_array_equal(
        shares.drop_limit, jaxprune.results.confidence.largest_drop(counts)
    )


def test_ratios_of_sums_have_a_paired_bootstrap():
    """Of a ratio whose divisor is the number of images, a mean, Student's are near."""
    n = 400
    a = RNG.gamma(2, 1, n)
    means = np.stack([a, a - np.abs(RNG.normal(0.1, 0.2, n))])
    terms = np.stack([means, np.ones_like(means)], -1)
    made = score_figures(terms, lambda s: s[..., 0] / s[..., 1], True)
    near = score_figures(means, None, True)
    np.testing.assert_allclose(made.value, near.value)
    for one, other in zip(made[1:], near[1:], strict=True):
        width = np.abs(near.interval.high - near.interval.low).max()
        np.testing.assert_allclose(np.stack(one), np.stack(other), atol=0.1 * width)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jaxprune.Task("", lambda o, t: o), "a task has a name"),
        (lambda: jaxprune.Task("t", lambda o, t: o), "no score to choose channels by"),
        (
            lambda: jaxprune.Task(
                "t", lambda o, t: o, {"loss": jaxprune.Score(lambda o, t: o)}
            ),
            "task 't': 'loss' is no name of a score",
        ),
    ],
)
def test_a_task_that_is_none(make, message):
    with pytest.raises(InputError, match=message):
        make()
