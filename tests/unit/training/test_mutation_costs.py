"""What is measured for a mutation is measured as training computes, and needs no more memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sseg_nase.config.compose import load
from sseg_nase.hardware.memory import _LiveBytes
from sseg_nase.nets.mutation import Mutation
from sseg_nase.nets.mutations.grow import grow
from sseg_nase.nets.mutations.prune import prune
from sseg_nase.stages.pretraining import trainer_of
from sseg_nase.tracking.sink import Sink
from sseg_nase.training import interventions
from sseg_nase.training.interventions import importance
from sseg_nase.training.loop import Trainer

TINY = [
    "debug=tiny",
    "hardware=cpu",
    "ablation=A7",
    "ssl.projection_hidden=16",
    "ssl.projection_dim=8",
]
PRECISIONS = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16, "32-true": torch.float32}
EXACT = ["hardware.gradient_accumulation_steps=3", "hardware.accumulate=exact"]


def trainer(*overrides: str) -> Trainer:
    one = trainer_of(load([*TINY, *overrides]), [], Sink(), None, lambda: False)
    one.model.train()
    return one


def grown(one: Trainer) -> Mutation:
    return grow(one.state.networks.architecture, out_channels=72, mode="preserve", seed=3)


def halved(one: Trainer) -> Mutation:
    channels = one.state.networks.architecture.channels
    return prune(one.state.networks.architecture, [range(width // 2) for width in channels])


def step(one: Trainer) -> None:
    """A whole step of training."""
    batches = one.batches()
    for index in range(one.accumulation):
        one.state.progress.batch, last = index, index + 1 == one.accumulation
        one.differentiate(next(batches), one.accumulation, last=last)
    one.step()


class Convolutions:
    """What convolutions put out, but for exact comparisons: types, and the largest batch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.types: set[torch.dtype] = set()
        self.most = 0
        plain = nn.Conv2d.forward

        def watched(module: nn.Conv2d, images: Tensor) -> Tensor:
            out = plain(module, images)
            if out.dtype != torch.float64:
                self.types.add(out.dtype)
            self.most = max(self.most, len(images))
            return out

        monkeypatch.setattr(nn.Conv2d, "forward", watched)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("further", [[], EXACT])
