"""Being asked to stop: the step is finished, a checkpoint written, and the run can go on later."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")
SIGNALS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop, and can go on later."""


class Interruption:
    """While it is entered, signals are requests.

    Inside `deferred()` a request waits until someone looks at `requested`; outside it raises
    `Interrupted` at once. After the first Ctrl-C a second one is immediate. Handlers that were
    there before are put back and called on leaving: submitit, for one, requeues its job in them.
    Outside the main thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._signal: int | None = None
        self._deferring = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._previous = {s: signal.signal(s, self._receive) for s in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        before = self._previous.get(self._signal) if self._signal is not None else None
        if callable(before) and before is not signal.default_int_handler:
            before(self._signal, None)

    def is_requested(self) -> bool:
        """Whether the run was asked to stop."""
        return self.requested is not None

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Requests wait for whoever looks at `requested`, or for the end of the block."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        if self.requested is not None:
            raise Interrupted

    def _receive(self, number: int, frame: FrameType | None) -> None:
        again = self.requested is not None
        if not again:  # what comes behind it is its echo: Slurm sends SIGTERM to what it requeues
            self._signal, self.requested = number, signal.Signals(number).name
        if not self._deferring or (again and number == signal.SIGINT):
            raise Interrupted
