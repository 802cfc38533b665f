"""The linear fill from the command line."""

import json
from pathlib import Path

import numpy as np
import pytest

import jaxprune
from jaxprune.cli.commands import compact, sweep
from run_directories import SMALL

RUN = Path("runs/digits_pair")


pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.mark.slow
def test_swept_and_compact(script):
    flags = ["--fill=linear", "--criterion=linear", "--calibration_split=train[:64]"]
    code, out, err = script(sweep, *SMALL, *flags, "--ridge=0.02")
    assert code == 0, err
    assert "fill linear, fitted on 64 images of train[:64], ridge 0.02" in out
    folder = RUN / "sweep-conv3-linear-linear"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["calibration_split"] == "train[:64]"
    assert summary["fill_facts"] == {
        "images": 64, "ridge": 0.02, "split": "train[:64]",
    }  # fmt: skip
    result = jaxprune.SweepResult.load(folder)
    assert (np.diff(result.scores[result.order]) >= 0).all()

    # Another ridge is another sweep, and so are other images.
    code, _, err = script(sweep, *SMALL, *flags, "--ridge=0.1")
    assert code == 2 and "ridge is 0.02, not 0.1" in err
    others = [*flags[:2], "--calibration_split=train[:32]"]
    code, _, err = script(sweep, *SMALL, *others, "--ridge=0.02")
    assert code == 2 and "split is train[:64], not train[:32]" in err

    code, out, err = script(
        compact, *SMALL, *flags, "--ridge=0.02", "--k=5", "--latency_batches=1",
        "--repeats=1",
    )  # fmt: skip
    assert code == 0, err
    assert "0 predictions differ" in out
    small = jaxprune.load_compact(RUN / "compact-conv3-linear-linear-k5")
    layer = small.layers["conv3"]
    assert layer.fill == "linear" and layer.fill_facts["split"] == "train[:64]"
    assert layer.kept == tuple(sorted(result.order[5:].tolist()))
    masked = small.proof
    assert masked is not None and masked.different_predictions == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--calibration_split=train[5:5]"], "split 'train[5:5]' is empty"),
        (["--calibration_split=test[:9]"], "holds 9 images of --eval_split=test"),
        (["--calibration_split=all"], "unknown split 'all'"),
        (["--ridge=-1"], "--ridge must be positive"),
        (["--ridge=nan"], "--ridge takes a finite number, got nan"),
        (
            ["--ridge=0", "--fill=zero", "--criterion=linear"],
            "--ridge must be positive",
        ),
    ],
)
def test_bad_input_ends_with_one_line(script, flags, message):
    code, _, err = script(sweep, *SMALL, "--fill=linear", *flags)
    assert code == 2
    assert message in err and err.count("\n") == 1
    assert not RUN.exists()


def test_evaluation_images_only_if_asked_for(script):
    code, _, err = script(
        sweep, *SMALL, "--fill=linear", "--calibration_split=test[:9]",
        "--allow_overlap", "--ks=0,3",
    )  # fmt: skip
    assert code == 0, err
    folder = RUN / "sweep-conv3-abs_mean-linear"
    facts = json.loads((folder / "summary.json").read_text())["fill_facts"]
    assert facts["images_of_eval_split"] == 9
