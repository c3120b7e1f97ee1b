"""Runs whose files a crash, an editor or another program has damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sseg_nase.config.compose import continued, load, stored
from sseg_nase.errors import UserError
from sseg_nase.files import StorageError, read_json, write_json, write_text
from sseg_nase.run import run
from sseg_nase.rundir.directory import RunDirectory
from sseg_nase.rundir.status import status_of
from sseg_nase.sweeps.deliver import deliver_run
from sseg_nase.tracking.jsonl import JsonlSink
from sseg_nase.tracking.sink import Resumed, RunInfo
from sseg_nase.training import checkpoint

TINY = [
    "debug=tiny",
    "hardware=cpu",
    "hardware.threads=1",
    "hardware.precision=32-true",
    "tracking=jsonl",
    "ablation=A2",
    "pretrain.epochs=1",
    "pretrain.images_per_epoch=16",
    "evaluation.episodes=2",
    "evaluation.shots=[1]",
    "evaluation.untrained_reference=false",
]
BINARY = bytes(range(256))

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def ran(*overrides: str) -> Path:
    given = [*overrides, *continued(overrides)]
    return run(load(given), given)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ran(*TINY, f"paths.output_dir={tmp_path_factory.mktemp('whole')}")


@pytest.fixture
def stopped(whole: Path, tmp_path: Path) -> Path:
    """A copy of the run that says that it was interrupted."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    said = {**status_of(folder), "status": "INTERRUPTED", "directory": str(folder)}
    (folder / "status.json").write_text(json.dumps(said))
    return folder


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    path.unlink()
    if how == "a folder":
        path.mkdir()
    elif how != "missing":
        path.write_bytes({"half": content[: len(content) // 2], "binary": BINARY}[how])


def refused(folder: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as error:
        ran(f"resume={folder}", *overrides)
    return str(error.value)


# -- what says how the run stands ----------------------------------------------------------------


@pytest.mark.parametrize("how", ["half", "binary", "types"])
def test_a_damaged_status_says_nothing(stopped: Path, how: str) -> None:
    path = stopped / "status.json"
    if how == "types":
        wrong: dict[str, Any] = {"status": ["x"], "process": [], "directory": 3, "error": 5}
        path.write_text(json.dumps(wrong | {"tracker_run_id": {}, "tracking_uri": 7}))
    else:
        damage(path, how)
    assert status_of(stopped) == {}
    place = RunDirectory.reopen(load(given := [f"resume={stopped}", *TINY]), given)
    place.release()
    assert status_of(stopped)["status"] == "RUNNING"


def test_what_was_refused_is_put_back_byte_by_byte(stopped: Path) -> None:
    (stopped / "status.json").write_bytes(BINARY)
    place = RunDirectory.reopen(load(given := [f"resume={stopped}", *TINY]), given)
    place.restore()
    place.release()
    assert (stopped / "status.json").read_bytes() == BINARY


@pytest.mark.parametrize("how", ["half", "binary", "missing", "a folder"])
def test_a_damaged_config_is_no_run(stopped: Path, how: str) -> None:
    damage(stopped / "config.yaml", how)
    assert f"resume={stopped}" in refused(stopped)
    if how != "half":
        with pytest.raises(UserError, match="cannot be read"):
            stored(stopped / "config.yaml")
        with pytest.raises(UserError, match="no readable config"):
            deliver_run(stopped)


def test_deep_nests_are_no_json_of_ours(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text("[" * 100_000)
    assert read_json(tmp_path / "status.json") is None


# -- what it was made with -----------------------------------------------------------------------


@pytest.mark.parametrize("how", ["half", "binary", "a folder", "types", "a list"])
def test_images_that_cannot_be_compared_are_refused(stopped: Path, how: str) -> None:
    path = stopped / "data.json"
    if how == "types":
        path.write_text('{"images": [], "roles": 3, "files": "x"}')
    elif how == "a list":
        path.write_text("[]")
    else:
        damage(path, how)
    before = (stopped / "status.json").read_bytes()
    assert "data.json there is damaged" in refused(stopped)
    assert (stopped / "status.json").read_bytes() == before


# -- where training was --------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["half", "binary", "another"])
def test_a_damaged_checkpoint_names_the_one_that_is_whole(stopped: Path, how: str) -> None:
    path = stopped / "checkpoints" / "last.pt"
    if how == "another":
        state = torch.load(path, weights_only=True)
        del state["epoch"]
        torch.save(state, path)
    else:
        damage(path, how)
    said = refused(stopped)
    assert said.startswith(f"resume={stopped}: ")
    assert "best.pt is whole: replace last.pt with it (cp " in said
    shutil.copy(path.with_name("best.pt"), path)  # as it says
    assert checkpoint.resumable(path)["epoch"] >= 0
    damage(path, "half")
    damage(path.with_name("best.pt"), "half")
    assert f"Remove {path} to begin again." in refused(stopped)


def test_the_checkpoint_of_another_run_is_refused(stopped: Path) -> None:
    path = stopped / "checkpoints" / "last.pt"
    state = torch.load(path, weights_only=True)
    state["moments"] = {"nothing": {}}
    del state["architecture"]
    torch.save(state, path)
    assert "last.pt does not belong to this run" in refused(stopped)
    assert status_of(stopped)["status"] == "FAILED"


@pytest.mark.parametrize("damaged", [BINARY.replace(b"\n", b"") + b"\n", b'{"index": \n', b"[]\n"])
def test_a_damaged_mutation_gives_way_to_its_repetition(tmp_path: Path, damaged: bytes) -> None:
    path = tmp_path / "mutations.jsonl"
    path.write_bytes(b'{"index": 0}\n' + damaged + b'{"index": 2}\n')
    info = RunInfo(tmp_path, "x", "x", tmp_path, 1, {}, {}, Resumed(None, 3, 2))
    JsonlSink().open(info)
    assert path.read_bytes() == b'{"index": 0}\n' + damaged
    info = RunInfo(tmp_path, "x", "x", tmp_path, 1, {}, {}, Resumed(None, 3, 1))
    JsonlSink().open(info)
    assert path.read_bytes() == b'{"index": 0}\n'


# -- what is in the way --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["events.jsonl", "mutations.jsonl", "results.json"])
def test_a_folder_in_the_place_of_a_file_is_named(stopped: Path, name: str) -> None:
    damage(stopped / name, "a folder")
    said = refused(stopped)
    assert "a folder stands where a file belongs" in said
    assert name in said
    assert status_of(stopped)["status"] == "FAILED"


def _file_for_folder(path: Path) -> None:
    path.parent.rmdir()
    path.parent.touch()


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda path: path.mkdir(), "a folder stands where a file belongs"),
        (_file_for_folder, "a file stands where a folder belongs"),
    ],
)
def test_what_cannot_be_written_for_what_is_there(
    prepare: Callable[[Path], Any], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "in" / "file.json"
    path.parent.mkdir()
    prepare(path)
    for write in (lambda: write_json(path, {}), lambda: write_text(path, "x")):
        with pytest.raises(StorageError, match=said):
            write()
