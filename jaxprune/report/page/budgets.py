"""The ladder of budgets of `jaxprune shrink` on the page: its slider's data.

Axes: B budgets and, first, the whole network; N images.
"""

from pathlib import Path
from typing import Any, NotRequired

import numpy as np
from typing_extensions import TypedDict

from jaxprune._base import schema
from jaxprune.report.measures import ACCURACY, check_measure, in_words
from jaxprune.report.page.pictures import Pictures
from jaxprune.results import budgets
from jaxprune.results.budgets import WHOLE, Images
from jaxprune.results.thumbnails import SHOWN, first_flip


@schema.and_others
class _Times(TypedDict):
    speedup: float


@schema.and_others
class _Proof(TypedDict):
    different_predictions: int


@schema.and_others
class _Rung(TypedDict):
    """The fields of a budget that are shown; there are more."""

    budget: str
    value: float
    widths: dict[str, int]
    largest_drop: float
    agreement: NotRequired[float]
    least_agreement: NotRequired[float]
    multiply_adds: int
    multiply_adds_before: int
    parameters: int
    parameters_before: int
    latency: dict[str, _Times]
    proof: _Proof


@schema.and_others
class _About(TypedDict):
    model: str


@schema.and_others
class _Summary(TypedDict):
    about: _About
    measure: NotRequired[str]
    higher_is_better: NotRequired[bool]
    widths: NotRequired[dict[str, int]]
    rungs: list[_Rung]


class Budgets:
    """What the page shows of a ladder.

    Attributes:
      model: the network's name.
      measure: the name of its score, for people.
      rows: for the table, the largest network first; of text and numbers.
      data: what the page's script reads; JSON-able.
      by_class: whether images are lost and won, or get worse and better.
      pool: which of the pictures are those of the images; -1 without any.
    """

    def __init__(self, summary: Any, images: Images | None, pictures: Pictures):
        """From summary.json, and what becomes of the images."""
        self.model = summary["about"]["model"]
        measure = summary.get("measure", ACCURACY)
        self.measure = in_words(measure)
        rungs = sorted(summary["rungs"], key=lambda rung: -rung["multiply_adds"])
        self.rows = [_row(rung, measure) for rung in rungs]
        names = [f"{rung['budget']}={rung['value']:g}" for rung in rungs]
        if images is None or not {WHOLE, *names} <= images.outcomes.keys():
            images = None
        self.by_class = images is not None and images.labels is not None
        self.pool, thumbnails = -1, dict[int, int]()
        if images is not None and images.thumbnails is not None:
            self.pool = pictures.pool(images.thumbnails.pixels)
            thumbnails = pictures.places(*images.thumbnails)
        self.data = {
            "rows": [_whole(rungs[0], measure), *self.rows],
            "widths": _widths(summary.get("widths", {}), rungs),
            "moved": _moved(images, [WHOLE, *names]) if images is not None else {},
            "thumbnails": thumbnails,
            "pool": self.pool,
            "worse": "lost" if summary.get("higher_is_better", True) else "more",
        }


def read(workdir: Path, pictures: Pictures) -> Budgets | None:
    """The ladder of a run directory; None where there is none.

    Raises:
      InputError: a file of it is damaged.
    """
    path = workdir / "shrink" / "summary.json"
    if not path.is_file():
        return None
    summary = schema.read(path, _Summary)
    if not summary["rungs"]:
        return None
    check_measure(path, summary.get("measure", ACCURACY), summary["rungs"])
    return Budgets(summary, budgets.read(path.parent), pictures)


def _row(rung: Any, measure: str) -> dict[str, Any]:
    """A budget's figures."""
    return {
        "name": f"{rung['budget']} {rung['value']:g}",
        "score": rung[measure],
        "baseline": rung[f"baseline_{measure}"],
        "largest_drop": rung["largest_drop"],
        "agreement": rung.get("agreement"),
        "least_agreement": rung.get("least_agreement"),
        "different": rung["proof"]["different_predictions"],
        **{
            name: [rung[name], rung[f"{name}_before"]]
            for name in ("multiply_adds", "parameters")
        },
        "speedups": {b: times["speedup"] for b, times in rung["latency"].items()},
    }


def _whole(rung: Any, measure: str) -> dict[str, Any]:
    """The same of the whole network."""
    row = _row(rung, measure)
    same = 1.0 if row["agreement"] is not None else None
    return {
        **row,
        "name": "whole network",
        "score": row["baseline"],
        "largest_drop": 0.0,
        "agreement": same,
        "least_agreement": same,
        "multiply_adds": [rung["multiply_adds_before"]] * 2,
        "parameters": [rung["parameters_before"]] * 2,
        "speedups": dict.fromkeys(row["speedups"], 1.0),
    }


def _widths(before: dict[str, int], rungs: list[Any]) -> list[dict[str, Any]]:
    """Each group's width in every row."""
    return [
        {
            "name": name,
            "of_row": [whole, *(r["widths"].get(name, whole) for r in rungs)],
        }
        for name, whole in before.items()
    ]


def _moved(images: Images, names: list[str]) -> dict[str, Any]:
    """By kind, for every row: how many images, and those that are shown.

    With each image stand the class, or the loss, in the whole network and now.
    """
    losses = np.stack([images.outcomes[name].losses for name in names])
    if images.labels is None:
        change = losses - losses[0]
        return {
            kind: [
                _listed(
                    np.argsort(-sign * row, kind="stable")[: np.sum(sign * row > 0)],
                    [f"{x:.3g}" for x in losses[0]],
                    [f"{x:.3g}" for x in now],
                )
                for row, now in zip(change, losses, strict=True)
            ]
            for kind, sign in (("lost", 1), ("won", -1))
        }
    predicted = [images.outcomes[name].predictions for name in names]
    classes = np.stack([each for each in predicted if each is not None])
    right = classes == images.labels
    by_flip = np.argsort(first_flip(right), kind="stable")
    named = images.class_names or [*map(str, range(int(classes.max()) + 1))]
    words = [[named[c] for c in row] for row in classes]
    kinds = (("lost", right[0] & ~right), ("won", ~right[0] & right))
    return {
        kind: [
            _listed(by_flip[row[by_flip]], words[0], now)
            for row, now in zip(flipped, words, strict=True)
        ]
        for kind, flipped in kinds
    }


def _listed(found: np.ndarray, before: list[str], now: list[str]) -> dict[str, Any]:
    shown = [[i, before[i], now[i]] for i in found[:SHOWN].tolist()]
    return {"count": len(found), "images": shown}
