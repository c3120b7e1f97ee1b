"""What trials measure: the same images every time, and a gain by hand."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch

from sseg_nase.config.compose import load
from sseg_nase.evolution.selection import advantage
from sseg_nase.nets.mutation import Mutation
from sseg_nase.nets.mutations.grow import grow
from sseg_nase.stages.pretraining import trainer_of
from sseg_nase.tracking.sink import Sink
from sseg_nase.training import measurements
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
    trainer.train_epoch()
    trainer.state.progress.epoch = 1
    return trainer


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    return trained()


def grown(trainer: Trainer) -> Mutation:
    return grow(trainer.state.networks.architecture, out_channels=64, mode="preserve", seed=3)


def test_equal_networks_have_equal_held_losses_at_all_epochs(trainer: Trainer) -> None:
    mutated = trainer.workshop.mutated(trainer.state.networks, grown(trainer))
    both = [trainer.state.networks, mutated]
    found = [trainer.state.probe.held_losses(both, epoch) for epoch in (0, 1, 2, 50)]
    assert all(torch.equal(losses, found[0]) for losses in found)
    assert found[0].shape == (2, trainer.feed.held_batches) == (2, 16)
    torch.testing.assert_close(found[0][1], found[0][0], rtol=1e-4, atol=0)
    assert len(set(found[0][0].tolist())) == 16  # other images in every batch


def test_held_losses_are_those_of_the_batches_one_by_one(trainer: Trainer) -> None:
    probe, ssl = trainer.state.probe, trainer.config.ssl
    learner = copy.deepcopy(trainer.state.networks.learner).train()
    with torch.no_grad():
        expected = [
            probe.method.loss(learner, trainer.state.networks.teaching(0), views, ssl).contrastive
            for (views,) in probe.held()
        ]
    found = probe.held_losses([trainer.state.networks], 0)[0]
    torch.testing.assert_close(found, torch.stack(expected).double(), rtol=1e-5, atol=0)


def test_performance_is_the_contrastive_part_alone() -> None:
    """Channels that are silent in student and teacher make their distance smaller: no gain."""
    one = trained("ssl.distillation_weight=0.5")
    held = one.state.probe.held_losses([one.state.networks], 1)
    teacher = one.state.networks.teacher
    assert teacher is not None
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(3)
    assert torch.equal(one.state.probe.held_losses([one.state.networks], 1), held)
    wider = grow(one.state.networks.architecture, out_channels=96, mode="preserve", seed=3)
    before, stay, mutant = one.state.probe.trials(
        one.state.networks, [wider], epoch=1, steps=0, lr=0.1
    )
    torch.testing.assert_close(stay, before)
    torch.testing.assert_close(mutant, before, rtol=1e-5, atol=0)


def test_measuring_leaves_the_network_as_it_was() -> None:
    one = trained("ssl.distillation_weight=0.5")
    teacher = one.state.networks.teacher
    assert teacher is not None
    parts = [one.state.networks.learner, teacher]
    before = [{k: v.clone() for k, v in part.state_dict().items()} for part in parts]
    one.state.probe.held_losses([one.state.networks], 0)
    one.state.probe.gap(one.state.networks)
    one.state.probe.trials(one.state.networks, [grown(one)], epoch=1, steps=2, lr=0.1)
    for part, old in zip(parts, before, strict=True):
        assert all(torch.equal(old[name], now) for name, now in part.state_dict().items())
    assert not teacher.training


def test_a_trial_that_learns_nothing_gains_nothing(trainer: Trainer) -> None:
    def fall(steps: int, lr: float) -> torch.Tensor:
        before, *after = trainer.state.probe.trials(
            trainer.state.networks, [grown(trainer)], epoch=1, steps=steps, lr=lr
        )
        return (before - torch.stack(after)).mean(1).abs()

    assert fall(2, 0.0).max() < 1e-4
    assert fall(0, 0.1).max() < 1e-4
    assert fall(2, 0.1).min() > 1e-3


def test_a_trial_is_some_steps_of_training_beside_those_without_the_mutation(
    trainer: Trainer,
) -> None:
    probe, networks, lr, steps = trainer.state.probe, trainer.state.networks, 0.05, 3
    expected = [probe.held_losses([networks], 1)[0]]
    for tried in (
        trainer.workshop.restored(networks.state_dict()),
        trainer.workshop.mutated(networks, grown(trainer)),
    ):
        tried.learner.train()
        parameters = dict(tried.learner.named_parameters())
        optimizer = torch.optim.SGD(parameters.values(), lr=lr, momentum=0.9, weight_decay=1e-4)
        for name, state in tried.state().moments.items():  # those of the training go along
            moment = state["momentum_buffer"].clone()
            optimizer.state[parameters[name]]["momentum_buffer"] = moment
        new = [p for name, p in parameters.items() if name.startswith("backbone.blocks.3.")]
        for (views,) in probe.batches(1, steps):
            optimizer.zero_grad()
            teaching = tried.teaching(1)
            probe.method.loss(tried.learner, teaching, views, trainer.config.ssl).total.backward()
            before = [p.detach().clone() for p in new]
            optimizer.step()
            for parameter, old in zip(new, before, strict=True):
                parameter.data += 4 * (parameter.data - old)
        expected.append(probe.held_losses([tried], 1)[0])
    found = probe.trials(networks, [grown(trainer)], epoch=1, steps=steps, lr=lr, new_lr_ratio=5.0)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-3, atol=0)
    plain = probe.trials(networks, [grown(trainer)], epoch=1, steps=steps, lr=lr)
    assert torch.equal(plain[:2], found[:2])
    assert not torch.equal(plain[2], found[2])


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_what_a_mutation_keeps_takes_the_step_that_it_would_have_taken(optimizer: str) -> None:
    """A branch that begins at 0 changes no gradient: kept tensors take the very same step.

    Moments of convolutions follow their weights in memory, too: a fused step does not look at axes.
    """
    one = trained(f"optimizer={optimizer}", "hardware.channels_last=true")
    width = one.state.networks.architecture.channels[-1]
    same = grow(one.state.networks.architecture, out_channels=width, mode="preserve", seed=3)
    stay = one.workshop.restored(one.state.networks.state_dict())
    mutant = one.workshop.mutated(one.state.networks, same)
    (parts,) = one.state.probe.batches(1, 1)
    for each in (stay, mutant):
        each.learner.train()
        one.state.probe.step(each, 1, parts, lr=0.01)
    found = mutant.learner.state_dict()
    for name, tensor in stay.learner.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


def test_a_trial_may_be_longer_than_an_epoch(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what follows are not the batches of before in other views."""
    images: list[torch.Tensor] = []
    views = trainer.state.probe.views

    def watched(given: torch.Tensor, seed: int, **more: Any) -> Any:
        images.append(given.clone())
        return views(given, seed, **more)

    monkeypatch.setattr(trainer.state.probe, "views", watched)
    shown = [views[0] for (views,) in trainer.state.probe.batches(1, 9)]
    assert len(shown) == 9 > trainer.feed.batches_per_epoch
    for each in (shown, images):
        assert not any(torch.equal(a, b) for a, b in itertools.combinations(each, 2))


