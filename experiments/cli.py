"""How a script starts and ends: flags in, one clear line and an exit code out."""

import logging
import os
import sys
from collections.abc import Callable, Sequence

import jax
from absl import app, flags
from absl import logging as absl_logging

from jaxprune.errors import InputError

flags.DEFINE_string("workdir", None, "Run directory. Default: runs/<model>.")

BAD_INPUT = 2
_OUT_OF_MEMORY = (
    "out of memory: lower --batch_size or --mask_chunk, or --train_batch_size in "
    "training"
)
INTERRUPTED = 130
BROKEN_PIPE = 141


class Interrupted(Exception):
    """Ctrl-C, with a message that says what was kept and how to go on."""


def run(main: Callable[[], None]) -> None:
    """Runs a script's `main`; bad input ends it with one line and exit code 2."""
    # Their warnings about platforms and file systems are not the user's business.
    absl_logging.set_verbosity(absl_logging.ERROR)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.getLogger("jax").setLevel(logging.ERROR)
    app.run(lambda argv: _guard(main), flags_parser=_parse)


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        rest = flags.FLAGS(list(argv))
    except flags.Error as error:
        _fail(str(error), BAD_INPUT)
    if len(rest) > 1:
        _fail(
            f"unknown argument '{rest[1]}': flags are given as --name=value", BAD_INPUT
        )
    return rest


def _guard(main: Callable[[], None]) -> None:
    try:
        main()
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
            _fail(_OUT_OF_MEMORY, BAD_INPUT)
        raise
    except Interrupted as error:
        _fail(str(error), INTERRUPTED)
    except KeyboardInterrupt:
        _fail("interrupted; nothing was written", INTERRUPTED)


def _fail(message: str, code: int) -> None:
    sys.stdout.flush()
    line = " ".join(message.split())
    print(f"error: {line}" if code == BAD_INPUT else f"\n{line}", file=sys.stderr)
    if jax.distributed.is_initialized():
        os._exit(code)  # without waiting for processes that may never come
    sys.exit(code)
