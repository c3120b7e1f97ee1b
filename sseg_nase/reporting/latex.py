r"""Tables for papers: LaTeX with booktabs that fits an article's text without being shrunk.

A table that is too wide is set in parts: first its columns of words are broken into lines, then
its columns of figures are spread over several tables. `preview` makes a page of them that
`pdflatex` sets as it is; the packages of `PACKAGES` are all it needs.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product

from sseg_nase.reporting.document import CENTRE, LEFT, Bold, Code, Text, pieces

PACKAGES = ("array", "booktabs", "amssymb")
CHECK = "✓"
TEXT_WIDTH = 345.0  # points, of LaTeX's article with letters of 10 points
COLUMN_SEPARATION = 4.0  # points, on both sides of a column
NARROWEST = 54.0  # points, of a column of words that is broken into lines
MOST_LINES = 40  # of a table: what a page holds beside caption and notes
LONGEST_PART = 10  # letters between two places where a long name may be broken

_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": "$<$", ">": "$>$", "|": r"$\vert$", '"': "''", "`": r"\`{}",
    "±": r"$\pm$", "–": "--", "—": "---", "−": "$-$", "×": r"$\times$", "·": r"$\cdot$",
    "√": r"$\surd$", "→": r"$\to$", "≤": r"$\le$", "≥": r"$\ge$", "≈": r"$\approx$",
    "†": r"\dag{}", "Δ": r"$\Delta$", "α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$",
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
_BREAK, _LAST_RESORT = r"\penalty50 ", r"\penalty5000 "
# Widths in points of Computer Modern's letters of 8 points; of some, a little more than that.
_WIDTHS = {
    "fijl.,:;!'`[]": 2.6, "rstI()-_ †": 3.4, "0123456789acego/*–": 4.25, "mwM%#": 7.8, "W": 8.8,
    "+=<>±×→✓&@": 6.7,
}  # fmt: skip
_USUAL_WIDTH, _CAPITAL_WIDTH, _BOLD = 4.75, 6.7, 1.16
_FILLED = 1.3  # of a broken line's width, because words end before it does
_OF_LETTER = {letter: width for letters, width in _WIDTHS.items() for letter in letters}


@dataclass(frozen=True)
class LatexTable:
    """`align` has `LEFT` per column of words, `RIGHT` or `CENTRE` per column of figures.

    `rules`: the numbers of the lines that a rule stands above. `notes` stand below the table.
    """

    caption: str
    header: Sequence[str]
    align: Sequence[str]
    lines: Sequence[Sequence[Text]]
    notes: Sequence[str] = ()
    rules: Sequence[int] = ()


def as_latex(tables: Sequence[LatexTable]) -> str:
    """The tables as a fragment, to be included in a document that has `PACKAGES`."""
    needed = ",".join(PACKAGES)
    parts = [rf"% Needs \usepackage{{{needed}}}; at least {TEXT_WIDTH:.0f}pt wide."]
    parts += [part for table in tables for part in _fitting(table)]
    return "\n\n".join(parts) + "\n"


def preview(fragments: Sequence[str]) -> str:
    """A document that shows the fragments, by their files' names; `pdflatex` sets it as it is."""
    packages = "\n".join(rf"\usepackage{{{name}}}" for name in PACKAGES)
    inputs = "\n\\clearpage\n".join(rf"\input{{{name}}}" for name in fragments)
    body = f"\\begin{{document}}\n{inputs}\n\\end{{document}}"
    return f"\\documentclass{{article}}\n{packages}\n{body}\n"


def in_latex(text: Text) -> str:
    """A text, for LaTeX; a letter that its fonts lack becomes its number, [U+4E2D]."""
    return "".join(_piece(piece, _plain(piece)) for piece in pieces(text))


# -- one table ---------------------------------------------------------------------------------


