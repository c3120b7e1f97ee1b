"""`bench/results.json`, and the table beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.suite.rows import Row
from benchmarks.suite.runner import LESS_IS_BETTER
from sseg_nase.files import write_json, write_text

COLUMNS = ("row", "ours", "peer", "ratio", "asked", "peer is", "peak MB, ours / peer")
NOTES = (
    "Medians of alternated rounds, each side in a process of its own. A ratio above 1 says that "
    "ours is better, also where less is better (s, MB, % of a step). Peak MB is the process's "
    "largest resident memory in MiB plus what its DataLoader workers hold for themselves; where a "
    "side runs a command, it is the command's. A figure that misses what is asked is marked with a "
    "cross."
)


def keep(folder: Path, entries: Sequence[dict[str, Any]], skipped: Iterable[Row] = ()) -> None:
    """Write `entries` into results.json and results.md in `folder`.

    An entry replaces the earlier one of its name; earlier ones of other names stay.
    """
    path = folder / "results.json"
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    merged = {entry["name"]: entry for entry in [*earlier, *entries]}
    write_json(path, list(merged.values()))
    write_text(folder / "results.md", table(merged.values(), skipped))


def table(entries: Iterable[dict[str, Any]], skipped: Iterable[Row] = ()) -> str:
    """Markdown: a table per machine, then what was skipped."""
    machines: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        machines.setdefault(describe(entry["machine"]), []).append(entry)
    lines = ["# Benchmarks", "", NOTES, ""]
    for machine, rows in machines.items():
        lines += [f"## {machine}", "", "| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * 7]
        lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
        lines.append("")
    lines += [f"- {skipping(row)}" for row in skipped]
    return "\n".join(lines).rstrip() + "\n"


def describe(machine: dict[str, Any]) -> str:
    """A machine in a line."""
    gpu = f"{machine['gpu']}, " if machine["gpu"] else ""
    return (
        f"{gpu}{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, "
        f"torch {machine['torch']}"
    )


def cells(entry: dict[str, Any]) -> list[str]:
    """An entry's cells under `COLUMNS`."""
    ratio = entry["ratio"]
    return [
        entry["name"],
        f"{number(entry['ours'])} {entry['unit']}",
        number(entry["peer"]),
        "–" if ratio is None else f"{ratio:.3g} ×",
        asked(entry),
        f"{entry['peer_version']}: {entry['peer_name']}",
        f"{number(entry['ours_peak_mb'])} / {number(entry['peer_peak_mb'])}",
    ]


def asked(entry: dict[str, Any]) -> str:
    """What must come out, and a cross where it did not."""
    if (least := entry["ratio_asked"]) is not None:
        missed = entry["ratio"] is None or entry["ratio"] < least
        return f"≥ {least:.3g} ×" + " ✗" * missed
    if (limit := entry["limit"]) is None:
        return ""
    less = entry["unit"] in LESS_IS_BETTER
    missed = entry["ours"] > limit if less else entry["ours"] < limit
    return f"{'≤' if less else '≥'} {number(limit)} {entry['unit']}" + " ✗" * missed


def skipping(row: Row) -> str:
    """Say that a row's peer is not there, and how to get it."""
    return f"{row.name} skipped: {row.package} is not installed (pip install -e '.[bench]')"


def number(figure: float) -> str:
    """Three digits, with commas between thousands."""
    return f"{figure:,.0f}" if abs(figure) >= 100 else f"{figure:.3g}"
