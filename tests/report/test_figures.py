from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from jaxprune.errors import InputError
from jaxprune.report import contest
from jaxprune.report import curves as plots
from jaxprune.report import feature_maps as plots_maps
from jaxprune.sweep.result import SweepResult


def result(p=12, classes=3, unbalanced=False, signed=False, shape=(2, 2)):
    rng = np.random.default_rng(0)
    n = 60
    labels = np.arange(n) % classes
    if unbalanced:
        labels = np.where(np.arange(n) < 54, 0, 1 + np.arange(n) % (classes - 1))
    noise = rng.uniform(size=(p, n)) < np.linspace(0, 0.9, p)[:, None]
    predictions = np.where(noise, rng.integers(0, classes, (p, n)), labels)
    maps = rng.uniform(-1 if signed else 0, 1, (*shape, p)).astype(np.float32)
    scores = maps.mean((0, 1)).astype(np.float64)
    return SweepResult(
        ks=tuple(range(p)),
        order=np.argsort(scores),
        scores=scores,
        predictions=predictions.astype(np.uint8),
        labels=labels,
        mean_feature_map=maps,
        class_names=tuple("abcdefghij"[:classes]),
        about={"model": "m", "layer": "conv", "criterion": "mean", "fill": "zero"},
    )


def test_save_and_load(tmp_path):
    r = result()
    r.save(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["summary.json", "sweep.csv", "sweep.npz"]
    back = SweepResult.load(tmp_path)
    assert back.ks == r.ks and back.about == r.about
    assert back.class_names == r.class_names
    for name in ("order", "scores", "predictions", "labels", "mean_feature_map"):
        np.testing.assert_array_equal(getattr(back, name), getattr(r, name))
    with np.load(tmp_path / "sweep.npz") as arrays:
        assert set(arrays) == {
            "order", "scores", "predictions", "labels", "mean_feature_map"
        }  # fmt: skip
    lines = (tmp_path / "sweep.csv").read_text().splitlines()
    assert lines[0] == "k,pruned_channel,score,accuracy,balanced_accuracy"
    assert lines[1] == "0,,,1.000000,1.000000"
    k, channel, score, *_ = lines[3].split(",")
    assert int(k) == 2 and int(channel) == r.order[1]
    assert float(score) == r.scores[r.order[1]]


@pytest.mark.parametrize("name", ["summary.json", "sweep.npz", "sweep.csv"])
@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_a_damaged_sweep_is_refused(tmp_path, name, damage):
    result().save(tmp_path)
    path = tmp_path / name
    content = path.read_bytes()
    path.unlink()
    if damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"damaged|no complete sweep"):
        SweepResult.load(tmp_path)


def test_unbalanced_classes_get_balanced_accuracy_and_shares():
    balanced = plots.accuracy_vs_k(result())
    assert len(balanced.axes) == 1
    figure = plots.accuracy_vs_k(result(unbalanced=True))
    assert len(figure.axes) == 2
    labels = [line.get_label() for line in figure.axes[0].lines]
    assert "accuracy" in labels and "balanced accuracy" in labels
    shares = [line for line in figure.axes[1].lines if "predicted" in line.get_label()]
    assert len(shares) == 3


def test_the_curve_is_the_result_and_marks_the_chosen_k():
    r = result()
    lines = {line.get_label(): line for line in plots.accuracy_vs_k(r).axes[0].lines}
    np.testing.assert_array_equal(lines["accuracy"].get_ydata(), r.accuracy)
    chosen = r.largest_k_within(0.01)
    (label,) = (name for name in lines if "within one point" in name)
    assert f": {chosen} " in label


@pytest.mark.parametrize("p", [1, 7, 60, 128, 512, 509])
def test_a_grid_holds_every_channel(p):
    rows, columns = plots_maps.grid_shape(p)
    assert p <= rows * columns < p + columns


