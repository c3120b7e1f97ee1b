"""What stands on the backbone follows its mutations, whatever the self-supervised method."""

from __future__ import annotations

import copy
import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sseg_nase.config.compose import load
from sseg_nase.config.schema import SSLConfig
from sseg_nase.evolution.operators import (
    TrainingState,
    apply,
    build_learner,
    load_moments,
    named_moments,
    output_change,
    perform,
)
from sseg_nase.nets.architecture import Architecture
from sseg_nase.nets.evolvable import EvolvableCNN, Learner
from sseg_nase.nets.maps import NEW
from sseg_nase.nets.mutation import Mutation
from sseg_nase.nets.mutations.grow import grow
from sseg_nase.nets.mutations.prune import prune
from sseg_nase.nets.mutations.widen import widen
from sseg_nase.ssl.methods import METHODS, make_learner
from tests.support.learners import (
    OPTIMIZERS,
    assert_same,
    check_moments,
    generator,
    make_images,
    relative,
    scramble,
    snapshot,
)
from tests.unit.evolution.test_properties import EXACT, MUTATE, drawn_architecture, kept_masks

SMALL = ["ssl.projection_hidden=9", "ssl.projection_dim=5"]
OPTIONS = {
    "simclr": SMALL,
    "byol": SMALL,
    "prototype_pairs": [],
    "barlow_twins": SMALL,
    "dino": [*SMALL, "ssl.prototypes=6"],
}
PLAIN = Architecture.seed([3, 4], resolution=8)


def options(method: str) -> SSLConfig:
    return load([f"ssl={method}", *OPTIONS[method]]).ssl


def learner_for(method: str, architecture: Architecture, seed: int) -> Learner:
    backbone = EvolvableCNN(architecture, generator=generator(seed))
    learner = make_learner(backbone, options(method), generator(seed + 1)).double()
    scramble(learner, seed + 2)
    return learner


def state_of(learner: Learner, teacher: Learner, optimizer: torch.optim.Optimizer) -> TrainingState:
    return TrainingState(
        learner.state_dict(),
        teacher.backbone.state_dict(),
        named_moments(optimizer, learner),
        teacher.head.state_dict(),
        {"centre": torch.arange(6.0)},
    )


@torch.no_grad()
def output_of(
    learner: Learner, images: Tensor, *, training: bool, masks: list[Tensor] | None = None
) -> Tensor:
    learner = copy.deepcopy(learner).train(training)
    return learner.project(learner.backbone(images, masks=masks))


def check_output(mutation: Mutation, old: Learner, new: Learner, images: Tensor) -> None:
    """GROW and WIDEN leave it as it is, PRUNE leaves that of the masked network."""
    headless = not old.head.state_dict()
    for training in (False, True):
        before = output_of(old, images, training=training, masks=kept_masks(mutation))
        after = output_of(new, images, training=training)
        if headless:
            index = torch.tensor(mutation.features.index)
            before, after = before[:, index[index != NEW]], after[:, index != NEW]
        assert relative(after, before) <= EXACT, (mutation.kind, mutation.target, training)


def target_of(learner: Learner, state: TrainingState) -> Learner:
    """The teacher as a network like `learner`, without the predictor."""
    assert state.teacher is not None
    assert state.teacher_head is not None
    target = Learner(copy.deepcopy(learner.backbone), copy.deepcopy(learner.head))
    target.backbone.load_state_dict(dict(state.teacher))
    target.head.load_state_dict(dict(state.teacher_head))
    return target


SEEDS = [*range(2), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 12))]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("method", METHODS)
def test_a_sequence_of_mutations_is_exact_for_every_method(method: str, seed: int) -> None:
    rng = random.Random(seed)
    architecture = drawn_architecture(rng)
    learner = learner_for(method, architecture, seed)
    teacher = learner_for(method, architecture, seed + 50)
    images = make_images(architecture, seed, count=3)
    optimizer = OPTIMIZERS["adamw"](learner)
    for step, mutate in enumerate(rng.sample(MUTATE, 3)):
        outputs = learner.train()(images)[1]
        aim = torch.randn(outputs.shape, generator=generator(step), dtype=outputs.dtype)
        (outputs * aim).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        state = state_of(learner, teacher, optimizer)
        before = snapshot_all(state)
        mutation = mutate(rng, learner.backbone.architecture)
        after = apply(mutation, state)
        new = build_learner(mutation, after, like=learner)
        new_teacher = target_of(new, after)

        assert_same_all(state, before)
        check_output(mutation, learner, new, images)
        check_output(mutation, target_of(learner, state), new_teacher, images)
        check_moments(mutation, state, after)
        for name, tensor in after.student.items():
            if name.startswith("predictor.") or (
                name.startswith("head.") and name != "head.fc1.weight"
            ):
                assert torch.equal(tensor, state.student[name]), name
        assert torch.equal(after.memory["centre"], state.memory["centre"])

        learner, teacher, optimizer = new, new_teacher, OPTIMIZERS["adamw"](new)
        load_moments(optimizer, learner, after.moments)