def test_trials_and_importance_compute_as_training_does(
    precision: str, further: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = trainer(f"hardware.precision={precision}", *further)
    seen = Convolutions(monkeypatch)
    step(one)
    assert seen.types == {PRECISIONS[precision]}
    largest = seen.most
    assert largest == 2 * 16  # two views of hardware.batch_size images
    seen.types.clear()
    seen.most = 0
    one.state.probe.trials(one.state.networks, [grown(one)], epoch=0, steps=1, lr=0.01)
    importance(one.state, kind="taylor", batches=2, seed=0)
    assert seen.types == {PRECISIONS[precision]}
    new = one.workshop.mutated(one.state.networks, halved(one))
    one.state.probe.recalibrate(new, 0, 2)
    one.state.probe.function_delta(one.state.networks, new, halved(one))
    one.state.probe.pruning_error(one.state.networks, new, halved(one))
    one.state.probe.latency(one.state.networks, new)
    assert seen.most == largest


@pytest.mark.parametrize(
    ("precision", "further"),
    [
        pytest.param("16-mixed", [], marks=pytest.mark.slow),
        ("bf16-mixed", []),
        ("bf16-mixed", EXACT),
        pytest.param("16-mixed", EXACT, marks=pytest.mark.slow),
    ],
)
def test_a_mutation_needs_no_more_memory_than_a_step(precision: str, further: list[str]) -> None:
    """Bytes of tensors that live at the same time, of networks whose weights are small."""
    size = ["dataset.image_size=48", "hardware.batch_size=24", "pretrain.images_per_epoch=144"]
    one = trainer(f"hardware.precision={precision}", *size, *further)
    step(one)  # the optimizer has its moments
    list(one.feed.others(0, "trial")), list(one.feed.held())  # and the feed has drawn what it keeps

    def peak(do: Callable[[], Any]) -> int:
        with _LiveBytes(one.state.networks.learner) as live:
            do()
        return live.peak

    new = one.workshop.mutated(one.state.networks, halved(one))
    most = peak(lambda: step(one))
    parts: dict[str, Callable[[], Any]] = {
        "held loss": lambda: one.state.probe.held_losses([one.state.networks, new], 0),
        "trial": lambda: one.state.probe.trials(
            one.state.networks, [halved(one)], epoch=0, steps=1, lr=0.01
        ),
        "gap": lambda: one.state.probe.gap(one.state.networks),
        "importance": lambda: importance(one.state, kind="taylor", batches=1, seed=0),
        "recalibration": lambda: one.state.probe.recalibrate(new, 0, 1),
        "function delta": lambda: one.state.probe.function_delta(
            one.state.networks, new, halved(one)
        ),
        "pruning error": lambda: one.state.probe.pruning_error(
            one.state.networks, new, halved(one)
        ),
        "latency": lambda: one.state.probe.latency(one.state.networks, new),
    }
    found = {name: peak(do) / most for name, do in parts.items()}
    assert found.pop("trial") <= 1.06, found  # it has copies of the networks beside
    assert max(found.values()) <= 1.02, found


def test_the_gradients_of_a_trial_are_those_of_training() -> None:
    """Exact or plain, in any precision: the mean over the images of a step of the same kind."""
    for further in ([], EXACT):
        single = trainer("hardware.precision=32-true", *further)
        half = trainer("hardware.precision=16-mixed", *further)
        found = []
        for one in (single, half):
            next(one.state.probe.gradients(one.state.networks, 0, 1))
            found.append(
                torch.cat([p.grad.flatten() for p in one.state.networks.learner.parameters()])
            )
        assert (found[1] - found[0]).norm() < 0.05 * found[0].norm()
        (parts,) = single.state.probe.batches(0, 1)
        assert len(parts) == (3 if further else 1)


def taylor(one: Trainer) -> list[Tensor]:
    return importance(one.state, kind="taylor", batches=2, seed=0).scores


def test_importance_in_float16_neither_over_nor_underflows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At a scale that is too large it is halved until gradients fit."""
    expected = taylor(trainer("hardware.precision=32-true"))
    for scale in (2.0**16, 2.0**30):
        one = trainer("hardware.precision=16-mixed")
        assert one.guard.scaler is not None
        one.guard.scaler._init_scale = scale
        for ours, theirs in zip(taylor(one), expected, strict=True):
            assert (ours - theirs).norm() < 0.1 * theirs.norm()
    # Gradients this small are nothing in float16 without a scale.
    one = trainer("hardware.precision=16-mixed")
    plain = one.method.loss

    class Faint(type(plain)):  # type: ignore[misc]
        def compare(self, *given: Any) -> Any:
            losses = super().compare(*given)
            return losses._replace(total=losses.total * 1e-6)

    object.__setattr__(one.state.probe, "method", _with(one.method, Faint(plain.objective)))
    for ours, theirs in zip(taylor(one), expected, strict=True):
        assert (1e6 * ours - theirs).norm() < 0.1 * theirs.norm()


def _with(method: Any, loss: Any) -> Any:
    import dataclasses

    return dataclasses.replace(method, loss=loss)


def test_importance_that_no_scale_keeps_finite_is_said() -> None:
    one = trainer("hardware.precision=16-mixed")
    plain = one.method.loss

    def steep(*given: Any) -> Any:
        losses = plain(*given)
        same = losses.total * 1
        same.register_hook(lambda gradient: gradient * float("inf"))
        return losses._replace(total=same)

    one.state.probe.method = _with(one.method, steep)
    assert not all(each.isfinite().all() for each in taylor(one))
    one.state.progress.epoch = 1
    sparsity, evolution = one.config.sparsity, one.config.evolution
    sparsify = interventions.Sparsify(sparsity, evolution, one.config.pretrain, 0)
    sparsify.due = [1]
    decision = sparsify.decide(one.state)
    assert decision.mutation is None
    assert decision.trigger["reason"] == interventions.NO_IMPORTANCE


def measured(*overrides: str) -> list[float]:
    """What every process finds for held losses, a trial, the gap and the importance."""
    from sseg_nase.stages import pretraining

    one = pretraining.trainer_of(
        load([*TINY, "hardware.precision=32-true", *overrides]), [], Sink(), None, lambda: False
    )
    one.model.train()
    step(one)  # student and teacher part
    losses = one.state.probe.trials(one.state.networks, [grown(one)], epoch=0, steps=2, lr=0.01)
    assert losses.shape == (3, one.feed.held_batches)
    gap = one.state.probe.gap(one.state.networks)
    assert gap is not None
    return [*losses.mean(1).tolist(), gap, *map(float, torch.cat(taylor(one)))]


def along(rank: int, overrides: list[str]) -> None:
    measured(*overrides)


@pytest.mark.parametrize(
    ("method", "further"),
    [
        pytest.param("simclr", [], marks=pytest.mark.slow),
        pytest.param("byol", EXACT, marks=pytest.mark.slow),
        pytest.param("simclr", EXACT, marks=pytest.mark.slow),
        pytest.param("byol", [], marks=pytest.mark.slow),
    ],
)
def test_processes_share_the_work_and_find_what_one_finds(
    method: str, further: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sseg_nase.training.distributed import workers

    given = [f"ssl={method}", *TINY[-2:], *further]
    alone = measured(*given, "hardware.batch_size=16")
    shared = [*given, "hardware.batch_size=8", "hardware.devices=2"]
    seen = Convolutions(monkeypatch)
    with workers(along, shared, devices=2):
        found = measured(*shared)
    assert seen.most == 2 * 8
    assert found[0] == pytest.approx(alone[0], rel=1e-4)
    assert found[1:3] == pytest.approx(alone[1:3], rel=1e-3)
    assert found[3:] == pytest.approx(alone[3:], rel=1e-2, abs=1e-5)
    assert alone[3] > 0


def test_trials_take_other_images_in_every_batch() -> None:
    one = trainer("hardware.precision=32-true", *EXACT)
    batches = list(one.state.probe.batches(0, 1))
    parts = list(itertools.chain.from_iterable(batches))
    assert len(parts) == 3
    assert not torch.equal(parts[0][0], parts[1][0])
