"""The command `sseg-nase`, also `python -m sseg_nase`: its process, then its command line."""

from __future__ import annotations

import sys

from sseg_nase.hardware.allocator import keep_memory
from sseg_nase.home import find_home
from sseg_nase.training.interruption import from_the_start

# What looks at something, and trains nothing.
FLAGS = {"-h", "--help", "-V", "--version", "--hydra-help", "-c", "--cfg", "-i", "--info"}
LOOKING = {*FLAGS, "task=status", "task=report", "task=deliver", "sweep.dry_run=true"}


def command() -> None:
    """Run the command line, in a process whose memory is set up for training.

    The process starts a second time for that, so it is done before anything large is imported.
    """
    from_the_start()
    if (note := find_home()) is not None:
        print(f"sseg-nase: {note}", file=sys.stderr, flush=True)
    if len(sys.argv) > 1 and LOOKING.isdisjoint(sys.argv):
        keep_memory()
    from sseg_nase.cli import main

    main()


if __name__ == "__main__":
    command()
