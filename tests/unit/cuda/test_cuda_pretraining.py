"""Pretraining on CUDA, as far as it can be seen without a GPU: see `fake_cuda`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sseg_nase.data.views import batched, draw_parameters, gpu
from sseg_nase.data.views.gpu import kernels_work  # not the one that fake CUDA has instead
from sseg_nase.evolution import functional
from sseg_nase.evolution.operators import perform
from sseg_nase.nets.mutation import Mutation
from sseg_nase.nets.mutations.grow import grow, grow_stages
from sseg_nase.nets.mutations.prune import prune
from sseg_nase.nets.mutations.widen import widen
from sseg_nase.sparsity.router import SparseRouter
from sseg_nase.ssl.methods import METHODS
from sseg_nase.stages import pretrain
from sseg_nase.tracking.sink import Sink
from sseg_nase.training import checkpoint
from sseg_nase.training.events import Callback, Event
from sseg_nase.training.interruption import Interrupted
from sseg_nase.training.networks import Networks
from sseg_nase.training.state import Pretraining
from sseg_nase.training.surgery import Decision
from tests.support.cuda_paths import InTurn, Waits, config_of, trainer
from tests.support.fake_cuda import CUDA, Fake, fake_cuda
from tests.support.operators import PARTS, operators_of_a_step

PLAIN = ["evolution=none", "sparsity=none", "ssl.distillation_weight=0.5"]
NATURAL = [*PLAIN, "curriculum=natural"]
SMALL_DINO = ["ssl=dino", "ssl.prototypes=8"]
MOST_WAITS = 2  # in a step that tells nobody anything
ASKING = ("skeleton.py:step", "divergence.py:took")


@pytest.fixture
def fake() -> Iterator[Fake]:
    with fake_cuda() as found:
        yield found


def everywhere(value: Any) -> Iterator[Tensor]:
    """All tensors in a state."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from everywhere(each)


def on_cuda(state: Pretraining) -> bool:
    """Whether networks, moments and memory are there, and all is finite."""
    found = list(everywhere(state.networks.state_dict()))
    return len(found) > 0 and all(t.is_cuda and bool(t.isfinite().all()) for t in found)


# -- steps -----------------------------------------------------------------------------------------

STEPS: dict[str, list[str]] = {
    **{method: [*PLAIN, f"ssl={method}"] for method in METHODS if method != "dino"},
    "dino": [*PLAIN, *SMALL_DINO],
    "32-true": [*PLAIN, "hardware.precision=32-true"],
    "16-mixed": [*PLAIN, "hardware.precision=16-mixed"],
    "accumulation": [*PLAIN, "hardware.gradient_accumulation_steps=2", "hardware.batch_size=4"],
    "checkpointing": [*PLAIN, "hardware.gradient_checkpointing=true"],
    "sgd": [*PLAIN, "optimizer=sgd", "optimizer.lr=0.01"],
    "sketches": [*PLAIN, "views=sketch"],
    "one channel": [*PLAIN, "dataset.channels=1"],
    "not kept": [*PLAIN, "data.memory_gb=0.00001"],
    "disk": [*NATURAL, "data.placement=disk"],
    "ram": [*NATURAL, "data.placement=ram"],
    "device": [*NATURAL, "data.placement=device"],
    "perturbed": [
        *PLAIN, "curriculum.levels=[ADVERSARIAL]", "curriculum.perturbation=0.02",
    ],
    "adversarial and others": [
        *PLAIN, "curriculum=mixed", "curriculum.perturbation=0.02",
    ],
}  # fmt: skip


