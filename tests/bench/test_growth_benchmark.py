"""`benchmarks/growth.py`: what its arms spend."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "growth.py"


@pytest.fixture
def growth(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("growth_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "labelled", lambda config: SimpleNamespace(labels=range(38_400)))
    return module


@pytest.mark.slow
def test_arms_with_labels_spend_alike(growth: ModuleType) -> None:
    settings = growth.Settings(Path("data"), Path("out"), 5e13, 20, 100, (), labels=True)
    for arm in ("grown", "grown at random", "its final network", "Conv4-64"):
        more = "hardware.batch_size=256"
        lines, config = growth.config_of(growth.Job(arm, 0.1, 0), settings, more)
        assert ("finetune.evolve=true" in lines) is arm.startswith("grown")
        assert not any(line.startswith("pretrain.") for line in lines)
        epochs = growth.epochs_for(config, settings.macs)
        longer = f"pretrain.epochs={epochs}"
        _, config = growth.config_of(growth.Job(arm, 0.1, 0), settings, more, longer)
        spent = 3 * 38_400 * sum(growth.macs_by_epoch(config))
        assert spent == pytest.approx(settings.macs, rel=0.04), arm
    with pytest.raises(SystemExit, match="too few"):
        growth.epochs_for(config, 1e12)
