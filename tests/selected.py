"""Which of a test's cases run in the ordinary run; the others are slow."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def quick(cases: Iterable[Any], chosen: Collection[Any]) -> list[Any]:
    """The cases, all but the chosen ones marked slow."""
    cases = list(cases)
    assert set(chosen) <= set(cases)
    return [
        case
        if case in chosen
        else pytest.param(
            *(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow
        )
        for case in cases
    ]
