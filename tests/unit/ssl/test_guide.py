"""Self-supervised training that also follows the network of another run (ssl.teacher)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sseg_nase import stages
from sseg_nase.config.compose import load
from sseg_nase.errors import UserError
from sseg_nase.reporting.provenance import provenance, regime_of
from sseg_nase.run import run
from sseg_nase.ssl.methods import METHODS, Compared, make_learner
from sseg_nase.ssl.objectives import similarity_distillation
from sseg_nase.training import checkpoint
from sseg_nase.training.accumulation import differentiate, evaluate
from sseg_nase.training.interruption import Interrupted
from sseg_nase.training.loop import Trainer
from sseg_nase.training.networks import Workshop

SMALL = [
    "debug=tiny",
    "hardware=cpu",
    "hardware.precision=32-true",
    "tracking=jsonl",
    "evolution=none",
    "sparsity=none",
    "backbone.channels=[8,8]",
    "evaluation.untrained_reference=false",
]


def results_of(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "results.json").read_text())
    return found


def by_hand(features: Tensor, aims: Tensor, temperature: float) -> float:
    """Image by image, and pair by pair."""

    def shares(z: Tensor, i: int) -> list[float]:
        cosines = [nn.functional.cosine_similarity(z[i], z[j], dim=0).item() for j in range(len(z))]
        exps = [math.exp(c / temperature) if j != i else 0.0 for j, c in enumerate(cosines)]
        return [e / sum(exps) for e in exps]

    total = 0.0
    for i in range(len(features)):
        p, q = shares(aims, i), shares(features, i)
        total += sum(p[j] * math.log(p[j] / q[j]) for j in range(len(p)) if j != i)
    return total / len(features)


def test_the_distance_of_similarities_is_a_mean_of_divergences() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(6, 3, generator=generator).double()
    aims = torch.randn(6, 5, generator=generator).double()
    found = similarity_distillation(features, aims, 0.3).item()
    assert found == pytest.approx(by_hand(features, aims, 0.3))
    assert similarity_distillation(aims, 7 * aims, 0.3).item() == pytest.approx(0)
    assert similarity_distillation(features.bfloat16(), aims, 0.3).dtype == torch.float64


@pytest.mark.parametrize("name", METHODS)
def test_every_method_follows_a_guide_by_the_first_views(name: str) -> None:
    config = load([*SMALL, f"ssl={name}", "ssl.teacher=x", "ssl.feature_weight=999"])
    ssl, method = config.ssl, METHODS[name]
    generator = torch.Generator().manual_seed(0)
    learner = make_learner(stages.seed_backbone(config), ssl, generator)
    other = load([*SMALL, "backbone.channels=[8,12]", "seed=5"])
    alone, with_guide = (
        Workshop(config, torch.device("cpu"), guide).around(learner)
        for guide in (None, stages.seed_backbone(other).eval())
    )
    views = [
        torch.randn(each.count, 6, 3, side, side, generator=generator)
        for each in method.crops(ssl)
        for side in [round(16 * each.size)]
    ]
    learner.eval()  # BN then takes every image for itself
    plain, found = (
        method.loss(learner, networks.teaching(0), views, ssl) for networks in (alone, with_guide)
    )
    assert with_guide.guide is not None
    with torch.no_grad():
        features, aims = learner.backbone(views[0][0]), with_guide.guide(views[0][0])
    apart = by_hand(features.double(), aims.double(), ssl.feature_temperature)
    assert found.contrastive.item() == plain.contrastive.item()
    assert (found.total - plain.total).item() == pytest.approx(999 * apart, rel=1e-3)
    # Held losses are of the method alone: the guide is not asked.
    with_guide.guide.forward = lambda images: pytest.fail("asked")  # type: ignore[method-assign]
    held = evaluate(method.loss, learner, with_guide.teaching(0), [views], ssl)
    assert held.contrastive.item() == pytest.approx(plain.contrastive.item())


def test_a_batch_in_parts_follows_the_guide_as_a_whole() -> None:
    config = load([*SMALL, "ssl.teacher=x"])
    learner = make_learner(stages.seed_backbone(config), config.ssl).eval()
    guide = stages.seed_backbone(load([*SMALL, "seed=5"])).eval()
    networks = Workshop(config, torch.device("cpu"), guide).around(learner)
    views = torch.randn(2, 8, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    loss = METHODS["simclr"].loss
    assert isinstance(loss, Compared)
    gradients = []
    for parts in ([[views]], [[views[:, :4]], [views[:, 4:]]]):
        learner.zero_grad()
        losses = differentiate(loss, learner, networks.teaching(0), parts, config.ssl)
        gradients.append([p.grad.clone() for p in learner.parameters() if p.grad is not None])
        gradients[-1].append(losses.total)
    for whole, parted in zip(*gradients, strict=True):
        torch.testing.assert_close(parted, whole, atol=1e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    own = ["pretrain.epochs=1", "backbone.channels=[8,24]", "curriculum=natural"]
    return run(load([*SMALL, *own, f"paths.output_dir={folder}"]))


def test_a_run_tells_of_the_network_that_it_follows(teacher: Path) -> None:
    own = ["pretrain.epochs=1", f"ssl.teacher={teacher}", "ssl.distillation_weight=0"]
    directory = run(load([*SMALL, *own]))
    results, before = results_of(directory), results_of(teacher)
    told, spent = results["ssl_teacher"], results["training_macs"]
    assert told["path"] == str(teacher / "checkpoints" / "last.pt")
    assert told["training_macs"] == spent["teacher_run"] == before["training_macs"]["total"]
    assert spent["teacher"] == 64 * before["architecture"]["macs"]
    assert spent["total"] == sum(spent.values()) / 2
    data = json.loads((directory / "data.json").read_text())
    assert data["files"]["ssl.teacher"]["path"] == told["path"]
    assert [one["key"] for one in data["trained_before"]] == ["digits/train"]
    # It has seen drawn images alone, but what it follows has seen real ones.
    assert regime_of(results["images_seen"]) == "synthetic"
    assert provenance(directory, results).regime == "unlabeled"


@pytest.mark.slow
def test_a_network_that_grows_follows_and_goes_on_bit_for_bit(
    teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    growing = ["pretrain.epochs=4", "evolution=balanced", "evolution.expand_at=[0.5]"]
    growing += [f"ssl.teacher={teacher}"]
    whole = run(load([*SMALL, *growing]))
    assert results_of(whole)["mutations"] == 1
    step, taken = Trainer.step, 0

    def stopping(self: Trainer) -> bool:
        nonlocal taken
        taken += 1
        if taken == 9:
            self.stop = lambda: True
        return step(self)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", stopping)
        with pytest.raises(Interrupted) as stopped:
            run(load([*SMALL, *growing]))
    resumed = run(load([f"resume={stopped.value.run_dir}"]))  # type: ignore[attr-defined]
    one, other = (checkpoint.load(each / "checkpoints" / "last.pt") for each in (resumed, whole))
    for key, tensor in other["student"].items():
        assert torch.equal(one["student"][key], tensor), key
    for key in ("fewshot", "training_macs", "ssl_teacher"):
        assert results_of(resumed)[key] == results_of(whole)[key]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["ssl=none", "ssl.teacher=x"], "ssl=none trains nothing, so it has no effect"),
        (["ssl.teacher=x", "finetune=linear", "finetune.from=y"], "does not pretrain"),
        (["ssl.teacher=x", "ssl.feature_weight=0"], "nothing is learned from ssl.teacher=x"),
        (["ssl.feature_weight=2"], "no effect without ssl.teacher=RUN"),
        (["ssl.feature_temperature=0.2"], "no effect without ssl.teacher=RUN"),
        (["ssl.teacher=x", "ssl.feature_temperature=0"], "more than 0"),
    ],
)
def test_what_cannot_be_followed_is_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        load([*SMALL, *overrides])
    assert said in str(error.value)


def test_a_network_for_other_images_is_not_followed(teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ssl\.teacher=.*none\.pt: .*there is no such file"):
        stages.guide_of(load([*SMALL, f"ssl.teacher={tmp_path / 'none.pt'}"]))
    with pytest.raises(UserError, match=r"ssl\.teacher=.*dataset\.channels=1"):
        stages.guide_of(load([*SMALL, f"ssl.teacher={teacher}", "dataset.channels=1"]))
