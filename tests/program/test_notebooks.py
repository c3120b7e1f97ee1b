"""The notebooks run top to bottom on the store of a run, and are kept without outputs."""

from __future__ import annotations

import io
import json
import os
import shutil
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

from sseg_nase import (
    UserError,
    evaluate,
    latest_run,
    load_config,
    load_network,
    open_dataset,
    read_run,
)
from sseg_nase.config.compose import load
from sseg_nase.files import write_json
from sseg_nase.run import run
from sseg_nase.stages.running import Membership
from sseg_nase.statistics import crossed_difference, mean_t95

FOLDER = Path(__file__).parents[2] / "notebooks"
TINY = ["debug=tiny", "hardware=cpu", "hardware.precision=32-true", "tracking.interval_steps=1"]
# Of the sweep only what was evaluated is looked at.
EVALUATED = [*TINY, "pretrain.epochs=1", "evaluation.untrained_reference=false"]
SWEEP = [f"ablation={ablation} seed={seed}" for ablation in ("A1", "A2") for seed in (0, 1)]
KEY = "digits/val/5w1s"
SECONDS = 300
DRAWING = ("draw_architecture(", "plt.show()")  # what gives a picture

pytestmark = pytest.mark.filterwarnings("ignore")  # what MLflow stands on is full of them


def code_cells(notebook: Path) -> list[dict[str, Any]]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


@dataclass(frozen=True)
class Executed:
    """A notebook as a kernel of its own has left it: what it printed, and its pictures by cell."""

    text: str
    pictures: list[list[bytes]]


def executed(notebook: Path, instead: Mapping[str, str] | None = None, last: str = "") -> Executed:
    """Run the notebook in the working folder; `instead` replaces what takes long.

    `last` is run behind its last cell. Fails where a cell fails, or writes to standard error.
    """
    document = nbformat.read(notebook, as_version=4)
    for old, new in (instead or {}).items():
        cells = [cell for cell in document.cells if old in cell.source]
        assert len(cells) == 1, old
        cells[0].source = cells[0].source.replace(old, new)
    document.cells.append(nbformat.v4.new_code_cell(last))
    NotebookClient(document, timeout=SECONDS, kernel_name="python3").execute(cwd=str(Path.cwd()))
    text, pictures = "", []
    for cell in document.cells:
        if cell.cell_type != "code":
            continue
        shown = []
        for output in cell.outputs:
            assert output.get("name") != "stderr", output.text
            data = output.get("data", {})
            text += output.get("text", data.get("text/plain", "")) + "\n"
            if "image/png" in data:
                shown.append(b64decode(data["image/png"]))
            else:
                assert "<Figure" not in data.get("text/plain", ""), "a figure that is not shown"
        drawn = any(word in cell.source for word in DRAWING)
        assert bool(shown) == drawn, cell.source
        pictures.append(shown)
    for picture in (picture for shown in pictures for picture in shown):
        check_picture(picture)
    return Executed(text, [shown for shown in pictures if shown])


def check_picture(data: bytes) -> None:
    """There is something on it: ink on some of it, and paper around that."""
    with Image.open(io.BytesIO(data)) as picture:
        grey = np.asarray(picture.convert("L"), dtype=float)
    ink = (grey < 200).mean()
    assert min(grey.shape) > 80
    assert 0.002 < ink < 0.9, ink


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
            config = load([*EVALUATED, *name.split()])
            run(config, name.split(), Membership("of_tests", name, None, name, lambda place: None))
        run(load([*EVALUATED, "ablation=A1"]), ["ablation=A1"])
    return folder


