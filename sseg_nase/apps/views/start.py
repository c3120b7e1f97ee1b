"""Start a run, a sweep, a search or any other command: options, keys, and the command line."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from sseg_nase.apps import forms
from sseg_nase.apps.commands import line
from sseg_nase.apps.serving import Settings
from sseg_nase.apps.views.fields import field
from sseg_nase.apps.views.parts import launch
from sseg_nase.config.conf_files import groups
from sseg_nase.config.keys import Key, first_comment
from sseg_nase.config.schema import INSPECTIONS
from sseg_nase.errors import UserError

SWEPT = ("pipeline", "evaluate")  # tasks that are jobs of a sweep
FIRST = ("experiment", "ablation", "dataset", "debug")  # groups that are chosen most
GENERAL = "general"
MOST_FOUND = 40
MOST_JOBS = 50
PLACES = ("output_dir", "data_dir", "cache_dir")


def show(settings: Settings) -> None:
    """Draw the view. In the address: `with`, overrides to begin with; `several`: of a sweep."""
    st.title("Start")
    known = groups(*map(Path, settings.config_dirs))
    given = _given(known)
    tasks = [name for name in known["task"] if name not in (*INSPECTIONS, "pipeline")]
    tasks = ["pipeline", *tasks, "report"]
    task = st.selectbox(
        "Task", tasks, tasks.index(given.get("task", "pipeline")), help="What is to be done"
    )
    st.caption(first_comment("task", task))
    several = task in SWEPT and st.toggle(
        "A sweep: every combination of several options or values",
        value="several" in st.query_params,
        key="several",
    )
    choices: dict[str, Sequence[str]] = {} if task == "pipeline" else {"task": [task]}
    choices |= _choices(known, given, several)
    changed: MutableMapping[str, Any] = st.session_state.setdefault("changed", {})
    try:
        keys = forms.keys(forms.Wanted(choices), settings.config_dirs)
    except UserError as error:
        st.error(str(error))
        keys = []
    _keys(keys, changed)
    named = {key.name for key in keys}
    values = {name: value for name, value in changed.items() if name in named}
    further = st.text_area(
        "Further overrides, one a line" + (", such as seed=0,1,2" if several else ""),
        "\n".join(text for text in given.values() if "=" in text),
        key=f"further {'|'.join(given.values())}",
    )
    lines = [text.strip() for text in further.splitlines() if text.strip()]
    wanted = forms.Wanted(choices, values, [*_places(settings, keys), *lines], bool(several))
    _start(wanted, settings)


def _given(known: dict[str, tuple[str, ...]]) -> dict[str, str]:
    """Overrides of the address: options by group, and others whole, by their text."""
    found = dict[str, str]()
    for text in st.query_params.get_all("with"):
        group, _, option = text.partition("=")
        if option in known.get(group, ()):
            found[group] = option
        else:
            found[text] = text
    return found


def _choices(
    known: dict[str, tuple[str, ...]], given: dict[str, str], several: bool
) -> dict[str, Sequence[str]]:
    others = [group for group in known if group not in (*FIRST, "task")]
    chosen = _chosen(FIRST, known, given, several)
    with st.expander("Other groups of options", expanded=any(g in given for g in others)):
        return chosen | _chosen(others, known, given, several)


def _chosen(
    names: Sequence[str], known: dict[str, tuple[str, ...]], given: dict[str, str], several: bool
) -> dict[str, Sequence[str]]:
    found: dict[str, Sequence[str]] = {}
    for group, column in zip(names, _columns(len(names)), strict=True):
        with column:
            options, start = known[group], given.get(group)
            if several:
                found[group] = st.multiselect(group, options, start, key=f"several {group}")
                continue
            at = None if start is None else options.index(start)
            one = st.selectbox(
                group, options, at, placeholder="as usual", key=f"one {group} {start}"
            )
            found[group] = [one] if one else []
            if one and group in ("experiment", "ablation", "debug"):
                st.caption(first_comment(group, one))
    return found


def _columns(count: int) -> list[Any]:
    columns = st.columns(4)
    return [columns[number % 4] for number in range(count)]


def _keys(keys: Sequence[Key], changed: MutableMapping[str, Any]) -> None:
    """The keys of one section, or those that are looked for."""
    with st.expander("Keys", expanded=bool(changed)):
        sections = list(dict.fromkeys(key.section or GENERAL for key in keys))
        left, right = st.columns(2)
        section = left.selectbox("Section", sections, placeholder="none", index=None)
        sought = right.text_input("Find a key", placeholder="such as lr, or temperature").strip()
        shown = [key for key in keys if section in (key.section, *([GENERAL] * (not key.section)))]
        if sought:
            shown = [k for k in keys if sought in k.name or sought in k.comment][:MOST_FOUND]
        for key, column in zip(shown, _columns(len(shown)), strict=True):
            with column:
                field(key, changed)
        if changed and st.button("Take all changes of keys back"):
            changed.clear()
            for name in [n for n in st.session_state if str(n).startswith("field ")]:
                del st.session_state[name]
            st.rerun()


def _places(settings: Settings, keys: Sequence[Key]) -> list[str]:
    """The folders that the page was told to use, where a command would take others."""
    told = {f"paths.{name}": getattr(settings, name) for name in PLACES}
    usual = {
        key.name: str(Path(str(key.value)).expanduser().absolute())
        for key in keys
        if key.name in told
    }
    return [forms.written(key, told[key]) for key, place in usual.items() if place != told[key]]


def _start(wanted: forms.Wanted, settings: Settings) -> None:
    st.code(line(wanted.arguments()), language="bash", wrap_lines=True)
    checked = forms.check(wanted, settings.config_dirs)
    if checked.problem:
        st.warning(checked.problem)
    if checked.jobs:
        more = f", … {len(checked.jobs) - MOST_JOBS} more" * (len(checked.jobs) > MOST_JOBS)
        st.caption(f"{len(checked.jobs)} jobs: {', '.join(checked.jobs[:MOST_JOBS])}{more}")
    if st.button("Start", type="primary", disabled=bool(checked.problem), key="start"):
        launch(wanted.arguments(), settings)
