"""The stage of fine-tuning around its loop: by what it chooses, what it keeps and hands on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sseg_nase.config.compose import load
from sseg_nase.config.schema import Config
from sseg_nase.data.store import ImageStore
from sseg_nase.errors import UserError
from sseg_nase.fewshot.evaluation import NotFiniteError
from sseg_nase.finetune.evolving import TuningProgress
from sseg_nase.finetune.learner import EpisodeLearner
from sseg_nase.stages import Evaluation, Reached, fine_tune, finetuning, labelled, seed_backbone
from sseg_nase.stages.evaluating import evaluate_before_tuning
from sseg_nase.stages.finetuning import selection_config
from sseg_nase.tracking.sink import Sink
from sseg_nase.training import checkpoint
from sseg_nase.training.divergence import DivergenceError

TINY = ["debug=tiny", "hardware=cpu", "hardware.precision=32-true", "dataset=digits"]


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("prototypical", ("prototype", "euclidean", "none")),
        ("matching", ("matching", "cosine", "none")),
        ("relation", ("relation", "cosine", "none")),
        ("r2d2", ("ridge", "cosine", "none")),
        ("linear", ("prototype", "cosine", "l2n")),
    ],
)
def test_the_best_network_is_chosen_as_it_is_trained(
    method: str, expected: tuple[str, str, str]
) -> None:
    headed = ["evaluation.method=relation", "evaluation.normalize=none"]
    own = [
        "evaluation.method=logistic",
        "evaluation.normalize=cl2n",
        "evaluation.query_balance=dirichlet",
        "evaluation.support_augmentations=2",
        "evaluation.top_k=[2]",
    ]
    config = load(
        [
            *TINY,
            f"finetune={method}",
            *(headed if method == "relation" else own),
            "evaluation.split=test",
            "evaluation.shots=[1,3]",
            "evaluation.seed=7",
            "finetune.shots=2",
            "finetune.validation_episodes=33",
        ]
    )
    chosen = selection_config(config).evaluation
    assert (chosen.method, chosen.metric, chosen.normalize) == expected
    # On val classes, whatever the results are of, and by episodes that are not theirs.
    assert (chosen.split, chosen.shots, chosen.episodes) == ("val", [2], 33)
    assert chosen.seed != config.evaluation.seed
    assert chosen.seed == selection_config(dataclasses.replace(config, seed=5)).evaluation.seed
    assert (chosen.query_balance, chosen.support_augmentations, chosen.top_k) == ("balanced", 0, [])
    assert (chosen.ways, chosen.queries) == (config.evaluation.ways, config.evaluation.queries)


class Loop:
    """Stands in for the loop: its best network is not its last one."""

    def __init__(self, config: Config, **given: Any) -> None:
        self.given, self.options = given, config.finetune
        self.began = {k: v.clone() for k, v in given["learner"].state_dict().items()}
        self.progress = TuningProgress(epoch=2, step=3, images_seen=10)
        self.loaded: Any = None
        self.validated: tuple[float, float] | None = None

    def state_dict(self) -> dict[str, Any]:
        learner = self.given["learner"]
        architecture = learner.backbone.architecture.to_dict()
        return {"architecture": architecture, "student": dict(learner.state_dict())}

    def load_state_dict(self, state: Any) -> None:
        self.loaded = state

    def fit(self) -> None:
        learner = self.given["learner"].train()
        state = {"finetune": dataclasses.asdict(self.progress)}
        self.validated = self.given["validate"](learner)
        self.given["save"]("best", {**state, **self.state_dict()})
        with torch.no_grad():
            for parameter in learner.parameters():
                parameter += 1
        self.given["save"]("last", {**state, **self.state_dict()})


@pytest.fixture
def loops(monkeypatch: pytest.MonkeyPatch) -> list[Loop]:
    made: list[Loop] = []
    monkeypatch.setattr(
        finetuning,
        "FineTuner",
        lambda config, **given: made.append(Loop(config, **given)) or made[0],
    )
    evaluated = Evaluation({"digits/val/5w1s": {"accuracy": 70.0, "ci95": 2.0}}, {}, {})
    monkeypatch.setattr(
        finetuning, "evaluate_named", lambda task, reached, device, views=1: evaluated
    )
    return made


BEFORE_SEEN = {"synthetic": 5, "real_unlabeled": 6, "real_labeled": 7}


def config_of(*further: str) -> Config:
    return load([*TINY, "finetune=prototypical", *further])


def before(config: Config) -> Reached:
    return Reached(seed_backbone(config), 100, BEFORE_SEEN, [{"index": 0}])


def test_the_best_network_is_handed_on_with_all_that_was_done_before(
    loops: list[Loop], tmp_path: Path
) -> None:
    config = config_of()
    found = fine_tune(config, before(config), Sink(), tmp_path, extra={"data": {"own": 1}})
    assert isinstance(found.network, EpisodeLearner)
    for name, tensor in found.network.state_dict().items():
        torch.testing.assert_close(tensor, loops[0].began[name])
    assert not any(module.training for module in found.network.modules())
    assert (found.step, found.history) == (103, [{"index": 0}])
    assert found.images_seen == {"synthetic": 5, "real_unlabeled": 6, "real_labeled": 17}
    assert BEFORE_SEEN["real_labeled"] == 7  # what was there before is left as it was
    assert found.name == f"checkpoint={tmp_path / 'checkpoints' / 'finetune_best.pt'}"
    assert loops[0].given["before"] == (0, 1, 100)  # epochs, mutations, steps
    for name in ("best", "last"):
        state = checkpoint.load(tmp_path / "checkpoints" / f"finetune_{name}.pt")
        assert (state["step"], state["history"]) == (103, [{"index": 0}])
        assert state["images_seen"] == found.images_seen
        assert state["options"]["name"] == "prototypical"
        assert state["classes"] == len(labelled(config).class_names)
        assert state["data"] == {"own": 1}


def test_the_validation_is_not_broken_off_and_tells_accuracy_and_interval(
    loops: list[Loop], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside: list[bool] = []
    now = [False]

    @contextmanager
    def at_once() -> Iterator[None]:
        now[0] = True
        yield
        now[0] = False

    evaluate = finetuning.evaluate_named
    monkeypatch.setattr(
        finetuning, "evaluate_named", lambda *given: inside.append(now[0]) or evaluate(*given)
    )
    config = config_of()
    fine_tune(config, before(config), Sink(), tmp_path, at_once=at_once)
    assert inside == [True]
    assert loops[0].validated == (70.0, 2.0)


def test_room_for_two_checkpoints_is_looked_for_before_anything_is_trained(
    loops: list[Loop], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Path, int]] = []
    monkeypatch.setattr(
        finetuning, "check_room", lambda folder, needed: asked.append((folder, needed))
    )
    config = config_of()
    fine_tune(config, before(config), Sink(), tmp_path)
    one = finetuning.size_of(loops[0].state_dict())
    assert asked == [(tmp_path, 2 * one)]
    assert loops[0].loaded is None
    state = {"finetune": {}}
    loops.clear()
    fine_tune(config, before(config), Sink(), tmp_path, state=state)
    assert loops[0].loaded is state
    assert len(asked) == 1  # its checkpoints are there already


@pytest.mark.parametrize(
    "error", [DivergenceError("loss is NaN."), NotFiniteError("embeddings are NaN.")]
)
def test_what_diverged_says_what_to_change_and_where_to_go_on(
    loops: list[Loop], tmp_path: Path, error: UserError, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Loop, "fit", lambda self: (_ for _ in ()).throw(error))
    config = config_of()
    with pytest.raises(UserError, match=r"NaN\. Change one or more of: finetune\.lr_encoder"):
        fine_tune(config, before(config), Sink(), tmp_path)


def test_where_the_images_lie_is_told(loops: list[Loop], tmp_path: Path) -> None:
    told: list[str] = []

    class Told(Sink):
        def event(self, kind: str, values: Any) -> None:
            told.append(f"{kind}: {values.get('text')}")

    config = config_of()
    fine_tune(config, before(config), Told(), tmp_path)
    assert any(text.startswith("message: data.placement=auto took") for text in told)


def test_the_head_before_tuning_is_the_one_that_tuning_begins_with(
    loops: list[Loop], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    headed = ["finetune=relation", "evaluation.method=relation", "evaluation.normalize=none"]
    config = load([*TINY, *headed])
    evaluated: list[Any] = []
    monkeypatch.setattr(
        "sseg_nase.stages.evaluating.evaluate_named",
        lambda task, reached, device, views=1: (
            evaluated.append(reached.network) or Evaluation({}, {}, {})
        ),
    )
    task: Any = type("Task", (), {"config": config})()
    reached = before(config)
    evaluate_before_tuning([task], reached, torch.device("cpu"))
    untrained = {k: v.clone() for k, v in evaluated[0].head.state_dict().items()}
    fine_tune(config, reached, Sink(), tmp_path)
    for name, tensor in untrained.items():
        torch.testing.assert_close(loops[0].began[f"head.{name}"], tensor)


@pytest.mark.parametrize(("classes", "refused"), [(1, True), (2, False)])
def test_labels_are_those_of_two_classes_at_least(
    monkeypatch: pytest.MonkeyPatch, classes: int, refused: bool
) -> None:
    store = ImageStore.from_arrays(
        np.zeros((classes, 2, 2, 3), np.uint8),
        np.arange(classes),
        [f"c{label}" for label in range(classes)],
    )
    splits: list[str] = []
    monkeypatch.setattr(
        finetuning, "images_of", lambda config, dataset, split: splits.append(split) or store
    )
    if refused:
        with pytest.raises(UserError, match="train split has 1 class"):
            labelled(config_of())
    else:
        assert labelled(config_of()) is store
    assert splits == ["train"]
