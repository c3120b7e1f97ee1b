"""The names of test files. Which room may import which: `make lint`, by pyproject.toml."""

from __future__ import annotations

from collections import Counter
from pathlib import Path


def test_no_two_files_of_tests_share_a_name() -> None:
    # pytest imports them by their names alone: of two, the second is an error of a whole run only.
    names = Counter(
        path.name
        for path in Path(__file__).parent.rglob("*.py")
        if path.name not in ("__init__.py", "conftest.py")
        and not (path.parent / "__init__.py").exists()
    )
    assert [name for name, files in names.items() if files > 1] == []
