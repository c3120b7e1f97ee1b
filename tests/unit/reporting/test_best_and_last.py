"""What a real run leaves for the reports: the accuracy of every episode, last network and best."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sseg_nase import stages
from sseg_nase.config.compose import continued, load
from sseg_nase.files import write_json
from sseg_nase.reporting.aggregate import Entry, aggregate
from sseg_nase.run import run
from sseg_nase.rundir.episodes import read_episodes
from sseg_nase.training import checkpoint

TINY = ["debug=tiny", "hardware=cpu", "hardware.precision=32-true", "tracking=jsonl"]
KEYS = {"digits/val/5w1s", "digits/val/5w5s"}

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def ran(*overrides: str) -> tuple[Path, dict[str, Any]]:
    directory = run(load([*TINY, *overrides]), [*TINY, *overrides])
    return directory, json.loads((directory / "results.json").read_text())


def metrics(directory: Path) -> dict[str, float]:
    found: dict[str, float] = {}
    for line in (directory / "events.jsonl").read_text().splitlines():
        told = json.loads(line)
        found |= told["values"] if told["kind"] == "metrics" else {}
    return found


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The networks that were evaluated."""
    networks: list[Any] = []
    evaluate = stages.FewShotTask.evaluate

    def counted(
        self: stages.FewShotTask, backbone: Any, device: Any, views: int = 1
    ) -> stages.Evaluation:
        networks.append(backbone)
        return evaluate(self, backbone, device, views)

    monkeypatch.setattr(stages.FewShotTask, "evaluate", counted)
    return networks


def assert_accuracies_belong(directory: Path, results: dict[str, Any], best: bool) -> None:
    found = read_episodes(directory)
    assert found["last"].keys() == KEYS
    assert found["best"].keys() == (KEYS if best else set())
    for network, group in (("last", "fewshot"), ("best", "fewshot_best")):
        for key, values in found[network].items():
            assert len(values) == results[group][key]["episodes"] == 20
            assert values.mean() == pytest.approx(results[group][key]["accuracy"], rel=1e-6)


def test_the_best_network_is_evaluated_beside_the_last(evaluations: list[Any]) -> None:
    # The last epoch of its level has a higher loss than the one before, with any threads.
    directory, results = ran("pretrain.epochs=4", "evaluation.untrained_reference=false")
    state = checkpoint.load(directory / "checkpoints" / "best.pt")
    last = checkpoint.load(directory / "checkpoints" / "last.pt")
    assert state["step"] < last["step"]
    assert len(evaluations) == 2  # one dataset, two networks: the embeddings of both lists are one
    summary = evaluations[1].architecture.summary()
    about = results["best"]
    assert (about["epoch"], about["step"]) == (state["epoch"], state["step"])
    assert {key: about[key] for key in ("blocks", "channels", "params", "macs")} == {
        key: summary[key] for key in ("blocks", "channels", "params", "macs")
    }
    accuracies = read_episodes(directory)
    for key, difference in about["minus_last"].items():
        expected = accuracies["best"][key].mean() - accuracies["last"][key].mean()
        assert difference["mean"] == pytest.approx(expected, abs=1e-4)
    assert results["fewshot_best"].keys() == results["fewshot"].keys() == KEYS
    assert results["fewshot_best"] != results["fewshot"]
    assert_accuracies_belong(directory, results, best=True)
    told = metrics(directory)
    assert told["headline/params"] == about["params"]
    for key, result in results["fewshot_best"].items():
        assert told[f"headline/{key}"] == result["accuracy"]
    for group in ("fewshot", "fewshot_best"):
        for key, value in results[group].items():
            for part in ("accuracy", "ci95"):
                assert told[f"{group}/{key}/{part}"] == value[part]

    checked, again = ran("task=evaluate", f"checkpoint={directory / 'checkpoints' / 'best.pt'}")
    assert again["fewshot"] == results["fewshot_best"]
    assert "fewshot_best" not in again
    assert_accuracies_belong(checked, again, best=False)
    assert read_episodes(checked)["last"].keys() == KEYS
    for key, values in read_episodes(checked)["last"].items():
        assert np.array_equal(values, read_episodes(directory)["best"][key])


def test_one_and_the_same_network_is_evaluated_once(evaluations: list[Any]) -> None:
    directory, results = ran(
        "ablation=A2", "pretrain.epochs=1", "evaluation.untrained_reference=false"
    )
    assert len(evaluations) == 1
    assert results["fewshot_best"] == results["fewshot"]
    assert results["best"]["epoch"] == 0
    assert_accuracies_belong(directory, results, best=True)


def test_untrained_runs_have_no_best() -> None:
    directory, results = ran("ablation=A1")
    assert not {"fewshot_best", "best"} & results.keys()
    assert_accuracies_belong(directory, results, best=False)
    assert not any(name.startswith("fewshot_best") for name in metrics(directory))


@pytest.mark.parametrize("lost", [False, True])
def test_a_run_that_was_stopped_before_it_was_evaluated_goes_on(lost: bool) -> None:
    directory, before = ran("ablation=A2", "pretrain.epochs=3")
    episodes = read_episodes(directory)
    write_json(directory / "status.json", {"status": "INTERRUPTED", "error": None})
    for name in ("results.json", "episodes.npz"):
        (directory / name).unlink()
    if lost:
        (directory / "checkpoints" / "best.pt").unlink()
    overrides = [f"resume={directory}"]
    whole = [*overrides, *continued(overrides)]
    assert run(load(whole), whole) == directory
    after = json.loads((directory / "results.json").read_text())
    assert after["fewshot"] == before["fewshot"]
    assert after.get("fewshot_best") == (None if lost else before["fewshot_best"])
    assert after.get("best") == (None if lost else before["best"])
    assert_accuracies_belong(directory, after, best=not lost)
    if not lost:
        for network, evaluated in episodes.items():
            for key, values in evaluated.items():
                assert np.array_equal(read_episodes(directory)[network][key], values)
    assert ("the best network is not evaluated" in (directory / "events.jsonl").read_text()) == lost


def test_real_runs_are_aggregated() -> None:
    entries = [
        Entry(name, seed, ran(f"ablation={name}", f"seed={seed}", "tracking.interval_steps=1")[0])
        for name in ("A1", "A2")
        for seed in (0, 1)
    ]
    found = aggregate(entries)
    assert found.notes == ()
    assert len(found.runs) == 2 * 2 * (1 + 2)
    compared = found.comparisons.to_dict("records")
    assert [(row["key"], row["network"], row["seeds"]) for row in compared] == [
        (key, "last", 2) for key in sorted(KEYS)
    ]
    losses = found.summary[found.summary["key"] == "pretrain/loss"]
    assert losses["configuration"].tolist() == ["A2", "A2"]
    by_network = dict(zip(losses["network"], losses["mean"], strict=True))
    assert by_network["best"] < by_network["last"] < 10
