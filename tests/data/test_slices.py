"""Split expressions: as NumPy slices, and as TFDS reads them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxprune._base.errors import InputError
from jaxprune.data import datasets, slices
from jaxprune.data.splits import image_split

NAMES = ("train", "validation", "test")


def numbered(counts):
    """Splits whose images, of one pixel, are numbered through; each in its own array.

    All but the first are loaded when they are asked for.
    """
    parts = np.split(np.arange(sum(counts), dtype=np.int32), np.cumsum(counts)[:-1])
    numbers = dict(zip(NAMES, parts, strict=True))
    made = {
        name: image_split(n[:, None, None, None], n % 2, ("even", "odd"))
        for name, n in numbers.items()
    }
    later = {name: lambda name=name: made[name] for name in NAMES[1:]}
    return datasets.Splits({"train": made["train"], **later}), numbers


def parts(percent):
    """Name, first and last end and unit of a slice."""
    end = st.integers(-100, 100) if percent else st.integers(-50, 50)
    end = st.none() | end
    if percent:
        end |= st.decimals(-100, 100, places=1).map(float)
    return st.tuples(st.sampled_from(NAMES), end, end, st.just(percent))


def written(name, start, stop, percent):
    unit = "%" if percent else ""
    ends = ["" if end is None else f"{end}{unit}" for end in (start, stop)]
    return name if ends == ["", ""] else f"{name}[{':'.join(ends)}]"


def position(end, count, percent):
    """Where a slice begins or ends, counted from the first example."""
    if end is None or not percent:
        return end
    # The end that is rounded lies at the closest example, from where it is counted.
    examples = int(np.rint(abs(end) * count / 100))
    return examples if end >= 0 else count - examples


COUNTS = st.tuples(*[st.integers(1, 40)] * 3)
EXPRESSIONS = st.lists(parts(False) | parts(True), min_size=1, max_size=4)


@given(COUNTS, EXPRESSIONS)
def test_an_expression_is_slices_one_after_the_other(counts, expression):
    splits, numbers = numbered(counts)
    which = " + ".join(written(*part) for part in expression)
    slices_of = []
    for name, start, stop, percent in expression:
        count = len(numbers[name])
        ends = (position(end, count, percent) for end in (start, stop))
        slices_of.append(numbers[name][slice(*ends)])
    expected = np.concatenate(slices_of)
    if not len(expected):
        with pytest.raises(InputError, match="is empty: "):
            datasets.choose_split(splits, which)
        return
    found = datasets.choose_split(splits, which)
    images = found.read(np.arange(len(found)))
    np.testing.assert_array_equal(images[:, 0, 0, 0], expected)
    np.testing.assert_array_equal(found.labels, expected % 2)
    order = np.random.default_rng(0).permutation(len(found))
    np.testing.assert_array_equal(found.read(order), images[order])


@given(COUNTS, EXPRESSIONS, EXPRESSIONS)
def test_images_in_common(counts, one, other):
    splits, _ = numbered(counts)
    names = ["+".join(written(*part) for part in parts) for parts in (one, other)]
    held = []
    for which in names:
        try:
            found = datasets.choose_split(splits, which)
        except InputError:
            held.append(set())
        else:
            held.append(set(found.read(np.arange(len(found)))[:, 0, 0, 0].tolist()))
    assert datasets.overlap(splits, *names) == len(held[0] & held[1])


@given(COUNTS, EXPRESSIONS)
def test_tfds_reads_the_same(counts, expression):
    core = pytest.importorskip("tensorflow_datasets").core
    infos = {
        name: core.SplitInfo(
            name=name, shard_lengths=[count], num_bytes=0, filename_template=None
        )
        for name, count in zip(NAMES, counts, strict=True)
    }
    which = "+".join(written(*part) for part in expression)
    try:
        theirs = core.splits.AbstractSplit.from_spec(which).to_absolute(infos)
    except ValueError as error:  # it refuses ends outside a split
        assert "incompatible with" in str(error)
        return
    for part, read in zip(slices.parse(which), theirs, strict=True):
        count = infos[part.name].num_examples
        if part.percent and any(
            end is not None and end < 0 and round(end * count / 100) == 0
            for end in (part.start, part.stop)
        ):
            continue  # which TFDS takes for the first example
        expected = np.arange(count)[read.from_ : read.to]
        assert read.splitname == part.name
        np.testing.assert_array_equal(part.rows(count), expected)


def test_a_percentage_at_either_end_is_of_both():
    for which in ("test[10:50%]", "test[10%:50]"):
        assert slices.parse(which) == slices.parse("test[10%:50%]")


def test_less_than_half_an_example_at_the_end_is_none():
    (last,), (others,) = slices.parse("test[-1%:]"), slices.parse("test[:-1%]")
    assert len(last.rows(10)) == 0 and len(others.rows(10)) == 10


@pytest.mark.parametrize(
    "which",
    ["", "+", "test+", "test[", "test[5]", "test[::2]", "test[a:b]", "test[1_0:]",
     "test[\u0663:]", "test[--1:]", "test[:%]", "test[1e2:]", "te st",
     "test[:" + "9" * 99 + "]"],
)  # fmt: skip
def test_no_such_expressions(which):
    with pytest.raises(InputError, match="is not of the form"):
        slices.parse(which)


def test_a_split_is_loaded_when_it_is_read():
    splits, _ = numbered((4, 4, 4))
    before = splits.fingerprint
    assert splits.names == NAMES and splits.first is splits["train"]
    assert splits.fingerprint == before
    assert splits["test"] is splits["test"]
    assert splits.fingerprint != before
