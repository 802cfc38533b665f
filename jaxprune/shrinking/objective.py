r"""The least-squares fit of a layer's kernel to its target.

With y = z W + b a layer's output, f y + r what becomes of it (see
`jaxprune.shrinking.targets`) and t what that is in the whole network, W and b are
to bring f y + r near to t. Where a ReLU follows, a negative t asks only for something
that is not positive: the loss is (f y + r - t)^2 for t > 0 and max(f y + r, 0)^2
elsewhere, convex, and never less than the squared error behind the ReLU. It is
minimised by least squares again and again, with t replaced by min(f y + r, 0) where it
is negative; no step makes it larger. Asymmetric 3D reconstruction (Zhang, Zou, He and
Sun 2016) alternates so too, between the activations and the kernel.

Axes: n rows, k unknowns, U outputs.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from jaxprune.shrinking.least_squares import Ridge

# Least squares after the first where a ReLU follows.
_AGAIN = 5

Fitted = tuple[Float[np.ndarray, "k U"], Float[np.ndarray, " U"]]


@dataclass(frozen=True)
class Goal:
    """The objective of a layer's fit: the value that its output leads to.

    Attributes:
      target: that value in the whole network.
      rest: its value in the cut network without the layer.
      factor: of the layer's output in it.
      rectified: whether a ReLU follows.
    """

    target: Float[np.ndarray, "n U"]
    rest: Float[np.ndarray, "n U"]
    factor: Float[np.ndarray, " U"]
    rectified: bool = False

    def outputs(self, wanted: Float[np.ndarray, "n U"]) -> Float[np.ndarray, "n U"]:
        """The output of the layer for which the value is `wanted`."""
        # What goes nowhere may be anything.
        factor = np.where(self.factor == 0, np.inf, self.factor)
        return (wanted - self.rest) / factor


def fit(
    z: Float[np.ndarray, "n k"],
    goal: Goal,
    ridge: float,
    towards: Float[np.ndarray, "k U"],
    parts: Int[np.ndarray, " n"] | None = None,
) -> Fitted:
    """The kernel and bias for a goal.

    Args:
      z: patches under the kernel.
      goal: with as many rows.
      ridge: in units of the mean eigenvalue.
      towards: the kernel that the ridge draws to.
      parts: of the images, that each row comes from: another ridge may predict those
        better that are left out.
    """
    mean = z.mean(0)
    inputs = z - mean
    without = inputs @ towards
    solver = Ridge(inputs, ridge, parts)

    def solve(y: Float[np.ndarray, "n U"]) -> Fitted:
        level = y.mean(0)
        return towards + solver.solve(y - level - without), level

    wanted = goal.outputs(goal.target)
    solver.choose(wanted - wanted.mean(0) - without)
    kernel, level = solve(wanted)
    for _ in range(_AGAIN if goal.rectified else 0):
        now = goal.factor * (inputs @ kernel + level) + goal.rest
        wanted = np.where(goal.target > 0, goal.target, np.minimum(now, 0))
        kernel, level = solve(goal.outputs(wanted))
    return kernel, level - mean @ kernel
