"""Criteria side by side: figures by hand, files, pictures."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_rgba

from jaxprune._base.errors import InputError
from jaxprune.report import criteria as pictures
from jaxprune.results.comparison import Comparison, compare
from jaxprune.results.result import SweepResult

LABELS = np.array([0, 0, 0, 1])


def sweep(scores, *rows, labels=LABELS):
    scores = np.array(scores, float)
    return SweepResult(
        ks=(0, 1, 2),
        order=np.argsort(scores, kind="stable"),
        scores=scores,
        predictions=np.array(rows, np.uint8),
        labels=labels,
        mean_feature_map=np.zeros((1, 1, 4), np.float32),
        class_names=("a", "b"),
        about={"max_drop": 0.5},
    )


RIGHT, HALF, ONE = [0, 0, 0, 1], [0, 0, 1, 0], [0, 1, 1, 0]


def example():
    results = {
        "oracle": sweep([1, 2, 3, 4], RIGHT, RIGHT, HALF),
        "mean": sweep([4, 3, 2, 1], RIGHT, HALF, ONE),
        "l1": sweep([5, 5, 5, 5], RIGHT, ONE, HALF),
        "own": sweep([1, 3, 2, 4], RIGHT, HALF, RIGHT),
    }
    random = [
        (np.array([1, 0.25, 0.25]), np.array([1, 0.3, 0.2])),
        (np.array([1, 0.5, 0.25]), np.array([1, 0.4, 0.3])),
    ]
    return compare(results, random, {"layer": "conv", "fill": "zero", "model": "m"})


def test_figures_by_hand():
    found = example()
    assert found.names == ("oracle", "mean", "l1", "own") and found.ks == (0, 1, 2)
    np.testing.assert_allclose(
        found.mean_accuracy, [2.5 / 3, 1.75 / 3, 1.75 / 3, 2.5 / 3]
    )
    # The random orders' means are 1.5 / 3 and 1.75 / 3: a tie counts half.
    np.testing.assert_allclose(found.beaten, [1, 0.75, 0.75, 1])
    # No change in 4 images may be a loss of z^2 / (4 + z^2) = 0.40, two lost are 0.5 or
    # more; nothing is safe behind the first that is not.
    assert found.safe_k == (1, 0, 0, 0)
    assert not found.is_balanced
    # 1 - 6 sum d^2 / (n (n^2 - 1)) with d = 0, 1, 1, 0.
    np.testing.assert_allclose(found.with_oracle, [1, -1, np.nan, 0.8])
    np.testing.assert_allclose(found.spearman, found.spearman.T)
    assert found.spearman[1, 3] == pytest.approx(-0.8)


def test_without_oracle_and_without_random_orders():
    alone = compare({"mean": sweep([4, 3, 2, 1], RIGHT, HALF, ONE)}, [], {})
    assert np.isnan(alone.with_oracle).all() and np.isnan(alone.beaten).all()
    row = alone.summary()["criteria"]["mean"]
    assert row["spearman_with_oracle"] is None and row["random_orders_beaten"] is None
    assert alone.summary()["random_orders"] == 0


def test_saved_and_loaded(tmp_path):
    found = example()
    found.save(tmp_path)
    back = Comparison.load(tmp_path)
    for name in vars(back):
        if isinstance(getattr(back, name), np.ndarray):
            np.testing.assert_array_equal(getattr(back, name), getattr(found, name))
    assert (back.ks, back.names, back.safe_k) == (found.ks, found.names, found.safe_k)
    assert back.about == found.about and back.is_balanced == found.is_balanced
    assert back.summary() == found.summary()
    rows = json.loads((tmp_path / "summary.json").read_text())["criteria"]
    assert rows["own"] == {
        "mean_accuracy": 2.5 / 3, "largest_safe_k": 0,
        "spearman_with_oracle": pytest.approx(0.8), "random_orders_beaten": 1.0,
    }  # fmt: skip
    assert rows["oracle"]["largest_safe_k"] == 1
    with open(tmp_path / "criteria.csv") as file:
        lines = [*csv.reader(file)]
    assert lines[0] == ["criterion", "k", "accuracy", "balanced_accuracy"]
    assert ["mean", "2", "0.250000", "0.166667"] in lines
    assert ["random order 1", "1", "0.500000", "0.400000"] in lines
    assert len(lines) == 1 + 6 * 3


@pytest.mark.parametrize("name", ["summary.json", "criteria.npz"])
@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_a_damaged_comparison_is_refused(tmp_path, name, damage):
    example().save(tmp_path)
    path = tmp_path / name
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match="comparison"):
        Comparison.load(tmp_path)


def test_curves_lie_over_the_band():
    found = example()
    figure = pictures.accuracy_by_criterion(found)
    assert len(figure.axes) == 2  # the classes are unbalanced
    top, bottom = figure.axes
    for axes, curves in ((top, found.accuracy), (bottom, found.balanced_accuracy)):
        lines = {line.get_label().split()[-1]: line for line in axes.lines}
        for name, curve in zip(found.names, curves, strict=True):
            np.testing.assert_array_equal(lines[name].get_ydata(), curve)
        assert lines["oracle"].get_color() == "black"
        (band,) = axes.collections
        assert tuple(band.get_facecolor()[0]) == to_rgba("0.85")
    heights = top.collections[0].get_paths()[0].vertices
    at_one = heights[heights[:, 0] == 1, 1]
    # 2.5 % and 97.5 % of two values.
    assert at_one.min() == pytest.approx(0.25 + 0.025 * 0.25)
    assert at_one.max() == pytest.approx(0.25 + 0.975 * 0.25)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[0] == "95 % of 2 random orders"
    assert labels[2:] == [
        "0.8333  oracle", "0.8333  own", "0.5833  mean", "0.5833  l1"
    ]  # fmt: skip
    balanced = replace(found, is_balanced=True)
    assert len(pictures.accuracy_by_criterion(balanced).axes) == 1


def test_curves_that_lie_close_are_enlarged():
    """The axis of the second panel starts where most of what is drawn does."""
    close = 0.9 + 0.01 * example().accuracy
    close[0, -1] = 0.1  # one curve that falls
    found = replace(example(), accuracy=close, is_balanced=True)
    whole, part = pictures.accuracy_by_criterion(found).axes
    assert whole.get_ylim() == (0, 1.02)
    low, high = part.get_ylim()
    assert 0.89 < low < np.quantile(close, 0.1) and close.max() < high < 0.92
    assert part.get_ylabel() == f"accuracy, enlarged: from {low:.3f}"
    for panel in (whole, part):
        names = {line.get_label().split()[-1] for line in panel.lines}
        assert {*found.names} <= names


def test_agreement_is_annotated():
    figure = pictures.agreement(example())
    texts = {t.get_position(): t.get_text() for t in figure.axes[0].texts}
    assert texts[(1, 0)] == texts[(0, 1)] == "\N{MINUS SIGN}1.00"
    assert (
        texts[(3, 0)] == "0.80" and texts[(2, 0)] == "n/a" and texts[(2, 2)] == "1.00"
    )


def test_both_pictures_are_written(tmp_path):
    paths = pictures.draw_comparison(example(), tmp_path)
    assert [p.name for p in paths] == ["criteria.png", "agreement.png"]
    assert all(p.stat().st_size > 10_000 for p in paths)
