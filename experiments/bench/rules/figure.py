"""The picture of a comparison of rules."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from jaxprune.report.measures import in_words
from jaxprune.report.style import add_grid, legend_below


def rules(rows: Sequence[dict[str, Any]], title: str, measure: str) -> Figure:
    """A score against multiply-adds, a panel for each way to choose widths.

    Args:
      rows: of `experiments.bench.rules.compare`.
      title: of the sheet.
      measure: the score.
    """
    kinds = list(dict.fromkeys(row["widths"] for row in rows))
    names = list(dict.fromkeys(row["rule"] for row in rows))
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    panels = figure.subplots(1, len(kinds), sharey=True)
    for axes, kind in zip(panels, kinds, strict=True):
        for i, name in enumerate(names):
            own = [r for r in rows if (r["widths"], r["rule"]) == (kind, name)]
            axes.plot(
                [1, *(1 / row["theoretical_speedup"] for row in own)],
                [own[0][f"baseline_{measure}"], *(row[measure] for row in own)],
                marker="osD^v<>"[i % 7], markersize=5, color=f"C{i}", label=name,
                linewidth=2 if i == 0 else 1.2,
            )  # fmt: skip
        axes.set_title(kind, fontsize=10)
        axes.set_xlim(1.03, 0.95 / max(row["theoretical_speedup"] for row in rows))
        axes.set_xlabel("multiply-adds, share of the whole network's")
        add_grid(axes)
    panels[0].set_ylabel(in_words(measure))
    figure.suptitle(title)
    legend_below(figure, panels[:1], columns=6)
    return figure
