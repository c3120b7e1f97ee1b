from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sseg_nase import stages
from sseg_nase.config.compose import load
from sseg_nase.data.placement import HeldImages
from sseg_nase.data.views import normalize
from sseg_nase.finetune.learner import around, cross_entropy
from sseg_nase.finetune.loop import FineTuner, episodic
from sseg_nase.training.distributed import build_fabric

TINY = [
    "debug=tiny",
    "hardware=cpu",
    "hardware.precision=32-true",
    "ssl=none",
    "evolution=none",
    "sparsity=none",
    "finetune.step_size=2",
    "views@finetune.views=none",
]
EPISODES = ["finetune.episodes_per_epoch=5", "finetune.tasks_per_step=2", "finetune.queries=3"]


def tuner(method: str, *further: str) -> FineTuner:
    episodes = [] if method == "linear" else EPISODES
    config = load([*TINY, f"finetune={method}", *episodes, *further])
    store = stages.labelled(config)
    backbone = stages.seed_backbone(config)
    generator = torch.Generator().manual_seed(0)
    return FineTuner(
        config,
        learner=around(backbone, config.finetune, len(store.class_names), generator),
        base=store,
        images=HeldImages(store, torch.device("cpu")),
        fabric=build_fabric("cpu", 1, "32-true"),
        validate=lambda learner: (50.0, 1.0),
        save=lambda name, state: None,
    )


def test_a_step_knows_its_support_and_its_queries() -> None:
    one = tuner("prototypical", "finetune.ways=4", "finetune.shots=2")
    steps = list(one._steps(0))
    assert [step.tasks for step in steps] == [2, 2, 1]
    labels = np.asarray(one.base.labels)
    for step in steps:
        of_support, of_query = step.parts(torch.from_numpy(labels)[step.indices])
        assert of_support.shape == (step.tasks, 4, 2)
        assert of_query.shape == (step.tasks, 12)
        for support, query in zip(of_support, of_query, strict=True):
            assert (support == support[:, :1]).all()
            assert len(set(support[:, 0].tolist())) == 4
            assert torch.equal(query, support[:, 0][step.query_truth()])
        assert len(set(step.indices.tolist())) > 0.8 * len(step.indices)


def test_episodes_differ_between_epochs_and_seeds_but_not_between_runs() -> None:
    def drawn(seed: int, epoch: int) -> list[torch.Tensor]:
        return [step.indices for step in tuner("matching", f"seed={seed}")._steps(epoch)]

    def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
        return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))

    assert same(drawn(0, 0), drawn(0, 0))
    assert not same(drawn(0, 0), drawn(0, 1))
    assert not same(drawn(0, 0), drawn(1, 0))


def test_a_classifier_sees_every_image_at_most_once_an_epoch() -> None:
    one = tuner("linear", "hardware.batch_size=64")
    steps = list(one._steps(3))
    seen = torch.cat([step.indices for step in steps])
    assert len(seen) == len(one.base.labels) // 64 * 64
    assert len(seen.unique()) == len(seen)
    for step in steps:
        assert step.truth is not None
        assert np.array_equal(step.truth.numpy(), np.asarray(one.base.labels)[step.indices])


def test_the_loss_of_a_step_is_the_mean_over_its_episodes() -> None:
    one = tuner("prototypical")
    one.learner.eval()  # BN then takes every image for itself
    step = next(one._steps(0))
    images = one._views(step, 0)
    with torch.no_grad():
        plain = normalize(one.images.images[step.indices])  # type: ignore[attr-defined]
        torch.testing.assert_close(images, plain, atol=2e-2, rtol=0)
        outcome = episodic(one, step, images)
        features = one.learner.backbone(images)
        losses, right = [], []
        for task in range(step.tasks):
            support, query = (part[task : task + 1] for part in step.parts(features))
            scores = one.learner.head(support, query)
            losses.append(cross_entropy(scores, step.query_truth()).item())
            right.append((scores[0].argmax(dim=1) == step.query_truth()).float().mean().item())
    assert outcome.loss.item() == pytest.approx(np.mean(losses), rel=1e-5)
    assert outcome.accuracy.item() == pytest.approx(np.mean(right), rel=1e-5)


def test_learning_rates_fall_in_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    one = tuner("relation", "finetune.epochs=5", "finetune.lr_encoder=0.01", "finetune.gamma=0.1")
    rates: list[tuple[float, ...]] = []
    step = one.optimizer.step

    def watched(*args: Any, **kwargs: Any) -> Any:
        rates.append(tuple(group["lr"] for group in one.optimizer.param_groups))
        return step(*args, **kwargs)

    monkeypatch.setattr(one.optimizer, "step", watched)
    one.fit()
    per_epoch = [rates[3 * epoch] for epoch in range(5)]
    expected = [1.0, 1.0, 0.1, 0.1, 0.01]
    for found, share in zip(per_epoch, expected, strict=True):
        assert found == pytest.approx((0.01 * share, 0.001 * share))


def test_sgd_steps_as_nesterov_with_l2(monkeypatch: pytest.MonkeyPatch) -> None:
    """g ← g + wd·θ; v ← 0.9·v + g; θ ← θ − lr·(g + 0.9·v), v beginning with the first g."""
    one = tuner(
        "relation", "finetune.optimizer=sgd", "finetune.epochs=1", "finetune.weight_decay=0.1"
    )
    group = one.optimizer.param_groups[0]
    weights = group["params"][0]
    step, velocity, expected = one.optimizer.step, None, []

    def watched(*args: Any, **kwargs: Any) -> Any:
        nonlocal velocity
        gradient = (weights.grad + 0.1 * weights).detach().clone()
        velocity = gradient if velocity is None else 0.9 * velocity + gradient
        expected.append((weights - group["lr"] * (gradient + 0.9 * velocity)).detach())
        done = step(*args, **kwargs)
        torch.testing.assert_close(weights.detach(), expected[-1])
        return done

    monkeypatch.setattr(one.optimizer, "step", watched)
    one.fit()
    assert len(expected) == 3
