"""Split expressions as TFDS has them: `validation`, `train[:50%]+test[-10:]`."""

import re
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from jaxprune._base.errors import InputError

_END = r"(?:(?P<{0}>-?[0-9]{{1,18}}(?:\.[0-9]{{1,9}})?)(?P<{0}_unit>%)?)?"
_SLICE = re.compile(
    rf"(?P<name>[\w-]+)(?:\[{_END.format('start')}:{_END.format('stop')}\])?"
)


class Slice(NamedTuple):
    """A slice of one split, `name[start:stop]`.

    Attributes:
      name: the split's name.
      start: where it begins, from the end if negative; None for the first example.
      stop: where it ends, likewise; None for the end of the split.
      percent: whether both are percentages of the split, and not examples.
    """

    name: str
    start: float | None = None
    stop: float | None = None
    percent: bool = False

    def rows(self, count: int) -> Int[np.ndarray, " n"]:
        """The indices of its examples in a split of `count`, as NumPy slices.

        Percentages are rounded to the closest example, ties to even, as TFDS does.
        """
        start, stop = (self._position(end, count) for end in (self.start, self.stop))
        return np.arange(count)[start:stop]

    def _position(self, end: float | None, count: int) -> int | None:
        if end is None or not self.percent:
            return None if end is None else int(end)
        # From the end, 0 examples are those at the end: TFDS takes -1% of ten examples
        # for the first.
        position = round(end * count / 100)
        return count + position if end < 0 else position


def parse(which: str) -> tuple[Slice, ...]:
    """The slices that an expression adds up.

    >>> parse("train[:50%]+test")
    (Slice(name='train', start=None, stop=50.0, percent=True), \
Slice(name='test', start=None, stop=None, percent=False))

    Raises:
      InputError: it is no such expression.
    """
    return tuple(_parse(part, which) for part in re.split(r"\s*\+\s*", which))


def _parse(part: str, which: str) -> Slice:
    match = _SLICE.fullmatch(part)
    if not match:
        raise InputError(
            f"split '{which}' is not of the form test, train[1000:2000], train[-10%:] "
            "or train+test"
        )
    # As in TFDS, [10:50%] is [10%:50%].
    percent = bool(match["start_unit"] or match["stop_unit"])
    start, stop = (float(end) if end else None for end in match.group("start", "stop"))
    numbers = [end for end in (start, stop) if end is not None]
    if percent and any(abs(number) > 100 for number in numbers):
        raise InputError(f"split '{which}': percentages lie in -100% .. 100%")
    if not percent and not all(number.is_integer() for number in numbers):
        raise InputError(f"split '{which}': {part} is of whole examples, or has a %")
    return Slice(match["name"], start, stop, percent)
