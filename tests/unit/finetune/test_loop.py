from __future__ import annotations

import math
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sseg_nase import stages
from sseg_nase.config.compose import load
from sseg_nase.data.placement import HeldImages
from sseg_nase.data.views import normalize
from sseg_nase.finetune.learner import around, cross_entropy
from sseg_nase.finetune.loop import FineTuner
from sseg_nase.finetune.mixing import pasted, thinned
from sseg_nase.finetune.objective import episodic, meta_learned
from sseg_nase.finetune.steps import Step
from sseg_nase.training.distributed import build_fabric
from sseg_nase.training.divergence import DivergenceError
from sseg_nase.training.interruption import Interrupted
from sseg_nase.training.surgery import Before

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


def views(one: FineTuner, step: Step, index: int) -> torch.Tensor:
    """Of a step that is the one at `index` of its epoch."""
    one.progress.batch = index
    return one._views(step)


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


def test_a_smoothed_and_mixed_loss_is_that_of_soft_targets() -> None:
    options = ["finetune.label_smoothing=0.3", "finetune.mixup=0.4"]
    one = tuner("linear", *options)
    step = next(one._steps(0))
    again, other = next(one._steps(0)), next(one._steps(1))
    assert step.partner is not None
    assert again.partner is not None
    assert torch.equal(step.partner, again.partner)
    assert step.share == again.share != other.share
    count = len(step.indices)
    assert sorted(step.partner.tolist()) == list(range(count))
    images = views(one, step, 0)
    found = one.objective.outcome(step, images, one.learner)
    # By hand: one soft target an image.
    classes, λ = len(one.base.class_names), step.share
    loss, learner = 0.0, one.learner
    mixed = torch.stack(
        [λ * images[i] + (1 - λ) * images[p] for i, p in enumerate(step.partner.tolist())]
    )
    logits = learner.head(learner.backbone(mixed)).log_softmax(1)
    for i, p in enumerate(step.partner.tolist()):
        target = torch.full((classes,), 0.3 / classes)
        target[step.truth[i]] += 0.7 * λ
        target[step.truth[p]] += 0.7 * (1 - λ)
        loss -= (target * logits[i]).sum().item() / count
    assert found.loss.item() == pytest.approx(loss, rel=1e-5)
    shares = [each.share for epoch in range(40) for each in one._steps(epoch)]
    assert 0 <= min(shares) < 0.05 < 0.95 < max(shares) <= 1
    assert np.mean(shares) == pytest.approx(0.5, abs=0.05)
    plain = tuner("linear")
    assert next(plain._steps(0)).partner is None


def test_a_pasted_loss_is_that_of_pixels_and_shares() -> None:
    one = tuner("linear", "finetune.cutmix=0.7", "finetune.label_smoothing=0.2")
    ends, steps = 0, (each for epoch in range(9) for each in one._steps(epoch))
    for number, step in enumerate(islice(steps, 12)):
        images = views(one, step, 0)
        assert step.partner is not None
        assert step.centre is not None
        # By hand: pixel by pixel, and one soft target an image.
        side, half = images.shape[-1], math.sqrt(1 - step.share) / 2
        (middle_y, middle_x), mixed, own = step.centre, images.clone(), side * side
        for y in range(side):
            for x in range(side):
                inside = all(
                    side * (at - half) - 0.5 <= place < side * (at + half) - 0.5
                    for place, at in ((y, middle_y), (x, middle_x))
                )
                if inside:
                    own -= 1
                    for i, p in enumerate(step.partner.tolist()):
                        mixed[i, :, y, x] = images[p, :, y, x]
        found, share = pasted(images, step.partner, step.share, step.centre)
        assert torch.equal(found, mixed)
        assert share == pytest.approx(own / side**2)
        ends += abs(share - step.share) > 2 / side
        if number:
            continue
        assert 0 < share < 1
        classes, loss = len(one.base.class_names), 0.0
        logits = one.learner.head(one.learner.backbone(mixed)).log_softmax(1)
        for i, p in enumerate(step.partner.tolist()):
            target = torch.full((classes,), 0.2 / classes)
            target[step.truth[i]] += 0.8 * share
            target[step.truth[p]] += 0.8 * (1 - share)
            loss -= (target * logits[i]).sum().item() / len(images)
        outcome = one.objective.outcome(step, images, one.learner)
        assert outcome.loss.item() == pytest.approx(loss, rel=1e-5)
    assert ends  # some rectangles end at the edge, and their share is another then
    assert next(tuner("linear")._steps(0)).centre is None


