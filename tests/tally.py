"""What a campaign counts: trials by how they ended."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable

# The whole campaign; else a part of it, drawn with the same seeds.
FULL = os.environ.get("JAXPRUNE_CAMPAIGN") == "full"
GOOD = ("equal", "refused", "rebuilt", "believed")
BAD = ("wrong", "traceback", "lost")


def trials(full: int) -> int:
    """How many of the full campaign's trials are made: all, or a tenth."""
    return full if FULL else -(-full // 10)


class Tally:
    """Counts of one kind of trial.

    Attributes:
      kind: what is tried.
      failures: what is to be looked at, by hand.
    """

    def __init__(self, kind: str, record_property: Callable[[str, object], None]):
        self.kind, self._record = kind, record_property
        self._counts: Counter[str] = Counter()
        self.failures: list[str] = []

    def add(self, outcome: str, what: str = "") -> None:
        """Counts a trial; `what` is remembered where it ended badly."""
        assert outcome in GOOD + BAD, outcome
        self._counts[outcome] += 1
        if outcome in BAD:
            self.failures.append(f"{outcome}: {what}")

    def close(self, least: int = 1) -> None:
        """Records the counts for the table; fails where a trial ended badly."""
        self._record("campaign", json.dumps([self.kind, dict(self._counts)]))
        assert not self.failures, "\n".join(self.failures)
        assert self._counts.total() >= least, f"only {self._counts} of {least}"


def table(recorded: Iterable[str]) -> str:
    """What the tests have recorded, by kind; Markdown."""
    counts: dict[str, Counter[str]] = {}
    for kind, found in map(json.loads, recorded):
        counts.setdefault(kind, Counter()).update(found)
    names = {
        "equal": "equal", "refused": "refused in one line", "rebuilt": "rebuilt",
        "believed": "believed, as its sums agree", "wrong": "silent wrong",
        "traceback": "traceback", "lost": "lost",
    }  # fmt: skip
    lines = [f"| trials of | all | {' | '.join(names.values())} |", "|---" * 9 + "|"]
    for kind, found in sorted(counts.items()):
        row = (found.total(), *(found[name] for name in names))
        lines.append(f"| {kind} | {' | '.join(map(str, row))} |")
    return "\n".join(lines)
