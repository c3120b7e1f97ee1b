"""What only a GPU can show, measured in one call: `bash benchmarks/gpu.sh OUT`.

Every part runs in a process of its own within its own time, so that one that fails costs the
others nothing. Each gives rows (what, value, note); OUT/gpu.json holds them all, OUT/gpu.md shows
them as one table with the card's name. Without a GPU every part runs in small sizes under fake
CUDA (`tests/support/fake_cuda.py`), and the table says so: its figures are then those of a CPU.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import itertools
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from benchmarks.absent import stand_in  # noqa: E402

ABSENT = stand_in()

import torch  # noqa: E402

FAKE = not torch.cuda.is_available()
IMAGE_SIZES = (16,) if FAKE else (32, 84)
BATCH = 8 if FAKE else 256
WARM, TIMED = (1, 2) if FAKE else (5, 30)
CUDA = torch.device("cuda", 0)


class Row(NamedTuple):
    """One line of the table. `value`: a figure with its unit, or what was found."""

    what: str
    value: str
    note: str = ""


def waited() -> float:
    """The time, when the device has done all that it was asked for."""
    torch.cuda.synchronize()
    return time.perf_counter()


def seconds(work: Callable[[], object], times: int = TIMED, warm: int = WARM) -> float:
    """Of one `work`, the mean over several in a row."""
    for _ in range(warm):
        work()
    began = waited()
    for _ in range(times):
        work()
    return (waited() - began) / times


def launches(work: Callable[[], object], *, warm: bool = True) -> int | None:
    """How many kernels one `work` launches; None where that cannot be seen."""
    if FAKE:
        return None
    from torch.profiler import ProfilerActivity, profile

    if warm:
        work()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize()
    events = (e for e in profiler.events() if str(e.device_type).endswith("CUDA"))
    return sum(not e.name.startswith(("Memcpy", "Memset")) for e in events)


def in_words(count: int | None) -> str:
    """A number of launches."""
    return "launches not seen" if count is None else f"{count:,} launches"


def config_of(*overrides: str) -> Any:
    """The program's config on CUDA."""
    from sseg_nase.config.compose import load

    small = ["ssl.projection_hidden=16", "ssl.projection_dim=8"] if FAKE else []
    return load(["tracking=jsonl", "hardware=rtx3060", *small, *overrides])


def trainer_of(*overrides: str, state: Any = None) -> Any:
    """The program's pretraining, telling nobody."""
    from sseg_nase.stages.pretraining import trainer_of as build
    from sseg_nase.tracking.sink import Sink

    return build(config_of(*overrides), [], Sink(), state, lambda: False)


# -- parts -----------------------------------------------------------------------------------------


def ceilings() -> Iterator[Row]:
    """What the card reaches in the simplest of its work."""
    side, numbers = (64, 2**12) if FAKE else (8192, 2**28)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        a = torch.ones(side, side, dtype=dtype, device=CUDA)
        rate = 2 * side**3 / seconds(lambda a=a: a @ a, 5) / 1e12
        yield Row(
            f"matrix product, {dtype}".replace("torch.", ""), f"{rate:,.1f} TFLOP/s", "ceiling"
        )
    source = torch.ones(numbers, device=CUDA)
    target = torch.empty_like(source)
    rate = 2 * source.nbytes / seconds(lambda: target.copy_(source), 5) / 1e9
    yield Row("copy on the device", f"{rate:,.0f} GB/s", "ceiling: read and written")


