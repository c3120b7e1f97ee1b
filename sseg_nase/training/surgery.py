"""Changes of the architecture between two epochs, from the proposal to the record.

    for intervention in interventions:
        propose: a mutation within the caps, or the reason why there is none
        apply: new networks and optimizer, everything carried across; the old ones stay as they are
        verify: our own invariants
        accept: train the new networks from now on, on probation or for good; or leave all as it was
        record
    conclude a probation: the mutation stays, or the networks without it come back

What a mutation is: `nets.mutation`. What it takes across: `evolution.operators.apply`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from sseg_nase.evolution.history import MutationRecord, counts
from sseg_nase.evolution.selection import Difference, paired
from sseg_nase.finite import finite, not_finite, shortened
from sseg_nase.kinds import kind_of
from sseg_nase.nets.mutation import Mutation
from sseg_nase.training.control import Control
from sseg_nase.training.distributed import same_everywhere
from sseg_nase.training.divergence import DivergenceError
from sseg_nase.training.networks import Networks, Workshop
from sseg_nase.training.state import Evolving, Pretraining, Trained

PROBATION_ERRORS = 2  # standard errors by which a mutation on probation may look worse
LARGEST_PRUNING_ERROR = 1e-5  # relative, between the pruned network and the masked one


@dataclass(frozen=True)
class Decision:
    """What an intervention wants. `mutation` None: nothing, and `trigger['reason']` says why.

    `tolerance`: relative rise of the held loss, over that of the network without the mutation, up
    to which it stays, but for the error of that difference; decided `grace` epochs later (0: at
    once). `control`: the network without the mutation is trained along until then. `recalibrate`:
    batches from which the new network's BN statistics are recomputed. `negative`: of a PRUNE,
    the one that keeps what it removes, to be evaluated beside it.
    """

    mutation: Mutation | None
    trigger: dict[str, Any]
    fitness: float | None = None
    tolerance: float = float("inf")
    grace: int = 0
    control: bool = False
    recalibrate: int = 0
    negative: Mutation | None = None


class Intervention(Protocol):
    """Says when the architecture changes. The change itself is a `Mutation`."""

    name: str

    def observe(self, state: Evolving) -> None:
        """Called once after every epoch."""

    def decide(self, state: Evolving) -> Decision:
        """Called after every epoch that another one follows, unless a mutation is on probation."""

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From the checkpoint."""


class Before(NamedTuple):
    """What a run has done before a training within it, whose records count on from here."""

    epochs: int = 0
    mutations: int = 0
    steps: int = 0


class Surgery:
    """What the interventions decide is done to the networks of `state`.

    `mutated` makes new networks after a mutation and leaves the given ones as they are; the loop
    that trains `state.networks` has to take new ones up. `before`: of a training that is not a
    run's first, whose name then stands in records and decisions.
    """

    def __init__(
        self,
        state: Evolving,
        interventions: Sequence[Intervention],
        *,
        mutated: Callable[[Any, Mutation], Any],
        before: Before | None = None,
    ) -> None:
        self.state, self.interventions = state, list(interventions)
        self.mutated = mutated
        self.before, self.later = before or Before(), before is not None

    def intervene(self) -> bool:
        """Ask every intervention in turn; each sees what the one before it left.

        Returns whether there was a mutation.
        """
        known = len(self.state.progress.history)
        for intervention in self.interventions:
            decision = self.propose(intervention)
            if decision.mutation is not None:
                self.operate(decision.mutation, decision)
            else:
                name = (
                    f"{intervention.name} in {self.state.what}" if self.later else intervention.name
                )
                about = {"intervention": name, "epoch": self.state.progress.epoch}
                self.state.sink.event("decision", {**about, **decision.trigger})
        return len(self.state.progress.history) > known

    def propose(self, intervention: Intervention) -> Decision:
        """What an intervention wants; it has checked the caps."""
        return same_everywhere(intervention.decide(self.state))

    def operate(self, mutation: Mutation, decision: Decision) -> None:
        """Apply `mutation`, verify it, then accept it or leave all as it was, and record it."""
        began, state, progress = time.perf_counter(), self.state, self.state.progress
        old, new = state.networks, self.mutated(state.networks, mutation)
        self.verify(old, new, mutation)
        if decision.recalibrate:
            state.probe.recalibrate(new, progress.epoch, decision.recalibrate)
        held = state.probe.held_losses([old, new], progress.epoch)
        before, after = held.mean(1).tolist()
        unfit = _unfit(new, before, after)
        fits = decision.grace > 0 or within(held[1], held[0], decision.tolerance)
        trigger = decision.trigger | ({"training": state.what} if self.later else {})
        record = MutationRecord(
            index=self.before.mutations + len(progress.history),
            epoch=self.before.epochs + progress.epoch,
            step=self.before.steps + progress.step,
            kind=mutation.kind,
            target=mutation.target,
            trigger={**trigger, "refused": unfit} if unfit else trigger,
            before=counts(mutation.before),
            after=counts(mutation.after),
            function_delta=state.probe.function_delta(old, new, mutation),
            loss_before=before,
            loss_after=after,
            fitness=decision.fitness,
            seconds=time.perf_counter() - began,
            accepted=same_everywhere(not unfit and fits),
            measured=None if unfit else self.measured(old, new, decision),
        )
        if record.accepted:
            self.accept(old, new, decision)
        progress.history.append(record)
        self.record(record)

    def verify(self, old: Trained, new: Trained, mutation: Mutation) -> None:
        """Our own invariants: as many parameters as described, and pruned as masked."""
        check_size(new.learner.backbone, mutation)
        if kind_of(mutation.kind).removes:
            error = self.state.probe.pruning_error(old, new, mutation)
            assert error <= LARGEST_PRUNING_ERROR, error

    def measured(self, old: Any, new: Any, decision: Decision) -> dict[str, Any] | None:
        """What else is to be recorded of a mutation that can be trained."""
        return None

    def accept(self, old: Any, new: Any, decision: Decision) -> None:
        """Train `new` from now on."""
        assert not decision.grace, "only pretraining has probations"
        self.state.networks = new

    def record(self, record: MutationRecord) -> None:
        """Emit what is in the history now."""
        self.state.sink.event("mutation", record.to_dict())


