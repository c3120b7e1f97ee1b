"""When `hardware.compile` compiles, and (slow: it takes half a minute) that it changes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from sseg_nase.config.compose import load
from sseg_nase.run import run
from sseg_nase.stages.pretraining import trainer_of
from sseg_nase.tracking.sink import Sink
from sseg_nase.training.loop import Trainer
from sseg_nase.training.networks import Networks


def test_an_architecture_is_compiled_once_it_has_lasted_an_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    epochs, compiled = list[int](), list[int]()
    train_epoch = Trainer._train_epoch

    def counted(trainer: Trainer) -> None:
        epochs.append(trainer.progress.epoch)
        train_epoch(trainer)

    monkeypatch.setattr(Trainer, "_train_epoch", counted)
    monkeypatch.setattr(Networks, "compile", lambda networks: compiled.append(epochs[-1]))
    monkeypatch.setattr("sseg_nase.hardware.profiles.shutil.which", lambda name: name)
    overrides = ["debug=tiny", "hardware=cpu", "hardware.compile=true", "tracking=jsonl"]
    directory = run(load(overrides), overrides)
    lines = (directory / "mutations.jsonl").read_text().splitlines()
    changed = {record["epoch"] for record in map(json.loads, lines) if record["accepted"]}
    assert changed
    assert len(set(epochs)) == len(epochs) > 3
    expected = [epoch for epoch in epochs if epoch > 0 and epoch - 1 not in changed]
    assert compiled == expected
    assert compiled


SMALL = [
    "debug=tiny", "hardware=cpu", "hardware.precision=32-true", "evolution=none", "sparsity=none",
    "ssl.distillation_weight=0.5", "ssl.projection_hidden=16", "ssl.projection_dim=8",
    "backbone.channels=[8,8]", "pretrain.epochs=1", "pretrain.images_per_epoch=64",
    "hardware.batch_size=8", "hardware.gradient_accumulation_steps=2",
]  # fmt: skip


def trained(accumulate: str, *, compiled: bool) -> Trainer:
    """Steps of two parts, compiled from the first one on or never."""
    config = load([*SMALL, f"hardware.accumulate={accumulate}"])
    one = trainer_of(config, [], Sink(), None, lambda: False)
    if compiled:
        one.networks.compile()
    one.fit()
    return one


@pytest.mark.slow
def test_compiled_parts_give_the_gradient_of_the_whole_batch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Though each part comes twice: with a graph and without, with BN that tracks and without."""
    if shutil.which("g++") is None:
        pytest.skip("torch compiles for a CPU with a C++ compiler")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    parts, plain = trained("exact", compiled=True), trained("exact", compiled=False)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] >= 3, counters["stats"]
    assert not counters["graph_break"]
    found, expected = parts.networks.state_dict(), plain.networks.state_dict()
    for kind in ("student", "teacher"):
        assert found[kind].keys() == expected[kind].keys()
        for name, value in expected[kind].items():
            torch.testing.assert_close(found[kind][name], value, atol=2e-5, rtol=1e-4, msg=name)
    assert parts.progress.step == 4
    # Seen: what is compared here is not what averaging over parts gives.
    averaged = trained("plain", compiled=False).networks.state_dict()["student"]
    assert any(
        not torch.allclose(averaged[name], value, atol=1e-3)
        for name, value in expected["student"].items()
        if value.is_floating_point()
    )
