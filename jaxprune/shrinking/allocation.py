"""How much of which group: greedy descent to a budget.

Starting from the whole network, the group and width with the least loss for what they
save come next, costs being those of the network as cut so far. Losses are taken to add
up over groups. What the last step saves too much is given back where it helps most.
"""

import math
from collections.abc import Callable, Mapping

from jaxprune._base.arguments import check_count
from jaxprune._base.errors import InputError
from jaxprune.costs.widths import Number, Widths
from jaxprune.shrinking.curves import Curve


def allocate(
    curves: Mapping[str, Curve],
    cost: Callable[[Widths], Number],
    budget: Number,
    *,
    multiple_of: int = 1,
) -> dict[str, int]:
    """The width of every group for a cost of at most `budget`.

    Args:
      curves: of the groups that may be cut.
      cost: of the network, by all groups' widths; never more for narrower ones.
      budget: in the unit of `cost`.
      multiple_of: widths are multiples of this, or the group's own.

    Raises:
      InputError: the narrowest network costs more; its cost is named.
    """
    check_count("multiple_of", multiple_of)
    steps = {name: _widths(curve, multiple_of) for name, curve in curves.items()}
    widths = {name: curve.widths[0] for name, curve in curves.items()}
    narrowest = {name: of[-1] for name, of in steps.items()}
    if cost(narrowest) > budget:
        least = cost(narrowest) / cost(widths)
        if least > 1:
            raise InputError(
                f"the narrowest network costs {least:.3g} times the whole one: if that "
                "is time, it was measured on a busy machine: measure it again"
            )
        raise InputError(
            f"the budget is {budget / cost(widths):.3g} of the whole network; the "
            f"least possible is {least:.3g}, {1 / least:.4g} times less"
        )
    while (now := cost(widths)) > budget:
        best = None
        for name, curve in curves.items():
            for width in steps[name]:
                if width >= widths[name]:
                    continue
                saved = now - cost({**widths, name: width})
                if saved > 0:
                    lost = curve.loss(width) - curve.loss(widths[name])
                    price = lost / saved, -saved, name, width
                    best = price if best is None else min(best, price)
        if best is None:  # where no single group's step saves anything
            widths = dict(narrowest)
            break
        _, _, name, width = best
        widths[name] = width
    return _give_back(curves, cost, budget, widths, multiple_of)


def _give_back(
    curves: Mapping[str, Curve],
    cost: Callable[[Widths], Number],
    budget: Number,
    widths: dict[str, int],
    multiple_of: int,
) -> dict[str, int]:
    """Widens one group after another, by the most loss for its cost, in the budget."""
    while True:
        now, best = cost(widths), None
        for name, curve in curves.items():
            wider = (widths[name] // multiple_of + 1) * multiple_of
            wider = min(wider, curve.widths[0])
            added = cost({**widths, name: wider}) - now
            if wider == widths[name] or now + added > budget:
                continue
            gained = curve.loss(widths[name]) - curve.loss(wider)
            value = gained / added if added > 0 else math.inf
            best = max(best or (value, name, wider), (value, name, wider))
        if best is None:
            return widths
        _, name, wider = best
        widths = {**widths, name: wider}


def _widths(curve: Curve, multiple_of: int) -> list[int]:
    """The widths of a curve on multiples, falling; all of the units among them."""
    whole = curve.widths[0]
    counts = {max(1, round(width / multiple_of)) for width in curve.widths}
    below = (n * multiple_of for n in counts if n * multiple_of < whole)
    return sorted({whole, *below}, reverse=True)
