"""What a network is worth: which images it is evaluated on, and what is told of the accuracy."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sseg_nase.config.compose import load
from sseg_nase.config.schema import Config, DatasetConfig
from sseg_nase.data.store import ImageStore
from sseg_nase.errors import UserError
from sseg_nase.fewshot.evaluation import NotFiniteError
from sseg_nase.finetune.learner import EpisodeLearner
from sseg_nase.hardware.complexity import count_macs
from sseg_nase.nets.backbone import Backbone
from sseg_nase.rundir.confusion import Confusion
from sseg_nase.stages import (
    Evaluation,
    FewShotTask,
    Reached,
    check_head,
    doubted,
    efficiency,
    evaluate,
    evaluate_before_tuning,
    evaluate_best,
    evaluating,
    seed_backbone,
)
from sseg_nase.training import checkpoint

CPU = torch.device("cpu")
TINY = [
    "debug=tiny",
    "hardware=cpu",
    "hardware.precision=32-true",
    "dataset=digits",
    "dataset.image_size=8",
    "evaluation.ways=2",
    "evaluation.queries=3",
    "evaluation.episodes=6",
]


@cache
def config_of(*further: str) -> Config:
    return load([*TINY, *further])


@pytest.fixture
def splits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which splits of which data sets are read; each has images of its own, seven a class."""
    read: list[str] = []

    def images_of(config: Config, dataset: DatasetConfig, split: str) -> ImageStore:
        read.append(f"{dataset.name}/{split}")
        size, channels = config.dataset.image_size, config.dataset.channels
        rng = np.random.default_rng(list(read[-1].encode()))
        pixels = rng.integers(0, 256, (28, size, size, channels), np.uint8)
        names = [f"{split}-{label}" for label in "abcd"]
        return ImageStore.from_arrays(pixels, np.repeat(np.arange(4), 7), names)

    monkeypatch.setattr(evaluating, "images_of", images_of)
    return read


def task_of(*further: str, dataset: str | None = None) -> FewShotTask:
    config = config_of(*further)
    evaluated = config.dataset
    return FewShotTask(config, dataclasses.replace(evaluated, name=dataset or evaluated.name))


# -- the images ------------------------------------------------------------------------------------


