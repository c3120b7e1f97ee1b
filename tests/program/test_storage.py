"""A disk that is full, read-only or over its quota, at every write of a run."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sseg_nase import files
from sseg_nase.config.compose import continued, load
from sseg_nase.errors import UserError
from sseg_nase.files import (
    StorageError,
    append_line,
    read_json,
    write_bytes,
    write_json,
    write_text,
)
from sseg_nase.run import run
from sseg_nase.training import checkpoint

TINY = [
    "debug=tiny",
    "hardware=cpu",
    "hardware.threads=1",
    "hardware.precision=32-true",
    "ablation=A2",
    "pretrain.images_per_epoch=16",
    "pretrain.epochs=2",
    "pretrain.checkpoint_interval_epochs=1",
    "evaluation.episodes=2",
    "evaluation.shots=[1]",
    "evaluation.untrained_reference=false",
]
FULL, READ_ONLY, QUOTA = errno.ENOSPC, errno.EROFS, errno.EDQUOT

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def ran(*overrides: str) -> Path:
    given = [*overrides, *continued(overrides)]
    return run(load(given), given)


class Disk:
    """Stands for the system's calls that write below `folder`; from number `fails_at` on they fail.

    With `once` the disk has room again after the first failure.
    """

    def __init__(self, folder: Path, number: int, fails_at: int | None, *, once: bool) -> None:
        self.folder, self.number, self.fails_at, self.once = str(folder), number, fails_at, once
        self.calls = 0

    def _write(self, path: Any) -> None:
        if not str(path).startswith(self.folder) or str(path).endswith(".lock"):
            return
        self.calls += 1
        late = self.fails_at is not None and self.calls >= self.fails_at
        if late and not (self.once and self.calls > self.fails_at):
            raise OSError(self.number, os.strerror(self.number), str(path))

    def installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        replace, mkstemp, path_open = os.replace, tempfile.mkstemp, Path.open
        write_bytes = Path.write_bytes

        def replaced(source: Any, target: Any, **more: Any) -> None:
            self._write(target)
            replace(source, target, **more)

        def made(*arguments: Any, **more: Any) -> Any:
            self._write(more.get("dir"))
            return mkstemp(*arguments, **more)

        def opened(path: Path, mode: str = "r", *arguments: Any, **more: Any) -> Any:
            if set(mode) & set("wax+"):
                self._write(path)
            return path_open(path, mode, *arguments, **more)

        def written(path: Path, content: Any) -> int:
            self._write(path)
            return write_bytes(path, content)

        monkeypatch.setattr(os, "replace", replaced)
        monkeypatch.setattr(tempfile, "mkstemp", made)
        monkeypatch.setattr(Path, "open", opened)
        monkeypatch.setattr(Path, "write_bytes", written)


def whole(folder: Path) -> None:
    """Nothing is half written, and no temporary file is left."""
    assert not list(folder.rglob("*.tmp"))
    for path in folder.rglob("*.json"):
        assert read_json(path) is not None, path
    for path in folder.rglob("*.jsonl"):
        for line in path.read_text().splitlines():
            json.loads(line)
    for path in folder.rglob("*.pt"):
        checkpoint.load(path)


@contextlib.contextmanager
def patched() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield monkeypatch


def writes_of(*overrides: str, where: str = "counted") -> int:
    disk = Disk(Path.cwd() / where, FULL, None, once=False)
    with patched() as monkeypatch:
        disk.installed(monkeypatch)
        ran(*overrides, f"paths.output_dir={where}")
    return disk.calls


def at_every_write(
    overrides: list[str], number: int, step: int, *, once: bool, first: int = 1
) -> Iterator[int]:
    """Run with the n-th write failing, from the `first` on; check how it ends; yield n."""
    for n in range(first, writes_of(*overrides) + 1, step):
        folder = Path(f"n{n}").absolute()
        disk = Disk(folder, number, n, once=once)
        with patched() as monkeypatch:
            disk.installed(monkeypatch)
            try:
                directory = ran(*overrides, f"paths.output_dir={folder}")
            except UserError as error:
                text = str(error)
                assert "cannot be written" in text, (n, text)
                assert str(folder) in text, (n, text)
                assert "\n" not in text, (n, text)
                runs = list(folder.glob("*/*"))
                directory = runs[0] if runs else None
                said = None if directory is None else read_json(directory / "status.json")
                if said is not None:
                    assert f"sseg-nase resume={directory}" in text, (n, text)
                    told = f"still says {said['status']}" in text
                    assert said["status"] == "FAILED" or told, (n, said, text)
            else:  # what failed was no part of the results: the report, or the last word to a sink
                said = read_json(directory / "status.json")
                assert said is not None
                assert said["status"] == "FINISHED", n
                assert (directory / "results.json").exists(), n
        whole(folder)
        yield n


@pytest.mark.parametrize(
    "number", [FULL, *(pytest.param(other, marks=pytest.mark.slow) for other in (READ_ONLY, QUOTA))]
)
def test_every_write_that_fails_is_one_message_and_a_true_status(
    number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    overrides = [*TINY, "tracking=jsonl", "ablation=A1", "report.at_end=false"]
    done = list(at_every_write(overrides, number, 9 if number != FULL else 5, once=False))
    assert len(done) > 4
    assert "Traceback" not in capfd.readouterr().err


def test_a_run_in_training_keeps_its_checkpoint_and_is_resumed_with_room() -> None:
    overrides = [*TINY, "tracking=jsonl", "report.at_end=false"]
    resumed = 0
    for n in at_every_write(overrides, FULL, 17, once=False):
        for directory in Path(f"n{n}").glob("*/*"):
            if read_json(directory / "status.json") is not None:
                ran(f"resume={directory}")
                assert json.loads((directory / "status.json").read_text())["status"] == "FINISHED"
                resumed += 1
    assert resumed > 2


@pytest.mark.slow
@pytest.mark.parametrize("once", [False, True])
def test_every_single_write_of_a_training(once: bool) -> None:
    overrides = [*TINY, "tracking=jsonl", "report.at_end=false"]
    assert len(list(at_every_write(overrides, FULL, 1, once=once))) > 50


@pytest.mark.slow
@pytest.mark.parametrize("once", [False, True])
def test_every_third_write_of_a_report(once: bool) -> None:
    overrides = [*TINY, "ablation=A1", "tracking=jsonl"]
    first = writes_of(*overrides, "report.at_end=false", where="without") - 2
    with_report = [*overrides, "report.at_end=true"]
    assert len(list(at_every_write(with_report, FULL, 3, once=once, first=first))) > 6


def test_status_is_written_into_its_own_blocks_where_no_new_file_fits() -> None:
    directory = ran(*TINY, "tracking=jsonl", "ablation=A1", "report.at_end=false")
    from sseg_nase.rundir.directory import RunDirectory

    place = RunDirectory(directory)
    place.write_status("RUNNING")

    def full(*arguments: Any, **more: Any) -> Any:
        raise OSError(FULL, "No space left on device")

    with patched() as monkeypatch:
        monkeypatch.setattr(tempfile, "mkstemp", full)
        for status in ("INTERRUPTED", "FAILED"):
            place.write_status(status, "the disk is full", "a long traceback" * 1000)
            for good in ("FINISHED", "RUNNING"):
                with pytest.raises(StorageError):
                    place.write_status(good)  # that must not be said in this way
            said = json.loads((directory / "status.json").read_text())
            assert (said["status"], said["error"]) == (status, "the disk is full")


def test_room_for_two_checkpoints_is_wanted_before_the_first_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(files, "free_bytes", lambda folder: 300_000)
    with pytest.raises(UserError, match=r"300\.0 kB are free, .* are needed") as refused:
        ran(*TINY, "tracking=jsonl")
    (directory,) = Path("runs/debug").iterdir()
    assert not (directory / "checkpoints").exists()
    assert '"kind": "epoch"' not in (directory / "events.jsonl").read_text()
    assert f"sseg-nase resume={directory.absolute()}" in str(refused.value)
    assert json.loads((directory / "status.json").read_text())["status"] == "FAILED"


def test_a_checkpoint_that_does_not_fit_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.pt"
    write_bytes(path, b"old")
    monkeypatch.setattr(files, "free_bytes", lambda folder: 1000)
    with pytest.raises(StorageError, match=r"1\.0 kB are free, 2\.0 kB are needed"):
        write_bytes(path, b"x" * 2000)
    assert path.read_bytes() == b"old"


# -- files ---------------------------------------------------------------------------------------


def test_a_file_is_on_the_disk_before_it_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append("fsync"), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("replace"), replace(a, b)))
    write_text(tmp_path / "a", "text")
    assert done == ["fsync", "replace"]


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_text(path, "new"),
        lambda path: write_json(path, {"new": 1}),
        lambda path: write_bytes(path, b"new"),
        lambda path: checkpoint.save(path, {"new": 1}),
    ],
)
def test_a_write_that_fails_midway_leaves_the_old_file(
    write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    original = Path.write_bytes

    def half(self: Path, content: Any) -> int:
        original(self, bytes(content)[: len(content) // 2])
        raise OSError(FULL, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(StorageError, match="no space is left"):
        write(path)
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["a"]


def test_half_a_line_does_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events.jsonl"
    append_line(path, {"first": 1})
    original = Path.open

    class Half:
        def __init__(self, file: Any) -> None:
            self.file = file
            self.calls = 0

        def write(self, content: Any) -> int:
            self.calls += 1
            if self.calls > 1:
                raise OSError(FULL, "No space left on device")
            return int(self.file.write(bytes(content)[:3]))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def __enter__(self) -> Half:
            return self

        def __exit__(self, *ending: object) -> None:
            self.file.close()

    monkeypatch.setattr(Path, "open", lambda self, *a, **k: Half(original(self, *a, **k)))
    with pytest.raises(StorageError):
        append_line(path, {"second": 2})
    monkeypatch.undo()
    append_line(path, {"third": 3})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"first": 1},
        {"third": 3},
    ]


def test_other_failures_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="null byte"):
        write_text(tmp_path / "a\0b", "text")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB, where one may be mounted."""
    place = tmp_path / "small"
    place.mkdir()
    try:
        command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"nothing can be mounted here: {error}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True, capture_output=True)


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    overrides = [*TINY, "tracking=jsonl", f"paths.output_dir={small_disk}/runs"]
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 3_000_000)
    with pytest.raises(UserError, match=r"small.* cannot be written: no space is left"):
        ran(*overrides)
    (directory,) = (small_disk / "runs" / "debug").iterdir()
    assert json.loads((directory / "status.json").read_text())["status"] == "FAILED"
    whole(small_disk)
    filler.unlink()
    ran(f"resume={directory}", "report.at_end=false")
    assert json.loads((directory / "status.json").read_text())["status"] == "FINISHED"


def test_a_disk_that_fills_in_training(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sseg_nase.training.callbacks import Checkpoints

    save = Checkpoints._save

    def filling(self: Checkpoints, name: str, trainer: Any) -> None:
        with contextlib.suppress(OSError), (small_disk / "filler").open("ab", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        save(self, name, trainer)

    monkeypatch.setattr(Checkpoints, "_save", filling)
    with pytest.raises(UserError, match=r"checkpoints cannot be written: no space is left"):
        ran(*TINY, "tracking=jsonl", f"paths.output_dir={small_disk}/runs")
    (directory,) = (small_disk / "runs" / "debug").iterdir()
    said = json.loads((directory / "status.json").read_text())
    assert said["status"] == "FAILED"
    assert "no space is left" in said["error"]
    whole(small_disk)
