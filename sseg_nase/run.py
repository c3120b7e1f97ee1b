"""One run: a composed config, a directory, a tracker, and an ending that is always recorded."""

from __future__ import annotations

import dataclasses
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sseg_nase import stages
from sseg_nase.config.commands import command
from sseg_nase.config.compose import hardware_profiles, overrides_of
from sseg_nase.config.fingerprint import fingerprint, flat
from sseg_nase.config.groups.finetune import Linear
from sseg_nase.config.groups.tracking import InStore
from sseg_nase.config.places import settled
from sseg_nase.config.schema import RESUMED, Config, HardwareConfig
from sseg_nase.config.sequence import stages_of
from sseg_nase.data.store import ImageStore
from sseg_nase.errors import UserError
from sseg_nase.files import StorageError, storage_error, write_json
from sseg_nase.finite import figure
from sseg_nase.hardware.determinism import deterministic, explain_refused
from sseg_nase.hardware.memory import enforce_memory_cap, explain_out_of_memory
from sseg_nase.hardware.profiles import resolve
from sseg_nase.nets.backbone import Backbone
from sseg_nase.nets.own import registered_by
from sseg_nase.redaction import overrides_without, redacted
from sseg_nase.rundir.architecture import write_architecture
from sseg_nase.rundir.confusion import write_confusions
from sseg_nase.rundir.data import write_data
from sseg_nase.rundir.directory import RunDirectory, with_former_values
from sseg_nase.rundir.embeddings import write_embeddings
from sseg_nase.rundir.environment import write_environment
from sseg_nase.rundir.episodes import write_episodes
from sseg_nase.rundir.names import ARCHITECTURE, CHECKPOINTS, CONFIG, checkpoint_of
from sseg_nase.rundir.results import (
    BEST,
    CLOSED_SECTIONS,
    LAST,
    SECTIONS,
    has_results,
    write_results,
)
from sseg_nase.rundir.status import FAILED, FINISHED, INTERRUPTED, RUNNING
from sseg_nase.stages import identity
from sseg_nase.stages.served import write_model
from sseg_nase.streams import unbroken_output
from sseg_nase.tracking import Resumed, RunInfo, Sink, build_tracker
from sseg_nase.tracking.console import print_summary
from sseg_nase.tracking.mlflow_sink import resolve_uri, unused_address
from sseg_nase.tracking.sweeps import ASKED_TAG
from sseg_nase.training import checkpoint
from sseg_nase.training.interruption import Interruption
from sseg_nase.training.ledger import TEACHER_RUN

NAME_LENGTH = 120
REPLAY = "replay.json"
KEPT = ("images", "roles", "files", "drawn", "drawing")  # of the data of earlier epochs
# No params of the method; those of `hardware` are recorded as they took effect.
UNRECORDED = (
    *("paths.", "tracking.", "hardware.", "data.", "sweep.", "report."),
    *("export.", "predict.", "ui."),
)
OF_SEARCH = ("search.", "space.", "strategy.", "evaluator.")  # no params of a run that is none
UNNAMED = ("paths.", "tracking", "hydra", "sweep", "experiment_name=", "task=search")


@dataclass(frozen=True)
class Membership:
    """The sweep that a run belongs to, and what it is called there.

    `asked` is the job's fingerprint; `began` is told the run's directory as soon as there is one.
    """

    sweep: str
    name: str
    parent_run_id: str | None
    asked: str
    began: Callable[[Path], None]


