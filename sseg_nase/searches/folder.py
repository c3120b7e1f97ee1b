"""A search on disk.

<output_dir>/searches/<time>-<id>/
  search.json  candidates.jsonl          what it is, and its log
  config.yaml  overrides.yaml  status.json  events.jsonl   as of every run
  sweep.json  jobs/<n>/config.yaml  job.json  console.log  with evaluator=run
  report/
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sseg_nase.config.commands import command
from sseg_nase.config.compose import stored
from sseg_nase.directory import SEARCHES, status_of
from sseg_nase.errors import UserError
from sseg_nase.files import read_json
from sseg_nase.reporting.selection import SEARCH
from sseg_nase.search.log import Log
from sseg_nase.spaces.space import Space
from sseg_nase.sweeps.folder import readable

FEW = 12  # choices that are shown one and all
CANDIDATES = "candidates.jsonl"


class SearchFolder:
    """The directory of a search that was begun. Raises `UserError` where `path` is none."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        self.plan: Mapping[str, Any] = read_json(self.path / SEARCH) or {}
        if not self.plan:
            raise UserError(
                f"search={path}: not the directory of a search (no readable {SEARCH} there). "
                "Name one like runs/searches/<time>-<id>, or LAST."
            )

    @property
    def created(self) -> float:
        """When it was begun, in seconds since 1970."""
        return float(self.plan.get("created") or 0)

    @property
    def status(self) -> str:
        """RUNNING, FINISHED, FAILED or INTERRUPTED."""
        return str(status_of(self.path).get("status", ""))

    @property
    def report(self) -> Path:
        """Where its report goes."""
        return self.path / "report"

    def space(self) -> Space | None:
        """Return its space, for which of many choices say something; None where they are few.

        And where it cannot be made any more: a file of one's own may be gone.
        """
        if len(self.plan.get("choices", ())) <= FEW:
            return None
        from sseg_nase.searches.parts import space_of  # here, because it imports torch

        try:
            return space_of(stored(self.path / "config.yaml"))
        except UserError:
            return None

    def log(self) -> Log:
        """Return its log, also while it is written. Raises `UserError`."""
        return Log.read(self.path / CANDIDATES)


def looked_at(wanted: str, output_dir: Path) -> SearchFolder:
    """Return the search that `search=DIR` or `search=LAST` names. Raises `UserError`."""
    if wanted != "LAST":
        return SearchFolder(Path(wanted))
    found = (output_dir.expanduser().absolute() / SEARCHES).glob(f"*/{SEARCH}")
    searches = readable(SearchFolder, (path.parent for path in found))
    if not searches:
        raise UserError(
            f"search=LAST: there is no search in {output_dir}/{SEARCHES} yet; start one, such as "
            f"{command('experiment=search_digits')}"
        )
    return max(searches, key=lambda one: (one.created, one.path.name))
