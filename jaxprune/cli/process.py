"""How a script starts and ends: flags in, one clear line and an exit code out."""

import io
import logging
import math
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import app, flags
from absl import logging as absl_logging

from jaxprune._base import processes
from jaxprune._base.errors import InputError, first_line
from jaxprune.cli import lock, settings, signals
from jaxprune.cli.settings import AnySettings, Settings

BAD_INPUT = 2
BROKEN_PIPE = 141


class Interrupted(Exception):
    """Ctrl-C or SIGTERM, with a message: what was kept, and how to continue."""


def run(main: Callable[[Any], None]) -> None:
    """Runs a command's `main`; bad input ends it with one line and exit code 2.

    It is called with the `Settings` of its module, as the flags give them. --help shows
    the docstring of the module and the flags named there in `FIRST`.
    """
    module = sys.modules[main.__module__]
    sys.modules["__main__"].__doc__ = module.__doc__
    first = getattr(module, "FIRST", ())
    parser = partial(parse, module.Settings, first=first, values=flags.FLAGS)
    signals.quit_at_once()
    _ignore_surroundings()
    # Their warnings about platforms and file systems are not the user's business.
    absl_logging.set_verbosity(absl_logging.ERROR)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.getLogger("jax").setLevel(logging.ERROR)
    # Orbax's tasks that a full disk has ended: the error is one line already.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    app.run(lambda parsed: guard(main, parsed), flags_parser=parser)


# JAX's options that are for finding errors in one's own code.
_FOR_DEBUGGING = {
    "jax_disable_jit": False,
    "jax_numpy_rank_promotion": "allow",
    "jax_transfer_guard": "allow",
}


def _ignore_surroundings() -> None:
    """Leaves settings of the terminal, of JAX and of matplotlib out of account."""
    for stream in (sys.stdout, sys.stderr):  # a file or a locale may not take all
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    for option, value in _FOR_DEBUGGING.items():
        jax.config.update(option, value)
    if "matplotlib" in sys.modules:
        sys.modules["matplotlib"].rcdefaults()


def finish(*paths: Path) -> None:
    """Ends a script's output: what a person opens next, the first three that exist."""
    found = [f"{path}/" if path.is_dir() else str(path) for path in paths]
    there = [text for text, path in zip(found, paths, strict=True) if path.exists()]
    print("open next:", *there[:3], sep="\n  ")


def parse(
    kind: type[AnySettings],
    argv: Sequence[str],
    *,
    first: Sequence[str] = (),
    values: flags.FlagValues | None = None,
) -> AnySettings:
    """The settings that a command line gives; bad input ends the process.

    Args:
      kind: the command's settings.
      argv: its name, then its flags.
      first: flags that --help shows, by default all; --helpfull shows all.
      values: where the flags are defined, beside absl's own; by default nowhere else.
    """
    values = flags.FlagValues() if values is None else values
    settings.define(kind, values)
    names = settings.names(kind)
    for name in first or names:
        values.register_key_flag_for_module(sys.argv[0], values[name])
    for argument in argv:
        _check_readable(argument)
    try:
        rest = values(list(argv))
    except flags.Error as error:
        _fail(str(error), BAD_INPUT)
    except SystemExit:  # --help, which absl takes for a failure
        sys.exit(0)
    if len(rest) > 1:
        _fail(
            f"unknown argument '{rest[1]}': flags are given as --name=value", BAD_INPUT
        )
    for name in names:
        _check_value(name, values[name].value)
    found = settings.read(kind, values)
    for name in names:  # a module of the user's may define flags of these names
        delattr(values, name)
    return found


def _check_readable(argument: str) -> None:
    """Ends the script where an argument could not be printed, nor written to a file."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(argument).decode(errors="backslashreplace")
        _fail(f"{shown} is not UTF-8", BAD_INPUT)


def _check_value(name: str, value: Any) -> None:
    """Ends the script where a flag's value makes no sense whatever the flag is."""
    if value == "":
        _fail(f"--{name}= is empty: give a value, or leave it out", BAD_INPUT)
    if isinstance(value, float) and not math.isfinite(value):
        _fail(f"--{name} takes a finite number, got {value}", BAD_INPUT)


def guard(main: Callable[[AnySettings], None], given: AnySettings) -> None:
    """Calls `main`; bad input ends the process with one line and exit code 2."""
    try:
        with signals.raised(), _precision(given):
            try:
                main(given)
                if processes.are_several():
                    processes.wait()  # one that fails yet is heard by all
            finally:
                lock.release()
    except InputError as error:
        _fail(str(error), BAD_INPUT)
    except BrokenPipeError:
        # Whoever read the output has gone; what Python flushes at the end must too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN_PIPE)
    except OSError as error:
        name = f": {error.filename}" if error.filename else ""
        _fail(f"{error.strerror or error}{name}", BAD_INPUT)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            _fail(_out_of_memory(type(given)), BAD_INPUT)
        if processes.are_several():  # as a process that has gone makes in the others
            processes.listen()
            _fail(f"the processes lost one another: {first_line(error)}", BAD_INPUT)
        raise
    except Interrupted as error:
        _fail(str(error), signals.exit_code())
    except KeyboardInterrupt:
        _fail("interrupted; nothing was written", signals.exit_code())
    except Exception as error:
        processes.tell_the_others(f"{type(error).__name__}: {first_line(error)}")
        raise


def _precision(given: Settings) -> AbstractContextManager[Any]:
    """Products of float32 as the command is asked to make them."""
    name = getattr(given, "precision", None)
    return jax.default_matmul_precision(name) if name else nullcontext()


def _out_of_memory(kind: type[Settings]) -> str:
    """The flags to lower, of those that the command has."""
    known = settings.names(kind)
    names = [name for name in ("batch_size", "mask_chunk") if name in known]
    advice = " or ".join(
        [*(f"--{name}" for name in names), "--train_batch_size in training"]
    )
    return f"out of memory: lower {advice}"


def _fail(message: str, code: int) -> NoReturn:
    sys.stdout.flush()
    line = " ".join(message.split())
    print(f"error: {line}" if code == BAD_INPUT else f"\n{line}", file=sys.stderr)
    if processes.are_several():
        processes.tell_the_others(line)
        os._exit(code)  # without waiting for processes that may never come
    sys.exit(code)
