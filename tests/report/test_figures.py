import csv
import json
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from scipy import stats

from experiments.bench.shrink import figure
from jaxprune._base.errors import InputError
from jaxprune.report import compact, shrinking
from jaxprune.report import curves as plots
from jaxprune.report import feature_maps as plots_maps
from jaxprune.results.result import SweepResult


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
        cross_entropy=np.geomspace(0.01, 2, p),
        cross_entropy_std=np.geomspace(0.1, 3, p),
    )


def csv_columns(folder):
    with open(folder / "sweep.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [row[name] for row in rows] for name in rows[0]}


def test_save_and_load(tmp_path):
    r = result()
    r.save(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["summary.json", "sweep.csv", "sweep.npz"]
    back = SweepResult.load(tmp_path)
    assert back.ks == r.ks and back.about == r.about
    assert back.class_names == r.class_names
    names = {
        "order", "scores", "predictions", "labels", "mean_feature_map", "cross_entropy",
        "cross_entropy_std",
    }  # fmt: skip
    for name in names:
        np.testing.assert_array_equal(getattr(back, name), getattr(r, name))
    assert back.select_predictions is None and back.select_labels is None
    with np.load(tmp_path / "sweep.npz") as arrays:
        assert set(arrays) == names
    lines = (tmp_path / "sweep.csv").read_text().splitlines()
    assert lines[0].startswith("k,pruned_channel,score,accuracy,balanced_accuracy,")
    assert lines[1].startswith("0,,,1.000000,1.000000,0.010000,")
    k, channel, score, *_ = lines[3].split(",")
    assert int(k) == 2 and int(channel) == r.order[1]
    assert float(score) == r.scores[r.order[1]]


def test_the_table_holds_the_intervals(tmp_path):
    r = result(unbalanced=True)
    r.save(tmp_path)
    table = csv_columns(tmp_path)
    numbers = {n: np.array(c[1:], float) for n, c in table.items()}
    for name in ("accuracy", "change", "balanced_accuracy", "recall_a", "recall_c"):
        values, low, high = (numbers[f"{name}{end}"] for end in ("", "_low", "_high"))
        assert (low <= values).all() and (values <= high).all() and (low < high).any()
    np.testing.assert_allclose(
        numbers["change"], r.accuracy[1:] - r.accuracy[0], atol=1e-6
    )
    lost = (r.right[0] & ~r.right[9]).sum()
    won = (~r.right[0] & r.right[9]).sum()
    p = stats.binomtest(int(lost), int(lost + won)).pvalue
    assert numbers["mcnemar_p"][8] == pytest.approx(p, rel=1e-5)
    of_b = r.labels == 1
    assert numbers["recall_b"][8] == pytest.approx(r.right[9, of_b].mean(), abs=1e-6)
    change = numbers["recall_change_a_low"]
    assert (change <= numbers["recall_change_a_high"]).all() and change[-1] < -0.5
    assert (numbers["balanced_change_low"] <= numbers["balanced_change_high"]).all()


def test_a_p_value_that_no_float_holds_is_written(tmp_path):
    labels = np.zeros(2500, int)
    predictions = np.zeros((3, 2500), np.uint8)
    predictions[1, :3] = predictions[2, :2000] = 1
    labels[-1] = predictions[:, -1] = 1  # both classes have images
    r = replace(
        result(p=3, classes=2), predictions=predictions, labels=labels
    )  # fmt: skip
    r.save(tmp_path)
    found = csv_columns(tmp_path)["mcnemar_p"]
    assert found[:2] == ["1", "0.25"]
    mantissa, exponent = found[2].split("e-")
    digits = str(Fraction(10) ** 640 * 2 / 2**2000 // 1)  # 2 * 0.5^2000, exactly
    assert int(exponent) == 641 - len(digits)
    assert mantissa.replace(".", "") == f"{round(int(digits[:9]) / 1000):d}"
    assert SweepResult.load(tmp_path).figures.mcnemar[2] == 0


def test_an_older_sweep_has_no_cross_entropy(tmp_path):
    old = replace(result(), cross_entropy=None)
    old.save(tmp_path)
    assert "cross_entropy" not in csv_columns(tmp_path)
    back = SweepResult.load(tmp_path)
    assert back.cross_entropy is None
    assert len(plots.accuracy_vs_k(back).axes) == 1
    no_interval = replace(result(), cross_entropy_std=None)
    assert "cross_entropy_low" not in no_interval.columns()
    assert not plots.accuracy_vs_k(no_interval).axes[1].collections


def chosen_elsewhere():
    """K is chosen on 500 images, of which the 6th mask and all after lose a tenth."""
    r = result()
    labels = np.arange(500) % 3
    predictions = np.tile(labels, (12, 1)).astype(np.uint8)
    predictions[5:, ::10] = (labels[::10] + 1) % 3
    predictions[8] = labels  # the largest that loses nothing is not safe
    return r, r.chosen_on(replace(r, predictions=predictions, labels=labels))


def test_k_is_chosen_on_other_images(tmp_path):
    r, r_chosen = chosen_elsewhere()
    assert (r_chosen.largest_safe_k(0.01), r_chosen.largest_k_within(0.01)) == (4, 8)
    assert r.largest_safe_k(0.01) == 0  # of 60 images, nothing can be said
    r_chosen.save(tmp_path)
    back = SweepResult.load(tmp_path)
    assert back.largest_safe_k(0.01) == 4 and back.about == r.about
    np.testing.assert_array_equal(back.accuracy, r.accuracy)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["chosen"]["k"] == 4
    assert summary["chosen"]["accuracy"] == pytest.approx(r.accuracy[4])
    assert summary["largest_safe_k_within_1_point"] == 4
    assert summary["largest_k_within_1_point"] == 8
    assert summary["largest_k_within_1_point_balanced"] == 8
    without = {"cross_entropy": None, "cross_entropy_std": None}
    fewer = replace(r, ks=r.ks[:-1], predictions=r.predictions[:-1], **without)
    for other in (fewer, replace(r, order=r.order[::-1])):
        with pytest.raises(InputError, match="same k in the same order"):
            r.chosen_on(other)


def test_what_may_be_lost_is_a_fact_of_the_sweep():
    _, chosen = chosen_elsewhere()
    assert chosen.summary()["chosen"]["k"] == 4
    chosen = replace(chosen, about={**chosen.about, "max_drop": 0.2})
    assert chosen.summary()["chosen"]["k"] == 11


def test_overlaps_are_on_the_picture():
    r, chosen = chosen_elsewhere()
    about = {**r.about, "overlaps": ["ranked on 7 of the images reported"]}
    for some, text in (
        (r, "chosen on the images reported"),
        (chosen, "95 % intervals"),
        (replace(r, about=about), "ranked on 7 of the images reported"),
    ):
        (note,) = plots.accuracy_vs_k(some).axes[0].texts
        assert note.get_text().endswith(text)


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
    assert len(balanced.axes) == 2
    figure = plots.accuracy_vs_k(result(unbalanced=True))
    assert len(figure.axes) == 3
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert "accuracy" in lines and "balanced accuracy" in lines
    for name, share in (("accuracy 0.90", 0.9), ("balanced accuracy 0.33", 1 / 3)):
        chance = lines[f"chance, always one class: {name}"]
        assert {*chance.get_ydata()} == {share}
    shares = [line for line in figure.axes[1].lines if "predicted" in line.get_label()]
    assert len(shares) == 3


def test_the_curve_is_the_result_and_marks_the_chosen_k():
    r = replace(result(), about={**result().about, "max_drop": 0.2})
    figure = plots.accuracy_vs_k(r)
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*lines]
    np.testing.assert_array_equal(lines["accuracy"].get_ydata(), r.accuracy)
    safe, naive = r.largest_safe_k(0.2), r.largest_k_within(0.2)
    assert 0 < safe < naive
    for k, words in ((safe, "safe K"), (naive, "within 20 points")):
        (label,) = (name for name in lines if words in name)
        assert f": {k} " in label
        assert lines[label].get_xdata() == [k]
        assert lines[label].get_ydata() == [r.accuracy[k]]
    (loss,) = figure.axes[1].lines
    np.testing.assert_array_equal(loss.get_ydata(), r.cross_entropy)
    for axes, interval in zip(
        figure.axes, (r.figures.accuracy, r.cross_entropy_interval), strict=True
    ):
        (band,) = axes.collections
        ends = band.get_paths()[0].vertices
        assert ends[:, 1].min() == interval.low.min()
        assert ends[:, 1].max() == interval.high.max()


@pytest.mark.parametrize(
    ("lowest", "highest", "shown"),
    [
        (0.2, 3, ["0.2", "0.5", "1", "2"]),
        (0.001, 20, ["0.001", "0.01", "0.1", "1", "10"]),
        (0.42, 0.9, ["0.45", "0.6", "0.75", "0.9"]),
    ],
)
def test_numbers_of_a_logarithmic_axis(lowest, highest, shown):
    losses = np.geomspace(lowest, highest, 12)
    r = replace(result(), cross_entropy=losses, cross_entropy_std=None)
    figure = plots.accuracy_vs_k(r)
    figure.draw_without_rendering()
    axis, ends = figure.axes[1].yaxis, figure.axes[1].get_ylim()
    ticks = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
    inside = [label.get_text() for at, label in ticks if ends[0] <= at <= ends[1]]
    assert inside == shown
    assert not any(label.get_text() for label in axis.get_ticklabels(minor=True))


def test_all_steps_of_the_scores_are_one_channel_wide():
    r = result()
    filled, line = plots.sorted_scores(r).axes[0].patches
    for step in (filled, line):
        values, edges, _ = step.get_data()
        np.testing.assert_array_equal(values, r.scores[r.order])
        np.testing.assert_array_equal(edges, np.arange(13) - 0.5)


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
    where = "m, layer conv: mean feature maps"
    ranked = " by mean" if order == "rank" else ""
    assert axes.get_title().startswith(f"{where}{ranked}, 2 x 2 each")
    tile = image[row * tile_h : (row + 1) * tile_h, column * tile_w :][:, :tile_w]
    corners = tile[0, 0], tile[0, 20], tile[20, 0], tile[20, 20]
    np.testing.assert_allclose(corners, expected.ravel(), rtol=1e-6)


def test_confusion_matrices_of_a_k():
    r = result()
    figure = plots.confusion_matrices(r, 9)
    share = figure.axes[1].images[0].get_array()
    counts = r.confusion[9]
    np.testing.assert_allclose(share, 100 * counts / counts.sum(1, keepdims=True))
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["a (20)", "b (20)", "c (20)"]
    assert figure.get_suptitle() == "m, layer conv, criterion mean, fill zero"
    with pytest.raises(InputError, match="no K = 12"):
        plots.confusion_matrices(r, 12)


def test_a_failed_save_leaves_the_old_picture(tmp_path):
    path = tmp_path / "picture.png"
    plots.save(plots.sorted_scores(result()), path)
    old = path.read_bytes()

    class Broken(Figure):
        def savefig(self, path, **how):
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError):
        plots.save(Broken(), path)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["picture.png"]


@pytest.mark.parametrize(("suffix", "start"), [("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_other_formats(tmp_path, suffix, start):
    result().save(tmp_path)
    paths = plots.draw_sweep(result(), tmp_path, suffix=suffix)
    assert len(paths) == 4
    for path in paths:
        assert path.suffix == f".{suffix}" and path.read_bytes().startswith(start)
        assert b"/Type3" not in path.read_bytes()
    result().save(tmp_path)  # pictures are no reason to refuse


def row(accuracy, share, times):
    """A budget's figures; times by batch, relative to the whole network's."""
    quartiles = ("lower_quartile", "median", "upper_quartile")
    return {
        "baseline_accuracy": 0.9, "accuracy": accuracy, "largest_drop": 0.2,
        "multiply_adds_before": 100, "multiply_adds": 100 * share,
        "parameters_before": 10, "parameters": 10 * share,
        "latency": {
            batch: {
                "before": dict.fromkeys(quartiles, 2.0),
                "after": dict(zip(quartiles, (time, 2 * time, 4 * time), strict=True)),
            }
            for batch, time in times.items()
        },
    }  # fmt: skip


def test_budgets_against_what_they_cost():
    rows = [row(0.75, 0.25, {"8": 2, "1": 0.5}), row(0.85, 0.5, {"8": 1, "1": 3})]
    axes = shrinking.pareto(rows, "title").axes
    for panel in axes[:2]:
        points, path, _ = panel.lines[:3]
        np.testing.assert_array_equal(points.get_xydata(), [[0.25, 0.75], [0.5, 0.85]])
        ends = [*points.get_xydata(), [1, 0.9]]
        np.testing.assert_array_equal(path.get_xydata(), ends)
        (down,) = panel.collections
        lowest = [bar[0, 1] for bar in down.get_segments()]
        np.testing.assert_allclose(lowest, [0.7, 0.7])  # a loss of 0.2
    one, eight = axes[2].containers
    assert (one.get_label(), eight.get_label()) == ("batch 1", "batch 8")
    points, _, (across, _) = eight
    np.testing.assert_array_equal(points.get_xydata(), [[2, 0.75], [1, 0.85]])
    assert points.get_linestyle() == "None"
    spans = [bar[:, 0].tolist() for bar in across.get_segments()]
    assert spans == [[1, 4], [0.5, 2]]
    assert axes[2].get_xlim()[1] > 3  # slower networks are in view


def saved(path, name, rows):
    about = {"model": "m", "layer": "conv", "fill": "zero"}
    curve = [[0, 1], [0.9, 0.8]]
    path.write_text(json.dumps({"about": about, name: rows, "curve": curve}))


def test_budgets_and_tables_are_drawn_from_what_is_saved(tmp_path):
    budget = row(0.75, 0.25, {"8": 2})
    saved(tmp_path / "summary.json", "rungs", [{**budget, "multiply_adds": 25,
                                                "parameters": 2}])  # fmt: skip
    assert shrinking.draw_budgets(tmp_path, "svg") == [tmp_path / "pareto.svg"]
    table = tmp_path / "compact-conv.json"
    saved(table, "rows", [{
        **budget, "k": 1, "channels": 4, "file_bytes": 3, "file_bytes_before": 4,
        "parameters": 2, "multiply_adds": 25,
    }])  # fmt: skip
    (picture,) = compact.draw_table(table, "svg")
    text = picture.read_text()
    assert picture.name == "compact-conv.svg" and text.startswith("<?xml")
    assert "m, layer conv, fill zero: compact networks" in text  # as a comment
    assert "masked, every K swept" in text
    for path, name, draw in (
        (tmp_path / "summary.json", "rungs", lambda: shrinking.draw_budgets(tmp_path)),
        (table, "rows", lambda: compact.draw_table(table)),
    ):
        saved(path, name, [])
        assert draw() == []
        saved(path, name, [{"k": 1}])
        with pytest.raises(InputError, match=path.name):
            draw()


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
        assert [*axes.lines[-2].get_ydata()] == [values[0]] * 2
    chance = {*panels[-1].lines[-1].get_ydata()}
    assert chance == {1 / 3}


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
    accuracy, small, large = figure.stages(rows, "title").axes
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
