"""Greedy descent on curves whose best widths are known."""

import pytest

from jaxprune._base.errors import InputError
from jaxprune.shrinking.allocation import allocate
from jaxprune.shrinking.curves import Curve


def curve(*points):
    """From (width, loss), the widest first."""
    widths, losses = zip(*points, strict=True)
    return Curve(tuple(range(widths[0])), widths, losses)


CURVES = {
    "free": curve((10, 0.0), (5, 0.0), (1, 1.0)),
    "dear": curve((10, 0.0), (5, 1.0), (1, 3.0)),
    "cliff": curve((10, 0.0), (5, 9.0), (1, 9.0)),
}


def units(widths):
    return sum(widths.values())


def test_what_costs_nothing_goes_first():
    assert allocate(CURVES, units, 25) == {"free": 5, "dear": 10, "cliff": 10}


def test_the_last_step_goes_as_far_as_the_budget_asks():
    assert allocate(CURVES, units, 28) == {"free": 8, "dear": 10, "cliff": 10}
    assert allocate(CURVES, units, 22) == {"free": 5, "dear": 7, "cliff": 10}


def test_what_is_saved_too_much_goes_where_it_helps_most():
    curves = {"light": curve((8, 0.0), (4, 1.6)), "heavy": curve((8, 0.0), (4, 6.0))}

    def cost(widths):
        return widths["light"] + 3 * widths["heavy"]

    # `light` is cut first, for 4; then `heavy`, for 12, which is enough without it.
    assert allocate(curves, cost, 24, multiple_of=4) == {"light": 8, "heavy": 4}
    assert allocate(curves, cost, 27) == {"light": 6, "heavy": 7}


def test_a_step_over_a_cliff_counts_all_it_saves():
    both = {"cliff": CURVES["cliff"]}
    assert allocate(both, units, 1) == {"cliff": 1}


def test_costs_are_those_of_the_network_as_cut():
    # Once `free` is narrow, a unit of `dear` saves less than one of `other`.
    curves = {
        "free": curve((10, 0.0), (1, 0.0)),
        "dear": curve((10, 0.0), (9, 1.0), (8, 2.0)),
        "other": curve((10, 0.0), (9, 1.0), (8, 2.0)),
    }

    def cost(widths):
        return widths["free"] * widths["dear"] + 5 * widths["other"]

    assert cost(allocate(curves, cost, 55)) <= 55
    assert allocate(curves, cost, 55) == {"free": 1, "dear": 10, "other": 9}


@pytest.mark.parametrize("multiple", [2, 4, 8, 16])
def test_widths_are_multiples_or_whole(multiple):
    curves = {"a": curve((30, 0.0), (17, 0.1), (9, 0.4), (4, 2.0))}
    least = min(multiple, 30)
    for budget in range(max(least, 4), 31):
        try:
            width = allocate(curves, units, budget, multiple_of=multiple)["a"]
        except InputError:
            continue
        assert width <= budget and (width % multiple == 0 or width == 30)


def test_an_unreachable_budget_names_the_least_possible():
    with pytest.raises(InputError, match=r"least possible is 0\.1, 10 times less$"):
        allocate(CURVES, units, 2)


def test_a_whole_budget_cuts_nothing():
    assert allocate(CURVES, units, 30) == {"free": 10, "dear": 10, "cliff": 10}
