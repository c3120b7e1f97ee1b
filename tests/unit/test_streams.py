"""Standard streams that are closed, or whose reader goes away, cost no run anything."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import sseg_nase
from sseg_nase.streams import Unbroken

SETUP = "from sseg_nase import __main__ as m; m.stand_in_for_closed_streams()\n"


def python(program: str, **options: object) -> int:
    environment = {**os.environ, "PYTHONPATH": str(Path(sseg_nase.__file__).parents[1])}
    command = [sys.executable, "-c", SETUP + program]
    return subprocess.run(command, env=environment, check=False, **options).returncode  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize("closed", [[0], [1], [2], [1, 2], [0, 1, 2]])
def test_no_file_takes_the_place_of_a_stream_that_is_closed(closed: list[int]) -> None:
    def close() -> None:
        for number in closed:
            os.close(number)

    program = (
        "import os, sys; file = open('file', 'w'); assert file.fileno() > 2; "
        "print('out'); print('error', file=sys.stderr, flush=True); sys.stderr.isatty(); "
        "os.write(1, b'x'); os.write(2, b'x'); file.write('ours')"
    )
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    assert python(program, preexec_fn=close, **quiet) == 0
    assert Path("file").read_text() == "ours"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_what_nobody_reads_any_more_ends_nothing(stream: str) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    program = (
        "import sys; from rich.console import Console\n"
        "from sseg_nase.streams import unbroken_output\n"
        "with unbroken_output():\n"
        f"  [print(n, file=sys.{stream}, flush=True) for n in range(3)]\n"
        f"  Console(file=sys.{stream}).print('x'); open('done', 'w').close()"
    )
    assert python(program, **{stream: theirs}) == 0
    os.close(theirs)
    assert Path("done").exists()


def _pipe() -> tuple[int, int]:
    ours, theirs = os.pipe()
    return ours, theirs


def _full() -> tuple[int, int]:
    return os.open(os.devnull, os.O_RDONLY), os.open("/dev/full", os.O_WRONLY)


@pytest.mark.parametrize("opened", [_pipe, pty.openpty, _full])
def test_what_takes_nothing_is_written_to_no_more(opened: Callable[[], tuple[int, int]]) -> None:
    ours, theirs = opened()
    os.close(ours)
    with open(theirs, "w", encoding="utf-8") as file:
        stream = Unbroken(file)
        assert stream.write("unheard") == 7
        stream.flush()
        assert stream.write("again") == 5


def test_a_stream_that_was_closed_is_written_to_no_more() -> None:
    with open("log", "w", encoding="ascii") as file:
        stream = Unbroken(file)
        with pytest.raises(UnicodeEncodeError):
            stream.write("é")
    assert stream.write("unheard") == 7
    stream.flush()