@pytest.mark.parametrize("overrides", STEPS.values(), ids=STEPS)
def test_a_step_does_not_make_the_host_wait(fake: Fake, overrides: list[str]) -> None:
    waits = Waits(fake)
    epochs = ["pretrain.epochs=1", "pretrain.images_per_epoch=64"]
    one = trainer(*overrides, *epochs, callbacks=[waits])
    one.fit()
    assert on_cuda(one.state)
    assert len(waits.steps) == one.state.progress.step - 1 > 1
    assert all(step.total() <= MOST_WAITS for step in waits.steps), waits.steps
    # What may wait is the optimizer: it asks the scaler whether there was a step to take.
    places = {place for step in waits.steps for place in step}
    assert places <= {f"read training/{place}" for place in ASKING}, places


def test_whether_to_compile_is_measured_there(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Networks, "compile", lambda networks: None)
    one = trainer(*PLAIN, "hardware.compile=auto", "pretrain.epochs=2")
    one.fit()
    assert one.compiling is not None
    assert one.compiling.refused is None


def test_what_views_need_goes_there_in_one_copy(fake: Fake) -> None:
    one = trainer(*PLAIN, "views=sketch", "views.jitter=1", "views.blur=1", "views.grey=0.5")
    images = one.feed.probe()
    fake.copies.clear()
    fake.waits.clear()
    one.state.probe.views(images, seed=0)
    assert dict(fake.copies) == {"send data/prefetch.py:sent": 1}
    assert not fake.waits


