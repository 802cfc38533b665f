"""A sweep that was stopped goes on where it was, from the command line."""

from pathlib import Path

import numpy as np
import pytest

from jaxprune.cli import provenance
from jaxprune.cli.commands import sweep
from jaxprune.graph import sizes
from jaxprune.results.comparison import Comparison
from jaxprune.results.result import SweepResult
from jaxprune.sweep import checkpoint, maps
from run_directories import FOLDER, SMALL, plant_run

RUN = FOLDER.parent
pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(autouse=True)
def small_batches_kept_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sizes, "_CPU_ELEMENTS", 400)
    monkeypatch.setattr(checkpoint, "_SECONDS", 0.0)


@pytest.fixture
def interrupt(monkeypatch):
    """Has Ctrl-C come with the nth batch."""

    def after(batches):
        add, calls = checkpoint.SweepCheckpointer.add, []

        def stop(*arguments):
            calls.append(1)
            if len(calls) > batches:
                raise KeyboardInterrupt
            add(*arguments)

        monkeypatch.setattr(checkpoint.SweepCheckpointer, "add", stop)
        return lambda: monkeypatch.setattr(checkpoint.SweepCheckpointer, "add", add)

    return after


def poison(path):
    """Predictions that no network gives show that they were not computed again."""
    with np.load(path) as arrays:
        found = dict(arrays)
    first, end = map(int, path.stem.split("-")[-2:])
    found["value class"] = 1 - found["value class"]
    np.savez_compressed(path, **found)
    return slice(first, end)


@pytest.mark.slow
def test_a_sweep_goes_on(script, interrupt):
    assert script(sweep, *SMALL)[0] == 0
    whole = SweepResult.load(FOLDER)
    for path in FOLDER.iterdir():
        path.unlink()
    resume = interrupt(2)
    code, _, err = script(sweep, *SMALL)
    assert code == 130 and "run the same command again to go on" in err
    parts = RUN / f"unfinished-{FOLDER.name}"
    second = sorted(parts.iterdir())[1]
    turned = poison(second)
    resume()
    code, _, err = script(sweep, *SMALL)
    assert code == 0, err
    found = SweepResult.load(FOLDER)
    expected = whole.predictions.copy()
    expected[:, turned] = 1 - expected[:, turned]
    np.testing.assert_array_equal(found.predictions, expected)
    np.testing.assert_array_equal(found.cross_entropy, whole.cross_entropy)
    assert not parts.exists() and not [*RUN.glob("unfinished-*")]
    # Nothing of it is taken where the fill is another.
    code, _, err = script(sweep, *SMALL, "--fill=zero")
    assert code == 0, err


@pytest.mark.slow
def test_nothing_of_another_version_is_taken(script, interrupt, monkeypatch):
    plant_run(RUN)
    resume = interrupt(2)
    assert script(sweep, "--model=digits_pair")[0] == 130
    for path in RUN.glob("unfinished-*/*"):
        poison(path)
    resume()
    monkeypatch.setattr(provenance, "_commit", lambda: "another")
    found = []
    for _ in range(2):
        assert script(sweep, "--model=digits_pair")[0] == 0
        found.append(SweepResult.load(FOLDER).predictions)
    np.testing.assert_array_equal(*found)


@pytest.mark.slow
def test_a_comparison_goes_on(script, interrupt):
    flags = (*SMALL, "--criterion=abs_mean,l1", "--random_orders=1",
             "--maps=recompute")  # fmt: skip
    resume = interrupt(20)
    assert script(sweep, *flags)[0] == 130
    (parts,) = RUN.glob("unfinished-*")
    assert len([*parts.iterdir()]) == 20
    resume()
    code, _, err = script(sweep, *flags)
    assert code == 0, err
    (folder,) = RUN.glob("criteria-*")
    found = Comparison.load(folder)
    assert not parts.exists()
    for path in (*folder.iterdir(), *RUN.glob("sweep-*/*")):
        path.unlink()
    assert script(sweep, *flags[:-1])[0] == 0
    again = Comparison.load(folder)
    np.testing.assert_array_equal(found.accuracy, again.accuracy)
    np.testing.assert_array_equal(found.random_accuracy, again.random_accuracy)


@pytest.mark.parametrize(
    ("flag", "folders", "said"),
    [
        ("--maps_dir=big", [Path("big")], "feature maps, 23.0kiB on the disk"),
        ("--maps=recompute", [], "feature maps:"),
        ("--maps=device", [], "feature maps, 23.0kiB on the device"),
    ],
)
def test_where_feature_maps_are(script, maps_places, flag, folders, said):
    """30 images, 7 x 7 x 4 float32; what is kept of them is said first."""
    plant_run(RUN)
    Path("big").mkdir()
    code, _, err = script(sweep, "--model=digits_pair", "--ks=0,1", flag)
    assert code == 0, err
    assert maps_places == folders and said in err


def test_feature_maps_that_do_not_fit_on_the_device(script, maps_places, monkeypatch):
    plant_run(RUN)
    monkeypatch.setattr(maps, "free_memory", lambda _: 20 * 1024 // 8)
    flags = ("--model=digits_pair", "--ks=0,1", "--maps=device")
    code, out, err = script(sweep, *flags)
    assert code == 0, err
    assert "feature maps: 23.0kiB are more than half of the devices' free memory" in out
    assert len(maps_places) == 1


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--maps_dir=nowhere", "no folder nowhere for the feature maps"),
        ("--maps=memory", "should be one of <device|disk|recompute>"),
    ],
)
def test_bad_input(script, flag, message):
    code, _, err = script(sweep, *SMALL, flag)
    assert code == 2 and message in err
    assert not Path("runs").exists()
