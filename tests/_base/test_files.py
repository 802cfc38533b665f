"""Files and folders are whole or absent, whenever a process dies."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from jaxprune._base import files
from jaxprune._base.errors import InputError
from jaxprune._base.schema import read


@pytest.fixture
def old(tmp_path):
    """A folder that is about to be replaced."""
    folder = tmp_path / "result.v1"
    folder.mkdir()
    (folder / "a").write_text("old")
    return folder


def replace_folder(folder, text="new"):
    with files.replacing_folder(folder) as new:
        (new / "b").write_text(text)


def test_a_folder_is_replaced_as_a_whole(old):
    replace_folder(old)
    assert [path.name for path in old.iterdir()] == ["b"]
    assert list(old.parent.iterdir()) == [old]


def test_a_block_that_fails_changes_nothing(old):
    with pytest.raises(OSError, match="full"), files.replacing_folder(old) as new:
        (new / "b").touch()
        raise OSError("full")
    assert [path.name for path in old.iterdir()] == ["a"]
    assert list(old.parent.iterdir()) == [old]


KILLED = """
import os, pathlib, signal, sys
from jaxprune._base import files
if sys.argv[2] == "between":
    rename = pathlib.Path.rename
    def die(path, target):
        if path.suffix == ".tmp":
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(path, target)
    pathlib.Path.rename = die
if sys.argv[2] == "after":
    files.shutil.rmtree = lambda path, **kwargs: (
        os.kill(os.getpid(), signal.SIGKILL) if path.exists() else None
    )
with files.replacing_folder(pathlib.Path(sys.argv[1])) as new:
    (new / "b").write_text("new")
    if sys.argv[2] == "inside":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(
    ("when", "content"), [("inside", "a"), ("between", "a"), ("after", "b")]
)
def test_killed_while_a_folder_is_replaced(old, when, content):
    command = [sys.executable, "-c", KILLED, str(old), when]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    assert len(list(old.parent.iterdir())) == 2
    files.clean(old.parent)
    assert list(old.parent.iterdir()) == [old]
    assert [path.name for path in old.iterdir()] == [content]


def test_clean_removes_what_is_left_of_others_alone(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    (tmp_path / "sweep").mkdir()
    left = [f".curve.{gone.pid}.tmp.png", f"sweep/.sweep.{gone.pid}.tmp.npz"]
    mine = [".lock", ".git", f".curve.{os.getppid()}.tmp.png", "curve.1.tmp.png"]
    for name in (*left, *mine):
        (tmp_path / name).write_text("x")
    (tmp_path / f".network.{gone.pid}.tmp").mkdir()
    files.clean(tmp_path)
    found = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert found == set(mine)
    assert not (tmp_path / f".network.{gone.pid}.tmp").exists()


def test_clean_follows_no_link(tmp_path):
    """Who holds one folder does not hold another."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    (tmp_path / "run").mkdir()
    (tmp_path / "other").mkdir()
    theirs = tmp_path / "other" / f".sweep.{gone.pid}.tmp.npz"
    theirs.touch()
    (tmp_path / "run" / "link").symlink_to(theirs.parent)
    files.clean(tmp_path / "run")
    assert theirs.exists()


@pytest.mark.parametrize("replacing", [files.replacing, files.replacing_folder])
def test_of_two_threads_one_writes_and_the_other_is_told(tmp_path, replacing):
    target = tmp_path / "made"

    def write(text, inside=lambda: None):
        with replacing(target) as new:
            inside()
            (new / "a" if replacing is files.replacing_folder else new).write_text(text)

    def other():
        with (
            ThreadPoolExecutor() as pool,
            pytest.raises(InputError, match="made: one at"),
        ):
            pool.submit(write, "other").result()

    write("one", other)
    assert [p.read_text() for p in tmp_path.rglob("*") if p.is_file()] == ["one"]
    write("again")  # the other may, once the first has finished
    assert [p.read_text() for p in tmp_path.rglob("*") if p.is_file()] == ["again"]


def test_no_folder_is_made_for_a_file(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        files.write_text(tmp_path / "x" / "y", "text")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1, 2]", r"an object, got \[1, 2\]"),
        (b"{", "damaged: Invalid JSON"),
        (b"\xff\xfe", "damaged: Invalid"),
        (b'{"a": "1"}', "'a' .*valid integer, got '1'"),
        (b"[" * 100_000, "damaged"),
    ],
)
def test_json_of_another_shape_is_named(tmp_path, content, message):
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read(path, dict[str, int])
    assert "file.json" in str(error.value) and "\n" not in str(error.value)
