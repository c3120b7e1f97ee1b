"""Time each operation beside the alternative one would write first, alternated, medians of 5.

Prints a Markdown table: images (or episodes) per second of ours and of the peer, and the ratio.
"""

from __future__ import annotations

import copy
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from sseg_nase.config.compose import load
from sseg_nase.data.curriculum.render import render
from sseg_nase.data.episodes import sample_episodes
from sseg_nase.data.views import two_views
from sseg_nase.fewshot.classifiers import prototype_scores
from sseg_nase.fewshot.evaluation import evaluate_episodes
from sseg_nase.hardware.latency import latency_ms
from sseg_nase.nets.architecture import Architecture
from sseg_nase.nets.evolvable import EvolvableCNN, Learner, ProjectionHead
from sseg_nase.sparsity.recalibration import recalibrate
from sseg_nase.sparsity.router import SparseRouter
from sseg_nase.ssl.objectives import nt_xent
from sseg_nase.tracking import RunInfo, Sink, Tracker
from sseg_nase.tracking.jsonl import JsonlSink
from sseg_nase.tracking.mlflow_sink import MlflowSink

ROUNDS = 5
BATCH = 256
EPISODES = 600
# Of the costs of logging, which are small: turns of every way, their length, and how many times as
# often as in a run (every 10 steps to the sink, every 5 s to MLflow) everything is logged in them.
TURNS, SECONDS_A_TURN, TIMES = 40, 1.0, 5
INTERVAL_STEPS = 10
FIGURES = {
    f"pretrain/{name}": 1.0
    for name in ("loss", "contrastive", "distillation", "lr", "level", "images_per_second")
}


def rates(ours: Callable[[], int], peer: Callable[[], int]) -> tuple[float, float]:
    """Items per second of both: medians of `ROUNDS` alternated runs after one that warms up."""
    found: tuple[list[float], list[float]] = ([], [])
    for turn in range(ROUNDS + 1):
        for way, run in enumerate((ours, peer)):
            began = time.perf_counter()
            items = run()
            if turn:
                found[way].append(items / (time.perf_counter() - began))
    return statistics.median(found[0]), statistics.median(found[1])


