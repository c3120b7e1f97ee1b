"""`bash benchmarks/gpu.sh OUT` on a machine without a GPU, and what it makes of parts that fail."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "benchmarks" / "gpu.sh"


WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="takes minutes of the GPU")


def measured(out: Path, *parts: str, **more: str) -> tuple[int, str, dict[str, Any]]:
    """Exit code, what was said, and what was written."""
    done = subprocess.run(
        ["bash", str(SCRIPT), str(out), *parts],
        env={**os.environ, "PYTHON": sys.executable, **more},
        capture_output=True,
        text=True,
    )
    path = out / "gpu.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    return done.returncode, done.stdout + done.stderr, found


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.delitem(sys.modules, "benchmarks.gpu", raising=False)
    return importlib.import_module("benchmarks.gpu")


@pytest.mark.slow
@WITHOUT_GPU
def test_all_parts_pass_without_a_gpu_and_say_so(tmp_path: Path) -> None:
    code, said, found = measured(tmp_path / "out")
    assert code == 0, said
    assert "There is no GPU here" in said
    assert found["fake"]
    assert len(found["parts"]) == 9
    assert all(part["rows"] and part["error"] is None for part in found["parts"])
    text = (tmp_path / "out" / "gpu.md").read_text()
    assert text.startswith("# none: fake CUDA on a CPU")
    rows = {row["what"]: row["value"] for part in found["parts"] for row in part["rows"]}
    assert rows["resumed training"] == "the same bits"
    assert rows["two trainings, deterministic=true"] == "the same bits"
    assert "GROW" in rows["its mutations"]
    assert any(what.startswith("beside") and " per image" in what for what in rows)


@pytest.mark.slow
@WITHOUT_GPU
def test_it_needs_little(tmp_path: Path) -> None:
    """Without all that the program has beside torch, NumPy, Hydra and Fabric."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(HIDE)
    path = os.pathsep.join(filter(None, [str(hidden), os.environ.get("PYTHONPATH")]))
    code, said, found = measured(
        tmp_path / "out", "views", "evaluation", "training", PYTHONPATH=path
    )
    assert code == 0, said
    assert {"mlflow", "numba", "PIL", "rich"} <= set(found["machine"]["not_installed"])
    assert "kornia" not in json.dumps(found["machine"]["not_installed"])
    assert "not installed" in (tmp_path / "out" / "gpu.md").read_text()


HIDE = """
import importlib.machinery
import sys

HIDDEN = {
    "PIL", "filelock", "hydra_plugins", "kornia", "matplotlib", "mlflow", "numba", "pandas",
    "pytest", "rich", "scipy", "sklearn", "torchvision", "joblib", "submitit",
}
find = importlib.machinery.PathFinder.find_spec


def found(name, path=None, target=None):
    return None if name.partition(".")[0] in HIDDEN else find(name, path, target)


importlib.machinery.PathFinder.find_spec = staticmethod(found)
"""


def test_a_part_that_fails_is_named_and_costs_the_others_nothing(
    tmp_path: Path, script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_part(name: str, out: Path) -> dict[str, Any]:
        failed = name == "views"
        row = {"what": name, "value": "1 | 2", "note": ""}
        error = "RuntimeError: no kernel image" if failed else None
        return {"part": name, "seconds": 1.0, "error": error, "rows": [row]}

    monkeypatch.setattr(script, "run_part", run_part)
    monkeypatch.setattr(sys, "argv", ["gpu.py", str(tmp_path)])
    assert script.main() == 1
    text = (tmp_path / "gpu.md").read_text()
    assert "| views | **failed** after 1.0 s | | RuntimeError: no kernel image |" in text
    assert "| training | training | 1 / 2 |  |" in text
    assert len(json.loads((tmp_path / "gpu.json").read_text())["parts"]) == len(script.PARTS)


def test_a_part_has_its_own_time(tmp_path: Path, script: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(script.PARTS, "training", (script.training, 0.001))
    found = script.run_part("training", tmp_path)
    assert found["error"] == "longer than 0.008 s"
    assert found["rows"] == []


def test_the_parts_take_eight_minutes_at_most(script: Any) -> None:
    assert sum(limit for _, limit in script.PARTS.values()) <= 480


def test_workers_make_views_as_lightly_does(script: Any) -> None:
    """Each of an image of its own; what stands in where lightly is not installed says so."""
    from sseg_nase.config.compose import load

    name, transform = script.per_image(load(["hardware=cpu"]).views, 16)
    installed = importlib.util.find_spec("lightly") is not None
    assert (name == "lightly") == installed
    assert installed or "lightly is not installed" in name
    views = transform(torch.randint(0, 256, (3, 20, 20), dtype=torch.uint8))
    assert [view.shape for view in views] == [(3, 16, 16)] * 2
    assert not torch.equal(*views)


def test_a_folder_is_asked_for() -> None:
    done = subprocess.run(["bash", str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: bash benchmarks/gpu.sh OUT")
