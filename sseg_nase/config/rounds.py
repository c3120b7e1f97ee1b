"""`-m strategy=NAME`: what a sweep would try one and all is chosen by rounds, as a search does.

The values of a sweep and the ranges of a search may stand side by side:
`-m strategy=tpe 'optimizer.lr=loguniform(1e-4,1e-1)' ssl=simclr,byol search.budget.candidates=50`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from hydra.errors import HydraException

from sseg_nase.config.conf_files import groups
from sseg_nase.config.explain import explaining
from sseg_nase.errors import UserError

CHOOSES = "strategy"  # the group whose option in a sweep asks for rounds
RANGE = re.compile(r"(uniform|loguniform|int)\(.*,.*\)")
OURS = ("task", "space", "search.choices", "search")  # what the command itself says


def as_search(overrides: Sequence[str]) -> list[str] | None:
    """Return the command line of the search that a sweep with a strategy is.

    None where it has none, and is a sweep. Raises `UserError` where nothing is to be chosen.
    """
    keys = [text.lstrip("+~").partition("=")[0] for text in overrides]
    if CHOOSES not in keys:
        return None
    named = overrides[keys.index(CHOOSES)]
    kept, choices = list[str](), dict[str, str]()
    for text, key in zip(overrides, keys, strict=True):
        if key in OURS or key.startswith("sweep."):
            raise UserError(
                f"{text}: it has no effect with -m {named}, which searches over the values given; "
                "leave it out (search.slots=2: two candidates at once), or leave -m out."
            )
        values = _values(text)
        if values is None or key.startswith(("hydra", "search.", f"{CHOOSES}.", CHOOSES)):
            kept.append(text)
        else:
            choices[key] = values
    if not choices:
        raise UserError(
            f"-m {named}: what is to be chosen? Give ranges or several values, such as "
            "'optimizer.lr=loguniform(1e-4,1e-1)' ssl=simclr,byol."
        )
    listed = ",".join(f"{key}:{values}" for key, values in choices.items())
    return ["task=search", "space=overrides", *kept, f"search.choices={{{listed}}}"]


def _values(text: str) -> str | None:
    """The values of an override as `search.choices` takes them; None where it has one value."""
    value = text.partition("=")[2]
    if RANGE.fullmatch(value):
        return value
    with explaining([text]):
        override = _parsed(text)
        if not override.is_sweep_override():
            return None
        swept = override._value
        if isinstance(swept, IntervalSweep):
            return f"uniform({swept.start},{swept.end})"
        if isinstance(swept, Glob):
            names = swept.filter(list(groups().get(override.key_or_group, ())))
            return f"[{','.join(names)}]"
        return f"[{','.join(override.sweep_string_iterator())}]"


def _parsed(text: str) -> Override:
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException:  # a path with blanks, or what is wrong: composition says it
        return OverridesParser.create().parse_override(text.partition("=")[0] + "=null")
