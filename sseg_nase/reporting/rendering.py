"""The templates of documents: files of `templates/`, filled in by Jinja2.

Whatever is put into one is escaped, as its format has it, but for what is `Ready`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

FOLDER = Path(__file__).with_name("templates")


class Ready(str):
    """Text that is markup already."""


def environment(
    escape: Callable[[str], str] | None, filters: Mapping[str, Any], **options: Any
) -> Environment:
    """Jinja2 for one format. `escape`: None for HTML's, which Jinja2 knows by itself."""

    def escaped(value: Any) -> Any:
        return value if escape is None or isinstance(value, Ready) else Ready(escape(str(value)))

    made = Environment(
        loader=FileSystemLoader(FOLDER),
        undefined=StrictUndefined,
        autoescape=escape is None,
        finalize=escaped,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,
    )
    made.filters.update(kind=_kind, **filters)
    return made


def _kind(block: Any) -> str:
    """What a block of a document is."""
    return type(block).__name__.lower()
