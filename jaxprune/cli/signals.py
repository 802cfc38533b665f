"""Ctrl-C and SIGTERM: one line and an exit code, at any moment, and none is lost.

Imports nothing that takes time: it is at work while the rest is imported.
"""

import _thread
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_received: list[int] = []


def exit_code() -> int:
    """Of a script that was interrupted: 130 after Ctrl-C, 143 after SIGTERM."""
    return 128 + (_received or [signal.SIGINT])[-1]


def quit_at_once() -> None:
    """From now on, an interrupt ends the process with one line."""
    _handle(_quit)


@contextmanager
def raised() -> Iterator[None]:
    """In the block, an interrupt raises KeyboardInterrupt.

    Python drops what is raised where nobody can catch it, as in a callback of the
    garbage collector (JAX has one): then it is raised again a moment later.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    hook, before = sys.unraisablehook, _handle(_interrupt)
    timers: list[threading.Timer] = []

    def again(dropped: Any) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            hook(dropped)
        elif not any(timer.is_alive() for timer in timers):
            number = exit_code() - 128
            timers.append(threading.Timer(0.05, _thread.interrupt_main, (number,)))
            timers[-1].start()

    _received.clear()
    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for timer in timers:
            timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


def _handle(handler: Any) -> dict[int, Any]:
    """Sets the handler, but where an interrupt is to be ignored; those before."""
    before: dict[int, Any] = {number: signal.getsignal(number) for number in _SIGNALS}
    for number in _SIGNALS:
        if before[number] != signal.SIG_IGN:
            signal.signal(number, handler)
    return before


def _interrupt(number: int, frame: FrameType | None) -> None:
    _received.append(number)
    raise KeyboardInterrupt


def _quit(number: int, frame: FrameType | None) -> None:
    os.write(2, b"\ninterrupted\n")
    os._exit(128 + number)
