"""Documents as Markdown (GitHub's); figures are files beside it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
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

RULES = {LEFT: "---", CENTRE: ":---:", RIGHT: "---:"}
# Brackets are links, and angles tags, only with what follows here.
_SPECIAL = re.compile(r"[\\|*_`]|<(?=[A-Za-z/!?])|\](?=[(:])")


def as_markdown(document: Document, folder: Path = Path()) -> str:
    """The document as the text of a file in `folder`, from where its figures are named."""
    parts = [f"# {escaped(document.title)}"]
    parts += [_WRITERS[type(block)](block, folder) for block in document.blocks]
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """`text` on one line, with nothing in it that Markdown would take for its own."""
    return " ".join(_SPECIAL.sub(r"\\\g<0>", text).split())


def _inline(text: Text) -> str:
    return "".join(_piece(piece) for piece in pieces(text))


def _piece(piece: str) -> str:
    if isinstance(piece, Code):
        return _code(" ".join(piece.split()))
    inner = _SPECIAL.sub(r"\\\g<0>", piece)
    inner = re.sub(r"\s+", " ", inner)
    return f"**{inner}**" if isinstance(piece, Bold) and inner else inner


def _code(text: str) -> str:
    """Between as many backticks as it takes."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    space = " " if text.startswith("`") or text.endswith("`") or not text else ""
    return f"{fence}{space}{text}{space}{fence}"


def _heading(block: Heading, _: Path) -> str:
    return f"{'#' * block.level} {escaped(block.text)}"


def _paragraph(block: Paragraph, _: Path) -> str:
    return _inline(block.text)


def _notice(block: Notice, _: Path) -> str:
    return f"> {_inline(block.text)}"


def _items(block: Items, _: Path) -> str:
    return "\n".join(f"- {_inline(item)}" for item in block.items)


def _facts(block: Facts, _: Path) -> str:
    return "\n".join(f"- **{escaped(name)}**: {_inline(text)}" for name, text in block.pairs)


def _table(block: Table, _: Path) -> str:
    header = [escaped(name) for name in block.header]
    rule = [RULES[align] for align in block.align]
    lines = [[_cell(text) for text in line] for line in block.lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, rule, *lines])


def _cell(text: Text) -> str:
    """Even in code, a bar would end the cell."""
    return "".join(
        _piece(piece).replace("|", r"\|") if isinstance(piece, Code) else _piece(piece)
        for piece in pieces(text)
    )


def _listing(block: Listing, _: Path) -> str:
    longest = max(map(len, re.findall("`+", block.text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{block.text}\n{fence}"


def _picture(block: Picture, folder: Path) -> str:
    if block.missing is not None:
        return f"> {escaped(block.title)}: {escaped(block.missing)}"
    path = Path(os.path.relpath(block.files["png"], folder)).as_posix()
    title = escaped(block.title)
    return f"![{title}](<{path}>)\n\n**{title}.** {escaped(block.caption)}"


_WRITERS: Mapping[type[Block], Callable[[Any, Path], str]] = {
    Heading: _heading,
    Paragraph: _paragraph,
    Notice: _notice,
    Items: _items,
    Facts: _facts,
    Table: _table,
    Listing: _listing,
    Picture: _picture,
}
