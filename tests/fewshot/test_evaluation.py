from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sseg_nase.data.episodes import EpisodeList, sample_episodes
from sseg_nase.fewshot.classifiers import METRICS, NORMALIZATIONS
from sseg_nase.fewshot.evaluation import embed, evaluate_episodes
from sseg_nase.hardware.memory import peak_memory_mb


class Store:
    """Random images; counts how often each is read."""

    def __init__(self, n: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (n, 3, 8, 8), generator=generator, dtype=torch.uint8)
        self.reads = np.zeros(n, dtype=int)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: np.ndarray) -> torch.Tensor:
        np.add.at(self.reads, indices, 1)
        return self.images[torch.from_numpy(indices)]


def small_network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def preprocess(images: torch.Tensor) -> torch.Tensor:
    return images.float() / 255


def clustered(classes: int, per_class: int, dim: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 1, dim, generator=generator) * 0.5 + 2
    noise = torch.randn(classes, per_class, dim, generator=generator)
    return (centres + noise).flatten(0, 1)


def draw(classes: int, per_class: int, shots: int, episodes: int, ways: int = 5) -> EpisodeList:
    return sample_episodes(
        np.split(np.arange(classes * per_class), classes),
        dataset="digits",
        split="val",
        ways=ways,
        shots=shots,
        queries=6,
        episodes=episodes,
        seed=3,
    )


def one_episode_at_a_time(
    features: torch.Tensor, episodes: EpisodeList, mean: torch.Tensor, normalize: str, metric: str
) -> list[float]:
    def prepared(index: int) -> torch.Tensor:
        feature = features[index] - mean if normalize == "cl2n" else features[index]
        return feature if normalize == "none" else feature / feature.norm()

    accuracies = []
    for support, query in zip(episodes.support, episodes.query, strict=True):
        prototypes = [sum(prepared(i) for i in images) / len(images) for images in support]
        right = 0
        for way, images in enumerate(query):
            for image in images:
                q = prepared(image)
                if metric == "cosine":
                    scores = [float(q @ p / (q.norm() * p.norm())) for p in prototypes]
                else:
                    scores = [-float(((q - p) ** 2).sum()) for p in prototypes]
                right += scores.index(max(scores)) == way
        accuracies.append(right / query.size)
    return accuracies


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("shots", [1, 5])
def test_all_at_once_equals_one_episode_at_a_time(metric: str, normalize: str, shots: int) -> None:
    features = clustered(classes=8, per_class=15, dim=12, seed=shots)
    mean = features.mean(dim=0) + 0.1
    episodes = draw(8, 15, shots, episodes=25)
    accuracies = evaluate_episodes(
        features, episodes, mean=mean, normalize=normalize, metric=metric, memory_mb=0.05
    )
    expected = one_episode_at_a_time(features, episodes, mean, normalize, metric)
    assert accuracies.tolist() == expected
    assert 0.2 < np.mean(expected) < 1


@pytest.mark.parametrize("metric", METRICS)
def test_chunks_do_not_change_the_result(metric: str) -> None:
    features = clustered(classes=6, per_class=20, dim=32, seed=0)
    episodes = draw(6, 20, 5, episodes=300)
    results = [
        evaluate_episodes(
            features,
            episodes,
            mean=features.mean(0),
            normalize="cl2n",
            metric=metric,
            memory_mb=memory,
        ).tolist()
        for memory in (1e-6, 0.3, 1024)
    ]
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("shots", "dim"), [(1, 64), (5, 8), (5, 200)])
def test_memory_stays_within_its_bound(metric: str, shots: int, dim: int) -> None:
    features = clustered(classes=6, per_class=20, dim=dim, seed=0)
    episodes = draw(6, 20, shots, episodes=2_000)

    class Evaluation(nn.Module):
        def __init__(self, memory_mb: float) -> None:
            super().__init__()
            self.memory_mb = memory_mb

        def forward(self, _: torch.Tensor) -> None:
            options = {"normalize": "none", "metric": metric, "memory_mb": self.memory_mb}
            evaluate_episodes(features, episodes, mean=None, **options)

    # One episode at a time leaves what does not depend on the chunks: the lists of indices.
    least = peak_memory_mb(Evaluation(1e-6), 1, 1)
    chunks = peak_memory_mb(Evaluation(4), 1, 1) - least
    assert 1 < chunks <= 4.1


def test_dead_features_are_at_chance() -> None:
    accuracies = evaluate_episodes(
        torch.ones(60, 4),
        draw(6, 10, 1, 20),
        mean=torch.ones(4),
        normalize="cl2n",
        metric="cosine",
        memory_mb=16,
    )
    assert accuracies.tolist() == [0.2] * 20


def test_ways_other_than_five() -> None:
    features = nn.functional.one_hot(torch.arange(3).repeat_interleave(10)).float()
    episodes = draw(3, 10, 2, episodes=4, ways=3)
    accuracies = evaluate_episodes(
        features, episodes, mean=None, normalize="none", metric="euclidean", memory_mb=16
    )
    assert accuracies.tolist() == [1.0] * 4


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_embeddings_are_the_networks_in_eval_mode(batch_size: int) -> None:
    network, store = small_network(), Store(20)
    with torch.no_grad():
        network[1].running_mean.fill_(0.3)
    features = embed(network, store, batch_size=batch_size, device="cpu", preprocess=preprocess)
    network.eval()
    with torch.no_grad():
        expected = torch.stack([network(preprocess(image[None]))[0] for image in store.images])
    assert features.shape == (20, 6)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    assert torch.allclose(features, expected, atol=1e-6)
    assert (store.reads == 1).all()


def test_embedding_leaves_the_network_as_it_was() -> None:
    network = small_network().train()
    network[1].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    embed(network, Store(5), batch_size=2, device="cpu", preprocess=preprocess)
    assert [part.training for part in network] == [True, False, True, True, True]
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_half_precision_networks_give_float32() -> None:
    features = embed(
        small_network().bfloat16(),
        Store(3),
        batch_size=2,
        device="cpu",
        preprocess=lambda images: preprocess(images).bfloat16(),
    )
    assert features.dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_what_the_cpu_gives() -> None:
    network, store = small_network(), Store(40)
    cpu = embed(network, store, batch_size=16, device="cpu", preprocess=preprocess)
    cuda = embed(network.cuda(), store, batch_size=16, device="cuda", preprocess=preprocess)
    assert cuda.device.type == "cuda"
    assert torch.allclose(cuda.cpu(), cpu, atol=1e-3)
    options = {"normalize": "cl2n", "metric": "cosine", "memory_mb": 16}
    episodes = draw(4, 10, 1, 50, ways=3)
    on_cpu = evaluate_episodes(cpu, episodes, mean=cpu.mean(0), **options)
    on_cuda = evaluate_episodes(cpu.cuda(), episodes, mean=cpu.mean(0).cuda(), **options)
    assert np.allclose(on_cpu, on_cuda, atol=1 / 18)