def _fitting(table: LatexTable) -> Iterator[str]:
    """The table, in as many parts as it takes."""
    columns = range(len(table.align))
    repeated = [n for n in columns if n == 0 or table.align[n] == LEFT]
    widths = [_column_width(table, n) for n in columns]
    groups = _groups([n for n in columns if n not in repeated], repeated, widths)
    groups = [sorted([*repeated, *group]) for group in groups]
    narrowed = [_broken(table, columns, widths) for columns in groups]
    chunks = _chunks(table, narrowed)
    count = len(groups) * len(chunks)
    for number, (chunk, group) in enumerate(product(chunks, range(len(groups))), start=1):
        part = f" (part {number} of {count})" if count > 1 else ""
        yield _environment(table, chunk, groups[group], narrowed[group], part)


def _groups(
    figures: Sequence[int], repeated: Sequence[int], widths: Sequence[float]
) -> list[list[int]]:
    """The columns of figures that stand in one table, part by part, beside those in every part."""
    room = TEXT_WIDTH - sum(min(widths[n], NARROWEST) + _between() for n in repeated)
    groups: list[list[int]] = [[]]
    used = 0.0
    for n in figures:
        width = widths[n] + _between()
        if groups[-1] and used + width > room:
            groups.append([])
            used = 0.0
        groups[-1].append(n)
        used += width
    return groups


def _chunks(table: LatexTable, narrowed: Sequence[Mapping[int, float]]) -> list[range]:
    """The numbers of the lines that stand on one page, where columns are as narrow as that."""
    chunks: list[range] = []
    first = height = 0
    for number, line in enumerate(table.lines):
        lines = max(
            [
                math.ceil(_FILLED * _text_width(line[n]) / w)
                for of in narrowed
                for n, w in of.items()
            ],
            default=1,
        )
        if height and height + lines > MOST_LINES:
            chunks.append(range(first, number))
            first, height = number, 0
        height += lines
    return [*chunks, range(first, len(table.lines))]


def _environment(
    table: LatexTable, lines: range, columns: Sequence[int], broken: Mapping[int, float], part: str
) -> str:
    specification = "".join(_specification(table.align[n], broken.get(n)) for n in columns)
    rows = []
    for number in lines:
        if number in table.rules and number != lines.start:
            rows.append(r"\midrule")
        cells = [_cell(table.lines[number][n], broken.get(n)) for n in columns]
        rows.append(" & ".join(cells) + r" \\")
    note = " ".join(_cell(note, TEXT_WIDTH) for note in table.notes)
    return "\n".join(
        [
            r"\begin{table}[htbp]",
            r"\centering\footnotesize",
            rf"\setlength{{\tabcolsep}}{{{COLUMN_SEPARATION:g}pt}}",
            rf"\caption{{\raggedright {_cell(table.caption + part, TEXT_WIDTH)}}}",
            r"\vspace{3pt}",
            rf"\begin{{tabular}}{{@{{}}{specification}@{{}}}}",
            r"\toprule",
            " & ".join(_head(table.header[n], table.align[n], broken.get(n)) for n in columns)
            + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            *([rf"\par\smallskip\parbox{{\linewidth}}{{\raggedright {note}}}"] if note else []),
            r"\end{table}",
        ]
    )


def _broken(table: LatexTable, columns: Sequence[int], widths: Sequence[float]) -> dict[int, float]:
    """The columns of words that are broken into lines, and their widths in points.

    What fits keeps its own width; the others share what is left.
    """
    left = TEXT_WIDTH - sum(_between() for _ in columns)
    left -= sum(widths[n] for n in columns if table.align[n] != LEFT)
    words = sorted((n for n in columns if table.align[n] == LEFT), key=lambda n: widths[n])
    found: dict[int, float] = {}
    for index, n in enumerate(words):
        share = left / (len(words) - index)
        if widths[n] > share:
            found[n] = share
        left -= min(widths[n], share)
    return found


