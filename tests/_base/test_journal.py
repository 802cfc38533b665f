"""What a run has finished is there for the next one, whole and of the same key."""

import signal
import subprocess
import sys

import numpy as np
import pytest

from jaxprune._base import manifest
from jaxprune._base.errors import InputError
from jaxprune._base.journal import Journal, OtherKeyError

KEY = {"weights": "abc", "widths": (4, 6), "layer": {"name": "conv", 2: None}}
ENTRIES = {
    ".json": {"first": [1, 2.5], "other": {"a": "b", 10: (1,), 9: None}},
    ".npz": {"first": np.arange(6).reshape(2, 3), "other": 7},
}
READ = {
    ".json": {"first": [1, 2.5], "other": {"a": "b", "10": [1], "9": None}},
    ".npz": {"first": [[0, 1, 2], [3, 4, 5]], "other": 7},
}


@pytest.fixture(params=ENTRIES)
def path(request, tmp_path):
    return tmp_path / "folder" / f"kept{request.param}"


@pytest.fixture
def kept(path):
    for name, value in ENTRIES[path.suffix].items():
        journal = Journal(path, KEY) if name == "first" else journal
        journal.keep({name: value})
    return path


def plain(entries):
    return {
        name: v.tolist() if isinstance(v, np.ndarray) else v
        for name, v in entries.items()
    }


def test_entries_are_kept(kept):
    assert plain(Journal(kept, KEY).read()) == READ[kept.suffix]
    assert [file.name for file in kept.parent.iterdir()] == [kept.name]


def test_it_goes_on_beside_what_is_there(kept):
    journal = Journal(kept, KEY)
    journal.read()
    journal.keep({"other": 1, "third": 2})
    found = plain(Journal(kept, KEY).read())
    assert found == {**READ[kept.suffix], "other": 1, "third": 2}


def test_what_was_never_read_is_replaced(kept):
    Journal(kept, KEY).keep({"other": 1})
    assert plain(Journal(kept, KEY).read()) == {"other": 1}


def test_there_is_nothing_at_first(path):
    assert Journal(path, KEY).read() == {} and not path.parent.exists()


@pytest.mark.parametrize(
    "key", [{**KEY, "weights": "abd"}, {**KEY, "new": None}, {"weights": "abc"}]
)
def test_another_key(kept, key):
    journal = Journal(kept, key)
    with pytest.raises(OtherKeyError, match="something else") as error:
        journal.read()
    assert error.value.found == Journal(kept, KEY).key
    assert journal.recover() == {}
    journal.keep({"mine": 3})
    assert plain(Journal(kept, key).read()) == {"mine": 3}


@pytest.mark.parametrize("at", range(0, 100, 7))
@pytest.mark.parametrize("damage", ["cut", "bit"])
def test_a_damaged_file(kept, damage, at):
    data = bytearray(kept.read_bytes())
    place = len(data) * at // 100
    if damage == "cut":
        data = data[:place]
    else:
        data[place] ^= 4
    kept.write_bytes(data)
    journal = Journal(kept, KEY)
    found = plain(journal.recover())
    # Not every bit of an archive matters.
    assert found == {} or (kept.suffix == ".npz" and found == READ[".npz"])
    if not found:
        with pytest.raises(InputError, match=kept.name) as error:
            journal.read()
        assert "\n" not in str(error.value)
    journal.keep({"mine": 3})
    assert plain(Journal(kept, KEY).read()) == {**found, "mine": 3}


@pytest.mark.parametrize("facts", [{}, {"facts": {"a": 1}, "curves": {}}, {"key": 5}])
def test_another_format(tmp_path, facts):
    path = tmp_path / "kept.json"
    manifest.write_file(path, facts)
    with pytest.raises(InputError, match=r"kept\.json is damaged"):
        Journal(path, KEY).read()
    np.savez_compressed(tmp_path / "kept.npz", key="0a1b", first=1)
    assert Journal(tmp_path / "kept.npz", KEY).recover() == {}


def test_entries_of_another_type(tmp_path):
    path = tmp_path / "kept.json"
    Journal(path, KEY).keep({"first": 1, "second": "two"})
    journal = Journal(path, KEY)
    with pytest.raises(InputError, match=r"kept\.json is damaged: 'second'"):
        journal.read(dict[str, int])
    journal.keep({"first": 3})
    assert Journal(path, KEY).read(dict[str, int]) == {"first": 3}


def test_a_folder_in_its_place(path):
    path.mkdir(parents=True)
    assert Journal(path, KEY).recover() == {}


KILLED = """
import os, signal, sys
from pathlib import Path
from jaxprune._base import files
from jaxprune._base.journal import Journal

journal = Journal(Path(sys.argv[1]), {"of": "this"})
journal.keep({"first": 1})
if sys.argv[2] == "writing":
    files.os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
    journal.keep({"second": 2})
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("when", ["between", "writing"])
def test_a_killed_process_leaves_what_it_had_finished(path, when):
    path.parent.mkdir()
    ended = subprocess.run([sys.executable, "-c", KILLED, str(path), when])
    assert ended.returncode == -signal.SIGKILL
    journal = Journal(path, {"of": "this"})
    assert plain(journal.read()) == {"first": 1}
    journal.keep({"second": 3})
    assert plain(Journal(path, {"of": "this"}).read()) == {"first": 1, "second": 3}
