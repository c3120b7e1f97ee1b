"""Evaluators without runs, and screens, on the command line: what they measure, and resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sseg_nase import stages
from sseg_nase.config.compose import continued, load
from sseg_nase.errors import UserError
from sseg_nase.nets.building import build, described
from sseg_nase.search import Log
from sseg_nase.searches import evaluators
from sseg_nase.searches.evaluators import batch_of
from sseg_nase.searches.task import check_search
from sseg_nase.stages import images_of
from tests.support.small_search import QUIET, measured, own, searched

CELLS = ("space=nb201", "space.settings={cells: 1, width: 4}")
TINY = ("task=search", "debug=tiny", *QUIET, "evaluation.episodes=10")
CHAIN = ("space=chain", "space.settings={most: 3, widths: [4, 8]}", "evaluator=inherited",
         "strategy=evolution", "strategy.population=2", "strategy.sample=1", "pretrain.epochs=1",
         "curriculum=natural", "pretrain.images_per_epoch=32", "hardware.batch_size=16",
         "evolution=none", "sparsity=none")  # fmt: skip
LABELS = ("ssl=none", "finetune=linear", "finetune.epochs=2", "finetune.validation_episodes=4")
BOTH = LABELS[1:]
PROXY = (*CELLS, "evaluator=proxy", "evaluator.batch=16", "strategy=evolution",
         "strategy.population=2", "strategy.sample=1")  # fmt: skip


CONVOLUTIONS = """

def convolutions(candidate):
    return {"accuracy": 10 * list(candidate.point.values()).count("nor_conv_3x3")}
