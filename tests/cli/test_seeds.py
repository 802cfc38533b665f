"""One network for each seed: folders, what is resumed, the spread."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from jaxprune.cli import provenance
from jaxprune.cli.commands import sweep
from jaxprune.cli.sweep import run
from jaxprune.results.confidence import mean_interval
from jaxprune.results.result import SweepResult
from run_directories import SMALL

BASE = Path("runs/digits_pair")
SWEEP = "sweep-conv3-abs_mean-bias"
FLAGS = (*SMALL, "--seeds=0,5", "--max_drop=0.3", "--ks=0,2,4,7")


pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.mark.slow
def test_two_seeds_interrupted_and_resumed(script, monkeypatch):
    measure = run.sweep_orders

    def interrupted(tapped, *args, **kwargs):
        if (BASE / "seed0" / SWEEP).exists():
            raise KeyboardInterrupt
        return measure(tapped, *args, **kwargs)

    monkeypatch.setattr(run, "sweep_orders", interrupted)
    code, _, err = script(sweep, *FLAGS)
    assert code == 130 and "1 of 2 seeds are finished" in err
    written = (BASE / "seed0" / SWEEP / "sweep.npz").stat().st_mtime_ns
    assert not list(BASE.glob("seeds-*"))

    monkeypatch.setattr(run, "sweep_orders", measure)
    code, out, err = script(sweep, *FLAGS)
    assert code == 0, err
    assert (BASE / "seed0" / SWEEP / "sweep.npz").stat().st_mtime_ns == written
    assert "training for" not in out  # both networks were trained before
    results = [SweepResult.load(BASE / f"seed{seed}" / SWEEP) for seed in (0, 5)]
    assert results[0].about["seed"] == 0 and results[1].about["seed"] == 5
    assert results[0].about["weights"] != results[1].about["weights"]

    folder = BASE / "seeds-conv3-abs_mean-bias"
    assert sorted(path.name for path in folder.iterdir()) == [
        "seeds.csv", "seeds.png", "summary.json"
    ]  # fmt: skip
    summary = json.loads((folder / "summary.json").read_text())
    safe = [result.largest_safe_k(0.3) for result in results]
    assert summary["largest_safe_k"]["each"] == safe
    assert summary["largest_safe_k"]["lowest"] == min(safe)
    assert summary["largest_k_within"]["each"] == [
        result.largest_k_within(0.3) for result in results
    ]
    accuracy = np.array([result.accuracy for result in results])
    found = summary["baseline_accuracy"]
    assert found["mean"] == pytest.approx(accuracy[:, 0].mean())
    spread = abs(np.diff(accuracy[:, 0])[0]) / 2**0.5
    assert found["standard_deviation"] == pytest.approx(spread)
    with open(folder / "seeds.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["k"] for row in rows] == ["0", "2", "4", "7"]
    mean, (low, high) = mean_interval(accuracy)
    columns = {"mean": mean, "low": low, "high": high, "seed5": accuracy[1]}
    for name, values in columns.items():
        read = [float(row[f"accuracy_{name}"]) for row in rows]
        np.testing.assert_allclose(read, values, atol=1e-6)

    # Sweeps of two versions of JAX are not compared: they are made again.
    monkeypatch.setattr(provenance.importlib.metadata, "version", lambda name: "0.1.2")
    assert script(sweep, *FLAGS)[0] == 0
    again = [SweepResult.load(BASE / f"seed{seed}" / SWEEP) for seed in (0, 5)]
    assert [result.about["versions"]["jax"] for result in again] == ["0.1.2"] * 2

    # A seed's network cannot be another one's.
    code, _, err = script(sweep, *FLAGS, "--learning_rate=0.5")
    assert code == 2 and "seed0 holds another configuration" in err
