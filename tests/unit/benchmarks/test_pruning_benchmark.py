"""`benchmarks/pruning.py`: what stands beside a pruned network, and what is concluded."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from benchmarks import pruning
from sseg_nase.config.compose import load
from sseg_nase.rundir.architecture import write_architecture
from sseg_nase.rundir.episodes import write_episodes

EPISODES, WIDTH = 60, 31
PRUNED, RIVAL = (50.0, 60.0), (52.0, 61.0)  # accuracies at 1 and 5 shots


def params_of(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


class Made:
    """Stands in for the program: every run prunes to the same width, or is as wide as asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, str]] = []
        self.prunes, self.grows = True, True

    def __call__(self, command: list[str], **_: object) -> None:
        given = dict(line.split("=", 1) for line in command[3:])
        self.asked.append(given)
        config = load(command[3:])
        settings = pruning.Settings(Path(), Path(), 0.1, (), 1)
        found = pruning.grown(WIDTH if self.prunes else pruning.STEPS, settings)
        if not config.sparsity.enabled:
            blocks = 3 if self.grows else 1
            more = [*command[3:], f"backbone.blocks_per_stage={blocks}", "evolution=none"]
            found = pruning.configured(load(more).backbone, pruning.RESOLUTION)
        run = Path(given["paths.output_dir"].strip("'")) / "cifar_fs_32" / "run"
        run.mkdir(parents=True)
        write_architecture(run, found.to_dict())
        values = PRUNED if config.sparsity.enabled else RIVAL
        rng = np.random.default_rng(config.seed)
        right = {
            key: value + config.seed + rng.normal(0, 1, EPISODES)
            for key, value in zip(pruning.KEYS, values, strict=True)
        }
        write_episodes(run, {"last": right, "best": {key: 0 * x for key, x in right.items()}})
        results = {
            "status": "FINISHED", "training_macs": {"total": 6e13},
            "architecture": {"params": found.params}, "seconds": {"pretrain": 100, "evaluate": 20},
        }  # fmt: skip
        (run / "results.json").write_text(json.dumps(results))
        (run / "config.yaml").write_text(json.dumps({"seed": config.seed}))
        (run / "status.json").write_text('{"status": "FINISHED"}')


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    stand_in = Made()
    monkeypatch.setattr(subprocess, "run", stand_in)
    monkeypatch.setattr(pruning, "latency_ms", lambda each, *_, **__: params_of(each) / 1e6)
    return stand_in


def performed(tmp_path: Path, *given: str) -> int:
    return pruning.main([str(tmp_path), str(tmp_path / "out"), "--parallel", "1", *given])


def test_what_was_pruned_stands_beside_what_is_as_fast(made: Made, tmp_path: Path) -> None:
    assert performed(tmp_path, "--seeds", "0", "1") == 0
    ablations = [(said["ablation"], said.get("sparsity"), said["seed"]) for said in made.asked]
    assert ablations == [
        ("A6", None, "0"), ("A6", None, "1"), ("A7", None, "0"), ("A7", None, "1"),
        ("A3", None, "0"), ("A3", None, "1"), ("A7", "none", "0"), ("A7", "none", "1"),
    ]  # fmt: skip
    assert {said.get("backbone.channels") for said in made.asked[:4]} == {None}
    assert {said["sparsity.rollback_tolerance"] for said in made.asked[:4]} == {"0.1"}
    widths = {said["backbone.channels"] for said in made.asked[4:]}
    assert widths == {pruning.channels(WIDTH).partition("=")[2]}
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in (tmp_path / "out" / "pruning.md").read_text().splitlines()[2:]
    ]
    assert [row[0] for row in rows] == [
        "A6, pruned",
        "A3, as fast",
        "A7, pruned",
        "A4 and A5, as fast",
    ]
    assert rows[0][3:7] == ["1.00", "1.00", "60.0", "2.0"]
    assert rows[0][9:] == ["", ""]
    # Equal episodes: what differs is the method alone.
    assert rows[1][9:] == ["-2.00 ± 0.00 (p 0.000)", "-1.00 ± 0.00 (p 0.000)"]
    kept = json.loads((tmp_path / "out" / "pruning.json").read_text())
    assert [pair["ratios"] for pair in kept["pairs"]] == [{"1": 1.0, "64": 1.0}] * 4
    before = len(made.asked)
    assert performed(tmp_path, "--seeds", "0", "1") == 0
    assert len(made.asked) == before


def test_a_width_is_measured_once(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("--seeds", "0", "1", "--ablations", "A6")
    assert performed(tmp_path, *given) == 0
    monkeypatch.setattr(pruning, "latency_ms", lambda *_, **__: 1.0)  # another machine
    assert performed(tmp_path, *given) == 0
    assert len(made.asked) == 4


def test_a_network_that_was_not_pruned_or_has_not_grown_is_no_arm(
    made: Made, tmp_path: Path
) -> None:
    made.prunes = False
    with pytest.raises(SystemExit, match=r"no PRUNE was kept with --tolerance 0\.2: give more"):
        performed(tmp_path, "--tolerance", "0.2")
    made.prunes, made.grows = True, False
    with pytest.raises(SystemExit, match="were reckoned with"):
        pruning.main([str(tmp_path), str(tmp_path / "other"), "--parallel", "1"])
