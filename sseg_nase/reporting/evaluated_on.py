"""What the key of an accuracy says: an episode list, or a closed set and what classified it."""

from __future__ import annotations

import re
from typing import NamedTuple

from sseg_nase.config.groups.evaluation import CLOSED_SETS

KEY = re.compile(r"(?P<dataset>[^/]+)/(?P<split>[^/]+)/(?P<ways>[1-9]\d*)w(?P<shots>\d+)s")


class EvaluatedOn(NamedTuple):
    """`chance`: the accuracy in percent of guessing, 0 where the key does not tell it.

    `ways` and `shots` are 0 of a closed set.
    """

    dataset: str
    split: str
    ways: int
    shots: int
    title: str
    chance: float

    @property
    def over(self) -> str:
        """What the accuracy is a mean over."""
        return "episodes" if self.ways else "images"


def evaluated_on(key: str) -> EvaluatedOn | None:
    """What `key` says; None where it is no key of an accuracy."""
    found = KEY.fullmatch(key)
    if found is not None:
        ways, shots = int(found["ways"]), int(found["shots"])
        title = f"{ways}-way {shots}-shot"
        return EvaluatedOn(found["dataset"], found["split"], ways, shots, title, 100 / ways)
    dataset, _, rest = key.partition("/")
    split, _, how = rest.partition("/")
    if how not in CLOSED_SETS:
        return None
    return EvaluatedOn(dataset, split, 0, 0, CLOSED_SETS[how], 0.0)
