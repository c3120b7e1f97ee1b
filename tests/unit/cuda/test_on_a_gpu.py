"""What only a GPU can show: kernels, streams, memory, waits of the host, and the same bits again.

The same tests run under fake CUDA, but for those of memory, so that they are known to run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sseg_nase.config.compose import load
from sseg_nase.data.curriculum.render import render
from sseg_nase.data.prefetch import sent_together
from sseg_nase.data.views import gpu, make_views
from sseg_nase.hardware.determinism import deterministic
from sseg_nase.hardware.memory import enforce_memory_cap, explain_out_of_memory
from sseg_nase.stages import pretrain
from sseg_nase.tracking.sink import Sink
from sseg_nase.training import checkpoint
from sseg_nase.training.events import Callback, Event
from sseg_nase.training.interruption import Interrupted
from sseg_nase.training.state import Pretraining
from tests.support.cuda_paths import config_of, trainer
from tests.support.fake_cuda import CUDA, OnCuda, fake_cuda

GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
# Mutations of every kind, and all that is random.
RUN = [
    "ablation=A7", "pretrain.epochs=5", "hardware.deterministic=true", "evolution.operators=[grow]",
]  # fmt: skip
PLAIN = ["evolution=none", "sparsity=none"]


@pytest.fixture(params=["fake", pytest.param("gpu", marks=GPU)], autouse=True)
def _device(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param == "gpu":
        yield
    else:
        with fake_cuda():
            yield


# -- kernels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["BASIC", "TEXTURE", "OBJECT", "ADVERSARIAL"])
def test_pictures_are_those_of_a_cpu(level: str) -> None:
    """Within 1 of 255, but for single pixels on an edge."""
    indices = torch.arange(16)
    here = render(level, indices, seed=1, image_size=32)
    there = render(level, indices, seed=1, image_size=32, device=CUDA).cpu()
    apart = (here.int() - there.int()).abs()
    assert (apart > 1).float().mean() < 0.002


def test_the_kernels_of_views_work() -> None:
    """Those of photographs: what the test below compares is then theirs."""
    if not isinstance(torch.empty(1, device=CUDA), OnCuda):
        assert gpu.kernels_work(CUDA, 32)
        assert gpu.kernels_work(CUDA, 84)


@pytest.mark.parametrize("views", ["simclr", "sketch"])
@pytest.mark.parametrize("size", [32, 84])
def test_views_are_those_of_a_cpu(views: str, size: int) -> None:
    asked = load([f"views={views}", "hardware=cpu"]).views
    images = torch.randint(0, 256, (8, 3, size, size), dtype=torch.uint8)
    here = make_views(images, asked, image_size=size, seed=3)
    there = make_views(images.to(CUDA), asked, image_size=size, seed=3).cpu()
    assert ((here - there).abs() > 2 / 255).float().mean() < 0.001


def test_what_is_sent_together_arrives() -> None:
    given = {
        "flags": torch.tensor([True, False, True]),
        "numbers": torch.arange(5),
        "matrix": torch.randn(7, 3).T,
        "none": torch.empty(0, 4),
        "exact": torch.randn(2, 2, dtype=torch.float64),
        "one": torch.tensor(3.5),
    }
    found = sent_together(given, CUDA)
    assert found.keys() == given.keys()
    for name, tensor in found.items():
        assert tensor.is_cuda
        assert tensor.dtype == given[name].dtype
        assert torch.equal(tensor.cpu(), given[name])


# -- streams and waits -----------------------------------------------------------------------------


def test_batches_made_ahead_are_those_made_one_by_one() -> None:
    """The feed's stream runs beside that of training, which is kept busy here."""
    one = trainer(*PLAIN, "pretrain.images_per_epoch=256", "data.memory_gb=0.00001")
    busy = torch.randn(1024, 1024, device=CUDA)
    ahead = []
    for batch in one.feed.epoch(0):
        for _ in range(3):
            busy = (busy @ busy).clamp(-1, 1)
        ahead.append(batch.images.clone())
    one.feed.stream = None
    singly = [batch.images.clone() for batch in one.feed.epoch(0)]
    torch.cuda.synchronize()
    assert len(ahead) == 16
    assert all(map(torch.equal, ahead, singly))