def test_features_are_centred_by_the_train_images_of_the_data_set_that_is_evaluated(
    splits: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of("evaluation.split=test", "evaluation.shots=[1]", dataset="omniglot")
    assert splits == ["omniglot/test", "omniglot/train"]
    network = seed_backbone(task.config)
    means: list[torch.Tensor | None] = []
    evaluate_episodes = evaluating.evaluate_episodes

    def watched(*given: Any, **more: Any) -> Any:
        means.append(more["mean"])
        return evaluate_episodes(*given, **more)

    monkeypatch.setattr(evaluating, "evaluate_episodes", watched)
    task.evaluate(network, CPU)
    assert task.base is not None
    embedded = evaluating.embed(
        network.for_inference(),
        task.base,
        batch_size=64,
        device=CPU,
        preprocess=evaluating.normalize,
    )
    for mean in means:
        torch.testing.assert_close(mean, embedded.mean(0))
    splits.clear()
    assert task_of("evaluation.normalize=l2n", "evaluation.shots=[1]").base is None
    assert splits == ["digits/val"]


def test_every_number_of_shots_has_a_list_with_as_many_queries_as_asked_for(
    splits: list[str],
) -> None:
    task = task_of("evaluation.shots=[1,3,4]")
    assert [e.key for e in task.episodes] == [f"digits/val/2w{k}s" for k in (1, 3, 4)]
    assert {e.counts for e in task.episodes} == {None}
    assert {(e.queries, len(e)) for e in task.episodes} == {(3, 6)}
    unequal = task_of("evaluation.query_balance=dirichlet", "evaluation.shots=[1]").episodes[0]
    assert unequal.counts is not None
    other = task_of("evaluation.seed=1", "evaluation.shots=[1]").episodes[0]
    assert not np.array_equal(other.support, task.episodes[0].support)


def test_episodes_that_do_not_fit_name_what_does(splits: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        task_of("evaluation.shots=[1,5]")
    assert "All that fits at once: evaluation.ways=2 " in str(refused.value)
    with pytest.raises(UserError, match=r"evaluation\.ways=9.*fits at once: evaluation\.ways=4"):
        task_of("evaluation.ways=9", "evaluation.shots=[1]")


# -- the accuracy ----------------------------------------------------------------------------------


def test_what_is_told_of_an_accuracy_is_how_it_was_taken(splits: list[str]) -> None:
    task = task_of(
        "evaluation.shots=[1]",
        "evaluation.ways=3",
        "evaluation.method=sinkhorn",
        "evaluation.query_balance=dirichlet",
        "evaluation.dirichlet_alpha=0.5",
        "evaluation.queries=2",
        "evaluation.support_augmentations=2",
        "evaluation.top_k=[2]",
    )
    evaluated = task.evaluate(seed_backbone(task.config), CPU)
    assert list(evaluated.results) == ["digits/val/3w1s"]
    for key, result in evaluated.results.items():
        assert result["accuracy"] == pytest.approx(evaluated.accuracies[key].mean())
        assert result["episodes"] == 6
        assert result["method"] == "sinkhorn/free/cl2n/2views/dirichlet0.5"
        assert result["transductive"] is True
        assert result["queries"] == "dirichlet"
        assert 1 < result["accuracy"] < result["top_k"]["2"] < 100  # percent
        assert evaluated.confusions[key].counts.sum() == 6 * 6


def test_an_accuracy_of_a_network_that_tells_nothing_apart_is_doubted(splits: list[str]) -> None:
    task = task_of("evaluation.shots=[1]")
    network = seed_backbone(task.config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    [result] = task.evaluate(network, CPU).results.values()
    assert any("all embeddings are equal" in doubt for doubt in result["doubts"])


def test_a_support_is_embedded_as_the_mean_of_the_image_and_its_views(
    splits: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of("evaluation.shots=[1,3]", "evaluation.support_augmentations=3")
    given: list[tuple[torch.Tensor, torch.Tensor]] = []
    evaluate_episodes = evaluating.evaluate_episodes

    def watched(embedded: torch.Tensor, *rest: Any, **more: Any) -> Any:
        given.append((embedded, more["support_features"]))
        return evaluate_episodes(embedded, *rest, **more)

    monkeypatch.setattr(evaluating, "evaluate_episodes", watched)
    monkeypatch.setattr(
        evaluating,
        "embed_views",
        lambda network, store, chosen, views, **more: torch.full((len(chosen), features), 8.0),
    )
    network = seed_backbone(task.config)
    features = network.architecture.features
    task.evaluate(network, CPU)
    used = np.unique(np.concatenate([e.support.reshape(-1) for e in task.episodes]))
    assert len(np.unique(task.episodes[0].support)) < len(used) < len(task.store)
    for embedded, of_support in given:
        expected = embedded.clone()
        expected[used] = (embedded[used] + 3 * 8) / 4
        torch.testing.assert_close(of_support, expected)


def test_the_pictured_embeddings_have_the_names_of_their_classes(
    splits: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = np.array([8, 9, 22, 15])  # of the classes b, b, d, c
    monkeypatch.setattr(evaluating, "chosen_images", lambda labels: chosen)
    task = task_of("evaluation.shots=[1]", "evaluation.normalize=l2n")
    network = seed_backbone(task.config)
    found = task.evaluate(network, CPU).embeddings
    assert found is not None
    assert [found.class_names[label] for label in found.labels] == [
        "val-b",
        "val-b",
        "val-d",
        "val-c",
    ]
    assert found.source == "digits/val"
    embedded = evaluating.embed(
        network.for_inference(),
        task.store,
        batch_size=64,
        device=CPU,
        preprocess=evaluating.normalize,
    )
    evaluated = torch.nn.functional.normalize(embedded[chosen], dim=1)  # as they are evaluated
    np.testing.assert_allclose(found.features, evaluated.numpy(), rtol=1e-4, atol=1e-6)


# -- several tasks, several networks ---------------------------------------------------------------


class Task:
    """Stands in for a task: its evaluation is given."""

    def __init__(self, name: str, fails: bool = False) -> None:
        self.images_key = f"{name}/val"
        self.fails = fails
        confusion = Confusion(np.eye(2, dtype=np.int64), ("a", "b"))
        key = f"{name}/val/5w1s"
        self.evaluation = Evaluation(
            {key: {"accuracy": 50.0}},
            {key: np.array([50.0])},
            {key: confusion},
            f"of {name}",  # type: ignore[arg-type]
        )

    def evaluate(self, network: Any, device: torch.device, views: int) -> Evaluation:
        if self.fails:
            raise NotFiniteError("the embeddings are not finite")
        return self.evaluation


def test_all_tasks_are_evaluated_and_the_first_is_pictured() -> None:
    tasks: list[Any] = [Task("digits"), Task("omniglot")]
    evaluated = evaluate(tasks, Reached(seed_backbone(config_of())), CPU)
    keys = ["digits/val/5w1s", "omniglot/val/5w1s"]
    assert (
        list(evaluated.results) == list(evaluated.accuracies) == list(evaluated.confusions) == keys
    )
    assert evaluated.embeddings == "of digits"
    tasks[0].evaluation = tasks[0].evaluation._replace(embeddings=None)
    assert evaluate(tasks, Reached(seed_backbone(config_of())), CPU).embeddings == "of omniglot"


def test_a_network_that_cannot_be_evaluated_is_named_with_the_images() -> None:
    tasks: list[Any] = [Task("digits"), Task("omniglot", fails=True)]
    reached = Reached(seed_backbone(config_of()), name="checkpoint=x.pt")
    with pytest.raises(
        NotFiniteError, match=r"^checkpoint=x\.pt cannot be evaluated on dataset omniglot/val: the"
    ):
        evaluate(tasks, reached, CPU)


def test_before_tuning_a_head_has_as_many_ways_as_training_will_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    maml = ["finetune=maml", "evaluation.method=maml", "evaluation.normalize=none"]
    config = config_of(*maml, "finetune.ways=2")
    evaluated: list[Any] = []
    monkeypatch.setattr(
        evaluating, "evaluate", lambda tasks, reached, device: evaluated.append(reached.network)
    )
    task: Any = type("Task", (), {"config": config})()
    evaluate_before_tuning([task], Reached(seed_backbone(config)), CPU)
    assert isinstance(evaluated[0], EpisodeLearner)
    assert evaluated[0].head.out_features == config.finetune.ways == 2
    task.config = config_of()
    evaluate_before_tuning([task], Reached(seed_backbone(config)), CPU)
    assert isinstance(evaluated[1], Backbone)  # which needs no head
    check_head(Reached(evaluated[0]), config)
    three = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, ways=3))
    with pytest.raises(UserError, match=r"holds another head for evaluation\.ways=3"):
        check_head(Reached(evaluated[0]), three)
    with pytest.raises(UserError, match="holds no head of it"):
        check_head(Reached(evaluated[1]), config)
    check_head(Reached(evaluated[1]), config_of())


def test_doubts_of_the_last_and_of_the_best_network_are_told_apart() -> None:
    results = {
        "fewshot": {"a": {"doubts": ["one", "two"]}, "b": {"doubts": []}},
        "fewshot_best": {"b": {"doubts": ["three"]}},
        "fewshot_untrained": {"b": {"doubts": ["four"]}},
    }
    assert [said.partition(". Its")[0] for said in doubted(results)] == [
        "a, the last network: one",
        "a, the last network: two",
        "b, the best network: three",
    ]


@pytest.mark.parametrize("change", ["none", "weights", "statistics", "architecture"])
def test_the_best_network_is_evaluated_unless_it_is_the_last(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = seed_backbone(config_of())
    best = seed_backbone(
        config_of("backbone.channels=[8,16,16]") if change == "architecture" else config_of()
    )
    state = {f"backbone.{name}": tensor for name, tensor in best.state_dict().items()}
    if change in ("weights", "statistics"):
        name = [n for n in state if n.endswith("weight" if change == "weights" else "mean")][-1]
        state[name] = state[name] + 1
    about = {"epoch": 3, "step": 30, "student": state, "history": []}
    path = tmp_path / "best.pt"
    checkpoint.save(path, {**about, "architecture": best.architecture.to_dict()})
    of_last = Evaluation({}, {"a": np.array([40.0, 60.0])}, {})
    of_best = Evaluation({}, {"a": np.array([50.0, 80.0])}, {})
    evaluated: list[Reached] = []
    monkeypatch.setattr(
        evaluating, "evaluate", lambda tasks, reached, device: evaluated.append(reached) or of_best
    )
    told, found = evaluate_best([], path, last, of_last, CPU)
    assert (told["epoch"], told["step"]) == (3, 30)
    assert told["params"] == best.architecture.summary()["params"]
    if change == "none":
        assert evaluated == []
        assert found is of_last
        assert told["minus_last"]["a"]["mean"] == 0
    else:
        assert [reached.name for reached in evaluated] == [f"checkpoint={path}"]
        assert found is of_best
        assert told["minus_last"]["a"]["mean"] == 15


@pytest.mark.parametrize("channels", [1, 3])
def test_costs_are_those_of_the_images_that_the_network_takes(
    channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[tuple[int, int]] = []
    monkeypatch.setattr(
        evaluating,
        "latency_ms",
        lambda network, size, batch, **more: timed.append((batch, more["in_channels"])) or 1.0,
    )
    peaks: list[int] = []
    monkeypatch.setattr(
        evaluating,
        "peak_memory_mb",
        lambda network, size, batch, in_channels: peaks.append(in_channels) or 2.0,
    )
    config = config_of(f"dataset.channels={channels}", f"backbone.in_channels={channels}")
    network = seed_backbone(config)
    found = efficiency(network, 8, CPU)
    assert found["macs"] == count_macs(network, 8, channels)
    assert found["flops"] == 2 * count_macs(network, 8, channels)
    assert timed == [(1, channels), (64, channels)]
    assert peaks == [channels]
    assert found["params"] == sum(p.numel() for p in network.parameters())
