"""Mutations of a network at hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sseg_nase.errors import UserError
from sseg_nase.evolution.functional import Evolved, grow, grow_stages, prune, widen
from sseg_nase.evolution.operators import TrainingState, apply, named_moments
from sseg_nase.evolution.replay import replay
from sseg_nase.nets.architecture import Architecture
from sseg_nase.nets.evolvable import EvolvableCNN, Learner
from sseg_nase.nets.mutations.operator import rebuild
from sseg_nase.ssl.teacher import ema_update, make_teacher

PLAIN = Architecture.seed([4, 5, 6], resolution=16)
RESIDUAL = Architecture.seed([4, 6, 6], resolution=16, residual=True, batch_norm=False)
KEPT = [[0, 2, 3], [1, 2], [0, 1, 5]]
BY_HAND: dict[str, Callable[..., Evolved]] = {
    "GROW": lambda network, **along: grow(network, 9, seed=3, **along),
    "GROW inside": lambda network, **along: grow(network, position=1, seed=3, **along),
    "GROW before pooling": lambda network, **along: grow(
        network, 5, position=1, before_pool=True, seed=3, **along
    ),
    "GROW in every stage": lambda network, **along: grow_stages(network, seed=3, **along),
    "WIDEN": lambda network, **along: widen(network, 1, channels=8, seed=3, **along),
    "WIDEN all": lambda network, **along: widen(network, None, ratio=2, seed=3, **along),
    "WIDEN in pairs": lambda network, **along: widen(
        network, 1, channels=9, mode="pairs", seed=3, **along
    ),
    "PRUNE": lambda network, **along: prune(network, KEPT, **along),
}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": lambda groups: torch.optim.Adam(groups, lr=0.01, betas=(0.8, 0.9)),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.01),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True),
}


def images(seed: int) -> Tensor:
    return torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def step(network: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    optimizer.zero_grad()
    network(images(seed)).square().mean().backward()
    optimizer.step()


def trained(
    architecture: Architecture, kind: str = "adamw"
) -> tuple[EvolvableCNN, torch.optim.Optimizer, EvolvableCNN]:
    """A network after two steps; its optimizer, with weights and norms in two groups; a teacher."""
    network = EvolvableCNN(architecture, generator=torch.Generator().manual_seed(1))
    named = dict(network.named_parameters())
    groups = [
        {"params": [p for n, p in named.items() if "conv.weight" in n], "weight_decay": 0.1},
        {"params": [p for n, p in named.items() if "conv.weight" not in n], "weight_decay": 0.0},
    ]
    optimizer, teacher = OPTIMIZERS[kind](groups), make_teacher(network)
    for seed in (1, 2):
        step(network, optimizer, seed)
        ema_update(teacher, network, 0.5)
    return network, optimizer, teacher


@torch.no_grad()
def embedded(network: EvolvableCNN, masks: list[Tensor] | None = None) -> Tensor:
    return network(images(9), masks=masks)


def assert_same(found: Any, expected: Any) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(found[key], value, rtol=0, atol=0)
        elif isinstance(value, dict):
            assert_same(found[key], value)
        else:
            assert found[key] == value


@pytest.mark.parametrize("architecture", [PLAIN, RESIDUAL], ids=["plain", "residual"])
@pytest.mark.parametrize("name", BY_HAND)
def test_the_function_holds_for_student_and_teacher(name: str, architecture: Architecture) -> None:
    network, optimizer, teacher = trained(architecture)
    network.eval()
    evolved = BY_HAND[name](network, optimizer=optimizer, teacher=teacher, images=images(9))
    assert evolved.teacher is not None
    assert not evolved.network.training
    for old, new in ((network, evolved.network), (teacher, evolved.teacher)):
        if name == "PRUNE":
            masks = [
                torch.tensor([c in kept for c in range(width)])
                for kept, width in zip(KEPT, architecture.channels, strict=True)
            ]
            expected = embedded(old, masks)[:, KEPT[-1]]
        else:
            old_features = embedded(old)
            index = rebuild(evolved.record.kind, evolved.record.target, architecture).features.index
            expected = torch.stack(
                [old_features[:, i] if i >= 0 else 0 * old_features[:, 0] for i in index], dim=1
            )
        torch.testing.assert_close(embedded(new), expected, rtol=1e-5, atol=1e-6)
    assert evolved.record.function_delta is not None
    assert (evolved.record.function_delta < 1e-6) == (name != "PRUNE")
    assert replay(architecture, [evolved.record])[-1] == evolved.network.architecture


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", BY_HAND)
def test_what_is_given_stays_and_all_of_it_goes_along(name: str, kind: str) -> None:
    network, optimizer, teacher = trained(PLAIN, kind)
    kept = copy.deepcopy((network.state_dict(), optimizer.state_dict(), teacher.state_dict()))
    evolved = BY_HAND[name](network, optimizer=optimizer, teacher=teacher)
    assert evolved.optimizer is not None
    assert evolved.teacher is not None
    for now, then in zip((network, optimizer, teacher), kept, strict=True):
        if now is optimizer:
            assert_same(now.state_dict()["state"], then["state"])
        else:
            assert_same(now.state_dict(), then)

    # What `apply` says, which training goes by.
    learner = Learner(network)
    before = TrainingState(
        learner.state_dict(), teacher.state_dict(), named_moments(optimizer, learner)
    )
    after = apply(rebuild(evolved.record.kind, evolved.record.target, PLAIN), before)
    mutated = Learner(evolved.network)
    assert_same(mutated.state_dict(), after.student)
    assert_same(evolved.teacher.state_dict(), after.teacher)
    assert_same(named_moments(evolved.optimizer, mutated), after.moments)

    # Groups and their options, for a new block, too.
    assert type(evolved.optimizer) is type(optimizer)
    named = {parameter: n for n, parameter in evolved.network.named_parameters()}
    for group, old in zip(evolved.optimizer.param_groups, optimizer.param_groups, strict=True):
        assert {k: v for k, v in group.items() if k != "params"} == {
            k: v for k, v in old.items() if k != "params"
        }
        weights = group["weight_decay"] > 0
        assert {named[p] for p in group["params"]} == {
            n for n in named.values() if ("conv.weight" in n) == weights
        }
    assert evolved.network.training
    assert not evolved.teacher.training
    assert not any(p.requires_grad for p in evolved.teacher.parameters())
    step(evolved.network, evolved.optimizer, 4)
    ema_update(evolved.teacher, evolved.network, 0.5)


def test_the_next_step_after_grow_is_the_one_it_would_have_been() -> None:
    network, optimizer, _ = trained(RESIDUAL, "sgd")
    grown = grow(network, optimizer=optimizer)
    assert grown.optimizer is not None
    assert grown.teacher is None
    step(network, optimizer, 5)
    step(grown.network, grown.optimizer, 5)
    for name, parameter in network.named_parameters():
        same = dict(grown.network.named_parameters())[name]
        torch.testing.assert_close(same, parameter, rtol=1e-5, atol=1e-7)


def test_what_is_frozen_stays_frozen_and_out_of_the_optimizer() -> None:
    network = EvolvableCNN(PLAIN)
    network.blocks[0].requires_grad_(False)
    optimizer = torch.optim.SGD(network.blocks[1:].parameters(), lr=0.1)
    grown = grow(network, optimizer=optimizer)
    assert grown.optimizer is not None
    held = {p for group in grown.optimizer.param_groups for p in group["params"]}
    assert held == set(grown.network.blocks[1:].parameters())
    assert {p for p in grown.network.parameters() if p.requires_grad} == held


def test_mistakes_are_told() -> None:
    network, optimizer, teacher = trained(PLAIN)
    other, strangers = EvolvableCNN(RESIDUAL), list(network.parameters())[:6]
    with pytest.raises(UserError, match="teacher: its architecture is not the network's"):
        grow(network, teacher=other)
    with pytest.raises(UserError, match="optimizer: 6 of its parameters are not the network's"):
        grow(other, optimizer=torch.optim.SGD([*other.parameters(), *strangers], lr=0.1))
    unknown = torch.optim.Adagrad(network.parameters())
    with pytest.raises(UserError, match="optimizer: optimizer state 'sum' has no rule"):
        grow(network, optimizer=unknown)
    with pytest.raises(UserError, match="WIDEN block 7"):
        widen(network, 7, optimizer=optimizer, teacher=teacher)


@pytest.mark.parametrize("name", BY_HAND)
def test_what_networks_are_set_to_goes_along(name: str) -> None:
    network, _, teacher = trained(PLAIN)
    network.gradient_checkpointing = True
    teacher = teacher.double().train()
    teacher.blocks[0].requires_grad_(True)
    evolved = BY_HAND[name](network, teacher=teacher)
    assert evolved.optimizer is None
    assert evolved.teacher is not None
    assert evolved.network.gradient_checkpointing
    assert not evolved.teacher.gradient_checkpointing
    assert evolved.teacher.training
    assert {p.dtype for p in evolved.teacher.parameters()} == {torch.float64}
    learnt = {n for n, p in evolved.teacher.named_parameters() if p.requires_grad}
    assert learnt == {n for n, p in teacher.named_parameters() if p.requires_grad}
