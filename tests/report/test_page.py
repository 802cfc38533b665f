"""The report as a file: what travels in it, what it links to, what it may do."""

import base64
import hashlib
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import matplotlib
import numpy as np
import pytest
import vl_convert
from PIL import Image

import jaxprune
from jaxprune._base.errors import InputError
from jaxprune.report import page
from jaxprune.report.page import charts, document, pixels, sweeps
from jaxprune.results import metrics
from planted_sweeps import (
    EVIL,
    page_data,
    plant_ladder,
    plant_network,
    planted_sweep,
)


class Elements(HTMLParser):
    """Every element with its attributes, and the text of scripts and styles."""

    def __init__(self, html):
        super().__init__()
        self.found, self.text, self.inside = [], {}, None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        self.text.setdefault(self.inside, []).append(data)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run directory of two sweeps and smaller networks."""
    folder = tmp_path_factory.mktemp("run & <u>")
    planted_sweep().save(folder / "sweep-conv-mean-zero")
    linear = planted_sweep(seed=1, fill="linear", ks=(0, 3, 6, 9))
    linear.save(folder / "sweep-conv-mean-linear")
    plant_network(folder / "compact-conv-mean-zero-k3")
    plant_network(folder / "shrink-speedup2", accuracy_finetuned=0.89)
    plant_ladder(folder)
    return folder


@pytest.fixture(scope="module")
def html(workdir):
    return page.make(workdir).html


def test_changes_lead_to_every_prediction(html):
    for shown in page_data(html)["sweeps"]:
        fill = shown["name"].split(" · ")[-1]
        expected = planted_sweep(
            **{"seed": 1, "fill": "linear", "ks": (0, 3, 6, 9)}
            if fill == "linear"
            else {}
        )
        detail = shown["detail"]
        images, changes = detail["images"], detail["changes"]
        walked = np.array(detail["predicted"])
        for row in range(len(expected.ks)):
            if row:
                for i in range(changes["start"][row - 1], changes["start"][row]):
                    assert walked[changes["image"][i]] == changes["before"][i]
                    walked[changes["image"][i]] = changes["predicted"][i]
            np.testing.assert_array_equal(walked, expected.predictions[row, images])
        others = np.setdiff1d(np.arange(len(expected.labels)), images)
        assert (
            expected.predictions[:, others] == expected.predictions[0, others]
        ).all()
        assert detail["labels"] == expected.labels[images].tolist()
        counts = np.zeros(16, int)
        for pair, count in detail["confusion"]:
            counts[pair] = count
        np.testing.assert_array_equal(counts.reshape(4, 4), expected.confusion[0])
        first = detail["first"]
        assert first == sorted(first)
        for image, row in zip(images, first, strict=True):
            right = expected.right[:, image]
            assert (right[:row] == right[0]).all()
            assert row == len(right) or right[row] != right[0]


def test_its_numbers_are_those_of_sweep_csv(html, workdir):
    shown = {s["name"]: s for s in page_data(html)["sweeps"]}["conv · mean · zero"]
    result = planted_sweep()
    for name, column in result.columns().items():
        if name in shown["columns"]:
            np.testing.assert_allclose(shown["columns"][name], column, atol=6e-7)
    assert {*sweeps.COLUMNS} == {*shown["columns"]}
    assert shown["largest_safe_k"] == result.largest_safe_k(0.01)
    assert shown["largest_k_within"] == result.largest_k_within(0.01)


@pytest.mark.parametrize("classes", [2, 10, 11, 300])
def test_shares_are_of_the_classes_that_change_most(classes):
    result = planted_sweep(classes=classes, images=1200)
    detail = sweeps.find(result)[0].detail()
    expected = 100 * metrics.predicted_share(result.confusion)
    drawn = np.array(detail["shares"]["percent"])
    names = detail["shares"]["names"]
    np.testing.assert_allclose(drawn.sum(0), 100, rtol=1e-12)
    np.testing.assert_array_equal(drawn, np.round(drawn, 1))
    moved = np.abs(expected - expected[0]).max(0)
    if classes <= 10:
        assert names == [*result.class_names]
        np.testing.assert_allclose(drawn.T, expected, atol=0.1)
    else:
        assert len(names) == 10 and names[-1] == "all others"
        chosen = [result.class_names.index(name) for name in names[:-1]]
        np.testing.assert_allclose(drawn[:-1].T, expected[:, chosen], atol=0.1)
        assert moved[chosen].min() >= np.delete(moved, chosen).max()


def test_the_sweep_with_the_largest_safe_share_comes_first(html, workdir):
    found = sweeps.find(workdir)
    assert [s["name"] for s in page_data(html)["sweeps"]] == [s.name for s in found]
    share = [s.marked["largest_safe_k"] / len(s.result.order) for s in found]
    assert share == sorted(share, reverse=True)


def test_where_very_much_changes_k_that_matter_stay(monkeypatch):
    result = planted_sweep(channels=40, images=200)
    whole = sweeps.find(result)[0]
    assert whole.rows == [*range(40)]
    changes = np.count_nonzero(np.diff(result.predictions.astype(int), axis=0))
    monkeypatch.setattr(sweeps, "_CHANGES", int(0.95 * changes))
    (sweep,) = sweeps.find(result)
    assert 4 < len(sweep.rows) < 40 and sweep.rows[0] == 0 and sweep.rows[-1] == 39
    assert {*sweep.marked.values()} <= {result.ks[row] for row in sweep.rows}
    html = page.make(result).html
    assert "Not every K of this sweep is here" in html
    (shown,) = page_data(html)["sweeps"]
    assert (
        shown["columns"]["accuracy"]
        == np.round(result.accuracy[sweep.rows], 6).tolist()
    )


def test_of_sweeps_too_many_only_the_curves_are_there(workdir, monkeypatch):
    monkeypatch.setattr(document, "_DETAILS", 10)
    html = page.make(workdir).html
    first, second = page_data(html)["sweeps"]
    assert first["detail"] and second["detail"] is None and second["columns"]
    assert f"Only the curves are here of {second['name']}" in html


def test_it_can_reach_nothing_and_runs_only_its_own_scripts(html):
    elements = Elements(html)
    for tag, attributes in elements.found:
        assert not {"src", "srcset", "action", "onclick"} & attributes.keys(), tag
        if "href" in attributes:
            assert tag == "a" and re.match(r"[\w.%-]+/[\w.%-]+$", attributes["href"])
    assert "@import" not in "".join(elements.text["style"])
    for url in re.findall(r"url\((.{12})", "".join(elements.text["style"])):
        assert url.startswith("data:image/")
    (policy,) = (a["content"] for _, a in elements.found if a.get("http-equiv"))
    parts = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert parts["default-src"] == "'none'" and parts["img-src"] == "data:"
    scripts = elements.text["script"]
    assert len(scripts) == 3 and "unsafe" not in parts["script-src"]
    sums = {
        f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'"
        for s in scripts[1:]
    }
    assert {*parts["script-src"].split()} == sums


def test_text_from_outside_is_escaped(html):
    assert EVIL not in html and "<u>" not in html
    assert page_data(html)["sweeps"][0]["detail"]["class_names"][0] == EVIL
    assert "&lt;script&gt;window.hacked" in html  # the commit, among the facts


def test_our_script_is_short():
    text = (Path(page.__file__).parent / "templates" / "page.js").read_text()
    assert len(text.splitlines()) < 320


def links(html):
    return [a["href"] for tag, a in Elements(html).found if tag == "a"]


def test_links_lead_to_the_files_of_smaller_networks(html, workdir, tmp_path):
    found = {(workdir / unquote(href)).resolve() for href in links(html)}
    expected = {
        (workdir / folder / name).resolve()
        for folder in ("compact-conv-mean-zero-k3", "shrink-speedup2")
        for name in ("spec.json", "weights.safetensors")
    }
    assert found == expected and all(path.is_file() for path in found)
    elsewhere = workdir / "pages" / "one.html"
    elsewhere.parent.mkdir()
    page.write(workdir, elsewhere)
    hrefs = links(elsewhere.read_text())
    assert {(elsewhere.parent / unquote(href)).resolve() for href in hrefs} == expected


def test_tables_of_smaller_networks(html):
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))
    assert "compact-conv-mean-zero-k3 0.8000 0.9000 500 (50 %) 300 (33 %) 2.00" in text
    assert "shrink-speedup2 0.8900 0.9000" in text  # fine-tuned
    assert "1.50 batch 1 2.00 batch 32" in text
    assert "latency 2 0.8500 0.9000 0.0700 0 3.00 4.00 1.50 batch 32" in text


def test_the_budgets_on_the_page(html):
    shown = page_data(html)["budgets"]
    assert [row["name"] for row in shown["rows"]] == [
        "whole network", "speedup 1.5", "latency 2"
    ]  # fmt: skip
    assert [row["score"] for row in shown["rows"]] == [0.9, 0.875, 0.85]
    assert shown["widths"] == [
        {"name": "conv", "of_row": [8, 6, 3]}, {"name": EVIL, "of_row": [4, 4, 2]}
    ]  # fmt: skip
    lost, won = shown["moved"]["lost"], shown["moved"]["won"]
    assert [each["count"] for each in lost] == [0, 1, 2]
    assert lost[2]["images"] == [
        [0, "class 0", "class 1"], [1, "class 1", "class 2"]
    ]  # fmt: skip
    assert [each["images"] for each in won] == [[], [], [[2, "class 3", "class 2"]]]
    assert {*shown["thumbnails"]} == {"0", "1", "2"} and shown["pool"] == 0
    assert shown["worse"] == "lost"


def test_a_run_directory_of_budgets_alone(tmp_path):
    plant_ladder(tmp_path, labels=False)
    html = page.make(tmp_path).html
    assert len(Elements(html).text["script"]) == 2  # of no chart
    data = page_data(html)
    assert data["sweeps"] == [] and data["charts"] == {}
    worse, better = data["budgets"]["moved"].values()
    assert [each["count"] for each in worse] == [0, 1, 2]
    assert [image for image, *_ in worse[2]["images"]] == [0, 1]
    (found,) = better[2]["images"]
    assert found[0] == 2 and float(found[2]) == 0.01 < float(found[1])
    assert "Worse" in html and "Lost" not in html
    (tmp_path / "shrink" / "images.npz").unlink()  # as earlier versions left it
    assert page_data(page.make(tmp_path).html)["budgets"]["moved"] == {}


def test_images_of_other_budgets_are_left_out(tmp_path):
    plant_ladder(tmp_path)
    path = tmp_path / "shrink" / "summary.json"
    summary = json.loads(path.read_text())
    summary["rungs"][0]["value"] = 2.5
    path.write_text(json.dumps(summary))
    assert page_data(page.make(tmp_path).html)["budgets"]["moved"] == {}


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("shrink/summary.json", '{"about": {"model": "m"}}', "'rungs' field required"),
        ("shrink/images.npz", "PK", "images.npz is damaged"),
        ("compact-conv-mean-zero-k3/spec.json", "{}", "its own sha256"),
        ("sweep-conv-mean-zero/sweep.csv", "k,accuracy\n0,1\n", "does not match"),
    ],
)
def test_damaged_files_are_named(workdir, tmp_path, file, change, message):
    path = workdir / file
    before = path.read_bytes()
    try:
        path.write_text(change)
        with pytest.raises(InputError, match=message):
            page.make(workdir)
    finally:
        path.write_bytes(before)


def test_what_it_is_made_of(workdir, tmp_path):
    with pytest.raises(InputError, match="holds no sweep"):
        page.make(tmp_path)
    saved = page.make(workdir / "sweep-conv-mean-zero").html
    (one,) = page_data(saved)["sweeps"]
    (other,) = page_data(page.make(planted_sweep()).html)["sweeps"]
    assert one == other
    older = replace(planted_sweep(), thumbnails=None, cross_entropy=None)
    (shown,) = page_data(page.make(older).html)["sweeps"]
    assert {*shown["detail"]["thumbnails"]} == {-1} and shown["detail"]["pool"] == -1
    assert "cross_entropy" not in shown["columns"]


def test_a_notebook_shows_it_in_a_frame(workdir, tmp_path):
    made = jaxprune.report.page.make(workdir)
    shown = made._repr_html_()
    ((tag, attributes),) = Elements(shown).found
    assert tag == "iframe" and attributes["srcdoc"] == made.html
    made.save(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == made.html


def decoded(mosaic):
    data = mosaic.url.removeprefix("data:image/png;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def tile(mosaic, i):
    y, x = divmod(i, mosaic.columns)
    h, w = mosaic.height, mosaic.width
    return decoded(mosaic)[y * h : (y + 1) * h, x * w : (x + 1) * w]


@pytest.mark.parametrize(
    ("shape", "signed"), [((1, 1, 2), False), ((2, 3, 5), True), ((4, 4, 7), False)]
)
def test_tiles_show_the_mean_feature_maps(shape, signed):
    maps = np.random.default_rng(0).uniform(-1 if signed else 0, 2, shape)
    made = pixels.feature_maps(maps)
    limit = np.abs(maps).max()
    assert (made.low, made.high) == (-limit if signed else 0, limit)
    one = matplotlib.colormaps["RdBu_r" if signed else "viridis"]
    for p in range(shape[2]):
        share = (maps[..., p] - made.low) / (made.high - made.low)
        levels = np.round(255 * share) / 255
        expected = one(levels, bytes=True)[..., :3].astype(int)
        assert np.abs(tile(made.one, p) - expected).max() <= 3
        low, high = maps[..., p].min(), maps[..., p].max()
        if high > low:
            levels = (maps[..., p] - low) / (high - low)
            expected = matplotlib.colormaps["viridis"](levels, bytes=True)[..., :3]
            assert np.abs(tile(made.each, p) - expected.astype(int)).max() <= 3


def test_many_large_maps_are_drawn_as_means():
    maps = np.zeros((56, 56, 2048), np.float32)
    maps[:6] = 1
    made = pixels.feature_maps(maps)
    assert made.block == 3 and (made.one.height, made.one.width) == (19, 19)
    assert len(made.one.url) + len(made.each.url) < 3e6
    shown = tile(made.one, 2047).astype(int)
    assert np.ptp(shown, axis=1).max() == 0
    assert len(np.unique(shown[:2], axis=0)) == len(np.unique(shown[2:], axis=0)) == 1
    assert pixels.feature_maps(np.zeros((1, 1, 2))).high == 1


def test_thumbnails_of_several_sweeps_share_a_mosaic(workdir, html):
    data = page_data(html)
    assert len(data["pools"]) == 1 and len(data["maps"]) == 2
    result = planted_sweep()
    twice = {**result.about, "fill": "bias"}
    found = [sweeps.find(r)[0] for r in (result, replace(result, about=twice))]
    pictures = document.Pictures()
    both = [
        pictures.places(sweep.result.thumbnail_images, sweep.result.thumbnails)
        for sweep in found
    ]
    assert both[0] == both[1] and len(both[0]) == len(result.thumbnails)
    (pool,) = pictures.pools
    for image, picture in zip(result.thumbnail_images, result.thumbnails, strict=True):
        np.testing.assert_array_equal(tile(pool, both[0][image]), picture)
    assert pictures.feature_maps(found[0]) == pictures.feature_maps(found[1]) == 0


def test_charts_are_valid():
    for spec in (
        charts.curves("accuracy", "accuracy", ["a"] * 20, 8, share=True),
        charts.curves("cross_entropy", "loss", ["a"], 8, share=True),
        charts.shares(10, 8),
    ):
        made = vl_convert.vegalite_to_vega(spec)
        assert {"k", "main", "hidden"} <= {s["name"] for s in made["signals"]}
        assert json.dumps(made).count("var(--") > 5
