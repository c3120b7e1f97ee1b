"""What several views draw."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import streamlit as st

from sseg_nase.apps.commands import Command, line, start
from sseg_nase.apps.serving import Settings
from sseg_nase.errors import UserError
from sseg_nase.hardware.slots import Gpu, gpus

COLOURS = {"FINISHED": "green", "FAILED": "red", "INTERRUPTED": "orange", "RUNNING": "blue"}
SECONDS_BETWEEN_POLLS = 2.0
MOST_AT_ONCE = 64
KEPT = ("token", "view")  # of the address, whatever is looked at


def go(view: str, **about: str | Sequence[str]) -> NoReturn:
    """Show another view; what it is about stands in the address, for a reload to show it again."""
    for key in list(st.query_params):
        if key not in KEPT:
            del st.query_params[key]
    st.query_params["view"] = view
    for key, value in about.items():
        st.query_params[key] = value if isinstance(value, str) else list(value)
    st.rerun()
    raise AssertionError("a rerun does not return")


@contextmanager
def refused() -> Iterator[None]:
    """Show the user's mistakes as such."""
    try:
        yield
    except UserError as error:
        st.error(str(error))


def uploads(settings: Settings) -> Path:
    """Return the folder of what was uploaded."""
    return Path(settings.data_dir) / "uploads"


def most_bytes(settings: Settings) -> int:
    """Return the most that an upload may have, packed or unpacked."""
    return round(settings.upload_gb * 10**9)


def state_in_colour(state: str) -> str:
    """Return a state as Markdown."""
    return f":{COLOURS.get(state, 'gray')}[**{state}**]"


def when(seconds: float) -> str:
    """Return a time for people, in this machine's time zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds > 0 else ""


def places(settings: Settings) -> None:
    """Let the user say, beside every view, how many commands may be at work at once."""
    usual = max(1, (os.cpu_count() or 2) // 2)
    st.sidebar.number_input("Commands at once", 1, MOST_AT_ONCE, usual, key="slots")
    if found := devices():
        free = "wait for free ones, and see no others; 0: see all of them and wait for none"
        st.sidebar.number_input("GPUs for each", 0, len(found), 1, key="gpus", help=free)


@st.cache_data(ttl=10, show_spinner=False)
def devices() -> list[Gpu]:
    """Return the GPUs of this machine."""
    return gpus()


def launch(arguments: Sequence[str], settings: Settings, *, predicts: bool = False) -> NoReturn:
    """Start a command, and show how it goes."""
    folders = [f"--config-dir={folder}" for folder in settings.config_dirs]
    command = start(
        [*folders, *arguments],
        Path(settings.output_dir),
        slots=int(st.session_state.get("slots", 1)),
        gpus=int(st.session_state.get("gpus", 0)),
        predicts=predicts,
    )
    go("Work", command=str(command.path.relative_to(settings.output_dir)))


def offer(
    label: str, arguments: Sequence[str], settings: Settings, *, predicts: bool = False
) -> None:
    """A button that starts a command, with the command line beneath it."""
    if st.button(label, key=f"offer {label} {line(arguments)}"):
        launch(arguments, settings, predicts=predicts)
    st.code(line(arguments), language="bash", wrap_lines=True)


def live(draw: Callable[[], bool]) -> None:
    """Redraw a part of the page while `draw` returns True; then rerun the whole page."""

    def part() -> None:
        if not draw():
            st.rerun()

    st.fragment(part, run_every=SECONDS_BETWEEN_POLLS)()


def output_of(command: Command) -> None:
    """Show the end of what a command has printed."""
    if text := command.output():
        st.code(text, language="text", height=300)  # tables do not wrap
