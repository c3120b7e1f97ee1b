"""Every method: its parts, its loss against the paper's steps written out, and what it leaves."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sseg_nase.config.compose import load
from sseg_nase.config.conf_files import groups
from sseg_nase.config.schema import SSLConfig
from sseg_nase.nets.architecture import Architecture
from sseg_nase.nets.evolvable import EvolvableCNN, Learner, PrototypeHead
from sseg_nase.ssl.methods import (
    CENTRE,
    METHODS,
    Losses,
    Teaching,
    make_learner,
    teacher_temperature,
)
from sseg_nase.ssl.objectives import distillation
from sseg_nase.ssl.teacher import make_teacher

SMALL = {
    "byol": ["ssl.projection_hidden=9", "ssl.projection_dim=5"],
    "barlow_twins": ["ssl.projection_hidden=9", "ssl.projection_dim=5"],
    "dino": ["ssl.projection_hidden=9", "ssl.projection_dim=5", "ssl.prototypes=7"],
}
SIDE, IMAGES = 8, 6


def options(method: str, *overrides: str) -> SSLConfig:
    return load([f"ssl={method}", *SMALL.get(method, []), *overrides]).ssl


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def learner_for(ssl: SSLConfig, seed: int = 0) -> Learner:
    architecture = Architecture.seed([4, 6], resolution=SIDE)
    draws = generator(seed)
    backbone = EvolvableCNN(architecture, generator=draws)
    return make_learner(backbone, ssl, draws).double().train()


def teaching_for(ssl: SSLConfig, seed: int = 50, epoch: int = 0) -> Teaching:
    """Of a teacher that differs from the student."""
    method, other = METHODS[ssl.name], learner_for(ssl, seed)
    memory = {
        name: torch.randn(tensor.shape, generator=generator(9), dtype=torch.float64)
        for name, tensor in method.memory(ssl).items()
    }
    head = make_teacher(other.head) if method.has_target else None
    return Teaching(make_teacher(other.backbone), head, memory, epoch)


def views_for(ssl: SSLConfig) -> list[Tensor]:
    return [
        torch.randn(
            (crops.count, IMAGES, 3, *[round(SIDE * crops.size)] * 2),
            generator=generator(index),
            dtype=torch.float64,
        )
        for index, crops in enumerate(METHODS[ssl.name].crops(ssl))
    ]


def loss_of(ssl: SSLConfig, learner: Learner, teaching: Teaching) -> Losses:
    return METHODS[ssl.name].loss(learner, teaching, views_for(ssl), ssl)


def test_every_method_has_its_configuration() -> None:
    assert set(METHODS) == set(groups()["ssl"]) - {"none"}


@pytest.mark.parametrize("method", METHODS)
def test_the_student_learns_with_all_its_parts_and_the_teacher_does_not(method: str) -> None:
    ssl = options(method)
    learner, teaching = learner_for(ssl), teaching_for(ssl)
    before = copy.deepcopy(teaching)
    losses = loss_of(ssl, learner, teaching)
    losses.total.backward()
    for name, parameter in learner.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    for network, kept in ((teaching.backbone, before.backbone), (teaching.head, before.head)):
        if network is not None and kept is not None:
            assert all(parameter.grad is None for parameter in network.parameters())
            unchanged = zip(network.state_dict().values(), kept.state_dict().values(), strict=True)
            assert all(torch.equal(a, b) for a, b in unchanged)
    assert losses.distillation is not None
    assert losses.total.item() == pytest.approx(
        losses.contrastive.item() + ssl.distillation_weight * losses.distillation.item()
    )


@pytest.mark.parametrize("method", ["simclr", "prototype_pairs", "barlow_twins"])
def test_without_a_teacher_there_is_the_methods_own_loss_alone(method: str) -> None:
    ssl = options(method)
    losses = loss_of(ssl, learner_for(ssl), Teaching())
    assert losses.distillation is None
    assert losses.total is losses.contrastive
    taught = loss_of(ssl, learner_for(ssl), teaching_for(ssl))
    assert losses.contrastive.item() == pytest.approx(taught.contrastive.item(), abs=1e-12)


@pytest.mark.parametrize("method", ["byol", "dino"])
def test_a_target_stays_without_distillation(method: str) -> None:
    ssl = options(method, "ssl.distillation_weight=0", "evolution=none", "sparsity=none")
    losses = loss_of(ssl, learner_for(ssl), teaching_for(ssl))
    assert losses.total.item() == losses.contrastive.item()
    assert losses.distillation is not None
    assert losses.distillation.item() > 0


def test_byol_is_the_papers_algorithm() -> None:
    ssl = options("byol")
    learner, teaching = learner_for(ssl), teaching_for(ssl)
    losses = loss_of(ssl, copy.deepcopy(learner), teaching)
    (views,) = views_for(ssl)
    online, target = learner, learner_for(ssl, 50)  # the teacher's weights, in train mode
    x = torch.cat((views[0], views[1]))
    y, y_target = online.backbone(x), target.backbone(x)
    q = online.predictor(online.head(y))
    z = target.head(y_target).detach()
    q1, q2, z1, z2 = q[:IMAGES], q[IMAGES:], z[:IMAGES], z[IMAGES:]
    cosines = [
        (a @ b / (a.norm() * b.norm())).item()
        for a, b in [*zip(q1, z2, strict=True), *zip(q2, z1, strict=True)]
    ]
    assert losses.contrastive.item() == pytest.approx(sum(2 - 2 * c for c in cosines) / IMAGES)
    assert losses.distillation is not None
    gap = distillation(y[:IMAGES], y_target[:IMAGES])
    assert losses.distillation.item() == pytest.approx(gap.item())


def test_byol_of_a_target_that_says_the_same_is_0() -> None:
    ssl = options("byol")
    learner = learner_for(ssl)
    learner.predictor = torch.nn.Identity()
    (views,) = views_for(ssl)
    twice = views[:1].expand(2, -1, -1, -1, -1)
    teaching = Teaching(make_teacher(learner.backbone), make_teacher(learner.head))
    losses = METHODS["byol"].loss(learner, teaching, [twice], ssl)
    assert losses.total.item() == pytest.approx(0, abs=1e-9)


def test_dino_is_the_papers_algorithm() -> None:
    ssl = options("dino", "ssl.local_views=3")
    learner, teaching = learner_for(ssl), teaching_for(ssl, epoch=3)
    losses = loss_of(ssl, copy.deepcopy(learner), teaching)
    whole, local = views_for(ssl)
    assert whole.shape[:2] == (2, IMAGES)
    assert local.shape == (3, IMAGES, 3, SIDE // 2, SIDE // 2)
    target = learner_for(ssl, 50)
    features = torch.cat([learner.backbone(x.flatten(0, 1)) for x in (whole, local)])
    s = learner.head(features).unflatten(0, (5, IMAGES))
    t = target.head(target.backbone(whole.flatten(0, 1))).unflatten(0, (2, IMAGES)).detach()
    centre, τ = teaching.memory[CENTRE], teacher_temperature(3, ssl)
    total, terms = 0.0, 0
    for i in range(2):
        for j in range(5):
            if i != j:
                aims = ((t[i] - centre) / τ).softmax(1)
                total += -(aims * (s[j] / 0.1).log_softmax(1)).sum(1).mean().item()
                terms += 1
    assert terms == 8
    assert losses.contrastive.item() == pytest.approx(total / terms)
    assert losses.memory is not None
    expected = 0.9 * centre + 0.1 * t.mean((0, 1))
    assert torch.allclose(losses.memory[CENTRE], expected)


def test_the_teachers_temperature_warms_up() -> None:
    ssl = options("dino", "ssl.teacher_warmup_epochs=10")
    found = [teacher_temperature(epoch, ssl) for epoch in (0, 5, 10, 90)]
    assert found == pytest.approx([0.04, 0.055, 0.07, 0.07])
    at_once = options("dino", "ssl.teacher_warmup_epochs=0", "ssl.teacher_temperature=[0.05,0.05]")
    assert teacher_temperature(0, at_once) == teacher_temperature(7, at_once) == 0.05


def test_prototype_pairs_compare_the_embeddings_themselves() -> None:
    ssl = options("prototype_pairs")
    learner = learner_for(ssl)
    assert not [name for name in learner.state_dict() if not name.startswith("backbone.")]
    (views,) = views_for(ssl)
    assert len(views) == 4
    features, projections = learner(views.flatten(0, 1))
    assert projections is features


def test_dinos_head_gives_cosines_with_its_prototypes() -> None:
    head = PrototypeHead(5, 8, 4, 7, generator=generator(0)).double()
    x = torch.randn(3, 5, generator=generator(1), dtype=torch.float64)
    z = head.fc3(F.gelu(head.fc2(F.gelu(head.fc1(x)))))
    for b in range(3):
        for k in range(7):
            row = head.prototypes.weight[k]
            cosine = (z[b] @ row / (z[b].norm() * row.norm())).item()
            assert head(x)[b, k].item() == pytest.approx(cosine)


@pytest.mark.parametrize("layers", [2, 3])
def test_a_projector_has_the_layers_asked_for(layers: int) -> None:
    ssl = options("barlow_twins", f"ssl.projection_layers={layers}")
    head: Any = learner_for(ssl).head.eval()
    x = torch.randn(4, head.fc1.in_features, generator=generator(1), dtype=torch.float64)
    y = F.relu(head.norm(head.fc1(x)))
    if layers == 3:
        y = F.relu(head.norm2(head.fc2(y)))
    assert torch.equal(head(x), getattr(head, f"fc{layers}")(y))


@pytest.mark.parametrize("method", METHODS)
def test_parts_are_drawn_from_the_generator_alone(method: str) -> None:
    ssl = options(method)
    first = learner_for(ssl).state_dict()
    torch.rand(3)
    assert all(torch.equal(first[name], t) for name, t in learner_for(ssl).state_dict().items())


@pytest.mark.parametrize("method", ["simclr", "barlow_twins", "prototype_pairs"])
def test_the_gap_is_that_of_the_first_view_to_the_teacher_of_it(method: str) -> None:
    """By hand: the teacher sees the view that the student saw, and no other, as one batch.

    Where it has the student's statistics, in eval mode.
    """
    ssl = options(method, "ssl.distillation_weight=0.7")
    learner, teaching = learner_for(ssl), teaching_for(ssl)
    (images,) = views_for(ssl)
    losses = loss_of(ssl, copy.deepcopy(learner), teaching)
    features, _ = learner(images.flatten(0, 1))
    assert teaching.backbone is not None
    teacher = copy.deepcopy(teaching.backbone)
    own, theirs = features[:IMAGES], teacher.train()(images[0])
    expected = (own - theirs).square().mean()
    other = (own - teacher(images[1])).square().mean()
    assert losses.distillation is not None
    torch.testing.assert_close(losses.distillation, expected)
    assert (expected - other).abs() > 1e-3
    torch.testing.assert_close(losses.total, losses.contrastive + 0.7 * expected)
    losses = loss_of(ssl, copy.deepcopy(learner), teaching._replace(own=False))
    apart = (own - copy.deepcopy(teaching.backbone).eval()(images[0])).square().mean()
    assert losses.distillation is not None
    torch.testing.assert_close(losses.distillation, apart)
    assert (expected - apart).abs() > 1e-3
