"""The task of a run that trains: pretrain, fine-tune, evaluate, report."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sseg_nase.config.fingerprint import fingerprint
from sseg_nase.config.groups.finetune import Linear
from sseg_nase.config.schema import Config
from sseg_nase.config.sequence import stages_of
from sseg_nase.errors import UserError
from sseg_nase.files import StorageError
from sseg_nase.rundir.names import checkpoint_of
from sseg_nase.stages.classifying import is_closed, tasks_of
from sseg_nase.stages.controlling import train_control
from sseg_nase.stages.evaluating import Task, evaluate_before_tuning
from sseg_nase.stages.finetuning import (
    TuningStage,
    fine_tune,
    labelled,
    reached_by,
    stage_reached,
    tuning_stages,
)
from sseg_nase.stages.fitting import fitted, unused_images
from sseg_nase.stages.pretraining import pretrain
from sseg_nase.stages.results import conclude
from sseg_nase.stages.resuming import state_to_resume, tell_where_it_resumes
from sseg_nase.stages.running import Run
from sseg_nase.stages.setup import Reached, seed_backbone, stored
from sseg_nase.stages.teaching import OtherRun, classifier_of, guide_of
from sseg_nase.tracking import Resumed
from sseg_nase.training.ledger import TEACHER_RUN


def pipeline(this: Run) -> None:
    """Pretrain, fine-tune where that is asked for, evaluate, report."""
    config = this.config
    tasks = tasks_of(config)
    trained = config.ssl.trains and config.pretrain.epochs > 0 and config.finetune.start is None
    state, tuning = (state_to_resume(this, name) for name in ("last", "finetune_last"))
    reached = _beginning(config, this.notes)
    guide = guide_of(config) if trained else None
    if guide is not None:
        this.notes.append(f"ssl={config.ssl.name} also follows {guide.words}")
    teacher = None
    if config.finetune.trains:
        teacher = classifier_of(config, labelled(config))
        if teacher is not None:
            this.notes.append(f"finetune=linear is distilled from {teacher.words}")
    done = 0 if state is None else int(state["epoch"])
    if tuning is not None:
        done = int(tuning["finetune"]["epoch"])
    stage = stage_reached(tuning, config)
    this.tie(tasks, pretrained=trained, epochs=done)
    this.notes += unused_images(config)
    resumed = None
    if this.place.resumed:
        latest = tuning or state
        step, mutated = (0, 0) if latest is None else (latest["step"], len(latest["history"]))
        resumed = Resumed(this.place.run_id, step, mutated)
    this.open(config.pretrain.epochs if trained else 0, resumed)
    tell_where_it_resumes(this, state, tuning)
    extra = {
        "fingerprint": fingerprint(config),
        "tracker_run_id": this.sink.run_id,
        "data": this.data,
    }
    if trained:
        reached = _pretrain(this, state, extra, guide)
    # Of a closed set nothing is evaluated before all is trained and chosen.
    results = {} if is_closed(config) else _references(this, tasks, reached, trained)
    results |= {} if guide is None else {"ssl_teacher": guide.in_results()}
    if stage is not None:
        reached = _tune(this, reached, stage, tuning, extra, teacher)
        results |= {} if teacher is None else {"teacher": teacher.in_results()}
    # What is fine-tuned is chosen already: there is no other best.
    best = checkpoint_of(this.directory, "best") if trained and stage is None else None
    control = None
    if config.report.control:
        control = _train_control(this, extra, teacher, pretrained=trained)
    conclude(this, reached, tasks, results, best, control)


def check_images(config: Config) -> None:
    """Open the images that a run with `config` begins with. Raises `UserError` as the run would."""
    config, _ = fitted(dataclasses.replace(config, task="pipeline", resume=None))
    tasks_of(config)
    if config.finetune.trains:
        labelled(config)


def _beginning(config: Config, notes: list[str]) -> Reached:
    """The network that a run begins with: the seed network, or that of `finetune.from`.

    What is to be said of it is added to `notes`. Raises `UserError` where it cannot be one.
    """
    start = config.finetune.start
    if start is None:
        return Reached(seed_backbone(config, notes.append))
    reached = stored(Path(start), config)
    notes.append(f"fine-tuning begins with {start}: nothing is pretrained here")
    if reached.history and any(each.finetune.evolve for each in stages_of(config)):
        raise UserError(
            f"finetune.evolve=true: the network of finetune.from={start} has evolved already, "
            f"by {len(reached.history)} mutations that stand in the log of that run; evolve it "
            "in one run, or begin with a network that has not."
        )
    return reached


def _pretrain(
    this: Run, state: dict[str, Any] | None, extra: dict[str, Any], guide: OtherRun | None
) -> Reached:
    """Pretrain from `state` on (None: from the beginning), and what that has come to.

    `guide`: the other run whose network is followed, too. Checkpoints get `extra`.
    """
    config = this.config
    alone = config.hardware.devices == 1
    with this.stage("pretrain"), this.interruption.deferred(first_at_once=alone):
        training = pretrain(
            config,
            this.sink,
            this.directory,
            state=state,
            extra=extra,
            stop=this.interruption.is_requested,
        )
    progress = training.progress
    if "NATURAL" in config.curriculum.levels and not progress.images_seen["real_unlabeled"]:
        text = "pretraining ended before the level NATURAL: it has used no image of train"
        this.sink.event("warning", {"text": text})
    spent = training.ledger.state()
    if spent is not None and guide is not None:
        spent = None if guide.spent is None else {**spent, TEACHER_RUN: guide.spent}
    return Reached(
        training.networks.learner.backbone,
        progress.step,
        progress.images_seen,
        [record.to_dict() for record in progress.history],
        f"checkpoint={this.place.last_checkpoint}",
        {"pretraining": progress.skipped},
        spent,
        epochs=progress.epoch,
    )


def _tune(
    this: Run,
    reached: Reached,
    stage: TuningStage,
    state: dict[str, Any] | None,
    extra: dict[str, Any],
    teacher: OtherRun | None,
) -> Reached:
    """Fine-tune stage by stage, from `stage` on, where `state` left off."""
    tunings, several = stages_of(this.config), tuning_stages(this.config)
    if stage.number:
        ended = stage.number - 1
        reached = reached_by(several[ended], tunings[ended], this.directory)
    for now in several[stage.number :]:
        with this.stage(now.name), this.interruption.deferred():
            reached = fine_tune(
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
    this: Run, tasks: Sequence[Task], reached: Reached, trained: bool
) -> dict[str, Any]:
    """What the results are to be compared with: the network before training, and before tuning.

    Evaluated when that is done, because training should not wait for it.
    """
    config = this.config
    if not config.evaluation.untrained_reference:
        return {}
    with this.stage("untrained"):
        seed = Reached(seed_backbone(config))
        references = {"fewshot_untrained": evaluate_before_tuning(tasks, seed, this.device)}
    if config.finetune.trains and (trained or config.finetune.start):
        with this.stage("pretrained"):
            evaluated = evaluate_before_tuning(tasks, reached, this.device)
            references["fewshot_pretrained"] = evaluated
    return {key: evaluated.results for key, evaluated in references.items()}


def _train_control(
    this: Run, extra: dict[str, Any], teacher: OtherRun | None, *, pretrained: bool
) -> Reached | None:
    """What the network that the run began with comes to without mutations.

    None where that training diverges, or cannot be resumed: the run has its own results.
    """
    config = this.config
    start = config.finetune.start
    before = Reached(seed_backbone(config)) if start is None else stored(Path(start), config)
    alone = config.hardware.devices == 1
    with this.stage("control"), this.interruption.deferred(first_at_once=alone):
        try:
            return train_control(
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
            this.warn(f"report.control=true: the control is not trained: {error}")
            return None
