"""The forms that a network can be exported in; each registers itself in a file of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sseg_nase.export.subject import Subject

# Writes the file at a path, checks it and returns its figures. Raises `UserError`.
Writer = Callable[[Subject, Path, int], dict[str, Any]]


@dataclass(frozen=True)
class Format:
    """`suffix` of the file, behind `network`; `write` gets the subject, the path and threads."""

    suffix: str
    write: Writer


FORMATS: dict[str, Format] = {}


def register(name: str, suffix: str) -> Callable[[Writer], Writer]:
    """Make the decorated function the writer of the format `name`."""

    def registered(write: Writer) -> Writer:
        FORMATS[name] = Format(suffix, write)
        return write

    return registered
