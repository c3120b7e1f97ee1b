"""A run and the files that are exported from it, made once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sseg_nase.export.subject import Subject, prepared
from tests.support.taken_home import asked, exported, make_run

ALL = ["onnx", "onnx_int8", "pt2", "python", "html"]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "a-run")


@pytest.fixture(scope="session")
def said(run: Path) -> str:
    return exported(run, formats=ALL)


@pytest.fixture(scope="session")
def files(run: Path, said: str) -> Path:
    return run / "export"


@pytest.fixture(scope="session")
def results(files: Path) -> dict[str, object]:
    return json.loads((files / "export.json").read_text())


@pytest.fixture(scope="session")
def subject(run: Path) -> Subject:
    return prepared(asked(run), [])
