"""When `hardware.compile` compiles: not the compiler, which takes half a minute."""

from __future__ import annotations

import json

import pytest

from sseg_nase.config.compose import load
from sseg_nase.run import run
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
