"""hardware.deterministic: what it sets, gives back, refuses and says."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from sseg_nase.config.compose import load
from sseg_nase.config.fingerprint import fingerprint
from sseg_nase.errors import UserError
from sseg_nase.hardware.determinism import WORKSPACE, deterministic, explain_refused
from sseg_nase.run import run
from sseg_nase.stages import pretraining
from sseg_nase.training.loop import Trainer
from tests.support.fake_cuda import fake_cuda

GIVEN = [
    "debug=tiny", "ablation=A2", "tracking=jsonl", "hardware=rtx3060", "hardware.batch_size=16",
    "pretrain.epochs=1", "hardware.deterministic=true",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(WORKSPACE, raising=False)
    before = switches()
    yield
    assert switches() == before


def switches() -> dict[str, Any]:
    return {
        "algorithms": torch.get_deterministic_debug_mode(),
        "cudnn": torch.backends.cudnn.deterministic,
        "benchmark": torch.backends.cudnn.benchmark,
        "fill": torch.utils.deterministic.fill_uninitialized_memory,
        "workspace": os.environ.get(WORKSPACE),
    }


ON = {"algorithms": 2, "cudnn": True, "benchmark": False, "fill": False, "workspace": ":4096:8"}


def test_all_is_set_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    before = switches()
    try:
        with pytest.raises(ZeroDivisionError), deterministic(True):
            raise ZeroDivisionError(assert_on())
        assert switches() == before
        with deterministic(False):
            assert switches() == before
    finally:
        torch.use_deterministic_algorithms(False)
        monkeypatch.undo()


def assert_on() -> str:
    assert switches() == ON
    return ""


def test_a_workspace_that_was_given_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKSPACE, ":16:8")
    with deterministic(True):
        assert switches() == {**ON, "workspace": ":16:8"}
    assert os.environ[WORKSPACE] == ":16:8"
    monkeypatch.setenv(WORKSPACE, ":0:0")
    with pytest.raises(UserError, match=r"CUBLAS_WORKSPACE_CONFIG=:0:0.*:4096:8 or :16:8"):
        deterministic(True).__enter__()
    monkeypatch.delenv(WORKSPACE)


def refused() -> None:
    """By torch on every device."""
    pooled, indices = F.max_pool2d(torch.rand(1, 1, 4, 4), 2, return_indices=True)
    F.max_unpool2d(pooled, indices, 2)


def test_an_operation_that_torch_refuses_is_named() -> None:
    with fake_cuda():
        config = load(GIVEN)
    with deterministic(True), pytest.raises(RuntimeError) as caught:
        refused()
    said = explain_refused(caught.value, config)
    assert said is not None
    for part in ("hardware.deterministic=true", "'max_unpooling2d", "ssl=simclr", "=false"):
        assert part in said
    assert explain_refused(RuntimeError("something else"), config) is None
    with fake_cuda():
        other = load([*GIVEN[:-1]])
    assert explain_refused(caught.value, other) is None


def test_a_run_has_it_and_its_records_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    train = Trainer.train_epoch
    monkeypatch.setattr(Trainer, "train_epoch", lambda t: (seen.append(switches()), train(t))[1])
    with fake_cuda():
        folder = run(load(GIVEN), GIVEN)
    assert seen == [ON]
    config = (folder / "config.yaml").read_text()
    assert "deterministic: true" in config


def test_a_run_that_is_refused_ends_with_the_message(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Trainer, "train_epoch", lambda trainer: refused())
    with fake_cuda(), pytest.raises(UserError, match=r"no deterministic 'max_unpooling2d.*on cuda"):
        run(load(GIVEN), GIVEN)
    (status,) = tmp_path.rglob("status.json")
    assert "hardware.deterministic=false" in json.loads(status.read_text())["error"]


def test_other_ranks_have_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Fits:
        device = torch.device("cpu")

        def fit(self) -> None:
            seen.append(switches())

    monkeypatch.setattr(pretraining, "trainer_of", lambda *_: Fits())
    with fake_cuda():
        config = load(GIVEN)
    pretraining._pretrain_along(1, config, None)
    assert seen == [ON]


def test_it_is_part_of_what_decides_a_result() -> None:
    with fake_cuda():
        assert fingerprint(load(GIVEN)) != fingerprint(load(GIVEN[:-1]))


def test_on_a_cpu_it_would_do_nothing() -> None:
    given = ["debug=tiny", "hardware=cpu", "hardware.deterministic=true", "tracking=jsonl"]
    with pytest.raises(UserError, match="no effect on a CPU"):
        run(load(given), given)
