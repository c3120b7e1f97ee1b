"""The evaluator `run`: each candidate is a job, a run of the program evaluated on val classes.

A job stands in the search's folder as the jobs of a sweep stand in theirs, and is performed by the
same code: a process of its own, its config frozen, its end on disk. So a search that was killed
finds what its jobs have done: a finished one is read, one still at work is waited for, one that was
interrupted is resumed from its checkpoint.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import queue
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sseg_nase.config.commands import override
from sseg_nase.config.compose import beside_hydra, load
from sseg_nase.config.fingerprint import fingerprint
from sseg_nase.config.places import key_of
from sseg_nase.config.schema import Config
from sseg_nase.errors import UserError, did_you_mean
from sseg_nase.files import read_json, write_json
from sseg_nase.finite import finite
from sseg_nase.provenance import code
from sseg_nase.rundir.names import checkpoint_of
from sseg_nase.rundir.results import LAST, accuracies_of, read_results
from sseg_nase.rundir.status import FAILED
from sseg_nase.search.latency import LATENCY, Timed
from sseg_nase.search.log import Candidate, Cost, Scored
from sseg_nase.search.objectives import Objectives
from sseg_nase.searches.promotion import continued, goes_on, less, spent_before
from sseg_nase.spaces.overrides import NOT_SEARCHED
from sseg_nase.spaces.space import Space
from sseg_nase.sweeps.folder import JobFolder, Planned, SweepFolder, described, freeze, threads_of
from sseg_nase.sweeps.job import perform
from sseg_nase.sweeps.launch import stop_jobs
from sseg_nase.sweeps.plan import placed

FIDELITY_KEYS = {
    "epochs": "pretrain.epochs",
    "images": "pretrain.images_per_epoch",
    "finetune_epochs": "finetune.epochs",
    "resolution": "dataset.image_size",
    "episodes": "evaluation.episodes",
    "seed": "seed",
}
# What a candidate does without unless the user asks for it: each has taken longer than a small run.
SPARED = ("report.at_end=false", "evaluation.untrained_reference=false")
# What a run tells of its network at least, beside the accuracy of each setting.
TOLD = ("accuracy", "params", "macs", "flops", "resolution", "latency_ms_b1", "latency_ms_b64",
        "peak_memory_mb")  # fmt: skip
ENERGY = "energy_mj_b1"
NOT_OF_JOBS = {*NOT_SEARCHED} - {"experiment_name", "paths", "report", "tracking"}
SECONDS_BETWEEN_POLLS = 0.2
UNKNOWN_COST = (
    "its training MACs are not known, and no budget could count them: its training began with a "
    "checkpoint of an older version, which does not say what it took. Give finetune.from one that "
    "this version has written; what an older version has begun, train again."
)

Say = Callable[[str], None]


def of_jobs(overrides: Sequence[str]) -> list[str]:
    """Return those of a search's overrides that its jobs have, too."""
    return [o for o in overrides if key_of(o).replace("/", ".").split(".")[0] not in NOT_OF_JOBS]


def check_space(config: Config, space: Space) -> None:
    """Raise `UserError` for a space whose points say nothing to a run."""
    if not hasattr(space, "overrides"):
        raise UserError(
            f"evaluator=run: the points of space={config.space.name} are no settings of a run; "
            "choose space=overrides, or evaluator=tabular with evaluator.table=FILE."
        )


def check_goals(config: Config, objectives: Objectives, meter: str | None) -> None:
    """Raise `UserError` for a goal or a cap that no run tells: every candidate would fail.

    `meter`: why this machine does not measure energy, None where it does.
    """
    told = [*TOLD, *([] if meter else [ENERGY]), *([LATENCY] if config.search.latency else [])]
    for name in objectives.needed:
        if name in told or name.startswith("accuracy/"):
            continue
        why = f" {ENERGY} is not measured here: {meter}." if meter and name == ENERGY else ""
        if name == LATENCY:
            why = f" {LATENCY} comes from a table: add search.latency=FILE.json."
        near = "" if why else did_you_mean(name, told)
        raise UserError(
            f"search.objectives, search.caps: no run tells {name}.{why}{near} It tells "
            f"{', '.join(told)} and accuracy/KEY of each setting, such as accuracy/digits/val/5w1s."
        )