"""


def log_of(path: Path) -> Log:
    return Log.read(path / "candidates.jsonl")


def cut_and_resumed(given: tuple[str, ...], most: int) -> Log:
    """Search; cut what came last out of its folder, go on, and return the log, the same again."""
    path = searched(*given, f"search.budget.candidates={most}")
    whole, log = log_of(path), path / "candidates.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
    log.write_text("".join(lines[:-3]), encoding="utf-8")
    cut = log_of(path)
    assert (len(cut.candidates), len(cut.told)) == (most - 1, most - 2)
    for weights in path.glob("weights/*.pt"):
        if cut.result(int(weights.stem)) is None:
            weights.unlink()
    (path / "status.json").write_text('{"status": "RUNNING"}', encoding="utf-8")
    searched(*continued([f"resume={path}"]), f"resume={path}")
    assert log_of(path).lines() == whole.lines()
    assert all(one.error is None for one in whole.told)
    return whole


@pytest.mark.slow  # the quick one is an example of the documentation, in test_search_own.py
def test_zero_cost_scores_are_searched_and_resumed() -> None:
    whole = cut_and_resumed((*TINY, *PROXY), 4)
    assert whole.objectives.goals == {"nwot": "max"}
    assert {"nwot", "params", "macs"} <= whole.told[0].scores.keys()
    assert len({one.scores["nwot"] for one in whole.told}) > 1


def test_the_batch_is_of_train_alone_with_every_class_and_no_image_twice() -> None:
    config = load(["debug=tiny", "hardware=cpu"])
    images, labels = batch_of(config, 24)
    store = images_of(config, config.dataset, "train")
    assert (images.shape[0], images.min() >= -1, images.max() <= 1) == (24, True, True)
    counts = np.bincount(labels.numpy())
    assert len(counts) == min(24, len(store.class_names))
    assert counts.max() - counts.min() <= 1
    known = {each.tobytes() for each in store.images}
    pixels = ((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    assert {each.tobytes() for each in pixels} <= known
    assert len({each.tobytes() for each in pixels}) == 24
    assert (batch_of(config, 24)[0] == images).all()
    with pytest.raises(UserError, match=r"Set evaluator\.batch to as many at most"):
        batch_of(config, 10**6)


@pytest.mark.slow  # tests/unit/search/test_inherited.py is quicker
@pytest.mark.parametrize(("training", "images"), [((), 32), (LABELS, 1792), (BOTH, 1824)])
def test_weights_are_inherited_and_resumed(training: tuple[str, ...], images: int) -> None:
    whole = cut_and_resumed((*TINY, *CHAIN, *training), 4)
    for one in whole.told:
        number = one.candidate.number
        assert (one.scores["inherited_from"] == -1) is (number == 0)
        assert one.scores["inherited_from"] < number
        assert (one.scores["inherited_params"] > 0) is (number > 0)
        assert one.cost.images == images
        assert one.cost.training_macs > 0
        assert one.scores["params"] > 0
        assert not [name for name in one.scores if "test" in name]
        assert 0 < one.scores["accuracy"] <= 100
        assert Path(str(one.run)).is_file()
    assert sum(bool(one.candidate.parents) for one in whole.told) >= 2


def test_what_is_inherited_has_been_trained_on_labels_and_is_what_was_scored() -> None:
    path = searched(*TINY, *CHAIN, *LABELS, "search.budget.candidates=2")
    log = log_of(path)
    assert [one.error for one in log.told] == [None, None]
    assert sorted(each.name for each in (path / "weights").iterdir()) == ["0.pt", "1.pt"]
    config, _ = stages.fitted(load([*TINY, *CHAIN, *LABELS, "task=pipeline"]))
    tasks = stages.tasks_of(config)
    for one in log.told:
        assert one.cost.training_macs > 0
        kept = torch.load(str(one.run), weights_only=True)
        network = build(described(kept["architecture"]))
        network.load_state_dict(kept["state"])
        evaluated = stages.evaluate(tasks, stages.Reached(network), torch.device("cpu"))
        found = [each["accuracy"] for each in evaluated.results.values()]
        assert np.mean(found) == pytest.approx(one.scores["accuracy"])


@pytest.mark.parametrize("training", [LABELS, BOTH], ids=["labels", "both"])
def test_a_classifier_goes_along_where_nothing_else_is_trained(
    training: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Any] = []
    fine_tune = stages.fine_tune

    def seen(*args: Any, head: Any = None, **more: Any) -> stages.Reached:
        begun.append(None if head is None else {k: v.clone() for k, v in head.items()})
        return fine_tune(*args, head=head, **more)

    monkeypatch.setattr(stages, "fine_tune", seen)
    path = searched(*TINY, *CHAIN, *training, "search.budget.candidates=2")
    first, second = (
        torch.load(path / "weights" / f"{number}.pt", weights_only=True) for number in range(2)
    )
    if training is BOTH:
        assert begun == [None, None]
        assert "head" not in first
        return
    assert log_of(path).told[1].scores["inherited_from"] == 0
    assert torch.equal(begun[0]["bias"], torch.zeros_like(begun[0]["bias"]))
    assert torch.equal(begun[1]["bias"], first["head"]["bias"])
    assert not torch.equal(second["head"]["bias"], first["head"]["bias"])


def test_a_candidate_whose_training_on_labels_diverges_has_failed() -> None:
    given = ("finetune.lr_encoder=1e15", "search.budget.candidates=2")
    with pytest.raises(UserError, match="none of 2 candidates has a score") as refused:
        searched(*TINY, *CHAIN, *LABELS, *given)
    assert "diverged in epoch 1" in str(refused.value)
    assert "checkpoint" not in str(refused.value)  # it has none


def test_a_predictor_learns_from_another_search_that_may_grow_or_go() -> None:
    first = searched(*TINY, *PROXY, "evaluator.proxies=[params]", "search.budget.candidates=6")
    given = (*TINY, *CELLS, "evaluator=predicted", f"evaluator.learnt_from={first}",
             "evaluator.predictor=ridge", "strategy=local", "strategy.starts=2")  # fmt: skip
    path = searched(*given, "search.budget.candidates=8")
    whole = log_of(path)
    assert whole.objectives.goals == {"params": "max"}
    values = [one.scores["params"] for one in log_of(first).told]
    assert min(values) / 2 < np.mean([one.scores["params"] for one in whole.told]) < 2 * max(values)
    with pytest.raises(UserError, match="that search was in another space"):
        searched(*TINY, "space=chain", "evaluator=predicted", f"evaluator.learnt_from={first}")
    # The other search goes away, and this one goes on with what it has learnt from.
    (first / "candidates.jsonl").write_text("", encoding="utf-8")
    lines = (path / "candidates.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (path / "candidates.jsonl").write_text("".join(lines[:-3]), encoding="utf-8")
    (path / "status.json").write_text('{"status": "RUNNING"}', encoding="utf-8")
    searched(*continued([f"resume={path}"]), f"resume={path}")
    assert log_of(path).lines() == whole.lines()


@pytest.mark.parametrize(
    "screen", [*(pytest.param(s, marks=pytest.mark.slow) for s in ("params", "nwot")), "ridge"]
)
def test_a_screen_lets_the_best_proposals_go_on(
    screen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six times as many are proposed; what goes on is better, and the same when it is resumed."""
    text = own(tmp_path).read_text(encoding="utf-8") + CONVOLUTIONS
    (tmp_path / "mine.py").write_text(text, encoding="utf-8")
    target = f"evaluator.target={tmp_path}/mine.py:convolutions"
    given = (*TINY, *CELLS, "evaluator.name=own", target, "strategy=random")
    monkeypatch.setitem(evaluators.SCREENING, "batch", 8)
    most = 20 if screen == "ridge" else 5
    plain = log_of(searched(*given, f"search.budget.candidates={most}"))
    asked = (*given, f"search.screen={screen}", "search.screen_factor=6")
    whole = cut_and_resumed(asked, most)
    late = slice(10, None) if screen == "ridge" else slice(None)
    means = [np.mean([s.scores["accuracy"] for s in log.told[late]]) for log in (whole, plain)]
    assert means[0] > means[1]
    if screen == "ridge":  # nothing to learn from before
        assert [c.key for c in whole.candidates[:10]] == [c.key for c in plain.candidates[:10]]


