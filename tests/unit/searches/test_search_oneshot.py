"""`strategy=darts` and the other one-shot strategies, through the program."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import sseg_nase
from sseg_nase import stages
from sseg_nase.config.compose import continued, load
from sseg_nase.config.schema import ONE_SHOT
from sseg_nase.errors import UserError
from sseg_nase.nets.building import described
from sseg_nase.oneshot.training import OneShotTraining
from sseg_nase.rundir.status import status_of
from sseg_nase.search import Log
from sseg_nase.search.latency import LATENCY, LatencyTable
from sseg_nase.searches import oneshot
from sseg_nase.searches.folder import SearchFolder
from sseg_nase.spaces import named
from sseg_nase.training import checkpoint
from tests.support.small_search import QUIET, searched

ROOT = Path(sseg_nase.__file__).parents[1]
SPACE = ("space=nb201", "space.settings={cells: 1, width: 4}", "dataset.image_size=8")
SMALL = ("strategy.images=64", "strategy.batch_size=16", "strategy.epochs=2")
OF = {
    "darts": (),
    "pc_darts": ("strategy.partial=2", "strategy.warmup_epochs=0"),
    "proxyless": ("strategy.alpha_interval=1", "strategy.warmup_epochs=0"),
    "enas": ("strategy.controller_steps=1", "strategy.controller_samples=2", "strategy.samples=3"),
    "random_sharing": ("strategy.samples=3",),
}


def given(strategy: str, *more: str) -> list[str]:
    return ["task=search", *QUIET, *SPACE, f"strategy={strategy}", *SMALL, *OF[strategy], *more]


def log_of(path: Path) -> Log:
    return Log.read(path / "candidates.jsonl")


@pytest.mark.parametrize(
    "strategy", ["darts", *(pytest.param(s, marks=pytest.mark.slow) for s in ONE_SHOT[1:])]
)
def test_each_of_them_searches(
    strategy: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = searched(*given(strategy))
    lost = re.findall(r"epoch [12]/2: accuracy of the supernet [\d.]+", capsys.readouterr().out)
    assert len(lost) == (2 if strategy in ("darts", "pc_darts") else 0)
    assert status_of(path)["status"] == "FINISHED"
    log = log_of(path)
    epochs = [one.candidate.fidelity["supernet_epochs"] for one in log.told]
    assert epochs == [1, *[2] * (len(epochs) - 1)]
    for one in log.told:
        assert {"accuracy", "skips", "params", "macs"} <= one.scores.keys()
    assert log.spent.images > 0
    assert log.spent.training_macs > 0
    (line,) = (path / "mutations.jsonl").read_text().splitlines()
    record = json.loads(line)
    best = log.best({"supernet_epochs": 2})
    assert best is not None
    assert (record["kind"], record["target"]["chosen"]) == ("CHOOSE", best.candidate.point)
    assert record["trigger"]["inherits"] == (strategy != "pc_darts")
    _, architectures = stages.replayed(path)
    assert architectures[-1] == named("nb201", cells=1, width=4, resolution=8).describe(
        best.candidate.point
    )
    config = load(["dataset.image_size=8"])
    kept = stages.stored(path / "checkpoints" / "last.pt", config)
    assert kept.backbone.architecture == architectures[-1]
    seen = kept.images_seen["real_labeled"]
    assert seen == log.spent.images
    lines = [json.loads(line) for line in (path / "events.jsonl").read_text().splitlines()]
    gates = [line["values"] for line in lines if line["kind"] == "gates"]
    assert [each["epoch"] for each in gates] == [0, 1]
    for each in gates:
        assert all(sum(weights) == pytest.approx(1) for weights in each["weights"].values())
        mixes = strategy in ("darts", "pc_darts")
        assert ("supernet_accuracy" in each["scores"]) == mixes
    supernet = SearchFolder(path).plan["supernet"]
    assert any(node.op == "mixed" for node in described(supernet).nodes)  # type: ignore[attr-defined]


def test_what_was_interrupted_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = searched(*given("darts"))
    steps = 0
    differentiate = OneShotTraining.differentiate

    def interrupted(self: OneShotTraining, *args: Any, **options: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return differentiate(self, *args, **options)

    monkeypatch.setattr(OneShotTraining, "differentiate", interrupted)
    with pytest.raises(KeyboardInterrupt) as stopped:
        searched(*given("darts"))
    path = Path(stopped.value.run_dir)  # type: ignore[attr-defined]
    assert status_of(path)["status"] == "INTERRUPTED"
    assert len(log_of(path).told) == 1
    resume = f"resume={path}"
    assert searched(resume, *continued([resume])) == path
    assert steps == 4  # two epochs of two steps, none of them twice
    assert log_of(path).lines() == log_of(whole).lines()
    states = [checkpoint.load(each / "checkpoints" / "supernet.pt") for each in (path, whole)]
    for name, tensor in states[0]["student"].items():
        assert (tensor == states[1]["student"][name]).all()
    assert states[0]["rule"]["gates"].keys() == states[1]["rule"]["gates"].keys()
    for name, tensor in states[0]["rule"]["gates"].items():
        assert (tensor == states[1]["rule"]["gates"][name]).all()


@pytest.mark.slow
def test_an_epoch_that_was_kept_and_not_told_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the checkpoint and the log, or between an ask and its result."""
    whole = searched(*given("random_sharing"))
    tell = oneshot._tell_one

    def dies(*args: Any) -> None:
        if args[4] == {"supernet_epochs": 2}:
            raise KeyboardInterrupt
        tell(*args)

    monkeypatch.setattr(oneshot, "_tell_one", dies)
    with pytest.raises(KeyboardInterrupt) as stopped:
        searched(*given("random_sharing"))
    path = Path(stopped.value.run_dir)  # type: ignore[attr-defined]
    monkeypatch.setattr(oneshot, "_tell_one", tell)
    resume = f"resume={path}"
    searched(resume, *continued([resume]))
    assert log_of(path).lines() == log_of(whole).lines()


