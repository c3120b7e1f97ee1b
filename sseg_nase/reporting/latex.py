r"""Tables for papers: LaTeX with booktabs that a hand can edit.

Columns of long words are broken into lines; a table that is still too wide is shrunk to the text
by TeX, which knows how wide it is, and one that is longer than a page is a longtable. `preview`
makes a page of the tables that `pdflatex` sets as it is; `PACKAGES` are all it needs.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment

from sseg_nase.reporting.document import (
    CENTRE,
    LEFT,
    RIGHT,
    Bold,
    Code,
    Table,
    Text,
    pieces,
)
from sseg_nase.reporting.rendering import Ready, environment

PACKAGES = ("array", "booktabs", "graphicx", "longtable", "amssymb")
CHECK = "✓"
MOST_LINES = 40  # of a table that floats: what a page holds beside caption and notes
MOST_WORDS = 32  # letters of a column of words that is not broken into lines
MOST_BROKEN = 24  # letters beside each other in one that is
TEXT = 75  # letters beside each other in the text, about
WHOLE = 60  # of them in a caption or a note, and in all columns that are broken
LONGEST_HEAD = 10  # letters of a column's name on one line
LONGEST_PART = 10  # letters between two places where a long name may be broken
ALIGNED = {LEFT: "l", CENTRE: "c", RIGHT: "r"}

_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": "$<$", ">": "$>$", "|": r"$\vert$", '"': "''", "`": r"\`{}",
    "±": r"$\pm$", "–": "--", "—": "---", "−": "$-$", "×": r"$\times$", "·": r"$\cdot$",
    "√": r"$\surd$", "→": r"$\to$", "≤": r"$\le$", "≥": r"$\ge$", "≈": r"$\approx$",
    "†": r"$\dagger$", "Δ": r"$\Delta$", "α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$",
    "λ": r"$\lambda$", "μ": r"$\mu$", "µ": r"$\mu$", "τ": r"$\tau$", "σ": r"$\sigma$",
    "“": "``", "”": "''", "‘": "`", "’": "'", "…": r"\dots{}", "\u00a0": "~",
    "ß": r"\ss{}", "ø": r"\o{}", "Ø": r"\O{}", "æ": r"\ae{}", "Æ": r"\AE{}", "œ": r"\oe{}",
    "Œ": r"\OE{}", "ł": r"\l{}", "Ł": r"\L{}", "ı": r"\i{}", CHECK: r"$\checkmark$",
}  # fmt: skip
_ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0308": '"', "\u030a": "r ",
    "\u030c": "v ", "\u0304": "=", "\u0306": "u ", "\u0307": ".", "\u030b": "H ", "\u0327": "c ",
}  # fmt: skip
# Where a name may be broken, which TeX does not know by itself; better than a line too long.
_AFTER = re.compile(r"([/_=,:+.\-\])])(?=\S)")
_BREAK = r"\allowbreak "


def as_latex(tables: Sequence[Table]) -> str:
    """The tables as a fragment, to be included in a document that has `PACKAGES`."""
    parts = [_table(table) for table in tables]
    packages = ",".join(PACKAGES)
    return _templates().get_template("tables.tex").render(tables=parts, packages=packages)


def preview(fragments: Sequence[str]) -> str:
    """A document that shows the fragments, by their files' names; `pdflatex` sets it as it is."""
    names = [Ready(name) for name in fragments]
    return _templates().get_template("preview.tex").render(packages=PACKAGES, fragments=names)


def in_latex(text: Text) -> str:
    """A text, for LaTeX; a letter that its fonts lack becomes its number, [U+4E2D]."""
    return "".join(_marked(piece, _plain(piece)) for piece in pieces(text))


@cache
def _templates() -> Environment:
    return environment(
        in_latex,
        {},
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="<<",
        variable_end_string=">>",
        comment_start_string="<#",
        comment_end_string="#>",
    )


# -- one table ---------------------------------------------------------------------------------


