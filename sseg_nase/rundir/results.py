"""results.json: what a finished run has measured; written last, and once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sseg_nase.files import read_json, write_json
from sseg_nase.finite import figure
from sseg_nase.rundir.names import RESULTS

LAST, BEST = "last", "best"
NETWORKS = (LAST, BEST)


def write_results(run: Path, results: Mapping[str, Any]) -> None:
    """Write results.json, whole or not at all. Raises `StorageError`."""
    write_json(run / RESULTS, results)


def read_results(run: Path) -> dict[str, Any] | None:
    """Return what results.json holds; None where there is none that can be read."""
    return read_json(run / RESULTS)


def has_results(run: Path) -> bool:
    """Tell whether a run has written its results."""
    return (run / RESULTS).exists()


def section(results: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a section of results, or of a stored config; nothing where it is not there."""
    found = results.get(name)
    return found if isinstance(found, dict) else {}


def doubts_of(result: Mapping[str, Any]) -> list[str]:
    """What speaks against an accuracy of results.json, a clause each.

    An older version has not written any; that all episodes agree is seen all the same.
    """
    written = result.get("doubts")
    if isinstance(written, list):
        return [str(doubt) for doubt in written]
    accuracy, ci95, episodes = (figure(result.get(key)) for key in ("accuracy", "ci95", "episodes"))
    agree = accuracy is not None and accuracy < 100 and ci95 == 0 and (episodes or 0) > 1
    return ["every episode has the same accuracy"] if agree else []