@dataclass
class Run:
    """What the tasks share. `config` is the effective one: its hardware values are concrete.

    `asked` is the fingerprint of the config before that, the same on every machine.
    """

    config: Config
    place: RunDirectory
    sink: Sink
    name: str
    asked: str
    notes: list[str]
    interruption: Interruption
    sweep: Membership | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    opened: bool = False
    ended: str | None = None
    data: dict[str, Any] = field(default_factory=dict)
    overlaps: list[str] = field(default_factory=list)

    @property
    def directory(self) -> Path:
        """Where everything of the run goes."""
        return self.place.path

    @property
    def device(self) -> torch.device:
        """Where networks and images go."""
        return torch.device(self.config.hardware.accelerator)

    def open(self, total_epochs: int = 0, resumed: Resumed | None = None) -> None:
        """Tell the tracker about the run. Done after the inputs are known to be good."""
        effective = {f"effective/{k}": v for k, v in flat_scalars(self.config.hardware).items()}
        idle = UNRECORDED if self.config.task == "search" else (*UNRECORDED, *OF_SEARCH)
        params = {
            key: value
            for key, value in flat(self.config).items()
            if value is not None and not key.startswith(idle)
        }
        tags = {
            "fingerprint": fingerprint(self.config),
            ASKED_TAG: self.asked,
            "task": self.config.task,
        }
        if self.sweep is not None:
            tags["sweep"] = self.sweep.sweep
        self.sink.open(
            RunInfo(
                directory=self.directory,
                name=self.name,
                experiment=self.config.experiment_name,
                config_file=self.directory / CONFIG,
                total_epochs=total_epochs,
                params={**params, **effective},
                tags=tags,
                resumed=resumed,
                parent_run_id=None if self.sweep is None else self.sweep.parent_run_id,
                datasets=identity.datasets(self.data),
            )
        )
        self.opened = True
        self.place.run_id = self.sink.run_id
        self.place.write_status(RUNNING)
        for note in [*self.notes, *self.place.notes]:
            self.sink.event("message", {"text": note})
        for text in self.overlaps:
            self.sink.event("warning", {"text": text})

    def tie(self, tasks: Sequence[stages.Task], *, pretrained: bool, epochs: int = 0) -> None:
        """Record which images the run works with, and compare them with those that it began with.

        Raises `UserError` where they are others and `resume_overrides` does not say that this is
        meant. `epochs` are done with those that were.
        """
        before = self.place.data()
        now = identity.data_of(self.config, tasks, pretrained=pretrained)
        changed = identity.differences(before, now)
        if changed and not self.config.resume_overrides:
            raise identity.refuse(self.directory, changed, epochs)
        earlier = list(before.get("earlier", []))
        if changed:
            kept = {k: before[k] for k in KEPT if k in before}
            earlier.append({"until_epoch": epochs, **kept, "changed": changed})
            self.notes += [f"resumed with other data: {k}: {what}" for k, what in changed.items()]
        elif self.place.resumed and not before:
            self.notes.append(
                "an older version has recorded no checksums of this run's images: they are not "
                "compared, and recorded from here on"
            )
        self.data = {**now, **({"earlier": earlier} if earlier else {})}
        seen = identity.trained_on(self.data)
        self.overlaps = [
            *identity.overlaps(seen, self.data),
            *identity.changed_base(now["trained_before"], self.data),
            *identity.drawn_otherwise(self.data),
        ]
        write_data(self.directory, self.data)

    def know(self, tasks: Sequence[stages.Task]) -> None:
        """Record the images that were not opened before they were evaluated."""
        known, roles = dict(self.data["images"]), {**self.data["roles"]}
        for role, key, store in (one for task in tasks for one in task.stores()):
            known[key] = identity.identity(store)
            roles[role] = list(dict.fromkeys([*roles.get(role, []), key]))
        self.data = {**self.data, "images": known, "roles": roles}
        self.overlaps = [
            *self.overlaps,
            *identity.overlaps(identity.trained_on(self.data), self.data),
        ]
        self.overlaps = list(dict.fromkeys(self.overlaps))
        write_data(self.directory, self.data)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Name and time a stage."""
        self.sink.event("stage", {"stage": name})
        began = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - began, 3)


def run(
    config: Config,
    overrides: Sequence[str] | None = None,
    sweep: Membership | None = None,
    *,
    task: Callable[[Run], None] | None = None,
) -> Path:
    """Run one config and return its directory.

    `task` is done where the config's own is none of `TASKS`: one of a room above this one.

    `overrides` are those that it was composed with: they name the run, and it is resumed with them.
    Without them it is called after its experiment, and resumed with all that differs from `conf/`.
    `status.json` in the directory says RUNNING, FINISHED, FAILED (with the error) or INTERRUPTED.
    With `config.resume` the run in that directory goes on. Raises `UserError` for the user's
    mistakes, `Interrupted` when it was asked to stop; anything else that is raised is ours.
    """
    if task is None and config.task not in TASKS:
        raise UserError(
            f"task={config.task} inspects what is on disk and is no run: on the command line, "
            f"sseg-nase task={config.task}."
        )
    with unbroken_output(), Interruption() as interruption:
        named = overrides_without(overrides or ())
        begun_with = overrides_without(overrides_of(config)) if overrides is None else named
        return _held(config, named, begun_with, sweep, interruption, task)


def _held(
    config: Config,
    named: Sequence[str],
    overrides: Sequence[str],
    sweep: Membership | None,
    interruption: Interruption,
    task: Callable[[Run], None] | None,
) -> Path:
    """`run` in its directory, which is given back whatever happens."""
    config = settled(config)
    registered_by("backbone.imports", config.backbone.imports)  # a checkpoint may have them, too
    asked = fingerprint(config) if sweep is None else sweep.asked
    hardware, notes = resolve(config.hardware, hardware_profiles())
    config = with_former_values(dataclasses.replace(config, hardware=hardware), overrides)
    config, fitted = stages.fitted(config)
    notes += fitted
    _check_epochs(config)
    make = RunDirectory.reopen if config.resume else RunDirectory.create
    place = make(config, overrides)
    try:
        if sweep is not None:
            sweep.began(place.path)
        if place.finished:
            print(f"{place.path} is FINISHED: there is nothing left to do")
            return place.path
        try:
            config = _tracked_where_it_was(config, place)
            sink = build_tracker(config.tracking)
        except UserError as error:
            _tell_status(place, FAILED, str(error))
            raise
        except KeyboardInterrupt:
            _tell_status(place, INTERRUPTED, f"interrupted ({interruption.requested or 'SIGINT'})")
            raise
        if (unused := unused_address(config.tracking)) is not None:
            notes.append(unused)
        name = run_name(config, named) if sweep is None else sweep.name
        _run(Run(config, place, sink, name, asked, notes, interruption, sweep), task)
    finally:
        place.release()
    return place.path


def _tracked_where_it_was(config: Config, place: RunDirectory) -> Config:
    """With the store's address made absolute: a resumed run may be started from another folder."""
    tracking = config.tracking
    if not isinstance(tracking, InStore):
        return config
    if tracking.uri is None and place.tracking_uri is not None:
        tracking = dataclasses.replace(tracking, uri=place.tracking_uri)
    place.tracking_uri = resolve_uri(tracking.uri)
    return dataclasses.replace(config, tracking=tracking)


