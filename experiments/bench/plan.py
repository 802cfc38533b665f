"""Which measurements take turns, and which ratios of them matter."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np

OURS, PYTORCH = "jaxprune", "PyTorch"
Key = tuple[str, str]  # by whom, and what

# The measurements of one race take turns; a race's processes end before the next's
# begin. The whole sweep takes turns with evaluations, which it is compared with.
RACES: tuple[tuple[Key, ...], ...] = (
    ((OURS, "matmul"),),
    ((OURS, "training"), (PYTORCH, "training")),
    ((OURS, "one_pass"), (PYTORCH, "one_pass")),
    ((OURS, "cached_trunk"), (PYTORCH, "cached_trunk")),
    ((OURS, "some"), (OURS, "linear"), (OURS, "every_pair")),
    ((OURS, "inner"), (OURS, "inner_every_pair")),
    ((OURS, "sweep"), (OURS, "evaluation"), (PYTORCH, "evaluation")),
)

# What the picture shows, and how it is called there.
LABELS = {
    "evaluation": "one plain evaluation",
    "sweep": "sweep",
    "some": "sweep, some images",
    "every_pair": "sweep, every pair",
    "linear": "sweep, fill linear",
    "inner": "inner layer's sweep",
    "inner_every_pair": "inner layer's sweep, every pair",
    "cached_trunk": "loop over K, trunk kept",
    "one_pass": "loop over K, one full pass each",
}


class Ratio(NamedTuple):
    """`times` the seconds of one measurement over those of another."""

    name: str
    over: Key
    under: Key
    times: float = 1.0


_SWEEP = (OURS, "sweep")
_FLOOR = (OURS, "floor")


def _of(by: str) -> Iterator[Ratio]:
    """The sweep beside what can be done without it."""
    yield Ratio(f"sweep / one {by} evaluation", _SWEEP, (by, "evaluation"))
    one_pass = (by, "one_pass")
    yield Ratio(f"{by}: the report's loop / sweep", one_pass, _SWEEP, 2)
    yield Ratio(f"{by}: one pass for each K / sweep", one_pass, _SWEEP)
    trunk = (by, "cached_trunk")
    yield Ratio(f"{by}: loop with the trunk kept / sweep", trunk, _SWEEP)


RATIOS = (
    Ratio("sweep / floor", _SWEEP, _FLOOR),
    *_of(OURS),
    *_of(PYTORCH),
    Ratio("every pair / sweep", (OURS, "every_pair"), (OURS, "some")),
    Ratio("fill linear / fill zero", (OURS, "linear"), (OURS, "some")),
    Ratio(
        "inner layer: every pair / sweep", (OURS, "inner_every_pair"), (OURS, "inner")
    ),
    *(
        Ratio(f"{what}, images/s over PyTorch's", (PYTORCH, what), (OURS, what))
        for what in ("evaluation", "training")
    ),
)


@dataclass(frozen=True)
class Measured:
    """A measurement.

    Attributes:
      by: whose.
      what: is measured.
      seconds: of each turn, for the whole of the work.
      share: part of the work that was measured.
      extrapolated: whether it was measured in part.
      facts: images, channels, device, memory and the like.
    """

    by: str
    what: str
    seconds: tuple[float, ...]
    share: float
    extrapolated: bool
    facts: Mapping[str, Any]

    @property
    def median(self) -> float:
        """Median seconds."""
        return float(np.median(self.seconds))


class Spread(NamedTuple):
    """A ratio's value.

    Attributes:
      name: of the ratio.
      median: the ratio of the medians.
      lowest: of the ratios of single runs.
      highest: of the same.
      in_turns: whether the two took turns: then runs of the same round are compared,
        otherwise each run of one with each of the other.
    """

    name: str
    median: float
    lowest: float
    highest: float
    in_turns: bool


def ratios(measured: Mapping[Key, Measured]) -> list[Spread]:
    """The ratios whose both sides were measured."""
    seconds = {key: m.seconds for key, m in measured.items()}
    if _SWEEP in measured and (OURS, "matmul") in measured:
        seconds[_FLOOR] = _floor(measured[_SWEEP], measured[OURS, "matmul"])
    found = []
    for name, over, under, times in RATIOS:
        if over not in seconds or under not in seconds:
            continue
        in_turns = any(over in keys and under in keys for keys in RACES)
        pairs = (
            zip(seconds[over], seconds[under], strict=True)
            if in_turns
            else product(seconds[over], seconds[under])
        )
        single = [times * a / b for a, b in pairs]
        middle = times * np.median(seconds[over]) / np.median(seconds[under])
        found.append(Spread(name, float(middle), min(single), max(single), in_turns))
    return found


def rate(matmul: Measured) -> float:
    """Multiply-adds of a matrix product per second, by the median."""
    return matmul.facts["multiply_adds"] / matmul.median


def _floor(sweep: Measured, matmul: Measured) -> tuple[float, ...]:
    """Seconds of the trunk once and the head once per changed pair, at that rate."""
    trunk, head = sweep.facts["multiply_adds"]
    work = sweep.facts["images"] * trunk + sweep.facts["pairs_evaluated"] * head
    return tuple(work * s / matmul.facts["multiply_adds"] for s in matmul.seconds)
