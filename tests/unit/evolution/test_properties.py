"""Random networks through random mutations, with real optimizer steps in between."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from sseg_nase.evolution.operators import (
    TrainingState,
    apply,
    build_learner,
    load_moments,
    named_moments,
)
from sseg_nase.nets.architecture import Architecture, Block
from sseg_nase.nets.evolvable import EvolvableCNN, Learner
from sseg_nase.nets.maps import NEW
from sseg_nase.nets.mutation import Mutation
from sseg_nase.nets.mutations.grow import grow, grow_stages
from sseg_nase.nets.mutations.operator import rebuild
from sseg_nase.nets.mutations.prune import prune
from sseg_nase.nets.mutations.widen import widen
from tests.support.learners import (
    OPTIMIZERS,
    assert_same,
    check_counts,
    check_moments,
    loss_of,
    make_images,
    make_learner,
    projections_of,
    relative,
    snapshot,
)

ARCHITECTURES = 200
QUICK = 60
MUTATIONS = 5
EXACT = 1e-12  # relative, in float64
MASKED = 1e-5  # relative, in float32
WIDEST = 32


def drawn_architecture(rng: random.Random) -> Architecture:
    residual, pooling = (rng.choice((0.0, 0.5, 1.0)) for _ in range(2))  # of the blocks: share
    blocks = tuple(
        Block(rng.randint(1, 24), pool=rng.random() < pooling, residual=rng.random() < residual)
        for _ in range(min(rng.randint(3, 12) for _ in range(3)))  # deep ones cost the most time
    )
    return Architecture(
        blocks,
        resolution=rng.choice((8, 9) if pooling else (4, 5)),
        kernel_size=rng.choice((3, 3, 1)),
        activation=rng.choice(("relu", "leaky_relu", "gelu")),
        batch_norm=rng.random() < 0.7,
        embedding=rng.choice(("average", "flatten")),
    )


def drawn_growth(rng: random.Random, before: Architecture) -> Mutation:
    position = rng.randint(1, len(before.blocks))
    width = before.channels[position - 1] + rng.choice((0, 0, 1, 3))
    before_pool = before.blocks[position - 1].pool and rng.random() < 0.7
    return grow(
        before,
        position=position,
        out_channels=width,
        before_pool=before_pool,
        seed=rng.randrange(10_000),
    )


def drawn_growth_of_stages(rng: random.Random, before: Architecture) -> Mutation:
    least = min(len(stage) for stage in before.stages)
    most = rng.choice((None, least + 1))
    seed, drawn = rng.randrange(10_000), rng.random() < 0.5
    return grow_stages(before, most=None if drawn else most, drawn=drawn, seed=seed)


def drawn_widening(rng: random.Random, before: Architecture) -> Mutation:
    block = rng.randrange(len(before.blocks))
    channels = _wider(rng, before.channels[block])
    mode = rng.choice(("duplicate", "zero", "pairs"))
    return widen(before, block, channels=channels, mode=mode, seed=rng.randrange(10_000))


def drawn_widening_of_all(rng: random.Random, before: Architecture) -> Mutation:
    widths = [_wider(rng, channels) for channels in before.channels]
    mode = rng.choice(("duplicate", "zero", "pairs"))
    return widen(before, None, channels=widths, mode=mode, seed=rng.randrange(10_000))


def _wider(rng: random.Random, channels: int) -> int:
    """More than twice as many now and then: copies in threes."""
    return channels + rng.randint(1, max(1, min(2 * channels + 1, WIDEST - channels)))


def drawn_pruning(rng: random.Random, before: Architecture) -> Mutation:
    share = rng.choice((0.0, 0.5, 0.9))
    least = [max(1, round(share * channels)) for channels in before.channels]
    kept = [
        rng.sample(range(channels), rng.randint(few, channels))
        for channels, few in zip(before.channels, least, strict=True)
    ]
    return prune(before, kept)


MUTATE: list[Callable[[random.Random, Architecture], Mutation]] = [
    drawn_growth,
    drawn_widening,
    drawn_pruning,
    drawn_growth,
    drawn_widening_of_all,
    drawn_growth_of_stages,
]


def kept_masks(mutation: Mutation) -> list[Tensor] | None:
    """What PRUNE leaves of every block; other mutations mask nothing."""
    if mutation.kind != "PRUNE":
        return None
    masks = [torch.zeros(channels, dtype=torch.bool) for channels in mutation.before.channels]
    for mask, space in zip(masks, mutation.spaces[1:], strict=True):
        mask[list(space.index)] = True
    return masks


def check_function(mutation: Mutation, old: Learner, new: Learner, images: Tensor) -> None:
    """GROW and WIDEN leave it as it is, PRUNE leaves that of the masked network."""
    masks = kept_masks(mutation)
    for training in (False, True):
        before = projections_of(old, images, training=training, masks=masks)
        after = projections_of(new, images, training=training)
        assert relative(after, before) <= EXACT, (mutation.kind, mutation.target, training)
    if masks is not None:
        before, after = (
            embedding(net.backbone.eval(), net.backbone.state_dict(), images.float(), kept)
            for net, kept in ((old, masks), (new, None))
        )
        columns = list(mutation.features.index)
        assert relative(after, before[:, columns]) <= MASKED, mutation.target


@torch.no_grad()
def embedding(
    net: EvolvableCNN,
    weights: Mapping[str, Tensor],
    images: Tensor,
    masks: list[Tensor] | None = None,
) -> Tensor:
    """Of `net` with `weights`, in the type of `images`."""
    cast = {n: t.to(images.dtype) if t.is_floating_point() else t for n, t in weights.items()}
    return functional_call(net, cast, (images, masks))


def check_teacher(
    mutation: Mutation,
    state: TrainingState,
    new: TrainingState,
    old_net: EvolvableCNN,
    new_net: EvolvableCNN,
    x: Tensor,
) -> None:
    """It has the student's tensors, and its embedding follows the index map."""
    assert state.teacher is not None
    assert new.teacher is not None
    prefix = "backbone."
    assert set(new.teacher) == {n[len(prefix) :] for n in new.student if n.startswith(prefix)}
    found = embedding(new_net.eval(), new.teacher, x)
    expected = embedding(old_net.eval(), state.teacher, x, kept_masks(mutation))
    index = torch.tensor(mutation.features.index)
    kept = index != NEW
    expected = expected[:, index[kept]]
    # The activations of a network may all be 0, but for rounding.
    assert (found[:, kept] - expected).norm() <= EXACT * expected.norm().clamp_min(1e-2)
    if mutation.kind == "GROW":
        assert not found[:, ~kept].any()


