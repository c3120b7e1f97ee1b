"""What surgery asks of a mutation, and what it says of one: with networks that nobody trains."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sseg_nase.nets.architecture import Architecture
from sseg_nase.nets.building import build
from sseg_nase.nets.description import Description
from sseg_nase.nets.mutation import Mutation
from sseg_nase.nets.mutations.grow import grow
from sseg_nase.nets.mutations.prune import prune
from sseg_nase.training.divergence import DivergenceError
from sseg_nase.training.state import Evolving, Progress
from sseg_nase.training.surgery import (
    LARGEST_PRUNING_ERROR,
    Before,
    Decision,
    PretrainingSurgery,
    Surgery,
)
from tests.support.small_state import record_of
from tests.unit.training.test_steps import ALONG, Told, grown, trainer

SMALL = Architecture.seed((4, 6), resolution=8)
MUTATIONS = {
    "GROW": grow(SMALL, out_channels=6, seed=0),
    "PRUNE": prune(SMALL, [[0, 2], [1, 3, 5]]),
}


class Untrained:
    """A network of that architecture, and nothing beside it. `made`: how, if not from scratch."""

    def __init__(self, architecture: Description, made: str = "") -> None:
        self.architecture, self.made = architecture, made
        self.learner = nn.Module()
        self.learner.backbone = build(architecture)
        self.teacher = None

    def state_dict(self) -> dict[str, Any]:
        return {"architecture": self.architecture, **self.learner.state_dict()}


class Measured:
    """`losses` of the networks that are compared, in turn, then 1 of each.

    `asked` has what was measured, in turn.
    """

    def __init__(self, pruning_error: float = 0.0, losses: Sequence[float] = ()) -> None:
        self.error, self.losses, self.asked = pruning_error, list(losses), list[str]()
        self.feed = SimpleNamespace(schedule=SimpleNamespace(overdue=False))

    def held_losses(self, networks: list[Any], epoch: int) -> Tensor:
        compared = [each.architecture.channels for each in networks]
        self.asked.append(f"held losses of {compared}")
        found = [self.losses.pop(0) if self.losses else 1.0 for _ in networks]
        return torch.tensor([[each] * 2 for each in found], dtype=torch.float64)

    def recalibrate(self, networks: Any, epoch: int, batches: int) -> None:
        self.asked.append(f"{batches} batches for {networks.architecture.channels}")

    def function_delta(self, old: Any, new: Any, mutation: Mutation) -> float:
        return 0.25

    def pruning_error(self, old: Any, new: Any, mutation: Mutation) -> float:
        self.asked.append("pruning error")
        return self.error


def surgery(
    probe: Measured, *interventions: Any, becomes: Any = None, before: Before | None = None
) -> tuple[Surgery, Told]:
    """Of a training in epoch 3, after step 20; `becomes`: what a mutation makes, if not its own."""
    told = Told()
    progress = Progress(epoch=3, step=20)
    state = Evolving("some training", 9, told, progress, Untrained(SMALL), probe)  # type: ignore[arg-type]
    make = lambda networks, mutation: becomes or Untrained(mutation.after)  # noqa: E731
    return Surgery(state, interventions, mutated=make, before=before), told


def wanted(kind: str, **options: Any) -> Decision:
    return Decision(MUTATIONS[kind], {"reason": "wanted"}, **options)


@pytest.mark.parametrize("kind", MUTATIONS)
def test_a_mutation_is_made_verified_recorded_and_trained(kind: str) -> None:
    probe = Measured(LARGEST_PRUNING_ERROR, [3.0, 2.0])
    one, told = surgery(probe)
    one.operate(MUTATIONS[kind], wanted(kind, recalibrate=2))
    (record,) = one.state.progress.history
    after = MUTATIONS[kind].after
    assert one.state.networks.architecture == after
    assert (record.index, record.epoch, record.step) == (0, 3, 20)
    assert (record.accepted, record.function_delta) == (True, 0.25)
    assert (record.loss_before, record.loss_after) == (3.0, 2.0)
    assert record.trigger == {"reason": "wanted"}
    assert told.events == [("mutation", record.to_dict())]
    verified = ["pruning error"] if kind == "PRUNE" else []
    # The statistics of the new network are estimated before it is measured, beside the old one.
    new: Any = after
    compared = f"held losses of {[SMALL.channels, new.channels]}"
    assert probe.asked == [*verified, f"2 batches for {new.channels}", compared]


def test_a_network_of_other_size_than_described_is_no_mutation() -> None:
    one, told = surgery(Measured(), becomes=Untrained(SMALL))
    with pytest.raises(AssertionError, match=str(MUTATIONS["GROW"].after.params)):
        one.operate(MUTATIONS["GROW"], wanted("GROW"))
    assert (one.state.progress.history, told.events) == ([], [])


def test_what_is_pruned_computes_what_was_masked() -> None:
    one, told = surgery(Measured(1.01 * LARGEST_PRUNING_ERROR))
    with pytest.raises(AssertionError):
        one.operate(MUTATIONS["PRUNE"], wanted("PRUNE"))
    assert (one.state.networks.architecture, told.events) == (SMALL, [])
    one.operate(MUTATIONS["GROW"], wanted("GROW"))  # of which no such thing is asked
    assert len(told.events) == 1


def test_a_teacher_of_another_architecture_is_no_mutation() -> None:
    one = trainer(*ALONG)
    decision = grown(one.state)
    assert decision.mutation is not None
    old = one.state.networks
    new = one.workshop.mutated(old, decision.mutation)
    one.surgery.verify(old, new, decision.mutation)
    new.teacher = old.teacher
    with pytest.raises(AssertionError):
        one.surgery.verify(old, new, decision.mutation)


def test_only_pretraining_has_probations() -> None:
    one, _ = surgery(Measured())
    with pytest.raises(AssertionError, match="only pretraining"):
        one.operate(MUTATIONS["GROW"], wanted("GROW", grace=1))


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("losses", "tolerance", "accepted", "refused"),
    [
        ([2.0, 2.19], 0.1, True, None),
        ([2.0, 2.21], 0.1, False, None),
        ([2.0, NAN], INF, False, "the held loss after it is not finite"),
        ([INF, 2.0], INF, False, "the held loss before it is not finite"),
        ([2.0, 2.0], INF, False, "not finite after it are backbone."),
    ],
)
def test_what_is_accepted_and_what_cannot_be_trained(
    losses: list[float], tolerance: float, accepted: bool, refused: str | None
) -> None:
    becomes = Untrained(MUTATIONS["GROW"].after)
    if losses[0] == losses[1]:
        next(becomes.learner.backbone.parameters()).data.fill_(INF)
    one, _ = surgery(Measured(losses=losses), becomes=becomes)
    one.measured = lambda *given: {"some": "figures"}  # type: ignore[method-assign]
    one.operate(MUTATIONS["GROW"], wanted("GROW", tolerance=tolerance))
    (record,) = one.state.progress.history
    assert (record.accepted, one.state.networks is becomes) == (accepted, accepted)
    assert record.trigger.get("refused", "").startswith(refused or "")
    assert ("refused" in record.trigger) == (refused is not None)
    assert record.measured == (None if refused else {"some": "figures"})


class Wants:
    name = "wants"

    def __init__(self, decision: Decision) -> None:
        self.decision = decision

    def decide(self, state: Evolving) -> Decision:
        return self.decision


@pytest.mark.parametrize("before", [None, Before(epochs=10, mutations=4, steps=300)])
def test_a_later_training_counts_on_and_names_itself(before: Before | None) -> None:
    nothing = Decision(None, {"reason": "nothing to do"})
    one, told = surgery(Measured(), Wants(nothing), Wants(wanted("GROW")), before=before)
    assert one.intervene()
    (said, about), (kind, record) = told.events
    assert (said, kind) == ("decision", "mutation")
    assert about["reason"] == "nothing to do"
    place = (record["index"], record["epoch"], record["step"])
    if before is None:
        assert place == (0, 3, 20)
        assert about["intervention"] == "wants"
        assert "training" not in record["trigger"]
    else:
        assert place == (4, 13, 320)
        assert about["intervention"] == "wants in some training"
        assert record["trigger"]["training"] == "some training"
    one, told = surgery(Measured(), Wants(nothing))
    assert not one.intervene()
    assert [kind for kind, _ in told.events] == ["decision"]


def test_each_intervention_sees_what_the_one_before_it_left() -> None:
    seen: list[Description] = []

    class Looks(Wants):
        def decide(self, state: Evolving) -> Decision:
            seen.append(state.networks.architecture)
            return self.decision

    refused, nothing = wanted("GROW", tolerance=-1.0), Decision(None, {"reason": "nothing to do"})
    one, _ = surgery(Measured(), *map(Looks, (refused, wanted("PRUNE"), nothing)))
    one.intervene()
    assert seen == [SMALL, SMALL, MUTATIONS["PRUNE"].after]
    assert [record.accepted for record in one.state.progress.history] == [False, True]
    assert one.state.networks.architecture == MUTATIONS["PRUNE"].after


# -- on probation ----------------------------------------------------------------------------------


class Shop:
    """Makes networks that nobody trains."""

    def mutated(self, networks: Any, mutation: Mutation) -> Untrained:
        return Untrained(mutation.after)

    def restored(self, saved: Any) -> Untrained:
        return Untrained(saved["architecture"], "restored")


def on_probation(
    losses: Sequence[float], *, grace: int = 2, after: float = 9.0, **options: Any
) -> tuple[Any, Told, list[str]]:
    """A GROW after epoch 3 behind another mutation; what the loop is told of changes.

    `after`: the held loss of the new network at once, beside 1 of the old one.
    """
    told, changes, probe = Told(), list[str](), Measured(losses=[1.0, after, *losses])
    progress = Progress(epoch=3, step=20, history=[record_of(1)])
    state: Any = Evolving("some training", 9, told, progress, Untrained(SMALL), probe)  # type: ignore[arg-type]
    one: Any = PretrainingSurgery(
        state,
        [],
        workshop=Shop(),  # type: ignore[arg-type]
        changed=lambda: changes.append(told.events[-1][0]),
    )
    one.operate(MUTATIONS["GROW"], wanted("GROW", grace=grace, **{"tolerance": 0.1, **options}))
    assert changes == ["mutation"]
    return one, told, changes


@pytest.mark.parametrize(("loss", "kept"), [(2.19, True), (2.21, False)])
def test_a_probation_ends_when_it_is_over_and_once(loss: float, kept: bool) -> None:
    one, told, changes = on_probation([loss, 2.0])
    assert one.propose(Wants(wanted("PRUNE"))).mutation is None
    one.state.progress.epoch = 4
    one.conclude()
    assert [kind for kind, _ in told.events] == ["mutation"]
    one.state.progress.epoch = 5
    one.conclude()
    (_, mutation), (kind, ended), *rest = told.events
    assert (mutation["index"], mutation["accepted"]) == (1, True)
    assert (kind, ended["index"], ended["kept"]) == ("probation", 1, kept)
    assert (ended["loss"], ended["loss_without"]) == (loss, 2.0)
    grown: Any = MUTATIONS["GROW"].after
    compared = f"held losses of {[grown.channels, SMALL.channels]}"
    assert one.state.probe.asked[-1] == compared  # with the mutation, and without it
    first, second = one.state.progress.history
    assert first == record_of(1)
    assert (second.kind, second.accepted) == ("GROW", kept)
    network = one.state.networks.architecture
    if kept:
        assert (network, rest, changes) == (MUTATIONS["GROW"].after, [], ["mutation"])
    else:
        figures = {key: value for key, value in ended.items() if key not in ("index", "kept")}
        assert second.trigger == {"reason": "wanted", "rollback": figures}
        assert rest == [("rollback", second.to_dict())]
        assert (network, changes) == (SMALL, ["mutation", "rollback"])
    assert one.propose(Wants(wanted("PRUNE"))).mutation is not None
    one.state.progress.epoch = 8
    one.conclude(now=True)
    assert len(told.events) == 2 + len(rest)


def test_what_is_on_probation_is_so_after_a_resume() -> None:
    one, *_ = on_probation([9.0, 2.0], grace=3)
    again, told, _ = on_probation([9.0, 2.0], grace=9)
    again.load_state_dict(one.state_dict())
    assert again.probation.old.architecture == SMALL
    again.state.progress.epoch = 6
    again.conclude()
    assert [kind for kind, _ in told.events[1:]] == ["probation", "rollback"]
    assert again.state_dict() is None
    again.load_state_dict(one.state_dict())
    again.load_state_dict(None)
    assert (again.probation, again.control) == (None, None)


def test_what_is_trained_along_is_a_copy() -> None:
    """What was trained before may be wrapped, with hooks of its own; a copy is trained by hand."""
    one, *_ = on_probation([], control=True)
    assert one.control.networks is one.probation.old
    assert (one.probation.old.made, one.probation.old.architecture) == ("restored", SMALL)
    one, *_ = on_probation([])
    assert (one.probation.old.made, one.control) == ("", None)  # kept as it was, and not trained


def test_what_cannot_be_trained_gets_no_probation() -> None:
    one, _, _ = on_probation([], tolerance=INF, after=INF)
    assert (one.probation, one.state.networks.architecture) == (None, SMALL)
    assert [record.accepted for record in one.state.progress.history] == [True, False]


@pytest.mark.parametrize(
    ("loss", "without", "kept", "reason"),
    [
        (INF, 2.0, False, "the held loss with the mutation is not finite"),
        (2.0, NAN, True, "the held loss without the mutation is not finite"),
        (99.0, 2.0, True, None),
        (NAN, INF, None, None),
    ],
)
def test_a_network_whose_loss_is_none_is_not_kept_for_one_whose_loss_is(
    loss: float, without: float, kept: bool | None, reason: str | None
) -> None:
    one, told, _ = on_probation([loss, without], tolerance=INF)
    if kept is None:  # with neither there is nothing to train on from
        with pytest.raises(DivergenceError, match="some training diverged in epoch 4"):
            one.conclude(now=True)
        return
    one.conclude(now=True)
    _, (kind, ended), *_ = told.events
    assert (kind, ended["kept"], ended.get("reason")) == ("probation", kept, reason)
    assert one.state.progress.history[1].accepted == kept


def test_no_mutation_is_proposed_while_a_level_should_have_ended() -> None:
    one, _, _ = on_probation([1.0, 1.0])
    one.conclude(now=True)
    assert one.propose(Wants(wanted("PRUNE"))).mutation is not None
    one.state.probe.feed.schedule.overdue = True
    decision = one.propose(Wants(wanted("PRUNE")))
    assert decision == Decision(None, {"reason": "the next level was put off once already"})
