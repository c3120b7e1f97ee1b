"""What a PRUNE costs and gives, and what its importance is worth: by hand."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from sseg_nase.nets.mutations.prune import prune
from sseg_nase.training import measurements
from sseg_nase.training.instances import EPISODES, WAYS, instance_accuracies
from sseg_nase.training.loop import Trainer
from sseg_nase.training.state import Pretraining
from sseg_nase.training.surgery import Decision
from tests.unit.training.test_steps import Told, Wanted, grown, trainer

NAN = float("nan")


# -- episodes without labels -----------------------------------------------------------------------


def embedded(seed: int, images: int = 12, features: int = 6) -> Tensor:
    return torch.randn(images, features, generator=torch.Generator().manual_seed(seed))


def test_views_that_agree_are_told_apart_and_others_by_chance() -> None:
    support = embedded(0, 64, 32) + 5  # a common part tells nothing
    assert instance_accuracies(support, 3 * support, 50, seed=0).tolist() == [100.0] * 50
    shifted = instance_accuracies(support, support + 40, 50, seed=0)
    first = embedded(3, 64, 3)
    second = first + 0.5 * embedded(4, 64, 3)
    noisy = instance_accuracies(first, second, 50, seed=0)
    assert 40 < noisy.mean() < 90
    assert torch.equal(instance_accuracies(first + 20, second + 20, 50, seed=0), noisy)
    found = instance_accuracies(support, embedded(1, 64, 32), 4000, seed=0)
    assert found.mean().item() == pytest.approx(100 / WAYS, abs=2)
    assert shifted.mean() < 100  # the mean of both is taken away, not of each
    assert set(found.tolist()) <= {0.0, 20.0, 40.0, 60.0, 80.0, 100.0}


def test_the_episodes_follow_their_seed_and_not_the_embeddings() -> None:
    """So that networks are compared on the same ones: one wrong image is wrong in all of them."""
    support = torch.eye(12)
    query = support.clone()
    query[3] = support[4]
    first, again, other = (instance_accuracies(support, query, 40, seed=s) for s in (1, 1, 2))
    wider = instance_accuracies(
        torch.cat((support, support), 1), torch.cat((query, query), 1), 40, seed=1
    )
    assert torch.equal(first, again)
    assert torch.equal(first, wider)
    assert not torch.equal(first, other)
    assert set(first.tolist()) == {80.0, 100.0}


def test_of_fewer_images_all_are_taken_and_what_is_not_finite_has_no_accuracy() -> None:
    few = torch.eye(3)
    assert instance_accuracies(few, few, 4, seed=0).tolist() == [100.0] * 4
    few[0, 0] = NAN
    assert instance_accuracies(torch.eye(3), few, 4, seed=0).isnan().all()


PARTS = [
    "hardware.batch_size=8",
    "hardware.gradient_accumulation_steps=2",
    "hardware.accumulate=exact",
]


@pytest.mark.parametrize("further", [[], PARTS])
def test_held_accuracies_are_of_the_same_episodes_whatever_the_parts(further: list[str]) -> None:
    one = trainer("ablation=A2", *further)
    plain = trainer("ablation=A2")
    both = [one.state.networks, one.workshop.mutated(one.state.networks, grown(one.state).mutation)]
    found = one.state.probe.held_accuracies(both)
    assert found.shape == (2, EPISODES)
    assert torch.equal(found[0], found[1])  # GROW leaves the function as it is
    assert torch.equal(found, one.state.probe.held_accuracies(both))
    assert torch.equal(found[0], plain.state.probe.held_accuracies([plain.state.networks])[0])
    assert 100 / WAYS < found.mean() < 100
    assert one.state.networks.learner.training


def test_every_held_batch_has_episodes_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    one = trainer("ablation=A2")
    drawn: list[tuple[int, int]] = []

    def watched(support: Tensor, query: Tensor, count: int, *, seed: int) -> Tensor:
        drawn.append((count, seed))
        return instance_accuracies(support, query, count, seed=seed)

    monkeypatch.setattr(measurements, "instance_accuracies", watched)
    one.state.probe.held_accuracies([one.state.networks])
    assert len(drawn) == len({seed for _, seed in drawn}) == one.feed.held_batches
    assert sum(count for count, _ in drawn) == EPISODES


# -- what is recorded ------------------------------------------------------------------------------


def pruned(state: Pretraining, *, negative: bool = True, **options: Any) -> Decision:
    channels = state.networks.architecture.channels
    kept = [range(0, width, 2) for width in channels]
    removed = [range(1, width, 2) for width in channels]
    network = state.networks.architecture
    other = prune(network, removed) if negative else None
    return Decision(
        prune(network, kept), {"reason": "wanted"}, negative=other, recalibrate=1, **options
    )


def told_of(
    accuracies: list[list[float]], *, epochs: int = 3, **options: Any
) -> tuple[Trainer, Told, list[list[tuple[int, ...]]]]:
    """A run with one PRUNE; networks have these accuracies, in turn, in each of two episodes."""
    told = Told()
    one = trainer("ablation=A2", f"pretrain.epochs={epochs}", sink=told)
    one.surgery.interventions = [Wanted(lambda t: pruned(t, **options))]
    turn, asked = iter(accuracies), []

    def held(networks: Any) -> Tensor:
        asked.append([each.architecture.channels for each in networks])
        return torch.tensor([next(turn) for _ in networks], dtype=torch.float64)

    one.state.probe.held_accuracies = held
    one.fit()
    return one, told, asked


def test_what_a_pruning_costs_and_gives_is_in_its_record() -> None:
    one, told, asked = told_of([[70, 90], [68, 86], [40, 50]])
    (record,) = one.state.progress.history
    assert record.kind == "PRUNE"
    half = (8, 16, 32)
    assert asked == [[(16, 32, 64), half, half]]
    measured = record.measured
    assert measured is not None
    assert measured["accuracy"] == {
        "episodes": 2, "before": 80.0, "after": 77.0, "removed": 45.0,
        "change": -3.0, "change_error": pytest.approx(1.0),
        "removed_lead": -32.0, "removed_lead_error": pytest.approx(4.0),
    }  # fmt: skip
    assert set(measured["latency"]) == {"batch", "before_ms", "after_ms"}
    assert [values["measured"] for kind, values in told.events if kind == "mutation"] == [measured]
    assert not [kind for kind, _ in told.events if kind == "warning"]


def test_what_is_removed_is_a_network_of_its_own_with_statistics_of_its_own() -> None:
    one = trainer("ablation=A2")
    made: list[Any] = []
    recalibrate, held = one.state.probe.recalibrate, one.state.probe.held_accuracies

    def watched(networks: Any, epoch: int, batches: int) -> None:
        recalibrate(networks, epoch, batches)
        made.append((networks, batches))

    def looked(networks: Any) -> Tensor:
        # Old, new and negative: the two that were made have been recalibrated.
        assert [each for each, _ in made] == list(networks)[1:]
        weights = [each.learner.backbone.blocks[0].conv.weight for each in networks]
        assert torch.equal(weights[1], weights[0][0::2])
        assert torch.equal(weights[2], weights[0][1::2])
        return held(networks)

    one.state.probe.recalibrate, one.state.probe.held_accuracies = watched, looked
    one.surgery.interventions = [Wanted(pruned)]
    one.fit()
    assert [batches for _, batches in made] == [1, 1]
    (record,) = one.state.progress.history
    assert record.measured is not None
    assert record.measured["accuracy"]["episodes"] == EPISODES


def test_removed_channels_that_do_better_are_warned_of() -> None:
    told = Told()
    one = trainer("ablation=A2", sink=told)
    new = one.workshop.mutated(one.state.networks, pruned(one.state).mutation)
    for removed, after, warned in (
        ([60, 62], [76, 78], False),
        ([76, 78], [76, 78], False),  # as good: there are more than are needed
        ([77, 81], [76, 78], False),  # 2 ± 1, which is two errors
        ([77.1, 81], [76, 78], True),
        ([77, 79], [76, 78], True),  # 1 ± 0
        ([NAN, 50], [76, 78], False),
    ):
        given = torch.tensor([[70, 90], after, removed], dtype=torch.float64)
        one.state.probe.held_accuracies = lambda networks, given=given: given
        told.events.clear()
        one.surgery.doubt_removed(one.surgery.measured(one.state.networks, new, pruned(one.state)))
        texts = [values["text"] for kind, values in told.events if kind == "warning"]
        assert len(texts) == warned, removed
        for text in texts:
            assert f"reach {sum(removed) / 2:.1f} %, those" in text
            assert "those that are kept 77.0 %" in text
            assert "sparsity.importance_batches" in text


def test_without_the_negative_path_it_is_not_evaluated() -> None:
    one, _, asked = told_of([[70, 90], [68, 86]], negative=False)
    assert [len(networks) for networks in asked] == [2]
    (record,) = one.state.progress.history
    assert record.measured is not None
    assert "removed" not in record.measured["accuracy"]


def test_other_mutations_and_refusals_measure_nothing() -> None:
    one = trainer("ablation=A2")
    one.surgery.interventions = [Wanted(grown)]
    one.fit()
    assert [record.measured for record in one.state.progress.history] == [None]
    one = trainer("ablation=A2")
    one.surgery.interventions = [Wanted(pruned)]
    turn = itertools.chain([NAN], itertools.repeat(1.0))
    one.state.probe.held_losses = lambda networks, epoch: torch.tensor(
        [[next(turn)] * 2, [1.0, 1.0]]
    )
    one.fit()
    (record,) = one.state.progress.history
    assert not record.accepted
    assert record.measured is None


def test_at_the_end_of_its_probation_a_pruning_is_compared_once_more() -> None:
    given = [[70, 90], [68, 86], [90, 95], [80, 90], [79, 87]]
    _, told, asked = told_of(given, grace=1, tolerance=9.0)
    assert asked[1] == [(8, 16, 32), (16, 32, 64)]
    (ended,) = [values for kind, values in told.events if kind == "probation"]
    assert (ended["accuracy"], ended["accuracy_without"]) == (85.0, 83.0)
    assert (ended["accuracy_change"], ended["accuracy_change_error"]) == (2.0, pytest.approx(1.0))
    (warned,) = [values["text"] for kind, values in told.events if kind == "warning"]
    assert warned.startswith("what PRUNE removes does better than what it keeps")