def _specification(align: str, width: float | None) -> str:
    if width is not None:
        return rf">{{\raggedright\arraybackslash}}p{{{width:.1f}pt}}"
    return {LEFT: "l", CENTRE: "c"}.get(align, "r")


def _head(name: str, align: str, width: float | None) -> str:
    """The name of a column; on lines of its own where it is wider than what stands below."""
    lines = _header_lines(name)
    if width is not None:
        return _cell(name, width)
    if len(lines) == 1:
        return in_latex(name)
    inner = r"\\".join(map(in_latex, lines))
    return rf"\begin{{tabular}}[b]{{@{{}}{_specification(align, None)}@{{}}}}{inner}\end{{tabular}}"


def _header_lines(name: str) -> list[str]:
    """A name on one line, or on two about as long as each other."""
    words = name.split(" ")
    ways = [(" ".join(words[:n]), " ".join(words[n:])) for n in range(1, len(words))]
    if _width(name) <= 40 or not ways:
        return [name]
    return list(min(ways, key=lambda way: max(map(_width, way))))


def _cell(text: Text, width: float | None) -> str:
    """Text that stays on one line, or is broken into lines of `width` points."""
    if width is None:
        return in_latex(text)
    inner = (_piece(piece, _breakable(piece, width)) for piece in pieces(text))
    return r"\hspace{0pt}" + "".join(inner)


# -- widths ------------------------------------------------------------------------------------


def _between() -> float:
    return 2 * COLUMN_SEPARATION


def _column_width(table: LatexTable, n: int) -> float:
    cells = [_text_width(line[n]) for line in table.lines]
    return max([*cells, *map(_width, _header_lines(table.header[n]))])


def _text_width(text: Text) -> float:
    return sum(_width(piece) * (_BOLD if isinstance(piece, Bold) else 1) for piece in pieces(text))


def _width(text: str) -> float:
    return sum(map(_letter_width, text))


def _letter_width(letter: str) -> float:
    if letter in _OF_LETTER:
        return _OF_LETTER[letter]
    if (shown := _letter(letter)).startswith("[U+"):
        return _USUAL_WIDTH * len(shown.partition("]")[0])
    return _CAPITAL_WIDTH if letter.isupper() else _USUAL_WIDTH


# -- text --------------------------------------------------------------------------------------


def _piece(piece: str, inner: str) -> str:
    if isinstance(piece, Bold):
        return rf"\textbf{{{inner}}}"
    return rf"\texttt{{{inner}}}" if isinstance(piece, Code) else inner


def _plain(piece: str) -> str:
    signed = re.sub(r"^-(?=\d)", "−", piece)
    return "".join(map(_letter, unicodedata.normalize("NFC", signed)))


def _breakable(piece: str, width: float) -> str:
    """With places where names that are wider than a line may be broken; other words stay whole."""
    words = unicodedata.normalize("NFC", piece).split(" ")
    return " ".join(
        _plain(word)
        if _width(word) * _BOLD <= width
        else _BREAK.join(_last_resort(part) for part in _AFTER.sub("\\1\0", word).split("\0"))
        for word in words
    )


def _last_resort(part: str) -> str:
    rest = iter(part)
    slices = iter(lambda: "".join(islice(rest, LONGEST_PART)), "")
    return _LAST_RESORT.join(map(_plain, slices))


def _letter(letter: str) -> str:
    if letter in _SPECIAL:
        return _SPECIAL[letter]
    if letter.isascii():
        return letter if letter.isprintable() else " "
    base, *marks = list(unicodedata.normalize("NFD", letter))
    if len(marks) == 1 and marks[0] in _ACCENTS and base.isascii():
        dotless = {"i": r"\i", "j": r"\j"}.get(base, base)
        return rf"{{\{_ACCENTS[marks[0]]}{{{dotless}}}}}"
    return f"[U+{ord(letter):04X}]{_LAST_RESORT}"
