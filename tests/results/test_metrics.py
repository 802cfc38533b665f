import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from jaxprune.results import metrics


def test_by_hand():
    labels = np.array([0, 0, 0, 1])
    counts = metrics.confusion(np.array([[0, 0, 1, 1], [0, 0, 0, 0]]), labels, 2)
    assert counts.tolist() == [[[2, 1], [0, 1]], [[3, 0], [1, 0]]]
    np.testing.assert_allclose(metrics.accuracy(counts), [0.75, 0.75])
    np.testing.assert_allclose(metrics.balanced_accuracy(counts), [5 / 6, 0.5])
    np.testing.assert_allclose(metrics.predicted_share(counts), [[0.5, 0.5], [1, 0]])


def test_equals_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 200)
    predictions = rng.integers(0, 4, (5, 200)).astype(np.uint8)
    counts = metrics.confusion(predictions, labels, 4)
    for row, a, b in zip(
        predictions,
        metrics.accuracy(counts),
        metrics.balanced_accuracy(counts),
        strict=True,
    ):
        assert a == pytest.approx(accuracy_score(labels, row))
        assert b == pytest.approx(balanced_accuracy_score(labels, row))


def test_a_class_without_images_has_no_part_in_balanced_accuracy():
    labels, predicted = np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1])
    counts = metrics.confusion(predicted[None], labels, 3)
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        expected = balanced_accuracy_score(labels, predicted)
    assert metrics.balanced_accuracy(counts) == [expected] == [0.75]
    assert np.isnan(metrics.recall(counts)[0, 2])


def test_largest_k_within_counts_a_loss_of_exactly_the_drop():
    accuracy = np.array([8536, 8436, 8435, 8436, 8400]) / 10_000
    assert metrics.largest_k_within([0, 5, 10, 15, 20], accuracy, 0.01) == 15
    assert metrics.largest_k_within([0, 5, 10, 15, 20], accuracy, 0.0) == 0