def test_what_dropout_leaves_out_is_a_share_of_the_features() -> None:
    one = tuner("linear", "finetune.dropout=0.3")
    step, again, other = next(one._steps(0)), next(one._steps(0)), next(one._steps(1))
    assert step.noise == again.noise != other.noise
    assert step.noise is not None
    images = views(one, step, 0)
    features = one.learner.backbone(images)
    left = thinned(torch.ones(400, 64), 0.3, step.noise)
    assert left.unique().tolist() == [0, pytest.approx(1 / 0.7)]
    assert (left == 0).float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert left.mean().item() == pytest.approx(1, abs=0.03)  # as much as without it
    rows = (left == 0).float().mean(1)
    assert rows.min() > 0.05  # no image, and no feature, is left out as a whole
    assert (left == 0).float().mean(0).max() < 0.5
    mask = thinned(torch.ones_like(features), 0.3, step.noise)
    logits = one.learner.head(features * mask)
    loss = torch.nn.functional.cross_entropy(logits, step.truth)
    found = one.objective.outcome(step, images, one.learner).loss
    assert found.item() == pytest.approx(loss.item(), rel=1e-5)
    plain = one.objective.outcome(step._replace(noise=None), images, one.learner).loss
    assert plain.item() != pytest.approx(loss.item(), rel=1e-4)
    # Two networks are compared on all of their features.
    held = one.state.probe.held_losses([one.state.networks], 0)
    bare = tuner("linear")
    assert torch.equal(held, bare.state.probe.held_losses([bare.state.networks], 0))
    assert next(bare._steps(0)).noise is None


def test_the_loss_of_a_step_is_the_mean_over_its_episodes() -> None:
    one = tuner("prototypical")
    one.learner.eval()  # BN then takes every image for itself
    step = next(one._steps(0))
    images = views(one, step, 0)
    with torch.no_grad():
        plain = normalize(one.feed.images.images[step.indices])  # type: ignore[attr-defined]
        torch.testing.assert_close(images, plain, atol=2e-2, rtol=0)
        outcome = episodic(one.objective, step, images, one.learner)
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


def test_adamw_decays_apart_from_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """θ ← θ − lr·wd·θ, then Adam's step of the plain gradient (Loshchilov and Hutter 2019)."""
    one = tuner(
        "relation", "finetune.optimizer=adamw", "finetune.epochs=1", "finetune.weight_decay=0.3"
    )
    group = one.optimizer.param_groups[0]
    weights, step, count = group["params"][0], one.optimizer.step, 0
    first, second = torch.zeros_like(weights), torch.zeros_like(weights)

    def watched(*args: Any, **kwargs: Any) -> Any:
        nonlocal first, second, count
        gradient, count = weights.grad.clone(), count + 1
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        mean, square = first / (1 - 0.9**count), second / (1 - 0.999**count)
        expected = weights.detach() * (1 - 0.3 * group["lr"])
        expected = expected - group["lr"] * mean / (square.sqrt() + 1e-8)
        done = step(*args, **kwargs)
        torch.testing.assert_close(weights.detach(), expected, atol=1e-6, rtol=1e-4)
        return done

    monkeypatch.setattr(one.optimizer, "step", watched)
    one.fit()
    assert count == 3


