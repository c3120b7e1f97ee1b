"""MLflow's SQLite file, looked at before MLflow opens it: what is wrong is known in an instant."""

from __future__ import annotations

import os
import re
import shlex
import sqlite3
from contextlib import closing, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

HEADER = b"SQLite format 3\0"
SECONDS_TO_WAIT = 5.0  # for another process that writes
ANOTHER = "choose another file with tracking.uri=sqlite:///FILE"


class StoreError(Exception):
    """Why a database file cannot be MLflow's store, and what helps: a sentence each."""


def check_database(file: Path) -> None:
    """Raise `StoreError` unless MLflow can read and write `file`, which need not exist yet."""
    try:
        if file.is_dir():
            raise StoreError(f"{file} is a folder, not a database file; {ANOTHER}.")
        if not file.exists():
            _check_folder(file)
            return
        with file.open("rb") as content:
            begins = content.read(len(HEADER))
        if begins and begins != HEADER:
            raise StoreError(f"{file} is not a SQLite database; {ANOTHER}.")
        with closing(sqlite3.connect(file, timeout=SECONDS_TO_WAIT)) as database:
            _check_writable(database)
            _check_schema(database, file)
    except sqlite3.Error as error:
        raise _refused(file, error) from error
    except OSError as error:
        raise StoreError(
            f"{file} cannot be read ({error.strerror}{_owner(file)}); change its owner or its "
            f"permissions, or {ANOTHER}."
        ) from error


def _check_folder(file: Path) -> None:
    """MLflow will make the file: its folder, or the first one above that is there, takes one."""
    folder = next(place for place in file.parents if place.exists())
    if not folder.is_dir():
        raise StoreError(f"{folder} is no folder, so {file} cannot be made there; {ANOTHER}.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StoreError(
            f"{file} cannot be made: {folder} is not writable{_owner(folder)}; {ANOTHER}."
        )


def _check_writable(database: sqlite3.Connection) -> None:
    """Write what is there already, and take it back: it needs the file and its journal."""
    (number,) = database.execute("PRAGMA user_version").fetchone()
    database.isolation_level = None
    database.execute("BEGIN IMMEDIATE")
    try:
        database.execute(f"PRAGMA user_version = {int(number)}")
    finally:
        with suppress(sqlite3.Error):  # a failed statement may have ended it
            database.execute("ROLLBACK")


def _check_schema(database: sqlite3.Connection, file: Path) -> None:
    rows = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    tables = {name for (name,) in rows}
    if not tables:
        return
    if "alembic_version" not in tables or "experiments" not in tables:
        raise StoreError(f"{file} is a database of another program, not MLflow's; {ANOTHER}.")
    found = {row[0] for row in database.execute("SELECT version_num FROM alembic_version")}
    known, latest = _revisions()
    if not known or found <= latest:
        return
    ours = _mlflow_version()
    if found - known:
        raise StoreError(
            f"{file} was written by a newer MLflow than {ours}, which is installed here (its "
            f"schema {', '.join(sorted(found - known))} is not known); install that version, or "
            f"{ANOTHER}."
        )
    address = shlex.quote(f"sqlite:///{file}")
    raise StoreError(
        f"{file} was written by an older MLflow than {ours}, which is installed here; copy it, "
        f"then bring it up to date with: mlflow db upgrade {address}"
    )


def _refused(file: Path, error: sqlite3.Error) -> StoreError:
    text = str(error)
    if "locked" in text or "busy" in text:
        return StoreError(
            f"{file} is locked by another process, also after {SECONDS_TO_WAIT:.0f} s; end what "
            "holds it (`fuser` names it), or wait."
        )
    if "readonly" in text or "unable to open" in text:
        return StoreError(
            f"{file} cannot be written ({text}{_owner(file)}; SQLite also needs to write to its "
            f"folder); change permissions or owner, or {ANOTHER}."
        )
    if "not a database" in text or "malformed" in text:
        return StoreError(f"{file} is damaged ({text}); restore it from a copy, or {ANOTHER}.")
    return StoreError(f"{file} cannot be used ({text}); {ANOTHER}.")


def _owner(path: Path) -> str:
    """Whose it is and who may do what, for a message."""
    try:
        about = path.stat()
    except OSError:
        return ""
    who = ""
    if hasattr(os, "getuid") and about.st_uid != os.getuid():
        try:
            who = f" of user {path.owner()}"
        except (KeyError, NotImplementedError):
            who = f" of user {about.st_uid}"
    return f", mode {about.st_mode & 0o777:o}{who}"


@cache
def _revisions() -> tuple[frozenset[str], frozenset[str]]:
    """The schemas that the installed MLflow knows, and its latest; none where it hides them."""
    package = find_spec("mlflow")
    if package is None or package.origin is None:
        return frozenset(), frozenset()
    known, replaced = set[str](), set[str]()
    folder = Path(package.origin).parent / "store" / "db_migrations" / "versions"
    for path in folder.glob("*.py"):
        text = path.read_text(encoding="utf-8", errors="replace")
        known |= set(re.findall(r"^revision(?:: \w+)? = ['\"](\w+)['\"]", text, re.MULTILINE))
        for line in re.findall(r"^down_revision(?:: [^=]+)? = (.+)$", text, re.MULTILINE):
            replaced |= set(re.findall(r"['\"](\w+)['\"]", line))
    return frozenset(known), frozenset(known - replaced)


def _mlflow_version() -> str:
    try:
        return version("mlflow")
    except PackageNotFoundError:
        return "the one"
