"""What is done to gradients before a step: DINO's last layer is held, and norms are clipped."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sseg_nase.config.compose import load
from sseg_nase.data.random import derive
from sseg_nase.ssl.methods import METHODS
from sseg_nase.stages.pretraining import trainer_of
from sseg_nase.tracking.sink import Sink
from sseg_nase.training.loop import Trainer

TINY = [
    "debug=tiny",
    "hardware=cpu",
    "hardware.precision=32-true",
    "evolution=none",
    "sparsity=none",
    "pretrain.epochs=2",
    "pretrain.images_per_epoch=32",
    "hardware.batch_size=16",
]
DINO = ["ssl=dino", "ssl.prototypes=6", "ssl.projection_hidden=8", "ssl.projection_dim=4",
        "ssl.local_views=1", "ssl.distillation_weight=0"]  # fmt: skip


def trainer(*overrides: str) -> Trainer:
    return trainer_of(load([*TINY, *overrides]), [], Sink(), None, lambda: False)


def test_dino_holds_its_last_layer_in_the_first_epoch() -> None:
    one = trainer(*DINO)
    head = one.state.networks.learner.head
    drawn, first = head.prototypes.weight.detach().clone(), head.fc1.weight.detach().clone()
    one.train_epoch()
    assert torch.equal(head.prototypes.weight, drawn)
    assert not torch.equal(head.fc1.weight, first)
    one.state.progress.epoch, one.state.progress.batch = 1, 0
    one.train_epoch()
    assert not torch.equal(head.prototypes.weight, drawn)


def test_dinos_global_views_are_large() -> None:
    ssl = load([*TINY, *DINO]).ssl
    assert METHODS["dino"].crops(ssl)[0].scale == (0.4, 1.0)
    alone = load([*TINY, *DINO, "ssl.local_views=0"]).ssl
    assert [crops.scale for crops in METHODS["dino"].crops(alone)] == [(0.4, 1.0)]


def test_a_gradient_is_no_longer_than_clip_norm_and_keeps_its_direction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: dict[str, torch.Tensor] = {}
    for name, more in (("plain", []), ("clipped", ["optimizer.clip_norm=0.01"])):
        one = trainer("ablation=A2", *more)
        learner, step = one.state.networks.learner, one.optimizer.step

        def watched(*given: Any, name: str = name, learner: Any = learner, step: Any = step) -> Any:
            gradients = torch.cat([p.grad.flatten() for p in learner.parameters()])
            found.setdefault(name, gradients.clone())
            return step(*given)

        monkeypatch.setattr(one.optimizer, "step", watched)
        one.train_epoch()
    plain = found["plain"]
    assert plain.norm() > 0.01
    torch.testing.assert_close(found["clipped"], plain * (0.01 / plain.norm()), rtol=1e-3, atol=0)


def test_steps_outside_of_the_training_are_held_and_clipped_alike() -> None:
    one = trainer(*DINO, "optimizer.clip_norm=0.01")
    networks = one.state.networks
    batch = next(iter(one.feed.epoch(0)))
    views = one.state.probe.views_of([batch], derive(0, "views"))
    drawn = networks.learner.head.prototypes.weight.detach().clone()
    one.state.probe.differentiate(networks, 0, views, part="trials")
    one.state.probe.prepare(networks, 0)
    gradients = [p.grad for p in networks.learner.parameters() if p.grad is not None]
    assert torch.cat([g.flatten() for g in gradients]).norm() == pytest.approx(0.01, rel=1e-3)
    one.state.probe.step(networks, 0, views, 0.1)
    assert torch.equal(networks.learner.head.prototypes.weight, drawn)
    one.state.probe.step(networks, 1, views, 0.1)
    assert not torch.equal(networks.learner.head.prototypes.weight, drawn)
