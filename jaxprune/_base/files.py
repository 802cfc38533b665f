"""Files and folders that are either whole or absent.

What is under way is called `.NAME.PID.tmp`; `clean` removes what a killed process left.
"""

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jaxprune._base.errors import InputError

_UNDER_WAY = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d{1,9})\.(?P<kind>tmp|old)(\..*)?")
# What threads of this process are writing: temporary paths differ by process alone.
_writing: dict[Path, object] = {}


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """While the block runs, no other thread writes to the path.

    Raises:
      InputError: one does.
    """
    this, path = object(), path.absolute()
    if _writing.setdefault(path, this) is not this:
        raise InputError(f"another thread is writing {path}: one at a time")
    try:
        yield
    finally:
        del _writing[path]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path that becomes `path` when the block ends well.

    The temporary file lies in the same folder, which must be there, and keeps the
    suffix. If the block raises, it is removed and whatever was at `path` before stays.

    Raises:
      InputError: another thread is writing there.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    with _alone(path):
        try:
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty folder that becomes `folder` when the block ends well.

    A folder that is there is replaced as a whole: never is there one with files of
    both. A process that is killed between the two renames which that takes leaves the
    old folder as `.NAME.PID.old`, and `clean` puts it back.

    Raises:
      InputError: another thread is writing there.
    """
    folder = Path(folder).resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    with _alone(folder):
        shutil.rmtree(new, ignore_errors=True)
        try:
            new.mkdir()
            yield new
            for path in new.iterdir():
                _sync(path)
            _put_in_place(new, folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)


def _put_in_place(new: Path, folder: Path) -> None:
    """Makes `new` the folder; what was there is removed."""
    old = new.with_suffix(".old")
    try:
        while new.exists():
            shutil.rmtree(old, ignore_errors=True)
            with suppress(
                FileNotFoundError
            ):  # none, or another process has put it away
                folder.rename(old)
            try:
                new.rename(folder)
            except OSError as error:  # another process has put its own there
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
    except BaseException:
        if not folder.exists() and old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def clean(folder: Path) -> None:
    """Removes what killed processes were writing, and puts back what they had moved.

    Of the folder and those in it, but not where a link leads. The caller holds
    the folder's lock: a process of another host is not seen to live.
    """
    inner = [p for p in folder.iterdir() if p.is_dir() and not p.is_symlink()]
    for place in (folder, *inner):
        for path in place.iterdir() if place.is_dir() else ():
            found = _UNDER_WAY.fullmatch(path.name)
            if found is None or _lives(int(found["pid"])):
                continue
            if found["kind"] == "old" and not (place / found["name"]).exists():
                path.rename(place / found["name"])
            else:
                remove(path)


def remove(path: Path) -> None:
    """Removes a file, a link or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    """Whether another process has this number."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _sync(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
