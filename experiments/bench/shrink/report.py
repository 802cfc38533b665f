"""What `experiments.bench --what=shrink` prints and writes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.bench.report import write_csv
from experiments.bench.shrink import figure
from jaxprune._base.files import write_text
from jaxprune.report import style

ACCURACIES = ("accuracy", "accuracy_recalibrated", "accuracy_finetuned")


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Prints the table: the whole networks and those that were cut."""
    batches = list(rows[0]["latency"])
    titles = [f"batch {batch}: ms, times faster" for batch in batches]
    columns = f"{'m.-adds /':>11}{'param. /':>10}{'cut':>9}{'recal.':>8}{'tuned':>8}"
    print(f"\n{'':44}{columns}" + "".join(f"{title:>34}" for title in titles))
    for row in rows:
        name = f"{row['by']}, {row['method']}{' *' if row['labels'] else ''}"
        shares = f"{row['theoretical_speedup']:>11.2f}{row['smaller']:>10.2f} "
        accuracies = "".join(
            f"{row[key]:>8.4f}" if key in row else f"{'-':>8}" for key in ACCURACIES
        )
        times = "".join(f"{_times(row['latency'][batch]):>34}" for batch in batches)
        print(f"{name:44}{shares}{accuracies}{times}")
    print("accuracy: straight after the cut, BatchNorm recalibrated, fine-tuned")
    print("ms: median (quartiles); times faster than the whole network there")
    print("* cut with the labels of the calibration images")


def _times(latency: dict[str, float]) -> str:
    low, middle, high = (
        1e3 * latency[key] for key in ("lower_quartile", "median", "upper_quartile")
    )
    return f"{middle:.1f} ({low:.1f} - {high:.1f}), {latency['speedup']:.2f}"


def save(folder: Path, about: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """Writes networks.csv, networks.png and summary.json."""
    flat = [_flat(row) for row in rows]
    columns = list(dict.fromkeys(key for row in flat for key in row))
    write_csv(folder / "networks.csv", columns, flat)
    text = json.dumps({"about": about, "rows": list(rows)}, indent=2) + "\n"
    write_text(folder / "summary.json", text)
    title = (
        f"{about['model']}, {about['speedup']:g} times fewer multiply-adds; "
        f"{about['images']} test images; {about['device']}"
    )
    style.save(figure.stages(rows, title), folder / "networks.png")


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    flat = {k: v for k, v in row.items() if not isinstance(v, dict)}
    for batch, times in row["latency"].items():
        flat |= {f"latency_{batch}_{key}": value for key, value in times.items()}
    return flat
