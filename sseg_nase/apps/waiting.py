"""The process of one command: `python -m sseg_nase.apps.waiting FOLDER`.

It waits until a slot is free, runs the command, passes on that it is to stop, and notes
how it ended. It imports little, since it lasts as long as the command.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sseg_nase.apps.commands import Command
from sseg_nase.errors import STOPPED
from sseg_nase.hardware.slots import gpu_slot, slot_of
from sseg_nase.rundir.lock import held
from sseg_nase.rundir.status import this_process

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(folder: Path) -> int:
    """Run the command of a folder; return its exit code."""
    command = Command(folder)
    for number in STOPPING:
        signal.signal(number, _stop)
    with held(folder):
        command.note(**this_process())
        try:
            code = _placed(command)
        except KeyboardInterrupt:  # while it waited
            code = STOPPED
        command.note(ended=time.time(), exitcode=code, waiting=None)
    return code


def _placed(command: Command) -> int:
    notes = command.notes()
    with ExitStack() as places:
        command.note(waiting=f"as many commands are at work as may be at once: {notes['slots']}")
        places.enter_context(slot_of(command.path.parent / "slots", notes["slots"]))
        environment: dict[str, str] = {}
        if notes["gpus"]:
            environment |= places.enter_context(
                gpu_slot(
                    notes["gpus"],
                    free_gb=None,
                    visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
                    waiting=lambda why: command.note(waiting=why),
                )
            )
        command.note(begun=time.time(), waiting=None)
        return _run(command, environment)


def _run(command: Command, environment: dict[str, str]) -> int:
    with command.console.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "sseg_nase", *command.arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **environment},
        )
    while True:
        try:
            code = process.wait()
            return code if code >= 0 else 128 - code  # as a shell says that a signal ended it
        except KeyboardInterrupt:
            process.terminate()


def _stop(*_: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
