"""What a report consists of, said once and written as Markdown and as HTML.

A text is a string, or a tuple of strings of which some are `Bold` or `Code`. None of them is
markup: whoever writes a document escapes what needs it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Union

NOTHING = "–"
LEFT, CENTRE, RIGHT = "left", "centre", "right"


class Bold(str):
    """Text that stands out."""


class Code(str):
    """Text as it is typed, or as it stands in a file."""


Text = Union[str, tuple[str, ...]]


@dataclass(frozen=True)
class Heading:
    """`level` 2 is a section of the document, 3 and 4 are parts of it."""

    level: int
    text: str


@dataclass(frozen=True)
class Paragraph:
    """A paragraph."""

    text: Text


@dataclass(frozen=True)
class Notice:
    """What the reader must know before going on: a run that has failed, a part that is missing."""

    text: Text


@dataclass(frozen=True)
class Items:
    """A list."""

    items: Sequence[Text]


@dataclass(frozen=True)
class Facts:
    """Names, and what is so called."""

    pairs: Sequence[tuple[str, Text]]


@dataclass(frozen=True)
class Table:
    """`align` has `LEFT`, `CENTRE` or `RIGHT` per column."""

    header: Sequence[str]
    align: Sequence[str]
    lines: Sequence[Sequence[Text]]


@dataclass(frozen=True)
class Listing:
    """A command, or a part of a file."""

    text: str


@dataclass(frozen=True)
class Picture:
    """A figure: its `files` by suffix (png, svg, pdf), or why it is missing."""

    title: str
    caption: str
    files: Mapping[str, Path]
    missing: str | None = None


Block = Union[Heading, Paragraph, Notice, Items, Facts, Table, Listing, Picture]


@dataclass(frozen=True)
class Document:
    """A title and what stands below it."""

    title: str
    blocks: Sequence[Block]


def pieces(text: Text) -> tuple[str, ...]:
    """The parts of a text."""
    return (text,) if isinstance(text, str) else text


def p_value(value: float) -> str:
    """A p-value with three decimals."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
