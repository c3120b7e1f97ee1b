"""Carrying a training state across single mutations; sequences are in `test_properties`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sseg_nase.evolution.operators import (
    TrainingState,
    apply,
    build_learner,
    load_moments,
    named_moments,
)
from sseg_nase.nets.architecture import Architecture, Block
from sseg_nase.nets.evolvable import EvolvableCNN, Learner
from sseg_nase.nets.maps import GRADIENT, NEW, SQUARED_GRADIENT, Tensors, carry
from sseg_nase.nets.mutation import Mutation
from sseg_nase.nets.mutations.grow import grow
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
    maps_of,
    projections_of,
    relative,
    snapshot,
)

RESIDUAL = Architecture(
    (
        Block(5),
        Block(5, pool=False, residual=True),
        Block(7, residual=True),
        Block(4, pool=False, residual=True),
    ),
    resolution=16,
)
PLAIN = Architecture.seed([5, 4, 6], resolution=16)


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("embedding", ["average", "flatten"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("base", [PLAIN, RESIDUAL], ids=["plain", "residual"])
def test_moments_move_as_gradients_do(
    base: Architecture, activation: str, embedding: str, batch_norm: bool
) -> None:
    """Against autograd, for every entry: first moments as gradients, second as their squares."""
    before = replace(base, activation=activation, embedding=embedding, batch_norm=batch_norm)
    # Once through a mutation already, so that shortcuts are routed where there are any.
    routing = widen(before, 1, channels=before.channels[1] + 3, seed=4)
    learner = make_learner(before, 1)
    learner = build_learner(
        routing, apply(routing, TrainingState(learner.state_dict())), like=learner
    )
    assert any(block.routed for block in routing.after.blocks) == (base is RESIDUAL)
    images = make_images(before, 2)
    wider = [3 * channels - 1 for channels in routing.after.channels]  # copies in twos and threes
    for mutation in (
        *(widen(routing.after, b, channels=c, seed=b) for b, c in enumerate(wider)),
        widen(routing.after, None, channels=wider, seed=9),
    ):
        new = build_learner(
            mutation, apply(mutation, TrainingState(learner.state_dict())), like=learner
        )
        old_gradients, gradients = gradients_of(learner, images), gradients_of(new, images)
        maps = maps_of(mutation, gradients)
        zeros = {name: torch.zeros_like(gradient) for name, gradient in gradients.items()}
        squares = {name: gradient**2 for name, gradient in old_gradients.items()}
        bundle = {
            "gradients": Tensors(old_gradients, zeros, GRADIENT),
            "squares": Tensors(squares, zeros, SQUARED_GRADIENT),
        }
        carried, carried_squares = carry(maps, bundle).values()
        # Some gradients are 0 but for rounding: a shift before the head's norm changes nothing.
        scale = max(gradient.abs().max().item() for gradient in gradients.values())
        for name, gradient in gradients.items():
            assert torch.allclose(carried[name], gradient, rtol=1e-9, atol=1e-12 * scale), name
            assert torch.allclose(carried_squares[name], carried[name] ** 2, rtol=1e-12, atol=0)


def gradients_of(learner: Learner, images: Tensor) -> dict[str, Tensor]:
    learner = copy.deepcopy(learner).train()
    names, parameters = zip(*learner.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss_of(learner, images), parameters)
    return dict(zip(names, gradients, strict=True))


def trained(learner: Learner, images: Tensor, steps: int) -> Learner:
    learner = copy.deepcopy(learner).train()
    optimizer = torch.optim.SGD(learner.parameters(), lr=1e-2)
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(learner, images, step).backward()
        optimizer.step()
    return learner


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("embedding", ["average", "flatten"])
@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("position", [1, 2, 3, 4])
def test_a_preserving_block_learns_in_every_channel(
    position: int, batch_norm: bool, embedding: str, activation: str
) -> None:
    before = replace(RESIDUAL, activation=activation, embedding=embedding, batch_norm=batch_norm)
    width = before.channels[position - 1]
    mutation = grow(before, position=position, out_channels=width + 4, seed=1)
    learner = make_learner(before, 3)
    state = apply(mutation, TrainingState(learner.state_dict()))
    new = build_learner(mutation, state, like=learner)
    images = make_images(before, 5, count=12)

    gate = "norm.weight" if batch_norm else "conv.weight"
    gradient = gradients_of(new, images)[f"backbone.blocks.{position}.{gate}"]
    assert gradient.flatten(1).any(1).all() if gradient.dim() > 1 else gradient.all()

    moved = trained(new, images, steps=3).state_dict()
    old = new.state_dict()
    for part in ("norm.weight", "norm.bias", "conv.bias", "conv.weight"):
        name = f"backbone.blocks.{position}.{part}"
        if name in old:
            assert (moved[name] != old[name]).flatten(1 if old[name].dim() > 1 else 0).any(-1).all()
    consumer = f"backbone.blocks.{position + 1}.conv.weight"
    if position == len(before.blocks):
        fresh = [j for j, i in enumerate(mutation.features.index) if i == NEW]
        assert (moved["head.fc1.weight"] != old["head.fc1.weight"])[:, fresh].any(0).all()
    elif activation == "gelu":  # a ReLU may silence a channel by its values: that is its right
        columns = (moved[consumer] != old[consumer])[:, width:]
        assert columns.transpose(0, 1).flatten(1).any(1).all()


@pytest.mark.parametrize("base", [PLAIN, RESIDUAL], ids=["plain", "residual"])
@pytest.mark.parametrize("embedding", ["average", "flatten"])
@pytest.mark.parametrize("block", [0, 1, 2])
def test_zero_mode_channels_learn(base: Architecture, embedding: str, block: int) -> None:
    before = replace(base, embedding=embedding, activation="gelu")
    width = before.channels[block]
    mutation = widen(before, block, channels=width + 3, mode="zero", seed=1)
    learner = make_learner(before, 3)
    state = apply(mutation, TrainingState(learner.state_dict()))
    new = build_learner(mutation, state, like=learner)
    moved = trained(new, make_images(before, 5, count=12), steps=3).state_dict()
    old = new.state_dict()
    for part in ("conv.weight", "norm.weight", "norm.bias"):
        name = f"backbone.blocks.{block}.{part}"
        assert (moved[name] != old[name])[width:].all(), name
    name = f"backbone.blocks.{block + 1}.conv.weight"
    fresh: list[int] = list(range(width, width + 3))
    if block + 1 == len(before.blocks):
        name = "head.fc1.weight"
        fresh = [j for j, i in enumerate(mutation.features.index) if i == NEW]
    assert not old[name][:, fresh].any()
    assert (moved[name] != 0)[:, fresh].any(0).all()


def test_copies_stay_tied_without_noise_and_separate_with_it() -> None:
    learner = make_learner(PLAIN, 3)
    images = make_images(PLAIN, 5, count=12)
    spread = {}
    for noise in (0.0, 0.01):
        mutation = widen(PLAIN, 1, channels=7, noise=noise, seed=1)
        state = apply(mutation, TrainingState(learner.state_dict()))
        new = build_learner(mutation, state, like=learner)
        name = "backbone.blocks.1.conv.weight"

        def apart(net: Learner, index: tuple[int, ...] = mutation.spaces[2].index) -> Tensor:
            weight = net.state_dict()["backbone.blocks.1.conv.weight"]
            pairs = [(j, index.index(i)) for j, i in enumerate(index) if index.index(i) != j]
            return torch.stack([(weight[j] - weight[k]).norm() for j, k in pairs])

        assert len(apart(new)) == 3
        spread[noise] = apart(new), apart(trained(new, images, steps=5))
        assert state.student[name].shape[0] == 7
    assert not spread[0.0][0].any()
    assert spread[0.0][1].max() < 1e-12
    assert (spread[0.01][1] - spread[0.01][0]).abs().min() > 1e-6


@pytest.mark.parametrize("base", [PLAIN, RESIDUAL], ids=["plain", "residual"])
@pytest.mark.parametrize("block", [0, 1, 2])
def test_noise_is_small_and_the_same_for_student_and_teacher(
    base: Architecture, block: int
) -> None:
    learner = make_learner(base, 1)
    mutation = widen(base, block, channels=2 * base.channels[block], noise=0.01, seed=8)
    state = TrainingState(learner.state_dict(), learner.backbone.state_dict())
    after = apply(mutation, state)
    assert after.teacher is not None
    for name, tensor in after.teacher.items():
        assert torch.equal(tensor, after.student[f"backbone.{name}"]), name
    images = make_images(base, 3)
    new = build_learner(mutation, after, like=learner)
    change = relative(
        projections_of(new, images, training=False), projections_of(learner, images, training=False)
    )
    assert 1e-6 < change < 0.1
    name = f"backbone.blocks.{block}.conv.weight"
    width = base.channels[block]
    assert torch.equal(after.student[name][:width], _without_noise(mutation, state)[name][:width])


@pytest.mark.parametrize(
    "mutation",
    [
        grow(RESIDUAL, position=2, out_channels=9, seed=6),
        grow(RESIDUAL, out_channels=9, mode="fresh", seed=6),
        widen(RESIDUAL, 1, noise=0.1, seed=6),
        widen(RESIDUAL, 2, mode="zero", seed=6),
        prune(RESIDUAL, [[0, 2], [1, 4], [0, 6], [3]]),
    ],
)
def test_equal_student_and_teacher_stay_equal(mutation: Mutation) -> None:
    """New entries, too: otherwise the distillation gap would jump."""
    learner = make_learner(RESIDUAL, 1)
    after = apply(mutation, TrainingState(learner.state_dict(), learner.backbone.state_dict()))
    assert after.teacher is not None
    for name, tensor in after.teacher.items():
        assert torch.equal(tensor, after.student[f"backbone.{name}"]), name


def _without_noise(mutation: Mutation, state: TrainingState) -> Mapping[str, Tensor]:
    return apply(replace(mutation, noise=0.0), state).student


@pytest.mark.parametrize("embedding", ["average", "flatten"])
@pytest.mark.parametrize("position", [1, 2, 3])
@pytest.mark.parametrize("base", [PLAIN, RESIDUAL], ids=["plain", "residual"])
def test_a_fresh_block_builds_and_trains(base: Architecture, position: int, embedding: str) -> None:
    before = replace(base, embedding=embedding, resolution=32)
    mutation = grow(before, position=position, out_channels=8, mode="fresh", seed=2)
    learner = make_learner(before, 3)
    optimizer = OPTIMIZERS["adamw"](learner)
    images = make_images(before, 4)
    loss_of(learner, images).backward()
    optimizer.step()
    state = TrainingState(
        learner.state_dict(), learner.backbone.state_dict(), named_moments(optimizer, learner)
    )
    after = apply(mutation, state)
    new = build_learner(mutation, after, like=learner)
    check_counts(new, mutation.after)
    optimizer = OPTIMIZERS["adamw"](new)
    load_moments(optimizer, new, after.moments)
    old = copy.deepcopy(new.state_dict())
    loss_of(new, images).backward()
    optimizer.step()
    name = f"backbone.blocks.{position}.conv.weight"
    assert (new.state_dict()[name] != old[name]).any()
    if embedding == "flatten" and mutation.before.positions != mutation.after.positions:
        assert not after.moments["head.fc1.weight"]["exp_avg"].any()
    if embedding == "flatten" and base is PLAIN:
        assert mutation.before.positions != mutation.after.positions


def test_a_fresh_block_before_a_residual_one_leaves_its_shortcut_alive() -> None:
    after = grow(RESIDUAL, position=1, out_channels=5, mode="fresh").after
    assert not after.blocks[2].routed
    routed = widen(RESIDUAL, 0, channels=8).after
    assert routed.blocks[1].routed
    mutation = grow(routed, position=1, out_channels=8, mode="fresh")
    state = TrainingState(make_learner(routed, 1).state_dict())
    routing = apply(mutation, state).student["backbone.blocks.2.routing"]
    assert torch.equal(routing[:, :5], torch.eye(5, dtype=routing.dtype))


def stepped(name: str, steps: int = 2) -> tuple[Learner, torch.optim.Optimizer]:
    learner = make_learner(PLAIN, 3)
    optimizer = OPTIMIZERS[name](learner)
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(learner, make_images(PLAIN, step)).backward()
        optimizer.step()
    return learner, optimizer


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    "mutation", [grow(PLAIN, out_channels=8), prune(PLAIN, [[0, 3], [1], [2, 5]])]
)
def test_every_optimizer_goes_on_with_its_state(name: str, mutation: Mutation) -> None:
    learner, optimizer = stepped(name)
    state = TrainingState(learner.state_dict(), None, named_moments(optimizer, learner))
    after = apply(mutation, state)
    check_moments(mutation, state, after)
    new = build_learner(mutation, after, like=learner)
    optimizer = OPTIMIZERS[name](new)
    load_moments(optimizer, new, after.moments)
    loaded = named_moments(optimizer, new)
    assert_same(TrainingState({}, None, loaded), TrainingState({}, None, after.moments))
    assert not [n for n in loaded if n.startswith("backbone.blocks.3")]
    loss_of(new, make_images(PLAIN, 9)).backward()
    optimizer.step()
    if name != "sgd":
        steps = {n: int(m["step"]) for n, m in named_moments(optimizer, new).items()}
        grown = {n for n in steps if n.startswith("backbone.blocks.3")}
        assert all(count == (1 if n in grown else 3) for n, count in steps.items())


@pytest.mark.parametrize(
    "mutation", [grow(PLAIN, out_channels=9), widen(PLAIN, 1, channels=9, mode="zero")]
)
def test_new_entries_of_old_tensors_take_steps_as_long_as_the_others(mutation: Mutation) -> None:
    """Long after Adam's first steps, with gradients of one size: at 0 they were 3 times as long."""
    learner, lr, size = make_learner(PLAIN, 3), 1e-3, 0.02
    moments = {
        name: {
            "step": torch.tensor(1500.0),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.full_like(parameter, size**2),
        }
        for name, parameter in learner.named_parameters()
    }
    after = apply(mutation, TrainingState(learner.state_dict(), None, moments))
    new = build_learner(mutation, after, like=learner)
    optimizer = torch.optim.Adam(new.parameters(), lr=lr)
    load_moments(optimizer, new, after.moments)
    maps = maps_of(mutation, new.state_dict())
    zeros = {name: torch.zeros_like(p) for name, p in new.named_parameters() if name in moments}
    ones = {name: torch.ones_like(p) for name, p in learner.named_parameters()}
    moved = carry(maps, {"ones": Tensors(ones, zeros, GRADIENT)})["ones"]
    added = {name: t == 0 for name, t in moved.items()}
    assert any(one.any() for one in added.values())
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        before = {name: p.detach().clone() for name, p in new.named_parameters()}
        for p in new.parameters():
            p.grad = size * torch.randn(p.shape, generator=generator, dtype=p.dtype)
        optimizer.step()
        moved = {name: (p.detach() - before[name]).abs() / lr for name, p in new.named_parameters()}
        fresh, old = (
            torch.cat([moved[name][one if which else ~one] for name, one in added.items()]).mean()
            for which in (True, False)
        )
        assert fresh < 1
        assert fresh == pytest.approx(old.item(), rel=0.3)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_on_does_not_reach_into_what_was_carried(name: str) -> None:
    learner, optimizer = stepped(name)
    mutation = widen(PLAIN, 0)
    before = snapshot(TrainingState(learner.state_dict(), None, named_moments(optimizer, learner)))
    after = apply(mutation, before)
    kept = snapshot(after)
    new = build_learner(mutation, after, like=learner)
    again = OPTIMIZERS[name](new)
    load_moments(again, new, after.moments)
    loss_of(new, make_images(PLAIN, 9)).backward()
    again.step()
    assert_same(after, kept)


