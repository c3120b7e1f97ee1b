"""What the machine does is told by a thread, under MLflow's names."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from sseg_nase.config.compose import load
from sseg_nase.files import StorageError
from sseg_nase.tracking import build_tracker
from sseg_nase.tracking.sink import RunInfo
from sseg_nase.tracking.system import GPU_QUERY, Sampler, SystemMetrics


def proc(folder: Path, idle: int, busy: int, available: int = 1000) -> Path:
    (folder / "self").mkdir(parents=True, exist_ok=True)
    # user nice system idle iowait irq softirq steal guest guest_nice
    (folder / "stat").write_text(f"cpu  {busy} 0 10 {idle} 5 0 0 0 {busy} 0\ncpu0 1 2\n")
    (folder / "meminfo").write_text(f"MemTotal: 4000 kB\nMemAvailable:  {available} kB\n")
    (folder / "self" / "statm").write_text("900 25 3 1 0 4 0\n")
    return folder


def test_figures_are_of_the_time_since_the_last_call(tmp_path: Path) -> None:
    sampler = Sampler(tmp_path, proc(tmp_path / "proc", idle=100, busy=100))
    proc(tmp_path / "proc", idle=160, busy=140)
    told = sampler()
    assert told["system/cpu_utilization_percentage"] == pytest.approx(40)
    assert told["system/system_memory_usage_percentage"] == pytest.approx(75)
    assert told["system/system_memory_usage_megabytes"] == pytest.approx(3.072)
    assert told["system/process_memory_megabytes"] > 0
    assert 0 < told["system/disk_usage_percentage"] <= 100
    proc(tmp_path / "proc", idle=160, busy=240)
    assert sampler()["system/cpu_utilization_percentage"] == pytest.approx(100)


def test_what_the_kernel_does_not_tell_is_left_out(tmp_path: Path) -> None:
    told = Sampler(tmp_path, tmp_path / "nowhere")()
    assert {name.partition("/")[2] for name in told if "gpu" not in name} <= {
        "process_cpu_utilization_percentage",
        "disk_usage_megabytes",
        "disk_usage_percentage",
    }


def test_gpus_are_told_by_what_nvidia_smi_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "0, 87, 1000, 4000\n1, [N/A], 5, 6\n3, 0, 0, 8000\n"
    program = tmp_path / "nvidia-smi"
    asked = f'[ "$1" = --query-gpu={",".join(GPU_QUERY)} ] || exit 1'
    program.write_text(f"#!/bin/sh\n{asked}\ncat << END\n{lines}END\n")
    program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    found = Sampler(tmp_path)()
    told = {name.removeprefix("system/"): value for name, value in found.items()}
    assert told["gpu_0_utilization_percentage"] == 87
    assert told["gpu_0_memory_usage_megabytes"] == pytest.approx(1048.576)
    assert (told["gpu_0_memory_usage_percentage"], told["gpu_3_memory_usage_percentage"]) == (25, 0)
    assert not any(name.startswith("gpu_1") for name in told)
    program.write_text("#!/bin/sh\nexit 9\n")
    assert not any("gpu" in name for name in Sampler(tmp_path)())


def test_another_thread_tells_until_the_run_is_closed(tmp_path: Path) -> None:
    told: list[tuple[str, int]] = []
    enough = threading.Event()

    def tell(values: Mapping[str, float], step: int) -> None:
        assert "system/disk_usage_percentage" in values
        told.append((threading.current_thread().name, step))
        if len(told) == 3:
            enough.set()

    sink = SystemMetrics(tell, seconds=0.01)
    sink.open(RunInfo(tmp_path, "a", "b", tmp_path, 0))
    assert enough.wait(20)
    sink.close("FINISHED")
    count = len(told)
    assert {name for name, _ in told} == {"system"}
    steps = [step for _, step in told]
    assert steps == sorted(steps)
    assert not any(thread.name == "system" for thread in threading.enumerate())
    assert len(told) == count


def test_a_full_disk_ends_the_sampling_and_nothing_else(tmp_path: Path) -> None:
    tried = threading.Event()

    def tell(values: Mapping[str, float], step: int) -> None:
        tried.set()
        raise StorageError(tmp_path, 28)

    sink = SystemMetrics(tell, seconds=0.01)
    sink.open(RunInfo(tmp_path, "a", "b", tmp_path, 0))
    assert tried.wait(20)
    sink.close("FAILED")


def test_it_is_sampled_only_where_it_was_asked_for() -> None:
    def sampled(*overrides: str) -> bool:
        tracker = build_tracker(load(overrides).tracking)
        return any(isinstance(sink, SystemMetrics) for sink in tracker.sinks)

    assert not sampled()
    assert sampled("tracking.system_metrics=true")
    assert sampled("tracking=server", "tracking.system_metrics=true")
