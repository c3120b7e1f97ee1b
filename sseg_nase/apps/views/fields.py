"""A widget for a key, after its type, bounds and choices."""

from __future__ import annotations

import math
import typing
from collections.abc import MutableMapping
from typing import Any

import streamlit as st

from sseg_nase.apps.forms import Raw, shown
from sseg_nase.config.keys import Key

NULL = "null"


def field(key: Key, changed: MutableMapping[str, Any]) -> None:
    """Draw the widget of a key; what differs from its own value stands in `changed` afterwards."""
    value = _drawn(key, changed.get(key.name, key.value))
    if value == key.value and type(value) in (type(key.value), int, float):
        changed.pop(key.name, None)
    else:
        changed[key.name] = value


def _drawn(key: Key, value: Any) -> Any:
    name, said = key.name, _help(key)
    same = f"field {name} {shown(key.value)}"  # other options have other values: another widget
    choices = key.accepted.get("choices")
    if key.kind is bool:
        return st.checkbox(name, bool(value), key=same, help=said)
    if choices and typing.get_origin(key.kind) is list and isinstance(key.value, list):
        kept = value if isinstance(value, list) else key.value
        return st.multiselect(name, list(choices), kept, key=same, help=said)
    if choices and key.kind not in (float,) and typing.get_origin(key.kind) is not dict:
        options = [*choices, *([None] if key.nullable else [])]
        at = options.index(value) if value in options else 0
        return st.selectbox(name, options, at, format_func=_choice, key=same, help=said)
    if key.kind in (int, float) and isinstance(value, int | float):
        return _number(key, value, same, said)
    if key.kind is str:
        return st.text_input(name, str(value or ""), key=same, help=said) or key.value
    before = shown(value) if not isinstance(value, Raw) else value
    typed = st.text_input(name, before, key=same, help=said).strip() or NULL
    return key.value if typed == shown(key.value) else Raw(typed)


def _number(key: Key, value: float, same: str, said: str) -> Any:
    kind: Any = key.kind
    least = key.accepted.get("least", key.accepted.get("above"))
    most = key.accepted.get("most")
    bounds = {"min_value": _bound(kind, least), "max_value": _bound(kind, most)}
    whole = kind is int
    step, form = (
        (1, "%d") if whole else (10.0 ** (math.floor(math.log10(abs(value) or 1)) - 1), "%g")
    )
    typed = st.number_input(
        key.name, value=kind(value), step=step, format=form, key=same, help=said, **bounds
    )
    return kind(typed)


def _bound(kind: Any, bound: float | None) -> Any:
    return None if bound is None else kind(bound)


def _choice(choice: Any) -> str:
    return shown(choice)


def _help(key: Key) -> str:
    """What it is, and what it takes."""
    taken = key.accepted
    bounds = [
        f"at least {taken['least']:g}" if "least" in taken else "",
        f"above {taken['above']:g}" if "above" in taken else "",
        f"at most {taken['most']:g}" if "most" in taken else "",
    ]
    said = [
        key.comment,
        str(taken.get("path") or taken.get("text") or "").rstrip(","),
        ", ".join(filter(None, bounds)),
        f"keys: {', '.join(taken['keys'])}" if "keys" in taken else "",
        "null is possible" if key.nullable else "",
        f"usually {shown(key.value)}",
    ]
    return "; ".join(filter(None, said))
