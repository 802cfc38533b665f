"""The output of `jaxprune sweep`: printed lines."""

from pathlib import Path

import numpy as np

from jaxprune.ranking.order import pruning_order
from jaxprune.results.comparison import Comparison
from jaxprune.results.confidence import points
from jaxprune.results.result import SweepResult


def print_scores(layer: str, scores: np.ndarray) -> None:
    """The lowest and highest channels with their scores, as the report prints them."""
    ranked = pruning_order(scores)

    def listing(channels: np.ndarray) -> str:
        return ", ".join(f"{c}: {scores[c]:.4f}" for c in channels)

    print(f"layer {layer}, {len(ranked)} channels, channel: score")
    print(f"  lowest     {listing(ranked[:5])}")
    print(f"  highest    {listing(ranked[::-1][:5])}")


def print_curve(result: SweepResult, folder: Path) -> None:
    """The figures at K = 0 and at the largest K within the loss allowed."""
    allowed = points(result.max_drop)
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
        print(f"  K = {k:<6} {_with_ends(at, 'accuracy')}", end="")
        print(f"  {_with_ends(at, 'balanced_accuracy')}  {what}")
        if k != result.ks[0]:
            print(f"             {_with_ends(at, 'change')}", end="")
            print(f"  McNemar's p = {at['mcnemar_p']:.2g}")
    for line in result.remarks:
        print(f"  note       {line}")
    print(f"  files      {folder}/")


def _with_ends(at: dict[str, float], name: str) -> str:
    value, low, high = at[name], at[f"{name}_low"], at[f"{name}_high"]
    return f"{name.replace('_', ' ')} {value:.4f} ({low:.4f} .. {high:.4f})"


def _how_fitted(result: SweepResult) -> str:
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
    allowed = points(result.about["max_drop"])
    print(f"safe K: 95 % sure that less than {allowed} is lost")
    for line in result.about["overlaps"]:
        print(f"note: {line}")
    for name, why in result.about["left_out"].items():
        print(f"left out: {name}: {why}")
    print("pictures of each criterion's sweep: `jaxprune plot`")


def _number(x: float, form: str) -> str:
    return "-" if np.isnan(x) else format(x, form)
