"""`task=search`: ask, measure, record, until the budget or the space ends; then the report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from sseg_nase.config.commands import command
from sseg_nase.config.compose import beside_hydra, load
from sseg_nase.config.groups.evaluator import (
    EvaluatorConfig,
    OfInherited,
    OfPredictor,
    OfProxies,
    OfRuns,
    OfTable,
    OwnEvaluator,
)
from sseg_nase.config.groups.oneshot import OneShot
from sseg_nase.config.schema import Config
from sseg_nase.errors import UserError
from sseg_nase.files import StorageError, write_json
from sseg_nase.hardware.energy import why_no_energy
from sseg_nase.rundir.names import CANDIDATES, SEARCH
from sseg_nase.rundir.status import FINISHED
from sseg_nase.search import Function, Log, Scored, search
from sseg_nase.search.loop import Evaluator
from sseg_nase.searches.analysis import fullest
from sseg_nase.searches.answer import check_answer, find_answer
from sseg_nase.searches.choices import described
from sseg_nase.searches.evaluators import check_proxies, of_networks, predicted, proxy
from sseg_nase.searches.folder import SearchFolder
from sseg_nase.searches.inheriting import check_inheritance, inherited
from sseg_nase.searches.jobs import check_goals, check_space, of_jobs
from sseg_nase.searches.launched import SLURM, Launcher, jobs_for
from sseg_nase.searches.oneshot import check_one_shot, train_supernet, with_supernet
from sseg_nase.searches.outcome import outcome, outcome_lines
from sseg_nase.searches.own import called, imported
from sseg_nase.searches.parts import Parts, final_seeds, parts_of, tabular
from sseg_nase.searches.progress import Progress, said_of
from sseg_nase.spaces.space import Space
from sseg_nase.stages.pipeline import check_images
from sseg_nase.stages.running import Run
from sseg_nase.sweeps.plan import placed
from sseg_nase.tracking import Resumed

IMAGES = ("dataset", "evaluation")  # sections of the configuration that say which are opened
TRAINED_ON = ("curriculum", "finetune")  # groups that do


def check_search(
    config: Config,
    overrides: Sequence[str],
    further: Sequence[Path] = (),
    folder: Path | None = None,
) -> Parts:
    """Return what a search is made of; raise `UserError` for what cannot be searched.

    `folder`: the search's own, once it has one.
    """
    parts = parts_of(config, overrides, further, folder)
    if parts.budget.endless and parts.space.size is None:
        raise UserError(
            f"search.budget: space={config.space.name} never ends; set one limit, such as "
            "search.budget.candidates=20."
        )
    if isinstance(config.evaluator, OfRuns) or final_seeds(config):
        check_space(config, parts.space)
    check_answer(config, parts.space, overrides, further)
    if isinstance(config.strategy, OneShot):
        check_one_shot(config, parts.space, parts.objectives.goals)
    elif isinstance(config.evaluator, OfRuns):
        check_goals(config, parts.objectives, why_no_energy(config.hardware.accelerator))
    if isinstance(config.evaluator, OfProxies | OfInherited):
        of_networks(config, parts.space, f"evaluator={config.evaluator.name}")
    check_inheritance(config, parts.space)
    if isinstance(config.evaluator, OfProxies):
        check_proxies(config)
    return parts


def perform_search(
    this: Run,
    overrides: Sequence[str],
    further: Sequence[Path] = (),
    launcher: Launcher | None = None,
) -> None:
    """Do the search of a run's config in the run's directory.

    `overrides`: those that the config was composed with, which its jobs get, too; `further`: config
    folders beside `conf/`; `launcher`: runs the jobs, None where they are processes of this one.
    """
    config = this.config
    parts = check_search(config, overrides, further, this.directory)
    elsewhere = launcher is not None and launcher.name == SLURM  # perhaps with images of its own
    if isinstance(config.evaluator, OfRuns) and not elsewhere:
        _check_images(parts.space, overrides, further)
    evaluator: Evaluator
    if not isinstance(config.evaluator, OfRuns):
        evaluator = evaluator_of(config, parts, this.directory)
    _describe(this, parts)
    with Log.open(this.directory / CANDIDATES, parts.objectives, parts.about) as log:
        resumed = Resumed(this.place.run_id, len(log.told), 0) if this.place.resumed else None
        this.open(resumed=resumed)
        say: Callable[[str], None] = lambda text: this.sink.event("message", {"text": text})  # noqa: E731
        progress = Progress(parts.objectives, parts.space)
        for known in log.told:
            this.sink.metrics(progress.add(known), len(progress.told))
        if log.candidates:
            pending = len(log.pending)
            say(f"resumed after {len(log.told)} results, {pending} candidates are pending")

        def told(result: Scored) -> None:
            this.sink.metrics(progress.add(result), len(progress.told))
            this.sink.event("candidate", {"number": result.candidate.number})
            say(said_of(result, parts.objectives, progress.best, parts.space))

        jobs = None
        if isinstance(config.evaluator, OfRuns) or final_seeds(config):
            jobs = jobs_for(
                launcher, this.directory, config, parts.space, overrides, further,
                this.sink.run_id, say,
            )  # fmt: skip
        if isinstance(config.evaluator, OfRuns):
            assert jobs is not None
            evaluator = jobs
        try:
            with this.stage("search"):
                if isinstance(config.strategy, OneShot):
                    train_supernet(this, parts.space, log, told, say)
                else:
                    search(
                        parts.space,
                        parts.strategy,
                        evaluator,
                        log,
                        parts.budget,
                        seed=config.seed,
                        at_once=config.search.at_once,
                        told=told,
                    )
            if jobs is not None and final_seeds(config):
                with this.stage("answer"):
                    find_answer(this.directory, config, parts, log, evaluator, jobs, say)
        except BaseException:
            if jobs is not None:
                jobs.stop()
            raise
        if jobs is not None:
            jobs.close()
        _conclude(this, log, parts.space, say)


def _check_images(space: Space, overrides: Sequence[str], further: Sequence[Path]) -> None:
    """Raise `UserError` for images that no candidate could use, where its point does not say which.

    So it is said once, and not by every candidate.
    """
    sections = {choice.name.split(".")[0] for choice in space.choices}
    groups = {choice.name for choice in space.choices}
    if not (sections.isdisjoint(IMAGES) and groups.isdisjoint(TRAINED_ON)):
        return
    try:
        with beside_hydra():
            config = placed(load([*of_jobs(overrides), "task=pipeline"], *further))
    except UserError:  # it lacks what a point says
        return
    check_images(config)


def evaluator_of(config: Config, parts: Parts, folder: Path) -> Evaluator:
    """Return an evaluator that starts no runs: one of the house, or one of the user's own.

    `folder`: the search's own. Raises `UserError`.
    """
    options = config.evaluator
    if isinstance(options, OwnEvaluator):
        return _own_evaluator(options.target, options.settings)
    return EVALUATORS[type(options)](config, parts, folder)


def _predicted(config: Config, parts: Parts, folder: Path) -> Evaluator:
    assert parts.learnt_from is not None
    return predicted(config, parts.space, parts.learnt_from)


# Of every option of `evaluator` that starts no runs; one from outside is added to it.
EVALUATORS: dict[type[EvaluatorConfig], Callable[[Config, Parts, Path], Evaluator]] = {
    OfTable: lambda config, parts, folder: tabular(config, parts.space),
    OfProxies: lambda config, parts, folder: proxy(config, parts.space),
    OfPredictor: _predicted,
    OfInherited: lambda config, parts, folder: inherited(
        config, of_networks(config, parts.space, "evaluator=inherited"), folder
    ),
}


def _own_evaluator(target: str, settings: Mapping[str, Any]) -> Evaluator:
    found = imported("evaluator.target", target)
    if isinstance(found, type):
        found = called("evaluator", target, found, **settings)
        if all(hasattr(found, name) for name in ("slots", "start", "result")):
            return cast(Evaluator, found)
    elif settings:
        raise UserError(
            f"evaluator.settings={settings}: {target} is a function and takes none; make it a "
            "class with these fields and __call__(candidate)."
        )
    if not callable(found):
        raise UserError(f"evaluator.target={target}: it is no function of a candidate.")
    return Function(found)


def _describe(this: Run, parts: Parts) -> None:
    """Write search.json, with which the folder is a search's."""
    config = this.config
    before = this.directory / SEARCH
    if before.exists() and not this.place.changes:
        return
    plan: dict[str, Any] = {
        "schema": 1,
        "created": time.time(),
        "title": f"space={config.space.name} strategy={config.strategy.name} "
        f"evaluator={config.evaluator.name} seed={config.seed}",
        "choices": {choice.name: described(choice) for choice in parts.space.choices},
        "budget": _limits(config),
    }
    write_json(before, with_supernet(config, parts.space, plan))


