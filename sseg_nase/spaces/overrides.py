"""The keys of the configuration as a space: a point is what stands behind `key=value` in a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sseg_nase.config.commands import override
from sseg_nase.config.conf_files import groups
from sseg_nase.config.explain import listed, mistake
from sseg_nase.config.layout import key_types
from sseg_nase.errors import UserError
from sseg_nase.spaces.choice import Options, Point, Value
from sseg_nase.spaces.choices import choices_space
from sseg_nase.spaces.space import Space

# Keys that say where and how a run is recorded, or what the search itself is.
NOT_SEARCHED = (
    "checkpoint",
    "evaluator",
    "experiment_name",
    "hydra",
    "paths",
    "report",
    "resume",
    "resume_overrides",
    "run",
    "runs",
    "search",
    "space",
    "strategy",
    "sweep",
    "task",
    "tracking",
)
OF_EVALUATION = (
    "evaluation.split",
    "evaluation.seed",
    "evaluation.episodes",
    "evaluation.datasets",
)


@dataclass(frozen=True)
class Overrides(Space):
    """A product of choices that are named like keys or groups of the configuration."""

    def overrides(self, point: Point) -> list[str]:
        """Return the overrides with which a run has this point."""
        return [written(choice.name, point[choice.name]) for choice in self.choices]


def overrides_space(choices: Mapping[str, str | Sequence[object]]) -> Overrides:
    """Return the space of `search.choices`, such as `{"optimizer.lr": "loguniform(1e-4,1e-2)"}`.

    Options may be lists and booleans too, where a key takes these. Raises one `UserError` that
    names every key and value that the configuration does not take.
    """
    plain = {key: _options(value) for key, value in choices.items()}
    found = choices_space(plain, "overrides").choices
    wrong = list[str]()
    for choice in found:
        if choice.name in OF_EVALUATION:
            wrong.append(
                f"search.choices: {choice.name} cannot be searched over, it decides how candidates "
                "are evaluated."
            )
            continue
        values = choice.values if isinstance(choice, Options) else choice.few(2)
        wrong += mistakes("search.choices", "be searched over", choice.name, values)
    if wrong:
        raise UserError(listed(wrong))
    return Overrides("overrides", found)


def mistakes(where: str, what: str, key: str, values: Iterable[Any]) -> list[str]:
    """Return why runs cannot have these values of a key; `what` is what it then cannot."""
    if key.split(".")[0] in NOT_SEARCHED:
        return [f"{where}: {key} cannot {what}, it is no setting."]
    options = groups()
    said = (mistake(written(key, value), options) for value in values)
    return list(dict.fromkeys(f"{where}: {one}" for one in said if one))


def written(key: str, value: Value) -> str:
    """Return `key=value`; the text of a list, of true or of an option is taken as it stands."""
    kind = str(key_types().get(key, ""))
    if isinstance(value, str) and (key in groups() or "str" not in kind or value[:1] == "["):
        return f"{key}={value}"
    return override(key, value)


def _options(given: Any) -> Any:
    """Lists and booleans among the options as texts: a point has numbers and texts alone."""
    if isinstance(given, str) or not isinstance(given, Sequence):
        return given
    return [
        override("", value)[1:]
        if isinstance(value, bool | list | tuple) or value is None
        else value
        for value in given
    ]
