"""The output of `jaxprune sweep`: printed lines."""

from pathlib import Path

import numpy as np

from jaxprune.ranking.order import pruning_order
from jaxprune.results.base import drop_in_words
from jaxprune.results.comparison import Comparison
from jaxprune.results.load import AnyResult
from jaxprune.results.result import SweepResult


def print_scores(layer: str, scores: np.ndarray) -> None:
    """The lowest and highest channels with their scores, as the report prints them."""
    ranked = pruning_order(scores)

    def listing(channels: np.ndarray) -> str:
        return ", ".join(f"{c}: {scores[c]:.4f}" for c in channels)

    print(f"layer {layer}, {len(ranked)} channels, channel: score")
    print(f"  lowest     {listing(ranked[:5])}")
    print(f"  highest    {listing(ranked[::-1][:5])}")


def print_curve(result: AnyResult, folder: Path) -> None:
    """The figures at K = 0 and at the largest K within the loss allowed."""
    allowed = drop_in_words(result.measure, result.max_drop)
    print(f"fill {result.about['fill']}{_how_fitted(result)}")
    for k, what in (
        (result.ks[0], "with 95 % intervals"),
        (
            result.largest_safe_k(result.max_drop),
            f"largest safe K: 95 % sure that less than {allowed} is lost",
        ),
        (
            result.largest_k_within(result.max_drop),
            f"largest K within {allowed}, as measured",
        ),
    ):
        at = result.at(k)
        print(f"  K = {k:<6} {'  '.join(_figures(result, at))}  {what}")
        if k != result.ks[0]:
            print(f"             {_change(result, at)}")
    for line in result.remarks:
        print(f"  note       {line}")
    print(f"  files      {folder}/")


def _figures(result: AnyResult, at: dict[str, float]) -> list[str]:
    """Accuracy and balanced accuracy; or a task's scores."""
    if isinstance(result, SweepResult):
        return [_with_ends(at, "accuracy"), _with_ends(at, "balanced_accuracy")]
    return [_with_ends(at, name) for name in result.score_names]


def _change(result: AnyResult, at: dict[str, float]) -> str:
    if isinstance(result, SweepResult):
        return f"{_with_ends(at, 'change')}  McNemar's p = {at['mcnemar_p']:.2g}"
    return _with_ends(at, f"{result.measure}_change")


def _with_ends(at: dict[str, float], name: str) -> str:
    value, low, high = at[name], at[f"{name}_low"], at[f"{name}_high"]
    return f"{name.replace('_', ' ')} {value:.4f} ({low:.4f} .. {high:.4f})"


def _how_fitted(result: AnyResult) -> str:
    made = result.about.get("fill_facts")
    if not made:
        return ""
    images = f"{made['images']} images of {made['split']}"
    return f", fitted on {images}, ridge {made['ridge']:g}"


def print_comparison(result: Comparison) -> None:
    """A line for each criterion."""
    print(f"{'criterion':<18}{'mean over K':>12}{'safe K':>8}{'Spearman':>10}", end="")
    print(f"{'beats random':>14}")
    rows = zip(
        result.names, result.mean_accuracy, result.safe_k, result.with_oracle,
        result.beaten, strict=True,
    )  # fmt: skip
    for name, mean, safe, rho, share in rows:
        print(f"{name:<18}{mean:>12.4f}{safe:>8}{_number(rho, '.2f'):>10}", end="")
        print(f"{_number(share, '.0%'):>14}")
    allowed = drop_in_words(result.measure, result.about["max_drop"])
    print(f"safe K: 95 % sure that less than {allowed} is lost")
    for line in result.about["overlaps"]:
        print(f"note: {line}")
    for name, why in result.about["left_out"].items():
        print(f"left out: {name}: {why}")
    print("pictures of each criterion's sweep: `jaxprune plot`")


def _number(x: float, form: str) -> str:
    return "-" if np.isnan(x) else format(x, form)
