from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import nn

from sseg_nase.hardware import energy as module
from sseg_nase.hardware.energy import _meter, energy, why_no_energy

CPU = torch.device("cpu")


def rapl(folder: Path, *microjoules: int) -> Path:
    for number, value in enumerate(microjoules):
        for name in (f"intel-rapl:{number}", f"intel-rapl:{number}:0"):  # the part is within it
            (folder / name).mkdir(parents=True)
            (folder / name / "energy_uj").write_text(str(value))
    return folder


def test_packages_are_added_up_and_their_parts_are_not(tmp_path: Path) -> None:
    meter = _meter("cpu", rapl(tmp_path, 2_000_000, 500_000))
    assert meter is not None
    assert meter() == 2.5
    assert why_no_energy("cpu", tmp_path) is None


def test_energy_is_that_of_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.01)
    passes = itertools.count()

    class Counting(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            next(passes)
            return x

    joules = iter([10.0, 10.5])
    found = energy(Counting(), 8, CPU, meter=lambda: next(joules))
    timed = next(passes) - 1  # but for the first, which only warms up
    assert found == {"energy_mj_b1": pytest.approx(500 / timed)}
    over = iter([10.0, 0.5])  # the counter has run over
    assert energy(Counting(), 8, CPU, meter=lambda: next(over)) == {}


def test_where_it_is_not_measured_one_sentence_says_why(tmp_path: Path) -> None:
    assert "has no RAPL counters" in str(why_no_energy("cpu", tmp_path))
    (rapl(tmp_path, 1) / "intel-rapl:0" / "energy_uj").write_text("hidden")
    assert "may not be read" in str(why_no_energy("cpu", tmp_path))
    assert "NVML" in str(why_no_energy("cuda", tmp_path)) or torch.cuda.is_available()
