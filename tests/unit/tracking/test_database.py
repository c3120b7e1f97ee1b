"""MLflow's file is looked at before MLflow opens it, and what is wrong is said at once."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sseg_nase.config.compose import load
from sseg_nase.errors import UserError
from sseg_nase.run import run
from sseg_nase.tracking import database, mlflow_sink
from sseg_nase.tracking.database import StoreError, check_database
from sseg_nase.tracking.mlflow_sink import page_of, reason, resolve_uri, unused_address
from sseg_nase.tracking.sink import RunInfo

TINY = [
    "debug=tiny",
    "hardware=cpu",
    "hardware.threads=1",
    "ablation=A1",
    "evaluation.episodes=2",
    "evaluation.shots=[1]",
    "report.at_end=false",
]

pytestmark = pytest.mark.filterwarnings("ignore")  # what MLflow stands on is full of them


def schema(file: Path, revision: str) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE experiments (name TEXT)")
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES (?)", (revision,))
    connection.close()


def a_folder(file: Path) -> None:
    file.mkdir()


def no_database(file: Path) -> None:
    file.write_text("once upon a time")


def damaged(file: Path) -> None:
    schema(file, "x")
    content = bytearray(file.read_bytes())
    content[100:4000] = b"\xff" * 3900
    file.write_bytes(bytes(content))


def of_another_program(file: Path) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE photos (name TEXT)")
    connection.close()


def too_new(file: Path) -> None:
    schema(file, "ffffffffffff")


def too_old(file: Path) -> None:
    schema(file, "451aebb31d03")


def below_a_file(file: Path) -> None:
    file.parent.rmdir()
    file.parent.write_text("")


CASES: list[tuple[Callable[[Path], None], str]] = [
    (a_folder, r"is a folder, not a database file; choose another file"),
    (no_database, r"is not a SQLite database"),
    (damaged, r"is damaged"),
    (of_another_program, r"a database of another program"),
    (too_new, r"written by a newer MLflow than \d.* install that version"),
    (too_old, r"by an older MLflow .*mlflow db upgrade '?sqlite:///.*x\.db"),
    (below_a_file, r"cannot be (made|read)"),
]


@pytest.mark.parametrize(("spoil", "said"), CASES, ids=[case[0].__name__ for case in CASES])
def test_what_is_wrong_is_said_at_once(
    spoil: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    file = tmp_path / "deep" / "x.db"
    file.parent.mkdir()
    spoil(file)
    before = file.read_bytes() if file.is_file() else None
    notes: list[tuple[str, str]] = []
    sink = mlflow_sink.MlflowSink(
        f"sqlite:///{file}", "e", required=False, notify=lambda *note: notes.append(note)
    )
    began = time.monotonic()
    sink.open(RunInfo(tmp_path, "r", "e", tmp_path / "config.yaml", 0))
    assert time.monotonic() - began < 5
    ((kind, text),) = notes
    assert kind == "warning"
    with pytest.raises(StoreError, match=said):
        check_database(file)
    assert "<database_uri>" not in text
    assert reason(StoreError("x" * 1000)) == "x" * 1000 + "."  # the remedy stands at its end
    assert sink.page is None
    assert before is None or file.read_bytes() == before


@pytest.mark.parametrize("lock", ["EXCLUSIVE", "IMMEDIATE"])  # no reader, or no other writer
def test_a_locked_file_is_waited_for_and_named(
    lock: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "x.db"
    schema(file, next(iter(database._revisions()[1])))
    check_database(file)
    monkeypatch.setattr(database, "SECONDS_TO_WAIT", 0.1)
    holder = sqlite3.connect(file, isolation_level=None)
    holder.execute(f"BEGIN {lock}")
    try:
        with pytest.raises(StoreError, match="is locked by another process"):
            check_database(file)
    finally:
        holder.close()
    check_database(file)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (sqlite3.OperationalError("attempt to write a readonly database"), "cannot be written"),
        (sqlite3.OperationalError("unable to open database file"), "cannot be written"),
        (sqlite3.DatabaseError("database disk image is malformed"), "is damaged"),
    ],
)
def test_what_sqlite_says_becomes_a_remedy(error: sqlite3.Error, said: str, tmp_path: Path) -> None:
    assert said in str(database._refused(tmp_path / "x.db", error))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to another user")
def test_a_file_of_another_user_is_named_with_its_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "x.db"
    schema(file, "x")
    file.chmod(0o600)
    os.chown(file, 12345, 12345)

    def refused(*arguments: Any, **more: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(StoreError, match="mode 600 of user 12345"):
        check_database(file)


def test_a_folder_that_takes_no_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda place, mode: mode == os.F_OK)
    with pytest.raises(StoreError, match=f"{tmp_path} is not writable"):
        check_database(tmp_path / "new" / "x.db")


def test_a_file_without_tables_is_taken_and_half_a_store_is_not(tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    check_database(tmp_path / "empty.db")
    for name in ("alembic_version", "experiments"):
        file = tmp_path / f"{name}.db"
        with sqlite3.connect(file) as connection:
            connection.execute("PRAGMA user_version = 3")
        check_database(file)  # SQLite's, and nothing in it
        assert sqlite3.connect(file).execute("PRAGMA user_version").fetchone() == (3,)
        with sqlite3.connect(file) as connection:
            connection.execute(f"CREATE TABLE {name} (version_num TEXT)")
        connection.close()
        with pytest.raises(StoreError, match="a database of another program"):
            check_database(file)


def test_a_store_that_was_only_begun_is_left_to_mlflow(tmp_path: Path) -> None:
    file = tmp_path / "x.db"
    schema(file, "x")
    with sqlite3.connect(file) as connection:
        connection.execute("DELETE FROM alembic_version")
    connection.close()
    check_database(file)


def test_a_fresh_and_a_used_store_are_taken(tmp_path: Path) -> None:
    file = tmp_path / "x.db"
    check_database(file)
    assert not file.exists()
    mlflow_sink.open_store(f"sqlite:///{file}", "e")
    copied = shutil.copy(file, tmp_path / "copied.db")
    content = copied.read_bytes()
    check_database(copied)
    assert copied.read_bytes() == content


def test_the_last_line_does_not_recommend_what_could_not_be_used(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("mlflow.db").mkdir()
    run(load(TINY), TINY)
    said = capsys.readouterr().out
    assert "is a folder, not a database file" in said
    assert "compare runs" not in said
    assert "mlflow ui" not in said


def test_a_store_that_is_required_is_refused_with_the_remedy() -> None:
    Path("mlflow.db").mkdir()
    overrides = [*TINY, "tracking.required=true"]
    with pytest.raises(UserError, match="is a folder") as refused:
        run(load(overrides), overrides)
    assert "tracking=jsonl" in str(refused.value)


def test_the_last_line_opens_the_run_itself(capsys: pytest.CaptureFixture[str]) -> None:
    directory = run(load(TINY), TINY)
    from sseg_nase.rundir.status import status_of

    run_id = status_of(directory)["tracker_run_id"]
    said = capsys.readouterr().out
    assert f"/runs/{run_id}?workflowType=machine_learning" in said
    assert f"mlflow ui --backend-store-uri sqlite:///{Path.cwd()}/mlflow.db" in said
    assert page_of("https://h/m", "3", "abc") == (
        "https://h/m/#/experiments/3/runs/abc?workflowType=machine_learning"
    )


# -- MLFLOW_TRACKING_URI ---------------------------------------------------------------------------


def test_mlflow_tracking_uri_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    here = f"sqlite:///{Path.cwd() / 'mlflow.db'}"
    assert resolve_uri(None) == here
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///team.db")
    assert resolve_uri(None) == f"sqlite:///{Path.cwd() / 'team.db'}"
    config = load(TINY).tracking
    assert unused_address(config) is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://team:5000/")
    assert resolve_uri(None) == "http://team:5000"
    assert resolve_uri("sqlite:///own.db") == f"sqlite:///{Path.cwd() / 'own.db'}"


@pytest.mark.parametrize("value", ["file:///mlruns", "./mlruns", "databricks", "http://"])
def test_an_address_that_cannot_be_used_is_said(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", value)
    assert resolve_uri(None) == f"sqlite:///{Path.cwd() / 'mlflow.db'}"
    said = unused_address(load(TINY).tracking)
    assert said is not None
    assert f"MLFLOW_TRACKING_URI={value} is not used" in said
    assert str(Path.cwd() / "mlflow.db") in said
    assert unused_address(load([*TINY, "tracking=jsonl"]).tracking) is None


def test_an_address_that_another_one_wins_over_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://bob:pw@team:5000")
    said = unused_address(load([*TINY, "tracking.uri=sqlite:///own.db"]).tracking)
    assert said is not None
    assert "MLFLOW_TRACKING_URI=http://team:5000 is not used" in said
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///team.db")
    said = unused_address(load([*TINY, "tracking.uri=sqlite:///own.db"]).tracking)
    assert said is not None
    assert "sqlite:///team.db is not used" in said