class Jobs:
    """An evaluator with `slots` jobs at once on this machine.

    `overrides` are those that all jobs have; `parent_run_id`: the search's own run in the tracker.
    """

    def __init__(
        self,
        path: Path,
        config: Config,
        space: Space,
        overrides: Sequence[str],
        further: Sequence[Path],
        parent_run_id: str | None,
        say: Say,
    ) -> None:
        self.slots = config.search.slots
        self._path, self._space, self._say = path, space, say
        self._arm, self._arms_overrides = "", list[str]()
        own = config.space.imports
        imports = [] if own is None else [override("backbone.imports", own)]
        self._overrides = [*SPARED, *of_jobs(overrides), *imports]
        self._further = list(further)
        self._results: queue.Queue[Scored] = queue.Queue()
        self._pool = ThreadPoolExecutor(self.slots, thread_name_prefix="candidate")
        self._running: list[Future[None]] = []
        plan = read_json(path / "sweep.json") or self._plan(config)
        plan |= {"parent_run_id": parent_run_id}
        write_json(path / "sweep.json", plan)
        settings = dataclasses.replace(config.sweep, parallel=self.slots)
        SweepFolder(path).begin_launch(settings, os.environ.get("CUDA_VISIBLE_DEVICES"))
        self._numbers: dict[tuple[str, int], int] = {
            (job.get("arm", ""), job["candidate"]): job["number"] for job in plan["jobs"]
        }

    def of(self, arm: str, overrides: Sequence[str] = ()) -> Jobs:
        """Return an evaluator for the candidates of another log of this search, in the same slots.

        `arm` names that log; its jobs have the `overrides`, too.
        """
        other = copy.copy(self)
        other._arm, other._arms_overrides = arm, list(overrides)
        other._results = queue.Queue()
        return other

    def start(self, candidate: Candidate) -> None:
        """Freeze the candidate's job, unless an earlier process has, and let a slot perform it."""
        if (self._arm, candidate.number) not in self._numbers:
            try:
                self._add(candidate)
            except UserError as error:
                self._results.put(Scored(candidate, error=str(error)))
                return
        self._begin(candidate, self._numbers[self._arm, candidate.number])

    def _begin(self, candidate: Candidate, number: int) -> None:
        self._running.append(self._pool.submit(self._perform, candidate))

    def config_of(self, candidate: Candidate) -> Config:
        """Return the config of a candidate's job. Raises `UserError` where it has none."""
        return self._composed(candidate)[1]

    def result(self) -> Scored:
        """Wait for the job that ends first."""
        return self._results.get()

    def stop(self) -> None:
        """Let no further job begin, ask those at work to stop, and wait until they have."""
        sweep = SweepFolder(self._path)
        sweep.stop("the search was interrupted")
        self._pool.shutdown(wait=False, cancel_futures=True)
        while any(not future.done() for future in self._running):
            stop_jobs(sweep, self._say)  # also those that had only just begun
            time.sleep(SECONDS_BETWEEN_POLLS)

    def close(self) -> None:
        """All is done."""
        self._pool.shutdown()

    def _plan(self, config: Config) -> dict[str, Any]:
        settings = dataclasses.replace(config.sweep, parallel=self.slots, dir=None, job=None)
        return {
            "schema": 1,
            "title": f"space={config.space.name} strategy={config.strategy.name}",
            "identity": "",  # no command of a sweep makes it again
            "shared": [],
            "settings": dataclasses.asdict(settings),
            "tracking": dataclasses.asdict(placed(config).tracking),
            "parent_run_id": None,
            "created": time.time(),
            "folder": str(Path.cwd()),
            "code": code.describe(),
            "threads": threads_of(settings),
            "visible_devices": None,
            "jobs": [],
        }

    def _add(self, candidate: Candidate) -> None:
        sweep = SweepFolder(self._path)
        given = self._given(candidate)
        overrides, config = self._composed(candidate)
        if config.task != "pipeline" or config.evaluation.split == "test":
            raise UserError(
                f"candidate {candidate.number}: task={config.task} "
                f"evaluation.split={config.evaluation.split}: a candidate is a run of "
                "task=pipeline, evaluated on val. An experiment chooses its task by "
                "`override /task: search` in its defaults."
            )
        number = len(sweep.plan["jobs"])
        label = " ".join(given)
        job = Planned(number, label, label, fingerprint(config), tuple(overrides), config)
        freeze(self._path, job)
        told = described(job) | {
            "candidate": candidate.number,
            "key": candidate.key,
            "fidelity": dict(candidate.fidelity),
        }
        if self._arm:
            told["arm"] = self._arm
        if (run := self._run_before(candidate, sweep)) is not None:
            told["spent_before"] = spent_before(run)
            again = dataclasses.replace(
                job, config=dataclasses.replace(config, resume_overrides=True)
            )
            freeze(self._path, again)
            JobFolder(self._path / "jobs" / str(number), told).note(run=str(continued(run)))
        sweep.note(jobs=[*sweep.plan["jobs"], told])
        self._numbers[self._arm, candidate.number] = number

    def _given(self, candidate: Candidate) -> list[str]:
        point = self._space.overrides(candidate.point)  # type: ignore[attr-defined]
        return [*point, *fidelity_overrides(candidate)]

    def _composed(self, candidate: Candidate) -> tuple[list[str], Config]:
        overrides = [*self._overrides, *self._arms_overrides, *self._given(candidate)]
        overrides.append("task=pipeline")
        with beside_hydra():
            return overrides, placed(load(overrides, *self._further))

    def _run_before(self, candidate: Candidate, sweep: SweepFolder) -> Path | None:
        """The run of the candidate that this one is promoted from; None where there is none."""
        for parent in candidate.parents:
            number = self._numbers.get((self._arm, parent))
            if number is None or not goes_on(sweep.plan["jobs"][number], candidate):
                continue
            run = sweep.jobs[number].run
            if run is not None and checkpoint_of(run, "last").exists():
                return run
            self._say(
                f"candidate {candidate.number}: the checkpoint of candidate {parent} is not there; "
                "it is trained from the start"
            )
        return None

    def _perform(self, candidate: Candidate) -> None:
        """In a thread: until the job has ended, whoever has begun it."""
        try:
            number = self._numbers[self._arm, candidate.number]
            sweep = SweepFolder(self._path)
            job = sweep.jobs[number]
            while job.alive():  # of a search that was killed, and has left it behind
                time.sleep(SECONDS_BETWEEN_POLLS)
            if not job.finished and job.state().get("status") != FAILED:
                perform(self._path, number, "joblib")
            if sweep.stopped is None or job.finished:
                self._results.put(self._scored(candidate, sweep, number))
        except Exception as error:
            self._results.put(Scored(candidate, error=f"{type(error).__name__}: {error}"))

    def _scored(self, candidate: Candidate, sweep: SweepFolder, number: int) -> Scored:
        """What came out, with the latency that a table tells, where the search has one."""
        found = scored(candidate, sweep.jobs[number], sweep.plan["jobs"][number])
        if not isinstance(self._space, Timed) or found.error is not None:
            return found
        told = {LATENCY: self._space.latency_of(candidate.point)}
        return dataclasses.replace(found, scores={**found.scores, **told})


