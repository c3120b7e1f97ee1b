"""The notebooks run top to bottom on the store of a run, and are kept without outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from sseg_nase.config.compose import load
from sseg_nase.run import run

FOLDER = Path(__file__).parent.parent / "notebooks"
TINY = ["debug=tiny", "hardware=cpu", "hardware.precision=32-true", "tracking.interval_steps=1"]

pytestmark = pytest.mark.filterwarnings("ignore")  # what MLflow stands on is full of them


def code_cells(notebook: Path) -> list[dict[str, Any]]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def executed(notebook: Path) -> dict[str, Any]:
    """The names that the notebook leaves behind."""
    matplotlib.use("Agg")
    names: dict[str, Any] = {}
    for cell in code_cells(notebook):
        exec(compile("".join(cell["source"]), notebook.name, "exec"), names)
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


def test_the_quick_look_shows_the_run(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(store)
    names = executed(FOLDER / "1_quick_look.ipynb")
    assert {"GROW", "PRUNE"} & set(names["mutations"]["kind"])
    assert set(names["fewshot"]) == {"digits/val/5w1s", "digits/val/5w5s"}
    assert len(names["loss"]) == 24  # 6 epochs of 4 steps, each of them logged


@pytest.mark.parametrize("notebook", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(notebook: Path) -> None:
    for cell in code_cells(notebook):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
