"""Being asked to stop: the step is finished, a checkpoint written, and the run can be resumed."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

# Limits of time, set by a shell (`ulimit -t`), a queue or `timeout -s ALRM`, end a process as well;
# a program that has a use of its own for them keeps it.
LIMITS = ("SIGALRM", "SIGXCPU")
NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP", *LIMITS)
SIGNALS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
SHOW_CURSOR = b"\x1b[?25h"
STOPPED = 130  # the exit code, as in `sseg_nase.errors`; nothing else is imported here


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop, and can be resumed."""


def from_the_start() -> None:
    """Handle all signals of a process that does no run yet: it says so and ends at once.

    Those that are ignored stay so, as a shell's background jobs ignore Ctrl-C. Nothing is raised:
    modules that are being imported turn an exception into another one.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in SIGNALS:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, end_at_once)


def end_at_once(number: int, frame: FrameType | None) -> None:
    """Say that the process was interrupted, and end it; files are whole, locks end with it."""
    if os.isatty(1):
        os.write(1, SHOW_CURSOR)  # a table that is shown live hides it
    os.write(2, b"sseg-nase: interrupted\n")
    os._exit(STOPPED)


SECONDS_TO_ASK_AGAIN = 0.05
AT_ONCE, ARMED, DEFERRING, ENDING = "at once", "armed", "deferring", "ending"


class Interruption:
    """Context manager: signals to stop become requests that the loop asks for.

    Inside `deferred()` a request waits until someone looks at `is_requested`, once somebody has:
    before the first step there is nothing to save. Outside, and in `at_once()`, it raises
    `Interrupted` at once. After the first Ctrl-C a second one is immediate. Handlers that were
    there before are put back and called on leaving: submitit, for one, requeues its job in them.
    Outside the main thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._signal: int | None = None
        self._mode = AT_ONCE
        self._previous: dict[int, Any] = {}
        self._unraisable = sys.unraisablehook

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            # nohup ignores SIGHUP, and so do we then.
            heard = [s for s in SIGNALS if s == signal.SIGINT or not _kept(s)]
            self._previous = {s: signal.signal(s, self._receive) for s in heard}
            self._unraisable, sys.unraisablehook = sys.unraisablehook, self._not_raised
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._previous:
            sys.unraisablehook = self._unraisable
        before = self._previous.get(self._signal) if self._signal is not None else None
        if callable(before) and before not in (signal.default_int_handler, end_at_once):
            before(self._signal, None)

    def is_requested(self) -> bool:
        """Whether the run was asked to stop. Asked after every step, when there is much to save."""
        if self._mode == ARMED:
            self._mode = DEFERRING
        return self.requested is not None

    @contextmanager
    def deferred(self, *, first_at_once: bool = True) -> Iterator[None]:
        """Requests wait for whoever asks `is_requested`, or for the end of the block.

        `first_at_once` False: also before it was asked for the first time, where other processes
        are waited for.
        """
        with self._as(ARMED if first_at_once else DEFERRING):
            yield
        if self.requested is not None:
            raise self._interrupted()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within `deferred()`, stop at once all the same: where nothing changes, as evaluation."""
        if self.requested is not None:
            raise self._interrupted()
        with self._as(AT_ONCE):
            yield

    @contextmanager
    def ending(self) -> Iterator[None]:
        """How the run has ended is being written: only a first request, or Ctrl-C twice, raises."""
        with self._as(ENDING):
            yield

    @contextmanager
    def _as(self, mode: str) -> Iterator[None]:
        before, self._mode = self._mode, mode
        try:
            yield
        finally:
            self._mode = before

    def _interrupted(self) -> Interrupted:
        return Interrupted(f"interrupted ({self.requested})")

    def _receive(self, number: int, frame: FrameType | None) -> None:
        again = self.requested is not None
        if not again:  # what comes behind it is its echo: Slurm sends SIGTERM to what it requeues
            self._signal, self.requested = number, signal.Signals(number).name
        waits = self._mode == DEFERRING or (self._mode == ENDING and again)
        if not waits or (again and number == signal.SIGINT):
            raise self._interrupted()

    def _not_raised(self, lost: sys.UnraisableHookArgs) -> None:
        """Hear of what was raised where nothing can be, in a destructor or a callback from C.

        A request that was lost so is made again. What breaks behind a request is what it left
        half done, such as an object that was being made, and is nothing to tell anyone.
        """
        if isinstance(lost.exc_value, Interrupted):
            number = signal.SIGTERM if signal.SIGTERM in self._previous else self._signal
            again = threading.Timer(SECONDS_TO_ASK_AGAIN, os.kill, (os.getpid(), number))
            again.daemon = True
            again.start()
        elif self.requested is None:
            self._unraisable(lost)


def _kept(number: int) -> bool:
    """Whether what the process does at a signal stays as it is."""
    now = signal.getsignal(number)
    limit = signal.Signals(number).name in LIMITS
    return now is signal.SIG_IGN or (limit and now not in (signal.SIG_DFL, end_at_once))
