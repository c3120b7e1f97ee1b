from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sseg_nase.config.compose import load
from sseg_nase.config.schema import EvaluationConfig
from sseg_nase.data.episodes import EpisodeList, sample_episodes
from sseg_nase.data.random import derive
from sseg_nase.data.views import apply_views, draw_parameters
from sseg_nase.fewshot.classifiers import METRICS, NORMALIZATIONS
from sseg_nase.fewshot.evaluation import Evaluated, embed, embed_views, evaluate_episodes
from sseg_nase.fewshot.methods import METHODS, Method
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


CONFIG = load()


def options(**changed: Any) -> EvaluationConfig:
    return dataclasses.replace(CONFIG.evaluation, **changed)


def evaluate(
    features: torch.Tensor,
    episodes: EpisodeList,
    mean: torch.Tensor | None = None,
    support_features: torch.Tensor | None = None,
    **changed: Any,
) -> Evaluated:
    evaluation = options(**changed)
    return evaluate_episodes(
        features,
        episodes,
        METHODS[evaluation.method],
        evaluation,
        mean=mean,
        classes=int(episodes.classes.max()) + 1,
        support_features=support_features,
    )


def draw(
    classes: int,
    per_class: int,
    shots: int,
    episodes: int,
    ways: int = 5,
    alpha: float | None = None,
) -> EpisodeList:
    return sample_episodes(
        np.split(np.arange(classes * per_class), classes),
        dataset="digits",
        split="val",
        ways=ways,
        shots=shots,
        queries=6,
        episodes=episodes,
        seed=3,
        dirichlet_alpha=alpha,
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
    accuracies = evaluate(
        features, episodes, mean, normalize=normalize, metric=metric, memory_mb=0.05
    ).accuracies
    expected = one_episode_at_a_time(features, episodes, mean, normalize, metric)
    assert accuracies.tolist() == expected
    assert 0.2 < np.mean(expected) < 1


@pytest.mark.parametrize("metric", METRICS)
def test_chunks_do_not_change_the_result(metric: str) -> None:
    features = clustered(classes=6, per_class=20, dim=32, seed=0)
    episodes = draw(6, 20, 5, episodes=300)
    results = [
        evaluate(features, episodes, features.mean(0), metric=metric, memory_mb=memory)
        for memory in (1e-6, 0.3, 1024)
    ]
    for other in results[1:]:
        assert np.array_equal(results[0].accuracies, other.accuracies)
        assert np.array_equal(results[0].confusion, other.confusion)


@pytest.mark.parametrize("method", METHODS)
def test_chunks_do_not_change_what_a_method_says(method: str) -> None:
    """But for rounding, which may turn a query that lies between two classes."""
    features = clustered(classes=6, per_class=20, dim=32, seed=0).relu()
    episodes = draw(6, 20, 5, episodes=60)
    alone, few, all_at_once = (
        evaluate(features, episodes, normalize="none", method=method, memory_mb=memory).accuracies
        for memory in (1e-6, 0.3, 1024)
    )
    assert np.abs(alone - few).sum() <= 2 / 30
    assert np.abs(alone - all_at_once).sum() <= 2 / 30


@pytest.mark.parametrize(
    ("method", "metric"),
    [("prototype", "euclidean"), *((method, "cosine") for method in METHODS)],
)
@pytest.mark.parametrize(
    ("shots", "dim"), [(1, 64), (5, 8), pytest.param(5, 200, marks=pytest.mark.slow)]
)
def test_memory_stays_within_its_bound(method: str, metric: str, shots: int, dim: int) -> None:
    features = clustered(classes=6, per_class=20, dim=dim, seed=0)
    episodes = draw(6, 20, shots, episodes=900)
    given = CONFIG.evaluation
    changed = {
        "normalize": "none",
        "metric": metric,
        "method": method,
        # Few steps: what lives at the same time does not depend on them.
        "linear": dataclasses.replace(given.linear, steps=2),
        "logistic": dataclasses.replace(given.logistic, regularization=10.0),
        "sinkhorn": dataclasses.replace(given.sinkhorn, updates=2, scalings=2),
    }

    class Evaluation(nn.Module):
        def __init__(self, memory_mb: float) -> None:
            super().__init__()
            self.memory_mb = memory_mb

        def forward(self, _: torch.Tensor) -> None:
            evaluate(features, episodes, memory_mb=self.memory_mb, **changed)

    # A few episodes at a time leave what does not depend on the chunks: the lists of indices.
    least = peak_memory_mb(Evaluation(0.4), 1, 1) - 0.4
    chunks = peak_memory_mb(Evaluation(4), 1, 1) - least
    assert 1 < chunks <= 4.1


def test_dead_features_are_at_chance() -> None:
    accuracies = evaluate(torch.ones(60, 4), draw(6, 10, 1, 20), torch.ones(4)).accuracies
    assert accuracies.tolist() == [0.2] * 20


def test_ways_other_than_five() -> None:
    features = nn.functional.one_hot(torch.arange(3).repeat_interleave(10)).float()
    episodes = draw(3, 10, 2, episodes=4, ways=3)
    accuracies = evaluate(features, episodes, normalize="none", metric="euclidean").accuracies
    assert accuracies.tolist() == [1.0] * 4


@pytest.mark.parametrize("alpha", [None, 1.0])
@pytest.mark.parametrize("method", METHODS)
def test_top_k_and_confusion_equal_a_slow_loop(method: str, alpha: float | None) -> None:
    features = clustered(classes=7, per_class=35, dim=12, seed=1).relu()
    episodes = draw(7, 35, 2, episodes=12, alpha=alpha)
    found = evaluate(features, episodes, normalize="none", method=method, top_k=[2, 4])
    evaluation = options(method=method)
    confusion = np.zeros((7, 7), dtype=np.int64)
    within = {2: 0, 4: 0}
    accuracies = []
    for e in range(12):
        support, query = (torch.tensor(x[e]) for x in (episodes.support, episodes.query))
        images = features[support][None], features[query.flatten()][None]
        scores = METHODS[method].scores(*images, evaluation)[0].tolist()
        right = 0
        for label, row in zip(episodes.labels[e], scores, strict=True):
            order = sorted(range(5), key=lambda n: -row[n])
            confusion[episodes.classes[e, label], episodes.classes[e, order[0]]] += 1
            right += order[0] == label
            for k in within:
                within[k] += label in order[:k]
        accuracies.append(right / 30)
    assert found.accuracies.tolist() == accuracies
    assert np.array_equal(found.confusion, confusion)
    assert found.top_k == {k: pytest.approx(count / 360) for k, count in within.items()}
    assert 0.25 < np.mean(accuracies) < found.top_k[2] < found.top_k[4] < 1


def test_of_equal_scores_the_first_class_comes_first_in_top_k_too() -> None:
    evaluated = evaluate(torch.ones(60, 4), draw(6, 10, 1, 20), torch.ones(4), top_k=[2, 3])
    assert evaluated.top_k == {2: 0.4, 3: pytest.approx(0.6)}


def test_a_method_may_be_made_around_a_head() -> None:
    """What a trained head needs: any function of support and query, with its own options."""
    head = nn.Linear(12, 3)
    method = Method(
        lambda support, query, _: -torch.cdist(head(query), head(support).mean(2)),
        label=lambda _: "headed",
        entries=lambda s: 2 * (s.support + s.queries) * s.features,
    )
    features = clustered(classes=6, per_class=10, dim=12, seed=0)
    listed = draw(6, 10, 1, 20)
    found = evaluate_episodes(
        features, listed, method, options(normalize="none"), mean=None, classes=6
    )
    with torch.no_grad():
        expected = evaluate(head(features), listed, normalize="none", metric="euclidean")
    assert found.accuracies.tolist() == expected.accuracies.tolist()


def test_the_support_may_have_embeddings_of_its_own() -> None:
    features = clustered(classes=6, per_class=10, dim=12, seed=0)
    others = clustered(classes=6, per_class=10, dim=12, seed=1)
    episodes = draw(6, 10, 2, episodes=20)
    mean = features.mean(0)
    found = evaluate(features, episodes, mean, support_features=others)
    normalized = [NORMALIZATIONS["cl2n"](f, mean) for f in (features, others)]
    both = torch.cat(normalized)
    moved = EpisodeList(
        "digits", "val", 3, episodes.classes.copy(), episodes.support + 60, episodes.query.copy()
    )
    assert found.accuracies.tolist() == evaluate(both, moved, normalize="none").accuracies.tolist()
    assert found.accuracies.mean() < evaluate(features, episodes, mean).accuracies.mean()


def test_embeddings_of_views_equal_a_slow_loop_and_do_not_depend_on_the_others() -> None:
    network, store = small_network().eval(), Store(12)
    chosen = np.array([1, 4, 5, 11])
    made = {"count": 3, "image_size": 8, "seed": 5, "device": "cpu"}
    found = embed_views(network, store, chosen, CONFIG.views, batch_size=3, **made)
    parameters = draw_parameters(36, CONFIG.views, height=8, width=8, seed=derive(5, "support"))
    for row, index in zip(found, chosen, strict=True):
        drawn = [
            apply_views(store.images[index][None], parameters[torch.tensor([i])], image_size=8)[0]
            for i in (index, 12 + index, 24 + index)
        ]
        with torch.no_grad():
            expected = sum(network(view)[0] for view in drawn) / 3
        assert torch.allclose(row, expected, atol=1e-6)
    alone = embed_views(network, store, chosen[2:3], CONFIG.views, batch_size=64, **made)
    assert torch.allclose(alone[0], found[2], atol=1e-6)


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
    episodes = draw(4, 10, 1, 50, ways=3)
    for method in METHODS:
        on_cpu = evaluate(cpu, episodes, cpu.mean(0), method=method).accuracies
        on_cuda = evaluate(cpu.cuda(), episodes, cpu.mean(0).cuda(), method=method).accuracies
        assert np.allclose(on_cpu, on_cuda, atol=1 / 18)
