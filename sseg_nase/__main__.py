"""The command `sseg-nase`, also `python -m sseg_nase`: its process, then its command line."""

from __future__ import annotations

import sys

from sseg_nase.hardware.allocator import keep_memory
from sseg_nase.home import find_home
from sseg_nase.training.interruption import FromTheStart

# What looks at something, and trains nothing.
FLAGS = {"-h", "--help", "-V", "--version", "--hydra-help", "-c", "--cfg", "-i", "--info"}
LOOKING = {*FLAGS, "task=status", "task=report", "task=deliver", "sweep.dry_run=true"}


def command() -> None:
    """Run the command line, in a process whose memory is set up for training.

    The process starts a second time for that, so it is done before anything large is imported.
    """
    signals = FromTheStart()
    signals.install()
    if (note := find_home()) is not None:
        print(f"sseg-nase: {note}", file=sys.stderr, flush=True)
    if len(sys.argv) > 1 and LOOKING.isdisjoint(sys.argv):
        keep_memory()
    from sseg_nase.cli import main

    signals.importing = False
    main()


if __name__ == "__main__":
    command()