@pytest.mark.slow
def test_a_brake_leaves_the_answer_behind_all_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    counts = iter([0, 6])
    monkeypatch.setattr(OneShotTraining, "skips", lambda self, picks: next(counts))
    path = searched(*given("darts", "strategy.stop_at_skips=2", "strategy.epochs=9"))
    log = log_of(path)
    assert [dict(c.fidelity) for c in log.candidates] == [
        {"supernet_epochs": 1},
        {"supernet_epochs": 2},
        {"supernet_epochs": 2, "stopped": 1},
    ]
    assert log.candidates[2].point == log.candidates[0].point
    assert log.candidates[2].how == "6 skip connections, strategy.stop_at_skips=2"
    assert log.told[2].cost.images == 0
    assert "the search ends before its last epoch: 6 skip connections" in capsys.readouterr().out
    record = json.loads((path / "mutations.jsonl").read_text())
    assert record["target"]["chosen"] == log.candidates[0].point


@pytest.mark.slow
def test_without_labels_the_loss_is_the_goal(tmp_path: Path) -> None:
    path = searched(*given("darts", "strategy.objective=ssl", "ssl=barlow_twins"))
    log = log_of(path)
    assert log.objectives.goals == {"loss": "min"}
    assert {"loss", "supernet_loss"} <= log.told[0].scores.keys()
    kept = checkpoint.load(path / "checkpoints" / "last.pt")
    assert kept["images_seen"]["real_unlabeled"] > 0 == kept["images_seen"]["real_labeled"]


MISTAKES = [
    (("evaluator=proxy",), "evaluator=proxy: strategy=darts: it scores networks with"),
    (("search.screen=params",), "search.screen=params: strategy=darts: it asks for no candidates"),
    (("hardware.devices=2",), "it trains on one"),
    (("strategy.objective=ssl", "ssl=none"), "ssl=none trains nothing"),
    (("strategy.final_weight_lr=1",), "it must be at most strategy.weight_lr"),
    (("strategy.warmup_epochs=2",), "the gates would never be trained in strategy.epochs=2"),
    (("strategy.alpha_betas=[0.5]",), "two are needed"),
    (("search.objectives={acuracy: max}",), "and no acuracy"),
    (("search.objectives={params: min, accuracy: max}",), "let {accuracy: max} come first"),
]