def snapshot_all(state: TrainingState) -> TrainingState:
    assert state.teacher_head is not None
    head = {name: tensor.clone() for name, tensor in state.teacher_head.items()}
    return replace(snapshot(state), teacher_head=head)


def assert_same_all(first: TrainingState, second: TrainingState) -> None:
    assert_same(first, second)
    assert first.teacher_head is not None
    assert second.teacher_head is not None
    assert first.teacher_head.keys() == second.teacher_head.keys()
    for name, tensor in first.teacher_head.items():
        assert torch.equal(tensor, second.teacher_head[name])


@pytest.mark.parametrize("method", ["byol", "dino"])
@pytest.mark.parametrize(
    "mutation",
    [
        grow(PLAIN, out_channels=6),
        grow(PLAIN, mode="fresh", out_channels=5, seed=3),
        widen(PLAIN, 1, seed=2),
        widen(PLAIN, 1, mode="zero", seed=2),
        prune(PLAIN, [[0, 2], [1, 3]]),
    ],
    ids=["grow", "fresh", "duplicate", "zero", "prune"],
)
def test_a_target_equal_to_the_student_stays_equal(mutation: Mutation, method: str) -> None:
    """The same map with the same fresh entries: what was equal is equal bit by bit."""
    learner = learner_for(method, PLAIN, 1)
    after = apply(mutation, state_of(learner, learner, OPTIMIZERS["adamw"](learner)))
    assert after.teacher_head is not None
    head = {n.removeprefix("head."): t for n, t in after.student.items() if n.startswith("head.")}
    assert head.keys() == after.teacher_head.keys()
    assert all(torch.equal(after.teacher_head[name], tensor) for name, tensor in head.items())


def test_nothing_unknown_of_the_targets_head_is_dropped_in_silence() -> None:
    learner = learner_for("byol", PLAIN, 1)
    state = state_of(learner, learner, OPTIMIZERS["adamw"](learner))
    assert state.teacher_head is not None
    strange = {**state.teacher_head, "fc9.weight": torch.zeros(1)}
    with pytest.raises(KeyError, match=r"the teacher's head\.fc9"):
        apply(widen(PLAIN, 1), replace(state, teacher_head=strange))
    del strange["fc9.weight"], strange["fc1.weight"]
    with pytest.raises(KeyError, match=r"head\.fc1"):
        apply(widen(PLAIN, 1), replace(state, teacher_head=strange))


def test_embeddings_without_a_head_are_compared_by_where_they_come_from() -> None:
    f = torch.randn(3, 4, generator=generator(0))
    twice = widen(PLAIN, 1, channels=6, seed=1)
    assert output_change(twice, f, f[:, list(twice.features.index)], embeddings=True) == 0
    kept = prune(PLAIN, [[0, 1, 2], [1, 3]])
    assert output_change(kept, f, f[:, [1, 3]], embeddings=True) == 0
    added = widen(PLAIN, 1, channels=5, mode="zero")
    same = torch.cat((f, torch.zeros(3, 1)), dim=1)
    assert output_change(added, f, same, embeddings=True) == 0
    same[:, 4] = 1.0
    change = output_change(added, f, same, embeddings=True)
    assert change == pytest.approx(3**0.5 / f.norm().item())


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_mutated_by_hand(method: str) -> None:
    learner = learner_for(method, PLAIN, 1)
    probe = make_images(PLAIN, 3)
    for mutation in (grow(PLAIN), widen(PLAIN, 1)):
        after, record = perform(mutation, TrainingState(learner.state_dict()), probe=probe)
        assert record.function_delta is not None
        assert record.function_delta <= EXACT
        assert after.teacher_head is None
