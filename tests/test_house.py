"""The dependency rule of the README (imports go downward only), and the names of test files."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

import sseg_nase

PACKAGE = Path(sseg_nase.__file__).parent
FLOORS = [
    {"__init__"},  # the names that are importable from `sseg_nase` itself, from all rooms
    {"__main__"},
    {"cli"},
    {"searches"},
    {"sweeps", "search"},
    {"run", "stages", "directory"},
    {"finetune"},
    {"training", "oneshot", "fewshot", "reporting"},
    {"evolution", "sparsity", "ssl"},
    {"nets", "data", "spaces"},
    {"hardware", "tracking", "config"},
    {"files"},
    {"errors", "redaction", "home", "finite", "counting"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
ONLY_IN = {
    "submitit": {"sweeps"},
    "hydra": {"config", "cli"},
    "omegaconf": {"config", "cli"},
    "mlflow": {"tracking"},
    "lightning_fabric": {"training"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_downward(path: Path) -> None:
    here = room_of(path)
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "sseg_nase" and rest and rest[0] in FLOOR:
            assert FLOOR[rest[0]] >= FLOOR[here], f"{here} imports {name}, which stands above it"
        if top in ONLY_IN:
            assert here in ONLY_IN[top], f"{here} imports {name}"


def test_every_room_has_a_floor() -> None:
    assert {room_of(path) for path in FILES} == set(FLOOR)


def test_no_two_files_of_tests_share_a_name() -> None:
    # pytest imports them by their names alone: of two, the second is an error of a whole run only.
    names = Counter(
        path.name
        for path in Path(__file__).parent.rglob("*.py")
        if path.name not in ("__init__.py", "conftest.py")
        and not (path.parent / "__init__.py").exists()
    )
    assert [name for name, files in names.items() if files > 1] == []