@pytest.mark.parametrize("order", plots_maps.ORDERS)
@pytest.mark.parametrize("normalize", plots_maps.SCALES)
@pytest.mark.parametrize("signed", [False, True])
def test_tiles_show_their_channels(order, normalize, signed):
    r = result(signed=signed)
    axes = plots_maps.feature_maps(r, order=order, normalize=normalize).axes[0]
    image = np.asarray(axes.images[0].get_array())
    rows, columns = plots_maps.grid_shape(12)
    tile_h, tile_w = image.shape[0] // rows, image.shape[1] // columns
    channel = 7 if order == "channel" else r.order[7]
    expected = r.mean_feature_map[..., channel]
    if normalize == "each":
        expected = (expected - expected.min()) / np.ptp(expected)
    row, column = divmod(7, columns)
    tile = image[row * tile_h : (row + 1) * tile_h, column * tile_w :][:, :tile_w]
    corners = tile[0, 0], tile[0, 20], tile[20, 0], tile[20, 20]
    np.testing.assert_allclose(corners, expected.ravel(), rtol=1e-6)


def test_confusion_matrices_of_a_k():
    r = result()
    figure = plots.confusion_matrices(r, 9)
    share = figure.axes[1].images[0].get_array()
    counts = r.confusion[9]
    np.testing.assert_allclose(share, 100 * counts / counts.sum(1, keepdims=True))
    with pytest.raises(InputError, match="no K = 12"):
        plots.confusion_matrices(r, 12)


def test_a_failed_save_leaves_the_old_picture(tmp_path):
    path = tmp_path / "picture.png"
    plots.save(plots.sorted_scores(result()), path)
    old = path.read_bytes()

    class Broken(Figure):
        def savefig(self, path, dpi):
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError):
        plots.save(Broken(), path)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["picture.png"]


@pytest.mark.parametrize("unbalanced", [False, True])
def test_fills_side_by_side(unbalanced):
    """Always in one order; balanced accuracy below where classes are unbalanced."""
    one = result(unbalanced=unbalanced)
    results = [
        replace(one, about={**one.about, "fill": fill, "layer": "conv"})
        for fill in ("linear", "zero", "drop")
    ]
    panels = plots.compare_fills(results).axes
    assert len(panels) == 1 + unbalanced
    for axes, values in zip(
        panels, (one.accuracy, one.balanced_accuracy), strict=False
    ):
        curves = [line for line in axes.lines if len(line.get_xdata()) == len(one.ks)]
        labels = [line.get_label() for line in curves]
        assert labels == ["fill zero", "fill drop", "fill linear"]
        np.testing.assert_array_equal(curves[0].get_ydata(), values)


def test_a_contest_shows_every_network_stage_and_time():
    def row(by, median, **accuracies):
        spread = {"lower_quartile": median / 2, "median": median}
        times = {**spread, "upper_quartile": 2 * median, "speedup": 1.0}
        return {"by": by, "method": "m", "latency": {"32": times, "4": times},
                **accuracies}  # fmt: skip

    rows = [
        row("whole", 0.010, accuracy=0.9),
        row("one", 0.004, accuracy=0.8, accuracy_recalibrated=0.85),
        row("two", 0.006, accuracy=0.2, accuracy_recalibrated=0.5,
            accuracy_finetuned=0.7),
    ]  # fmt: skip
    accuracy, small, large = contest.stages(rows, "title").axes
    whole, one, two = accuracy.lines
    assert set(whole.get_ydata()) == {0.9}
    np.testing.assert_array_equal(one.get_ydata(), [0.8, 0.85])
    np.testing.assert_array_equal(two.get_ydata(), [0.2, 0.5, 0.7])
    names = [t.get_text() for t in small.get_yticklabels()]
    assert names == ["whole,\nm", "one,\nm", "two,\nm"]
    colors = [to_rgba(line.get_color()) for line in accuracy.lines]
    for axes in (small, large):
        assert [bar.get_facecolor() for bar in axes.patches] == colors
    assert small.get_xlabel() == "batch 4, ms" and large.get_xlabel() == "batch 32, ms"
    np.testing.assert_allclose([bar.get_width() for bar in large.patches], [10, 4, 6])
    whiskers = [c.get_segments()[0][:, 0] for c in large.collections]
    np.testing.assert_allclose(whiskers, [[5, 20], [2, 8], [3, 12]])
