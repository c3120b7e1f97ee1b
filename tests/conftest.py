"""What all tests share."""

from __future__ import annotations

import atexit
import os
import tempfile
from pathlib import Path

import pytest

# Two cores: one thread a process is faster for networks this small, and exactly repeatable.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Image stores of tests never end up in the user's cache. Set before any config is composed.
_CACHE = tempfile.TemporaryDirectory(prefix="sseg-nase-tests-")
os.environ["SSEG_NASE_CACHE"] = _CACHE.name
atexit.register(_CACHE.cleanup)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in a folder of its own: `runs` and `mlflow.db` go there."""
    monkeypatch.chdir(tmp_path)
