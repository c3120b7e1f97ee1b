from __future__ import annotations

import re
from pathlib import Path

import pytest

from sseg_nase.search import Log
from tests.support.small_search import QUIET, searched

PAGE = Path(__file__).parents[3] / "docs" / "search.md"


@pytest.mark.skipif(not PAGE.exists(), reason="the documentation is not there")
def test_the_files_of_the_documentation_are_a_search() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name, text in re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", page, re.DOTALL):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text, encoding="utf-8")
    commands = re.findall(r"sseg-nase --config-dir (\S+) (task=search .*)\n", page)
    assert len(commands) == 2
    own_operation = ("debug=tiny", "evaluator.batch=8", "search.budget.candidates=3")
    paths = [
        searched(*given.split(), *QUIET, *more, further=[Path(folder)])
        for (folder, given), more in zip(commands, [(), own_operation], strict=True)
    ]
    log = Log.read(paths[1] / "candidates.jsonl")
    assert [one.error for one in log.told] == [None] * 3
    assert "glu_3x3" in str([one.candidate.point for one in log.told])
    path = paths[0]
    log = Log.read(path / "candidates.jsonl")
    best = log.best()
    assert best is not None
    assert best.scores["accuracy"] > 95
    assert [c.how for c in log.candidates].count("hop") == 15
    assert max(float(c.point["x"]) for c in log.candidates) > 1