def _run(this: Run, task: Callable[[Run], None] | None = None) -> None:
    """Do the task, the config's own unless one is given, and record how it ended."""
    try:
        with deterministic(this.config.hardware.deterministic):
            _prepare(this.config.hardware)
            write_environment(this.directory)
            (task or TASKS[this.config.task])(this)
            if this.ended is None:
                _end(this, FINISHED)
    except KeyboardInterrupt as error:
        if this.ended == FINISHED:  # the results are there, and all that is left was said
            return
        _end(this, INTERRUPTED, f"interrupted ({this.interruption.requested or 'SIGINT'})")
        if this.config.task in RESUMED:  # another task is started again instead
            error.run_dir = this.directory  # type: ignore[attr-defined]  # what can be resumed
        raise
    except UserError as error:
        if this.place.resumed and not this.opened and not isinstance(error, StorageError):
            this.place.restore()  # it was refused: the run stays as it was
            raise
        raise _failed(this, error) from error
    except BaseException as error:
        full = storage_error(error, this.directory)
        if full is not None:
            raise _failed(this, full) from error
        remedy = explain_out_of_memory(error, this.config) or explain_refused(error, this.config)
        _end(this, FAILED, remedy or f"{type(error).__name__}: {error}", traceback.format_exc())
        if remedy is not None:
            raise UserError(remedy) from error
        error.run_dir = this.directory  # type: ignore[attr-defined]  # where the traceback is
        raise


def _failed(this: Run, error: UserError) -> UserError:
    """End the run as FAILED; return what is to be said of it, with what could not be written."""
    _end(this, FAILED, str(error))
    if not isinstance(error, StorageError):
        return error
    said = this.place.status().get("status")
    still = f"still says {said}" if said else "does not say how the run ended"
    untold = "" if said == FAILED else f" status.json could not be changed and {still}."
    resume = f" Then resume it: {command(resume=this.directory)}"
    resumable = this.config.task in RESUMED
    return UserError(f"{error}{untold}{resume if resumable else ''}")