def check_size(backbone: nn.Module, mutation: Mutation) -> None:
    """Our own invariant: the network after `mutation` has as many parameters as described."""
    params = sum(p.numel() for p in backbone.parameters())
    assert params == mutation.after.params, (params, mutation.after.params)


def _unfit(new: Trained, before: float, after: float) -> str:
    """Why networks cannot be trained, whatever is tolerated; empty where they can."""
    found = [
        f"the held loss {when} it is not finite"
        for when, loss in (("before", before), ("after", after))
        if not finite(loss)
    ]
    if names := not_finite(new.state_dict()):
        found.append(f"not finite after it are {shortened(names)}")
    return "; ".join(found)


@dataclass
class Probation:
    """A mutation that has yet to prove itself; `old` are the networks without it.

    `control`: they are trained along, on the same batches.
    """

    old: Networks
    index: int
    until: int
    tolerance: float
    control: bool = False


class PretrainingSurgery(Surgery):
    """With probations, and with what a removal costs and gives. `changed` is told of every change.

    `control` trains the network without the mutation on probation, where there is one.
    """

    state: Pretraining

    def __init__(
        self,
        state: Pretraining,
        interventions: Sequence[Intervention],
        *,
        workshop: Workshop,
        changed: Callable[[], None],
    ) -> None:
        super().__init__(state, interventions, mutated=workshop.mutated)
        self.workshop, self.changed = workshop, changed
        self.watch(None)

    def watch(self, probation: Probation | None) -> None:
        """Put a mutation on probation, or none."""
        self.probation = probation
        self.control: Control | None = None
        if probation is not None and probation.control:
            self.control = Control(probation.old, self.state.probe)

    def propose(self, intervention: Intervention) -> Decision:
        """Nothing, while the last mutation is on probation or a level should have ended."""
        if self.probation is not None:
            return Decision(None, {"reason": "the last mutation is on probation"})
        if self.state.probe.feed.schedule.overdue:
            return Decision(None, {"reason": "the next level was put off once already"})
        return super().propose(intervention)

    def verify(self, old: Any, new: Any, mutation: Mutation) -> None:
        """Student and teacher are alike, too."""
        super().verify(old, new, mutation)
        if new.teacher is not None:
            assert new.teacher.architecture == mutation.after

    def accept(self, old: Networks, new: Networks, decision: Decision) -> None:
        """Train `new` from now on, for the time being where the decision says so."""
        self.state.networks = new
        if not decision.grace:
            return
        progress = self.state.progress
        if decision.control:  # a copy: what was trained here before is not trained by hand
            old = self.workshop.restored(old.state_dict())
        until = progress.epoch + decision.grace
        index = len(progress.history)
        self.watch(Probation(old, index, until, decision.tolerance, decision.control))

    def record(self, record: MutationRecord) -> None:
        """Warn, too, where what was removed does better than what was kept."""
        super().record(record)
        if record.measured is not None:
            self.doubt_removed(record.measured)
        self.changed()

    def conclude(self, *, now: bool = False) -> None:
        """End a probation that is over, or any with `now`: the mutation stays, or the networks
        without it come back."""
        probation, progress = self.probation, self.state.progress
        if probation is None or not (now or progress.epoch >= probation.until):
            return
        self.watch(None)
        probe, networks = self.state.probe, [self.state.networks, probation.old]
        held = probe.held_losses(networks, progress.epoch)
        loss, without = held.mean(1).tolist()
        if not finite(without):
            # The older network is no better: with neither there is nothing to train on from.
            if not same_everywhere(finite(loss)):
                raise DivergenceError(
                    f"{self.state.what} diverged in {self.state.position()}: the held loss is not "
                    "finite, with the mutation on probation and without it."
                )
            without = float("inf")
        fits = without == float("inf") or within(held[0], held[1], probation.tolerance)
        kept = same_everywhere(finite(loss) and fits)
        figures: dict[str, Any] = {"epoch": progress.epoch, "loss": loss}
        figures["loss_without"] = without
        figures["error"] = paired(held[0], held[1]).error
        figures["control"] = probation.control
        record = progress.history[probation.index]
        if record.measured is not None:
            accuracy = probe.held_accuracies(networks)
            figures["accuracy"], figures["accuracy_without"] = accuracy.mean(1).tolist()
            figures |= _named("accuracy_change", paired(*accuracy))
        if not (finite(loss) and finite(without)):
            which = "with" if finite(without) else "without"
            figures["reason"] = f"the held loss {which} the mutation is not finite"
        self.state.sink.event("probation", {"index": probation.index, "kept": kept, **figures})
        if not kept:
            self.roll_back(probation, record, figures)

    def roll_back(
        self, probation: Probation, record: MutationRecord, figures: Mapping[str, Any]
    ) -> None:
        """Train the networks without a mutation again; its record says so."""
        self.state.networks = self.workshop.restored(probation.old.state_dict())
        record = replace(record, accepted=False, trigger={**record.trigger, "rollback": figures})
        self.state.progress.history[probation.index] = record
        self.state.sink.event("rollback", record.to_dict())
        self.changed()

    def measured(self, old: Networks, new: Networks, decision: Decision) -> dict[str, Any] | None:
        """What a PRUNE costs and gives, at once: `accuracy`, `latency`; None of others.

        Accuracies in percent of `Probe.held_accuracies` with the standard errors of paired
        differences: `before`, `after`, and of what was removed alone (`removed`, less that of what
        is kept: `removed_lead`). Latencies as `Probe.latency` has them.
        """
        assert decision.mutation is not None
        if not kind_of(decision.mutation.kind).removes:
            return None
        probe, networks = self.state.probe, [old, new]
        if decision.negative is not None:
            negative = self.mutated(old, decision.negative)
            if decision.recalibrate:
                probe.recalibrate(negative, self.state.progress.epoch, decision.recalibrate)
            networks.append(negative)
        before, after, *removed = probe.held_accuracies(networks)
        accuracy: dict[str, Any] = {"episodes": len(before), "before": before.mean().item()}
        accuracy |= {"after": after.mean().item(), **_named("change", paired(after, before))}
        for one in removed:
            accuracy |= {"removed": one.mean().item(), **_named("removed_lead", paired(one, after))}
        return {"accuracy": accuracy, "latency": probe.latency(old, new)}

    def doubt_removed(self, measured: Mapping[str, Any]) -> None:
        """Warn where what was removed does better than what was kept, beyond the error."""
        accuracy = measured["accuracy"]
        lead, error = accuracy.get("removed_lead"), accuracy.get("removed_lead_error")
        if lead is None or not lead > PROBATION_ERRORS * error:
            return
        text = (
            "what PRUNE removes does better than what it keeps: on held images its channels alone "
            f"reach {accuracy['removed']:.1f} %, those that are kept {accuracy['after']:.1f} % "
            f"(difference {lead:+.1f} ± {error:.1f}). Their importance may be noise: raise "
            "sparsity.importance_batches, or lower sparsity.ratio."
        )
        self.state.sink.event("warning", {"text": text})

    def state_dict(self) -> dict[str, Any] | None:
        """Of the probation, for the checkpoint; None without one."""
        if self.probation is None:
            return None
        return {**vars(self.probation), "old": self.probation.old.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """From the checkpoint."""
        if state is None:
            self.watch(None)
        else:
            old = self.workshop.restored(state["old"])
            self.watch(Probation(**{**state, "old": old}))


def _named(name: str, difference: Difference) -> dict[str, float]:
    return {name: difference.mean, f"{name}_error": difference.error}


def within(new: Tensor, old: Tensor, tolerance: float) -> bool:
    """Whether held losses `[K]` are no higher than `tolerance` allows, by what lies beyond the
    error of their paired difference."""
    rise = paired(new, old)
    return rise.mean <= tolerance * abs(old.mean().item()) + PROBATION_ERRORS * rise.error
