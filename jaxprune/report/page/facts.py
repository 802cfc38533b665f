"""Facts that a sweep's trust rests on, in words; rows of the page's table."""

from collections.abc import Mapping
from typing import Any

from jaxprune.results.load import AnyResult
from jaxprune.results.result import SweepResult

# Label and key of what most results say.
_ROWS = (
    ("network", "model"),
    ("task", "task"),
    ("layer", "layer"),
    ("feature map taken at", "tap"),
    ("ranked by", "criterion"),
    ("a pruned channel becomes", "fill"),
    ("dataset", "dataset"),
    ("channels ranked on", "rank_split"),
    ("K chosen on", "select_split"),
    ("reported on", "eval_split"),
    ("linear fill fitted on", "calibration_split"),
    ("computation type", "dtype"),
    ("seed", "seed"),
    ("device", "device"),
    ("commit", "commit"),
    ("SHA-256 of the weights", "weights"),
    ("SHA-256 of the data", "data"),
)


def rows(result: AnyResult) -> list[tuple[str, str]]:
    """Labels and values, the latter as text from outside."""
    about = result.about
    found = [
        (label, str(about[key])) for label, key in _ROWS if about.get(key) is not None
    ]
    if trained := about.get("config", {}).get("train_split"):
        found.append(("trained on", str(trained)))
    if isinstance(result, SweepResult):
        classes = len(result.class_names)
        found.append(("images, classes", f"{result.images:,}, {classes:,}"))
    else:
        found.append(("images", f"{result.images:,}"))
    sizes = f"{len(result.order):,}, {len(result.ks):,}"
    found.append(("channels, values of K", sizes))
    if {"pairs", "pairs_evaluated"} <= about.keys():
        share = about["pairs_evaluated"] / max(1, about["pairs"])
        found.append(
            (
                "(image, K) pairs evaluated",
                f"{about['pairs_evaluated']:,} ({share:.1%})",
            )
        )
    for label, key in (("seconds", "seconds"), ("versions", "versions")):
        if isinstance(about.get(key), Mapping):
            found.append((label, _listed(about[key])))
    return found


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
