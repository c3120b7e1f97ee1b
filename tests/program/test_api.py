"""The names that `sseg_nase` offers to notebooks."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sseg_nase

PACKAGE = Path(sseg_nase.__file__).parent
PAGE = PACKAGE.parent / "docs" / "reference" / "python.md"


def front_door() -> ast.Module:
    return ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", sseg_nase.__all__)
def test_a_name_is_there_and_says_what_it_does(name: str) -> None:
    found = getattr(sseg_nase, name)
    said = inspect.getdoc(found) or ""
    assert len(said) > 40
    if not inspect.isclass(found):
        assert all(
            parameter.annotation is not inspect.Parameter.empty
            for parameter in inspect.signature(found).parameters.values()
        )


def test_a_name_of_a_module_is_no_name_of_the_api() -> None:
    # Once imported, the module would stand in its place.
    modules = {path.stem for path in PACKAGE.iterdir()}
    assert modules.isdisjoint(sseg_nase.__all__)
    assert len(set(sseg_nase.__all__)) == len(sseg_nase.__all__)


def test_type_checkers_are_told_what_is_loaded() -> None:
    told = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in ast.walk(front_door())
        if isinstance(node, ast.ImportFrom)
        and node.module
        and node.module not in ("importlib", "sseg_nase.version")
        for alias in node.names
    }
    loaded = {}
    for name, home in sseg_nase._HOMES.items():
        module, _, called = home.partition(":")
        loaded[name] = (f"sseg_nase.{module}", called or name)
    assert told == loaded
    assert sseg_nase.__all__ == list(loaded)


def test_what_is_offered_is_checked_strictly() -> None:
    text = (PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8")
    (listed,) = re.findall(r"^# What users import.*?module = \[(.*?)\]", text, re.S | re.M)
    strict = set(re.findall(r'"([\w.*]+)"', listed))
    homes = {f"sseg_nase.{home.partition(':')[0]}" for home in sseg_nase._HOMES.values()}
    assert {home for home in homes if not {home, f"{home.rpartition('.')[0]}.*"} & strict} == set()


def test_the_documentation_lists_every_name() -> None:
    page = PAGE.read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    assert [name for row in rows for name in re.findall(r"`(\w+)`", row)] == sseg_nase.__all__


def test_another_name_is_refused_as_any_module_does() -> None:
    with pytest.raises(AttributeError, match="no attribute 'groww'"):
        _ = sseg_nase.groww  # type: ignore[attr-defined]
    assert {"grow", "__version__"} <= set(dir(sseg_nase))


def test_a_name_of_the_last_version_is_that_of_this_one() -> None:
    with pytest.deprecated_call(match=r"^sseg_nase\.judge is called evaluate; the old name goes"):
        old = sseg_nase.judge
    assert old is sseg_nase.evaluate
    assert "judge" not in dir(sseg_nase)


def test_importing_the_package_loads_its_version_and_nothing_else() -> None:
    code = (
        "import sys; before = set(sys.modules); import sseg_nase; dir(sseg_nase)\n"
        "print(*(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {"sseg_nase", "sseg_nase.version"}


def test_rooms_do_not_go_through_the_front_door() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "sseg_nase":
                assert not {alias.name for alias in node.names} & set(sseg_nase.__all__), path
