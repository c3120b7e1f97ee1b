"""The same short pretraining with our views and with torchvision's, evaluated on the same episodes.

`python -m benchmarks.suite.accuracy OVERRIDE ... --seeds 0 1 2` prints a Markdown table: mean and
95 % interval of every run, and the paired differences over episodes, and over seeds and episodes.
"""

from __future__ import annotations

import argparse
import itertools
import time
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from benchmarks.suite.setting import pictures
from benchmarks.suite.views import one_by_one
from sseg_nase.config.compose import load
from sseg_nase.config.schema import ViewsConfig
from sseg_nase.run import run
from sseg_nase.rundir.episodes import read_episodes
from sseg_nase.rundir.results import LAST
from sseg_nase.statistics import crossed_difference, mean_ci95, paired_difference

SCHEDULE = (
    "experiment=cifar_fs_32",
    "backbone=evolvable",
    "scheduler=cosine",
    "evolution=none",
    "sparsity=none",
    "pretrain.epochs=10",
    "evaluation.untrained_reference=false",
    "tracking=jsonl",
)


def reference_views(
    images: Tensor,
    views: ViewsConfig,
    *,
    image_size: int,
    seed: int,
    first: int = 0,
    of: int | None = None,
) -> Tensor:
    """In place of `make_views`: torchvision's transforms on PIL images, one at a time."""
    transform = one_by_one(views, image_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = [[transform(picture) for picture in pictures(images)] for _ in range(2)]
    return torch.stack([torch.stack(view) for view in made])


def accuracies(views: str, overrides: list[str]) -> tuple[dict[str, np.ndarray], float]:
    """Of every episode in percent, per list, and the minutes that the run took."""
    began = time.perf_counter()
    if views == "torchvision":
        with mock.patch("sseg_nase.training.measurements.make_views", reference_views):
            directory = run(load(overrides), overrides)
    else:
        directory = run(load(overrides), overrides)
    minutes = (time.perf_counter() - began) / 60
    return read_episodes(directory)[LAST], minutes


def main() -> None:
    """Train, evaluate, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, prog="python -m benchmarks.suite.accuracy"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("overrides", nargs="*", help="of the schedule's config")
    arguments = parser.parse_args()
    found: dict[str, list[dict[str, np.ndarray]]] = {"ours": [], "torchvision": []}
    lines = []
    for seed in arguments.seeds:
        for views, each in found.items():
            overrides = [*SCHEDULE, f"seed={seed}", *arguments.overrides]
            result, minutes = accuracies(views, overrides)
            each.append(result)
            cells = [f"{m:.2f} ± {ci:.2f} %" for m, ci in map(mean_ci95, result.values())]
            lines.append(f"| {views} | {seed} | {' | '.join(cells)} | {minutes:.1f} |")
    keys = list(found["ours"][0])
    print(f"| views | seed | {' | '.join(keys)} | minutes |\n|{' --- |' * (len(keys) + 3)}")
    print("\n".join(lines))
    print("\nours − torchvision, in points, on the same episodes; over seeds and episodes:")
    for key in keys:
        pairs = [(a[key], b[key]) for a, b in zip(*found.values(), strict=True)]
        each = [
            f"{d.mean:+.2f} ± {d.ci95:.2f}" for d in itertools.starmap(paired_difference, pairs)
        ]
        line = f"{key}: {', '.join(each)}"
        if len(pairs) > 1:
            whole = crossed_difference(np.stack([a - b for a, b in pairs]))
            line += f"; {whole.mean:+.2f} ± {whole.ci95:.2f}, p = {whole.p_value:.2f}"
        print(line)


if __name__ == "__main__":
    main()
