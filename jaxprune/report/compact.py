"""Figures of compact networks, from the rows of a saved table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NotRequired

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from typing_extensions import TypedDict

from jaxprune._base import schema
from jaxprune.report.curves import Quartiles
from jaxprune.report.style import add_grid, save


@schema.and_others
class _Row(TypedDict):
    """The fields that are drawn of one K; there are more."""

    k: int
    channels: int
    baseline_accuracy: float
    accuracy: float
    accuracy_recalibrated: NotRequired[float]
    accuracy_finetuned: NotRequired[float]
    parameters: int
    parameters_before: int
    file_bytes: int
    file_bytes_before: int
    multiply_adds: int
    multiply_adds_before: int
    latency: dict[str, Quartiles]


@schema.and_others
class _About(TypedDict):
    model: str
    layer: str
    fill: str


@schema.and_others
class _Table(TypedDict):
    about: _About
    rows: list[_Row]
    curve: NotRequired[tuple[list[int], list[float]] | None]


def draw_table(path: Path, suffix: str = "png") -> list[Path]:
    """Draws the picture of a table, compact-*.json; its path, or none without rows.

    Raises:
      InputError: the table is damaged.
    """
    table = schema.read(path, _Table)
    if not table["rows"]:
        return []
    about = table["about"]
    title = f"{about['model']}, layer {about['layer']}, fill {about['fill']}"
    curve = table.get("curve")
    figure = against_k(table["rows"], f"{title}: compact networks", curve)
    return [save(figure, path.with_suffix(f".{suffix}"))]


def against_k(
    rows: Sequence[dict[str, Any]],
    title: str,
    curve: tuple[Sequence[int], Sequence[float]] | None = None,
) -> Figure:
    """Accuracy, size and latency against K on one sheet.

    Args:
      rows: one for each K, ascending, as `jaxprune compact` writes them. Figures of
        the whole network are the same in every row.
      title: of the sheet.
      curve: K and accuracies of a sweep, to be drawn behind those of the rows.
    """
    figure = Figure(figsize=(10, 9.5), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    ks = [row["k"] for row in rows]
    first = rows[0]
    _whole_network(top, first["baseline_accuracy"])
    if curve is not None:
        top.plot(*curve, color="tab:blue", linewidth=1, label="masked, every K swept")
    for key, label in (
        ("accuracy", "compact"),
        ("accuracy_recalibrated", "recalibrated"),
        ("accuracy_finetuned", "fine-tuned"),
    ):
        if key in first:
            accuracy = [row[key] for row in rows]
            # A line between a few K would hide a cliff that the sweep shows.
            style = "o" if curve is not None and key == "accuracy" else "o-"
            top.plot(ks, accuracy, style, clip_on=False, label=label)
    top.set_ylabel("accuracy")
    top.set_ylim(0, 1.02)
    for key, label in (
        ("parameters", "parameters"),
        ("file_bytes", "bytes on disk"),
        ("multiply_adds", "multiply-adds"),
    ):
        whole = first[f"{key}_before"]
        # Bytes follow parameters so closely that a solid line would hide them.
        style = "--" if key == "file_bytes" else "-"
        share = [row[key] / whole for row in rows]
        middle.plot(ks, share, style, marker="o", clip_on=False, label=label)
    middle.set_ylabel("share of the whole network")
    middle.set_ylim(0, 1.05)
    _latency(bottom, rows, ks)
    bottom.set_xlabel(f"K, channels pruned of {first['channels']}")
    top.set_title(title)
    for axes in (top, middle, bottom):
        add_grid(axes)
        axes.set_xlim(0, first["channels"])
        # Beside the panel: inside, it would hide points.
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
    return figure


def _whole_network(axes: Axes, accuracy: float) -> None:
    label = f"whole network {accuracy:.4f}"
    axes.axhline(accuracy, color="0.45", linestyle="--", linewidth=1, label=label)


def _latency(axes: Axes, rows: Sequence[dict[str, Any]], ks: list[int]) -> None:
    """Time relative to the whole network's, and what multiply-adds promise."""
    whole = rows[0]["multiply_adds_before"]
    theory = [row["multiply_adds"] / whole for row in rows]
    axes.plot(ks, theory, color="0.45", linestyle="--", label="as multiply-adds say")
    for batch in sorted(rows[0]["latency"], key=int):
        pairs = [row["latency"][batch] for row in rows]
        median = [p["after"]["median"] / p["before"]["median"] for p in pairs]
        low, high = (
            [p["after"][side] / p["before"]["median"] for p in pairs]
            for side in ("lower_quartile", "upper_quartile")
        )
        (line,) = axes.plot(ks, median, marker="o", label=f"measured, batch {batch}")
        axes.fill_between(ks, low, high, color=line.get_color(), alpha=0.15)
    axes.axhline(1, color="0.45", linewidth=1, linestyle=":")
    axes.set_ylim(0, None)
    axes.set_ylabel("latency / whole network's\n(band: quartiles)")


def finetuning(lines: Sequence[dict[str, Any]], baseline: float, title: str) -> Figure:
    """Test accuracy against the epoch of fine-tuning; epoch 0 is before it."""
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    epochs = [line["epoch"] for line in lines]
    accuracy = [line["test_accuracy"] for line in lines]
    _whole_network(axes, baseline)
    axes.plot(epochs, accuracy, marker="o", label="compact network")
    axes.annotate(f"{accuracy[0]:.4f}", (epochs[0], accuracy[0]), xytext=(6, -12),
                  textcoords="offset points")  # fmt: skip
    axes.annotate(f"{accuracy[-1]:.4f}", (epochs[-1], accuracy[-1]), xytext=(-38, 8),
                  textcoords="offset points")  # fmt: skip
    axes.set_xlabel("epoch of fine-tuning (0: before it)")
    axes.set_ylabel("test accuracy")
    axes.set_title(title)
    axes.legend()
    add_grid(axes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure
