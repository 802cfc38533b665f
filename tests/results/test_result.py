"""A saved sweep is the one that was saved, or refused in one line."""

import contextlib
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from jaxprune._base import manifest
from jaxprune._base.errors import InputError
from jaxprune.results.result import SweepResult


def result(p=6, n=20, classes=3):
    rng = np.random.default_rng(0)
    scores = rng.uniform(size=p)
    return SweepResult(
        ks=tuple(range(p)),
        order=np.argsort(scores),
        scores=scores,
        predictions=rng.integers(0, classes, (p, n)).astype(np.uint8),
        labels=np.arange(n) % classes,
        mean_feature_map=rng.uniform(size=(2, 2, p)).astype(np.float32),
        class_names=("a", "b", "c"),
        about={"layer": "block_1/conv", "criterion": "mean", "fill": "zero"},
    )


@pytest.fixture
def saved(tmp_path):
    result().save(tmp_path / "sweep")
    return tmp_path / "sweep"


@pytest.mark.parametrize(
    ("predicted", "no_better"),
    [
        (lambda labels: labels * 0 + 1, True),  # always one class
        (lambda labels: (labels + 1) % 3, True),
        (lambda labels: labels, False),
        (lambda labels: np.where(labels == 2, 0, labels), False),
    ],
)
def test_a_network_that_guesses_is_pointed_out(predicted, no_better):
    r = result()
    predictions = r.predictions.copy()
    predictions[0] = predicted(r.labels)
    found = replace(r, predictions=predictions).remarks
    assert any("no better than a guess" in line for line in found) == no_better


def test_a_digit_changed_in_the_table(saved):
    path = saved / "sweep.csv"
    text = path.read_text()
    path.write_text(text.replace("\n4,", "\n14,"))
    assert path.read_text() != text
    with pytest.raises(InputError, match=r"sweep\.csv does not match its sha256"):
        SweepResult.load(saved)


def test_a_table_cut_within_its_last_row(saved):
    path = saved / "sweep.csv"
    path.write_text(path.read_text()[:-4])
    with pytest.raises(InputError, match=r"sweep\.csv does not match its sha256"):
        SweepResult.load(saved)


def test_arrays_of_another_sweep(saved):
    """They are whole, and fit one another."""
    one = result()
    other = replace(one, predictions=(one.predictions + 1) % 3)
    other.save(saved.parent / "other")
    (saved.parent / "other" / "sweep.npz").replace(saved / "sweep.npz")
    with pytest.raises(InputError, match=r"sweep\.npz does not match its sha256"):
        SweepResult.load(saved)


def test_no_damage_of_the_summary_is_believed(saved):
    """A byte in each of 300 places becomes another."""
    whole, path = SweepResult.load(saved), saved / "summary.json"
    content, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        damaged[rng.integers(len(content))] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            assert SweepResult.load(saved).summary() == whole.summary()
        except InputError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 200  # others are white space, or no change


def test_a_sweep_without_sums(saved):
    path = saved / "summary.json"
    facts = json.loads(path.read_text())
    del facts["sha256"]
    path.write_text(json.dumps(facts))
    with pytest.raises(InputError, match=r"its own sha256.*run the sweep again"):
        SweepResult.load(saved)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("order", lambda a: np.where(a == 1, 0, a), "each of the channels 0 .. 5 once"),
        ("order", lambda a: a + 1, "each of the channels"),
        ("scores", lambda a: np.where(a == a.max(), np.nan, a), "scores must be fin"),
        ("labels", lambda a: a + 1, "labels must lie in 0 .. 2"),
        ("predictions", lambda a: a + np.uint8(1), "predictions must lie in 0 .. 2"),
        ("predictions", lambda a: a[:-1], "6 rows of 20"),
        ("mean_feature_map", lambda a: a * np.float32(np.inf), "must be finite"),
        ("ks", lambda ks: (*ks[:-2], 5, 4), "strictly ascending"),
        ("ks", lambda ks: (*ks[:-1], 6), "0 .. 5"),
    ],
)
def test_arrays_that_do_not_fit_one_another(saved, name, change, message):
    """However the sums agree: the same check serves what is made and what is loaded."""
    one = result()
    with pytest.raises(InputError, match=message):
        replace(one, **{name: change(getattr(one, name))})
    if name == "ks":
        header, *rows = (saved / "sweep.csv").read_text().splitlines()
        others = [row[row.index(",") :] for row in rows]
        ks = change(one.ks)
        rows = [f"{k}{other}" for k, other in zip(ks, others, strict=True)]
        (saved / "sweep.csv").write_text("\n".join([header, *rows]))
    else:
        with np.load(saved / "sweep.npz") as arrays:
            changed = dict(arrays) | {name: change(arrays[name])}
        np.savez(saved / "sweep.npz", **changed)
    facts = json.loads((saved / "summary.json").read_text())
    (saved / "summary.json").unlink()
    manifest.write(saved, "summary.json", facts)
    with pytest.raises(InputError, match=message):
        SweepResult.load(saved)


@pytest.mark.parametrize("key", ["layer", "criterion", "fill"])
@pytest.mark.parametrize("name", ["/../../x/y", "..", "", ".hidden", "a//b", "a/../b"])
def test_names_that_lead_elsewhere(saved, key, name):
    """They become parts of files' names."""
    with pytest.raises(InputError, match=f"'{key}'"):
        replace(result(), about={key: name})
    facts = json.loads((saved / "summary.json").read_text()) | {key: name}
    (saved / "summary.json").unlink()
    manifest.write(saved, "summary.json", facts)
    with pytest.raises(InputError, match=f"'{key}'"):
        SweepResult.load(saved)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"what": object()}, "JSON-able"),
        ({"n_images": 7}, "may not hold n_images"),
        ({"sha256": "0"}, "may not hold sha256"),
    ],
)
def test_facts_that_cannot_be_kept(about, message):
    with pytest.raises(InputError, match=message):
        replace(result(), about=about)


def test_a_folder_of_something_else_is_kept(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"thesis\.tex is no part of a sweep"):
        result().save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


SAVE = """
import sys, numpy as np
sys.path.insert(0, sys.argv[3])
from pathlib import Path
from dataclasses import replace
from test_result import result
one = result()
mine = np.full_like(one.predictions, int(sys.argv[2]))
for _ in range(15):
    replace(one, predictions=mine).save(Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_two_processes_that_save_at_once(tmp_path):
    """Whoever is last wins, with all files; what is there is never of both."""
    folder = tmp_path / "sweep"
    result().save(folder)
    here = str(__import__("pathlib").Path(__file__).parent)
    both = [
        subprocess.Popen([sys.executable, "-c", SAVE, str(folder), str(i), here])
        for i in (1, 2)
    ]
    read = 0
    while any(process.poll() is None for process in both):
        # Between two renames there is none.
        with contextlib.suppress(InputError):
            read += len(np.unique(SweepResult.load(folder).predictions)) == 1
    assert read
    assert [process.returncode for process in both] == [0, 0]
    assert len(np.unique(SweepResult.load(folder).predictions)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["sweep"]


def test_its_repr_is_a_line():
    assert repr(result()) == (
        "SweepResult(layer block_1/conv, criterion mean, fill zero; 6 K, 20 images)"
    )
