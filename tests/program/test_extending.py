"""The examples of docs/extending/ as an installed package: a family and an operator."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sseg_nase import kinds
from sseg_nase.config.compose import load
from sseg_nase.errors import UserError
from sseg_nase.reporting.markdown import as_markdown
from sseg_nase.reporting.run_report import document
from sseg_nase.run import run
from sseg_nase.rundir.record import read_run
from sseg_nase.stages.replaying import replayed
from sseg_nase.training import checkpoint
from sseg_nase.training.interruption import Interrupted, Interruption
from tests.support.examples import DOCS, installed, page

TINY = ["debug=tiny", "hardware=cpu", "hardware.precision=32-true", "tracking=jsonl"]
EVOLVING = [
    "backbone=twins", "backbone.width=6", "evolution=sseg", "sparsity=nase",
    "evolution.operators=[widen,mirror]", "sparsity.min_channels=2", "sparsity.round_to=1",
    "sparsity.negative_path=false", "pretrain.epochs=5", "pretrain.images_per_epoch=32",
    "evaluation.episodes=5",
]  # fmt: skip

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.skipif(not DOCS.exists(), reason="the documentation is not there"),
]


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the YAML of both pages, which are installed."""
    both = page("extending/backbone.md") + page("extending/operator.md")
    with installed(both, tmp_path / "installed", monkeypatch) as folder:
        yield folder


def ran(conf: Path, *overrides: str) -> Path:
    return run(load([*TINY, *overrides], conf), [*TINY, *overrides])


def test_they_are_trained_reported_and_replayed(conf: Path, tmp_path: Path) -> None:
    directory = ran(conf, *EVOLVING)
    lines = (directory / "mutations.jsonl").read_text().splitlines()
    assert {"MIRROR", "PRUNE"} <= {json.loads(line)["kind"] for line in lines}
    trained = checkpoint.backbone_of(directory / "checkpoints" / "last.pt").architecture
    assert trained.name == "twins"
    assert trained.axes != {"seen": 6, "out": 12}
    assert replayed(directory)[1][-1] == trained
    text = as_markdown(document(read_run(directory)), tmp_path)
    assert "mirrored" in text
    assert "seen: " in text


@pytest.mark.slow
def test_they_are_resumed_and_evaluated(
    conf: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = ran(conf, *EVOLVING, f"paths.output_dir={tmp_path / 'whole'}")
    asked = iter([*[False] * 7, *[True] * 1000])
    with monkeypatch.context() as patched:
        patched.setattr(Interruption, "is_requested", lambda self: next(asked))
        with pytest.raises(Interrupted):
            ran(conf, *EVOLVING, f"paths.output_dir={tmp_path / 'stopped'}")
    (stopped,) = (tmp_path / "stopped" / "debug").iterdir()
    ran(conf, *EVOLVING, f"resume={stopped}")
    last = whole / "checkpoints" / "last.pt"
    resumed = checkpoint.backbone_of(stopped / "checkpoints" / "last.pt").state_dict()
    for name, tensor in checkpoint.backbone_of(last).state_dict().items():
        assert torch.equal(tensor, resumed[name]), name

    results = json.loads((whole / "results.json").read_text())
    given = ["backbone=twins", f"checkpoint={last}", "evaluation.episodes=5"]
    evaluated = ran(conf, "task=evaluate", *given)
    again = json.loads((evaluated / "results.json").read_text())
    assert again["fewshot"] == results["fewshot"]
    assert ran(conf, "task=replay", f"run={whole}").is_dir()


def test_the_name_of_an_operator_is_known_before_it_is_imported(conf: Path) -> None:
    assert load(["evolution.operators=[mirror]"], conf).evolution.operators == ["mirror"]
    assert "mirror" not in sys.modules
    with pytest.raises(UserError, match=r"mirrror.*widen_all.*mirror"):
        load(["evolution.operators=[mirrror]"], conf)
    (conf.parent / "mirror.py").write_text("import nothing_of_that_name\n")
    with pytest.raises(UserError, match=r"^somebodys: this package has operators .*of_that_name"):
        kinds.kinds()


def test_without_the_package_nobody_knows_of_it() -> None:
    with pytest.raises(UserError, match="twins"):
        load(["backbone=twins"])
    with pytest.raises(UserError, match="mirror"):
        load(["evolution.operators=[mirror]"])


def test_the_table_names_files_that_there_are() -> None:
    table = page("extending/index.md").partition("## What each of them takes")[2]
    named = re.findall(r"`([\w/]+\.(?:py|yaml))`", table)
    assert len(named) > 10
    for name in named:
        assert any((DOCS.parent / room / name).is_file() for room in ("sseg_nase", "")), name
