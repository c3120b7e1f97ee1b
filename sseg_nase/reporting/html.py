"""Documents as HTML in one file that needs nothing else: no script, no other file, no network."""

from __future__ import annotations

import base64
import itertools
import re
from collections.abc import Sequence
from functools import cache

from jinja2 import Template
from markupsafe import Markup

from sseg_nase.reporting.document import (
    CENTRE,
    LEFT,
    RIGHT,
    Bold,
    Code,
    Document,
    Heading,
    Picture,
    Table,
    Text,
    pieces,
)
from sseg_nase.reporting.rendering import environment

# Drawn lines are sharp at every size, but for many of them pixels are smaller.
LARGEST_SVG = 400_000
CLASSES = {LEFT: "", CENTRE: "mark", RIGHT: "figure"}
BROAD = 8  # columns of a table that may be wider than the text
# Columns and unbroken letters that a phone shows side by side; else one below the other.
NARROW, LETTERS = 3, 34
SHORT = 12  # lines of a table that a printed page should not break
REM_PER_INCH = 54 / 6.9  # letters look alike in all figures, whose widths differ
MEDIA = {"svg": "image/svg+xml", "png": "image/png"}
# A browser that is told so loads nothing, whatever stands in the text.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def as_html(document: Document) -> str:
    """The document with its figures in it."""
    headings = [block for block in document.blocks if isinstance(block, Heading)]
    names = dict(zip(map(id, headings), _names([one.text for one in headings]), strict=True))
    return _page().render(
        title=document.title,
        policy=POLICY,
        rem=REM_PER_INCH,
        blocks=document.blocks,
        sections=[(names[id(one)], one.text) for one in headings if one.level == 2],
        name=lambda block: names[id(block)],
    )


@cache
def _page() -> Template:
    filters = {"inline": _inline, "look": _look, "image": _image, "side": CLASSES.__getitem__}
    return environment(None, filters).get_template("page.html")


def _names(headings: Sequence[str]) -> list[str]:
    """A name for every heading, to be linked to."""
    names: list[str] = []
    for heading in headings:
        plain = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-") or "section"
        candidates = itertools.chain([plain], (f"{plain}-{n}" for n in itertools.count(2)))
        names.append(next(name for name in candidates if name not in names))
    return names


def _inline(text: Text) -> Markup:
    return Markup("").join(map(_piece, pieces(text)))


def _piece(piece: str) -> Markup:
    tag = "strong" if isinstance(piece, Bold) else "code" if isinstance(piece, Code) else None
    return Markup("<{0}>{1}</{0}>").format(tag, str(piece)) if tag else Markup.escape(str(piece))


def _look(table: Table) -> str:
    """The classes of a table, by its size."""
    looks = {
        "wide": True,
        "short": len(table.lines) <= SHORT,
        "broad": len(table.columns) >= BROAD,
        "cards": len(table.columns) > NARROW or _letters(table) > LETTERS,
    }
    return " ".join(name for name, on in looks.items() if on)


def _letters(table: Table) -> int:
    """The letters that a line needs at least: figures, and keys in front, do not break."""

    def unbroken(column: int, text: Text) -> int:
        whole = "".join(pieces(text))
        if any(isinstance(piece, Code) for piece in pieces(text)):
            return len(whole) if column == 0 else 0
        words = [whole] if table.align[column] == RIGHT else whole.split()
        return max(map(len, words), default=0)

    return sum(
        max(unbroken(number, text) for text in texts)
        for number, texts in enumerate(zip(*table.lines, strict=True))
    )


def _image(picture: Picture) -> str:
    """The figure as the address of an image that holds it."""
    suffix = "png"
    if "svg" in picture.files and picture.files["svg"].stat().st_size <= LARGEST_SVG:
        suffix = "svg"
    data = base64.b64encode(picture.files[suffix].read_bytes()).decode("ascii")
    return f"data:{MEDIA[suffix]};base64,{data}"
