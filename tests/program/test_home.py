"""Processes of users without a home folder, as in containers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numba
import pytest

from sseg_nase.config.compose import continued, load
from sseg_nase.errors import UserError
from sseg_nase.hardware import compiled
from sseg_nase.home import find_home, temporary_folder


@pytest.fixture(autouse=True)
def _own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    for name in ("XDG_CACHE_HOME", "MPLCONFIGDIR", "SSEG_NASE_CACHE"):
        monkeypatch.setenv(name, "x")  # to be put back whatever the test makes of it
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return folder


def test_a_home_folder_that_can_be_written_is_left_alone() -> None:
    before = dict(os.environ)
    assert find_home() is None
    assert dict(os.environ) == before


def test_without_a_home_folder_there_is_one_below_the_temporary_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    said = find_home()
    own = tmp_path / "temporary" / f"sseg-nase-{os.getuid()}"
    assert said is not None
    assert "there is no home folder" in said
    assert str(own) in said
    assert "SSEG_NASE_CACHE" in said
    assert os.environ["HOME"] == str(own)
    monkeypatch.undo()
    monkeypatch.setenv("HOME", str(own))
    assert Path("~").expanduser() == own
    monkeypatch.setenv("XDG_CACHE_HOME", str(own / ".cache"))
    monkeypatch.delenv("SSEG_NASE_CACHE", raising=False)
    assert load().paths.cache_dir == str(own / ".cache" / "sseg-nase")


def test_a_home_folder_that_is_not_there_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "nowhere"))
    assert find_home() is None  # it can be made
    access = os.access
    monkeypatch.setattr(os, "access", lambda p, m: Path(p) != tmp_path and access(p, m))
    said = find_home()
    assert said is not None
    assert "nowhere is not there" in said
    assert Path(os.environ["HOME"]).is_dir()


def test_a_home_folder_that_cannot_be_written_stays_the_home_but_has_no_caches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    access = os.access
    monkeypatch.setattr(os, "access", lambda p, m: Path(p) != home and access(p, m))
    said = find_home()
    assert said is not None
    assert f"{home} cannot be written" in said
    assert Path("~/photos").expanduser() == home / "photos"
    caches = Path(os.environ["XDG_CACHE_HOME"])
    assert caches.is_relative_to(tmp_path / "temporary")
    assert Path(os.environ["MPLCONFIGDIR"]).is_dir()
    assert load().paths.cache_dir == str(caches / "sseg-nase")
    assert find_home() is None  # it is said once


def test_a_folder_that_someone_else_has_prepared_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = temporary_folder()
    assert mine.stat().st_mode & 0o777 == 0o700
    assert temporary_folder() == mine
    mine.chmod(0o777)  # anybody could put machine code there
    other = temporary_folder()
    assert other != mine
    shutil.rmtree(mine)
    mine.symlink_to(tmp_path)
    assert temporary_folder() != mine


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="users have no numbers here")
def test_a_folder_of_another_user_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    user = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: user)  # what is made belongs to the one before
    assert temporary_folder().name != f"sseg-nase-{user}"


def test_a_file_that_has_the_name_of_the_folder_is_passed_by(tmp_path: Path) -> None:
    taken = tmp_path / "temporary" / f"sseg-nase-{os.getuid()}"
    taken.write_text("")
    assert temporary_folder().is_dir()
    assert taken.is_file()


def test_a_home_that_is_a_file_is_replaced_and_caches_that_were_named_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "file"
    home.write_text("")
    home.chmod(0o755)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "mine"))
    said = find_home()
    assert said is not None
    assert "file is not there" in said
    assert Path(os.environ["HOME"]).is_dir()
    assert Path(os.environ["XDG_CACHE_HOME"]).is_dir()
    assert os.environ["MPLCONFIGDIR"] == str(tmp_path / "mine")


def test_kernels_are_compiled_once_also_where_numba_finds_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    njit, asked = numba.njit, []

    def refusing(*arguments: object, **options: object) -> object:
        def decorated(function: object) -> object:
            asked.append(bool(options.get("cache")))
            if options.get("cache") and not numba.config.CACHE_DIR:
                raise RuntimeError("cannot cache function: no locator available")
            return njit(**options)(function)

        return decorated

    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setattr(numba, "njit", refusing)
    compiled._cache_elsewhere.cache_clear()
    one = compiled.compiled(lambda x: x + 1)
    two = compiled.compiled(lambda x: x + 2)
    compiled._cache_elsewhere.cache_clear()
    assert (one(1), two(1)) == (2, 3)
    assert asked == [True, True, True]
    assert list((tmp_path / "temporary").rglob("*.nbi"))
    (said,) = caplog.messages
    assert "NUMBA_CACHE_DIR" in said


def test_an_asked_for_folder_that_cannot_be_written_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = tmp_path / "file" / "cache"
    asked.parent.write_text("")
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(asked))
    # What numba takes next would be kept beside this file.
    monkeypatch.setattr(numba.core.caching.InTreeCacheLocator, "from_function", lambda *_: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(compiled, "_said", set())
    one = compiled.compiled(lambda x: x + 1)
    two = compiled.compiled(lambda x: x + 2)
    assert (one(1), two(1)) == (2, 3)
    (said,) = caplog.messages
    assert f"NUMBA_CACHE_DIR={asked} cannot be written" in said
    assert str(next((tmp_path / "home").rglob("*.nbi")).parent) in said


def test_kernels_run_where_their_folder_is_lost_or_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "cache"
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(folder))
    monkeypatch.setattr(compiled, "_said", set())
    one = compiled.compiled(lambda x: x + 1)
    two = compiled.compiled(lambda x: x + 2)
    assert one(1) == 2
    (index,) = folder.rglob("*.nbi")
    index.write_bytes(b"")
    again = compiled.compiled(one.py_func)
    assert again(1) == 2
    assert len(caplog.messages) == 1
    shutil.rmtree(folder)
    folder.write_text("")
    assert (two(1), two(1.0), again(1.0)) == (3, 3.0, 2.0)
    broken, lost = caplog.messages
    assert f"{folder}" in broken
    assert "(EOFError)" in broken
    assert "(NotADirectoryError)" in lost


@pytest.mark.parametrize(
    "override",
    [
        "dataset.root='~nobody-here/x'",
        "paths.cache_dir='~nobody-here'",
        "checkpoint='~nobody-here/last.pt'",
        "resume='~nobody-here/run'",
    ],
)
def test_the_home_of_an_unknown_user_is_a_mistake(override: str) -> None:
    with pytest.raises(UserError, match="~nobody-here is no home folder that is known"):
        load(["dataset=folder", "dataset.root=x", override, *continued([override])])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("setpriv") is None or os.getuid() != 0, reason="needs another uid")
def test_an_unknown_user_without_a_home_runs_the_program(request: pytest.FixtureRequest) -> None:
    # Not below pytest's own folder, which is root's alone.
    work = Path(tempfile.mkdtemp(dir="/tmp"))
    request.addfinalizer(lambda: shutil.rmtree(work))
    work.chmod(0o777)
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "SSEG_NASE_CACHE")}
    done = subprocess.run(
        [
            "setpriv", "--reuid=12345", "--regid=12345", "--clear-groups", sys.executable, "-m",
            "sseg_nase", "debug=tiny", "hardware=cpu", "ablation=A1", "report.at_end=true",
        ],
        cwd=work,
        env={**environment, "TMPDIR": str(work)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr.count("there is no home folder") == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert list(work.glob("runs/*/*/report/report.html"))


@pytest.mark.parametrize("key", ["paths.output_dir", "dataset.root", "resume"])
def test_a_home_folder_that_is_not_known_is_named_with_its_whole_key(key: str) -> None:
    with pytest.raises(UserError, match=rf"^{key}=~nobody-of-that-name/x: "):
        load(["dataset=folder", "dataset.root=x", f"{key}=~nobody-of-that-name/x"])
