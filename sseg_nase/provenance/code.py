"""Which code a sweep was submitted with, and what has changed in it since."""

from __future__ import annotations

import hashlib
from typing import Any

from sseg_nase.config.conf_files import conf_dir
from sseg_nase.provenance import PACKAGE
from sseg_nase.provenance.git import git_commit, git_diff
from sseg_nase.version import __version__


def describe() -> dict[str, Any]:
    """Return version, git commit (None outside git) and a hash of every source and config file."""
    return {
        "version": __version__,
        "commit": git_commit(PACKAGE),
        "files": _hashes(),
    }


def difference() -> str | None:
    """Return what the working tree has beyond the commit, as a patch; None outside git."""
    return git_diff(PACKAGE)


def changed_since(described: dict[str, Any]) -> list[str]:
    """Return the files that differ from those of an earlier `describe`, sorted."""
    before, now = described.get("files", {}), _hashes()
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def _hashes() -> dict[str, str]:
    files = {f"sseg_nase/{p.relative_to(PACKAGE).as_posix()}": p for p in PACKAGE.rglob("*.py")}
    files |= {f"conf/{p.relative_to(conf_dir()).as_posix()}": p for p in conf_dir().rglob("*.yaml")}
    return {name: hashlib.sha256(p.read_bytes()).hexdigest()[:16] for name, p in files.items()}
