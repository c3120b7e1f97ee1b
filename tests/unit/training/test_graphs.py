"""Steps that are recorded and replayed: on a CPU, by a graph that replays by computing again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sseg_nase.config.compose import load
from sseg_nase.ssl.methods import Losses
from sseg_nase.stages.pretraining import trainer_of
from sseg_nase.tracking.sink import Sink
from sseg_nase.training.events import Callback, Event
from sseg_nase.training.graphs import EAGER_STEPS, Replayed, why_not
from sseg_nase.training.loop import Trainer
from sseg_nase.training.state import Pretraining

STEPS = EAGER_STEPS + 3  # an epoch
SMALL = [
    "debug=tiny", "hardware=cpu", "hardware.precision=32-true", "hardware.batch_size=8",
    "hardware.gradient_accumulation_steps=1", "pretrain.epochs=4",
    f"pretrain.images_per_epoch={8 * STEPS}", "ssl.projection_hidden=16", "ssl.projection_dim=8",
]  # fmt: skip
METHODS = {
    "with a teacher": ["ablation=A7"],
    "in parts": [
        "ablation=A7", "hardware.accumulate=exact", "hardware.gradient_accumulation_steps=2",
        "hardware.batch_size=4",
    ],
    "byol": ["ssl=byol", "evolution=none", "sparsity=none", "pretrain.epochs=2"],
}  # fmt: skip


class Rehearsed:
    """Computes again at every replay, and puts the results where the first ones lay.

    While it records, it undoes what a GPU would not do then.
    """

    def __init__(self, one: Trainer, log: list[str]) -> None:
        self.one, self.log = one, log

    def record(self, work: Callable[[], Losses]) -> Losses:
        networks = self.one.state.networks
        learner = networks.learner
        buffers = [
            buffer
            for network in (learner, networks.teacher, networks.teacher_head)
            if network is not None
            for buffer in network.buffers()
        ]
        before = [buffer.clone() for buffer in buffers]
        self.work, self.losses = work, work()
        self.parameters = [each for each in learner.parameters() if each.grad is not None]
        self.gradients = [each.grad for each in self.parameters if each.grad is not None]
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
        for gradient in self.gradients:
            gradient.fill_(torch.nan)
        self.log.append("record")
        return self.losses

    def replay(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None
        for place, value in zip(self.losses[:3], self.work()[:3], strict=True):
            if place is not None:
                place.copy_(value)
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            gradient.copy_(parameter.grad)
            parameter.grad = None
        self.log.append("replay")


class Kept(Callback):
    """Whether anything is recorded when mutations are tried."""

    graphs: Replayed | None = None

    def on(self, event: Event, state: Pretraining) -> None:
        if event in (Event.EPOCH_START, Event.MUTATION) and self.graphs is not None:
            assert self.graphs._recorded is None


def trained(*overrides: str, graphs: Callable[[Trainer], Replayed] | None = None) -> Trainer:
    kept = Kept()
    one = trainer_of(load([*SMALL, *overrides]), [kept], Sink(), None, lambda: False)
    if graphs is not None:
        kept.graphs = one.graphs = graphs(one)
    one.fit()
    return one


def same(first: Trainer, second: Trainer) -> bool:
    def tensors(value: Any) -> list[Tensor]:
        if isinstance(value, dict):
            return [tensor for each in value.values() for tensor in tensors(each)]
        return [value] if isinstance(value, Tensor) else []

    a, b = tensors(first.state_dict()), tensors(second.state_dict())
    assert len(a) > 20
    assert first.state.means is not None
    assert second.state.means is not None
    return (
        len(a) == len(b)
        and all(map(torch.equal, a, b))
        and first.state.means.loss == second.state.means.loss
    )


@pytest.mark.parametrize("overrides", METHODS.values(), ids=METHODS)
def test_replayed_steps_are_the_steps(overrides: list[str]) -> None:
    """Bit for bit, with mutations between them."""
    log = list[str]()
    replayed = trained(*overrides, graphs=lambda one: Replayed(lambda: Rehearsed(one, log)))
    plain = trained(*overrides)
    assert same(plain, replayed)
    assert bool(plain.state.progress.history) == ("ablation=A7" in overrides)
    epoch = ["record", *["replay"] * (STEPS - EAGER_STEPS)]
    assert log == epoch * plain.config.pretrain.epochs


def test_what_cannot_be_recorded_is_computed() -> None:
    class Refusing(Rehearsed):
        def record(self, work: Callable[[], Losses]) -> Losses:
            super().record(work)
            raise RuntimeError("operation not permitted when stream is capturing\nand more")

    told, plain = list[str](), ["evolution=none", "sparsity=none", "pretrain.epochs=2"]
    refused = trained(*plain, graphs=lambda one: Replayed(lambda: Refusing(one, []), told.append))
    assert same(trained(*plain), refused)
    assert told == ["operation not permitted when stream is capturing"]


def test_what_cannot_be_replayed_is_named() -> None:
    def reason(*overrides: str, batches: int = 1) -> str | None:
        return why_not(load(["hardware=cpu", *overrides]), batches=batches)

    assert reason() is None
    assert "plain" in str(reason(batches=2))
    assert "devices" in str(reason("hardware.devices=2"))
    assert "compile" in str(reason("hardware.compile=true"))
    assert "ssl=dino" in str(reason("ssl=dino"))


def test_other_networks_are_recorded_anew() -> None:
    class Counted:
        recorded = 0

        def record(self, work: Callable[[], Losses]) -> Losses:
            Counted.recorded += 1
            return work()

        def replay(self) -> None:
            """Nothing."""

    replayed, (first, second) = Replayed(Counted), (torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))

    def call(learner: torch.nn.Module) -> None:
        def compute(views: Any) -> Losses:
            loss = learner(views[0][0]).sum()
            loss.backward()
            return Losses(loss, loss, None)

        replayed(compute, learner, [[torch.ones(3, 2)]])
        assert learner.weight.grad is not None
        learner.zero_grad(set_to_none=True)

    for _ in range(EAGER_STEPS + 2):
        call(first)
    assert Counted.recorded == 1
    for learner in (second, first, *[second] * EAGER_STEPS):
        call(learner)
    assert Counted.recorded == 1
    call(second)
    assert Counted.recorded == 2
