"""What a report consists of, said once and written as Markdown, as HTML and as LaTeX.

A text is a string, or a tuple of strings of which some are `Bold` or `Code`. None of them is
markup: the templates escape what they are given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

if TYPE_CHECKING:
    import pandas as pd

NOTHING = "–"
LEFT, CENTRE, RIGHT = "left", "centre", "right"


class Bold(str):
    """Text that stands out."""


class Code(str):
    """Text as it is typed, or as it stands in a file."""


Text = Union[str, tuple[str, ...]]
Row = Mapping[str, Any]


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
class Column:
    """A column of a table: what heads it, how it shows a row of the data, and its alignment."""

    name: str
    show: Callable[[Row], Text]
    align: str = RIGHT


@dataclass(frozen=True, eq=False)
class Table:
    """A table: the data, a row per line and unformatted, and the columns that show it.

    `caption`, `notes` and `rules` are for papers: what stands above and below, and the numbers of
    the lines that a rule stands above.
    """

    frame: pd.DataFrame
    columns: Sequence[Column]
    caption: str = ""
    notes: Sequence[str] = ()
    rules: Sequence[int] = ()

    @classmethod
    def of(
        cls,
        header: Sequence[str],
        align: Sequence[str],
        lines: Sequence[Sequence[Text]],
        caption: str = "",
        notes: Sequence[str] = (),
        rules: Sequence[int] = (),
    ) -> Table:
        """A table of texts; `align` has `LEFT`, `CENTRE` or `RIGHT` per column."""
        names = [str(number) for number in range(len(header))]
        shown = zip(header, names, align, strict=True)
        columns = [Column(name, itemgetter(key), where) for name, key, where in shown]
        rows = [dict(zip(names, line, strict=True)) for line in lines]
        return cls(framed(rows, names), columns, caption, notes, rules)

    @property
    def header(self) -> list[str]:
        """The names of the columns."""
        return [column.name for column in self.columns]

    @property
    def align(self) -> list[str]:
        """`LEFT`, `CENTRE` or `RIGHT` per column."""
        return [column.align for column in self.columns]

    @cached_property
    def lines(self) -> list[list[Text]]:
        """What is shown: formatted once, for all formats."""
        return [[column.show(row) for column in self.columns] for row in rows_of(self.frame)]


@dataclass(frozen=True)
class Listing:
    """A command, or a part of a file."""

    text: str


@dataclass(frozen=True)
class Picture:
    """A figure: its `files` by suffix (png, svg, pdf), or why it is missing.

    `small`: a first look, for the first screen. `width`: in inches, of the drawing.
    """

    title: str
    caption: str
    files: Mapping[str, Path]
    missing: str | None = None
    small: bool = False
    width: float | None = None


Block = Union[Heading, Paragraph, Notice, Items, Facts, Table, Listing, Picture]


@dataclass(frozen=True)
class Document:
    """A title and what stands below it."""

    title: str
    blocks: Sequence[Block]


def framed(rows: Iterable[Row], columns: Sequence[str]) -> pd.DataFrame:
    """Rows as a data frame that keeps every value as it is: counts stay whole, texts marked."""
    import pandas as pd  # here, because it takes half a second

    return pd.DataFrame(list(rows), columns=list(columns), dtype=object)


def rows_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a data frame, each by its columns."""
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def as_csv(frame: pd.DataFrame) -> str:
    """A data frame as CSV, in full precision; empty where something is not known."""
    return str(frame.to_csv(index=False, lineterminator="\n"))


def pieces(text: Text) -> tuple[str, ...]:
    """The parts of a text."""
    return (text,) if isinstance(text, str) else text


def p_value(value: float) -> str:
    """A p-value with three decimals."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
