"""Whatever the thresholds: caps hold, accumulation is never cut, no refusal leaves a trace."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
import torch

from sseg_nase.config.compose import load
from sseg_nase.config.schema import Config
from sseg_nase.data import feed
from sseg_nase.data.feed import CurriculumFeed
from sseg_nase.nets.architecture import Architecture
from sseg_nase.nets.mutations.operator import Caps
from sseg_nase.stages import seed_learner
from sseg_nase.training.distributed import build_fabric
from sseg_nase.training.events import Callback, Event
from sseg_nase.training.interventions import Evolve, Sparsify
from sseg_nase.training.loop import Trainer
from sseg_nase.training.state import Pretraining

TINY = load(["debug=tiny", "hardware=cpu", "hardware.precision=32-true", "ablation=A7"])


def drawn_config(seed: int) -> Config:
    """A network of a few channels, and thresholds of every kind at random."""
    draw = random.Random(seed)

    def some(low: float, high: float) -> float:
        return 10 ** draw.uniform(low, high)

    channels = [draw.randrange(1, 7) for _ in range(draw.randrange(1, 4))]
    epochs = draw.randrange(2, 9)
    start = Architecture.seed(channels, resolution=8, residual=draw.random() < 0.3)
    return dataclasses.replace(
        TINY,
        seed=seed,
        dataset=dataclasses.replace(TINY.dataset, image_size=8),
        pretrain=dataclasses.replace(TINY.pretrain, epochs=epochs, images_per_epoch=8),
        hardware=dataclasses.replace(
            TINY.hardware, batch_size=2, gradient_accumulation_steps=draw.randrange(1, 4)
        ),
        backbone=dataclasses.replace(
            TINY.backbone,
            channels=channels,
            residual=start.blocks[0].residual,
            embedding=draw.choice(["average", "flatten"]),
        ),
        ssl=dataclasses.replace(
            TINY.ssl,
            projection_hidden=4,
            projection_dim=2,
            distillation_weight=draw.choice([0.0, 0.5]),
        ),
        curriculum=dataclasses.replace(
            TINY.curriculum,
            levels=["BASIC", "TEXTURE"],
            images={"BASIC": 8, "TEXTURE": 8},
            progression=draw.random() < 0.7,
            max_epochs_per_level=draw.choice([None, 1, 3]),
        ),
        evolution=dataclasses.replace(
            TINY.evolution,
            operators=draw.choice([["grow"], ["widen"], ["widen_all"], ["grow", "widen"]]),
            max_blocks=len(channels) + draw.randrange(0, 4),
            max_channels=max(channels) + draw.randrange(0, 4),
            max_params=start.params + draw.randrange(1, 4000),
            max_flops=2 * start.macs(84) + draw.randrange(1, 20_000_000),
            channel_expansion_ratio=1 + some(-1, 0.5),
            detector=draw.choice(["window", "slope"]),
            plateau_threshold=some(-2, 2),
            plateau_window_size=draw.randrange(1, 3),
            patience_epochs=draw.randrange(1, 3),
            distillation_gap_threshold=draw.choice([0.0, some(-4, -1)]),
            burn_in_epochs=draw.randrange(0, 2),
            cooldown_epochs=draw.randrange(0, 2),
            trial_steps=draw.randrange(0, 2),
            trial_margin=draw.choice([None, None, 0.0, 2.0]),
            probation=draw.choice(["control", "tolerance"]),
            grow_mode=draw.choice(["preserve", "fresh"]),
            grow_positions=draw.choice(["last", "stages", "all"]),
            widen_mode=draw.choice(["duplicate", "zero", "pairs"]),
            rollback_tolerance=draw.choice([0.0, some(-4, 1), -1.0]),
            rollback_grace_epochs=draw.randrange(0, 3),
        ),
        sparsity=dataclasses.replace(
            TINY.sparsity,
            ratio=draw.uniform(0, 0.9),
            importance=draw.choice(["taylor", "magnitude", "random"]),
            negative_path=seed % 2 == 0,
            start_epoch=draw.randrange(0, 8),
            pruning_interval_epochs=draw.randrange(1, 3),
            min_channels=draw.randrange(1, 4),
            round_to=draw.randrange(1, 4),
            recalibration_batches=draw.randrange(0, 2),
            probation=draw.choice(["control", "tolerance"]),
            rollback_tolerance=draw.choice([0.0, some(-4, 1), -1.0]),
            rollback_grace_epochs=draw.randrange(0, 3),
        ),
    )


class Watcher(Callback):
    """Looks at every event whether all is as it must be."""

    def __init__(self, config: Config) -> None:
        e = config.evolution
        self.caps = Caps(e.max_blocks, e.max_channels, e.max_params, e.max_flops, e.cap_resolution)
        self.training = False
        self.before: dict[str, torch.Tensor] = {}

    def on(self, event: Event, state: Pretraining) -> None:
        architecture = state.networks.architecture
        assert self.caps.violation(architecture) is None
        if event is Event.EPOCH_START:
            self.training = True
        if event is Event.EPOCH_END:
            self.training = False
            gradients = [p.grad for p in state.networks.learner.parameters()]
            assert all(gradient is None for gradient in gradients)
            self.before = copied(state)
        if event is Event.MUTATION:
            assert not self.training, "a mutation inside an epoch"
            record = state.progress.history[-1]
            if not record.accepted and "rollback" not in record.trigger:
                assert same(self.before, copied(state)), "a refusal left a trace"
            self.before = copied(state)
        self.consistent(state)

    def consistent(self, state: Pretraining) -> None:
        networks = state.networks
        expected = networks.architecture
        assert sum(p.numel() for p in networks.learner.backbone.parameters()) == expected.params
        assert networks.learner.head.fc1.in_features == expected.features
        parameters = list(networks.learner.parameters())
        held = [p for group in networks.optimizer.param_groups for p in group["params"]]
        assert {id(p) for p in held} == {id(p) for p in parameters}
        for parameter, state in networks.optimizer.state.items():
            for value in state.values():
                assert not value.dim() or value.shape == parameter.shape
        if networks.teacher is not None:
            student = networks.learner.backbone.state_dict()
            teacher = networks.teacher.state_dict()
            assert {k: v.shape for k, v in student.items()} == {
                k: v.shape for k, v in teacher.items()
            }


def copied(state: Pretraining) -> dict[str, torch.Tensor]:
    state = state.networks.state()
    tensors = dict(state.student) | {f"t.{k}": v for k, v in (state.teacher or {}).items()}
    for name, moments in state.moments.items():
        tensors |= {f"{name}.{key}": value for key, value in moments.items()}
    return {name: tensor.clone() for name, tensor in tensors.items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def train(config: Config) -> list[Any]:
    images = CurriculumFeed(
        config.curriculum,
        natural=None,
        image_size=8,
        batch_size=2,
        images_per_epoch=config.pretrain.images_per_epoch,
        epochs=config.pretrain.epochs,
        seed=config.seed,
        device=torch.device("cpu"),
    )
    trainer = Trainer(
        config,
        learner=seed_learner(config),
        feed=images,
        fabric=build_fabric("cpu", 1, "32-true"),
        interventions=[
            Sparsify(config.sparsity, config.evolution, config.pretrain, config.seed),
            Evolve(config.evolution, config.seed),
        ],
        callbacks=[Watcher(config)],
    )
    trainer.fit()
    return trainer.state.progress.history


def endings(seeds: range) -> set[tuple[str, str]]:
    """Which kinds of mutation ended how, over the configurations of these seeds."""
    seen = set()
    for seed in seeds:
        for record in train(drawn_config(seed)):
            ending = "accepted" if record.accepted else "refused"
            seen.add((record.kind, "rolled back" if "rollback" in record.trigger else ending))
    return seen


@pytest.fixture(autouse=True)
def few_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "HELD_IMAGES", 16)  # of batches of 2


@pytest.mark.slow
def test_twenty_configurations_of_thresholds() -> None:
    seen = endings(range(20))
    assert {kind for kind, ending in seen if ending == "accepted"} == {"GROW", "WIDEN", "PRUNE"}
    assert {ending for _, ending in seen} == {"accepted", "refused", "rolled back"}


@pytest.mark.slow
def test_a_thousand_configurations_of_thresholds() -> None:
    seen = endings(range(1000))
    assert len(seen) == 9  # every kind with every ending
