"""What git knows of the code that runs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

SECONDS_FOR_GIT = 10


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
