"""Self-supervised pretraining. It knows no tracker, no Hydra and no particular mutation."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from functools import partial
from hashlib import sha256
from typing import Any
from weakref import WeakMethod

import torch
from torch import Tensor, nn

from sseg_nase.config.schema import Config
from sseg_nase.data.curriculum.render import perturb
from sseg_nase.data.feed import Batch, CurriculumFeed
from sseg_nase.data.random import derive
from sseg_nase.evolution.history import MutationRecord
from sseg_nase.hardware.allocator import release_memory
from sseg_nase.nets.backbone import Backbone
from sseg_nase.nets.evolvable import Learner
from sseg_nase.ssl.methods import Losses, method_of
from sseg_nase.ssl.objectives import nt_xent
from sseg_nase.ssl.teacher import ema_decay
from sseg_nase.tracking.sink import Sink
from sseg_nase.training.accumulation import differentiate
from sseg_nase.training.compiling import Choice, choose
from sseg_nase.training.distributed import (
    gather_rows,
    same_everywhere,
    synchronizing,
)
from sseg_nase.training.divergence import Guard
from sseg_nase.training.events import Callback, Event
from sseg_nase.training.fabric import Fabric, restore_precision
from sseg_nase.training.graphs import CudaGraph, Replayed, Views, why_not
from sseg_nase.training.ledger import STUDENT, TEACHER, Ledger
from sseg_nase.training.measurements import Probe
from sseg_nase.training.networks import Networks, Workshop
from sseg_nase.training.optim import set_learning_rate
from sseg_nase.training.skeleton import Loop
from sseg_nase.training.state import EpochMeans, Pretraining, PretrainingProgress
from sseg_nase.training.surgery import Intervention, PretrainingSurgery

VIEWS = "views"


class Trainer(Loop):
    """Self-supervised pretraining with interventions between epochs.

    When `stop` says so, `fit` emits `INTERRUPT` and raises `Interrupted`. With several processes
    all of them run the same `fit`: each on its share of every batch, with losses and BN statistics
    over the whole of it. `guide`: the network of another run, which embeddings follow, too
    (ssl.teacher).
    """

    state: Pretraining

    def __init__(
        self,
        config: Config,
        *,
        learner: Learner,
        feed: CurriculumFeed,
        fabric: Fabric,
        interventions: Sequence[Intervention] = (),
        callbacks: Sequence[Callback] = (),
        sink: Sink | None = None,
        stop: Callable[[], bool] = lambda: False,
        guide: Backbone | None = None,
    ) -> None:
        self.config, self.feed, self.fabric, self.stop = config, feed, fabric, stop
        self.device, self.callbacks = fabric.device, list(callbacks)
        self.method = method_of(config.ssl)
        self.workshop = Workshop(config, fabric.device, guide)
        self.ledger = Ledger()
        # With hardware.accumulate=exact the feed's batches are those of a whole step, in parts.
        self.accumulation = (config.hardware.gradient_accumulation_steps or 1) // feed.micro
        self.batches_per_epoch = feed.batches_per_epoch
        self.state = Pretraining(
            "pretraining",
            config.pretrain.epochs,
            sink or Sink(),
            PretrainingProgress(),
            self.workshop.around(learner),
            Probe(config, feed, self.workshop, fabric, self.ledger),
            config,
            device=fabric.device,
            ledger=self.ledger,
            steps_per_epoch=-(-feed.batches_per_epoch // self.accumulation),
            checkpoint=_weakly(self.state_dict),
        )
        self.surgery = PretrainingSurgery(
            self.state,
            interventions,
            workshop=self.workshop,
            changed=partial(_emit, self.callbacks, Event.MUTATION, self.state),
        )
        self.compiling: Choice | None = None
        self.told_few_held = False
        self.graphs = self._graphs() if config.hardware.cuda_graphs else None
        self._install(self.state.networks)
        self.guard = Guard(
            fabric,
            self.parts(),
            steps_per_epoch=self.state.steps_per_epoch,
            what=self.state.what,
        )

    def fit(self) -> None:
        """Train for all epochs that are left."""
        try:
            self._emit(Event.FIT_START)
            super().fit()
            assert same_everywhere(self._digest()) == self._digest(), "processes have parted"
            self._emit(Event.FIT_END)
        finally:
            self._emit(Event.CLOSE)

    # -- one epoch ---------------------------------------------------------------------------

    def begin_epoch(self) -> None:
        """At the epoch's image size; networks that have lasted are compiled."""
        progress = self.state.progress
        self.state.probe.image_size = self.state.image_size
        if progress.batch == 0:
            self._emit(Event.EPOCH_START)
        if self.config.hardware.compile and progress.epoch > 1 + self._epoch_of_last_change():
            self._compile()
        self.model.train()

    def close_epoch(self) -> None:
        """Mean losses over all processes, changes of the network, and on to the next epoch."""
        state, progress = self.state, self.state.progress
        sums = torch.tensor(progress.sums, device=self.device)
        progress.batch, progress.sums = 0, [0.0, 0.0, 0.0]
        means = self.fabric.all_reduce(sums / self.batches_per_epoch)
        assert isinstance(means, Tensor)
        total, contrastive, gap = means.tolist()
        self.check_epoch([total, contrastive, gap], total)
        architecture = state.networks.architecture
        state.means = EpochMeans(
            state.level,
            tuple(architecture.axes.values()) or architecture.channels,
            total,
            contrastive,
            None if state.networks.teacher is None else gap,
            self.images_per_second,
        )
        skipped = {"skipped": progress.skipped} if progress.skipped else {}
        state.sink.event("epoch", {"epoch": progress.epoch, **self._figures(), **skipped})
        self._emit(Event.EPOCH_END)
        if self.graphs is not None:
            self.graphs.forget()
        release_memory()
        self._change(state.means)
        release_memory()
        progress.epoch += 1

    def interrupted(self) -> None:
        """A checkpoint is written by whoever listens."""
        self._emit(Event.INTERRUPT)

    def _compile(self) -> None:
        """Let torch compile what has lasted; with hardware.compile=auto where it is faster so.

        That is measured once for networks that stay as they are, also by a resumed run.
        """
        if self.config.hardware.compile == "auto":
            since, epoch = self._epoch_of_last_change(), self.state.progress.epoch
            if self.compiling is None or self.compiling.since != since:
                self.compiling = choose(
                    self.state.networks, self.state.probe, epoch=epoch, since=since, stop=self.stop
                )
                if self.compiling is None:
                    return  # to be stopped after the next step
                about = {"text": self.compiling.text(), "epoch": epoch, **asdict(self.compiling)}
                self.state.sink.event("message", about)
            if not self.compiling.compiled:
                return
        self.state.networks.compile()

    def tensors(self) -> dict[str, Any]:
        """Of all that is trained."""
        return self.state.networks.state_dict()

    def parts(self) -> dict[str, nn.Module]:
        """The student alone: the teacher follows it."""
        return {"student": self.state.networks.learner}

    def _epoch_of_last_change(self) -> int:
        """The epoch after which the networks became what they are; -1 for those of the start."""
        changes = [-1]
        for record in self.state.progress.history:
            if record.accepted:
                changes.append(record.epoch)
            elif "rollback" in record.trigger:
                changes += [record.epoch, record.trigger["rollback"]["epoch"]]
        return max(changes)

    def batches(self) -> Iterator[list[Batch]]:
        """The parts of every batch of the epoch that is left to train on."""
        progress = self.state.progress
        stream = self.feed.epoch(progress.epoch, start=progress.batch)
        while parts := list(itertools.islice(stream, self.feed.micro)):
            yield parts

    def differentiate(self, batch: Sequence[Batch], of: int, *, last: bool) -> Tensor:
        """Loss, its contrastive part and the distillation of a batch in its parts, detached `[3]`.

        At the `last` one the processes exchange what has been added up.
        """
        self._emit(Event.BATCH_START)
        state = self.state
        losses = self._losses(batch, of, last=last)
        if losses.memory is not None:
            state.networks.memory = losses.memory
        self._emit(Event.AFTER_BACKWARD)
        self.images += batch[0].of
        for source, count in batch[0].seen.items():
            state.progress.images_seen[source] += count
        gap = losses.distillation
        self._distils = gap is not None
        gap = torch.zeros_like(losses.total) if gap is None else gap
        return torch.stack((losses.total, losses.contrastive, gap))

    def _losses(self, parts: Sequence[Batch], of: int, *, last: bool) -> Losses:
        """Those of a batch, detached, with its gradient added, one `of` so many."""
        state = self.state
        epoch, networks = state.progress.epoch, state.networks
        seed = derive(self.config.seed, VIEWS, epoch, state.progress.batch)
        perturbed = [replace(each, images=self._perturbed(each)) for each in parts]
        views = state.probe.views_of(perturbed, seed)
        self.ledger.add_loss(STUDENT, networks, self.method, views, teacher=TEACHER)
        if self.surgery.control is not None:
            self.surgery.control.differentiate(views, epoch, of)

        def around(of_the_last: bool) -> AbstractContextManager[None]:
            return self.fabric.no_backward_sync(self.model, enabled=not (last and of_the_last))

        def compute(given: Views, known: Callable[[], None] = lambda: None) -> Losses:
            with synchronizing():
                return differentiate(
                    self.method.loss,
                    self.model,
                    networks.teaching(epoch, tracks=True),
                    given,
                    self.config.ssl,
                    backward=lambda total: self.fabric.backward(total / of),
                    autocast=self.fabric.autocast,
                    gather=gather_rows,
                    around=around,
                    known=known,
                )

        if self.graphs is None:
            return compute(views, lambda: self._emit(Event.AFTER_LOSS))
        losses = self.graphs(compute, networks.learner, views)
        self._emit(Event.AFTER_LOSS)
        return losses

    def _perturbed(self, batch: Batch) -> Tensor:
        """ADVERSARIAL images moved a little towards what the student confuses them with.

        Among those of this process and part: the loss that they raise is no more than a direction.
        """
        epsilon, chosen = self.config.curriculum.perturbation, batch.adversarial
        if not epsilon or not chosen:
            return batch.images
        learner = copy.deepcopy(self.state.networks.learner).eval()
        rows = slice(chosen[0], chosen[-1] + 1)  # a list would be sent to the device as indices
        assert len(batch.images[rows]) == len(chosen), chosen
        plain = batch.images[rows].float() / 255
        # Forward for the anchors; forward and back for the loss's gradient in the images alone.
        self.ledger.add(STUDENT, self.state.networks.architecture, [plain], 3)
        with torch.no_grad():
            anchors = learner(2 * plain - 1)[1]

        def loss(images: Tensor) -> Tensor:
            return nt_xent(learner(2 * images - 1)[1], anchors, self.config.ssl.temperature)

        moved = perturb(plain, loss, epsilon)
        images = batch.images.clone()
        images[rows] = (moved * 255).round().to(torch.uint8)
        return images

    def prepare(self) -> None:
        """Learning rate, what is held, and the gradients' norm."""
        set_learning_rate(self.optimizer, self.state.learning_rate)
        self.state.networks.hold(self.state.progress.epoch)
        if (most := self.config.optimizer.clip_norm) is not None:
            # Where it is not finite the scaler skips the step, or the guard says so.
            self.fabric.clip_gradients(
                self.model, self.optimizer, max_norm=most, error_if_nonfinite=False
            )

    def step(self) -> bool:
        """Where it is skipped the control takes no step either."""
        taken = super().step()
        if not taken and self.surgery.control is not None:
            self.surgery.control.skip()
        return taken

    def follow(self) -> None:
        """The teacher follows the student, and the control takes its step."""
        state = self.state
        steps = state.steps_per_epoch * state.epochs
        decay = ema_decay(state.progress.step, steps, self.config.ssl)
        state.networks.follow(decay)
        if self.surgery.control is not None:
            self.surgery.control.step(state.learning_rate, decay, state.progress.epoch)

    def stepped(self, figures: Tensor, sums: Tensor) -> None:
        """Report every so many steps."""
        if self.state.progress.step % self.config.tracking.interval_steps == 0:
            self._report(figures, sums)
        self._emit(Event.AFTER_STEP)

    def _report(self, figures: Tensor, sums: Tensor) -> None:
        state, step = self.state, self.state.progress.step
        speed = self.images_per_second
        # The sums hold every NaN of the epoch: read together, they cost no further wait.
        both = self.fabric.all_reduce(torch.cat((figures, sums)))
        assert isinstance(both, Tensor)
        loss, contrastive, gap, *so_far = both.tolist()
        self.guard.check_losses(so_far, f"by {state.position(step)}")
        values = {
            "pretrain/loss": loss,
            "pretrain/contrastive": contrastive,
            "pretrain/lr": self.optimizer.param_groups[0]["lr"],
            "pretrain/level": self.feed.schedule.index,
            "pretrain/images_per_second": speed,
        }
        if self._distils:
            values["pretrain/distillation"] = gap
        state.sink.metrics(values, step)
        shown = {**self._figures(), "loss": loss, "images_per_second": speed}
        batch, batches = state.progress.batch + 1, self.batches_per_epoch
        state.sink.progress(state.progress.epoch, batch, batches, shown)

    def _figures(self) -> dict[str, Any]:
        state, architecture = self.state, self.state.networks.architecture
        figures: dict[str, Any] = {
            "level": state.level,
            "blocks": len(architecture.channels),
            "params": architecture.params,
        }
        if self.config.pretrain.image_sizes is not None:
            figures["image_size"] = state.image_size
        if state.means is not None:
            figures |= {
                "loss": state.means.loss,
                "gap": state.means.gap,
                "images_per_second": state.means.images_per_second,
            }
        return figures

    # -- between two epochs ------------------------------------------------------------------

    def _change(self, means: EpochMeans) -> None:
        """One decision between two epochs: evolve or prune if there is reason to, else go on to the
        next level if it is time to.

        Not both: what is new is compared on the images that it was trained on. So a probation ends
        before its level does, however few epochs it had: the networks without the mutation may
        never see the next one. A level's end is put off once at most.
        """
        state, surgery = self.state, self.surgery
        reason = self.feed.schedule.observe(means.loss, means.gap)
        for intervention in surgery.interventions:
            intervention.observe(state)
        last = state.progress.epoch + 1 >= state.epochs
        surgery.conclude(now=last or reason is not None)
        changed = False
        if not last:  # what changes after it would never be trained
            self._say_few_held()
            changed = surgery.intervene()
        if state.networks is not self.fitted:
            self._install(state.networks)
        if reason is None or changed:
            return  # of a level that is over `observe` says so again
        self.feed.schedule.advance()
        level = {"level": state.level, "epoch": state.progress.epoch + 1}
        state.sink.event("level", {**level, "reason": reason})

    def _say_few_held(self) -> None:
        note = self.feed.few_held
        if self.surgery.interventions and note is not None and not self.told_few_held:
            self.told_few_held = True
            self.state.sink.event("message", {"text": note})

    # -- parts -------------------------------------------------------------------------------

    def _install(self, networks: Networks) -> None:
        """Train `networks`, which were never trained here before, from now on.

        DDP leaves its hooks in what it once wrapped.
        """
        self.state.networks = self.fitted = networks
        self.model, self.optimizer = self.fabric.setup(networks.learner, networks.optimizer)

    def _graphs(self) -> Replayed | None:
        """For hardware.cuda_graphs=true; where there can be none, that is said."""

        def say(why: str) -> None:
            text = f"hardware.cuda_graphs=true: steps are launched one by one, because {why}"
            self.state.sink.event("warning", {"text": text})

        if (why := why_not(self.config, batches=self.accumulation)) is not None:
            say(why)
            return None
        return Replayed(CudaGraph, lambda error: say(f"they cannot be recorded: {error}"))

    def _digest(self) -> str:
        """Of all weights, bit for bit."""
        tensors = self.state.networks.learner.state_dict().values()
        return sha256(b"".join(t.cpu().numpy().tobytes() for t in tensors)).hexdigest()

    def _emit(self, event: Event) -> None:
        _emit(self.callbacks, event, self.state)

    def state_dict(self) -> dict[str, Any]:
        """Everything a checkpoint holds: tensors and plain data.

        There is no state of random generators: every number is derived from the seed and the place
        in training.
        """
        return {
            **self.state.networks.state_dict(),
            **asdict(self.state.progress),
            "macs": self.ledger.state(),
            "levels": self.feed.schedule.state_dict(),
            "interventions": {i.name: i.state_dict() for i in self.surgery.interventions},
            "probation": self.surgery.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
            "compiling": None if self.compiling is None else asdict(self.compiling),
            "callbacks": {type(c).__name__: c.state_dict() for c in self.callbacks},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken: bit for bit on a CPU."""
        self._install(self.workshop.restored(state))
        history = [MutationRecord.from_dict(record) for record in state["history"]]
        kept = ("epoch", "batch", "step", "sums", "images_seen")
        skipped = state.get("skipped", 0)  # an older version did not count them
        self.state.progress = PretrainingProgress(
            **{key: state[key] for key in kept}, skipped=skipped, history=history
        )
        self.ledger.load(state.get("macs"))
        self.feed.schedule.load_state_dict(state["levels"])
        for intervention in self.surgery.interventions:
            intervention.load_state_dict(state["interventions"][intervention.name])
        for callback in self.callbacks:
            callback.load_state_dict(state["callbacks"][type(callback).__name__])
        self.surgery.load_state_dict(state["probation"])
        chosen = state.get("compiling")  # an older version did not choose
        self.compiling = None if chosen is None else Choice(**chosen)
        restore_precision(self.fabric, state["precision"])


def _emit(callbacks: Sequence[Callback], event: Event, state: Pretraining) -> None:
    for callback in callbacks:
        callback.on(event, state)


def _weakly(method: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """`method`, without holding what it is of: that is freed, images and all, when it is left."""
    reference = WeakMethod(method)

    def called() -> dict[str, Any]:
        bound = reference()
        assert bound is not None
        return bound()

    return called
