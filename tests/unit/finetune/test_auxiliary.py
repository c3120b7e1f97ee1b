"""What a classifier learns beside the labels: from a teacher, and from turned images."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from sseg_nase import stages
from sseg_nase.config.compose import load
from sseg_nase.data.placement import HeldImages
from sseg_nase.finetune.auxiliary import Teacher, count_turned, rotation_loss, softened, turned
from sseg_nase.finetune.evolving import mutated
from sseg_nase.finetune.learner import around
from sseg_nase.finetune.loop import FineTuner
from sseg_nase.nets.mutations.prune import prune
from sseg_nase.nets.mutations.widen import widen
from sseg_nase.training.distributed import build_fabric
from sseg_nase.training.ledger import TEACHER

TINY = [
    "debug=tiny",
    "hardware=cpu",
    "hardware.precision=32-true",
    "ssl=none",
    "evolution=none",
    "sparsity=none",
    "backbone.channels=[8,16]",
    "finetune=linear",
]
TAUGHT = ["finetune.teacher=given", "finetune.distillation_weight=0.3", "finetune.feature_weight=2"]


def tuner(*further: str) -> FineTuner:
    config = load([*TINY, *further])
    store = stages.labelled(config)
    classes = len(store.class_names)

    def learner(*channels: str, seed: int) -> Any:
        own = load([*TINY, *channels])
        generator = torch.Generator().manual_seed(seed)
        return around(stages.seed_backbone(own), own.finetune, classes, generator)

    larger = learner("backbone=conv4", "backbone.channels=[8,12]", "seed=3", seed=3)
    with torch.no_grad():
        larger.head.weight.mul_(100)  # a teacher that is sure of something
    return FineTuner(
        config,
        learner=learner(seed=0),
        base=store,
        images=HeldImages(store, torch.device("cpu")),
        fabric=build_fabric("cpu", 1, "32-true"),
        validate=lambda learner: (50.0, 1.0),
        save=lambda name, state: None,
        teacher=Teacher(larger, torch.device("cpu")) if config.finetune.teacher else None,
    )


def test_softened_logits_are_those_of_hinton() -> None:
    logits, taught = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)).double() * 3
    T, expected = 4.0, 0.0
    for s, t in zip(logits.tolist(), taught.tolist(), strict=True):
        p, q = (
            [math.exp(z / T) / sum(math.exp(y / T) for y in row) for z in row] for row in (t, s)
        )
        expected += T**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 5
    assert softened(logits, taught, T).item() == pytest.approx(expected)
    assert softened(taught, taught, T).item() == pytest.approx(0)


@pytest.mark.parametrize("count", [8, 10])
def test_quarters_are_turned_and_told_apart(count: int) -> None:
    images = torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    sizes = {8: [2, 2, 2, 2], 10: [3, 3, 2, 2]}[count]
    angles = [angle for angle, size in enumerate(sizes) for _ in range(size)]
    copies = turned(images)
    assert len(copies) == count_turned(images) == count - sizes[0]
    for i in range(sizes[0], count):
        for y in range(6):
            for x in range(6):
                v, u = y, x
                for _ in range(angles[i]):  # counter-clockwise by 90 degrees
                    v, u = u, 5 - v
                assert torch.equal(copies[i - sizes[0], :, y, x], images[i, :, v, u])
    features = torch.randn(count + len(copies), 7, generator=torch.Generator().manual_seed(2))
    rotation = torch.nn.Linear(7, 4)
    shown = [features[i] if angle == 0 else features[count + i - sizes[0]]
             for i, angle in enumerate(angles)]  # fmt: skip
    expected = sum(
        -rotation(row).log_softmax(0)[angle].item()
        for row, angle in zip(shown, angles, strict=True)
    )
    found = rotation_loss(rotation, features, count).item()
    assert found == pytest.approx(expected / count, rel=1e-5)


def test_the_loss_is_that_of_labels_teacher_and_angles() -> None:
    one = tuner(*TAUGHT, "finetune.mixup=0.4", "finetune.rotation=0.7")
    step = next(one._steps(0))
    images = one._views(step)
    found = one.objective.outcome(step, images, one.learner).loss
    learner, teacher, count = one.learner, one.teacher, len(images)
    assert teacher is not None
    assert step.partner is not None
    mixed = step.share * images + (1 - step.share) * images[step.partner]
    with torch.no_grad():
        features = learner.backbone(torch.cat((mixed, turned(mixed))))
        logits = learner.head(features[:count])
        hard = step.share * F.cross_entropy(logits, step.truth)
        hard += (1 - step.share) * F.cross_entropy(logits, step.truth[step.partner])
        of_teacher = teacher.backbone(mixed)
        soft = softened(logits, teacher.classifier(of_teacher), 4)
        mapped = learner.head.beside["to_teacher"](features[:count])
        cosines = F.normalize(mapped, dim=1) * F.normalize(of_teacher, dim=1)
        angles = rotation_loss(learner.head.beside["rotation"], features, count)
        expected = 0.7 * hard + 0.3 * soft + 2 * (1 - cosines.sum(1).mean()) + 0.7 * angles
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert soft > 0.01
    found.backward()
    for name, parameter in learner.named_parameters():
        assert parameter.grad is not None, name
    assert not any(p.requires_grad for p in teacher.backbone.parameters())


def test_what_teacher_and_turned_copies_cost_is_counted() -> None:
    one = tuner(*TAUGHT, "finetune.rotation=0.5")
    step = next(one._steps(0))
    images = one._views(step)
    one.objective.outcome(step, images, one.learner)
    assert one.teacher is not None
    assert one.progress.beside == {TEACHER: 16 * one.teacher.architecture.macs(16)}
    passed = 16 + 12
    assert one.objective.macs(
        step, images, one.learner.backbone
    ) == 3 * passed * one.learner.backbone.architecture.macs(16)
    one.state.probe.held_losses([one.state.networks], 0)
    checks = one.progress.beside["checks"]
    assert checks == 4 * passed * one.learner.backbone.architecture.macs(16)
    assert one.progress.beside[TEACHER] == 5 * 16 * one.teacher.architecture.macs(16)


def test_what_stands_beside_the_classifier_follows_a_mutation() -> None:
    one = tuner(*TAUGHT, "finetune.rotation=0.5")
    architecture = one.state.networks.architecture
    images = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    for mutation in (widen(architecture, 1, ratio=1.5), prune(architecture, [[0, 1], [2, 5, 7]])):
        new, _ = mutated(mutation, one.learner, one.options, len(one.base.class_names), {})
        for name, part in one.learner.head.beside.items():
            assert torch.equal(new.head.beside[name].bias, part.bias)
        if mutation.kind == "WIDEN":
            with torch.no_grad():
                old = copy.deepcopy(one.learner).eval()
                for name in ("rotation", "to_teacher"):
                    expected = old.head.beside[name](old.backbone(images))
                    found = new.head.beside[name](new.eval().backbone(images))
                    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)
        else:
            kept = one.learner.head.beside["rotation"].weight[:, [2, 5, 7]]
            assert torch.equal(new.head.beside["rotation"].weight, kept)


def test_a_checkpoint_keeps_apart_what_stands_beside_the_classifier() -> None:
    one = tuner(*TAUGHT, "finetune.rotation=0.5", "finetune.ema_decay=0.5")
    state = one.state_dict()
    assert not any("beside" in name for part in ("student", "average") for name in state[part])
    assert {name.split(".")[2] for name in state["beside"]} == {"rotation", "to_teacher"}
    state = copy.deepcopy(state)
    with torch.no_grad():
        for parameter in one.learner.parameters():
            parameter.add_(1)
    one.load_state_dict(state)
    for name, tensor in state["beside"].items():
        assert torch.equal(one.learner.state_dict()[name], tensor)


def test_without_them_nothing_is_drawn_or_added() -> None:
    plain = tuner()
    assert plain.state_dict()["beside"] == {}
    first, second = (tuner("finetune.rotation=0.5").learner.state_dict() for _ in range(2))
    for name, tensor in plain.learner.state_dict().items():
        assert torch.equal(first[name], tensor)
    assert torch.equal(first["head.beside.rotation.weight"], second["head.beside.rotation.weight"])