@pytest.mark.parametrize(("precision", "parts"), [("bf16-mixed", 1), ("16-mixed", 2)])
def test_recorded_steps_give_the_same_bits(precision: str, parts: int) -> None:
    """With mutations; under fake CUDA nothing can be recorded, and training goes on without."""
    fake = isinstance(torch.empty(1, device=CUDA), OnCuda)
    own = [
        "ablation=A7", f"pretrain.epochs={1 if fake else 4}", "pretrain.images_per_epoch=80",
        f"hardware.batch_size={16 // parts}", f"hardware.gradient_accumulation_steps={parts}",
        "hardware.accumulate=exact", f"hardware.precision={precision}",
        "hardware.deterministic=true",
    ]  # fmt: skip
    digests = []
    with deterministic(True):
        for graphs in ("false", "true"):
            one = trainer(*own, f"hardware.cuda_graphs={graphs}")
            one.fit()
            digests.append(one._digest())
    assert one.graphs is not None
    assert one.graphs.possible is not fake
    assert digests[0] == digests[1]


class NoWaits(Callback):
    """From the second step on, to the last, torch raises where the host waits for a GPU."""

    def __init__(self, steps: int) -> None:
        self.steps, self.seen = steps, 0

    def on(self, event: Event, state: Pretraining) -> None:
        if event is Event.AFTER_STEP:
            self.seen += 1
            watching = self.seen < self.steps
            if not isinstance(next(state.networks.learner.parameters()), OnCuda):
                torch.cuda.set_sync_debug_mode("error" if watching else "default")


@pytest.mark.parametrize(
    "overrides", [["ssl=simclr"], ["ssl=dino", "ssl.prototypes=8"], ["views=sketch"]]
)
def test_torch_sees_no_wait_in_a_step(overrides: list[str]) -> None:
    """But for that of 16-mixed, which must know whether there was a step."""
    own = ["pretrain.epochs=1", "pretrain.images_per_epoch=128", "hardware.precision=bf16-mixed"]
    watch = NoWaits(8)
    one = trainer(*PLAIN, *overrides, *own, callbacks=[watch])
    try:
        one.fit()
    finally:
        if torch.cuda.is_initialized():
            watch.steps = 0
            watch.on(Event.AFTER_STEP, one.state)
    assert watch.seen == 9


# -- the same bits ---------------------------------------------------------------------------------


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value.cpu()
    elif isinstance(value, dict):
        for each in value.values():
            yield from tensors(each)


def test_a_training_is_the_same_again() -> None:
    with deterministic(True):
        first, second = (trainer(*RUN), trainer(*RUN))
        first.fit()
        second.fit()
    states = [list(tensors(one.state.networks.state_dict())) for one in (first, second)]
    assert {record.kind for record in first.state.progress.history} >= {"GROW", "PRUNE"}
    assert all(map(torch.equal, *states))


def test_a_resumed_training_is_the_same(tmp_path: Path) -> None:
    asked = iter(range(1, 1000))
    with deterministic(True):
        whole = pretrain(config_of(*RUN), Sink(), tmp_path / "whole")
        with pytest.raises(Interrupted):
            pretrain(config_of(*RUN), Sink(), tmp_path / "parts", stop=lambda: next(asked) == 7)
        state = checkpoint.load(tmp_path / "parts" / "checkpoints" / "last.pt")
        resumed = pretrain(config_of(*RUN), Sink(), tmp_path / "parts", state=state)
    states = [list(tensors(one.networks.state_dict())) for one in (whole, resumed)]
    assert all(map(torch.equal, *states))


# -- memory ----------------------------------------------------------------------------------------


@pytest.fixture
def _gpu_alone() -> None:
    if hasattr(torch.zeros((), device=CUDA), "inner"):
        pytest.skip("fake CUDA takes no memory")


@pytest.mark.usefixtures("_gpu_alone")
def test_more_than_the_cap_is_refused_and_explained() -> None:
    enforce_memory_cap(CUDA, 1)
    try:
        with pytest.raises(torch.OutOfMemoryError) as caught:
            torch.empty(2 * 2**30, dtype=torch.uint8, device=CUDA)
    finally:
        enforce_memory_cap(CUDA, None)
    said = explain_out_of_memory(caught.value, config_of("hardware.max_memory_gb=1"))
    assert said is not None
    assert "hardware.batch_size=" in said
    assert "hardware.max_memory_gb=1" in said


@pytest.mark.usefixtures("_gpu_alone")
@pytest.mark.parametrize(("profile", "batch"), [("rtx3050", 24), ("rtx3060", 48)])
def test_the_profiles_stay_under_their_caps(profile: str, batch: int) -> None:
    """At 84 px, with a network of 1 M parameters."""
    one = trainer(
        *PLAIN, f"hardware={profile}", f"hardware.batch_size={batch}", "dataset.image_size=84",
        "backbone.channels=[128,256,288]", "pretrain.epochs=1", "pretrain.images_per_epoch=288",
    )  # fmt: skip
    cap = one.config.hardware.max_memory_gb
    assert cap is not None
    torch.cuda.reset_peak_memory_stats()
    one.fit()
    assert torch.cuda.max_memory_reserved() < cap * 2**30
