"""The page's charts: Vega-Lite specifications, and the library that draws them.

Colours are the style sheet's, so that charts follow the page into the dark. Each chart
has parameters that the page's script sets: `k`, the sweep that is looked at (`main`)
and those that are not shown (`hidden`).
"""

import functools
from typing import Any

import vl_convert

# Of Vega-Embed: expressions are interpreted, as the page's policy allows no code to be
# made of text; and no menu, whose links would lead to other sites.
OPTIONS = {"ast": True, "actions": False, "renderer": "svg"}

# Colours of the style sheet, --c0 .. --c7.
_COLOURS = 8

# Of which logarithms are drawn.
_LOSSES = ("cross_entropy", "loss")

_SHOWN = "indexof(hidden, datum.name) < 0"


@functools.cache
def library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that needs no network."""
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return f"(() => {{{script}\n}})();"  # keeps its names to itself


def colour(i: int) -> str:
    """The i-th curve's."""
    return f"var(--c{i % _COLOURS})"


def _dash(i: int) -> list[int]:
    """Lengths of the i-th curve's dashes and gaps.

    A mean and a dropped channel often do the same: of two curves that lie upon one
    another, the upper one lets the other be seen.
    """
    if i >= _COLOURS:
        return [2, 2]
    return [1, 0] if i == 0 or i % 2 else [6, 4]


def curves(
    column: str, title: str, names: list[str], channels: int, share: bool
) -> dict[str, Any]:
    """A column of sweep.csv against K, of every sweep; its interval, of one.

    Args:
      column: its name; with `_low` and `_high` those of its interval's ends.
      title: of the axis.
      names: of the sweeps.
      channels: the largest K on the axis.
      share: whether all but a loss lies in [0, 1].
    """
    dashes = [_dash(i) for i in range(len(names))]
    scale = {"domain": names, "range": [colour(i) for i in range(len(names))]}
    y = {
        "field": column, "type": "quantitative", "title": title,
        "scale": _scale(column, share),
        "axis": {"tickCount": 5},
    }  # fmt: skip
    lines = {
        "transform": [{"filter": _SHOWN}],
        "mark": {"type": "line", "strokeWidth": 2, "clip": True},
        "encoding": {
            "y": y,
            "strokeDash": {
                "field": "name", "legend": None,
                "scale": {"domain": names, "range": dashes},
            },
        },
    }  # fmt: skip
    safe = {
        "transform": [{"filter": f"datum.k == datum.largest_safe_k && {_SHOWN}"}],
        "mark": {
            "type": "point", "filled": True, "opacity": 1, "stroke": "var(--card)",
            "strokeWidth": 1,
        },
        "encoding": {
            "y": y,
            "size": {
                "field": "dot", "type": "quantitative", "scale": None, "legend": None,
            },
        },
    }  # fmt: skip
    return {
        **_chart(f"{title} against the number of pruned channels"),
        "transform": _rows(column),
        "encoding": {
            "x": _k(channels),
            "color": {"field": "name", "scale": scale, "legend": None},
        },
        "layer": [_band(column, y), lines, safe, _cursor()],
    }


def _scale(column: str, share: bool) -> dict[str, Any]:
    if column in _LOSSES:
        return {"type": "log"}
    return {"domain": [0, 1]} if share else {"zero": False}


def dot(i: int, count: int) -> int:
    """Area of the i-th sweep's dot at its largest safe K, of so many sweeps.

    Where several have the same, each dot is within the one before.
    """
    return (8 + 3 * min(count - 1 - i, 5)) ** 2


def _rows(column: str) -> list[dict[str, Any]]:
    """A row for each K of every sweep that has the column."""
    ends = [f"{column}_low", f"{column}_high"]
    rows: list[dict[str, Any]] = [
        {"filter": f"isValid(datum.columns.{column})"},
        # A result may have a loss without its interval.
        *({"calculate": f"datum.columns.{end} || []", "as": end} for end in ends),
        {"flatten": ["ks", f"columns.{column}", *ends], "as": ["k", column, *ends]},
    ]
    return [*rows, {"filter": f"datum.{column} > 0"}] if column in _LOSSES else rows


def _band(column: str, y: dict[str, Any]) -> dict[str, Any]:
    """The interval of the sweep that is looked at.

    All others' have no height: a scale must have something to go by.
    """
    low, high = f"datum.{column}_low", f"datum.{column}_high"
    drawn = f"datum.name == main && {_SHOWN} && isValid({low})"
    lowest = f"max({low}, datum.{column} / 10)" if column in _LOSSES else low
    return {
        "transform": [
            {"calculate": f"{drawn} ? {end} : datum.{column}", "as": name}
            for name, end in (("low", lowest), ("high", high))
        ],
        "mark": {"type": "area", "opacity": 0.25, "aria": False},
        "encoding": {"y": {**y, "field": "low"}, "y2": {"field": "high"}},
    }


def shares(classes: int, channels: int) -> dict[str, Any]:
    """Share of the images that is predicted as each class, against K, stacked."""
    colours = [f"var(--class{i})" for i in range(classes)]
    area = {
        "mark": {"type": "area", "stroke": "var(--card)", "strokeWidth": 1},
        "encoding": {
            "y": {
                "field": "share", "type": "quantitative", "stack": "zero",
                "title": "predicted share, %", "axis": {"tickCount": 5},
                "scale": {"domain": [0, 100]},
            },
            "color": {
                "field": "class", "type": "ordinal", "legend": None,
                "scale": {"domain": list(range(classes)), "range": colours},
            },
            "order": {"field": "class", "sort": "descending"},
        },
    }  # fmt: skip
    return {
        **_chart("Share of images predicted as each class"),
        "encoding": {"x": _k(channels)},
        "layer": [area, _cursor()],
    }


def _k(channels: int) -> dict[str, Any]:
    return {
        "field": "k", "type": "quantitative",
        "title": f"K, channels pruned of {channels}",
        "scale": {"domain": [0, channels], "nice": False},
        "axis": {"tickCount": 8, "grid": False},
    }  # fmt: skip


def _cursor() -> dict[str, Any]:
    """A line at K."""
    return {
        "data": {"values": [{"k": 0}]},
        "mark": {"type": "rule", "color": "var(--text)", "strokeWidth": 1.5},
        "encoding": {"x": {"datum": {"expr": "k"}}, "color": {"value": "var(--text)"}},
    }


def _chart(description: str) -> dict[str, Any]:
    """The configuration that all charts share."""
    version = vl_convert.get_vegalite_versions()[-1].split(".")[0]
    quiet = {"labelColor": "var(--muted)", "titleColor": "var(--muted)"}
    lines = {"domainColor": "var(--line)", "tickColor": "var(--line)"}
    return {
        "$schema": f"https://vega.github.io/schema/vega-lite/v{version}.json",
        "description": f"{description}; the numbers are in the table below",
        "width": "container",
        "height": "container",
        "autosize": {"type": "fit", "contains": "padding"},
        "background": None,
        "params": [
            {"name": "k", "value": 0},
            {"name": "main", "value": ""},
            {"name": "hidden", "value": []},
        ],
        "data": {"name": "rows"},
        "config": {
            "font": "system-ui, sans-serif",
            "view": {"stroke": None},
            "axis": {
                **quiet, **lines, "gridColor": "var(--line)", "labelFontSize": 12,
                "titleFontSize": 12, "titleFontWeight": "normal", "titlePadding": 8,
            },
        },
    }  # fmt: skip