def views() -> Iterator[Row]:
    """Two SimCLR views of every image of a batch that lies on the device."""
    from sseg_nase.data.views import batched, draw_parameters, make_views

    asked = config_of().views
    for size in IMAGE_SIZES:
        images = torch.randint(0, 256, (BATCH, 3, size, size), dtype=torch.uint8).to(CUDA)
        ours = lambda i=images, s=size: make_views(i, asked, image_size=s, seed=0)  # noqa: E731
        sides: dict[str, Callable[[], object] | None] = {
            "ours": ours,
            "ours by torch's operators": lambda i=images, s=size: batched.apply_views(
                i, draw_parameters(2 * BATCH, asked, height=s, width=s, seed=0), s
            ),
            "torchvision v2": torchvision_views(images, asked, size),
            "kornia": kornia_views(images, asked, size),
        }
        for name, work in sides.items():
            what = f"views, {size} px, {name}"
            if work is None:
                yield Row(what, "-", "not installed")
                continue
            taken = seconds(work)
            moved = images.nbytes + 2 * 4 * images.numel()
            note = f"{in_words(launches(work))}, {moved / taken / 1e9:,.1f} GB/s"
            if not name.startswith("ours"):
                note += "; the same parameters for all images" if "v2" in name else ""
            yield Row(what, f"{BATCH / taken:,.0f} images/s", note)


def torchvision_views(images: torch.Tensor, v: Any, size: int) -> Callable[[], object] | None:
    """Torchvision's transforms of whole batches: one draw of parameters for a batch."""
    if "torchvision" in ABSENT:
        return None
    transform = torchvision_transform(v, size)
    return lambda: [transform(images) for _ in range(2)]