def pipeline(this: Run) -> None:
    """Pretrain, fine-tune where that is asked for, evaluate, report."""
    config = this.config
    tasks = stages.tasks_of(config)
    start = config.finetune.start
    trained = config.ssl.trains and config.pretrain.epochs > 0 and start is None
    state, tuning = (_state_to_go_on_from(this, name) for name in ("last", "finetune_last"))
    if start is None:
        reached = stages.Reached(stages.seed_backbone(config, this.notes.append))
    else:
        reached = stages.stored(Path(start), config)
        this.notes.append(f"fine-tuning begins with {start}: nothing is pretrained here")
        if reached.history and any(each.finetune.evolve for each in stages_of(config)):
            raise UserError(
                f"finetune.evolve=true: the network of finetune.from={start} has evolved already, "
                f"by {len(reached.history)} mutations that stand in the log of that run; evolve it "
                "in one run, or begin with a network that has not."
            )
    guide = stages.guide_of(config) if trained else None
    if guide is not None:
        this.notes.append(f"ssl={config.ssl.name} also follows {guide.words}")
    teacher = None
    if config.finetune.trains:
        base = stages.labelled(config)
        teacher = stages.classifier_of(config, base)
        if teacher is not None:
            this.notes.append(f"finetune=linear is distilled from {teacher.words}")
    done = 0 if state is None else int(state["epoch"])
    if tuning is not None:
        done = int(tuning["finetune"]["epoch"])
    stage = stages.stage_reached(tuning, config)
    this.tie(tasks, pretrained=trained, epochs=done)
    this.notes += stages.unused_images(config)
    resumed = None
    if this.place.resumed:
        latest = tuning or state
        step, mutated = (0, 0) if latest is None else (latest["step"], len(latest["history"]))
        resumed = Resumed(this.place.run_id, step, mutated)
    this.open(config.pretrain.epochs if trained else 0, resumed)
    _tell_how_it_goes_on(this, state, tuning)
    extra = {
        "fingerprint": fingerprint(config),
        "tracker_run_id": this.sink.run_id,
        "data": this.data,
    }
    stop = this.interruption.is_requested
    alone = config.hardware.devices == 1
    if trained:
        with this.stage("pretrain"), this.interruption.deferred(first_at_once=alone):
            training = stages.pretrain(
                config, this.sink, this.directory, state=state, extra=extra, stop=stop
            )
        progress = training.progress
        if "NATURAL" in config.curriculum.levels and not progress.images_seen["real_unlabeled"]:
            text = "pretraining ended before the level NATURAL: it has used no image of train"
            this.sink.event("warning", {"text": text})
        history = [record.to_dict() for record in progress.history]
        backbone = training.networks.learner.backbone
        name = f"checkpoint={this.place.last_checkpoint}"
        spent = training.ledger.state()
        if spent is not None and guide is not None:
            spent = None if guide.spent is None else {**spent, TEACHER_RUN: guide.spent}
        reached = stages.Reached(
            backbone,
            progress.step,
            progress.images_seen,
            history,
            name,
            {"pretraining": progress.skipped},
            spent,
            epochs=progress.epoch,
        )
    pretrained = trained
    # Of a closed set nothing is evaluated before all is trained and chosen.
    results = {} if stages.is_closed(config) else _references(this, tasks, reached, trained)
    results |= {} if guide is None else {"ssl_teacher": guide.in_results()}
    if stage is not None:
        reached = _tune(this, reached, stage, tuning, extra, teacher)
        results |= {} if teacher is None else {"teacher": teacher.in_results()}
        trained = False  # what counts is chosen: there is no other best
    best = checkpoint_of(this.directory, "best") if trained else None
    control = None
    if config.report.control:
        control = _train_control(this, extra, teacher, pretrained=pretrained)
    _evaluate(this, reached, tasks, results, best, control)


def _train_control(
    this: Run, extra: dict[str, Any], teacher: stages.OtherRun | None, *, pretrained: bool
) -> stages.Reached | None:
    """What the network that the run began with comes to without mutations.

    None where that training diverges, or cannot be resumed: the run has its own results.
    """
    config = this.config
    start = config.finetune.start
    if start is None:
        before = stages.Reached(stages.seed_backbone(config))
    else:
        before = stages.stored(Path(start), config)
    alone = config.hardware.devices == 1
    with this.stage("control"), this.interruption.deferred(first_at_once=alone):
        try:
            return stages.train_control(
                config,
                before,
                this.sink,
                this.directory / "control",
                pretrained=pretrained,
                resumed=this.place.resumed,
                extra=extra,
                teacher=teacher,
                stop=this.interruption.is_requested,
                at_once=this.interruption.at_once,
            )
        except StorageError:
            raise
        except UserError as error:
            _warn(this, f"report.control=true: the control is not trained: {error}")
            return None