@pytest.mark.parametrize(("more", "said"), MISTAKES)
def test_a_mistake_is_said_before_anything_is_trained(
    more: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as refused:
        searched(*given("darts", *more))
    assert said in str(refused.value)


def test_mistakes_of_single_strategies(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not one of operations"):
        searched("task=search", *QUIET, "space=enas_macro", "strategy=darts")
    with pytest.raises(UserError, match=r"4 channels .* by 3.* that is: 3\."):
        searched(*given("pc_darts", "strategy.partial=3"))
    with pytest.raises(UserError, match="set both, the latter in milliseconds"):
        searched(*given("proxyless", "strategy.latency_weight=0.1"))
    weighed = ("strategy.latency_weight=0.1", "strategy.latency_target=1")
    with pytest.raises(UserError, match=r"add search\.latency=FILE\.json"):
        searched(*given("proxyless", *weighed))


def test_the_answer_is_measured_and_no_slower_than_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table says what a network should take; the first three that it lets pass take longer."""
    took: dict[str, float] = {}

    def whole(table: LatencyTable, description: Any) -> float:
        name = json.dumps(description.to_dict())
        return took.setdefault(name, 9.0 if len(took) < 3 else 2.0)

    monkeypatch.setattr(LatencyTable, "_time", lambda *_: 1.0)
    monkeypatch.setattr(LatencyTable, "predict", lambda *_: 1.5)
    monkeypatch.setattr(LatencyTable, "whole", whole)
    limit = ["strategy.latency_weight=0.1", "strategy.latency_target=2", "hardware.threads=1"]
    limit += ["search.latency=latency.json", "search.caps={latency_ms: 2}"]
    path = searched(*given("proxyless", *limit))
    chosen = json.loads((path / "mutations.jsonl").read_text())["target"]["network"]
    assert took[json.dumps(chosen)] == 2.0
    assert len(took) > 3


@pytest.mark.slow  # measures a table of latencies first
def test_a_limit_on_latency_holds_in_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LatencyTable, "whole", LatencyTable.predict)
    weighed = ("strategy.latency_weight=0.1", "strategy.latency_target=0.1")
    table = ("search.latency=latency.json", "hardware.threads=1")
    free = searched(*given("proxyless", *weighed, *table))
    times = [one.scores[LATENCY] for one in log_of(free).told]
    most = sorted(times)[0]
    path = searched(*given("proxyless", *weighed, *table, f"search.caps={{latency_ms: {most}}}"))
    assert all(one.scores[LATENCY] <= most for one in log_of(path).told)


@pytest.mark.slow  # runs from scratch
def test_the_answer_is_trained_from_scratch_beside_its_rivals(tmp_path: Path) -> None:
    more = ["search.final_seeds=1", "debug=tiny", "dataset.image_size=8", "pretrain.epochs=1"]
    # As cheap as a candidate of random search, which has as many training macs.
    more += ["strategy.epochs=1", "strategy.images=16", "strategy.batch_size=8"]
    path = searched(*given("darts", "strategy.order=first", *more))
    told = json.loads((path / "answer.json").read_text())
    best = log_of(path).best({"supernet_epochs": 1})
    assert best is not None
    assert told["contenders"][0]["point"] == best.candidate.point
    final, arm = (Log.read(path / name) for name in ("final.jsonl", "random.jsonl"))
    assert final.objectives.goals == arm.objectives.goals == {"accuracy": "max"}
    assert all("supernet_epochs" not in c.fidelity for c in [*final.candidates, *arm.candidates])
    assert [one.error for one in final.told] == [None] * len(final.told)
    # Random search stops once it has had as many training macs as the supernet.
    spent = sum(one.cost.training_macs for one in arm.told[:-1])
    assert spent < log_of(path).spent.training_macs


@pytest.mark.slow  # processes that import torch
def test_a_search_that_was_killed_is_that_of_one_that_was_not(tmp_path: Path) -> None:
    def begin(*overrides: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "sseg_nase", *overrides],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    more = ("strategy.epochs=6",)
    whole = searched(*given("darts", *more))
    process = begin(*given("darts", *more), "paths.output_dir=killed")
    while process.poll() is None:
        found = [*Path("killed/searches").glob("*/candidates.jsonl")]
        if found and found[0].read_bytes().count(b'"scored"') >= 2:
            break
        time.sleep(0.02)
    process.kill()
    process.communicate()
    (path,) = Path("killed/searches").glob("*")
    again = begin(f"resume={path}")
    _, said = again.communicate(timeout=300)
    assert again.returncode == 0, said
    assert log_of(path).lines() == log_of(whole).lines()
