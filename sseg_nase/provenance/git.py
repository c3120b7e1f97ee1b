"""Who runs which code, as far as git and the system know."""

from __future__ import annotations

import getpass
import os
import subprocess
from functools import cache
from pathlib import Path

from sseg_nase.provenance import PACKAGE

SECONDS_FOR_GIT = 10


def origin() -> dict[str, str]:
    """Return the tags under which MLflow shows who runs which code."""
    known = {
        "mlflow.user": _user(),
        "mlflow.source.name": "sseg-nase",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": _own_commit(),
    }
    return {key: value for key, value in known.items() if value}


def git_commit(folder: Path) -> str | None:
    """Return the commit that `folder` is checked out at; `None` where git tracks nothing in it."""
    if _git(folder, "ls-files", "--error-unmatch", ".") is None:
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    return None if commit is None else commit.strip()


def git_diff(folder: Path) -> str | None:
    """Return what the checkout that `folder` is in has beyond its commit, as a patch.

    Untracked files are left out. `None` where git tracks nothing in `folder`.
    """
    if git_commit(folder) is None:
        return None
    top = _git(folder, "rev-parse", "--show-toplevel")
    return None if top is None else _git(Path(top.strip()), "diff", "--no-ext-diff", "HEAD")


@cache
def _own_commit() -> str | None:
    """Of the code that this process runs, as it was when it was first asked."""
    return git_commit(PACKAGE)


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user without a name
        return None


def _git(folder: Path, *arguments: str) -> str | None:
    # Inside a git hook GIT_DIR points elsewhere.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=SECONDS_FOR_GIT,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