@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(seed, marks=[pytest.mark.slow] if seed >= QUICK else [])
        for seed in range(ARCHITECTURES)
    ],
)
def test_any_sequence_of_mutations_is_exact(seed: int) -> None:
    rng = random.Random(seed)
    architecture = drawn_architecture(rng)
    learner, teacher = make_learner(architecture, seed), make_learner(architecture, seed + 50)
    images = make_images(architecture, seed, count=3)
    teacher_state: Mapping[str, Tensor] | None = teacher.backbone.state_dict()
    build_optimizer = OPTIMIZERS[rng.choice(list(OPTIMIZERS))]
    optimizer = build_optimizer(learner)
    for step, mutate in enumerate(rng.sample(MUTATE, MUTATIONS)):
        loss_of(learner.train(), images, step).backward()
        optimizer.step()
        optimizer.zero_grad()
        state = TrainingState(
            learner.state_dict(), teacher_state, named_moments(optimizer, learner)
        )
        before, architecture = snapshot(state), learner.backbone.architecture
        description = architecture.to_dict()
        mutation = mutate(rng, architecture)
        after = apply(mutation, state)
        new = build_learner(mutation, after, like=learner)

        assert_same(state, before)
        assert learner.backbone.architecture.to_dict() == description
        check_function(mutation, learner, new, images)
        check_teacher(mutation, state, after, learner.backbone, new.backbone, images)
        check_moments(mutation, state, after)
        assert (
            rebuild(mutation.kind, json.loads(json.dumps(mutation.target)), architecture)
            == mutation
        )

        learner, teacher_state, optimizer = new, after.teacher, build_optimizer(new)
        load_moments(optimizer, learner, after.moments)
        loaded = TrainingState(
            learner.state_dict(), teacher_state, named_moments(optimizer, learner)
        )
        assert_same(loaded, after)
    check_counts(learner, learner.backbone.architecture)