def test_all_that_the_kernels_of_views_take_is_there(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton looks at addresses, not at devices. What the kernels compute has a test of its own."""
    pytest.importorskip("triton")
    from sseg_nase.data.views import kernels

    launched = []

    class Launch:
        def __getitem__(self, grid: Any) -> Callable[..., None]:
            def launch(*given: Any, **options: Any) -> None:
                tensors = [value for value in given if isinstance(value, Tensor)]
                launched.append(len(tensors))
                assert all(tensor.is_cuda for tensor in tensors)

            return launch

    for name in ("_views", "_blurred"):
        monkeypatch.setattr(kernels, name, Launch())
    monkeypatch.setattr(kernels, "_on", lambda device: nullcontext())
    images = torch.zeros(4, 3, 16, 16, dtype=torch.uint8, device=CUDA)
    p = draw_parameters(8, config_of("views.blur=1").views, height=16, width=16, seed=1)
    fake.copies.clear()
    fake.waits.clear()
    assert kernels.apply_views(images, p, 16).is_cuda
    assert launched == [3, 4, 4]
    assert dict(fake.copies) == {"send data/prefetch.py:sent": 1}
    assert not fake.waits


def test_the_kernels_of_views_are_tried_on_the_device(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "import_module", lambda name: batched)
    assert kernels_work.__wrapped__(CUDA, 16)

    class Elsewhere:
        def apply_views(self, images: Tensor, p: Any, size: int) -> Tensor:
            assert images.is_cuda
            return batched.apply_views(images, p, size).cpu()

    monkeypatch.setattr(gpu, "import_module", lambda name: Elsewhere())
    assert not kernels_work.__wrapped__(CUDA, 16)


def test_what_is_told_costs_one_look(fake: Fake) -> None:
    epoch = ["pretrain.epochs=1", "pretrain.images_per_epoch=96"]
    one = trainer(*PLAIN, *epoch, "tracking.interval_steps=2")
    one.fit()
    assert fake.waits["read training/loop.py:_report"] == 3


@pytest.mark.parametrize(
    ("overrides", "most"),
    [
        # Of the optimizer two for what decays, and two for norms and biases, which do not.
        (PLAIN, {"optimizer": 4, "teacher": 2, "telling": 0}),
        # Besides: whether there was a step, and what the scaler does with its scale.
        ([*PLAIN, "hardware.precision=16-mixed"], {"optimizer": 19, "teacher": 2, "telling": 0}),
        ([*PLAIN, "ssl=byol"], {"optimizer": 4, "teacher": 4, "telling": 0}),
        (["evolution=none", "sparsity=none", "tracking.interval_steps=2"], {"telling": 3}),
    ],
)
def test_a_step_asks_for_few_operators(
    fake: Fake, overrides: list[str], most: dict[str, int]
) -> None:
    """A small network's step takes as long as its launches, not as its sums."""
    epochs = ["pretrain.epochs=1", "pretrain.images_per_epoch=64"]
    found = operators_of_a_step(trainer(*overrides, *epochs))
    # Of 3 blocks, BN and all; views by torch's operators, as there is no Triton here.
    most = {"feed": 2, "views": 190, "forward": 105, "backward": 80, "rest": 3} | most
    assert found.keys() <= set(PARTS)
    assert found["views"] > 50
    over = {part: count for part, count in found.items() if count > most.get(part, 4)}
    assert not over, found


# -- mutations -------------------------------------------------------------------------------------


def mutation(change: Callable[..., Mutation], **options: Any) -> Callable[[Pretraining], Decision]:
    def decide(state: Pretraining) -> Decision:
        kept = {}
        architecture = state.networks.architecture
        if change is prune:
            kept["kept"] = [range(0, width, 2) for width in architecture.channels]
        given = {**kept, **{k: v for k, v in options.items() if k not in DECIDED}}
        told = {k: v for k, v in options.items() if k in DECIDED}
        return Decision(change(architecture, **given), {"reason": "told"}, **told)

    return decide


DECIDED = ("tolerance", "grace", "control", "recalibrate")
GROW, WIDEN = mutation(grow, seed=1), mutation(widen, block=1, seed=2)
EVERY = (
    GROW,
    WIDEN,
    mutation(grow, mode="fresh", position=1, out_channels=20, seed=3),
    mutation(widen, block=None, mode="zero", seed=4),
    mutation(widen, block=0, noise=0.01, seed=5),
    mutation(prune, recalibrate=1),
)


@pytest.mark.parametrize(
    "overrides",
    [
        ["ssl.distillation_weight=0.5"],
        pytest.param([*SMALL_DINO, "backbone.residual=true"], marks=pytest.mark.slow),
        pytest.param(
            ["ssl=byol", "optimizer=sgd", "optimizer.lr=0.01", "backbone.embedding=flatten"],
            marks=pytest.mark.slow,
        ),
        pytest.param(["ssl=prototype_pairs", "hardware.precision=32-true"], marks=pytest.mark.slow),
    ],
)
def test_every_mutation(fake: Fake, overrides: list[str]) -> None:
    one = trainer(*overrides, f"pretrain.epochs={len(EVERY) + 3}", interventions=[InTurn(*EVERY)])
    one.fit()
    assert [record.kind for record in one.state.progress.history] == [
        "GROW", "WIDEN", "GROW", "WIDEN", "WIDEN", "PRUNE",
    ]  # fmt: skip
    assert all(record.accepted for record in one.state.progress.history)
    assert on_cuda(one.state)
    assert len(one.state.networks.state().moments) > 0


def test_every_stage_grows_and_channels_come_in_pairs(fake: Fake) -> None:
    """From the seed network that `evolution=balanced` begins with."""
    steps = (
        mutation(grow_stages, most=2, seed=1),
        mutation(widen, block=1, mode="pairs", seed=2),
        mutation(grow, position=2, before_pool=True, seed=3),
    )
    small = ["backbone=seed_wide", "backbone.channels=[4,8]"]
    one = trainer(*small, f"pretrain.epochs={len(steps) + 3}", interventions=[InTurn(*steps)])
    one.fit()
    history = one.state.progress.history
    assert [record.kind for record in history] == ["GROW", "WIDEN", "GROW"]
    assert all(record.accepted for record in history)
    assert len(one.state.networks.architecture.blocks) == 5
    assert on_cuda(one.state)


def test_growth_at_fixed_epochs(fake: Fake) -> None:
    fixed = ["evolution=balanced", "ablation=A5", "scheduler=constant_decay"]
    one = trainer("backbone=seed_wide", "backbone.channels=[4,8]", *fixed, "pretrain.epochs=5")
    one.fit()
    assert [record.kind for record in one.state.progress.history] == ["GROW", "GROW"]
    assert on_cuda(one.state)


@pytest.mark.parametrize(("grace", "control"), [(0, False), (1, False), (1, True)])
def test_rollback(fake: Fake, grace: int, control: bool) -> None:
    """At once, and when the probation ends: no loss is below -1 times what it was.

    The network that comes back was left as it is, or trained along.
    """
    refused = mutation(grow, seed=1, tolerance=-2.0, grace=grace, control=control)
    one = trainer("pretrain.epochs=4", interventions=[InTurn(refused)])
    before = one.state.networks.architecture
    one.fit()
    (record,) = one.state.progress.history
    assert record.trigger.get("rollback", {}).get("control", False) == control
    assert not record.accepted
    assert ("rollback" in record.trigger) == (grace > 0)
    assert one.state.networks.architecture == before
    assert on_cuda(one.state)


@pytest.mark.parametrize("importance", ["taylor", "magnitude", "random"])
def test_the_whole_method(fake: Fake, importance: str) -> None:
    """Plateaus, trials of what could be done, and pruning by importance, with shortcuts."""
    evolving = importance == "taylor"
    more = ["evolution.operators=[grow]" if evolving else "evolution=none"]
    chosen = [f"sparsity.importance={importance}", "backbone.residual=true"]
    one = trainer("ablation=A7", "pretrain.epochs=5", *chosen, *more)
    one.fit()
    kinds = {record.kind for record in one.state.progress.history}
    assert kinds >= ({"PRUNE", "GROW"} if evolving else {"PRUNE"})
    assert on_cuda(one.state)


def test_mutations_by_hand(fake: Fake) -> None:
    one = trainer("backbone.residual=true")
    network = one.state.networks.learner.backbone.train()
    images = torch.randn(4, 3, 16, 16, device=CUDA)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    teacher = one.state.networks.teacher
    for step in (
        functional.grow,
        lambda net, **k: functional.widen(net, 1, **k),
        lambda net, **k: functional.prune(net, [range(8)] * len(net.architecture.channels), **k),
    ):
        network(images).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        done = step(network, optimizer=optimizer, teacher=teacher, images=images)
        network, optimizer, teacher = done.network, done.optimizer, done.teacher
        assert done.record.function_delta is not None
        assert network(images).is_cuda
        assert teacher(images).is_cuda
    network.grow(12)
    network.widen(0)
    assert network(images).is_cuda
    assert all(parameter.is_cuda for parameter in network.parameters())


def test_a_mutation_as_a_function(fake: Fake) -> None:
    one = trainer()
    images = torch.randn(4, 3, 16, 16, device=CUDA)
    architecture = one.state.networks.architecture
    state, record = perform(grow(architecture, seed=1), one.state.networks.state(), probe=images)
    assert record.function_delta is not None
    assert record.function_delta < 1e-6
    assert all(tensor.is_cuda for tensor in state.student.values())


def test_complementary_paths(fake: Fake) -> None:
    network = trainer("backbone.residual=true").state.networks.learner.backbone.eval()
    network.widen(0)
    images = torch.randn(4, 3, 16, 16, device=CUDA)
    router = SparseRouter(0.5, round_to=4)
    router.update_masks(network, [network(images).square().mean()])
    left = router.apply_sparse_forward(network, images)
    assert router.apply_sparse_forward(network, images, use_negative_path=True).is_cuda
    router.prune_permanently(network)
    kept = network(images)
    assert kept.is_cuda
    torch.testing.assert_close(kept.norm(), left.norm())


# -- checkpoints -----------------------------------------------------------------------------------


class At(Callback):
    """Notes the state when `step` steps are done."""

    def __init__(self, step: int) -> None:
        self.step, self.state = step, dict[str, Any]()

    def on(self, event: Event, state: Pretraining) -> None:
        if event is Event.AFTER_STEP and state.progress.step == self.step:
            self.state = state.checkpoint()


RUN = ["ablation=A7", "pretrain.epochs=5", "evolution.operators=[grow]", "ssl=byol"]
HALF = "hardware.precision=16-mixed"


def stopped_after(steps: int, folder: Path, *overrides: str) -> dict[str, Any]:
    asked = iter(range(1, 1000))
    with pytest.raises(Interrupted):
        pretrain(config_of(*overrides), Sink(), folder, stop=lambda: next(asked) >= steps)
    return checkpoint.load(folder / "checkpoints" / "last.pt")


@pytest.mark.slow
def test_a_resumed_training_is_the_uninterrupted_one(fake: Fake, tmp_path: Path) -> None:
    given = [*RUN, HALF]
    whole = pretrain(config_of(*given), Sink(), tmp_path / "whole")
    state = stopped_after(7, tmp_path / "parts", *given)
    assert all(not tensor.is_cuda for tensor in everywhere(state))
    assert any(record["accepted"] for record in state["history"])
    resumed = pretrain(config_of(*given), Sink(), tmp_path / "parts", state=state)
    assert on_cuda(resumed)
    first, second = (list(everywhere(one.networks.state_dict())) for one in (whole, resumed))
    assert len(first) > 50
    assert all(map(torch.equal, first, second))
    assert len(whole.progress.history) == len(resumed.progress.history) > 1


def test_networks_that_a_cpu_has_kept_are_restored_on_the_device(fake: Fake) -> None:
    """All of DINO's, whose loss has a memory; held losses are read on the CPU."""
    one = trainer(*RUN[:-1], *SMALL_DINO)
    kept = on_the_cpu(one.state.networks.state_dict())
    assert not any(tensor.is_cuda for tensor in everywhere(kept))
    networks = one.workshop.restored(kept)
    assert networks.memory
    assert all(tensor.is_cuda for tensor in everywhere(networks.state_dict()))
    assert not one.state.probe.held_losses([networks], 0).is_cuda


def on_the_cpu(value: Any) -> Any:
    """The same state with its tensors there."""
    if isinstance(value, dict):
        return {key: on_the_cpu(each) for key, each in value.items()}
    return value.cpu() if isinstance(value, Tensor) else value


@pytest.mark.parametrize("there_first", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_training_goes_on_on_another_device(tmp_path: Path, there_first: bool) -> None:
    """With a probation under way: its networks go along, too."""
    with_memory = [*RUN[:-1], *SMALL_DINO]
    elsewhere = [*with_memory, "evolution.rollback_grace_epochs=3", "hardware.accelerator=cpu"]
    elsewhere += ["hardware.precision=32-true"]
    there = [*elsewhere, "hardware.accelerator=cuda"]
    with fake_cuda():
        if there_first:
            state = stopped_after(5, tmp_path, *there)
    if not there_first:
        with fake_cuda():  # the profile asks for a card, the accelerator does not use it
            config = config_of(*elsewhere)
        asked = iter(range(1, 1000))
        with pytest.raises(Interrupted):
            pretrain(config, Sink(), tmp_path, stop=lambda: next(asked) >= 5)
        state = checkpoint.load(tmp_path / "checkpoints" / "last.pt")
    assert state["probation"] is not None
    with fake_cuda():
        config = config_of(*(elsewhere if there_first else there))
        if not there_first:
            one = pretrain(config, Sink(), tmp_path, state=state)
            assert on_cuda(one)
            return
    one = pretrain(config, Sink(), tmp_path, state=state)
    assert one.device.type == "cpu"
    assert one.progress.epoch == 5
    assert not any(tensor.is_cuda for tensor in everywhere(one.networks.state_dict()))


def test_the_allocator_is_held_to_the_cap(fake: Fake, tmp_path: Path) -> None:
    from sseg_nase.hardware.memory import enforce_memory_cap

    enforce_memory_cap(CUDA, 3)
    assert fake.memory_fraction == 3 / 12