def _tune(
    this: Run,
    reached: stages.Reached,
    stage: stages.TuningStage,
    state: dict[str, Any] | None,
    extra: dict[str, Any],
    teacher: stages.OtherRun | None,
) -> stages.Reached:
    """Fine-tune stage by stage, from `stage` on, where `state` left off."""
    tunings, several = stages_of(this.config), stages.tuning_stages(this.config)
    if stage.number:
        ended = stage.number - 1
        reached = stages.reached_by(several[ended], tunings[ended], this.directory)
    for now in several[stage.number :]:
        with this.stage(now.name), this.interruption.deferred():
            reached = stages.fine_tune(
                tunings[now.number],
                reached,
                this.sink,
                this.directory,
                stage=now,
                state=state if now == stage else None,
                extra=extra,
                teacher=teacher if isinstance(tunings[now.number].finetune, Linear) else None,
                stop=this.interruption.is_requested,
                at_once=this.interruption.at_once,
            )
    return reached


def _references(
    this: Run, tasks: Sequence[stages.Task], reached: stages.Reached, trained: bool
) -> dict[str, Any]:
    """What the results are to be compared with: the network before training, and before tuning.

    Evaluated when that is done, because training should not wait for it.
    """
    config = this.config
    if not config.evaluation.untrained_reference:
        return {}
    with this.stage("untrained"):
        seed = stages.Reached(stages.seed_backbone(config))
        references = {"fewshot_untrained": stages.evaluate_before_tuning(tasks, seed, this.device)}
    if config.finetune.trains and (trained or config.finetune.start):
        with this.stage("pretrained"):
            evaluated = stages.evaluate_before_tuning(tasks, reached, this.device)
            references["fewshot_pretrained"] = evaluated
    return {key: evaluated.results for key, evaluated in references.items()}


def _check_epochs(config: Config) -> None:
    """Refuse to resume a run for fewer epochs than it has done: they cannot be undone.

    Before anything of the run is touched. Without `resume_overrides` the epochs are as they were.
    """
    if not config.resume or not config.resume_overrides:
        return
    folder = Path(config.resume).expanduser()
    for file in ("last", "finetune_last"):
        path = checkpoint_of(folder, file)
        state = checkpoint.resumable(path) if path.exists() else {}
        progress, key, asked = state, "pretrain.epochs", config.pretrain.epochs
        if file == "finetune_last":
            progress = state.get("finetune", {})
            stage = stages.stage_reached(state or None, config)
            if stage is None:
                continue
            key = f"{stage.keys}.epochs"
            asked = stages_of(config)[stage.number].finetune.epochs
        begun = int(progress.get("epoch", 0)) + bool(progress.get("batch"))
        if begun > asked:
            raise UserError(
                f"{key}={asked}: the run in {config.resume} has trained for {begun} already; take "
                f"{begun} or more, or start a run of its own."
            )


def _untrained(this: Run, tasks: Sequence[stages.Task]) -> dict[str, Any]:
    """How the network before any training does on a closed set; a classifier it has none."""
    evaluation = this.config.evaluation
    wanted = evaluation.untrained_reference and this.config.task == "pipeline"
    if not wanted or evaluation.name == "classification":
        return {}
    seed = stages.Reached(stages.seed_backbone(this.config))
    return {CLOSED_SECTIONS["untrained"]: stages.evaluate(tasks, seed, this.device).results}


def _state_to_go_on_from(this: Run, name: str) -> dict[str, Any] | None:
    """The checkpoint of a resumed run by that name; None where there is none yet."""
    path = checkpoint_of(this.directory, name)
    return checkpoint.resumable(path) if this.place.resumed and path.exists() else None