def test_sgd_without_momentum_has_nothing_to_carry() -> None:
    learner = make_learner(PLAIN, 3)
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)
    loss_of(learner, make_images(PLAIN, 0)).backward()
    optimizer.step()
    state = TrainingState(learner.state_dict(), None, named_moments(optimizer, learner))
    after = apply(widen(PLAIN, 1), state)
    assert all(value is None for m in after.moments.values() for value in m.values())


def tampered(**changes: Any) -> TrainingState:
    learner, optimizer = stepped("adamw", steps=1)
    state = TrainingState(
        learner.state_dict(), learner.backbone.state_dict(), named_moments(optimizer, learner)
    )
    return replace(
        state, **{part: {**getattr(state, part), **extra} for part, extra in changes.items()}
    )


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"student": {"backbone.blocks.7.conv.weight": torch.zeros(1)}}, "blocks.7"),
        ({"student": {"head.fc3.weight": torch.zeros(1)}}, "head.fc3"),
        ({"teacher": {"blocks.7.conv.weight": torch.zeros(1)}}, "blocks.7"),
        ({"moments": {"classifier.weight": {"step": torch.tensor(1.0)}}}, "classifier.weight"),
        ({"moments": {"head.fc1.weight": {"mu_product": torch.tensor(1.0)}}}, "mu_product"),
    ],
)
def test_nothing_unknown_is_dropped_in_silence(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(KeyError, match=named):
        apply(widen(PLAIN, 1), tampered(**changes))


@pytest.mark.parametrize("part", ["student", "teacher"])
def test_a_missing_tensor_is_named(part: str) -> None:
    state = tampered()
    prefix = "backbone." if part == "student" else ""
    name = f"{prefix}blocks.1.conv.weight"
    left = {n: tensor for n, tensor in getattr(state, part).items() if n != name}
    with pytest.raises(KeyError, match=r"blocks\.1\.conv\.weight"):
        apply(widen(PLAIN, 0), replace(state, **{part: left}))


def test_a_mutation_of_another_architecture_is_refused() -> None:
    """A PRUNE decided before a WIDEN would otherwise remove the new channels, too."""
    pruned = prune(PLAIN, [[0, 1, 2], [0, 1], [0, 1, 2]])
    widened = apply(widen(PLAIN, 1), TrainingState(make_learner(PLAIN, 1).state_dict()))
    with pytest.raises(ValueError, match=r"backbone.blocks.1.conv.weight.*6.*4"):
        apply(pruned, widened)


def test_strangers_in_an_optimizer_raise() -> None:
    learner, optimizer = stepped("adamw", steps=1)
    with pytest.raises(KeyError, match="parameters the network does not have"):
        named_moments(optimizer, make_learner(PLAIN, 3))
    moments = named_moments(optimizer, learner)
    small = make_learner(Architecture.seed([5, 4], resolution=16), 3)
    with pytest.raises(KeyError, match=r"blocks\.2"):
        load_moments(OPTIMIZERS["adamw"](small), small, moments)


def test_carrying_needs_a_map_for_every_tensor() -> None:
    maps = widen(PLAIN, 0).maps
    fresh = {**EvolvableCNN(widen(PLAIN, 0).after).state_dict(), "extra": torch.zeros(2)}
    with pytest.raises(KeyError, match="no map for extra"):
        carry(maps, {"network": Tensors(EvolvableCNN(PLAIN).state_dict(), fresh)})


def test_the_new_state_follows_the_type_of_the_old_one() -> None:
    for mutation in (grow(PLAIN, out_channels=8), widen(PLAIN, 0), prune(PLAIN, [[0], [1], [2]])):
        learner = make_learner(PLAIN, 1)
        after = apply(mutation, TrainingState(learner.state_dict(), learner.backbone.state_dict()))
        assert after.teacher is not None
        for state in (after.student, after.teacher):
            kinds = {t.dtype for n, t in state.items() if not n.endswith("num_batches_tracked")}
            assert kinds == {torch.float64}


def test_applying_is_repeatable_and_leaves_the_global_generator_alone() -> None:
    learner = make_learner(PLAIN, 1)
    state = TrainingState(learner.state_dict(), learner.backbone.state_dict())
    for mutation in (
        grow(PLAIN, out_channels=9, seed=4),
        grow(PLAIN, mode="fresh", seed=4),
        widen(PLAIN, 1, noise=0.1, seed=4),
        widen(PLAIN, 1, mode="zero", seed=4),
    ):
        global_state = torch.get_rng_state()
        first = apply(mutation, state)
        build_learner(mutation, first, like=learner)
        assert torch.equal(torch.get_rng_state(), global_state)
        torch.rand(3)
        assert_same(first, apply(mutation, state))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_mutations_follow_their_device() -> None:
    learner = make_learner(RESIDUAL, 1).cuda()
    optimizer = OPTIMIZERS["adamw"](learner)
    images = make_images(RESIDUAL, 1).cuda()
    loss = learner(images)[1].square().sum()
    loss.backward()
    optimizer.step()
    for mutation in (
        grow(RESIDUAL, position=2, out_channels=9),
        widen(RESIDUAL, 1, noise=0.01),
        widen(RESIDUAL, 1, mode="zero"),
        prune(RESIDUAL, [[0, 2], [1, 4], [0, 6], [3]]),
    ):
        state = TrainingState(
            learner.state_dict(), learner.backbone.state_dict(), named_moments(optimizer, learner)
        )
        after = apply(mutation, state)
        assert after.teacher is not None
        tensors = [*after.student.values(), *after.teacher.values()]
        assert all(tensor.is_cuda for tensor in tensors)
        new = build_learner(mutation, after, like=learner)
        again = OPTIMIZERS["adamw"](new)
        load_moments(again, new, after.moments)
        new(images)[1].sum().backward()
        again.step()