def _table(table: Table) -> dict[str, Any]:
    """What the template sets."""
    long = [
        align == LEFT and any(_length(line[n]) > MOST_WORDS for line in table.lines)
        for n, align in enumerate(table.align)
    ]
    letters = min(MOST_BROKEN, WHOLE // max(1, sum(long)))
    widths = [letters if one else None for one in long]

    def height(line: Sequence[Text]) -> int:
        pairs = zip(line, widths, strict=True)
        return max([1, *(math.ceil(1.3 * _length(cell) / w) for cell, w in pairs if w)])

    return {
        "caption": _cell(table.caption, WHOLE),
        "columns": Ready("".join(map(_column, table.align, widths))),
        "head": _row(map(_head, table.header, table.align, widths)),
        "rows": [_row(map(_cell, line, widths)) for line in table.lines],
        "rules": set(table.rules),
        "notes": Ready(" ".join(_cell(note, WHOLE) for note in table.notes)),
        "long": sum(map(height, table.lines)) > MOST_LINES,
    }


def _row(cells: Iterable[str]) -> Ready:
    return Ready(" & ".join(cells))


def _column(align: str, width: int | None) -> str:
    """A column as `tabular` is told of it."""
    if width is None:
        return ALIGNED[align]
    return rf">{{\raggedright\arraybackslash}}p{{{width / TEXT:.2f}\linewidth}}"


def _head(name: str, align: str, width: int | None) -> str:
    """The name of a column; a long one on two lines about as long as each other."""
    words = name.split(" ")
    if width or len(name) <= LONGEST_HEAD or len(words) == 1:
        return _cell(name, width)
    ways = [(" ".join(words[:n]), " ".join(words[n:])) for n in range(1, len(words))]
    inner = r"\\".join(map(in_latex, min(ways, key=lambda way: max(map(len, way)))))
    return rf"\begin{{tabular}}[b]{{@{{}}{ALIGNED[align]}@{{}}}}{inner}\end{{tabular}}"


def _length(text: Text) -> int:
    return sum(map(len, pieces(text)))


# -- text --------------------------------------------------------------------------------------


def _cell(text: Text, width: int | None) -> Ready:
    """Text that stays on one line, or is broken into lines of `width` letters."""
    if width is None:
        return Ready(in_latex(text))
    return Ready("".join(_marked(piece, _breakable(piece, width)) for piece in pieces(text)))


def _marked(piece: str, inner: str) -> str:
    if isinstance(piece, Bold):
        return rf"\textbf{{{inner}}}"
    return rf"\texttt{{{inner}}}" if isinstance(piece, Code) else inner


def _plain(piece: str) -> str:
    signed = re.sub(r"^-(?=\d)", "−", piece)
    return "".join(map(_letter, unicodedata.normalize("NFC", signed)))


def _breakable(piece: str, width: int) -> str:
    """With places where names that are longer than a line may be broken; other words stay whole."""
    words = unicodedata.normalize("NFC", piece).split(" ")
    return " ".join(
        _plain(word) if len(word) <= width else _BREAK.join(_word_parts(word)) for word in words
    )


def _word_parts(word: str) -> Iterator[str]:
    for part in _AFTER.sub("\\1\0", word).split("\0"):
        yield from (
            _plain(part[at : at + LONGEST_PART]) for at in range(0, len(part), LONGEST_PART)
        )


def _letter(letter: str) -> str:
    if letter in _SPECIAL:
        return _SPECIAL[letter]
    if letter.isascii():
        return letter if letter.isprintable() else " "
    base, *marks = list(unicodedata.normalize("NFD", letter))
    if len(marks) == 1 and marks[0] in _ACCENTS and base.isascii():
        dotless = {"i": r"\i", "j": r"\j"}.get(base, base)
        return rf"{{\{_ACCENTS[marks[0]]}{{{dotless}}}}}"
    return f"[U+{ord(letter):04X}]{_BREAK}"