def test_the_quick_look_shows_the_newest_finished_run_that_was_trained(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(store)
    (finished,) = Path("runs/debug").iterdir()
    # Newer ones: one that is still running, and one that trained nothing.
    for status, ssl in (("RUNNING", "simclr"), ("FINISHED", "none")):
        other = Path("runs") / status / "20990101-000000-aaaaaa"
        shutil.copytree(finished, other)
        write_json(other / "status.json", {"status": status, "error": None})
        text = (other / "config.yaml").read_text(encoding="utf-8")
        changed = text.replace("ssl:\n  name: simclr", f"ssl:\n  name: {ssl}")
        (other / "config.yaml").write_text(changed, encoding="utf-8")
        os.utime(other / "results.json", (4e9, 4e9))
    assert changed != text
    seen = executed(
        FOLDER / "1_quick_look.ipynb",
        last="import json; print(json.dumps([str(folder), sorted(fewshot), len(loss), "
        "list(mutations.kind)]))",
    )
    folder, lists, steps, kinds = json.loads(seen.text.strip().splitlines()[-1])
    assert Path(folder) == finished
    assert f"{finished.parent.name}/{finished.name}: FINISHED" in seen.text
    assert {"GROW", "PRUNE"} & set(kinds)
    assert lists == ["digits/val/5w1s", "digits/val/5w5s"]
    assert steps == 24  # 6 epochs of 4 steps, each of them logged
    assert len(seen.pictures) == 1
    for other in ("RUNNING", "FINISHED"):
        shutil.rmtree(Path("runs") / other)


def test_nothing_but_the_public_api_is_imported_by_notebooks() -> None:
    for notebook in FOLDER.glob("*.ipynb"):
        source = "\n".join("".join(cell["source"]) for cell in code_cells(notebook))
        assert "sseg_nase." not in source, notebook.name


def test_new_images_are_classified_by_a_trained_network(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(store)
    seen = executed(
        FOLDER / "5_classify_images.ipynb",
        last="import json; print(json.dumps([accuracy, similarity.tolist()[0], "
        "(features[0] @ prototypes.T).tolist(), len(shown)]))",
    )
    accuracy, similarity, expected, shown = json.loads(seen.text.strip().splitlines()[-1])
    assert 25 < accuracy <= 100  # chance is 20 %
    assert similarity == pytest.approx(expected, abs=1e-3)  # the file is the image that it holds
    assert shown == 8
    assert len(seen.pictures) == 1


@pytest.mark.slow  # a kernel more; what it does is tested quickly in tests/unit/search
def test_searches_of_cells_and_of_real_networks_end_with_their_best() -> None:
    last = (
        "import json; print(json.dumps([best, cells.size, regret['random'].min(1).tolist(), "
        "regret['evolution'].min(1).tolist(), [one.error for one in log.told], "
        "[one.scores['params'] for one in log.told], len(front), "
        "[len(each.told) for each in logs['Gaussian process']]]))"
    )
    fewer = {
        "QUERIES, SEEDS = 40, 10": "QUERIES, SEEDS = 40, 4",
        "CANDIDATES = 8": "CANDIDATES = 2",
        "pretrain.epochs=3": "pretrain.epochs=1",
        "pretrain.images_per_epoch=1024": "pretrain.images_per_epoch=256",
    }
    seen = executed(FOLDER / "4_search.ipynb", fewer, last)
    best, size, random, evolution, errors, params, front, queries = json.loads(
        seen.text.strip().splitlines()[-1]
    )
    assert (best, size) == (84.9, 729)  # the best cell of the whole benchmark is one of these
    assert min(random) >= 0
    assert np.mean(evolution) < np.mean(random)
    assert errors == [None, None]
    assert max(params) <= 20_000
    assert 1 <= front <= 2
    assert queries == [40] * 4
    assert len(seen.pictures) == 2


@pytest.mark.slow
def test_evolving_by_hand_keeps_the_function_and_shows_the_networks() -> None:
    seen = executed(
        FOLDER / "3_evolve_by_hand.ipynb",
        {"STEPS, BATCH = 40, 48": "STEPS, BATCH = 2, 16"},
        last="import json; print(json.dumps([grow_change, widen_change, prune_change, len(losses), "
        "[len(each.blocks) for each in rebuilt], rebuilt[-1] == small.network.architecture, "
        "accuracies['evolved']['episodes']]))",
    )
    values = json.loads(seen.text.strip().splitlines()[-1])
    grow_change, widen_change, prune_change, losses, blocks, same, episodes = values
    assert grow_change == 0
    assert max(widen_change, prune_change) < 1e-5
    assert losses == 8
    assert blocks == [3, 4, 4, 4]
    assert same is True
    assert episodes == 600
    assert len(seen.pictures) == 5
    assert len({picture for shown in seen.pictures for picture in shown}) == 5


def test_without_a_finished_run_the_first_notebook_says_what_to_run() -> None:
    with pytest.raises(UserError, match=r"no finished run that has pretrained.*`make run`"):
        latest_run("runs", pretrained=True)


@pytest.mark.slow
def test_without_a_sweep_the_comparison_says_what_to_run(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(store)
    seen = executed(
        FOLDER / "2_compare_sweep.ipynb",
        last="import json; print(json.dumps([len(table), differences]))",
    )
    assert "no sweep in this store yet, 1 single run(s)" in seen.text
    assert "sseg-nase -m ablation=" in seen.text
    assert json.loads(seen.text.strip().splitlines()[-1]) == [1, []]


@pytest.mark.slow
def test_a_sweep_is_compared(swept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (swept / "notebooks").mkdir()
    monkeypatch.chdir(swept / "notebooks")  # from there, too
    seen = executed(
        FOLDER / "2_compare_sweep.ipynb",
        last="import json; print(json.dumps([dict(zip(runs['tags.mlflow.runName'], "
        "runs['tags.directory'])), json.loads(table.to_json(orient='index')), differences]))",
    )
    folders, table, differences = json.loads(seen.text.strip().splitlines()[-1])
    assert len(folders) == len(SWEEP)
    first, second = (
        np.stack(
            [np.load(Path(folders[f"ablation={a} seed={s}"]) / "episodes.npz")[KEY] for s in (0, 1)]
        )
        for a in ("A1", "A2")
    )
    assert list(table) == ["ablation=A1", "ablation=A2"]
    assert [row["seeds"] for row in table.values()] == [2, 2]
    mean, ci95 = mean_t95(first.astype(float).mean(axis=1))
    assert table["ablation=A1"][KEY] == f"{mean:.2f} ± {ci95:.2f}"
    (difference,) = (row for row in differences if row["task"] == KEY)
    expected = crossed_difference(second.astype(float) - first)
    assert difference["difference"] == "ablation=A2 − ablation=A1"
    assert difference["points"] == pytest.approx(expected.mean, abs=0.005)
    assert difference["± (95 %)"] == pytest.approx(expected.ci95, abs=0.005)
    assert (difference["seeds"], difference["episodes"]) == (2, 20)
    assert len(seen.pictures) == 1


def test_a_run_is_opened_and_evaluated_again_by_hand(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(store)
    (folder,) = Path("runs/debug").iterdir()
    assert latest_run(pretrained=True).resolve() == folder.resolve()
    record, config = read_run(folder), load_config([*TINY, "ablation=A7"])
    network = load_network(folder)
    assert not network.training
    assert network.architecture.summary() == record.results["architecture"]
    evaluated = evaluate(network, config)
    for key, result in evaluated.results.items():
        assert result["accuracy"] == pytest.approx(record.results["fewshot"][key]["accuracy"])
        assert len(evaluated.accuracies[key]) == result["episodes"] == 20
    store_of_val = open_dataset(config)
    assert (store_of_val.image_size, store_of_val.channels) == (16, 3)
    best = load_network(str(folder / "checkpoints" / "best.pt"))
    assert best.architecture.summary()["params"] == record.results["best"]["params"]
    (folder / "checkpoints" / "finetune_best.pt").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"finetune_best\.pt: not a checkpoint"):
        load_network(folder)
    (folder / "checkpoints" / "finetune_best.pt").unlink()
    with pytest.raises(UserError, match="the network takes images of 3 channels"):
        evaluate(network, load_config([*TINY, "dataset.channels=1", "backbone.in_channels=1"]))
    with pytest.raises(UserError, match=r"checkpoints.last\.pt: there is no such file"):
        load_network(folder / "checkpoints")


@pytest.mark.parametrize("notebook", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(notebook: Path) -> None:
    for cell in code_cells(notebook):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
