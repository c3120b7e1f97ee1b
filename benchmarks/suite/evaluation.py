"""Few-shot evaluation of Conv4-64 at 32 px: 5 ways, 5 shots, 15 queries, nearest prototype."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Sampler

from benchmarks.suite.child import Work, scratch
from benchmarks.suite.rows import class_folders
from benchmarks.suite.setting import device, plain, program
from sseg_nase.data.benchmarks.digits import load as digits
from sseg_nase.data.episodes import EpisodeList, sample_episodes
from sseg_nase.fewshot.classifiers import prototype_scores
from sseg_nase.fewshot.evaluation import evaluate_episodes
from sseg_nase.fewshot.methods import METHODS
from sseg_nase.hardware.profiles import cores
from sseg_nase.nets.evolvable import EvolvableCNN
from sseg_nase.stages import Reached, evaluate, fewshot_tasks, seed_learner

SIZE, WAYS, SHOTS, QUERIES = 32, 5, 5, 15
CONV4 = ("backbone.channels=[64,64,64,64]", "backbone.embedding=flatten")
PROTOTYPES = ("evaluation.normalize=none", "evaluation.metric=euclidean")


def ours(episodes: int) -> Work:
    """From opening the image store to the accuracies.

    The store, like the peer's files, was written before; it lies in a cache of its own.
    """
    folder = scratch()
    val = _val(folder)
    config = program(
        "dataset=folder",
        f"dataset.root={val.parent}",
        f"dataset.image_size={SIZE}",
        f"paths.cache_dir={folder}/cache",
        f"evaluation.ways={WAYS}",
        f"evaluation.shots=[{SHOTS}]",
        f"evaluation.queries={QUERIES}",
        f"evaluation.episodes={episodes}",
        "evaluation.split=val",
        *CONV4,
        *PROTOTYPES,
    )
    backbone = seed_learner(config).backbone

    def work() -> float:
        evaluate(fewshot_tasks(config), Reached(backbone), device())
        return episodes

    return work


def easyfsl(episodes: int) -> Work:
    """Easyfsl's evaluate on its own dataset of image files; every episode embeds its images."""
    # Its sampler hands an argument on that torch no longer takes.
    Sampler.__init__ = lambda self, data_source=None: None  # type: ignore
    from easyfsl.datasets import EasySet
    from easyfsl.methods import PrototypicalNetworks
    from easyfsl.samplers import TaskSampler
    from easyfsl.utils import evaluate

    folder = scratch()
    classes = sorted(_val(folder).iterdir())
    specs = folder / "specs.json"
    roots = {"class_names": [c.name for c in classes], "class_roots": [str(c) for c in classes]}
    specs.write_text(json.dumps(roots), encoding="utf-8")
    images = EasySet(specs, image_size=SIZE)
    sampler = TaskSampler(images, WAYS, SHOTS, QUERIES, episodes)
    batches = DataLoader(
        images,
        batch_sampler=sampler,
        num_workers=cores(),
        persistent_workers=True,
        pin_memory=torch.cuda.is_available(),
        collate_fn=sampler.episodic_collate_fn,
    )
    model = PrototypicalNetworks(plain(_conv4())).to(device())

    def work() -> float:
        evaluate(model, batches, device=str(device()), use_tqdm=False)
        return episodes

    return work


def on_features(episodes: int) -> Work:
    """All episodes in a few tensor operations, on features that are there."""
    features, mean, listed = _features(episodes)
    evaluation = program().evaluation

    def work() -> float:
        method = METHODS[evaluation.method]
        evaluate_episodes(features, listed, method, evaluation, mean=mean, classes=16)
        return episodes

    return work


def one_at_a_time(episodes: int) -> Work:
    """The same episodes in a loop."""
    features, mean, listed = _features(episodes)
    truth = torch.arange(WAYS, device=device()).repeat_interleave(QUERIES)

    def work() -> float:
        normalized = torch.nn.functional.normalize(features - mean, dim=1)
        for support, query in zip(listed.support, listed.query, strict=True):
            scores = prototype_scores(
                normalized[torch.tensor(support)][None],
                normalized[torch.tensor(query).flatten()][None],
                "cosine",
            )
            (scores[0].argmax(1) == truth).float().mean().item()
        return episodes

    return work


def _conv4() -> EvolvableCNN:
    return seed_learner(program(*CONV4, f"dataset.image_size={SIZE}")).backbone


def _val(folder: Path) -> Path:
    """CIFAR-FS's val split where it is there, else digits written to `folder`: a folder a class."""
    if (real := class_folders()) is not None:
        return real
    store = digits("val", SIZE)
    for index, label in enumerate(store.labels):
        path = folder / "val" / store.class_names[label] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(store.images[index])).save(path)
    return folder / "val"


def _features(episodes: int) -> tuple[torch.Tensor, torch.Tensor, EpisodeList]:
    """Random features of 16 classes of 600 images, their mean, and episodes on them."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(16 * 600, 64, generator=generator).to(device())
    listed = sample_episodes(
        list(np.arange(16 * 600).reshape(16, 600)),
        dataset="bench",
        split="val",
        ways=WAYS,
        shots=SHOTS,
        queries=QUERIES,
        episodes=episodes,
        seed=0,
    )
    return features, features.mean(0), listed
