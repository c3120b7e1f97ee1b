"""What surgery asks of a mutation, and what it says of one: with networks that nobody trains."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_steps import ALONG, Told, grown, trainer
from torch import Tensor, nn

from sseg_nase.nets.architecture import Architecture
from sseg_nase.nets.building import build
from sseg_nase.nets.description import Description
from sseg_nase.nets.mutation import Mutation
from sseg_nase.nets.mutations.grow import grow
from sseg_nase.nets.mutations.prune import prune
from sseg_nase.training.state import Evolving, Progress
from sseg_nase.training.surgery import LARGEST_PRUNING_ERROR, Before, Decision, Surgery

SMALL = Architecture.seed((4, 6), resolution=8)
MUTATIONS = {
    "GROW": grow(SMALL, out_channels=6, seed=0),
    "PRUNE": prune(SMALL, [[0, 2], [1, 3, 5]]),
}


class Untrained:
    """A network of that architecture, and nothing beside it."""

    def __init__(self, architecture: Description) -> None:
        self.architecture = architecture
        self.learner = nn.Module()
        self.learner.backbone = build(architecture)

    def state_dict(self) -> dict[str, Any]:
        return self.learner.state_dict()


class Measured:
    """The same losses for all networks; `asked` has what was measured, in turn."""

    def __init__(self, pruning_error: float = 0.0) -> None:
        self.error, self.asked = pruning_error, list[str]()

    def held_losses(self, networks: list[Any], epoch: int) -> Tensor:
        self.asked.append("held losses")
        return torch.ones(len(networks), 2, dtype=torch.float64)

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
    probe = Measured(LARGEST_PRUNING_ERROR)
    one, told = surgery(probe)
    one.operate(MUTATIONS[kind], wanted(kind, recalibrate=2))
    (record,) = one.state.progress.history
    after = MUTATIONS[kind].after
    assert one.state.networks.architecture == after
    assert (record.index, record.epoch, record.step) == (0, 3, 20)
    assert (record.accepted, record.function_delta) == (True, 0.25)
    assert record.trigger == {"reason": "wanted"}
    assert told.events == [("mutation", record.to_dict())]
    verified = ["pruning error"] if kind == "PRUNE" else []
    # The statistics of the new network are estimated before it is measured.
    assert probe.asked == [*verified, f"2 batches for {after.channels}", "held losses"]  # type: ignore[attr-defined]


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
