"""`benchmarks/growth.py`: what its arms spend, and what it keeps of them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from benchmarks import growth as script
from sseg_nase.rundir.episodes import write_episodes


@pytest.fixture
def growth(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    images = SimpleNamespace(labels=range(38_400))
    monkeypatch.setattr(script, "labelled", lambda config: images)
    return script


@pytest.mark.slow
def test_arms_with_labels_spend_alike(growth: ModuleType) -> None:
    settings = growth.Settings(Path("data"), Path("out"), 5e13, 20, 100, (), labels=True)
    for arm in ("grown", "grown at random", "its final network", "Conv4-64"):
        more = "hardware.batch_size=256"
        lines, config = growth.config_of(growth.Job(arm, 0.1, 0), settings, more)
        assert ("finetune.evolve=true" in lines) is arm.startswith("grown")
        assert not any(line.startswith("pretrain.") for line in lines)
        epochs = growth.epochs_for(config, settings.macs)
        longer = f"pretrain.epochs={epochs}"
        _, config = growth.config_of(growth.Job(arm, 0.1, 0), settings, more, longer)
        spent = 3 * 38_400 * sum(growth.macs_by_epoch(config))
        assert spent == pytest.approx(settings.macs, rel=0.04), arm
    with pytest.raises(SystemExit, match="too few"):
        growth.epochs_for(config, 1e12)


FIVE_SHOT = {"grown": 53.0, "its final network": 52.0, "Conv4-64": 50.0}


@pytest.fixture
def trained(growth: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines that were called; a run ends with what `FIVE_SHOT` says and its seed."""
    called: list[list[str]] = []

    def call(command: list[str], **_: object) -> None:
        called.append(command)
        said = dict(line.split("=", 1) for line in command[3:])
        folder = Path(said["paths.output_dir"].strip("'"))
        arm = next(
            a for a in FIVE_SHOT if growth.Job(a, 0, 0).folder(Path()).parts[0] in str(folder)
        )
        run = folder / "name" / "run"
        run.mkdir(parents=True)
        five = FIVE_SHOT[arm] + float(said["seed"]) - 100 * float(said["optimizer.lr"])
        accuracies = {growth.KEYS[0]: np.full(10, 40.0), growth.KEYS[1]: np.full(10, five)}
        write_episodes(run, {"last": accuracies})
        results = {
            "status": "FINISHED", "architecture": {"params": 7, "macs": 2_000_000},
            "images_seen": {"synthetic": 1, "real": 2}, "training_macs": {"total": 30},
            "seconds": {"pretrain": 60, "evaluate": 30},
        }  # fmt: skip
        (run / "results.json").write_text(json.dumps(results))

    monkeypatch.setattr(subprocess, "run", call)
    return called


def arguments(tmp_path: Path, out: str, *more: str) -> list[str]:
    arms = ["--arms", *FIVE_SHOT, "--seeds", "0", "1", "2", "--rates", "0.01", "0.02"]
    kept = ["--results", str(tmp_path / "kept.json")]
    return [str(tmp_path), str(tmp_path / out), *arms, *kept, *more]


def test_what_has_finished_is_not_trained_again_on_another_machine(
    growth: ModuleType, trained: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert growth.main(arguments(tmp_path, "here")) == 0
    assert len(trained) == 3 * 2 + 3 * 2  # every rate with the first seed, the best with the others
    said = capsys.readouterr().out
    assert growth.main(arguments(tmp_path, "there")) == 0
    assert len(trained) == 12
    table = (tmp_path / "there" / "growth.md").read_text()
    assert table in said
    assert growth.main(arguments(tmp_path, "there", "--episodes", "100")) == 0
    assert len(trained) == 24, "other episodes are another result"


def test_a_table_compares_by_seed_at_the_best_rate(
    growth: ModuleType, trained: list[list[str]], tmp_path: Path
) -> None:
    assert growth.main(arguments(tmp_path, "out")) == 0
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in (tmp_path / "out" / "growth.md").read_text().splitlines()
    ]
    cells = {row[0]: row for row in rows[2:]}
    assert [cells[arm][1] for arm in FIVE_SHOT] == ["0.01"] * 3
    assert cells["grown"][2:7] == ["7", "2.0", "3", "0.00", "1.5"]
    assert cells["grown"][8] == "53.00 ± 2.48"  # 52, 53, 54: t(2) = 4.303 times 1/√3
    assert cells["its final network"][10].startswith("+1.00 ± 0.00")
    assert cells["Conv4-64"][10].startswith("+3.00 ± 0.00")


def test_a_run_that_failed_is_no_result(
    growth: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: None)
    assert growth.main(arguments(tmp_path, "out")) == 1
    assert not (tmp_path / "kept.json").exists()
