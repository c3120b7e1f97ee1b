"""Documents as HTML in one file that needs nothing else: no script, no other file, no network."""

from __future__ import annotations

import base64
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from sseg_nase.reporting.document import (
    CENTRE,
    LEFT,
    RIGHT,
    Block,
    Bold,
    Code,
    Document,
    Facts,
    Heading,
    Items,
    Listing,
    Notice,
    Paragraph,
    Picture,
    Table,
    Text,
    pieces,
)

# Drawn lines are sharp at every size, but for many of them pixels are smaller.
LARGEST_SVG = 400_000
CLASSES = {LEFT: "", CENTRE: ' class="mark"', RIGHT: ' class="figure"'}
BROAD = 8  # columns of a table that may be wider than the text
SHORT = 12  # lines of a table that a printed page should not break
MEDIA = {"svg": "image/svg+xml", "png": "image/png"}
# A browser that is told so loads nothing, whatever stands in the text.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def as_html(document: Document) -> str:
    """The document with its figures in it."""
    headings = [block for block in document.blocks if isinstance(block, Heading)]
    names = _names([block.text for block in headings])
    links = [
        f'<li><a href="#{name}">{escape(block.text)}</a></li>'
        for block, name in zip(headings, names, strict=True)
        if block.level == 2
    ]
    left = iter(names)
    body = [
        _heading(block, next(left)) if isinstance(block, Heading) else _WRITERS[type(block)](block)
        for block in document.blocks
    ]
    nav = [f'<nav aria-label="Contents"><ul>{"".join(links)}</ul></nav>'] if links else []
    title = escape(document.title)
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{title}</title>",
            f"<style>\n{_style()}</style>",
            "</head>",
            "<body>",
            f"<h1>{title}</h1>",
            *nav,
            "<main>",
            *body,
            "</main>",
            "</body>",
            "</html>",
            "",
        ]
    )


@cache
def _style() -> str:
    return Path(__file__).with_name("report.css").read_text(encoding="utf-8")


def _names(headings: Sequence[str]) -> list[str]:
    """A name for every heading, to be linked to."""
    names: list[str] = []
    for heading in headings:
        plain = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-") or "section"
        candidates = itertools.chain([plain], (f"{plain}-{n}" for n in itertools.count(2)))
        names.append(next(name for name in candidates if name not in names))
    return names


def _inline(text: Text) -> str:
    return "".join(_piece(piece) for piece in pieces(text))


def _piece(piece: str) -> str:
    inner = escape(piece)
    if isinstance(piece, Bold):
        return f"<strong>{inner}</strong>"
    return f"<code>{inner}</code>" if isinstance(piece, Code) else inner


def _heading(block: Heading, name: str) -> str:
    return f'<h{block.level} id="{name}">{escape(block.text)}</h{block.level}>'


def _paragraph(block: Paragraph) -> str:
    return f"<p>{_inline(block.text)}</p>"


def _notice(block: Notice) -> str:
    return f'<p class="notice">{_inline(block.text)}</p>'


def _items(block: Items) -> str:
    return f"<ul>{''.join(f'<li>{_inline(item)}</li>' for item in block.items)}</ul>"


def _facts(block: Facts) -> str:
    pairs = (f"<dt>{escape(name)}</dt><dd>{_inline(text)}</dd>" for name, text in block.pairs)
    return f"<dl>{''.join(pairs)}</dl>"


def _table(block: Table) -> str:
    kinds = [CLASSES[align] for align in block.align]
    head = "".join(
        f'<th scope="col"{kind}>{escape(name)}</th>'
        for kind, name in zip(kinds, block.header, strict=True)
    )
    rows = [
        "<tr>"
        + "".join(f"<td{kind}>{_inline(text)}</td>" for kind, text in zip(kinds, line, strict=True))
        + "</tr>"
        for line in block.lines
    ]
    kind = "wide short" if len(block.lines) <= SHORT else "wide"
    kind += " broad" if len(block.header) >= BROAD else ""
    return (
        f'<div class="{kind}" tabindex="0"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n'
        + "\n".join(rows)
        + "\n</tbody></table></div>"
    )


def _listing(block: Listing) -> str:
    return f"<pre>{escape(block.text)}</pre>"


def _picture(block: Picture) -> str:
    if block.missing is not None:
        return f'<p class="notice">{escape(block.title)}: {escape(block.missing)}</p>'
    return (
        f'<figure><div class="wide" tabindex="0">{_image(block)}</div>'
        f"<figcaption><strong>{escape(block.title)}.</strong> {escape(block.caption)}</figcaption>"
        "</figure>"
    )


def _image(block: Picture) -> str:
    suffix = "png"
    if "svg" in block.files and block.files["svg"].stat().st_size <= LARGEST_SVG:
        suffix = "svg"
    data = base64.b64encode(block.files[suffix].read_bytes()).decode("ascii")
    return f'<img alt="{escape(block.title)}" src="data:{MEDIA[suffix]};base64,{data}">'


_WRITERS: Mapping[type[Block], Callable[[Any], str]] = {
    Paragraph: _paragraph,
    Notice: _notice,
    Items: _items,
    Facts: _facts,
    Table: _table,
    Listing: _listing,
    Picture: _picture,
}