def _limits(config: Config) -> dict[str, float]:
    """How much the search may spend, by name, without what has no limit; epochs of a supernet."""
    if isinstance(config.strategy, OneShot):
        return {"epochs": config.strategy.epochs}
    budget = asdict(config.search.budget)
    return {name: limit for name, limit in budget.items() if limit is not None}


def _conclude(this: Run, log: Log, space: Space, say: Callable[[str], None]) -> None:
    """Say what came out, and draw the report, which never costs the search anything but time."""
    best = log.best(fullest(log))
    if best is None:
        failed = [result for result in log.told if result.error is not None]
        why = f"; the first failed: {failed[0].error}" if failed else ""
        raise UserError(f"none of {len(log.told)} candidates has a score within the caps{why}")
    say(f"best: {said_of(best, log.objectives, best, space)}")
    for line in outcome_lines(outcome(this.directory)):
        say(line)
    if not this.config.report.at_end:
        return
    from sseg_nase.searches.report import write_report  # here, because of Matplotlib

    # From here on the search is finished, whatever comes: the report says so, too.
    this.place.write_status(FINISHED, undelivered=not this.sink.delivered)
    try:
        with this.stage("report"):
            files = write_report(SearchFolder(this.directory), this.directory / "report")
    except (KeyboardInterrupt, StorageError):
        raise
    except Exception as error:
        again = command(task="report", search=this.directory)
        text = f"the report is not written: {type(error).__name__}: {error}; {again} writes it"
        this.sink.event("warning", {"text": text})
        return
    for path in files:
        folder = path.parent.relative_to(this.directory).as_posix()
        this.sink.artifact(path, folder)
    say(f"report: {this.directory / 'report' / 'report.html'}")
