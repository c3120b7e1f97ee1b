"""The learning rate as a table: warm-up, schedule, and the warm-up after a mutation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sseg_nase.config.compose import load
from sseg_nase.config.schema import SchedulerConfig
from sseg_nase.nets.architecture import Architecture
from sseg_nase.nets.evolvable import EvolvableCNN
from sseg_nase.nets.mutations.grow import grow_stages
from sseg_nase.training.optim import build_optimizer, lr_ratio, set_learning_rate

STEPS, EPOCHS = 5, 10  # steps per epoch


def scheduler(*overrides: str) -> SchedulerConfig:
    return load([f"scheduler={overrides[0]}", *overrides[1:]]).scheduler


def ratio(step: int, s: SchedulerConfig, mutated_at: int | None = None) -> float:
    return lr_ratio(step, STEPS, EPOCHS, s, mutated_at=mutated_at)


def test_the_cosine_begins_after_the_warm_up_and_ends_with_the_run() -> None:
    s = scheduler("cosine", "scheduler.warmup_epochs=2", "scheduler.final_ratio=0.1")
    assert [ratio(step, s) for step in range(10)] == pytest.approx(
        [(step + 1) / 11 for step in range(10)]
    )
    assert ratio(10, s) == pytest.approx(1)
    assert ratio(30, s) == pytest.approx(0.1 + 0.9 / 2)  # halfway through the eight epochs
    assert ratio(20, s) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert ratio(49, s) == pytest.approx(0.1, abs=0.01)
    assert ratio(50, s) == pytest.approx(0.1)
    assert ratio(999, s) == pytest.approx(0.1)  # a run that was resumed with fewer epochs
    falling = [ratio(step, s) for step in range(10, 51)]
    assert falling == sorted(falling, reverse=True)


def test_the_other_schedules() -> None:
    constant = scheduler("constant", "scheduler.warmup_epochs=1")
    assert [ratio(step, constant) for step in (0, 4, 5, 49)] == pytest.approx([1 / 6, 5 / 6, 1, 1])
    options = ("scheduler.warmup_epochs=2", "scheduler.step_size=3", "scheduler.gamma=0.5")
    step = scheduler("step", *options)
    found = {at: ratio(at, step) for at in (10, 24, 25, 39, 40)}  # from epoch 2 on, every 3 epochs
    assert found == pytest.approx({10: 1, 24: 1, 25: 0.5, 39: 0.5, 40: 0.25})


def test_the_decay_begins_after_the_constant_phase_and_ends_at_nothing() -> None:
    s = scheduler("constant_decay", "scheduler.warmup_epochs=2", "scheduler.decay_share=0.5")
    assert [ratio(step, s) for step in (0, 9, 10, 20, 30)] == pytest.approx(
        [1 / 11, 10 / 11, 1, 1, 1]
    )
    # Over the last four of the eight epochs after the warm-up.
    assert [ratio(step, s) for step in (35, 40, 45, 50)] == pytest.approx([0.75, 0.5, 0.25, 0])
    assert ratio(999, s) == 0
    rest = scheduler("constant_decay", "scheduler.warmup_epochs=2", "scheduler.final_ratio=0.2")
    assert ratio(50, rest) == pytest.approx(0.2)
    assert ratio(42, rest) == pytest.approx(0.2 + 0.8 * (8 / 40) / 0.4)
    assert ratio(33, rest) == 1


def test_a_warm_up_of_all_epochs_is_never_over() -> None:
    s = scheduler("cosine", "scheduler.warmup_epochs=99")
    assert ratio(49, s) == pytest.approx(50 / 51)


def test_after_a_mutation_there_is_a_short_warm_up() -> None:
    s = scheduler("constant", "scheduler.warmup_epochs=0", "scheduler.rewarmup_steps=4")
    found = [ratio(step, s, mutated_at=20) for step in range(20, 27)]
    assert found == pytest.approx([1 / 5, 2 / 5, 3 / 5, 4 / 5, 1, 1, 1])
    none = scheduler("constant", "scheduler.warmup_epochs=0", "scheduler.rewarmup_steps=0")
    assert ratio(20, none, mutated_at=20) == 1
    both = scheduler("cosine", "scheduler.warmup_epochs=0", "scheduler.rewarmup_steps=4")
    assert ratio(26, both, mutated_at=25) == pytest.approx(ratio(26, both) * 2 / 5)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_norms_and_biases_do_not_decay(name: str) -> None:
    module = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Linear(3, 2))
    asked = [f"optimizer={name}", "optimizer.lr=0.1", "optimizer.weight_decay=0.3"]
    optimizer = build_optimizer(module, load(asked).optimizer)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, module.parameters()))
    for parameter in module.parameters():
        nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    shrunk = {n: bool((p < 1).all()) for n, p in module.named_parameters()}
    assert [n for n, less in shrunk.items() if less] == ["0.weight", "2.weight"]
    assert (module[1].weight == 1).all()


@pytest.mark.parametrize("norm", [True, False])
def test_the_gamma_of_residual_blocks_may_learn_faster(norm: bool) -> None:
    plain = Architecture.seed([4, 5], resolution=16, batch_norm=norm)
    network = EvolvableCNN(grow_stages(plain).after)
    optimizer = build_optimizer(network, load(["optimizer.gamma_lr_ratio=5"]).optimizer)
    set_learning_rate(optimizer, 0.25)
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(list(network.parameters()))
    faster = {name for name, p in network.named_parameters() if rates[p] != 0.25}
    assert faster == ({"blocks.1.norm.weight", "blocks.3.norm.weight"} if norm else set())
    assert {rates[p] for n, p in network.named_parameters() if n in faster} <= {1.25}


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_an_optimizer_is_what_its_keys_say(name: str) -> None:
    asked = [f"optimizer={name}", "optimizer.lr=0.02", "optimizer.weight_decay=0.3"]
    own = "optimizer.momentum=0.7" if name == "sgd" else "optimizer.betas=[0.8,0.95]"
    module = nn.Linear(2, 1, bias=False)
    nn.init.constant_(module.weight, 1.0)
    optimizer = build_optimizer(module, load([*asked, own]).optimizer)
    for _ in range(2):
        module(torch.ones(1, 2)).sum().backward()  # a gradient of 1
        optimizer.step()
        optimizer.zero_grad()
    w, m, v = 1.0, 0.0, 0.0
    for t in (1, 2):
        g = 1.0 + (0 if name == "adamw" else 0.3 * w)
        if name == "sgd":
            m = g if t == 1 else 0.7 * m + g
            w -= 0.02 * m
            continue
        if name == "adamw":
            w -= 0.02 * 0.3 * w
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g * g
        w -= 0.02 * (m / (1 - 0.8**t)) / (math.sqrt(v / (1 - 0.95**t)) + 1e-8)
    assert module.weight.tolist()[0] == pytest.approx([w, w], rel=1e-5)
