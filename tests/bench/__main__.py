"""Time each operation beside the alternative one would write first, alternated, medians of 5.

Prints a Markdown table: images (or episodes) per second of ours and of the peer, and the ratio.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator

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

ROUNDS = 5
BATCH = 256
EPISODES = 600


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


def main() -> None:
    """Print the table."""
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, {threads} threads, medians of {ROUNDS}\n")
    print("| what | peer | ours | peer's | ratio |\n| --- | --- | --- | --- | --- |")
    for name, peer, ours, theirs in rows():
        print(f"| {name} | {peer} | {ours:,.0f} | {theirs:,.0f} | {ours / theirs:.1f} × |")


if __name__ == "__main__":
    main()
