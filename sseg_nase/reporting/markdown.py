"""Documents as Markdown (GitHub's); figures are files beside it."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path

from jinja2 import Template

from sseg_nase.reporting.document import (
    CENTRE,
    LEFT,
    RIGHT,
    Bold,
    Code,
    Document,
    Picture,
    Text,
    pieces,
)
from sseg_nase.reporting.rendering import Ready, environment

RULES = {LEFT: "---", CENTRE: ":---:", RIGHT: "---:"}
# Brackets are links, and angles tags, only with what follows here.
_SPECIAL = re.compile(r"[\\|*_`]|<(?=[A-Za-z/!?])|\](?=[(:])")


def as_markdown(document: Document, folder: Path = Path()) -> str:
    """The document as the text of a file in `folder`, from where its figures are named."""
    return _page().render(document=document, folder=folder)


def escaped(text: str) -> str:
    """`text` on one line, with nothing in it that Markdown would take for its own."""
    return " ".join(_SPECIAL.sub(r"\\\g<0>", text).split())


@cache
def _page() -> Template:
    filters = {"inline": _inline, "cell": _cell, "rule": _rule, "fence": _fence, "path": _path}
    return environment(escaped, filters).get_template("page.md")


def _inline(text: Text) -> Ready:
    return Ready("".join(map(_piece, pieces(text))))


def _piece(piece: str) -> str:
    if isinstance(piece, Code):
        return _code(" ".join(piece.split()))
    inner = re.sub(r"\s+", " ", _SPECIAL.sub(r"\\\g<0>", piece))
    return f"**{inner}**" if isinstance(piece, Bold) and inner else inner


def _code(text: str) -> str:
    """Between as many backticks as it takes."""
    fence = "`" * (_ticks(text) + 1)
    space = " " if text.startswith("`") or text.endswith("`") or not text else ""
    return f"{fence}{space}{text}{space}{fence}"


def _ticks(text: str) -> int:
    """The most backticks in a row."""
    return max(map(len, re.findall("`+", text)), default=0)


def _cell(text: Text) -> Ready:
    """Even in code, a bar would end the cell."""
    return Ready(
        "".join(
            _piece(piece).replace("|", r"\|") if isinstance(piece, Code) else _piece(piece)
            for piece in pieces(text)
        )
    )


def _rule(align: str) -> Ready:
    return Ready(RULES[align])


def _fence(text: str) -> Ready:
    """The text between lines of as many backticks as it takes."""
    fence = "`" * max(3, _ticks(text) + 1)
    return Ready(f"{fence}\n{text}\n{fence}")


def _path(picture: Picture, folder: Path) -> Ready:
    return Ready(Path(os.path.relpath(picture.files["png"], folder)).as_posix())
