"""A fresh SQLite store for every test."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from sseg_nase.tracking import mlflow_sink as module
from tests.support.mlflow_stores import client_of


@pytest.fixture(scope="session", autouse=True)
def _mlflow_loaded() -> None:
    # The sink itself silences what mlflow's dependencies warn of; the tests' own client needs it.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module._load_mlflow()


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that MLflow has set up, without experiments of ours: copied, it saves seconds."""
    database = tmp_path_factory.mktemp("store") / "mlflow.db"
    client_of(f"sqlite:///{database}")
    return database


@pytest.fixture
def uri(tmp_path: Path, migrated: Path) -> str:
    (tmp_path / "mlflow.db").write_bytes(migrated.read_bytes())
    return f"sqlite:///{tmp_path / 'mlflow.db'}"
