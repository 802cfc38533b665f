"""What experiments.bench prints and writes."""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.bench.figure import Bar, bars
from experiments.bench.plan import (
    LABELS,
    OURS,
    Key,
    Measured,
    Spread,
    rate,
    ratios,
)
from jaxprune._base.files import replacing
from jaxprune.report import style

_COLUMNS = (
    "by", "what", "images", "channels", "devices", "seconds", "lowest", "highest",
    "compile_seconds", "measured_share", "peak_memory_mb",
)  # fmt: skip


def show(measured: Mapping[Key, Measured]) -> None:
    """Prints the table and the ratios."""
    print(f"\n{_title(measured)}")
    print(f"{'':44}{'seconds':>10}{'lowest':>10}{'highest':>10}{'compile':>9}{'MB':>8}")
    for m in measured.values():
        note = " *" if m.extrapolated else ""
        print(
            f"{f'{m.by}, {LABELS.get(m.what, m.what)}{note}':44}{m.median:>10.3f}"
            f"{min(m.seconds):>10.3f}{max(m.seconds):>10.3f}"
            f"{m.facts['compile_seconds']:>9.1f}{m.facts['peak_memory_mb']:>8.0f}"
        )
    print("* measured for a few K or images, and extrapolated\n")
    print(f"matrix product: {2 * rate(measured[OURS, 'matmul']) / 1e9:.0f} GFLOP/s")
    sweep = measured[OURS, "sweep"].facts
    share = sweep["pairs_evaluated"] / sweep["pairs"]
    print(f"pairs evaluated: {share:.1%} of {sweep['pairs']}")
    print(f"{'':44}{'medians':>10}{'lowest':>10}{'highest':>10}")
    for name, median, lowest, highest, in_turns in ratios(measured):
        note = "" if in_turns else " +"
        print(f"{name + note:44}{median:>10.2f}{lowest:>10.2f}{highest:>10.2f}")
    print("+ not measured in turns: every run of one is compared with every other's")


def show_scaling(rows: Sequence[Measured]) -> None:
    """Prints how time and memory grow."""
    if rows:
        print("\nimages  channels  devices   seconds  peak MB")
    for m in rows:
        print(
            f"{m.facts['images']:>6}{m.facts['channels']:>10}{m.facts['devices']:>9}"
            f"{m.median:>10.2f}{m.facts['peak_memory_mb']:>9.0f}"
        )
    if rows and jax.default_backend() == "cpu":
        print(f"(the CPU devices are virtual and share {os.cpu_count()} cores)")


def save(
    workdir: Path, measured: Mapping[Key, Measured], scaling: Sequence[Measured]
) -> None:
    """Writes bench.csv, bench_ratios.csv and bench.png."""
    rows = [_row(m) for m in (*measured.values(), *scaling)]
    write_csv(workdir / "bench.csv", _COLUMNS, rows)
    spreads = [spread._asdict() for spread in ratios(measured)]
    write_csv(workdir / "bench_ratios.csv", Spread._fields, spreads)
    figure = bars(
        [bar for m in measured.values() for bar in _bars(m)], _title(measured)
    )
    style.save(figure, workdir / "bench.png")


def _row(m: Measured) -> dict[str, Any]:
    return {
        **m.facts,
        "by": m.by,
        "what": m.what,
        "seconds": m.median,
        "lowest": min(m.seconds),
        "highest": max(m.seconds),
        "measured_share": m.share,
    }


def write_csv(
    target: Path, columns: Sequence[str], rows: Sequence[dict[str, Any]]
) -> None:
    """Writes the columns of the rows; what a row lacks stays empty."""
    with replacing(target) as path, open(path, "w", encoding="utf-8") as file:
        table = csv.DictWriter(
            file, columns, extrasaction="ignore", restval="", lineterminator="\n"
        )
        table.writeheader()
        table.writerows(rows)


def _bars(m: Measured) -> list[Bar]:
    """A measurement's bars; one full pass for each K makes the report's loop, too."""
    if m.what not in LABELS:
        return []
    labels = {f"{m.by}: {LABELS[m.what]}": 1}
    if m.what == "one_pass":
        labels[f"{m.by}: the report's loop, two passes each"] = 2
    return [
        Bar(
            label,
            times * m.median,
            times * min(m.seconds),
            times * max(m.seconds),
            m.extrapolated,
        )
        for label, times in labels.items()
    ]


def _title(measured: Mapping[Key, Measured]) -> str:
    facts = measured[OURS, "sweep"].facts
    return f"{facts['images']} images, {facts['channels']} channels; {facts['device']}"
