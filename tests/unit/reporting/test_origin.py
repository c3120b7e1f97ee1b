"""When, where and with which code runs were made, on one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sseg_nase.reporting.document import Code
from sseg_nase.reporting.origin import made


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sseg_nase.reporting.origin.moment", lambda seconds: f"second {seconds:.0f}"
    )


def a_run(folder: Path, began: float, ended: float, **environment: Any) -> Path:
    folder.mkdir()
    lines = "".join(json.dumps({"time": time}) + "\n" for time in (began, ended))
    (folder / "events.jsonl").write_text(lines)
    usual = {"processor": "A chip", "threads": 2, "code": {"commit": "0123456789abcdef"}}
    (folder / "environment.json").write_text(json.dumps(usual | environment))
    return folder


def test_of_one_run(tmp_path: Path) -> None:
    run = a_run(tmp_path / "a", 100, 160)
    assert made([run], {"pretrain": 50.0, "report": None}) == (
        "second 100, 1:00 (pretrain 0:50)", ", on A chip (2 threads)", ", commit ", "0123456789ab",
    )  # fmt: skip
    changed = {"commit": "0123456789abcdef", "changed": True}
    run = a_run(tmp_path / "b", 100, 160, gpu="A card", code=changed)
    line = made([run]) or ()
    assert ", on A card" in line
    assert line[-1] == "0123456789ab+changes"
    assert isinstance(line[-1], Code)


def test_of_several_runs_on_several_machines(tmp_path: Path) -> None:
    runs = [
        a_run(tmp_path / str(n), 100 * n, 100 * n + 3600, processor=f"Chip {n // 2}",
              code={"commit": f"commit {n}"})
        for n in range(5)
    ]  # fmt: skip
    line = "".join(made(runs) or ())
    assert line.startswith("second 0 to second 4000, 5:00:00 of runs in all, on Chip 0 (2 threads)")
    assert "; Chip 2 (2 threads), commit commit 0, commit 1, commit 2 and 2 more" in line
    more = [a_run(tmp_path / "x", 0, 1, processor="Chip 3"), *runs]
    assert "Chip 1 (2 threads) and 1 more" in "".join(made(more) or ())


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    assert made([tmp_path / "none"]) is None
    run = a_run(tmp_path / "a", 5, 6, code=None)
    assert made([run]) == ("second 5, 1.0 s", ", on A chip (2 threads)")
    (run / "environment.json").unlink()
    assert made([run, tmp_path / "none"]) == ("second 5 to second 6, 1.0 s of runs in all",)
