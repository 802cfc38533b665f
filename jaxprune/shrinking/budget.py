"""Budgets of a whole network."""

from dataclasses import dataclass

import numpy as np

from jaxprune._base import arguments
from jaxprune._base.errors import InputError
from jaxprune.costs.widths import Number


@dataclass(frozen=True)
class Budget:
    """How far to go: one of three.

    Attributes:
      speedup: multiply-adds of the whole network over those of the smaller one.
      size: parameters of the smaller network over those of the whole one.
      latency: predicted time of the whole network over that of the smaller one.
    """

    speedup: Number | None = None
    size: Number | None = None
    latency: Number | None = None

    def __post_init__(self) -> None:
        given = [name for name, value in vars(self).items() if value is not None]
        if len(given) != 1:
            raise InputError(
                "give one budget of speedup, size and latency, got "
                f"{' and '.join(given) or 'none'}"
            )
        arguments.check_number(self.kind, self.value, 0.0, np.inf)
        if self.kind == "size" and not 0 < self.value <= 1:
            raise InputError(
                f"size is a share of the parameters in (0, 1], got {self.value:g}"
            )
        if self.kind != "size" and not 1 <= self.value < np.inf:
            raise InputError(f"{self.kind} is at least 1, and finite: {self.value:g}")

    @property
    def kind(self) -> str:
        """Which of the three."""
        return next(name for name, value in vars(self).items() if value is not None)

    @property
    def value(self) -> Number:
        """How far."""
        value: Number = getattr(self, self.kind)
        return value