def test_the_gap_is_relative_and_sees_neither_modes_nor_silent_channels() -> None:
    one = trained("ssl.distillation_weight=0.5", "ssl.ema_decay=0.9")
    gap = one.state.probe.gap
    apart = gap(one.state.networks)
    assert apart is not None
    assert 0 < apart < 1
    wider = grow(one.state.networks.architecture, out_channels=96, mode="preserve", seed=3)
    assert gap(one.workshop.mutated(one.state.networks, wider)) == pytest.approx(apart, rel=1e-3)
    teacher, student = one.state.networks.teacher, one.state.networks.learner.backbone
    assert teacher is not None
    student_features, teacher_features = ([] for _ in range(2))
    for (views,) in one.state.probe.held():
        for network, features in ((student, student_features), (teacher, teacher_features)):
            with torch.no_grad():
                features.append(copy.deepcopy(network).train()(views[0][0]))
    s, t = torch.cat(student_features), torch.cat(teacher_features)
    assert apart == pytest.approx(((s - t).square().sum() / t.square().sum()).item(), rel=1e-4)
    teacher.load_state_dict(student.state_dict())
    for tensor in teacher.buffers():
        tensor.add_(1)  # what BN has tracked does not count
    assert gap(one.state.networks) == pytest.approx(0, abs=1e-9)
    assert trained().state.probe.gap(trained().state.networks) is None


def test_a_trial_with_a_loss_that_is_not_finite_has_no_fitness() -> None:
    good = torch.tensor([1.0, 2.0])
    for bad in (float("nan"), float("inf")):
        spoiled = torch.tensor([1.0, bad])
        for losses in ((spoiled, good, good), (good, spoiled, good), (good, good, spoiled)):
            assert not math.isfinite(advantage(*losses, 0.0, 0.0).mean)


def test_trials_see_other_images_and_views_than_training_and_each_other(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[torch.Tensor, int]] = []
    views = trainer.state.probe.views

    def watched(images: torch.Tensor, seed: int, **more: Any) -> Any:
        seen.append((images.clone(), seed))
        return views(images, seed, **more)

    monkeypatch.setattr(trainer.state.probe, "views", watched)
    for epoch in (1, 2):
        list(trainer.state.probe.batches(epoch, 2))
    assert len({seed for _, seed in seen}) == 4
    for images in trainer.feed.epoch(1):
        assert not any(torch.equal(images.images, other) for other, _ in seen)
    assert not torch.equal(seen[0][0], seen[2][0])
    (again,) = next(iter(trainer.state.probe.batches(1, 1)))
    assert torch.equal(again[0], views(seen[0][0], seen[0][1])[0])


def test_latencies_are_those_of_the_network_before_and_of_the_one_after(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def weighed(backbone: torch.nn.Module, *given: Any, **named: Any) -> float:
        return float(sum(parameter.numel() for parameter in backbone.parameters()))

    monkeypatch.setattr(measurements, "latency_ms", weighed)
    networks, mutation = trainer.state.networks, grown(trainer)
    found = trainer.state.probe.latency(networks, trainer.workshop.mutated(networks, mutation))
    assert (found["before_ms"], found["after_ms"]) == (
        mutation.before.params,
        mutation.after.params,
    )


def test_a_step_beside_the_training_treats_gradients_as_the_training_does() -> None:
    """Prototypes are held for as many epochs as asked, and gradients are no longer than that."""
    options = ["ssl=dino", "ssl.prototypes=9", "ssl.freeze_last_layer_epochs=2"]
    config = load([*TINY, *options, "optimizer.clip_norm=0.5"])
    state = trainer_of(config, [], Sink(), None, lambda: False).state
    parameters = dict(state.networks.learner.named_parameters())
    for epoch, held in (
        (0, {"head.prototypes.weight"}),
        (1, {"head.prototypes.weight"}),
        (2, set()),
    ):
        for parameter in parameters.values():
            parameter.grad = torch.ones_like(parameter)
        state.probe.prepare(state.networks, epoch)
        assert {name for name, p in parameters.items() if p.grad is None} == held
        left = torch.cat([p.grad.flatten() for p in parameters.values() if p.grad is not None])
        assert left.norm().item() == pytest.approx(0.5, rel=1e-4)
