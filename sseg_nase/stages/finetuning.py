"""Training on the labelled base images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sseg_nase.config.groups.finetune import Classifier, Prototypical
from sseg_nase.config.options import filled
from sseg_nase.config.schema import Config
from sseg_nase.config.sequence import plain, stages_of
from sseg_nase.data.placement import place as laid
from sseg_nase.data.random import derive
from sseg_nase.data.store import ImageStore
from sseg_nase.errors import UserError
from sseg_nase.fewshot.evaluation import NotFiniteError
from sseg_nase.files import check_room
from sseg_nase.finetune.learner import EpisodeLearner, around
from sseg_nase.finetune.loop import Evaluated, FineTuner, learner_of
from sseg_nase.rundir.names import CHECKPOINTS, checkpoint_of
from sseg_nase.stages.classifying import ByVal, labelled_part
from sseg_nase.stages.evaluating import FewShotTask, evaluate_named
from sseg_nase.stages.pretraining import interventions_of
from sseg_nase.stages.setup import Reached, check_sizes, images_of, stored
from sseg_nase.stages.teaching import OtherRun
from sseg_nase.tracking.sink import Sink
from sseg_nase.training import checkpoint, distributed
from sseg_nase.training.callbacks import size_of
from sseg_nase.training.divergence import DivergenceError, explained
from sseg_nase.training.ledger import FINETUNE, TEACHER_RUN
from sseg_nase.training.surgery import Before

TUNED = "the network that is fine-tuned"


class TuningStage(NamedTuple):
    """A stage of fine-tuning: which of how many, counted from 0, and its method."""

    number: int
    of: int
    method: str

    @property
    def name(self) -> str:
        """What the stage is called in results, and its training in the ledger."""
        return FINETUNE if self.of == 1 else f"{FINETUNE}_{self.method}"

    @property
    def words(self) -> str:
        """What the stage is called in messages."""
        return "fine-tuning" if self.of == 1 else f"fine-tuning with {self.method}"

    @property
    def keys(self) -> str:
        """What its keys begin with."""
        return FINETUNE if self.of == 1 else f"{FINETUNE}.{self.method}"

    @property
    def file(self) -> str:
        """The checkpoint with what it has come to, where another stage follows."""
        return f"finetune_{self.method}.pt"


def tuning_stages(config: Config) -> list[TuningStage]:
    """The stages of fine-tuning of a run, in their order."""
    stages = stages_of(config)
    return [TuningStage(n, len(stages), each.finetune.name) for n, each in enumerate(stages)]


def stage_reached(state: Mapping[str, Any] | None, config: Config) -> TuningStage | None:
    """The stage that a checkpoint of fine-tuning is of; None where nothing is fine-tuned.

    Without one, the first. Raises `UserError` where it is none of `config`.
    """
    stages = tuning_stages(config)
    number = 0 if state is None else int(state.get("number", 0))
    if not stages:
        return None
    if state is None:
        return stages[0]
    there = stages[number].method if number < len(stages) else None
    if state.get("method", there) != there:
        now = ", ".join(stage.method for stage in stages)
        raise UserError(
            f"resume={config.resume}: the run has come to fine-tuning with {state['method']} as "
            f"stage {number + 1}, and now its stages are {now}. Leave finetune out, or start a run "
            "of its own with finetune.from=RUN."
        )
    return stages[number]


def reached_by(stage: TuningStage, config: Config, folder: Path) -> Reached:
    """What `stage` of a resumed run has come to. Raises `UserError` where its
    checkpoint is missing or damaged."""
    path = folder / CHECKPOINTS / stage.file
    reached = stored(path, config)
    state = checkpoint.load(path)
    more = {key: state[key] for key in ("skipped", "tuned", "epochs")}
    return dataclasses.replace(reached, **more)


def fine_tune(
    config: Config,
    before: Reached,
    sink: Sink,
    folder: Path,
    *,
    stage: TuningStage | None = None,
    state: dict[str, Any] | None = None,
    extra: dict[str, Any] | None = None,
    teacher: OtherRun | None = None,
    head: Mapping[str, Tensor] | None = None,
    stop: Callable[[], bool] = lambda: False,
    at_once: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Reached:
    """Train the backbone of `before` on the labelled base images; what did best on val episodes.

    `config` is that of one stage of fine-tuning, `stage` of the run (None: the only one). `state`:
    of the checkpoint to go on from. Checkpoints with `extra` go to `folder`. `stop` is asked after
    every step; when it says so, `Interrupted` is raised after a checkpoint. `teacher`: what the
    classifier of finetune=linear is distilled from. `head`: the tensors of one that goes on being
    trained, instead of a new one. `at_once`: a block in which a request to stop need not wait,
    because nothing is changed in it. One device trains, however many there are. Raises `UserError`
    for images without labels, or too few of a class, and where training diverges.
    """
    stage = stage or TuningStage(0, 1, config.finetune.name)
    hardware, size = config.hardware, config.dataset.image_size
    fabric = distributed.build_fabric(hardware.accelerator, 1, hardware.precision)
    store = labelled(config)
    options = config.finetune
    classifier = isinstance(options, Classifier)
    if isinstance(options, Classifier):
        store = labelled_part(store, options, config.seed)
    images, _, notes = laid(
        store,
        0,
        image_size=size,
        channels=config.dataset.channels,
        data=config.data,
        hardware=hardware,
        device=fabric.device,
    )
    for note in notes:
        sink.event("message", {"text": note})
    assert images is not None
    evaluate = ByVal(config, store) if classifier else _by_episodes(config)

    def validate(learner: EpisodeLearner) -> Evaluated:
        with at_once():  # it may take longer than any step
            return evaluate(learner, fabric.device)

    def reached(progress: Mapping[str, Any]) -> dict[str, Any]:
        seen = dict(before.images_seen)
        seen["real_labeled"] += progress["images_seen"]
        step, macs = before.step + progress["step"], before.macs
        own = progress["macs"]
        known = own is not None and (teacher is None or teacher.spent is not None)
        if macs is not None and known:
            more = {**progress["beside"], stage.name: own}
            if teacher is not None:  # once, whatever has been done here
                more[TEACHER_RUN] = teacher.spent
            macs = {**macs, **{part: macs.get(part, 0) + n for part, n in more.items()}}
        else:
            macs = None
        history = [*before.history, *progress["history"]]
        return {"step": step, "images_seen": seen, "history": history, "macs": macs}

    def save(name: str, saved: dict[str, Any]) -> None:
        about = {"options": plain(config.finetune), "classes": len(store.class_names)}
        about |= {"number": stage.number}
        payload = {**saved, **about, **reached(saved["finetune"]), **(extra or {})}
        checkpoint.save(checkpoint_of(folder, f"finetune_{name}"), payload)

    generator = torch.Generator().manual_seed(derive(config.seed, "head"))
    classes = len(store.class_names)
    learner = around(before.backbone, config.finetune, classes, generator)
    if head is not None:
        learner.head.load_state_dict(head)
    _check_frozen(learner, config)
    schedule = config.finetune.image_sizes
    check_sizes(f"{stage.keys}.image_sizes", schedule, learner.backbone.architecture)
    if teacher is not None:
        key = f"finetune.teacher={teacher.path} with {stage.keys}.image_sizes"
        check_sizes(key, schedule, teacher.reached.backbone.architecture)
    tuned_as = dataclasses.replace(
        config, pretrain=dataclasses.replace(config.pretrain, epochs=config.finetune.epochs)
    )
    tuner = FineTuner(
        config,
        learner=learner,
        base=store,
        images=images,
        fabric=fabric,
        validate=validate,
        save=save,
        sink=sink,
        stop=stop,
        what=stage.words,
        about={"method": stage.method, "number": stage.number, "of": stage.of},
        interventions=interventions_of(tuned_as) if config.finetune.evolve else [],
        before=Before(before.epochs, len(before.history), before.step),
        teacher=None if teacher is None else teacher.on(fabric.device),
    )
    if state is not None:
        with checkpoint.taken_up("finetune_last.pt"):
            tuner.load_state_dict(state)
    else:  # for the last and the best network
        check_room(folder, 2 * size_of(tuner.state_dict()))
    try:
        tuner.fit()
    except (DivergenceError, NotFiniteError) as error:
        raise explained(error, config, folder, "finetune_last", stage.keys) from error
    best = checkpoint.load(checkpoint_of(folder, "finetune_best"))
    learner = learner_of(best["architecture"], config.finetune, classes).to(fabric.device)
    learner.load_state_dict(best["student"])
    name = f"checkpoint={checkpoint_of(folder, 'finetune_best')}"
    skipped = {**before.skipped, stage.words: tuner.progress.skipped}
    progress = dataclasses.asdict(tuner.progress)
    ended = {**reached(progress), "skipped": skipped, "tuned": [*before.tuned, _told(tuner)]}
    ended["epochs"] = before.epochs + tuner.progress.epoch
    if stage.number + 1 < stage.of:
        checkpoint.save(folder / CHECKPOINTS / stage.file, {**best, **ended})
    return Reached(learner.eval(), **ended, name=name)


def _by_episodes(
    config: Config,
) -> Callable[[EpisodeLearner, torch.device], tuple[float, float]]:
    """A function that evaluates a learner on episodes of the val classes."""
    selection = FewShotTask(selection_config(config), config.dataset)

    def evaluate(learner: EpisodeLearner, device: torch.device) -> tuple[float, float]:
        evaluated = evaluate_named(selection, Reached(learner, name=TUNED), device)
        (result,) = evaluated.results.values()
        return result["accuracy"], result["ci95"]

    return evaluate


def _told(tuner: FineTuner) -> dict[str, Any]:
    """What a stage has come to, as results tell it; epochs count from 0."""
    progress = tuner.progress
    part = {}
    if isinstance(tuner.options, Classifier):
        part["labelled_images"] = len(tuner.base.labels)
    return {
        "method": tuner.options.name,
        **part,
        "epochs": progress.epoch,
        "steps": progress.step,
        "images_seen": progress.images_seen,
        "macs": progress.macs,
        "best_epoch": progress.best_epoch,
        "val_accuracy": progress.best_accuracy,
    }


def _check_frozen(learner: EpisodeLearner, config: Config) -> None:
    """Raises `UserError` where more blocks are to be frozen than there are, or all that learns."""
    options, blocks = config.finetune, len(list(learner.backbone.stages()))
    most = blocks if any(True for _ in learner.head.parameters()) else blocks - 1
    if options.frozen_blocks > most:
        raise UserError(
            f"finetune.frozen_blocks={options.frozen_blocks}: the network has {blocks} blocks, of "
            f"which finetune={options.name} can freeze {most} at most."
        )


def selection_config(config: Config) -> Config:
    """`config` with the episodes by which fine-tuning chooses its best network.

    Of the val classes, classified as the network is trained, and others than those of the results.
    """
    options = config.finetune
    evaluation = dataclasses.replace(
        config.evaluation,
        split="val",
        shots=[filled(options.shots, "finetune.shots")],
        query_balance="balanced",
        episodes=options.validation_episodes,
        seed=derive(config.evaluation.seed, "selection"),
        method=options.evaluated_by,
        metric=options.metric if isinstance(options, Prototypical) else "cosine",
        normalize="none" if options.by_episodes else "l2n",  # of which it knows no scores
        support_augmentations=0,
        top_k=[],
    )
    return dataclasses.replace(config, evaluation=evaluation)


def labelled(config: Config) -> ImageStore:
    """The base split, which must have classes. Raises `UserError` where it has one at most."""
    store = images_of(config, config.dataset, "train")
    if len(store.class_names) < 2:
        raise UserError(
            f"dataset={config.dataset.name}: finetune={config.finetune.name} needs labels, and the "
            f"train split has {len(store.class_names)} class. Give a folder per class, or choose "
            "finetune=none."
        )
    return store
