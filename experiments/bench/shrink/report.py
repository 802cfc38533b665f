"""What `experiments.bench --what=shrink` prints and writes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.bench.report import write_csv
from jaxprune.files import write_text
from jaxprune.report import contest, curves

ACCURACIES = ("accuracy", "accuracy_recalibrated", "accuracy_finetuned")


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Prints the table: the whole networks and those that were cut."""
    batches = list(rows[0]["latency"])
    print(f"\n{'':39}{'fewer times':^15}{'accuracy':^24}" + "".join(
        f"{f'batch {batch}, ms (quartiles)':>30}" for batch in batches
    ))  # fmt: skip
    print(f"{'':39}{'m.-adds':>8}{'param.':>7}{'cut':>8}{'recal.':>8}{'tuned':>8}")
    for row in rows:
        name = f"{row['by']}, {row['method']}{' *' if row['labels'] else ''}"
        shares = f"{row['theoretical_speedup']:>8.2f}{row['smaller']:>7.2f}"
        accuracies = "".join(
            f"{row[key]:>8.4f}" if key in row else f"{'-':>8}" for key in ACCURACIES
        )
        print(f"{name:39}{shares}{accuracies}" + "".join(
            f"{_times(row['latency'][batch]):>30}" for batch in batches
        ))  # fmt: skip
    print("* cut with the labels of the calibration images")


def _times(latency: dict[str, float]) -> str:
    low, middle, high = (
        1e3 * latency[key] for key in ("lower_quartile", "median", "upper_quartile")
    )
    return f"{middle:.2f} ({low:.2f} - {high:.2f}), / {latency['speedup']:.2f}"


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
    curves.save(contest.stages(rows, title), folder / "networks.png")
    print(f"files: {folder}/ (networks.csv, networks.png, summary.json)")


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    flat = {k: v for k, v in row.items() if not isinstance(v, dict)}
    for batch, times in row["latency"].items():
        flat |= {f"latency_{batch}_{key}": value for key, value in times.items()}
    return flat
