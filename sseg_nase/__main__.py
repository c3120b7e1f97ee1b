"""The command `sseg-nase`, also `python -m sseg_nase`: its process, then its command line."""

from __future__ import annotations

import io
import os
import sys

from sseg_nase.hardware.allocator import keep_memory
from sseg_nase.home import find_home
from sseg_nase.training.interruption import from_the_start

# Tasks that inspect something, and train nothing.
SWEEP = {"-m", "--multirun"}
HELP = {"-h", "--help"}
FLAGS = {*HELP, "-V", "--version", "--hydra-help", "-c", "--cfg", "-i", "--info"}
LOOKING = {*FLAGS, "task=status", "task=report", "task=deliver", "sweep.dry_run=true"}


def command() -> None:
    """Run the command line, in a process whose memory is set up for training.

    The process starts a second time for that, so it is done before anything large is imported.
    """
    from_the_start()
    stand_in_for_closed_streams()
    if (note := find_home()) is not None:
        print(f"sseg-nase: {note}", file=sys.stderr, flush=True)
    if _helped():
        return
    if len(sys.argv) > 1 and LOOKING.isdisjoint(sys.argv):
        keep_memory()
        _say_that_it_takes_a_while()
    _print_what_can_be_printed()
    from sseg_nase.cli import main

    main()


def _helped() -> bool:
    """Show the help where that is all that is asked for: without Hydra, which takes its time."""
    if sys.argv[1:] and HELP.isdisjoint(sys.argv):
        return False
    from sseg_nase.config.help import asked_for, help_text  # here: most commands ask for none
    from sseg_nase.errors import UserError
    from sseg_nase.streams import unbroken_output

    further = asked_for(sys.argv[1:])
    if further is None:
        return False
    _print_what_can_be_printed()
    with unbroken_output():
        try:
            print(help_text(*further), flush=True)
        except UserError:  # the command line says it, and ends with its code
            return False
    return True


def _say_that_it_takes_a_while() -> None:
    """To load torch takes seconds, in which someone at a terminal would press Ctrl-C.

    What is piped is read later, and a sweep loads torch in its jobs only.
    """
    if sys.stderr.isatty() and SWEEP.isdisjoint(sys.argv):
        print("sseg-nase: loading …", file=sys.stderr, flush=True)


def stand_in_for_closed_streams() -> None:
    """Open the null device for standard streams that are closed, as by `2>&-`.

    Before any other file takes their numbers: what libraries print would be written into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
        if getattr(sys, name) is None:
            mode = "w" if number else "r"
            stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)


def _print_what_can_be_printed() -> None:
    """A terminal or file that is not UTF-8 gets ? for a letter it lacks; no run ends by that."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


if __name__ == "__main__":
    command()
