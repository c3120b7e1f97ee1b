"""What a sweep consists of: every job's overrides, name and config, before any of them runs."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sseg_nase.config.compose import load
from sseg_nase.config.explain import listed
from sseg_nase.config.fingerprint import fingerprint
from sseg_nase.config.groups.tracking import InStore
from sseg_nase.config.multirun import expand, shared, swept
from sseg_nase.config.places import settled
from sseg_nase.config.schema import INSPECTIONS, TAKEN_HOME, Config
from sseg_nase.errors import UserError
from sseg_nase.redaction import overrides_without, redacted
from sseg_nase.sweeps.folder import Planned
from sseg_nase.tracking.console import duration
from sseg_nase.tracking.mlflow_sink import resolve_uri

NAME_LENGTH = 120
JOBS_TIMED, LONG = 5, 5.0  # after so many jobs it is known whether all take more seconds
# Where a job's results go and how it is run says nothing of what it is.
UNNAMED = ("paths.", "tracking", "hydra", "experiment_name")


def plan(
    overrides: Sequence[str], *further: Path, say: Callable[[str], None] = lambda note: None
) -> tuple[str, list[Planned]]:
    """Return the sweep's title and its jobs: all combinations of what has commas.

    `further` are config folders beside `conf/`; `say` is told where it takes long. Raises one
    `UserError` that names every job with a mistake in it.
    """
    jobs = expand(overrides, *further)
    differing = swept(jobs)
    configs, mistakes = list[Config](), list[str]()
    began = time.monotonic()
    for number, job in enumerate(jobs):
        left = (time.monotonic() - began) / max(number, 1) * (len(jobs) - number)
        if number == JOBS_TIMED and left > LONG:
            say(f"{len(jobs)} jobs are composed and checked first, in {duration(left)} or less")
        try:
            configs.append(placed(load(job, *further)))
        except UserError as error:
            mistakes.append(f"job {number} ({label(job, differing)}): {error}")
    if mistakes:
        raise UserError(f"no job was started; {listed(list(_grouped(mistakes)))}")
    tasks = {config.task for config in configs}
    if inspections := tasks & set(INSPECTIONS):
        raise UserError(
            f"task={inspections.pop()}: it inspects what is on disk and is no job of a sweep; "
            "leave -m out."
        )
    if taken := tasks & set(TAKEN_HOME):
        raise UserError(
            f"task={taken.pop()}: it is about one network and is no job of a sweep; leave -m out."
        )
    if "search" in tasks:
        raise UserError(
            "task=search: it starts jobs of its own and is no job of a sweep; leave out -m, and "
            "give search.slots=2 for two jobs at once."
        )
    if any(config.resume for config in configs):
        raise UserError(
            "resume: a sweep is resumed where the same command is given again; leave "
            "resume out, or leave out -m to resume one run."
        )
    once = shared(overrides)
    several = [text.partition("=")[0].lstrip("+~") for text in overrides if text not in once]
    _refuse_twice(jobs, configs, differing or several)
    planned = [
        Planned(
            number=number,
            label=label(job, differing) or config.experiment_name,
            configuration=label(job, [key for key in differing if key != "seed"])
            or config.experiment_name,
            fingerprint=fingerprint(config),
            overrides=tuple(overrides_without(job)),
            config=config,
        )
        for number, (job, config) in enumerate(zip(jobs, configs, strict=True))
    ]
    return _title(jobs, differing), planned


def _refuse_twice(
    jobs: Sequence[Sequence[str]], configs: Sequence[Config], differing: Sequence[str]
) -> None:
    """Refuse a job that another one is already: one run would count as two in the means."""
    for number, config in enumerate(configs):
        first = configs.index(config)
        if first < number:
            raise UserError(
                f"no job was started; jobs {first} ({label(jobs[first], differing)}) and {number} "
                f"({label(jobs[number], differing)}) are the same: give every value once."
            )


def label(job: Sequence[str], differing: Sequence[str]) -> str:
    """Return those of a job's overrides that other jobs have otherwise; all, where none differ."""
    given = _values(job)
    keys = differing or [key for key in given if not key.startswith(UNNAMED) and key != "seed"]
    shown = redacted(" ".join(f"{key}={given[key]}" for key in keys if key in given))
    if len(shown) <= NAME_LENGTH:
        return shown
    # Jobs are told apart, and averaged, by it: two that differ further behind must not be one.
    told = f"… ({hashlib.sha256(shown.encode()).hexdigest()[:8]})"
    return shown[: NAME_LENGTH - len(told)] + told


def _title(jobs: Sequence[Sequence[str]], differing: Sequence[str]) -> str:
    """`ablation=A1,A2 seed=0,1`: what the sweep goes over."""
    values = {
        key: list(dict.fromkeys(_values(job).get(key, "") for job in jobs)) for key in differing
    }
    seed = _values(jobs[0]).get("seed")
    if seed is not None and "seed" not in values:
        values["seed"] = [seed]  # all jobs have it, and it belongs to what they are called
    if not differing and (all_alike := label(jobs[0], [])):
        return " ".join([all_alike, *(f"seed={seed}" for _ in [seed] if seed is not None)])
    text = redacted(" ".join(f"{key}={','.join(found)}" for key, found in values.items()))
    return text[:NAME_LENGTH] or "one job"


def _values(job: Sequence[str]) -> Mapping[str, str]:
    pairs = (line.partition("=") for line in job)
    return {key.lstrip("+~"): value for key, _, value in pairs}


def _grouped(mistakes: Sequence[str]) -> Sequence[str]:
    """At most a handful: in a large sweep one mistake comes many times."""
    shown = mistakes[:5]
    more = len(mistakes) - len(shown)
    return [*shown, f"and {more} jobs more"] if more else shown


def placed(config: Config) -> Config:
    """With absolute paths, and no password in an address: a job runs from another folder.

    Its process has the user and the password from the environment.
    """
    config = settled(config)
    tracking = config.tracking
    if isinstance(tracking, InStore):
        tracking = dataclasses.replace(tracking, uri=resolve_uri(tracking.uri))
    return dataclasses.replace(config, tracking=tracking)
