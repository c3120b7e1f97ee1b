"""The parts of a Markdown report."""

from __future__ import annotations

from collections.abc import Sequence

NOTHING = "–"
RIGHT, LEFT = "---:", "---"


def table(header: Sequence[str], align: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table; `align` has `LEFT` or `RIGHT` per column."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, align, *lines])


def escaped(text: str) -> str:
    """`text` on one line, with nothing in it that Markdown would take for its own."""
    for character in ("\\", "|", "*", "_"):
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


def p_value(value: float) -> str:
    """A p-value with three decimals."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