def _tell_how_it_goes_on(
    this: Run, state: dict[str, Any] | None, tuning: dict[str, Any] | None
) -> None:
    if not this.place.resumed:
        return
    where = "the beginning: there is no checkpoint yet"
    if tuning is not None:
        stage = stages.stage_reached(tuning, this.config)
        training = "fine-tuning" if stage is None else stage.words
        where = f"epoch {tuning['finetune']['epoch'] + 1} of {training}, step {tuning['step']}"
    elif state is not None:
        where = f"epoch {state['epoch'] + 1}, step {state['step']}"
    this.sink.event("message", {"text": f"resumed at {where}"})
    for key, (old, new) in this.place.changes.items():
        text = f"resumed with {key}: {old} -> {new}"
        this.sink.event("warning", {"text": text, "key": key, "old": old, "new": new})


def evaluate(this: Run) -> None:
    """Evaluate the network in `checkpoint`, without any training."""
    config = this.config
    assert config.checkpoint is not None
    reached = stages.stored(Path(config.checkpoint), config)
    stages.check_head(reached, config)
    tasks = stages.tasks_of(config)
    stages.check_classifier(reached, config, tasks)
    this.tie(tasks, pretrained=False)
    this.open()
    _evaluate(this, reached, tasks, {})


def curriculum(this: Run) -> None:
    """Draw a preview picture per level and the difficulty table; write all images where asked."""
    export = None
    if this.config.curriculum.export is not None:
        export = Path(this.config.curriculum.export)
        stages.check_export(export)
    this.open()
    with this.stage("curriculum"):
        rows = stages.draw_curriculum(this.config, this.directory)
    for path in sorted(this.directory.glob("preview_*.png")):
        this.sink.artifact(path, "curriculum")
    this.sink.artifact(this.directory / "difficulty.md", "curriculum")
    for row in rows:
        text = f"{row['level']}: difficulty {row['difficulty']:.4f} over {row['images']} images"
        this.sink.event("message", {"text": text})
    if export is not None:
        with this.stage("export"):
            counts = stages.export_curriculum(this.config, export)
        total, levels = sum(counts.values()), len(counts)
        text = f"{export}: {total:,} images of {levels} levels as PNG, with {stages.EXPORT_TABLE}"
        this.sink.event("message", {"text": text})
    _end(this, FINISHED)


def replay(this: Run) -> None:
    """Rebuild every architecture of `run` from its log alone, and check it against the records."""
    assert this.config.run is not None
    records, architectures = stages.replayed(Path(this.config.run))
    this.open()
    with this.stage("replay"):
        lines = [f"seed network: {_sizes(architectures[0].summary())}"]
        for record in records:
            ending = "accepted" if record["accepted"] else "rolled back"
            step = f"mutation {record['index']}: {record['kind']} after epoch {record['epoch'] + 1}"
            lines.append(f"{step}, {_sizes(record['after'])} ({ending})")
        for line in lines:
            this.sink.event("message", {"text": line})
        write_json(this.directory / REPLAY, [a.to_dict() for a in architectures])
        write_architecture(this.directory, architectures[-1].to_dict())
    for name in (REPLAY, ARCHITECTURE):
        this.sink.artifact(this.directory / name, "replay")
    _end(this, FINISHED)


def _sizes(counts: Mapping[str, Any]) -> str:
    channels = "-".join(map(str, counts["channels"]))
    return f"channels {channels}, params {counts['params']:,}, macs {counts['macs']:,}"


TASKS: Mapping[str, Callable[[Run], None]] = {
    "pipeline": pipeline,
    "evaluate": evaluate,
    "curriculum": curriculum,
    "replay": replay,
}


