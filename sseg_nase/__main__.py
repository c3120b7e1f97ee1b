"""The command `sseg-nase`, also `python -m sseg_nase`: its process, then its command line."""

from __future__ import annotations

import io
import sys

from sseg_nase.hardware.allocator import keep_memory

# What looks at something, and trains nothing.
LOOKING = {"-h", "--help", "-c", "--cfg", "--info", "task=status", "task=report", "task=deliver"}


def command() -> None:
    """Run the command line, in a process whose memory is set up for training.

    The process starts a second time for that, so it is done before anything large is imported.
    """
    if LOOKING.isdisjoint(sys.argv):
        keep_memory()
    from sseg_nase.cli import main

    _print_what_can_be_printed()
    main()


def _print_what_can_be_printed() -> None:
    """A terminal or file that is not UTF-8 gets ? for a letter it lacks; no run ends by that."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


if __name__ == "__main__":
    command()