@pytest.mark.parametrize("most", [1e-3, 1e3])
def test_a_gradient_is_made_no_longer_than_asked(
    most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = tuner("relation", f"finetune.clip_norm={most}", "finetune.epochs=1")
    plain = tuner("relation", "finetune.epochs=1")

    def gradients(tuned: FineTuner) -> dict[str, torch.Tensor]:
        """Of the first step, as the optimizer gets them."""
        found: dict[str, torch.Tensor] = {}

        def watched(*args: Any, **kwargs: Any) -> None:
            for name, parameter in tuned.learner.named_parameters():
                assert parameter.grad is not None
                found.setdefault(name, parameter.grad.clone())

        monkeypatch.setattr(tuned.optimizer, "step", watched)
        tuned.fit()
        return found

    clipped, free = gradients(one), gradients(plain)
    length = math.sqrt(sum(g.double().square().sum().item() for g in free.values()))
    assert 1e-3 < length < 1e3
    for name, gradient in free.items():
        torch.testing.assert_close(
            clipped[name], gradient * min(1.0, most / length), rtol=1e-4, atol=1e-9
        )


@pytest.mark.parametrize(
    ("options", "figures", "epochs"),
    [
        (["finetune.patience=2"], [40, 60, 60, 59, 70], 4),
        (["finetune.patience=2"], [40, 60, 60, 61, 60, 61], 6),
        (["finetune.patience=2", "finetune.min_delta=2"], [40, 60, 61.5, 61.9, 70], 4),
        # A slow rise counts, once it is more than that above the best that counted.
        (["finetune.patience=2", "finetune.min_delta=2"], [40, 41.5, 42.5, 43, 44.6, 44.6], 6),
        (["finetune.patience=9"], [40, 39, 38, 37], 6),
        (["finetune.patience=1", "finetune.monitor=loss"], [1.0, 0.9, 0.95, 0.1], 3),
        (
            ["finetune.patience=1", "finetune.monitor=loss", "finetune.min_delta=0.2"],
            [1.0, 0.9, 0.1],
            2,
        ),
    ],
)
def test_patience_ends_training(
    options: list[str], figures: list[float], epochs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is watched in every epoch, and how many epochs there are of six."""
    one = tuner("matching", "finetune.epochs=6", *options)
    told: list[Any] = []
    said: list[str] = []
    figures = [*figures, *figures[-1:] * 6]
    if "finetune.monitor=loss" in options:
        train = one.train_epoch

        def trained() -> None:
            train()
            one.progress.sums[0] = figures[one.progress.epoch] * one.progress.batch

        monkeypatch.setattr(one, "train_epoch", trained)
    else:
        one.validate = lambda learner: (figures[one.progress.epoch], 1.0)
    one.state.sink.event = lambda kind, values: (  # type: ignore[method-assign]
        told.append(values) if kind == "finetune" else said.append(values.get("text"))
    )
    one.fit()
    assert len(told) == one.progress.epoch == epochs
    ends = [text for text in said if "ends after" in text]
    assert ends == [] if epochs == 6 else f"ends after {epochs} of 6 epochs" in ends[0]
    # Where it is taken up again it has ended.
    again = tuner("matching", "finetune.epochs=6", *options)
    again.load_state_dict(one.state_dict())
    again.fit()
    assert again.progress.epoch == epochs
    assert again.progress.step == one.progress.step


def test_the_gradient_of_maml_is_the_mean_over_its_tasks() -> None:
    one = tuner("maml", "finetune.shots=2", "finetune.inner_steps=2")
    step = next(one._steps(0))
    assert step.tasks == 2
    images = views(one, step, 0)
    support, query = step.parts(images)

    def gradients(chosen: list[int]) -> list[torch.Tensor]:
        s, q = (torch.stack([part[task] for task in chosen]) for part in (support, query))
        alone = step._replace(
            indices=torch.zeros(s[..., 0, 0, 0].numel() + q[..., 0, 0, 0].numel()),
            tasks=len(chosen),
        )
        one.optimizer.zero_grad(set_to_none=True)
        rows = torch.cat((s.flatten(0, 2), q.flatten(0, 1)))
        outcome = meta_learned(one.objective, alone, rows, one.learner)
        losses.append(outcome.loss.item())
        return [p.grad.clone() for p in one.learner.parameters() if p.grad is not None]

    losses: list[float] = []
    both, first, second = gradients([0, 1]), gradients([0]), gradients([1])
    assert losses[0] == pytest.approx((losses[1] + losses[2]) / 2, rel=1e-5)
    for found, a, b in zip(both, first, second, strict=True):
        torch.testing.assert_close(found, (a + b) / 2, rtol=1e-3, atol=1e-6)
    assert not torch.allclose(first[0], second[0])


def test_the_views_of_an_image_differ_between_epochs_and_steps() -> None:
    one = tuner("prototypical", "views@finetune.views=supervised")
    step = next(one._steps(0))
    first, other = views(one, step, 0), views(one, step, 1)
    assert torch.equal(first, views(one, step, 0))
    one.progress.epoch = 1
    later = views(one, step, 0)
    assert not torch.equal(first, other)
    assert not torch.equal(first, later)
    assert not torch.equal(other, later)


def test_the_network_of_the_best_epoch_is_kept(tmp_path: Path) -> None:
    """Of equal ones the first; `last` after every epoch."""
    one = tuner("matching", "finetune.epochs=4")
    accuracies, saved = iter([40.0, 60.0, 60.0, 50.0]), []
    one.validate = lambda learner: (next(accuracies), 1.0)
    one.save = lambda name, state: saved.append((name, state["finetune"]["epoch"]))
    one.fit()
    assert saved == [
        ("best", 1), ("last", 1), ("best", 2), ("last", 2), ("last", 3), ("last", 4)
    ]  # fmt: skip
    assert (one.progress.best_accuracy, one.progress.best_epoch) == (60.0, 1)


def test_an_epoch_is_not_lost_where_its_validation_is_broken_off() -> None:
    one = tuner("prototypical", "finetune.epochs=2")
    saved: list[tuple[str, int, int]] = []

    def interrupted(learner: Any) -> tuple[float, float]:
        raise Interrupted

    one.validate = interrupted
    one.save = lambda name, state: saved.append(
        (name, state["finetune"]["epoch"], state["finetune"]["position"])
    )
    with pytest.raises(Interrupted):
        one.fit()
    assert saved == [("last", 0, 3)]


def test_a_stop_keeps_the_sums_of_the_steps_that_are_done() -> None:
    one = tuner("prototypical", "finetune.epochs=1")
    saved: list[Any] = []
    one.save = lambda name, state: saved.append((name, state["finetune"]))
    one.stop = lambda: one.progress.step == 2
    with pytest.raises(Interrupted):
        one.fit()
    [(name, progress)] = saved
    assert (name, progress["position"], progress["step"]) == ("last", 2, 2)
    assert progress["sums"][0] > 0
    assert progress["images_seen"] == 2 * 2 * 5 * (5 + 3)


def test_the_average_of_the_weights_is_what_is_evaluated_and_kept_as_best() -> None:
    one = tuner("prototypical", "finetune.epochs=1", "finetune.ema_decay=0.9")
    evaluated: list[Any] = []
    one.validate = lambda learner: evaluated.append(learner) or (50.0, 1.0)  # type: ignore[func-returns-value]
    saved: dict[str, Any] = {}
    one.save = lambda name, state: saved.update({name: state})
    one.fit()
    assert evaluated == [one.evaluated]
    assert one.evaluated is not one.learner
    for name, tensor in one.evaluated.state_dict().items():
        torch.testing.assert_close(saved["best"]["student"][name], tensor)
    for name, tensor in one.learner.state_dict().items():
        torch.testing.assert_close(saved["last"]["student"][name], tensor)


def test_steps_count_on_from_what_was_trained_before() -> None:
    one = tuner("prototypical", "finetune.epochs=2", "tracking.interval_steps=2")
    one.before = Before(steps=100)
    told: list[tuple[list[str], int]] = []
    one.state.sink.metrics = lambda values, step: told.append((sorted(values), step))  # type: ignore
    one.fit()
    losses = [step for names, step in told if "finetune/loss" in names]
    accuracies = [step for names, step in told if "finetune/val_accuracy" in names]
    assert losses == [102, 104, 106]  # every second step of all, not of an epoch
    assert accuracies == [103, 106]


def test_what_may_be_wrong_with_an_epoch_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    one = tuner("prototypical", "finetune.epochs=1")
    told: list[tuple[str, Any]] = []
    one.state.sink.event = lambda kind, values: told.append((kind, values))  # type: ignore[method-assign]
    monkeypatch.setattr(one.guard, "check_epoch", lambda loss, parts, where: f"a doubt {where}")
    one.fit()
    assert ("warning", {"text": "a doubt in epoch 1, after step 3"}) in told
    [figures] = [values for kind, values in told if kind == "finetune"]
    assert 1 < figures["accuracy"] <= 100  # percent


def test_nothing_is_saved_of_weights_that_are_not_finite() -> None:
    one = tuner("prototypical", "finetune.epochs=1")
    saved: list[str] = []
    one.save = lambda name, state: saved.append(name)
    update = one.step

    def broken() -> None:
        update()
        if one.progress.step == 3:  # the last of the epoch: no loss shows it
            with torch.no_grad():
                next(one.learner.backbone.parameters()).fill_(torch.nan)

    one.step = broken  # type: ignore[method-assign]
    with pytest.raises(DivergenceError):
        one.fit()
    assert saved == []


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.LayerNorm])
def test_frozen_norms_keep_statistics_and_weights(kind: type[nn.Module]) -> None:
    backbone = ["backbone=vit_small"] if kind is nn.LayerNorm else []
    one = tuner("prototypical", "finetune.freeze_norms=true", *backbone)
    one.begin_epoch()
    norms = [part for part in one.learner.backbone.modules() if isinstance(part, kind)]
    assert norms
    assert not any(norm.training for norm in norms)
    assert not any(p.requires_grad for norm in norms for p in norm.parameters())
    free = tuner("prototypical", *backbone)
    free.begin_epoch()
    norms = [part for part in free.learner.backbone.modules() if isinstance(part, kind)]
    assert all(norm.training for norm in norms)


def test_an_epochs_loss_is_the_mean_over_its_steps() -> None:
    one = tuner("prototypical", "finetune.epochs=1")
    told: list[Any] = []
    losses: list[float] = []
    one.state.sink.event = lambda kind, values: told.append(values)  # type: ignore[method-assign]
    saw = one.guard.saw
    one.guard.saw = lambda loss: (losses.append(loss.item()), saw(loss))[1]  # type: ignore
    one.fit()
    assert len(losses) == 3
    assert told[0]["loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_the_average_that_is_evaluated_follows_the_weights() -> None:
    one = tuner("prototypical", "finetune.epochs=1", "finetune.ema_decay=0.9")
    average = {k: v.clone() for k, v in one.evaluated.state_dict().items()}
    steps = 0
    update = one.step

    def watched() -> None:
        nonlocal steps
        update()
        steps += 1
        decay = min(0.9, steps / (steps + 10))
        for name, now in one.learner.state_dict().items():
            if now.is_floating_point():
                average[name] = decay * average[name] + (1 - decay) * now

    one.step = watched  # type: ignore[method-assign]
    one.fit()
    for name, found in one.evaluated.state_dict().items():
        if found.is_floating_point():
            torch.testing.assert_close(found, average[name])


@pytest.mark.parametrize(
    ("overrides", "of_support", "of_query"),
    [
        (["prototypical"], 3, 3),
        (["relation", "finetune.freeze=encoder"], 1, 1),
        (["maml", "finetune.inner_steps=2"], 2 * 9, 3),
        (["maml", "finetune.inner_steps=2", "finetune.first_order=true"], 2 * 3, 3),
    ],
)
def test_forward_passes_that_a_step_takes(
    overrides: list[str], of_support: int, of_query: int
) -> None:
    one = tuner(*overrides, "finetune.ways=5", "finetune.shots=2")
    step = next(one._steps(0))
    passes = of_support * 2 * 5 * 2 + of_query * 2 * 5 * 3  # of 2 tasks, 2 shots and 3 queries
    macs = one.learner.backbone.architecture.macs()
    assert one.objective.macs(step, views(one, step, 0), one.learner.backbone) == passes * macs
