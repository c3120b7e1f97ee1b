"""From a command line with commas to the overrides of every job, as Hydra's basic sweeper does."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Optional

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from sseg_nase.config.commands import argument
from sseg_nase.config.compose import CONFIG_NAME, HYDRA, conf_dir, register, searched
from sseg_nase.config.conf_files import groups
from sseg_nase.config.explain import explaining
from sseg_nase.config.layout import key_types
from sseg_nase.errors import UserError

BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


def split(overrides: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Return the overrides that are Hydra's own, those of `sweep.*`, and those of the jobs."""
    hydras, sweeps, jobs = list[str](), list[str](), list[str]()
    for text, override in zip(overrides, _parsed(overrides), strict=True):
        root = override.key_or_group.replace("/", ".").split(".")[0]
        {"hydra": hydras, "sweep": sweeps}.get(root, jobs).append(text)
    return hydras, sweeps, jobs


def expand(overrides: Sequence[str], *further: Path) -> list[list[str]]:
    """Return the overrides of every job: all combinations of what has commas.

    `hydra.sweeper.params` of a composed experiment counts like the command line, which wins.
    `further` are config folders beside `conf/`. Raises `UserError`, also for other sweepers.
    """
    hydras, sweeps, jobs = split(overrides)
    once([*hydras, *sweeps])
    options = groups(*further)
    jobs = [_unfolded(text, o, options) for text, o in zip(jobs, _parsed(jobs), strict=True)]
    with explaining(overrides, *further):
        parsed = _parsed(jobs)
        given = {override.key_or_group for override in parsed}
        params = _params([*hydras, *shared(jobs)], *further)
        lines = [line for line in params if line.split("=")[0] not in given]
        parsed = _parsed([*lines, *jobs])
        (batch,) = BasicSweeper.split_arguments(parsed, None) or ((),)
    if not batch:
        raise UserError(f"{_without_values(parsed)}: it has no value, so there is nothing to run.")
    return batch


def _without_values(parsed: Sequence[Override]) -> str:
    """The override that leaves a sweep without jobs, such as `seed=range(3,0)`."""
    swept = (o for o in parsed if o.is_sweep_override())
    return next(str(o.input_line) for o in swept if not list(o.sweep_iterator()))


def _unfolded(text: str, override: Override, options: Mapping[str, Sequence[str]]) -> str:
    """`group=glob(PATTERN)` with the options that match, as `group=A,B`; others as they are.

    Raises `UserError` where nothing matches, and for an interval, which has no values.
    """
    key, value = override.key_or_group, override._value
    if isinstance(value, IntervalSweep):
        low, high = value.start, value.end
        raise UserError(
            f"{text}: a sweep runs every value, and an interval has none; write them out, such as "
            f"{key}={low},{high}, or {key}=range({low},{high},STEP)."
        )
    if not isinstance(value, Glob):
        return text
    if key not in options:
        raise UserError(
            f"{text}: glob() chooses among the options of a group, and {key} is none; write its "
            "values with commas between."
        )
    names = value.filter(list(options[key]))
    if not names:
        raise UserError(f"{text}: no option matches; {key} has {', '.join(options[key])}.")
    return f"{key}={','.join(names)}"


def shared(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that all jobs have: those without commas."""
    parsed = _parsed(overrides)
    return [text for text, o in zip(overrides, parsed, strict=True) if not o.is_sweep_override()]


def refuse_several(overrides: Sequence[str]) -> None:
    """Refuse several values of a key where one run was asked for."""
    for text, override in zip(overrides, _parsed(overrides), strict=True):
        if not override.is_sweep_override():
            continue
        key, value = override.key_or_group, text.partition("=")[2]
        one = ""
        if "list" in str(key_types().get(key, "")) and override.is_choice_sweep():
            one = f", or write {shlex.quote(f'{key}=[{value}]')} for one run with all of them"
        elif key_types().get(key) in (str, Optional[str]) and key not in groups():
            one = f", or write {argument(key, value)} for this very text"
        raise UserError(f"{text}: several values are a sweep; add -m{one}.")


def launcher(overrides: Sequence[str], *further: Path) -> str:
    """Return the class of the launcher that these overrides choose, also by an experiment."""
    with explaining(overrides, *further):
        return str(_hydra(overrides, *further).launcher.get("_target_")).rpartition(".")[2]


def once(overrides: Sequence[str]) -> None:
    """Refuse commas in what holds for the whole sweep."""
    for text, override in zip(overrides, _parsed(overrides), strict=True):
        if override.is_sweep_override():
            key = override.key_or_group.removeprefix("hydra.sweeper.params.")
            own = f", or several to {key} itself" if key != override.key_or_group else ""
            raise UserError(f"{text}: it is said once for the whole sweep; give one value{own}.")


def superseded(overrides: Sequence[str]) -> list[str]:
    """Say which overrides have no effect, because their key is given again behind them."""
    keys = [override.key_or_group for override in _parsed(overrides)]
    last = dict(zip(keys, overrides, strict=True))
    return [
        f"{text} is not used: {last[key]} stands behind it"
        for key, text in zip(keys, overrides, strict=True)
        if text != last[key]
    ]


def swept(jobs: Sequence[Sequence[str]]) -> list[str]:
    """Return the keys whose values differ between the jobs, in the order of the command line."""
    values: dict[str, set[str]] = {}
    for job in jobs:
        for line in job:
            key, _, value = line.partition("=")
            values.setdefault(key.lstrip("+~"), set()).add(value)
    return [key for key, found in values.items() if len(found) > 1]


def _hydra(overrides: Sequence[str], *further: Path) -> DictConfig:
    """Hydra's own part of the composed config."""
    with HYDRA:
        register()
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            composed = compose(
                CONFIG_NAME, overrides=[*overrides, *searched(*further)], return_hydra_config=True
            )
        return composed.hydra


def _params(overrides: Sequence[str], *further: Path) -> list[str]:
    """What `hydra.sweeper.params` of the composed config says, as overrides."""
    try:
        sweeper = _hydra(overrides, *further).sweeper
    except (AssertionError, AttributeError) as error:  # where no experiment has any
        for text in overrides:
            if text.lstrip("+~").startswith("hydra.sweeper.params"):
                said = "leave it out, and give the values to the key itself, as in seed=0,1."
                raise UserError(f"{text}: {said}") from error
        raise
    if sweeper.get("_target_") != BASIC_SWEEPER:
        raise UserError(
            f"hydra/sweeper: {sweeper.get('_target_')} chooses jobs by the results of others; "
            "here a sweep is every combination of the values given: leave hydra/sweeper out."
        )
    params = OmegaConf.to_container(sweeper.params) if sweeper.get("params") else {}
    assert isinstance(params, dict)
    return [f"{key!s}={value}" for key, value in params.items()]


def _parsed(overrides: Sequence[str]) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides(list(overrides))
    except HydraException:
        with explaining(overrides):
            raise
