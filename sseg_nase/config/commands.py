"""Commands and overrides as text that the shell and Hydra read back as what was meant.

Three readers stand between what is printed and the value: the shell, Hydra's grammar of overrides,
and OmegaConf, which replaces `${...}`. Every message and file that shows a command takes it from
here.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Union

PROGRAM = "sseg-nase"
Value = Union[str, Path, int, float, bool, None]  # one value; a list has several

# What Hydra takes for a string without quotes, and for that very string.
_PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_/.@+%:-]*")
_OTHER_TYPES = {"null", "true", "false", "nan", "inf"}


def command(*overrides: str, **values: Value | Sequence[Value]) -> str:
    """Return the command line of the program, ready to be pasted into a POSIX shell.

    `values` are keys with what they are to be; a `Path` is made absolute, because the command may
    be pasted elsewhere. `overrides` are Hydra's already. A dotted key goes into `overrides`, by
    `override`.
    """
    return shlex.join([PROGRAM, *overrides, *(override(k, v) for k, v in values.items())])


def argument(key: str, value: Value | Sequence[Value]) -> str:
    """Return `key=value` ready to be pasted into a command of the shell."""
    return shlex.quote(override(key, value))


def override(key: str, value: Value | Sequence[Value] | Mapping[str, Any]) -> str:
    """Return `key=value` as Hydra and OmegaConf read it back, not yet quoted for the shell."""
    return f"{key}={_written(value)}"


def _written(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_written(each)}" for key, each in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{','.join(map(_written, value))}]"
    return _element(value)


def quoted(text: str) -> str:
    """Return any text in quotes, so that Hydra and OmegaConf read it as this very text.

    Hydra takes the backslashes before a quote for escapes, OmegaConf those before `${`.
    """
    return '"' + re.sub(r'(\\*)("|\Z)', _escape, literal(text)) + '"'


def literal(tree: Any) -> Any:
    """Return a tree of values whose texts OmegaConf takes as they are, `${` included."""
    if isinstance(tree, Mapping):
        return {key: literal(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [literal(value) for value in tree]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", tree) if isinstance(tree, str) else tree


def _escape(found: re.Match[str]) -> str:
    backslashes, quote = found.groups()
    return backslashes * 2 + (r"\"" if quote else "")


def _element(value: Value) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    text = os.path.abspath(value) if isinstance(value, Path) else value
    plain = _PLAIN.fullmatch(text) and text.lower() not in _OTHER_TYPES
    return text if plain else quoted(text)