def fidelity_overrides(candidate: Candidate) -> list[str]:
    """Return the fidelity as overrides. Raises `UserError` for one that a run does not have."""
    found = []
    for name, value in candidate.fidelity.items():
        if name not in FIDELITY_KEYS:
            raise UserError(f"fidelity {name}: a run has {', '.join(FIDELITY_KEYS)}.")
        found.append(f"{FIDELITY_KEYS[name]}={round(value)}")
    return found


def scored(candidate: Candidate, job: JobFolder, plan: Mapping[str, Any]) -> Scored:
    """Return what came out of a job that has ended; `plan`: what sweep.json says of it."""
    run = job.run
    if not job.finished or run is None:
        state = job.state()
        reason = state.get("reason") or f"its job is {state.get('status', 'not begun')}"
        return Scored(candidate, run=None if run is None else str(run), error=str(reason))
    results = read_results(run) or {}
    if results.get("training_macs", ...) is None:
        return Scored(candidate, run=str(run), error=UNKNOWN_COST)
    try:
        cost = less(cost_of(results), plan.get("spent_before"))
        return Scored(candidate, scores_of(results), cost, run=str(run))
    except (KeyError, TypeError, ValueError) as error:
        return Scored(candidate, run=str(run), error=f"{run}/results.json cannot be read: {error}")


def scores_of(results: Mapping[str, Any]) -> dict[str, float]:
    """Return the scores of a run: `accuracy`, and that of each setting; what the network costs.

    `accuracy` is the mean over the settings (such as 5w1s and 5w5s), in percent. All are of the
    network at the end of the run, on classes of val.
    """
    each = {f"accuracy/{k}": one["accuracy"] for k, one in accuracies_of(results, LAST).items()}
    if not each:
        raise ValueError("it holds no accuracy")
    found = {"accuracy": sum(each.values()) / len(each), **each}
    for name, value in results["efficiency"].items():
        if isinstance(value, int | float) and not isinstance(value, bool) and finite(value):
            found[name] = value
    return found


def cost_of(results: Mapping[str, Any]) -> Cost:
    """Return the seconds of all stages, the images seen, and the macs of the training."""
    images = float(sum(results["images_seen"].values()))
    macs = float(results["training_macs"]["total"])
    return Cost(float(sum(results["seconds"].values())), images, macs)
