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
from typing import Any, NamedTuple

from sseg_nase.config.commands import command
from sseg_nase.config.compose import stored
from sseg_nase.config.fingerprint import decisive, flatten
from sseg_nase.errors import UserError
from sseg_nase.files import read_json
from sseg_nase.rundir.config import read_config
from sseg_nase.rundir.names import CANDIDATES, CONFIG, SEARCH, SEARCHES
from sseg_nase.rundir.status import status_of
from sseg_nase.rundir.unreadable import UnreadableError
from sseg_nase.search.log import Log
from sseg_nase.spaces.space import Space
from sseg_nase.sweeps.folder import readable

MOST_OTHERS = 8
OWN_MEANS = (
    "strategy.",
    "search.budget.",
    "search.screen",
    "search.at_once",
    "seed",
    "hardware.threads",
)
FEW = 12  # choices that are shown one and all


class Other(NamedTuple):
    """Another search for the same: its strategy's name, and its log."""

    name: str
    log: Log


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
        return None if len(self.plan.get("choices", ())) <= FEW else self.made()

    def made(self) -> Space | None:
        """Return its space; None where it cannot be made any more."""
        from sseg_nase.searches.asked_space import space_of  # here, because it imports torch

        try:
            return space_of(stored(self.path / CONFIG))
        except UserError:
            return None

    def others(self) -> list[Other]:
        """Return the latest searches for the same in the same folder, by other means or seeds.

        With the same space, evaluator, goals and caps, and the same settings of the runs.
        """
        own, log = self._settings(), self.log()
        found = []
        for path in sorted(self.path.parent.glob(f"*/{SEARCH}"), reverse=True):
            other = SearchFolder(path.parent)
            if other.path == self.path or other._settings() != own:
                continue
            try:
                theirs = other.log()
            except UserError:  # it has only just begun, or is damaged
                continue
            if theirs.objectives == log.objectives and theirs.told:
                name = str(theirs.about.get("strategy", {}).get("name", path.parent.name))
                found.append(Other(name, theirs))
        return found[:MOST_OTHERS]

    def _settings(self) -> Mapping[str, Any] | None:
        """What decides the scores of its candidates; None where its config cannot be read."""
        try:
            values = read_config(self.path)
        except UnreadableError:
            return None
        # What an older version had no key for is null in a newer one.
        kept = {
            key: value
            for key, value in decisive(flatten(values)).items()
            if value is not None and not key.startswith(OWN_MEANS)
        }
        return {**kept, "choices": self.plan.get("choices")}

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
