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


SLOW_VARIANTS = Path(__file__).with_name("slow_variants.txt")
_LOST = pytest.StashKey[list[str]]()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the variants of tests that take long as slow."""
    lines = SLOW_VARIANTS.read_text(encoding="utf-8").splitlines()
    listed = {line for line in lines if line and not line.startswith("#")}
    for item in items:
        if item.nodeid in listed:
            item.add_marker("slow")
    whole = [Path(arg).resolve() for arg in config.args] == [SLOW_VARIANTS.parent.resolve()]
    config.stash[_LOST] = sorted(listed - {item.nodeid for item in items}) if whole else []


@pytest.fixture
def lost_variants(pytestconfig: pytest.Config) -> list[str]:
    """What slow_variants.txt lists and is no test; known where all tests are collected."""
    return pytestconfig.stash[_LOST]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in a folder of its own: `runs` and `mlflow.db` go there."""
    monkeypatch.chdir(tmp_path)
