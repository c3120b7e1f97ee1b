"""A job in a process of its own, so that nothing it does can end the sweep.

The process is forked from a server that has imported torch once and computed nothing: it starts at
once, and neither an exit, a crash nor a kill reaches anybody else.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sseg_nase.redaction import guard_output

# A job that is told to stop finishes its step and writes a checkpoint.
SECONDS_TO_STOP = 60.0


class Ending(NamedTuple):
    """How a process ended: its exit code, negative for a signal, and whether time had run out."""

    exitcode: int
    timed_out: bool

    def __str__(self) -> str:
        if self.exitcode >= 0:
            return f"exit code {self.exitcode}"
        known = {one.value: one.name for one in signal.Signals}
        return f"killed by {known.get(-self.exitcode, f'signal {-self.exitcode}')}"


def isolated(
    target: Callable[..., int],
    arguments: tuple[Any, ...],
    *,
    environment: Mapping[str, str],
    console: Path | None,
    seconds: float | None,
) -> Ending:
    """Call `target(*arguments)` in a process of its own; what it returns is its exit code.

    Its output goes behind what stands in `console`, or where ours goes. `environment` is added to
    its environment. After `seconds` it is asked to stop (SIGTERM), and killed when it does not; so
    it is when this process is interrupted, and `KeyboardInterrupt` goes on.
    """
    if multiprocessing.get_start_method(allow_none=True) == "loky":
        # joblib's worker tells its children to start theirs as it was started: they cannot.
        multiprocessing.set_start_method("forkserver", force=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sseg_nase.run"])
    process = context.Process(
        target=_begin, args=(target, arguments, dict(environment), console), daemon=False
    )
    process.start()
    try:
        process.join(seconds)
    except BaseException:
        _stop(process)
        raise
    timed_out = process.exitcode is None
    if timed_out:
        _stop(process)
    assert process.exitcode is not None
    return Ending(process.exitcode, timed_out)


def _begin(
    target: Callable[..., int],
    arguments: tuple[Any, ...],
    environment: Mapping[str, str],
    console: Path | None,
) -> None:
    os.setsid()  # Ctrl-C in the terminal goes to the sweep, which asks its jobs to stop
    os.environ.update(environment)
    if console is not None:
        with console.open("ab") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        guard_output()
    sys.exit(target(*arguments))


def _stop(process: Any) -> None:
    process.terminate()
    try:
        process.join(SECONDS_TO_STOP)
    finally:  # also at a second Ctrl-C
        if process.exitcode is None:
            process.kill()
            process.join()