def views(size: int) -> tuple[float, float]:
    """Two SimCLR views per image: batched, and torchvision's transforms one image at a time."""
    v = load(["hardware=cpu"]).views
    images = render("OBJECT", torch.arange(BATCH), seed=0, image_size=size)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    jitter = transforms.ColorJitter(v.brightness, v.contrast, v.saturation, v.hue)
    sigma = (v.blur_sigma[0], v.blur_sigma[1])
    kernel = max(3, size // 10 | 1)
    one = transforms.Compose(
        [
            transforms.RandomResizedCrop(size, tuple(v.crop_scale), tuple(v.crop_ratio)),
            transforms.RandomHorizontalFlip(v.flip),
            transforms.RandomApply([jitter], v.jitter),
            transforms.RandomGrayscale(v.grey),
            transforms.RandomApply([transforms.GaussianBlur(kernel, sigma)], v.blur),
            transforms.ToTensor(),
        ]
    )

    def ours() -> int:
        two_views(images, v, image_size=size, seed=0)
        return BATCH

    def peer() -> int:
        torch.stack([one(picture) for picture in pictures for _ in range(2)])
        return BATCH

    return rates(ours, peer)


def evaluation() -> tuple[float, float]:
    """Episodes on 64 features: all in a few operations, and one episode at a time."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(16 * 600, 64, generator=generator)
    classes = list(np.arange(16 * 600).reshape(16, 600))
    episodes = sample_episodes(
        classes,
        dataset="bench",
        split="val",
        ways=5,
        shots=5,
        queries=15,
        episodes=EPISODES,
        seed=0,
    )
    mean = features.mean(0)
    truth = torch.arange(5).repeat_interleave(15)

    def ours() -> int:
        evaluate_episodes(features, episodes, mean=mean, normalize="cl2n", metric="cosine")
        return EPISODES

    def peer() -> int:
        normalized = torch.nn.functional.normalize(features - mean, dim=1)
        for support, query in zip(episodes.support, episodes.query, strict=True):
            scores = prototype_scores(
                normalized[torch.tensor(support)][None],
                normalized[torch.tensor(query).flatten()][None],
                "cosine",
            )
            (scores[0].argmax(1) == truth).float().mean().item()
        return EPISODES

    return rates(ours, peer)


def rendering(size: int) -> tuple[float, float]:
    """Curriculum images of all levels: a batch at once, and the same code image by image."""
    levels = ("BASIC", "TEXTURE", "OBJECT", "ADVERSARIAL")

    def ours() -> int:
        for level in levels:
            render(level, torch.arange(BATCH), seed=0, image_size=size)
        return len(levels) * BATCH

    def peer() -> int:
        for level in levels:
            for index in range(8):
                render(level, torch.tensor([index]), seed=0, image_size=size)
        return len(levels) * 8

    return rates(ours, peer)


def pruned_network() -> tuple[EvolvableCNN, EvolvableCNN]:
    """A 64-128-192-256 network after a few steps, and what NASE leaves of it without 30 %."""
    size, batch, steps = 32, 64, 12
    generator = torch.Generator().manual_seed(0)
    dense = EvolvableCNN(
        Architecture.seed((64, 128, 192, 256), resolution=size), generator=generator
    )
    learner = Learner(dense, ProjectionHead(256, generator=generator))
    optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-3)
    images = render("OBJECT", torch.arange(steps * batch), seed=0, image_size=size)
    first, second = two_views(images, load(["hardware=cpu"]).views, image_size=size, seed=0)

    def losses(turns: range) -> Iterator[torch.Tensor]:
        for turn in turns:
            rows = slice(turn * batch, (turn + 1) * batch)
            z1, z2 = learner(torch.cat((first[rows], second[rows])))[1].chunk(2)
            yield nt_xent(z1, z2, 0.5)

    for loss in losses(range(steps - 4)):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    router = SparseRouter(0.3, min_channels=8, round_to=8)
    router.update_masks(dense, losses(range(steps - 4, steps)))
    pruned = copy.deepcopy(dense)
    router.prune_permanently(pruned)
    recalibrate(pruned, first.split(batch))
    return dense.eval(), pruned.eval()


def inference(dense: EvolvableCNN, pruned: EvolvableCNN, batch: int) -> tuple[float, float]:
    """Images per second of the pruned and of the dense network: batch over the median latency."""
    found: tuple[list[float], list[float]] = ([], [])
    repeats = 640 // (batch + 16)
    for _ in range(ROUNDS):
        for latencies, net in zip(found, (pruned, dense), strict=True):
            latencies.append(latency_ms(net, 32, batch, repeats=repeats, warmup=2, device="cpu"))
    return 1000 * batch / statistics.median(found[0]), 1000 * batch / statistics.median(found[1])


class LoggingCost(NamedTuple):
    """Steps per minute without tracking, and by what part of itself a step takes longer with it.

    One value per pair of turns.
    """

    untracked: float
    costs: list[float]

    def row(self, name: str) -> tuple[str, str, float, float]:
        """The median of the pairs; its 95 % interval and their quartiles go into the name."""
        low, middle, high = statistics.quantiles(self.costs, n=4)
        # 1.25: of a median's standard error to a mean's; 1.35: of the quartiles' distance to s.
        error = 1.96 * 1.25 * (high - low) / 1.35 / len(self.costs) ** 0.5
        cost = f"costs {middle:.2%} ± {error:.2%} of a step, quartiles {low:.2%} to {high:.2%}"
        what = f"training, {name} every {INTERVAL_STEPS} steps, steps/min ({cost})"
        return (what, "tracking off", self.untracked / (1 + middle), self.untracked)


def logging_costs() -> tuple[LoggingCost, LoggingCost]:
    """Training steps with metrics to MLflow (SQLite): as a run does, and one call per figure.

    The ways take turns in one process, in an order that is turned around from one round to the
    next, and each is compared with the turn of its round that has no sink at all. In a turn
    everything is logged `TIMES` times as often as in a run (and one delivery, off the training
    thread, falls into every turn of ours); a run's cost is that part of what is found.
    """
    logging.disable(logging.CRITICAL)  # of MLflow's naive use
    generator = torch.Generator().manual_seed(0)
    net = EvolvableCNN(Architecture.seed((16, 32, 64), resolution=32), generator=generator)
    learner = Learner(net, ProjectionHead(64, generator=generator))
    optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-3)
    images = torch.randn(2 * 64, 3, 32, 32, generator=generator)
    done = waits = 0

    def steps(tell: Callable[[int], object]) -> float:
        nonlocal done
        began, first = time.perf_counter(), done
        while (elapsed := time.perf_counter() - began) < SECONDS_A_TURN:
            z1, z2 = learner(images)[1].chunk(2)
            optimizer.zero_grad()
            nt_xent(z1, z2, 0.5).backward()
            optimizer.step()
            done += 1
            if done % (INTERVAL_STEPS // TIMES) == 0:
                tell(done)
        return 60 * (done - first) / elapsed

    with tempfile.TemporaryDirectory() as folder:
        uri = f"sqlite:///{folder}/mlflow.db"
        directory = Path(folder) / "run"
        mlflow_sink = MlflowSink(uri, "bench", required=True, flush_seconds=0.8 * SECONDS_A_TURN)
        tracker = Tracker([JsonlSink(), mlflow_sink])
        directory.mkdir()
        (directory / "config.yaml").write_text("seed: 0")
        tracker.open(RunInfo(directory, "bench", "bench", directory / "config.yaml", 1))
        import mlflow  # after ours, which makes it quiet

        client = mlflow.MlflowClient(uri)
        naive = client.create_run(client.create_experiment("naive")).info.run_id

        def told(step: int) -> None:
            tracker.metrics(FIGURES, step)

        def told_one_by_one(step: int) -> None:
            for name, value in FIGURES.items():
                client.log_metric(naive, name, value, step=step)

        def delivered() -> None:
            """Wait until nothing is on its way, so that the next delivery is a whole pause off."""
            nonlocal waits
            waits += 1
            tracker.metrics({"waits": waits}, waits)
            while client.get_run(tracker.run_id).data.metrics.get("waits") != waits:
                time.sleep(0.01)

        null = Sink()
        ways: dict[str, Callable[[int], object]] = {
            "off": lambda step: null.metrics(FIGURES, step),
            "ours": told,
            "naive": told_one_by_one,
        }
        found: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(TURNS + 1):
            for name in list(ways)[:: 1 if turn % 2 else -1]:
                delivered()
                speed = steps(ways[name])
                if turn:
                    found[name].append(speed)
        tracker.close("FINISHED")
    untracked = statistics.median(found["off"])

    def cost(name: str) -> LoggingCost:
        pairs = zip(found[name], found["off"], strict=True)
        return LoggingCost(untracked, [(off / way - 1) / TIMES for way, off in pairs])

    return cost("ours"), cost("naive")


def rows() -> Iterator[tuple[str, str, float, float]]:
    """Name, peer, our rate, the peer's rate."""
    for size in (32, 84):
        name = f"two views, {size} px, images/s"
        yield (name, "torchvision, one image at a time", *views(size))
    yield ("5-way 5-shot, episodes/s", "one episode at a time", *evaluation())
    for size in (32, 84):
        yield (f"curriculum, {size} px, images/s", "one image at a time", *rendering(size))
    dense, pruned = pruned_network()
    widths = "-".join(map(str, pruned.architecture.channels))
    for batch in (1, 64):
        name = f"pruned by 30 % to {widths}, 32 px, batch {batch}, images/s"
        yield (name, "dense 64-128-192-256", *inference(dense, pruned, batch))
    ours, naive = logging_costs()
    yield ours.row("metrics to MLflow by the run's sink")
    yield naive.row("metrics to MLflow by one mlflow.log_metric each")


def main() -> None:
    """Print the table."""
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, {threads} threads, medians of {ROUNDS}\n")
    print("| what | peer | ours | peer's | ratio |\n| --- | --- | --- | --- | --- |")
    for name, peer, ours, theirs in rows():
        print(f"| {name} | {peer} | {ours:,.0f} | {theirs:,.0f} | {ours / theirs:.3g} × |")


if __name__ == "__main__":
    main()
