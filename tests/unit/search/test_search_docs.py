from __future__ import annotations

import re
from pathlib import Path

import pytest

from sseg_nase.search import Log

PAGE = Path(__file__).parents[3] / "docs" / "search.md"


@pytest.mark.skipif(not PAGE.exists(), reason="the documentation is not there")
def test_the_examples_of_the_documentation_run(capsys: pytest.CaptureFixture[str]) -> None:
    """In order, in one namespace, and again: then the log is gone on with."""
    blocks = re.findall(r"```python\n(?!# \w+\.py)(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 4
    for _ in range(2):
        names: dict = {}
        exec("\n".join(blocks), names)
        assert "nor_conv_3x3" in capsys.readouterr().out
        assert len(Log.read(Path("searches/first/candidates.jsonl")).told) == 50
        assert len(names["log"].told) == 50
