"""`strategy=darts` and the others that train one network that contains all: the search as a run.

The supernet is trained in the search's own process and folder. Every epoch's derived network is a
candidate of its log, scored with the shared weights; at the end the mutation CHOOSE, in
mutations.jsonl, leaves the answer with the weights that it had, in checkpoints/last.pt. The answer
is then trained from scratch as that of every search.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

import torch

from sseg_nase.config.groups.oneshot import OneShot, Proxyless
from sseg_nase.config.schema import Config
from sseg_nase.errors import UserError
from sseg_nase.finite import finite
from sseg_nase.oneshot.images import halves
from sseg_nase.oneshot.objectives import Labels, Objective, SelfSupervised
from sseg_nase.oneshot.supernet import described_supernet
from sseg_nase.oneshot.training import OneShotTraining, check_options, latencies_of
from sseg_nase.rundir.architecture import write_architecture
from sseg_nase.rundir.names import checkpoint_of
from sseg_nase.search import Candidate, Cost, Log, Scored
from sseg_nase.search.latency import LATENCY, Timed
from sseg_nase.spaces import NetworkSpace
from sseg_nase.spaces.choice import Point
from sseg_nase.spaces.space import Space
from sseg_nase.stages import images_of
from sseg_nase.stages.running import Run
from sseg_nase.training import checkpoint

EPOCHS, STOPPED = "supernet_epochs", "stopped"  # fidelities of the log
SUPERNET = "supernet"  # the checkpoint, and its description in search.json

Told = Callable[[Scored], None]
Say = Callable[[str], None]


@dataclass(frozen=True)
class NoCandidates:
    """In the place of a strategy: one-shot strategies ask for nothing, they train."""

    name: str

    def __call__(self, space: Space, log: Log, count: int, seed: int) -> list[Candidate]:
        """Nothing is ever asked."""
        raise AssertionError(f"strategy={self.name} trains a supernet")


def goals_of(options: OneShot) -> Mapping[str, str]:
    """What a one-shot search looks for where the search does not say."""
    return {"accuracy": "max"} if options.objective == "labels" else {"loss": "min"}


def check_one_shot(config: Config, space: Space, goals: Mapping[str, str]) -> None:
    """Raise `UserError` for what such a search cannot do, before anything is written."""
    options = config.strategy
    assert isinstance(options, OneShot)
    check_options(options, space)
    assert isinstance(space, NetworkSpace)
    known = [*goals_of(options), "skips", *space.costs(space.sample(Random(0)))]
    for name in goals:
        if name not in known:
            raise UserError(
                f"search.objectives: strategy={options.name} strategy.objective="
                f"{options.objective} tells {', '.join(known)}, and no {name}."
            )
    ((goal, direction),) = goals_of(options).items()
    if next(iter(goals.items())) != (goal, direction):
        raise UserError(
            f"search.objectives={dict(goals)}: strategy={options.name} trains for {goal}; let "
            f"{{{goal}: {direction}}} come first, and cap the others by search.caps."
        )
    if isinstance(options, Proxyless) and options.latency_weight and config.search.latency is None:
        raise UserError(
            f"strategy.latency_weight={options.latency_weight:g}: latencies come from a table; add "
            "search.latency=FILE.json, which is measured on this machine where it is not there."
        )


def objective_of(config: Config, classes: int) -> Objective:
    """What the supernet is trained for."""
    options = config.strategy
    assert isinstance(options, OneShot)
    size = config.dataset.image_size
    if options.objective == "labels":
        return Labels(classes, config.finetune.views, size)
    return SelfSupervised(config.ssl, config.views, size, options.parts)


def training_of(config: Config, space: NetworkSpace, stop: Callable[[], bool]) -> OneShotTraining:
    """The training that a configuration asks for. Raises `UserError`."""
    options = config.strategy
    assert isinstance(options, OneShot)
    store = images_of(config, config.dataset, "train")
    device = torch.device(config.hardware.accelerator)
    latencies: dict[str, list[float]] = {}
    if isinstance(options, Proxyless) and options.latency_weight:
        latencies = latencies_of(space, lambda point: space.costs(point)[LATENCY])
        if not all(finite(time) for times in latencies.values() for time in times):
            raise UserError(
                f"search.latency={config.search.latency}: it does not know all networks of space="
                f"{config.space.name}; name a table of operations, FILE.json."
            )
    return OneShotTraining(
        space,
        options,
        objective_of(config, len(store.class_names)),
        halves(
            store,
            images=options.images,
            batch_size=options.batch_size,
            seed=config.seed,
            device=device,
        ),
        config.seed,
        device,
        latencies=latencies,
        most_latency=space.caps.get(LATENCY, math.inf),
        measured=space.measured_of if isinstance(space, Timed) and LATENCY in space.caps else None,
        ema_decay=config.ssl.ema_decay,
        channels_last=config.hardware.channels_last,
        stop=stop,
    )


def train_supernet(this: Run, space: Space, log: Log, told: Told, say: Say) -> None:
    """Do the search of `strategy`, or resume it, and record all of it.

    Raises `Interrupted` when it was asked to stop; then a checkpoint has been written.
    """
    assert isinstance(space, NetworkSpace)
    with this.interruption.deferred():
        training = training_of(this.config, space, this.interruption.is_requested)
        path = checkpoint_of(this.directory, SUPERNET)

        def save() -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            checkpoint.save(path, training.state_dict())

        training.save = save
        if path.exists():
            with checkpoint.taken_up(path.name):
                training.load_state_dict(checkpoint.load(path))
            say(f"the supernet resumes after epoch {training.progress.epoch}")
        _tell(training, log, told)
        if training.computes_again and training.more:
            say(
                f"the supernet would keep {training.kept_mb:,.0f} MB of feature maps for the "
                "gradients of a batch: mixed operations are computed again instead "
                "(strategy.kept_mb)"
            )

        while training.more:
            training.train_epoch()
            records = training.close_epoch()
            save()
            _tell(training, log, told)
            if (text := _gap(training, records[0])) is not None:
                say(text)
            this.sink.event("gates", _said(training, records[0]))
        assert training.ended is not None
        if training.ended.why:
            say(f"the search ends before its last epoch: {training.ended.why}")
        if not training.chosen:
            training.choose(training.ended.record)
            save()
        for record in training.history:
            this.sink.event("mutation", record.to_dict())
        while training.further:
            training.train_epoch()
            loss, epoch = training.end_epoch(), training.progress.epoch
            save()
            say(f"epoch {epoch} of the network that was chosen: loss {loss:.4f}")
        _keep(this, training)


def _gap(training: OneShotTraining, record: Mapping[str, Any]) -> str | None:
    """What is lost when something is chosen; None of a supernet that never computes all at once."""
    goal, scores = training.objective.goal, record["scores"]
    if f"supernet_{goal}" not in scores:
        return None
    return (
        f"epoch {record['epoch'] + 1}/{training.options.epochs}: {goal} of the supernet "
        f"{scores[f'supernet_{goal}']:.2f}, of the network that would be chosen {scores[goal]:.2f} "
        f"with {scores['skips']} skip connections"
    )


def _said(training: OneShotTraining, record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "epoch": record["epoch"],
        "weights": record["gates"],
        "chosen": training.containing.operations(record["picks"]),
        "scores": record["scores"],
    }


def _tell(training: OneShotTraining, log: Log, told: Told) -> None:
    """Put what the training has come to into the log, as far as it is not there yet.

    A brake's answer is told once more, behind all others: the best of the fullest fidelity is the
    answer of a search.
    """
    for record in training.records:
        epochs = record["epoch"] + 1
        _tell_one(training, log, told, record, {EPOCHS: epochs}, f"epoch {epochs}")
    ended = training.ended
    if ended is not None and ended.why:
        record = {**training.records[ended.record], "images": 0, "macs": 0, "seconds": 0.0}
        last = max(each["epoch"] for each in training.records) + 1
        _tell_one(training, log, told, record, {EPOCHS: last, STOPPED: 1}, ended.why)


def _tell_one(
    training: OneShotTraining,
    log: Log,
    told: Told,
    record: Mapping[str, Any],
    fidelity: Mapping[str, float],
    how: str,
) -> None:
    point: Point = training.point(record["picks"])
    key = training.space.key(point)
    candidate = log.find(key, fidelity)
    if candidate is None:
        candidate = Candidate(
            len(log.candidates), point, key, fidelity, how=how, after=len(log.told)
        )
        log.ask([candidate])
    if log.result(candidate.number) is not None:
        return
    costs = {name: float(cost) for name, cost in training.space.costs(point).items()}
    cost = Cost(record["seconds"], float(record["images"]), float(record["macs"]))
    scores = {**costs, **{name: float(value) for name, value in record["scores"].items()}}
    told(log.tell(Scored(candidate, scores, cost)))


def _keep(this: Run, training: OneShotTraining) -> None:
    """The answer's network with its weights, as checkpoints of runs have theirs."""
    network = training.learner.backbone
    state = {f"backbone.{name}": tensor for name, tensor in network.state_dict().items()}
    images = int(sum(record["images"] for record in training.records))
    labelled = training.options.objective == "labels"
    source = "real_labeled" if labelled else "real_unlabeled"
    seen = dict.fromkeys(("synthetic", "real_unlabeled", "real_labeled"), 0) | {source: images}
    macs = int(sum(record["macs"] for record in training.records))
    checkpoint.save(
        checkpoint_of(this.directory, "last"),
        {
            "architecture": network.architecture.to_dict(),
            "student": state,
            "history": [record.to_dict() for record in training.history],
            "epoch": training.progress.epoch,
            "step": training.progress.step,
            "images_seen": seen,
            "macs": {"student": macs},
        },
    )
    write_architecture(this.directory, network.architecture.to_dict())


def with_supernet(config: Config, space: Space, plan: dict[str, Any]) -> dict[str, Any]:
    """What search.json says, with the supernet that the mutations of its search begin with."""
    options = config.strategy
    if not isinstance(options, OneShot) or not isinstance(space, NetworkSpace):
        return plan
    partial = getattr(options, "partial", 1)
    return {**plan, SUPERNET: described_supernet(space, partial=partial).to_dict()}