def _evaluate(
    this: Run,
    reached: stages.Reached,
    tasks: Sequence[stages.Task],
    results: dict[str, Any],
    best: Path | None = None,
    control: stages.Reached | None = None,
) -> None:
    """Evaluate, write the files of the results, `results.json` last, and end the run.

    `best`: the checkpoint of the best network of the run, where it has trained one. `control`: what
    it is compared with, where one was trained.
    """
    backbone, mutations = reached.backbone, reached.history
    closed = stages.is_closed(this.config)
    sections = CLOSED_SECTIONS if closed else SECTIONS
    with this.stage("evaluate"):
        evaluated = {LAST: stages.evaluate(tasks, reached, this.device)}
        if closed:
            this.know(tasks)
            results = {**results, **_untrained(this, tasks)}
        if (views := this.config.evaluation.test_views) > 1:
            averaged = stages.evaluate(tasks, reached, this.device, views)
            about = {"views": views, "macs": views * backbone.architecture.macs()}
            results = {**results, sections["views"]: averaged.results, "test_views": about}
        why = None if best is None else checkpoint.unreadable(best)
        if why is not None:
            text = f"{best} {why}: the best network is not evaluated"
            this.sink.event("warning", {"text": text})
        elif best is not None:
            about, evaluated[BEST] = stages.evaluate_best(
                tasks, best, backbone, evaluated[LAST], this.device
            )
            results = {**results, sections[BEST]: evaluated[BEST].results, "best": about}
        if control is not None:
            beside = stages.evaluate(tasks, control, this.device)
            told = stages.compared(control, beside, evaluated[LAST])
            results = {**results, sections["control"]: beside.results, "control": told}
    results = {sections[LAST]: evaluated[LAST].results, **results}
    for text in stages.doubted(results):
        this.sink.event("warning", {"text": text})
    with this.stage("efficiency"):
        costs = stages.efficiency(backbone, this.config.dataset.image_size, this.device)
    spent = None  # where a checkpoint of an older version does not say
    if reached.macs is not None:
        spent = {"total": sum(reached.macs.values()), **_positive(reached.macs)}
    results = {
        "schema": 1,
        "fingerprint": fingerprint(this.config),
        "status": FINISHED,
        "seconds": this.seconds,
        "architecture": backbone.architecture.summary(),
        "fewshot": {},
        **results,
        "efficiency": costs,
        "mutations": sum(record["accepted"] for record in mutations),
        "images_seen": dict(reached.images_seen),
        "training_macs": spent,
        **({"finetuning": list(reached.tuned)} if reached.tuned else {}),
        **({"skipped_steps": skipped} if (skipped := _positive(reached.skipped)) else {}),
        "data": identity.in_results(this.data) | {"doubts": this.overlaps},
    }
    # At step 0, and MLflow draws a bar per run; a run that goes on behind its results adds to them.
    at = reached.step if has_results(this.directory) else 0
    parts = ("accuracy", "ci95", *(("precision", "recall", "f1", "auc") if closed else ()))
    for group in (sections[name] for name in (LAST, BEST, "control")):
        for key, value in results.get(group, {}).items():
            known = [part for part in parts if value[part] is not None]
            figures = {f"{group}/{key}/{part}": value[part] for part in known}
            figures |= {f"{group}/{key}/top{k}": share for k, share in value["top_k"].items()}
            this.sink.metrics(figures, at)
    # What counts first: the network chosen by its loss, without labels, where there is one.
    headline = BEST if sections[BEST] in results else LAST
    size = results["best"]["params"] if headline == BEST else results["architecture"]["params"]
    first = results[sections[headline]]
    figures = {f"headline/{key}": one["accuracy"] for key, one in first.items()}
    this.sink.metrics({**figures, "headline/params": float(size)}, at)
    logged = ("params", "macs", "latency_ms_b1", "latency_ms_b64", "peak_memory_mb")
    measured = {key: value for key in logged if (value := figure(costs[key])) is not None}
    measured |= {} if spent is None else {"training_macs": float(spent["total"])}
    this.sink.metrics({f"efficiency/{key}": value for key, value in measured.items()}, at)
    write_architecture(this.directory, backbone.architecture.to_dict())
    write_episodes(this.directory, {name: each.accuracies for name, each in evaluated.items()})
    write_confusions(this.directory, {name: each.confusions for name, each in evaluated.items()})
    if (shown := evaluated[LAST].embeddings) is not None:
        write_embeddings(this.directory, shown)
    write_results(this.directory, results)
    if isinstance(this.config.tracking, InStore):
        chosen = checkpoint.backbone_of(best) if headline == "best" and best else backbone
        *_, (_, _, examples) = tasks[0].stores()
        _keep(this, this.config.tracking, chosen, evaluated[headline], examples)
    if this.config.report.at_end:
        _report(this)
    _end(this, FINISHED)
    print_summary(results, mutations, this.sink.page)