def torchvision_transform(v: Any, size: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """A view of uint8 images, one or a batch, by torchvision v2."""
    from torchvision.transforms import v2 as T

    return T.Compose([
        T.RandomResizedCrop(size, tuple(v.crop_scale), tuple(v.crop_ratio), antialias=False),
        T.RandomHorizontalFlip(v.flip),
        T.RandomApply([T.ColorJitter(v.brightness, v.contrast, v.saturation, v.hue)], v.jitter),
        T.RandomGrayscale(v.grey),
        T.RandomApply([T.GaussianBlur(max(3, size // 10 | 1), tuple(v.blur_sigma))], v.blur),
        T.ToDtype(torch.float32, scale=True),
        T.Normalize([0.5] * 3, [0.5] * 3),
    ])  # fmt: skip


def kornia_views(images: torch.Tensor, v: Any, size: int) -> Callable[[], object] | None:
    """Kornia's batched augmentations, once per view."""
    if FAKE or importlib.util.find_spec("kornia") is None:
        return None
    from kornia import augmentation as K

    augment = torch.nn.Sequential(
        K.RandomResizedCrop((size, size), tuple(v.crop_scale), tuple(v.crop_ratio)),
        K.RandomHorizontalFlip(v.flip),
        K.ColorJitter(v.brightness, v.contrast, v.saturation, v.hue, p=v.jitter),
        K.RandomGrayscale(p=v.grey),
        K.RandomGaussianBlur(max(3, size // 10 | 1), tuple(v.blur_sigma), p=v.blur),
        K.Normalize(torch.tensor([0.5] * 3), torch.tensor([0.5] * 3)),
    )
    return lambda: [augment(images.float() / 255) for _ in range(2)]


# In bfloat16: no step is skipped, whatever the scale.
SIMCLR = [
    "ablation=A2",
    "evolution=none",
    "sparsity=none",
    "hardware.gradient_accumulation_steps=1",
    "hardware.precision=bf16-mixed",
]


def step() -> Iterator[Row]:
    """A step of SimCLR: feeding, views, forward, backward, optimizer."""

    from sseg_nase.hardware.complexity import count_macs
    from tests.support import operators

    steps = WARM + TIMED
    for size in IMAGE_SIZES:
        given = [
            *SIMCLR, f"hardware.batch_size={BATCH}", f"dataset.image_size={size}",
            "pretrain.epochs=1", f"pretrain.images_per_epoch={steps * BATCH}",
            "tracking.interval_steps=1000000",
        ]  # fmt: skip
        taken: dict[str, float] = {}
        for name in ("ours", "ready-made views", "torch.compile", "CUDA graphs"):
            if name in ("torch.compile", "CUDA graphs") and FAKE:
                yield Row(f"step, {size} px, {name}", "-", "not seen without a GPU")
                continue
            graphs = ["hardware.cuda_graphs=true"] if name == "CUDA graphs" else []
            one = trainer_of(*given, *graphs)
            if name == "torch.compile":
                one.state.networks.compile()
            if name == "ready-made views":
                ready_made(one)
            taken[name] = step_seconds(one)
            recorded = one.graphs is not None and one.graphs.possible
            assert recorded == bool(graphs), "steps were not recorded"
            macs = count_macs(one.state.networks.learner, size)
            # Forward and twice as much backward, of two views.
            rate = 2 * 3 * 2 * macs * BATCH / taken[name] / 1e12
            note = f"{rate:,.2f} TFLOP/s"
            if name == "ours":
                few = trainer_of(*given, f"pretrain.images_per_epoch={3 * BATCH}")
                counted = launches(few.fit, warm=False)
                note = f"{in_words(None if counted is None else counted // 3)}, {note}"
            yield Row(f"step, {size} px, {name}", f"{BATCH / taken[name]:,.0f} images/s", note)
        few = trainer_of(*given, f"pretrain.images_per_epoch={4 * BATCH}")
        asked_for = operators.operators_of_a_step(few)
        note = f"{operators.in_words(asked_for)}; kernels in Triton are not seen"
        yield Row(f"operators of a step, {size} px", f"{asked_for.total():,}", note)
        share = 1 - taken["ready-made views"] / taken["ours"]
        yield Row(f"share of feeding and views in a step, {size} px", f"{share:.0%}", "goal: 10 %")
        ready = taken["ready-made views"] / taken["ours"]
        yield Row(f"beside a step of ready-made views, {size} px", f"{ready:.0%}", "goal: 80 %")
        name, transform = per_image(trainer_of(*given).config.views, size)
        if transform is None:
            yield Row(f"step, {size} px, {name}", "-", "not installed")
            continue
        workers, other = step_of_workers(trainer_of(*given), transform, size)
        note = f"{workers} DataLoader workers, the same network, loss and precision"
        yield Row(f"step, {size} px, {name}", f"{BATCH / other:,.0f} images/s", note)
        times = f"{other / taken['ours']:.1f} ×"
        yield Row(f"beside {name}, {size} px", times, "goal: 3 × lightly's pipeline")


def per_image(v: Any, size: int) -> tuple[str, Callable[[torch.Tensor], object] | None]:
    """What makes two views of one uint8 image on a CPU, by name: lightly's where it is installed.

    Else torchvision's operations, which lightly's transform is made of, without its PIL images.
    """
    if "torchvision" in ABSENT:
        return "views per image", None
    if importlib.util.find_spec("lightly") is not None:
        from lightly.transforms import SimCLRTransform
        from torchvision.transforms import v2 as T

        return "lightly", T.Compose([T.ToPILImage(), SimCLRTransform(input_size=size)])
    one = torchvision_transform(v, size)
    return "torchvision v2 per image (lightly is not installed)", lambda image: [
        one(image) for _ in range(2)
    ]


class Pairs(torch.utils.data.Dataset[Any]):
    """Two views of each of `count` images, which are those of a batch again and again."""

    def __init__(self, images: torch.Tensor, transform: Callable[..., object], count: int) -> None:
        self.images, self.transform, self.count = images, transform, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> object:
        return self.transform(self.images[index % len(self.images)])


def step_of_workers(one: Any, transform: Callable[..., object], size: int) -> tuple[int, float]:
    """Workers, and seconds of a step of a trainer's networks on the views that they make.

    From when every worker has given a batch, until all have given two more.
    """
    from sseg_nase.hardware.profiles import cores
    from sseg_nase.ssl.objectives import nt_xent

    workers = 1 if FAKE else cores()
    images = torch.randint(0, 256, (BATCH, 3, size, size), dtype=torch.uint8)
    loader = torch.utils.data.DataLoader(
        Pairs(images, transform, 3 * workers * BATCH),
        batch_size=BATCH, num_workers=workers, pin_memory=not FAKE, drop_last=True,
    )  # fmt: skip
    began = 0.0
    for number, views in enumerate(loader, start=1):
        sent = [each.to(CUDA, non_blocking=True) for each in views[:2]]
        batch = torch.cat(sent).contiguous(memory_format=one.workshop.memory_format)
        with one.fabric.autocast():
            first, second = one.model(batch)[1].chunk(2)
            loss = nt_xent(first, second, one.config.ssl.temperature)
        one.fabric.backward(loss)
        one.optimizer.step()
        one.optimizer.zero_grad()
        if number == workers:
            began = waited()
    return workers, (waited() - began) / (2 * workers)


def ready_made(one: Any) -> None:
    """Let a trainer see one batch again and again, with the same views."""
    batch = next(iter(one.feed.epoch(0)))
    views = one.state.probe.views(batch.images, 0, first=batch.first, of=batch.of)
    one.feed.epoch = lambda *_, **__: itertools.repeat(batch, WARM + TIMED)
    one.state.probe.views = lambda *_, **__: views


def step_seconds(one: Any) -> float:
    """Of one optimizer step, the mean over those of an epoch after the first ones."""
    from sseg_nase.training.events import Callback, Event

    class Clock(Callback):
        def __init__(self) -> None:
            self.steps, self.times = 0, list[float]()

        def on(self, event: Any, trainer: Any) -> None:
            self.steps += event is Event.AFTER_STEP
            if event is Event.AFTER_STEP and self.steps in (WARM, WARM + TIMED):
                self.times.append(waited())

    clock = Clock()
    one.callbacks.append(clock)
    one.fit()
    assert len(clock.times) == 2, "steps were skipped"
    return (clock.times[1] - clock.times[0]) / TIMED


def evaluation() -> Iterator[Row]:
    """Images embedded once, and all episodes in few operations."""
    import numpy as np

    from sseg_nase.data.curriculum.render import render
    from sseg_nase.data.episodes import sample_episodes
    from sseg_nase.data.views import normalize
    from sseg_nase.fewshot.evaluation import embed, evaluate_episodes
    from sseg_nase.fewshot.methods import METHODS
    from sseg_nase.stages import seed_backbone

    classes, each = 10, (6 if FAKE else 200)
    for size in IMAGE_SIZES:
        drawn = render("OBJECT", torch.arange(classes * each), seed=0, image_size=size, device=CUDA)
        drawn = drawn.cpu()

        class Store:
            """Drawn images, dealt to classes: what they show does not matter here."""

            def __len__(self) -> int:
                return len(drawn)  # noqa: B023

            def batch(self, indices: Any) -> torch.Tensor:
                return drawn[torch.as_tensor(np.asarray(indices))]  # noqa: B023

        asked = config_of(f"dataset.image_size={size}")
        network = seed_backbone(asked).for_inference().to(CUDA)
        kinds = [np.arange(each * c, each * (c + 1)) for c in range(classes)]
        episodes = sample_episodes(
            kinds, class_names=[str(c) for c in range(classes)], dataset="drawn", split="val",
            ways=5, shots=1, queries=(2 if FAKE else 15), episodes=(4 if FAKE else 600), seed=0,
        )  # fmt: skip

        def embedded() -> torch.Tensor:
            return embed(network, Store(), batch_size=128, device=CUDA, preprocess=normalize)  # noqa: B023

        taken = seconds(embedded, 3, 1)
        yield Row(f"embedding, {size} px", f"{len(drawn) / taken:,.0f} images/s", "seed network")
        features = embedded()
        options = asked.evaluation
        method = METHODS[options.method]
        evaluated = seconds(
            lambda: evaluate_episodes(features, episodes, method, options, mean=features.mean(0), classes=classes),  # noqa: B023, E501
            3, 1,
        )  # fmt: skip
        rate = f"{len(episodes) / evaluated:,.0f} episodes/s"
        yield Row(f"evaluation, {size} px", rate, "5-way 1-shot prototypes")


def memory() -> Iterator[Row]:
    """The most that training takes, at 84 px; and what is said when there is too little."""
    from sseg_nase.hardware.memory import enforce_memory_cap, explain_out_of_memory, memory_use

    size = IMAGE_SIZES[-1]
    for profile in ("rtx3050", "rtx3060"):
        for name, widths in (("seed network", "[16,32,64]"), ("1 M network", "[128,256,288]")):
            batch = ["hardware.batch_size=4"] if FAKE else []
            one = trainer_of(
                f"hardware={profile}", *batch, f"dataset.image_size={size}",
                f"backbone.channels={widths}", "evolution=none", "sparsity=none",
                "pretrain.epochs=1", f"pretrain.images_per_epoch={200 if not FAKE else 16}",
            )  # fmt: skip
            cap = one.config.hardware.max_memory_gb
            free = torch.cuda.mem_get_info()[1] / 2**30
            if cap < free:
                enforce_memory_cap(CUDA, cap)
            memory_use(CUDA, cap)
            one.fit()
            peak, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
            note = f"reserved {reserved / 2**30:.2f} GB of {cap:g}"
            yield Row(f"peak memory, {profile}, {name}", f"{peak / 2**30:.2f} GB", note)
            del one
            torch.cuda.empty_cache()
    config = config_of("hardware.max_memory_gb=1")
    try:
        if FAKE:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        enforce_memory_cap(CUDA, 1)
        torch.empty(2 * 2**30, dtype=torch.uint8, device=CUDA)
        yield Row(
            "out of memory at hardware.max_memory_gb=1", "not raised", "the cap does not hold"
        )
        raise AssertionError("more was given than the cap allows")
    except torch.OutOfMemoryError as error:
        said = explain_out_of_memory(error, config)
        assert said is not None
        raised = "raised by hand" if FAKE else "raised by the allocator"
        yield Row("out of memory at hardware.max_memory_gb=1", raised, said)


# Mutations at once and often, so that minutes show all of them.
EAGER = [
    "ablation=A7", "evolution.plateau_threshold=1000", "evolution.plateau_window_size=1",
    "evolution.distillation_gap_threshold=0", "evolution.burn_in_epochs=0",
    "evolution.cooldown_epochs=0", "evolution.trial_steps=1", "evolution.trial_margin=null",
    "evolution.rollback_tolerance=1", "evolution.rollback_grace_epochs=0",
    "sparsity.rollback_tolerance=1", "sparsity.rollback_grace_epochs=0",
    "sparsity.importance_batches=1",
    "sparsity.recalibration_batches=1", "sparsity.pruning_interval_epochs=3",
    "sparsity.start_epoch=3", "curriculum.max_epochs_per_level=3",
    "hardware.gradient_accumulation_steps=1",
]  # fmt: skip


def short(*more: str) -> list[str]:
    """A training with mutations of a few seconds."""
    size, images = (16, 32) if FAKE else (32, 2048)
    return [
        *EAGER, f"dataset.image_size={size}", f"hardware.batch_size={16 if FAKE else 128}",
        f"pretrain.images_per_epoch={images}", "pretrain.epochs=6",
        "hardware.deterministic=true", *more,
    ]  # fmt: skip


def digest(one: Any) -> str:
    """Of all weights and moments, bit for bit."""
    state = one.state.networks.state()
    found = hashlib.sha256()
    for tensors in (state.student, state.teacher or {}, *state.moments.values()):
        for tensor in tensors.values():
            if isinstance(tensor, torch.Tensor):
                found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


@contextmanager
def repeatable(asked: bool) -> Iterator[None]:
    """What a run has with `hardware.deterministic`."""
    from sseg_nase.hardware.determinism import deterministic

    with deterministic(asked):
        yield


def determinism() -> Iterator[Row]:
    """Two trainings with the same seed, with `hardware.deterministic` and without."""
    for asked in (True, False):
        given = short(f"hardware.deterministic={str(asked).lower()}")
        digests = []
        with repeatable(asked):
            for _ in range(2):
                one = trainer_of(*given)
                one.fit()
                digests.append(digest(one))
        same = digests[0] == digests[1]
        kinds = ", ".join(record.kind for record in one.state.progress.history) or "no mutation"
        said = "the same bits" if same else "other bits"
        yield Row(f"two trainings, deterministic={str(asked).lower()}", said, kinds)
        assert same or not asked, "hardware.deterministic=true gave other numbers"


def resume() -> Iterator[Row]:
    """A training that is interrupted and goes on, beside one that is not."""
    from sseg_nase.stages.pretraining import pretrain
    from sseg_nase.tracking.sink import Sink
    from sseg_nase.training import checkpoint
    from sseg_nase.training.interruption import Interrupted

    config = config_of(*short())
    steps = config.pretrain.images_per_epoch // config.hardware.batch_size
    asked = iter(range(1, 10**6))
    with repeatable(True), tempfile.TemporaryDirectory() as folder:
        whole = pretrain(config, Sink(), Path(folder, "whole"))
        parts = Path(folder, "parts")
        try:
            pretrain(config, Sink(), parts, stop=lambda: next(asked) > 2.5 * steps)
        except Interrupted:
            state = checkpoint.load(parts / "checkpoints" / "last.pt")
        again = pretrain(config, Sink(), parts, state=state)
        same = digest(whole) == digest(again)
    yield Row(
        "resumed training", "the same bits" if same else "other bits", f"at step {state['step']}"
    )
    assert same, "a resumed training is another one"


def training() -> Iterator[Row]:
    """Minutes of the whole method, with a record as `tracking=jsonl` keeps it."""
    from sseg_nase.stages.pretraining import pretrain
    from sseg_nase.tracking.sink import Sink
    from sseg_nase.training.interruption import Interrupted

    budget = float("inf") if FAKE else 120.0  # a CPU may be busy: there the epochs decide
    size, images = (16, 32) if FAKE else (32, 8192)
    config = config_of(
        *EAGER, f"dataset.image_size={size}", f"hardware.batch_size={16 if FAKE else 144}",
        f"pretrain.images_per_epoch={images}", f"pretrain.epochs={6 if FAKE else 200}",
        "evolution.cooldown_epochs=1", "ssl.ema_decay=0.99",
        *(["evolution.operators=[grow]"] if FAKE else []),  # in six epochs trials choose once
    )  # fmt: skip

    class Kept(Sink):
        def __init__(self) -> None:
            self.events: list[tuple[str, Any]] = []

        def event(self, kind: str, values: Any) -> None:
            self.events.append((kind, values))

    kept, began = Kept(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            pretrain(config, kept, Path(folder), stop=lambda: time.monotonic() - began > budget)
            ended = "all epochs"
        except Interrupted:
            ended = "time was up"
    epochs = [values for kind, values in kept.events if kind == "epoch"]
    mutations = [values for kind, values in kept.events if kind == "mutation"]
    assert epochs, "not a single epoch was done"
    speed = epochs[-1]["images_per_second"]
    losses = f"loss {epochs[0]['loss']:.2f} to {epochs[-1]['loss']:.2f}"
    yield Row(
        "the whole method", f"{len(epochs)} epochs, {losses}", f"{ended}; {speed:,.0f} images/s"
    )
    accepted = [m["kind"] for m in mutations if m["accepted"]]
    counts = ", ".join(f"{accepted.count(kind)} {kind}" for kind in sorted(set(accepted)))
    yield Row("its mutations", counts or "none", f"{len(mutations)} tried")


def tests() -> Iterator[Row]:
    """The tests marked `gpu`, where pytest is installed."""
    if FAKE:
        yield Row("tests marked gpu", "not run", "they need a GPU")
        return
    if importlib.util.find_spec("pytest") is None:
        yield Row("tests marked gpu", "not run", "pytest is not installed")
        return
    chosen = "tests/unit/cuda/test_on_a_gpu.py" if ABSENT else "tests"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", chosen]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if " passed" in line or " failed" in line]
    yield Row("tests marked gpu", "passed" if done.returncode == 0 else "failed", *lines[-1:])
    assert done.returncode == 0, done.stdout[-4000:]


# Seconds for each part; 8 minutes in all.
PARTS: dict[str, tuple[Callable[[], Iterator[Row]], int]] = {
    "ceilings": (ceilings, 15),
    "tests": (tests, 70),
    "views": (views, 50),
    "step": (step, 85),
    "evaluation": (evaluation, 25),
    "memory": (memory, 45),
    "determinism": (determinism, 35),
    "resume": (resume, 30),
    "training": (training, 125),
}
SLOWER = 8  # times as long may a CPU take, where imports alone take seconds


# -- one part, and all of them ---------------------------------------------------------------------


def one_part(name: str, out: Path) -> None:
    """In a process of its own: rows as they come, so that what was measured is kept."""
    from tests.support.fake_cuda import fake_cuda

    path = out / f"{name}.jsonl"
    path.unlink(missing_ok=True)
    with fake_cuda() if FAKE else nullcontext():
        if not FAKE:
            torch.cuda.init()
        for row in PARTS[name][0]():
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row._asdict()) + "\n")


def run_part(name: str, out: Path) -> dict[str, Any]:
    """What a part has measured, and how it ended."""
    limit = PARTS[name][1] * (SLOWER if FAKE else 1)
    began = time.monotonic()
    command = [sys.executable, __file__, str(out), "--part", name]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    child = subprocess.Popen(
        command, cwd=ROOT, env=environment, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        said, _ = child.communicate(timeout=limit)
        error = None if child.returncode == 0 else (said.strip().splitlines() or ["?"])[-1]
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        said, _ = child.communicate()
        error = f"longer than {limit} s"
    path = out / f"{name}.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    if error is not None:
        print(said[-4000:], file=sys.stderr)
    return {
        "part": name,
        "seconds": round(time.monotonic() - began, 1),
        "error": error,
        "rows": [json.loads(line) for line in lines],
    }


def machine() -> dict[str, Any]:
    """What the figures belong to."""
    card = None if FAKE else torch.cuda.get_device_properties(0)
    return {
        "card": "none: fake CUDA on a CPU, small sizes" if card is None else card.name,
        "memory_gb": None if card is None else round(card.total_memory / 2**30, 1),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "not_installed": ABSENT,
    }


def table(found: dict[str, Any]) -> str:
    """Everything as Markdown."""
    about = found["machine"]
    lines = [f"# {about['card']}", ""]
    if found["fake"]:
        lines += [
            "There was no GPU: every part ran in small sizes on tensors that only say they lie on "
            "CUDA. The figures say that it runs, and nothing of a GPU.", "",
        ]  # fmt: skip
    size = "" if about["memory_gb"] is None else f", {about['memory_gb']} GB"
    missing = ", ".join(about["not_installed"]) or "nothing"
    lines += [
        f"torch {about['torch']}, CUDA {about['cuda']}, Python {about['python']}{size}; "
        f"not installed: {missing}; {found['seconds']:.0f} s in all.",
        "", "| part | what | value | note |", "| --- | --- | --- | --- |",
    ]  # fmt: skip
    for part in found["parts"]:
        for row in part["rows"]:
            cells = (part["part"], row["what"], row["value"], row["note"])
            lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
        if part["error"] is not None:
            error = part["error"].replace("|", "/")
            lines.append(f"| {part['part']} | **failed** after {part['seconds']} s | | {error} |")
    return "\n".join([*lines, ""])


def main() -> int:
    """What the command line asks for; 1 where a part failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.part is not None:
        try:
            one_part(asked.part, asked.out)
        except Exception as error:
            traceback.print_exc()
            print(f"{type(error).__name__}: {error}".splitlines()[0])
            return 1
        return 0
    if unknown := sorted(set(asked.parts) - set(PARTS)):
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    began = time.monotonic()
    if FAKE:
        print("There is no GPU here: small sizes, on tensors that only say they lie on CUDA.")
    found: dict[str, Any] = {"fake": FAKE, "machine": machine(), "parts": []}
    for name in asked.parts or PARTS:
        print(f"{name} ...", end=" ", flush=True)
        part = run_part(name, asked.out)
        print(f"{part['error'] or 'done'} ({part['seconds']} s)", flush=True)
        found["parts"].append(part)
        found["seconds"] = round(time.monotonic() - began, 1)
        # After each: what is measured is kept, whatever comes.
        (asked.out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        (asked.out / "gpu.md").write_text(table(found), encoding="utf-8")
    print(f"{asked.out / 'gpu.md'}")
    return int(any(part["error"] for part in found["parts"]))


if __name__ == "__main__":
    sys.exit(main())