MISTAKES = [
    (("evaluator=proxy", "evaluator.proxies=[nwott]"), "no score 'nwott'. Did you mean 'nwot'"),
    (("evaluator=proxy", "evaluator.proxies=[]"), "evaluator.proxies="),
    (("evaluator=proxy", "search.slots=2"), "search.slots=2: it has no effect with"),
    (("evaluator=predicted",), "evaluator.learnt_from=null"),
    (("evaluator=predicted", "evaluator.learnt_from=x"), "not the directory of a search"),
    (("evaluator=inherited", "evolution=sseg"), "add evolution=none"),
    (("evaluator=inherited", "evolution=none", "sparsity=none", "evaluation.split=test"),
     "a search must not see test classes"),
    (("evaluator=inherited", "evolution=none", "sparsity=none", "ssl=none"), "choose a method"),
    (("evaluator=inherited", "evolution=none", "sparsity=none", *BOTH, "finetune.from=x"),
     "finetune.from=x: with evaluator=inherited"),
    (("evaluator=proxy", "search.objectives={accuracy/digits/test/5w1s: max}"), "is a test score"),
    (("evaluator=proxy", "search.caps={test_loss: 3}"), "is a test score"),
    (("evaluator=proxy", "search.screen=accuracy"), "no zero-cost score and no predictor"),
    (("evaluator=proxy", "search.screen=params", "strategy=asha"), "promotes must not be left out"),
    (("evaluator=proxy", "strategy=asha"), "strategy.fidelity=epochs: it has no effect"),
    (("evaluator=inherited", "evolution=none", "sparsity=none", "strategy=genetic",
      "strategy.fidelity=epochs", "strategy.least=1", "strategy.most=2"), "it has no effect"),
    (("evaluator=tabular", "evaluator.table=x.csv", "strategy=hyperband"), "it has no effect"),
    (("evaluator.batch=3",), "choose evaluator=proxy or leave it out"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "said"), MISTAKES)
def test_a_mistake_with_an_evaluator_is_said(given: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError) as refused:
        made(*given)
    assert said in str(refused.value)


def made(*given: str) -> None:
    """As far as a search goes before it has a folder."""
    check_search(load([*TINY, *CELLS, *given]), [])


def test_points_that_are_no_networks_have_no_zero_cost_score(tmp_path: Path) -> None:
    choices = "search.choices={optimizer.lr: [0.1, 0.2]}"
    with pytest.raises(UserError, match="describe no network"):
        searched(*TINY, choices, "evaluator=proxy")
    with pytest.raises(UserError, match=r"search\.screen=nwot: the points of space=overrides"):
        searched(*TINY, choices, *measured(tmp_path), "search.screen=nwot")
