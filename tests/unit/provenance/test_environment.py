from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import sseg_nase
from sseg_nase.provenance import environment
from sseg_nase.provenance.environment import describe_environment, processor
from sseg_nase.rundir import environment as written
from sseg_nase.rundir.environment import write_environment


def test_this_process() -> None:
    found = describe_environment()
    assert found["packages"]["torch"] == torch.__version__
    assert found["packages"]["sseg-nase"] == sseg_nase.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["cores"] >= 1
    assert found["memory_gb"] is None or found["memory_gb"] > 0
    assert (found["gpu"] is not None) == torch.cuda.is_available()
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("text", "name"),
    [("processor : 0\nmodel name\t: A chip @ 2 GHz\nmodel name\t: B\n", "A chip @ 2 GHz")],
)
def test_the_processor_is_the_one_that_the_system_names(
    tmp_path: Path, text: str, name: str
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert processor(tmp_path / "cpuinfo") == name
    assert processor(tmp_path / "nowhere")


def test_going_on_elsewhere_keeps_what_was_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here: dict[str, Any] = {"python": "3.11", "gpu": None}
    monkeypatch.setattr(written, "describe_environment", lambda: dict(here))

    def stored() -> Any:
        write_environment(tmp_path)
        return json.loads((tmp_path / "environment.json").read_text())

    first = stored()
    assert stored() == first == here  # the same again says nothing new
    here["gpu"] = "a card"
    second = stored()
    assert second == {**here, "earlier": [first]}
    assert stored() == second
    here["python"] = "3.12"
    assert stored()["earlier"] == [first, {"python": "3.11", "gpu": "a card"}]
    (tmp_path / "environment.json").write_text("{ torn")
    assert stored() == here


@pytest.mark.parametrize(("diff", "changed"), [(None, None), ("", False), ("a diff", True)])
def test_whether_the_code_was_changed(
    diff: str | None, changed: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "git_diff", lambda package: diff)
    monkeypatch.setattr(environment, "git_commit", lambda package: "abc")
    assert describe_environment()["code"] == {"commit": "abc", "changed": changed}
