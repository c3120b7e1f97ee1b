"""A batch that goes through the networks in parts is one batch.

BN uses other statistics in a part than in the whole, which no order of computing can mend: where
parts and whole are compared, every BN of the student is in eval mode, a fixed affine map of each
image, and targets that use the statistics of their batch (BYOL, DINO) use their tracked ones.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sseg_nase import stages
from sseg_nase.config.compose import load
from sseg_nase.errors import UserError
from sseg_nase.nets.architecture import Architecture
from sseg_nase.nets.evolvable import EvolvableCNN, Learner
from sseg_nase.ssl import methods
from sseg_nase.ssl.methods import METHODS, Compared, Losses, Teaching, make_learner
from sseg_nase.ssl.teacher import make_teacher, untracked
from sseg_nase.stages.pretraining import trainer_of
from sseg_nase.tracking.sink import Sink
from sseg_nase.training import checkpoint
from sseg_nase.training.accumulation import differentiate, evaluate
from sseg_nase.training.events import Callback, Event
from sseg_nase.training.interruption import Interrupted
from sseg_nase.training.state import Pretraining

SMALL = ["ssl.projection_hidden=8", "ssl.projection_dim=5"]
OPTIONS = {
    "simclr": SMALL,
    "byol": SMALL,
    "prototype_pairs": [],
    "barlow_twins": SMALL,
    "dino": [*SMALL, "ssl.prototypes=6", "ssl.local_views=1"],
}
COMPARING = ("simclr", "prototype_pairs", "barlow_twins")


@contextmanager
def tracked_statistics(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(methods, "batch_statistics", lambda network, track: nullcontext())
        yield


def fixed(module: nn.Module) -> nn.Module:
    """With every BN in eval mode."""
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            part.eval()
    return module


def drawn(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


class Case:
    """Networks, and the views of a batch of twelve, of a method."""

    def __init__(self, name: str, distillation: float = 0.5, checkpointing: bool = False) -> None:
        weight = f"ssl.distillation_weight={distillation}"
        self.ssl = load([f"ssl={name}", *OPTIONS[name], weight]).ssl
        self.method = METHODS[name]
        self.learner, other = (self.network(seed) for seed in (7, 8))
        self.learner.backbone.gradient_checkpointing = checkpointing
        taught = self.method.has_target or distillation
        self.teaching = Teaching(
            make_teacher(other.backbone) if taught else None,
            make_teacher(other.head) if self.method.has_target else None,
            {key: drawn(len(value), seed=9) for key, value in self.method.memory(self.ssl).items()},
        )
        self.views = [
            drawn(crops.count, 12, 3, *[round(8 * crops.size)] * 2, seed=11 + index)
            for index, crops in enumerate(self.method.crops(self.ssl))
        ]

    def network(self, seed: int) -> Learner:
        generator = torch.Generator().manual_seed(seed)
        backbone = EvolvableCNN(Architecture.seed([4, 6], resolution=8), generator=generator)
        learner = make_learner(backbone, self.ssl, generator).double().train()
        learner(drawn(9, 3, 8, 8, seed=seed))  # so that BN has tracked something
        return learner

    def parts(self, count: int) -> list[list[Tensor]]:
        return [
            list(part)
            for part in zip(*(view.chunk(count, dim=1) for view in self.views), strict=True)
        ]

    def gradients(self, count: int, **options: Any) -> tuple[Losses, dict[str, Tensor]]:
        learner = copy.deepcopy(self.learner)
        losses = differentiate(
            self.method.loss, learner, self.teaching, self.parts(count), self.ssl, **options
        )
        found = {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}
        return losses, {**found, **dict(learner.named_buffers())}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("distillation", [0.0, 0.5])
@pytest.mark.parametrize("method", METHODS)
def test_the_gradient_of_the_parts_is_that_of_the_batch(
    method: str, distillation: float, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(method, distillation, checkpointing)
    fixed(case.learner)
    with tracked_statistics(monkeypatch):
        (whole, expected), (losses, found) = (case.gradients(count) for count in (1, 4))
    assert (whole.distillation is None) == (distillation == 0 and not case.method.has_target)
    for ours, theirs in zip(losses[:3], whole[:3], strict=True):
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
            assert not ours.requires_grad
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)
    for name, kept in (whole.memory or {}).items():
        assert losses.memory is not None
        torch.testing.assert_close(losses.memory[name], kept, rtol=1e-12, atol=0)


@pytest.mark.parametrize("method", COMPARING)
def test_a_mean_over_parts_would_be_another_gradient(method: str) -> None:
    """What the guard above guards against."""
    case = Case(method)
    fixed(case.learner)
    _, expected = case.gradients(1)
    plain = case.method.loss
    learner = copy.deepcopy(case.learner)
    for views in case.parts(4):
        (plain(learner, case.teaching, views, case.ssl).total / 4).backward()
    apart = max(
        ((p.grad - expected[name]).norm() / expected[name].norm()).item()
        for name, p in learner.named_parameters()
        if p.grad is not None and expected[name].norm() > 1e-9
    )
    assert apart > 1e-2


@pytest.mark.parametrize("method", METHODS)
def test_the_teacher_tracks_every_part_once_where_it_is_to(method: str) -> None:
    case = Case(method)
    still = copy.deepcopy(case.teaching)
    case.gradients(4)
    evaluate(case.method.loss, case.learner, case.teaching, case.parts(4), case.ssl)
    for kept, network in (
        (still.backbone, case.teaching.backbone),
        (still.head, case.teaching.head),
    ):
        if kept is not None and network is not None:
            for before, now in zip(
                kept.state_dict().values(), network.state_dict().values(), strict=True
            ):
                assert torch.equal(before, now)
    case.teaching = case.teaching._replace(tracks=True)
    case.gradients(4)
    norms = [
        part
        for network in (case.teaching.backbone, case.teaching.head)
        if network is not None
        for part in network.modules()
        if isinstance(part, _BatchNorm)
    ]
    assert norms
    assert all(norm.num_batches_tracked == 1 + 4 for norm in norms)  # 1 before it was a teacher


@pytest.mark.parametrize("checkpointing", [False, True])
def test_both_passes_see_the_same_statistics_which_are_tracked_once(checkpointing: bool) -> None:
    """As plain accumulation tracks them: every part once, in order."""
    case = Case("simclr", checkpointing=checkpointing)
    seen: list[Tensor] = []
    rows = Compared.rows

    class Watched(Compared):
        def rows(self, *given: Any) -> tuple[Tensor, Tensor]:
            found = rows(self, *given)
            seen.append(found[1].detach())
            return found

    assert isinstance(case.method.loss, Compared)
    learner = copy.deepcopy(case.learner)
    loss = Watched(case.method.loss.objective)
    differentiate(loss, learner, case.teaching, case.parts(4), case.ssl)
    assert len(seen) == 8
    for first, second in zip(seen[:4], seen[4:], strict=True):
        torch.testing.assert_close(first, second, rtol=1e-12, atol=0)
    plain = copy.deepcopy(case.learner)
    for views in case.parts(4):
        case.method.loss(plain, case.teaching, views, case.ssl)
    for (name, ours), theirs in zip(learner.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0, msg=name)


def test_untracked_leaves_modes_as_they_were() -> None:
    learner = Case("simclr").learner
    learner.backbone.blocks[0].norm.eval()
    before = {name: tensor.clone() for name, tensor in learner.named_buffers()}
    images = drawn(4, 3, 8, 8, seed=1)
    expected = copy.deepcopy(learner)(images)[1]
    with untracked(learner):
        assert torch.equal(learner(images)[1], expected)
    assert all(torch.equal(before[name], tensor) for name, tensor in learner.named_buffers())
    learner(images)
    assert not torch.equal(
        before["backbone.blocks.1.norm.running_mean"], learner.backbone.blocks[1].norm.running_mean
    )
    assert torch.equal(
        before["backbone.blocks.0.norm.running_mean"], learner.backbone.blocks[0].norm.running_mean
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [1, 3])
def test_losses_without_a_gradient_are_those_with_one(method: str, count: int) -> None:
    case = Case(method)
    expected, _ = case.gradients(count)
    parts, learner = case.parts(count), copy.deepcopy(case.learner)
    found = evaluate(case.method.loss, learner, case.teaching, parts, case.ssl)
    for ours, theirs in zip(found[:3], expected[:3], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "backbone", ["evolvable", "conv4", "sketch_cnn", "resnet12_quarter", "resnet18", "vit_small"]
)
def test_no_network_draws_random_numbers_in_its_forward_pass(backbone: str) -> None:
    """Both passes of a part would see other networks."""
    small = ["evolution=none", "sparsity=none", "dataset.image_size=32"]
    network = stages.seed_backbone(load([f"backbone={backbone}", *small])).train()
    images = torch.randn(2, network.architecture.in_channels, 32, 32)
    state = torch.get_rng_state()
    with torch.no_grad():
        network(images)
    assert torch.equal(torch.get_rng_state(), state)


# -- in training -----------------------------------------------------------------------------------

TINY = ["debug=tiny", "hardware=cpu", "hardware.precision=32-true", "tracking.interval_steps=1"]
PARTS = [
    "hardware.batch_size=4",
    "hardware.gradient_accumulation_steps=4",
    "hardware.accumulate=exact",
]
WHOLE = ["hardware.batch_size=16", "hardware.gradient_accumulation_steps=1"]  # as debug=tiny has it


class At(Callback):
    """Calls `do` at `event`."""

    def __init__(self, event: Event, do: Callable[[Pretraining], Any]) -> None:
        self.event, self.do = event, do

    def on(self, event: Event, state: Pretraining) -> None:
        if event is self.event:
            self.do(state)


class Told(Sink):
    def __init__(self) -> None:
        self.figures: dict[tuple[str, int], float] = {}
        self.epochs: list[dict[str, Any]] = []

    def metrics(self, values: Any, step: int) -> None:
        self.figures |= {(name, step): value for name, value in values.items()}

    def event(self, kind: str, values: Any) -> None:
        if kind == "epoch":
            self.epochs.append(dict(values))


def after(steps: int) -> Callable[[], bool]:
    counter = itertools.count(1)
    return lambda: next(counter) == steps


def trained(*overrides: str, eval_statistics: bool = True) -> tuple[Pretraining, Told]:
    config, told = load([*TINY, *overrides]), Told()
    callbacks = (
        [At(Event.BATCH_START, lambda t: fixed(t.networks.learner))] if eval_statistics else []
    )
    trainer = trainer_of(config, callbacks, told, None, lambda: False)
    trainer.fit()
    return trainer.state, told


@pytest.mark.parametrize(
    ("method", "overrides"),
    [
        ("simclr", ["ablation=A5"]),
        ("simclr", ["ablation=A2", "hardware.gradient_checkpointing=true"]),
        ("simclr", ["ablation=A2", "curriculum=mixed", "curriculum.levels=[BASIC,ADVERSARIAL]"]),
        # Adam makes whole steps of gradients that are nothing but rounding, as those of Barlow
        # Twins' last bias, which the loss does not see.
        ("prototype_pairs", ["ablation=A5", "optimizer=sgd", "optimizer.lr=0.003"]),
        ("barlow_twins", ["ablation=A5", "optimizer=sgd", "optimizer.lr=0.003"]),
    ],
)
def test_twenty_steps_of_24_times_4_are_those_of_96(
    method: str, overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same images, views, losses and parameters: float32, BN in eval statistics."""
    given = [f"ssl={method}", *OPTIONS[method], *overrides]
    given += ["evolution=none", "pretrain.epochs=2", "pretrain.images_per_epoch=960"]
    given += ["curriculum.images={BASIC:960,TEXTURE:960,OBJECT:960,ADVERSARIAL:960}"]
    batch, steps = "hardware.batch_size", "hardware.gradient_accumulation_steps"
    with tracked_statistics(monkeypatch):
        one, told = trained(*given, f"{batch}=96", f"{steps}=1")
        exact = (f"{batch}=24", f"{steps}=4", "hardware.accumulate=exact")
        parts, told_of_parts = trained(*given, *exact)
    assert one.progress.step == parts.progress.step == 20
    assert one.progress.images_seen == parts.progress.images_seen
    for (name, theirs), ours in zip(
        one.networks.learner.named_parameters(), parts.networks.learner.parameters(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5, msg=name)
    timeless = ("images_per_second", "memory_mb")
    assert told.figures.keys() == told_of_parts.figures.keys()
    for (name, step), value in told.figures.items():
        if not name.endswith(timeless):
            assert told_of_parts.figures[name, step] == pytest.approx(value, rel=1e-4), (name, step)
    for ours_, theirs_ in zip(told_of_parts.epochs, told.epochs, strict=True):
        assert ours_["loss"] == pytest.approx(theirs_["loss"], rel=1e-4)


def test_plain_accumulation_is_another_training() -> None:
    given = ["ablation=A2", *SMALL, "pretrain.epochs=1", "optimizer=sgd"]
    one, _ = trained(*given, *WHOLE)
    plain, _ = trained(*given, *PARTS, "hardware.accumulate=plain")
    assert one.progress.step == plain.progress.step
    apart = [
        (a - b).abs().max().item()
        for a, b in zip(
            one.networks.learner.parameters(), plain.networks.learner.parameters(), strict=True
        )
    ]
    assert max(apart) > 1e-4


def test_parts_are_slices_of_one_batch() -> None:
    config = load([*TINY, *PARTS, "ablation=A2", *SMALL])
    whole = load([*TINY, *WHOLE, "ablation=A2", *SMALL])
    feeds = [trainer_of(each, [], Sink(), None, lambda: False).feed for each in (config, whole)]
    for name in ("epoch", "others"):
        args = (1,) if name == "epoch" else (1, "trial")
        parts, batches = (list(getattr(feed, name)(*args)) for feed in feeds)
        assert len(parts) == 4 * len(batches)
        for number, batch in enumerate(batches):
            own = parts[4 * number : 4 * number + 4]
            assert torch.equal(torch.cat([part.images for part in own]), batch.images)
            assert [(part.first, part.of) for part in own] == [(4 * n, 16) for n in range(4)]
            assert all(part.seen == batch.seen for part in own)
    held, whole_held = (list(feed.held()) for feed in feeds)
    assert len(held) == 4 * len(whole_held)
    for number, batch in enumerate(whole_held):
        own = held[4 * number : 4 * number + 4]
        assert torch.equal(torch.cat([part.images for part in own]), batch.images)
    assert torch.equal(whole_held[0].images, feeds[1].probe())


@pytest.mark.parametrize(
    "overrides",
    [["ablation=A7"], pytest.param(["ablation=A7", "ssl=dino"], marks=pytest.mark.slow)],
)
def test_a_run_in_parts_mutates_and_resumes_bit_for_bit(
    overrides: list[str], tmp_path: Path
) -> None:
    dino = [*OPTIONS["dino"]] if "ssl=dino" in overrides else SMALL
    config = load([*TINY, *PARTS, *overrides, *dino, "evolution.rollback_grace_epochs=1"])
    whole = stages.pretrain(config, Sink(), tmp_path / "whole")
    kinds = {record.kind for record in whole.progress.history}
    assert "PRUNE" in kinds
    assert kinds & {"GROW", "WIDEN"}
    expected = whole.networks.state_dict()
    for steps in (1, 5, whole.progress.step - 2):
        folder = tmp_path / f"after-{steps}"
        with pytest.raises(Interrupted):
            stages.pretrain(config, Sink(), folder, stop=after(steps))
        state = checkpoint.load(folder / "checkpoints" / "last.pt")
        again = stages.pretrain(config, Sink(), folder, state=state)
        found = again.networks.state_dict()
        for part in ("student", "teacher", "memory"):
            assert found[part].keys() == expected[part].keys()
            assert all(torch.equal(found[part][name], t) for name, t in expected[part].items())
        assert again.progress.images_seen == whole.progress.images_seen


@pytest.mark.parametrize("method", COMPARING)
def test_parts_in_float16(method: str, tmp_path: Path) -> None:
    """The loss scale reaches the weights once: gradients are those of float32."""
    given = [f"ssl={method}", *OPTIONS[method], "ablation=A5", "evolution=none", *PARTS]
    half = load([*TINY, *given, "hardware.precision=16-mixed"])
    single = load([*TINY, *given])
    found = []
    for config in (half, single):
        trainer = trainer_of(config, [], Sink(), None, lambda: False)
        trainer.model.train()
        if trainer.guard.scaler is not None:
            trainer.guard.scaler._init_scale = 64.0  # at which all gradients of a first step fit
        parts = next(trainer.batches())
        trainer.differentiate(parts, 1, last=True)
        scaler = trainer.guard.scaler
        scale = 1.0 if scaler is None else scaler.get_scale()
        gradients = [p.grad.flatten() / scale for p in trainer.state.networks.learner.parameters()]
        found.append(torch.cat(gradients))
    assert (found[0] - found[1]).norm() < 0.05 * found[1].norm()
    trainer = stages.pretrain(half, Sink(), tmp_path)
    assert trainer.progress.step > 0


def test_losses_of_parts_that_are_not_finite_diverge(tmp_path: Path) -> None:
    config = load([*TINY, *PARTS, "ablation=A2", *SMALL, "optimizer.lr=1e9"])
    with pytest.raises(UserError, match=r"diverged .*epoch 1"):
        stages.pretrain(config, Sink(), tmp_path)


def test_too_few_images_for_a_step_are_named_as_they_are_set(tmp_path: Path) -> None:
    config = load([*TINY, *PARTS, "ablation=A2", "pretrain.images_per_epoch=15"])
    named = r"hardware\.batch_size=4, hardware\.gradient_accumulation_steps=4\."
    with pytest.raises(UserError, match=r"accepted is 16 or more.* lower " + named):
        stages.pretrain(config, Sink(), tmp_path)


def test_a_loss_is_told_once_per_step() -> None:
    happened: list[Event] = []

    class All(Callback):
        def on(self, event: Event, state: Pretraining) -> None:
            happened.append(event)

    for method in ("simclr", "byol"):
        happened.clear()
        config = load([*TINY, *PARTS, f"ssl={method}", *SMALL, "ablation=A2", "pretrain.epochs=1"])
        trainer = trainer_of(config, [All()], Sink(), None, lambda: False)
        trainer.fit()
        step = [Event.BATCH_START, Event.AFTER_LOSS, Event.AFTER_BACKWARD, Event.AFTER_STEP]
        assert happened == [
            *(Event.FIT_START, Event.EPOCH_START),
            *(step * 4),
            *(Event.EPOCH_END, Event.FIT_END, Event.CLOSE),
        ]


@pytest.mark.slow
def test_two_processes_in_parts_train_as_one(tmp_path: Path) -> None:
    given = [*TINY, "seed=1", *SMALL, "ablation=A7", "pretrain.epochs=4", "optimizer=sgd"]
    parts = ["hardware.gradient_accumulation_steps=2", "hardware.accumulate=exact"]
    found = [
        stages.pretrain(load([*given, *parts, *more]), Sink(), tmp_path / str(number))
        for number, more in enumerate(
            (
                ["hardware.batch_size=8"],
                ["hardware.batch_size=4", "hardware.devices=2"],
            )
        )
    ]
    one, two = (trainer.networks.learner.state_dict() for trainer in found)
    history = [trainer.progress.history for trainer in found]
    assert history[0]
    assert [r.after for r in history[0]] == [r.after for r in history[1]]
    for ours, theirs in zip(history[1], history[0], strict=True):
        assert ours.loss_before == pytest.approx(theirs.loss_before, rel=1e-3)
    for name, tensor in one.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(two[name], tensor, rtol=1e-2, atol=1e-3)


@pytest.mark.slow
def test_two_processes_in_parts_in_float16(tmp_path: Path) -> None:
    """At the end both have the same weights, or the training says that they have parted."""
    given = [*TINY, *SMALL, "ablation=A7", "hardware.precision=16-mixed", "hardware.devices=2"]
    parts = ["hardware.batch_size=4", "hardware.gradient_accumulation_steps=2"]
    config = load([*given, *parts, "hardware.accumulate=exact"])
    trainer = stages.pretrain(config, Sink(), tmp_path)
    assert "PRUNE" in {record.kind for record in trainer.progress.history}
