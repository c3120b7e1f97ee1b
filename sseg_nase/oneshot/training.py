"""The training of a supernet: weights on one half of train, what chooses on the other.

    while training.more:
        training.train_epoch()                   # raises `Interrupted` when asked to stop
        record = training.close_epoch()          # what is derived now, and its score
    training.choose(picks)                       # CHOOSE: the derived network with its weights
    while training.further: training.train_epoch()

All random numbers are a function of the seed and the step, so it resumes from `state_dict` bit for
bit on a CPU. In float32, on one device.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sseg_nase.config.groups.oneshot import Darts, OneShot, PCDarts, Proxyless
from sseg_nase.data.random import derive
from sseg_nase.errors import UserError
from sseg_nase.evolution.history import MutationRecord, counts
from sseg_nase.evolution.operators import (
    TrainingState,
    apply,
    load_moments,
    named_moments,
)
from sseg_nase.nets.backbone import Backbone
from sseg_nase.nets.building import build, described
from sseg_nase.nets.evolvable import Learner, head_shaped
from sseg_nase.nets.searched import SearchedNetwork
from sseg_nase.oneshot.deriving import Picks, skips
from sseg_nase.oneshot.gates import Gates
from sseg_nase.oneshot.images import Half
from sseg_nase.oneshot.objectives import Objective, Seen
from sseg_nase.oneshot.rules import PASS, RULES, Rule
from sseg_nase.oneshot.supernet import (
    attach,
    choosing,
    compute_again,
    described_supernet,
    kept_bytes,
    supernet,
)
from sseg_nase.spaces.choice import Value
from sseg_nase.spaces.networks import NetworkSpace
from sseg_nase.ssl.methods import Teaching
from sseg_nase.ssl.teacher import ema_update, make_teacher, untracked
from sseg_nase.tracking.sink import Sink
from sseg_nase.training.distributed import build_fabric
from sseg_nase.training.divergence import DivergenceError, Guard
from sseg_nase.training.skeleton import Loop
from sseg_nase.training.state import Progress, State
from sseg_nase.training.surgery import check_size

RECALIBRATION = 2_000  # images from which BN's statistics are re-estimated before an evaluation
PROBE = 32  # images on which a CHOOSE is compared with the supernet
EXACT = 1e-5  # relative difference up to which it computes the same
KEPT = ("epoch", "batch", "step", "seen", "images", "macs", "seconds")  # of the progress


@dataclass
class SupernetProgress(Progress):
    """`seen` validation batches; the images, macs and seconds of this epoch. `sums`: its loss."""

    sums: list[float] = field(default_factory=lambda: [0.0])
    seen: int = 0
    images: int = 0
    macs: int = 0
    seconds: float = 0.0


@dataclass
class Ended:
    """The search is over: why, where a brake has ended it, and the record with its answer."""

    record: int
    why: str = ""


@dataclass
class OneShotTraining(Loop):
    """The supernet of `space` in training; `records`: one per epoch and network that was evaluated.

    `latencies`: see `rules.TwoPaths`. What is derived takes `most_latency` ms at most where
    `measured` measures the network of a point. `ema_decay`: of the teacher, where the objective has
    one. `save` is called where `stop`, asked after every step, says so. Raises `UserError` for a
    space without a supernet.
    """

    space: NetworkSpace
    options: OneShot
    objective: Objective
    halves: tuple[Half, Half]
    seed: int
    device: torch.device
    latencies: Mapping[str, Sequence[float]] = field(default_factory=dict)
    most_latency: float = math.inf
    measured: Callable[[Mapping[str, Value]], float | None] | None = None
    ema_decay: float = 0.99
    channels_last: bool = True
    stop: Callable[[], bool] = lambda: False
    save: Callable[[], None] = lambda: None

    sums_in = torch.float64

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(derive(self.seed, "supernet"))
        partial = self.options.partial if isinstance(self.options, PCDarts) else 1
        network, self.gates = supernet(
            self.space, partial=partial, edges=partial > 1, generator=generator
        )
        self.gates.to(self.device)
        self.containing = self.space.containing(partial)
        make = RULES[type(self.options)]
        self.rule: Rule = make(self.options, self.gates, self.seed, self.containing)
        self.ended: Ended | None = None
        progress = SupernetProgress()
        self.state = State("the supernet", self.options.epochs, Sink(), progress)
        self.records: list[dict[str, Any]] = []
        self._macs: dict[str, int] = {}
        self.kept_mb = self._kept_mb(network)
        self._install(self.objective.learner(network, generator))
        self.memory = {n: t.to(self.device) for n, t in self.objective.memory().items()}
        self.batches_per_epoch = self.halves[0].batches
        fabric = build_fabric(self.device.type, 1, "32-true")
        self.guard = Guard(
            fabric, self.parts(), steps_per_epoch=self.batches_per_epoch, what=self.state.what
        )

    # -- where it is -------------------------------------------------------------------------

    @property
    def progress(self) -> SupernetProgress:
        """Where it is."""
        assert isinstance(self.state.progress, SupernetProgress)
        return self.state.progress

    @property
    def history(self) -> list[MutationRecord]:
        """Of the CHOOSE, where there was one."""
        return self.progress.history

    @property
    def chosen(self) -> bool:
        """Whether the learner is the network that was chosen, and no supernet any more."""
        return bool(self.history)

    @property
    def more(self) -> bool:
        """Whether the search goes on."""
        return self.ended is None

    @property
    def further(self) -> bool:
        """Whether the network that was chosen is still to be trained."""
        assert self.ended is not None
        return self.chosen and self.progress.epoch < self._searched + self.options.further_epochs

    @property
    def _searched(self) -> int:
        """Epochs of the search, which is over."""
        return 1 + max(int(record["epoch"]) for record in self.records)

    @property
    def rate(self) -> float:
        """The learning rate of this epoch: a cosine over the search, the last one after it."""
        options, epochs = self.options, self.options.epochs
        share = min(self.progress.epoch / epochs, 1.0)
        fall = options.weight_lr - options.final_weight_lr
        found = options.final_weight_lr + fall * (1 + math.cos(math.pi * share)) / 2
        return found if not self.chosen else max(found, options.weight_lr / 100)

    def generator(self, purpose: str) -> torch.Generator:
        """For the random numbers of this step and purpose."""
        place = self.progress.epoch, self.progress.batch
        return torch.Generator().manual_seed(derive(self.seed, purpose, *place))

    # -- an epoch ----------------------------------------------------------------------------

    def train_epoch(self) -> None:
        """Train what is left of an epoch.

        Raises `Interrupted` after a whole step and `save`, and `DivergenceError` where the loss is
        not finite.
        """
        try:
            super().train_epoch()
            self.guard.check_losses(self.progress.sums, f"in {self.state.position()}")
        except DivergenceError as error:
            raise DivergenceError(
                f"{error} Lower strategy.weight_lr={self.options.weight_lr:g}, or set "
                "strategy.clip_norm=5."
            ) from error
        self.progress.seconds += time.perf_counter() - self.began

    def begin_epoch(self) -> None:
        """At the learning rate of the epoch."""
        self.learner.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate

    def batches(self) -> Iterator[Seen]:
        """Of the half that the weights are trained on."""
        half, progress = self.halves[0], self.progress
        for index in range(progress.batch, half.batches):
            number = progress.epoch * half.batches + index
            yield self.objective.see(half.at(number), derive(self.seed, "views", number))

    def differentiate(self, batch: Seen, of: int, *, last: bool) -> Tensor:
        """A step of what chooses, then the gradient of the weights; the loss, detached `[1]`."""
        if self.chosen:
            return self._gradient(batch, None)
        self.rule.train(self, batch)
        with self.rule.training_weights(self) as picks:
            return self._gradient(batch, picks)

    def _gradient(self, seen: Seen, picks: Picks | None) -> Tensor:
        losses = self.objective.loss(self.learner, seen, self._teaching(tracks=True))
        # Of the weights alone: those of paths that were not taken keep no gradient, and no decay.
        losses.total.backward(inputs=self.weights)
        if losses.memory is not None:
            self.memory = dict(losses.memory)
        self.spend(picks, seen, PASS)
        self.progress.images += len(seen.labels)
        return losses.total.detach().unsqueeze(0)

    def prepare(self) -> None:
        """The gradients' norm."""
        if self.options.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.weights, self.options.clip_norm)

    def follow(self) -> None:
        """The teacher, where the objective has one."""
        if self.teacher is not None:
            ema_update(self.teacher, self.learner.backbone, self.ema_decay)
        if self.teacher_head is not None:
            ema_update(self.teacher_head, self.learner.head, self.ema_decay)

    def stepped(self, figures: Tensor, sums: Tensor) -> None:
        """Nothing is reported before the epoch ends."""

    def interrupted(self) -> None:
        """Save the supernet and what chooses."""
        self.progress.seconds += time.perf_counter() - self.began
        self.save()

    def tensors(self) -> dict[str, Any]:
        """All that is saved."""
        return self.state_dict()

    def parts(self) -> dict[str, nn.Module]:
        """The supernet with its head."""
        return {"supernet": self.learner}

    def close_epoch(self) -> list[dict[str, Any]]:
        """Evaluate what is derived after an epoch of the search; its records, and on to the next.

        Raises `UserError` where no network is allowed.
        """
        began, progress = time.perf_counter(), self.progress
        figures = self.rule.close_epoch(self)
        if self.rule.mixes:
            figures[f"supernet_{self.objective.goal}"] = self.goal_of(None)
        figures["train_loss"] = progress.sums[0] / self.batches_per_epoch
        gates = {name: self.gates.weights(name).tolist() for name in self.gates.names}
        found = []
        for picks in self.rule.derived(self):
            scores = {self.objective.goal: self.goal_of(picks), "skips": self.skips(picks)}
            record = {"epoch": progress.epoch, "picks": picks, "scores": {**scores, **figures}}
            found.append({**record, "gates": gates, "images": 0, "macs": 0, "seconds": 0.0})
        seconds = progress.seconds + time.perf_counter() - began
        found[0] |= {"images": progress.images, "macs": progress.macs, "seconds": seconds}
        self.records += found
        self._next_epoch()
        firsts = [r for r in self.records if r["images"] or r["macs"]]
        if (stopped := self.rule.stopped(firsts)) is not None:
            why, number = stopped
            self.ended = Ended(self.records.index(firsts[number]), why)
        elif progress.epoch == self.options.epochs:
            self.ended = Ended(self._best(found))
        return found

    def _best(self, last: Sequence[Mapping[str, Any]]) -> int:
        """The best of the records of the last epoch."""
        sign = 1 if self.objective.direction == "max" else -1
        best = max(last, key=lambda record: sign * record["scores"][self.objective.goal])
        return next(number for number, each in enumerate(self.records) if each is best)

    def _next_epoch(self) -> None:
        progress = self.progress
        progress.epoch, progress.batch, progress.sums = progress.epoch + 1, 0, [0.0]
        progress.seconds, progress.images, progress.macs = 0.0, 0, 0

    def end_epoch(self) -> float:
        """After an epoch of the network that was chosen: its mean loss, and on to the next."""
        loss = self.progress.sums[0] / self.batches_per_epoch
        self._next_epoch()
        return loss

    # -- what rules ask ----------------------------------------------------------------------

    def validation(self) -> Seen:
        """The next batch of the other half, counted as seen."""
        number, self.progress.seen = self.progress.seen, self.progress.seen + 1
        seen = self.objective.see(self.halves[1].at(number), derive(self.seed, "other", number))
        self.progress.images += len(seen.labels)
        return seen

    def loss(self, seen: Seen) -> Tensor:
        """Of the supernet as it is: with its gates, or what is picked."""
        return self.objective.loss(self.learner, seen, self._teaching()).total

    def reward(self, picks: Picks) -> float:
        """How well a network does on the next batch of the other half."""
        seen = self.validation()
        self.spend(picks, seen, 1)
        with self.picked(picks):
            return self.objective.reward(self.learner, seen, self._teaching())

    @contextmanager
    def without_tracking(self) -> Iterator[None]:
        """Within, no BN tracks anything: α is trained on other images than the weights."""
        with untracked(self.learner):
            yield

    def spend(self, picks: Picks | None, seen: Seen, passes: int) -> None:
        """Count the macs of so many passes through the supernet, or the network of `picks`."""
        self.progress.macs += passes * seen.images * self._macs_of(picks)

    def allowed(self, picks: Picks) -> bool:
        """Whether a network is within search.caps and strategy.max_skips."""
        most = self.options.max_skips
        if most is not None and self.skips(picks) > most:
            return False
        return self.space.allows(self.point(picks))

    def latency(self, picks: Picks) -> float | None:
        """Of a network, in ms, measured here; None where nothing measures it."""
        return None if self.measured is None else self.measured(self.point(picks))

    def key(self, picks: Picks) -> str:
        """Of the space."""
        return self.space.key(self.point(picks))

    # -- what is derived ---------------------------------------------------------------------

    def picked(self, picks: Picks) -> AbstractContextManager[None]:
        """Within, the supernet computes this network alone; of no picks, all that it does."""
        return self.gates.picked(self.containing.candidates(picks))

    def point(self, picks: Picks) -> dict[str, Value]:
        """The point of a network."""
        return self.containing.point(picks)

    def skips(self, picks: Picks) -> int:
        """Of a network."""
        return skips({name: str(value) for name, value in self.point(picks).items()})

    def goal_of(self, picks: Picks | None) -> float:
        """The goal of a network with the shared weights, None of the supernet itself.

        On all images of the half that what chooses is trained on; BN's statistics are estimated for
        it on the others. Nothing that is trained changes.
        """
        learner = copy.deepcopy(self.learner)
        attach(learner, self.gates)
        train, val = self.halves
        known = [each for each in train.all(RECALIBRATION) if len(each.labels) > 1]
        self.progress.macs += (len(train.chosen[:RECALIBRATION]) + len(val)) * self._macs_of(picks)
        seed = derive(self.seed, "judged")  # part of what the results are made from, so it stays
        with self.picked(picks or {}):
            return self.objective.evaluate(learner, self._teaching(), known, val.all(), seed)

    def choose(self, number: int) -> MutationRecord:
        """CHOOSE: the network of a record, with its weights, moments and teacher, is the learner.

        The record of the mutation says how far it is from the supernet with these picks alone, and
        the validation loss before anything was chosen and after (of a supernet that never mixes,
        with these picks).
        """
        began, picks = time.perf_counter(), self.records[number]["picks"]
        backbone = self.learner.backbone
        mutation = choosing(self.space, backbone.architecture, picks)
        inherits = all(source is not None for source in mutation.sources.values())
        probe = next(iter(self.halves[1].all(PROBE))).pixels[:PROBE].float() / 127.5 - 1
        generator = torch.Generator().manual_seed(derive(self.seed, "chosen"))
        state = TrainingState(
            self.learner.state_dict(),
            None if self.teacher is None else self.teacher.state_dict(),
            named_moments(self.optimizer, self.learner),
            None if self.teacher_head is None else self.teacher_head.state_dict(),
            self.memory,
        )
        head = self.objective.head(mutation.after.features, generator)
        seen = self.objective.see(self.halves[1].at(0), derive(self.seed, "chosen"))
        with self.picked(picks):
            expected = _embedded(backbone, probe, self.gates)
        with self.picked({} if self.rule.mixes else picks):
            loss_before = self._held_loss(seen)
        after = apply(mutation, state, head=head)
        self._load(mutation.after.to_dict(), after)
        check_size(self.learner.backbone, mutation)
        found = _embedded(self.learner.backbone, probe, self.gates)
        delta = ((found - expected).norm() / expected.norm().clamp_min(1e-12)).item()
        assert not inherits or delta <= EXACT, delta
        record = MutationRecord(
            index=0,
            epoch=self.progress.epoch - 1,
            step=self.progress.step,
            kind=mutation.kind,
            target=mutation.target,
            trigger={
                "reason": (self.ended and self.ended.why) or "the search is over",
                "epoch": int(self.records[number]["epoch"]),
                "inherits": inherits,
            },
            before=counts(mutation.before),
            after=counts(mutation.after),
            function_delta=delta,
            loss_before=loss_before,
            loss_after=self._held_loss(seen),
            fitness=None,
            seconds=time.perf_counter() - began,
            accepted=True,
        )
        self.history.append(record)
        return record

    # -- parts -------------------------------------------------------------------------------

    @property
    def weights(self) -> list[nn.Parameter]:
        """What is trained of the learner."""
        return [p for p in self.learner.parameters() if p.requires_grad]

    @property
    def computes_again(self) -> bool:
        """Whether less is kept for gradients than `kept_mb`, and computed twice."""
        limit = self.options.kept_mb if isinstance(self.options, Darts) else None
        return limit is not None and self.kept_mb > limit

    def _kept_mb(self, network: SearchedNetwork) -> float:
        """Megabytes of maps that a batch keeps for gradients, in each of its parts."""
        if not isinstance(self.options, Darts):
            return 0.0
        seen = self.objective.see(self.halves[0].at(0), 0)
        attach(network, self.gates)
        each = kept_bytes(network, self.device, channels_last=self.channels_last)
        return each * seen.images / self.options.parts / 1e6

    def _install(self, learner: Learner) -> None:
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        self.learner = learner.to(self.device).to(memory_format=layout).train()
        self.optimizer = torch.optim.SGD(
            self.weights,
            lr=self.options.weight_lr,
            momentum=self.options.momentum,
            weight_decay=self.options.weight_decay,
        )
        self.teacher: Backbone | None = None
        self.teacher_head: nn.Module | None = None
        if self.objective.has_target:
            self.teacher, self.teacher_head = (
                make_teacher(learner.backbone),
                make_teacher(learner.head),
            )
            attach(self.teacher, self.gates)  # a copy of the network has a copy of its gates
        attach(self.learner, self.gates)
        compute_again(self.learner, self.computes_again)

    def _teaching(self, *, tracks: bool = False) -> Teaching:
        epoch = self.progress.epoch
        return Teaching(self.teacher, self.teacher_head, self.memory, epoch, tracks)

    @torch.no_grad()
    def _held_loss(self, seen: Seen) -> float:
        """With the statistics of the batch; nothing is tracked."""
        with self.without_tracking():
            return self.loss(seen).item()

    def _macs_of(self, picks: Picks | None) -> int:
        if picks is None:
            return self.learner.backbone.architecture.macs()
        key = self.space.to_json(self.point(picks))
        if key not in self._macs:
            self._macs[key] = self.space.describe(self.point(picks)).macs()
        return self._macs[key]

    def state_dict(self) -> dict[str, Any]:
        """Everything a checkpoint holds: tensors and plain data."""
        head, teacher, progress = self.teacher_head, self.teacher, self.progress
        return {
            **{name: getattr(progress, name) for name in KEPT},
            "loss": progress.sums[0],
            "records": copy.deepcopy(self.records),
            "ended": None if self.ended is None else asdict(self.ended),
            "history": [record.to_dict() for record in self.history],
            "rule": self.rule.state_dict(),
            "architecture": self.learner.backbone.architecture.to_dict(),
            "student": self.learner.state_dict(),
            "moments": named_moments(self.optimizer, self.learner),
            "teacher": None if teacher is None else teacher.state_dict(),
            "teacher_head": None if head is None else head.state_dict(),
            "memory": dict(self.memory),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        kept = {name: state[name] for name in KEPT}
        history = [MutationRecord.from_dict(record) for record in state["history"]]
        self.state.progress = SupernetProgress(**kept, sums=[state["loss"]], history=history)
        self.records = [dict(record) for record in state["records"]]
        self.ended = None if state["ended"] is None else Ended(**state["ended"])
        self.rule.load_state_dict(state["rule"])
        names = ("student", "teacher", "moments", "teacher_head", "memory")
        saved = TrainingState(**{name: state[name] for name in names})
        self._load(state["architecture"], saved)

    def _load(self, architecture: Mapping[str, Any], state: TrainingState) -> None:
        """Install the learner that `state` is of."""
        description = described(architecture)
        generator = torch.Generator()
        with torch.random.fork_rng(devices=[]):
            backbone = build(description)
            head = self.objective.head(description.features, generator)
        parts = {
            part: {
                name.removeprefix(f"{part}."): tensor
                for name, tensor in state.student.items()
                if name.startswith(f"{part}.")
            }
            for part in ("head", "predictor")
        }
        if head is None:
            head = head_shaped(parts["head"], description.features)
        learner = Learner(backbone, head, head_shaped(parts["predictor"]))
        learner.load_state_dict(dict(state.student))
        self._install(learner)
        load_moments(self.optimizer, self.learner, state.moments)
        for network, tensors in (
            (self.teacher, state.teacher),
            (self.teacher_head, state.teacher_head),
        ):
            if network is not None and tensors is not None:
                network.load_state_dict(dict(tensors))
        self.memory = {name: tensor.to(self.device) for name, tensor in state.memory.items()}


@torch.no_grad()
def _embedded(backbone: Backbone, images: Tensor, gates: Gates) -> Tensor:
    """Embeddings in eval mode and float64, leaving the network as it is."""
    copied = copy.deepcopy(backbone).double().eval()
    attach(copied, gates)
    found: Tensor = copied(images.double())
    return found


def check_options(options: OneShot, space: Any) -> None:
    """Raise `UserError` where the space has no network that contains all others."""
    if not isinstance(space, NetworkSpace):
        raise UserError(
            f"strategy={options.name}: the points of space={space.name} describe no network; "
            "choose a space of operations alone, such as space=nb201."
        )
    partial = options.partial if isinstance(options, PCDarts) else 1
    described_supernet(space, partial=partial).count()
    if isinstance(options, Proxyless) and not space.containing().one_by_one:
        raise UserError(
            f"strategy={options.name}: it compares two candidates of every gate, and space="
            f"{space.name} chooses what its steps read, too: take strategy=darts or "
            "strategy=pc_darts, or a space of operations alone, such as space=nb201."
        )


def latencies_of(
    space: NetworkSpace, cost: Callable[[Mapping[str, Value]], float]
) -> dict[str, list[float]]:
    """By gate, what each candidate costs in all its places, less what the first one does.

    Exact where the cost of a network is a sum over its operations, as that of a table measured by
    operations is; of other costs it is the difference in a network of first candidates.
    """
    first = {choice.name: choice.grid(1)[0] for choice in space.choices}
    known = cost(first)
    return {
        choice.name: [cost({**first, choice.name: value}) - known for value in choice.grid(1)]
        for choice in space.choices
    }