def _keep(
    this: Run,
    tracking: InStore,
    backbone: Backbone,
    evaluated: stages.Evaluation,
    examples: ImageStore,
) -> None:
    """Give the tracker the network that the results are headed by, and the checkpoints.

    `examples` of images go with the network. A run that has its results loses nothing where that
    fails.
    """
    files: list[Path] = []
    if tracking.model:
        try:
            files += write_model(
                this.directory, this.config, backbone, evaluated.mean, examples, this.sink.run_id
            )
        except Exception as error:
            _warn(this, f"tracking.model=true: the model is not written: {error}")
    if tracking.checkpoints:
        files += sorted((this.directory / CHECKPOINTS).glob("*.pt"))
    for path in files:
        this.sink.artifact(path, path.parent.relative_to(this.directory).as_posix())


def _positive(counts: Mapping[str, int]) -> dict[str, int]:
    return {what: count for what, count in counts.items() if count}


def _report(this: Run) -> None:
    """Draw the report of a run that has its results. It never costs the run anything but time."""
    from sseg_nase.reporting.run_report import NAME, write_report  # here, because of Matplotlib

    # From here on the run is finished, whatever comes: the report says so, too.
    this.place.write_status(FINISHED, undelivered=not this.sink.delivered)
    again = f"{command(task='report', runs=this.directory)} writes it"
    try:
        with this.stage(NAME):
            files = write_report(this.directory, published=this.config.report.published)
    except KeyboardInterrupt:
        _warn(this, f"the report is not written: interrupted; {again}")
        return
    except Exception as error:
        full = storage_error(error, this.directory)
        why = f"{type(error).__name__}: {error}" if full is None else str(full)
        _warn(this, f"the report is not written: {why.rstrip('.')}; {again}")
        return
    for path in files:
        folder = path.parent.relative_to(this.directory).as_posix()
        this.sink.artifact(path, folder)
    this.sink.event("message", {"text": f"report: {this.directory / NAME / 'report.html'}"})


def run_name(config: Config, overrides: Sequence[str]) -> str:
    """What was overridden, or the experiment's name when nothing was."""
    shown = [o for o in overrides if not o.lstrip("+~").startswith(UNNAMED)]
    name = " ".join(shown) or config.experiment_name
    if len(name) <= NAME_LENGTH:
        return name
    cut = name[: NAME_LENGTH - 2]
    return f"{cut.rpartition(' ')[0] or cut} …"  # half an override would say another value


def flat_scalars(section: Any) -> dict[str, str | int | float | bool]:
    """The scalar fields of a config section that have a value."""
    values = dataclasses.asdict(section).items()
    return {key: value for key, value in values if isinstance(value, str | int | float | bool)}


def _prepare(hardware: HardwareConfig) -> None:
    if hardware.threads is not None:
        torch.set_num_threads(hardware.threads)
    enforce_memory_cap(torch.device(hardware.accelerator), hardware.max_memory_gb)


def _end(this: Run, status: str, error: str | None = None, trace: str | None = None) -> None:
    """Say how the run has ended: on disk first, then to all sinks. Only FINISHED may fail."""
    if this.interruption.requested is not None:
        this.sink.hurry()
    with this.interruption.ending():
        # It holds until the opposite is known: a process may be killed while it delivers.
        undelivered = not this.sink.delivered
        if status == FINISHED:
            this.place.write_status(status, error, trace, undelivered=undelivered)
        else:
            _tell_status(this.place, status, error, trace, undelivered=undelivered)
        this.ended = status
        try:
            this.sink.close(status, error)
        except KeyboardInterrupt:
            send = command(task="deliver", run=this.directory)
            _say(f"interrupted while it delivered; {send} sends what is missing")
        except StorageError as failure:
            if status == FINISHED:
                _say(f"the end of the run is not in events.jsonl: {failure}")
        if undelivered and this.sink.delivered:
            with suppress(StorageError):  # what stands there is true, but for what has arrived
                this.place.write_status(status, error, trace)


def _tell_status(
    place: RunDirectory,
    status: str,
    error: str | None,
    trace: str | None = None,
    *,
    undelivered: bool = False,
) -> None:
    """Write how a run has ended. Where that fails it is said by whoever reads it back."""
    with suppress(StorageError):
        place.write_status(status, error, trace, undelivered=undelivered)


def _warn(this: Run, text: str) -> None:
    """A warning about a run that has its results: on the terminal where the disk takes none."""
    try:
        this.sink.event("warning", {"text": text})
    except StorageError:
        _say(text)


def _say(text: str) -> None:
    print(f"sseg-nase: {redacted(text)}", file=sys.stderr, flush=True)
