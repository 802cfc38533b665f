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
from jaxprune.report.measures import ACCURACY, check_measure, in_words
from jaxprune.report.style import add_grid, save


@schema.and_others
class _Row(TypedDict):
    """The fields that are drawn of one K; there are more."""

    k: int
    channels: int
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
    measure: NotRequired[str]


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
    measure = check_measure(path, about.get("measure", ACCURACY), table["rows"])
    title += ": compact networks"
    figure = against_k(table["rows"], title, table.get("curve"), measure)
    return [save(figure, path.with_suffix(f".{suffix}"))]


def against_k(
    rows: Sequence[dict[str, Any]],
    title: str,
    curve: tuple[Sequence[int], Sequence[float]] | None = None,
    measure: str = ACCURACY,
) -> Figure:
    """A score, size and latency against K on one sheet.

    Args:
      rows: one for each K, ascending, as `jaxprune compact` writes them. Figures of
        the whole network are the same in every row.
      title: of the sheet.
      curve: K and scores of a sweep, to be drawn behind those of the rows.
      measure: the score.
    """
    figure = Figure(figsize=(10, 9.5), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    ks = [row["k"] for row in rows]
    first = rows[0]
    _whole_network(top, first[f"baseline_{measure}"])
    if curve is not None:
        top.plot(*curve, color="tab:blue", linewidth=1, label="masked, every K swept")
    for key, label in (
        (measure, "compact"),
        (f"{measure}_recalibrated", "recalibrated"),
        (f"{measure}_finetuned", "fine-tuned"),
    ):
        if key in first:
            values = [row[key] for row in rows]
            # A line between a few K would hide a cliff that the sweep shows.
            style = "o" if curve is not None and key == measure else "o-"
            top.plot(ks, values, style, clip_on=False, label=label)
    top.set_ylabel(in_words(measure))
    if measure == ACCURACY:
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


def _whole_network(axes: Axes, value: float) -> None:
    label = f"whole network {value:.4f}"
    axes.axhline(value, color="0.45", linestyle="--", linewidth=1, label=label)


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


def finetuning(
    lines: Sequence[dict[str, Any]],
    baseline: float,
    title: str,
    measure: str = ACCURACY,
) -> Figure:
    """A score on the test images by epoch of fine-tuning; epoch 0 is before it."""
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    epochs = [line["epoch"] for line in lines]
    values = [line[f"test_{measure}"] for line in lines]
    _whole_network(axes, baseline)
    axes.plot(epochs, values, marker="o", label="compact network")
    axes.annotate(f"{values[0]:.4f}", (epochs[0], values[0]), xytext=(6, -12),
                  textcoords="offset points")  # fmt: skip
    axes.annotate(f"{values[-1]:.4f}", (epochs[-1], values[-1]), xytext=(-38, 8),
                  textcoords="offset points")  # fmt: skip
    axes.set_xlabel("epoch of fine-tuning (0: before it)")
    axes.set_ylabel(f"test {in_words(measure)}")
    axes.set_title(title)
    axes.legend()
    add_grid(axes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure
