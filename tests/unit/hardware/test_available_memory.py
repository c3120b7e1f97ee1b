from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sseg_nase.hardware import available_memory
from sseg_nase.hardware.available_memory import free_memory, free_ram

CPU = torch.device("cpu")


def machine(folder: Path, available_kb: int, cgroup: str = "") -> tuple[Path, Path]:
    """A made-up /proc and an empty /sys/fs/cgroup."""
    proc, groups = folder / "proc", folder / "cgroup"
    (proc / "self").mkdir(parents=True)
    groups.mkdir()
    (proc / "meminfo").write_text(f"MemTotal: 9999 kB\nMemAvailable: {available_kb} kB\nHuge: 0\n")
    (proc / "self" / "cgroup").write_text(cgroup)
    return proc, groups


def group(folder: Path, limit: str, used: int, cached: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if "cgroup/memory" in folder.as_posix():
        names, word = ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_inactive_file"
    else:
        names, word = ("memory.max", "memory.current"), "inactive_file"
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{word} {cached}\n")


def test_without_limits_it_is_what_the_system_says(tmp_path: Path) -> None:
    assert free_ram(*machine(tmp_path, 700)) == 700 * 1024


@pytest.mark.parametrize(
    ("line", "folder"),
    [
        ("0::/jobs/one", "jobs/one"),
        ("0::/jobs/one", "jobs"),  # the limit of a group above
        ("0::/", "."),  # a container sees its own group as the root
        ("4:memory:/jobs/one", "memory/jobs/one"),
        ("5:cpu:/x\n4:cpuset,memory:/jobs/one\n0::/", "memory"),
    ],
)
def test_a_limit_counts_without_the_cached_files(tmp_path: Path, line: str, folder: str) -> None:
    proc, groups = machine(tmp_path, 700, line + "\n")
    group(groups / folder, "500000", used=300000, cached=50000)
    assert free_ram(proc, groups) == 250000


@pytest.mark.parametrize(
    ("limit", "used", "expected"),
    [("max", 10, 700 * 1024), ("999999999", 10, 700 * 1024), ("1000", 5000, 0)],
)
def test_the_smaller_of_limit_and_machine(
    tmp_path: Path, limit: str, used: int, expected: int
) -> None:
    proc, groups = machine(tmp_path, 700, "0::/\n")
    group(groups, limit, used=used, cached=0)
    assert free_ram(proc, groups) == expected


def test_unknown_without_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert free_ram(tmp_path, tmp_path) is None
    monkeypatch.setattr(available_memory, "free_ram", lambda: None)
    assert free_memory(CPU) is None


def test_max_memory_leaves_what_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(available_memory, "free_ram", lambda: 5 * 2**30)
    monkeypatch.setattr(available_memory, "resident_memory_mb", lambda: 512.0)
    assert free_memory(CPU) == 5 * 2**30
    assert free_memory(CPU, 1.0) == 512 * 2**20
    assert free_memory(CPU, 0.25) == 0
    assert free_memory(CPU, 100.0) == 5 * 2**30


def test_a_gpu_counts_what_the_allocator_holds_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    gib = 2**30
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1 * gib)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 * gib)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 * gib, 8 * gib))
    monkeypatch.setattr("sseg_nase.hardware.memory._cuda_total_mb", lambda device: 8 * 1024)
    assert free_memory(torch.device("cuda", 0)) == 6 * gib
    assert free_memory(torch.device("cuda", 0), 4.0) == 3 * gib
