"""What trials measure: the same images every time, and a gain by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sseg_nase.config.compose import load
from sseg_nase.nets.mutation import Mutation, grow
from sseg_nase.stages.pretraining import trainer_of
from sseg_nase.tracking.sink import Sink
from sseg_nase.training.loop import Trainer

TINY = [
    "debug=tiny",
    "hardware=cpu",
    "hardware.precision=32-true",
    "ablation=A2",
    "ssl.projection_hidden=16",
    "ssl.projection_dim=8",
    "optimizer=sgd",
]


def trained(*overrides: str) -> Trainer:
    config = load([*TINY, *overrides])
    trainer = trainer_of(config, [], Sink(), None, lambda: False)
    trainer._train_epoch()
    trainer._next_epoch()
    return trainer


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    return trained()


def grown(trainer: Trainer) -> Mutation:
    return grow(trainer.networks.evolving, out_channels=64, mode="preserve", seed=3)


def test_equal_networks_have_equal_held_losses_at_all_epochs(trainer: Trainer) -> None:
    losses = {trainer.probe.loss(trainer.networks, epoch) for epoch in (0, 1, 2, 50)}
    assert len(losses) == 1
    mutated = trainer.workshop.mutated(trainer.networks, grown(trainer))
    assert trainer.probe.loss(mutated, 0) == pytest.approx(losses.pop(), rel=1e-4)


def test_the_held_loss_leaves_the_network_as_it_was(trainer: Trainer) -> None:
    before = {k: v.clone() for k, v in trainer.networks.learner.state_dict().items()}
    trainer.probe.loss(trainer.networks, 0)
    trainer.probe.trial(trainer.networks, grown(trainer), epoch=1, steps=2, lr=0.1)
    after = trainer.networks.learner.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_trial_that_learns_nothing_gains_nothing(trainer: Trainer) -> None:
    def gain(steps: int, lr: float) -> float:
        return trainer.probe.trial(trainer.networks, grown(trainer), epoch=1, steps=steps, lr=lr)

    assert gain(2, 0.0) == pytest.approx(0, abs=1e-4)
    assert gain(0, 0.1) == pytest.approx(0, abs=1e-4)
    assert abs(gain(2, 0.1)) > 1e-3


def test_the_gain_is_the_relative_fall_of_the_held_loss(trainer: Trainer) -> None:
    probe, networks, lr, steps = trainer.probe, trainer.networks, 0.05, 3
    before = probe.loss(networks, 1)
    tried = trainer.workshop.mutated(networks, grown(trainer))
    tried.learner.train()
    optimizer = torch.optim.SGD(tried.learner.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)
    moments = {  # those of the training go along
        name: state["momentum_buffer"] for name, state in tried.state().moments.items()
    }
    for name, parameter in tried.learner.named_parameters():
        if name in moments:
            optimizer.state[parameter]["momentum_buffer"] = moments[name].clone()
    for (views,) in probe.batches(1, steps):
        optimizer.zero_grad()
        teaching = tried.teaching(1)
        probe.method.loss(tried.learner, teaching, views, trainer.config.ssl).total.backward()
        optimizer.step()
    after = probe.loss(tried, 1)
    found = probe.trial(networks, grown(trainer), epoch=1, steps=steps, lr=lr)
    assert found == pytest.approx((before - after) / before, rel=1e-3)


@pytest.mark.parametrize(
    ("losses", "gain"),
    [([2.0, 1.5], 0.25), ([2.0, 3.0], -0.5), ([0.0, 0.0], 0.0)],
)
def test_the_sign_of_the_gain(
    losses: list[float], gain: float, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = iter(losses)
    monkeypatch.setattr(trainer.probe, "loss", lambda networks, epoch: next(turn))
    found = trainer.probe.trial(trainer.networks, grown(trainer), epoch=1, steps=0, lr=0.1)
    assert found == pytest.approx(gain)


def test_a_trial_with_a_loss_that_is_not_finite_has_no_gain(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for losses in ([float("nan"), 1.0], [1.0, float("nan")], [1.0, float("inf")]):
        turn = iter(losses)
        monkeypatch.setattr(trainer.probe, "loss", lambda networks, epoch, turn=turn: next(turn))
        gain = trainer.probe.trial(trainer.networks, grown(trainer), epoch=1, steps=0, lr=0.1)
        assert not torch.tensor(gain).isfinite()


def test_trials_see_other_images_and_views_than_training_and_each_other(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[torch.Tensor, int]] = []
    views = trainer.probe.views

    def watched(images: torch.Tensor, seed: int, **more: Any) -> Any:
        seen.append((images.clone(), seed))
        return views(images, seed, **more)

    monkeypatch.setattr(trainer.probe, "views", watched)
    for epoch in (1, 2):
        list(trainer.probe.batches(epoch, 2))
    assert len({seed for _, seed in seen}) == 4
    for images in trainer.feed.epoch(1):
        assert not any(torch.equal(images.images, other) for other, _ in seen)
    assert not torch.equal(seen[0][0], seen[2][0])
    (again,) = next(iter(trainer.probe.batches(1, 1)))
    assert torch.equal(again[0], views(seen[0][0], seen[0][1])[0])
