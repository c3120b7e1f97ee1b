"""The notebooks run top to bottom on the store of a run, and are kept without outputs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import mlflow
import numpy as np
import pytest

from sseg_nase import UserError, judge, load_config, load_network, open_dataset, read_run
from sseg_nase.config.compose import load
from sseg_nase.fewshot.statistics import crossed_difference, mean_t95
from sseg_nase.run import Membership, run

FOLDER = Path(__file__).parent.parent / "notebooks"
TINY = ["debug=tiny", "hardware=cpu", "hardware.precision=32-true", "tracking.interval_steps=1"]
# Of the sweep only what was judged is looked at.
JUDGED = [*TINY, "pretrain.epochs=1", "evaluation.untrained_reference=false"]
SWEEP = [f"ablation={ablation} seed={seed}" for ablation in ("A1", "A2") for seed in (0, 1)]
KEY = "digits/val/5w1s"

pytestmark = pytest.mark.filterwarnings("ignore")  # what MLflow stands on is full of them


def code_cells(notebook: Path) -> list[dict[str, Any]]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def executed(notebook: Path, instead: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The names that the notebook leaves behind; `instead` replaces what takes long."""
    matplotlib.use("Agg")
    names: dict[str, Any] = {}
    cells = ["".join(cell["source"]) for cell in code_cells(notebook)]
    for old, new in (instead or {}).items():
        assert sum(old in cell for cell in cells) == 1, old
        cells = [cell.replace(old, new) for cell in cells]
    for cell in cells:
        exec(compile(cell, notebook.name, "exec"), names)
    matplotlib.pyplot.close("all")
    return names


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one run's `mlflow.db`."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(load([*TINY, "ablation=A7"]), [*TINY, "ablation=A7"])
    return folder


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sweep of two configurations and two seeds, and a later run by itself."""
    folder = tmp_path_factory.mktemp("swept")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in SWEEP:
            config = load([*JUDGED, *name.split()])
            run(config, name.split(), Membership("of_tests", name, None, name, lambda place: None))
        run(load([*JUDGED, "ablation=A1"]), ["ablation=A1"])
    return folder


@pytest.fixture(autouse=True)
def _no_store_stays_chosen() -> Iterator[None]:
    """A notebook chooses MLflow's store for the whole process."""
    yield
    mlflow.set_tracking_uri(None)


def test_the_quick_look_shows_the_run(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(store)
    names = executed(FOLDER / "1_quick_look.ipynb")
    assert {"GROW", "PRUNE"} & set(names["mutations"]["kind"])
    assert set(names["fewshot"]) == {"digits/val/5w1s", "digits/val/5w5s"}
    assert len(names["loss"]) == 24  # 6 epochs of 4 steps, each of them logged


def test_without_a_sweep_the_comparison_says_what_to_run(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(store)
    names = executed(FOLDER / "2_compare_sweep.ipynb")
    said = capsys.readouterr().out
    assert "no sweep in this store yet, 1 single run(s)" in said
    assert "sseg-nase -m ablation=" in said
    assert len(names["table"]) == 1
    assert names["differences"] == []


def test_a_sweep_is_compared(swept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (swept / "notebooks").mkdir()
    monkeypatch.chdir(swept / "notebooks")  # from there, too
    names = executed(FOLDER / "2_compare_sweep.ipynb")
    assert len(names["runs"]) == len(SWEEP)
    of_run = {row["tags.mlflow.runName"]: row for _, row in names["runs"].iterrows()}
    first, second = (
        np.stack(
            [
                np.load(Path(of_run[f"ablation={a} seed={s}"]["tags.directory"]) / "episodes.npz")[
                    KEY
                ]
                for s in (0, 1)
            ]
        )
        for a in ("A1", "A2")
    )
    table = names["table"]
    assert list(table.index) == ["ablation=A1", "ablation=A2"]
    assert list(table["seeds"]) == [2, 2]
    mean, ci95 = mean_t95(first.astype(float).mean(axis=1))
    assert table.loc["ablation=A1", KEY] == f"{mean:.2f} ± {ci95:.2f}"
    (difference,) = (row for row in names["differences"] if row["task"] == KEY)
    expected = crossed_difference(second.astype(float) - first)
    assert difference["difference"] == "ablation=A2 − ablation=A1"
    assert difference["points"] == pytest.approx(expected.mean, abs=0.005)
    assert difference["± (95 %)"] == pytest.approx(expected.ci95, abs=0.005)
    assert (difference["seeds"], difference["episodes"]) == (2, 20)


def test_evolving_by_hand_keeps_the_function() -> None:
    names = executed(
        FOLDER / "3_evolve_by_hand.ipynb", {"STEPS, BATCH = 40, 48": "STEPS, BATCH = 2, 16"}
    )
    assert names["grow_change"] == 0
    assert names["widen_change"] < 1e-5
    assert names["prune_change"] < 1e-5
    assert len(names["losses"]) == 8
    rebuilt = names["rebuilt"]
    assert [len(architecture.blocks) for architecture in rebuilt] == [3, 4, 4, 4]
    assert rebuilt[-1] == names["small"].network.architecture
    assert names["accuracies"]["evolved"]["episodes"] == 600


def test_a_run_is_opened_and_judged_again_by_hand(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(store)
    (folder,) = Path("runs/debug").iterdir()
    record, config = read_run(folder), load_config([*TINY, "ablation=A7"])
    network = load_network(folder)
    assert not network.training
    assert network.architecture.summary() == record.results["architecture"]
    judged = judge(network, config)
    for key, result in judged.results.items():
        assert result["accuracy"] == pytest.approx(record.results["fewshot"][key]["accuracy"])
        assert len(judged.accuracies[key]) == result["episodes"] == 20
    store_of_val = open_dataset(config)
    assert (store_of_val.image_size, store_of_val.channels) == (16, 3)
    best = load_network(str(folder / "checkpoints" / "best.pt"))
    assert best.architecture.summary()["params"] == record.results["best"]["params"]
    (folder / "checkpoints" / "finetune_best.pt").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"finetune_best\.pt: not a checkpoint"):
        load_network(folder)
    (folder / "checkpoints" / "finetune_best.pt").unlink()
    with pytest.raises(UserError, match="the network takes images of 3 channels"):
        judge(network, load_config([*TINY, "dataset.channels=1", "backbone.in_channels=1"]))
    with pytest.raises(UserError, match=r"checkpoints.last\.pt: there is no such file"):
        load_network(folder / "checkpoints")


@pytest.mark.parametrize("notebook", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(notebook: Path) -> None:
    for cell in code_cells(notebook):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
