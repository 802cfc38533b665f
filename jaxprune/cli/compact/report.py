"""The output of `jaxprune compact`: printed lines, tables."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxprune._base.files import replacing, write_text
from jaxprune.cli import cluster
from jaxprune.compaction.proof import Proof
from jaxprune.report import compact
from jaxprune.report.measures import in_words
from jaxprune.tasks.task import Task

# What of a row is more than one figure.
_NESTED = ("latency", "epochs")


def print_row(row: dict[str, Any], proof: Proof, what: str, task: Task) -> None:
    """The figures of one K, for people."""
    k, p = row["k"], row["channels"]
    cluster.say(f"{what}: K = {k} of {p} channels pruned")
    if proof.not_proved is not None:
        cluster.say(f"  NOT PROVED {proof.not_proved}")
        if task.logits:
            cluster.say(f"             {_unlike(proof)}")
    else:
        differ = (
            f"{_unlike(proof)}, largest logit"
            if task.logits
            else (f"{proof.images} images: largest")
        )
        cluster.say(
            f"  proof      {differ} difference {proof.largest_difference:.2e} "
            f"({proof.relative_difference:.2e} relative)"
        )
        cluster.say(
            f"             {proof.equations} equations equal in float64; largest "
            f"deviation {proof.bound_used:.2g} of the rounding bound"
        )
    cluster.say(score_line(row, task))
    for name in ("parameters", "multiply_adds", "file_bytes", "memory_bytes",
                 "working_bytes"):  # fmt: skip
        before, after = row[f"{name}_before"], row[name]
        label = name.replace("_", " ")
        cluster.say(
            f"  {label:<14} {before:>13,} -> {after:>13,}  ({after / before:.1%})"
        )
    speedup = row["theoretical_speedup"]
    cluster.say(f"  speed-up   {speedup:.3f} by multiply-adds; measured:")
    for batch, times in row["latency"].items():
        before, after = times["before"], times["after"]
        cluster.say(
            f"    batch {batch:>4}  {_spread(before)} -> {_spread(after)}  "
            f"{speed(times['speedup'])}"
        )


def _unlike(proof: Proof) -> str:
    return f"{proof.images} images: {proof.different_predictions} predictions differ"


def score_line(row: Mapping[str, Any], task: Task) -> str:
    """The first score of the whole network and of a smaller one, and what is lost."""
    name, score = next(iter(task.scores.items()))
    before, after = row[f"baseline_{name}"], row[name]
    better, worse = ("gained", "lost") if score.higher_is_better else ("less", "more")
    lost = before - after if score.higher_is_better else after - before
    unit = " points" if name == "accuracy" else ""
    change = f"{amount(name, abs(lost))}{unit} {worse if lost >= 0 else better}"
    most = amount(name, row["largest_drop"])
    return (
        f"  {in_words(name):<10} {before:.4f} whole, {after:.4f} compact: "
        f"{change}, at most {most} {worse} with 95 % confidence"
    )


def amount(score: str, value: float) -> str:
    """How much of a score: of accuracy in points.

    >>> amount("accuracy", 0.0123), amount("loss", 0.0123)
    ('1.23', '0.0123')
    """
    return f"{100 * value:.2f}" if score == "accuracy" else f"{value:.4f}"


def speed(times: float) -> str:
    """A time before over that after, in words.

    >>> speed(2.0), speed(0.25)
    ('2.00 times faster', '4.00 times slower')
    """
    return (
        f"{times:.2f} times faster" if times >= 1 else f"{1 / times:.2f} times slower"
    )


def _spread(latency: dict[str, float]) -> str:
    low, middle, high = (
        1e3 * latency[key] for key in ("lower_quartile", "median", "upper_quartile")
    )
    return f"{middle:.1f} ms ({low:.1f} .. {high:.1f})"


def write_table(
    base: Path,
    rows: Sequence[dict[str, Any]],
    about: dict[str, Any],
    curve: tuple[Sequence[int], Sequence[float]] | None,
) -> None:
    """Writes the figures of all K to base.csv and base.json, draws base.png."""
    flat = [
        {
            **{key: value for key, value in row.items() if key not in _NESTED},
            **{
                f"latency_{batch}_{side}": times[side]["median"]
                for batch, times in row["latency"].items()
                for side in ("before", "after")
            },
        }
        for row in rows
    ]
    with (
        replacing(base.with_suffix(".csv")) as path,
        open(path, "w", encoding="utf-8") as file,
    ):
        table = csv.DictWriter(file, flat[0], lineterminator="\n")
        table.writeheader()
        table.writerows(flat)
    facts = {"about": about, "rows": list(rows), "curve": curve}
    write_text(base.with_suffix(".json"), json.dumps(facts, indent=2) + "\n")
    compact.draw_table(base.with_suffix(".json"))
    _print_table(rows, about["measure"])


def _print_table(rows: Sequence[dict[str, Any]], measure: str) -> None:
    """A Markdown table; the last batch size's speed-up is the measured one."""
    batch = list(rows[0]["latency"])[-1]
    names = [
        "K", in_words(measure), "parameters", "MB on disk", "multiply-adds",
        "speed-up in theory", f"measured, batch {batch}",
    ]  # fmt: skip
    differ = "different_predictions"
    counted = differ in rows[0]
    if counted:
        names.insert(2, "predictions that differ")
    print(f"| {' | '.join(names)} |")
    print("|" + "---|" * len(names))
    for row in rows:
        cells = [
            row["k"], f"{row[measure]:.4f}", *([row[differ]] if counted else []),
            f"{row['parameters']:,}", f"{row['file_bytes'] / 1e6:.2f}",
            f"{row['multiply_adds']:,}", f"{row['theoretical_speedup']:.3f}",
            f"{row['latency'][batch]['speedup']:.3f}",
        ]  # fmt: skip
        print(f"| {' | '.join(map(str, cells))} |")
