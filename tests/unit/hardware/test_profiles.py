from __future__ import annotations

import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sseg_nase.config.compose import load
from sseg_nase.config.schema import HardwareConfig
from sseg_nase.errors import UserError
from sseg_nase.hardware.profiles import Machine, cores, look_at_machine, native_bf16, resolve

OPEN: dict[str, Any] = {
    "name": "auto",
    "accelerator": "auto",
    "devices": 1,
    "batch_size": None,
    "gradient_accumulation_steps": None,
    "accumulate": "auto",
    "precision": "auto",
    "num_workers": None,
    "max_memory_gb": None,
    "gradient_checkpointing": False,
    "channels_last": True,
    "compile": False,
    "cuda_graphs": False,
    "deterministic": False,
    "threads": None,
}
GPU = {**OPEN, "accelerator": "cuda", "precision": "16-mixed"}
PROFILES: dict[str, dict[str, Any]] = {
    "auto": OPEN,
    "cpu": {
        **OPEN,
        "name": "cpu",
        "accelerator": "cpu",
        "batch_size": 128,
        "gradient_accumulation_steps": 1,
        "num_workers": 0,
    },
    "rtx3050": {
        **GPU,
        "name": "rtx3050",
        "batch_size": 24,
        "gradient_accumulation_steps": 4,
        "accumulate": "exact",
        "num_workers": 2,
        "max_memory_gb": 4.0,
        "gradient_checkpointing": True,
    },
    "rtx3060": {
        **GPU,
        "name": "rtx3060",
        "batch_size": 48,
        "gradient_accumulation_steps": 3,
        "accumulate": "exact",
        "num_workers": 4,
        "max_memory_gb": 12.0,
    },
}
BARE = Machine(cuda_name=None, cuda_memory_gb=0.0, bf16=False, cores=2)
BF16 = replace(BARE, bf16=True)
SMALL = Machine(cuda_name="RTX 3050", cuda_memory_gb=3.8, bf16=False, cores=8)
LARGE = Machine(cuda_name="RTX 3060", cuda_memory_gb=11.8, bf16=True, cores=8)


def ask(name: str, machine: Machine, **changed: Any) -> tuple[HardwareConfig, list[str]]:
    return resolve(HardwareConfig(**{**PROFILES[name], **changed}), PROFILES, machine)


@pytest.mark.parametrize("machine", [BARE, BF16, SMALL, LARGE])
@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("accelerator", [None, "cpu", "cuda", "auto"])
def test_nothing_stays_open(name: str, machine: Machine, accelerator: str | None) -> None:
    changed = {} if accelerator is None else {"accelerator": accelerator}
    wants_cuda = {**PROFILES[name], **changed}["accelerator"] == "cuda" or (
        name.startswith("rtx") and accelerator != "cpu"
    )
    if wants_cuda and machine.cuda_name is None:
        with pytest.raises(UserError, match="no CUDA device was found"):
            ask(name, machine, **changed)
        return
    hardware, _ = ask(name, machine, **changed)
    may_stay = {"max_memory_gb", "threads"}
    for key in (field.name for field in fields(HardwareConfig)):
        assert getattr(hardware, key) != "auto", key
        assert getattr(hardware, key) is not None or key in may_stay, key
    assert resolve(hardware, PROFILES, machine) == (hardware, [])


@pytest.mark.parametrize(
    ("machine", "name"),
    [
        (BARE, "cpu"),
        (SMALL, "rtx3050"),
        (LARGE, "rtx3060"),
        (replace(LARGE, cuda_memory_gb=11.0), "rtx3060"),
        (replace(LARGE, cuda_memory_gb=10.99), "rtx3050"),
        (replace(LARGE, cuda_memory_gb=80.0), "rtx3060"),
    ],
)
def test_auto_takes_the_profile_that_fits_and_says_so(machine: Machine, name: str) -> None:
    hardware, notes = ask("auto", machine)
    profile = PROFILES[name]
    for key in ("name", "accelerator", "batch_size", "gradient_accumulation_steps", "num_workers"):
        assert getattr(hardware, key) == profile[key]
    assert hardware.max_memory_gb == profile["max_memory_gb"]
    assert name in notes[0]
    assert (machine.cuda_name or "no CUDA device") in notes[0]


def test_what_was_set_by_hand_stays() -> None:
    hardware, _ = ask("auto", LARGE, batch_size=7, precision="32-true", num_workers=0, threads=3)
    assert (hardware.batch_size, hardware.precision) == (7, "32-true")
    assert (hardware.num_workers, hardware.threads) == (0, 3)
    assert hardware.gradient_accumulation_steps == 3


def test_auto_on_the_processor_beside_a_gpu() -> None:
    hardware, notes = ask("auto", LARGE, accelerator="cpu")
    assert (hardware.name, hardware.accelerator, hardware.batch_size) == ("cpu", "cpu", 128)
    assert "hardware.accelerator=cpu" in notes[0]


@pytest.mark.parametrize("name", ["rtx3050", "rtx3060"])
@pytest.mark.parametrize("accelerator", ["cuda", "auto"])
def test_a_gpu_profile_without_a_gpu_is_refused(name: str, accelerator: str) -> None:
    with pytest.raises(UserError) as caught:
        ask(name, BARE, accelerator=accelerator)
    for part in (f"hardware={name}", "hardware=auto", "hardware=cpu", "hardware.accelerator=cpu"):
        assert part in str(caught.value)


@pytest.mark.parametrize("name", ["cpu", "auto"])
def test_cuda_without_cuda_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"hardware\.accelerator=cuda: no CUDA device"):
        ask(name, BARE, accelerator="cuda")


@pytest.mark.parametrize(("devices", "there"), [(2, 1), (3, 2)])
def test_more_devices_than_there_are_is_refused(devices: int, there: int) -> None:
    machine = replace(LARGE, cuda_devices=there)
    with pytest.raises(UserError, match=rf"devices={devices}: this machine has {there} CUDA"):
        ask("rtx3060", machine, devices=devices)
    assert ask("rtx3060", machine, devices=there)[0].devices == there
    assert ask("rtx3060", machine, devices=devices, accelerator="cpu")[0].devices == devices


@pytest.mark.parametrize(("machine", "precision"), [(BARE, "32-true"), (BF16, "bf16-mixed")])
def test_a_gpu_profile_on_the_processor(machine: Machine, precision: str) -> None:
    hardware, notes = ask("rtx3060", machine, accelerator="cpu")
    assert (hardware.name, hardware.batch_size) == ("rtx3060", 48)
    assert hardware.precision == precision
    assert any(precision in note and "16-mixed" in note for note in notes)


@pytest.mark.parametrize(("machine", "precision"), [(BARE, "32-true"), (BF16, "bf16-mixed")])
def test_the_precision_of_the_processor(machine: Machine, precision: str) -> None:
    hardware, notes = ask("cpu", machine)
    assert hardware.precision == precision
    assert [note for note in notes if precision in note]


def test_emulated_bf16_is_kept_with_a_warning() -> None:
    hardware, notes = ask("cpu", BARE, precision="bf16-mixed")
    assert hardware.precision == "bf16-mixed"
    assert any("slow" in note for note in notes)
    assert ask("cpu", BF16, precision="bf16-mixed")[1] == []


@pytest.mark.parametrize(("cores", "workers"), [(1, 1), (2, 2), (4, 4), (64, 4)])
def test_workers_follow_the_cores(cores: int, workers: int) -> None:
    profiles = {**PROFILES, "cpu": {**PROFILES["cpu"], "num_workers": None}}
    hardware, notes = resolve(
        HardwareConfig(**profiles["cpu"]), profiles, replace(BF16, cores=cores)
    )
    assert hardware.num_workers == workers
    assert any("num_workers" in note for note in notes)


@pytest.mark.parametrize("key", ["batch_size", "gradient_accumulation_steps"])
def test_a_field_set_to_null_comes_from_its_profile_or_is_refused(key: str) -> None:
    hardware, _ = ask("rtx3060", LARGE, **{key: None})
    assert getattr(hardware, key) == PROFILES["rtx3060"][key]
    without = {name: {**values, key: None} for name, values in PROFILES.items()}
    with pytest.raises(UserError, match=rf"hardware\.{key}=null.*'cpu'"):
        resolve(HardwareConfig(**without["cpu"]), without, BARE)


def test_precision_left_open_on_a_gpu() -> None:
    profiles = {**PROFILES, "rtx3060": {**PROFILES["rtx3060"], "precision": "auto"}}
    assert resolve(HardwareConfig(**OPEN), profiles, LARGE)[0].precision == "16-mixed"


@pytest.mark.parametrize(
    ("cpuinfo", "native"),
    [
        ("processor : 0\nflags\t\t: fpu sse2 avx512f avx512_bf16\n", True),
        ("processor : 0\nflags\t\t: fpu sse2 amx_bf16 amx_tile\n", True),
        ("processor : 0\nflags\t\t: fpu sse2 avx2 avx512f\n", False),
        ("processor : 0\nFeatures\t: fp asimd sve bf16 i8mm\n", True),
        ("processor : 0\nFeatures\t: fp asimd aes\n", False),
        ("processor : 0\nmodel name\t: bf16\n", False),
    ],
)
def test_native_bf16_from_the_processors_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpuinfo: str, native: bool
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    file = tmp_path / "cpuinfo"
    file.write_text(cpuinfo)
    assert native_bf16(file) is native
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert native_bf16(file) is False


@pytest.mark.parametrize("native", [True, False])
def test_native_bf16_from_torch_where_there_is_no_cpuinfo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    found = {"amx_bf16": False, "bf16": native}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert native_bf16(tmp_path / "missing") is native


@pytest.mark.parametrize(
    ("machine", "name", "batch_size", "precision"),
    [
        (BARE, "cpu", 256, "32-true"),
        (BF16, "cpu", 256, "bf16-mixed"),
        (SMALL, "rtx3050", 24, "16-mixed"),
        (LARGE, "rtx3060", 48, "16-mixed"),
    ],
)
def test_auto_with_the_profiles_as_they_are_written(
    machine: Machine, name: str, batch_size: int, precision: str
) -> None:
    files = Path(__file__).parents[3].joinpath("conf", "hardware").glob("*.yaml")
    raw = {file.stem: yaml.safe_load(file.read_text(encoding="utf-8")) for file in files}
    hardware, _ = resolve(HardwareConfig(**raw["auto"]), raw, machine)
    assert (hardware.name, hardware.batch_size, hardware.precision) == (name, batch_size, precision)
    assert hardware.accelerator == ("cpu" if machine.cuda_name is None else "cuda")


def test_this_machine() -> None:
    machine = look_at_machine()
    assert (machine.cuda_name is not None) == torch.cuda.is_available()
    assert 1 <= machine.cores <= (os.cpu_count() or 1)
    hardware, _ = resolve(HardwareConfig(**OPEN), PROFILES)
    assert hardware.accelerator == ("cuda" if torch.cuda.is_available() else "cpu")


def test_compiling_for_a_cpu_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sseg_nase.hardware.profiles.shutil.which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"hardware\.compile=true.*g\+\+ or clang\+\+"):
        resolve(HardwareConfig(**{**PROFILES["cpu"], "compile": True}), PROFILES, BARE)
    resolve(HardwareConfig(**PROFILES["cpu"]), PROFILES, BARE)
    resolve(HardwareConfig(**{**PROFILES["rtx3060"], "compile": True}), PROFILES, LARGE)


def test_a_cpu_has_no_graphs_of_launches() -> None:
    asked = {"cuda_graphs": True}
    with pytest.raises(UserError, match=r"hardware\.cuda_graphs=true: a CPU has no launches"):
        resolve(HardwareConfig(**{**PROFILES["cpu"], **asked}), PROFILES, BARE)
    assert resolve(HardwareConfig(**{**PROFILES["rtx3060"], **asked}), PROFILES, LARGE)


def test_whether_to_compile_is_left_to_the_training_where_it_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = HardwareConfig(**{**PROFILES["cpu"], "compile": "auto"})
    monkeypatch.setattr("sseg_nase.hardware.profiles.shutil.which", lambda name: name)
    found, notes = resolve(wanted, PROFILES, BARE)
    assert found.compile == "auto"
    assert not any("hardware.compile" in note for note in notes)
    monkeypatch.setattr("sseg_nase.hardware.profiles.shutil.which", lambda name: None)
    found, notes = resolve(wanted, PROFILES, BARE)
    assert found.compile is False
    assert any("hardware.compile=false instead of auto" in note for note in notes)
    on_a_gpu = {**PROFILES["rtx3060"], "compile": "auto"}
    assert resolve(HardwareConfig(**on_a_gpu), PROFILES, LARGE)[0].compile == "auto"


def test_a_measurement_and_equal_numbers_exclude_each_other() -> None:
    wanted = {**PROFILES["rtx3060"], "compile": "auto", "deterministic": True}
    with pytest.raises(UserError, match=r"hardware\.compile=auto.*hardware\.deterministic=true"):
        resolve(HardwareConfig(**wanted), PROFILES, LARGE)
    resolve(HardwareConfig(**{**wanted, "compile": True}), PROFILES, LARGE)


def test_compiling_for_a_cpu_takes_the_compiler_that_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sseg_nase.hardware.profiles.shutil.which", lambda name: name == "g++")
    wanted = HardwareConfig(**{**PROFILES["cpu"], "compile": True})
    monkeypatch.delenv("CXX", raising=False)
    assert any("slower" in note for note in resolve(wanted, PROFILES, BARE)[1])
    monkeypatch.setenv("CXX", "icpx")
    with pytest.raises(UserError, match="icpx was not found"):
        resolve(wanted, PROFILES, BARE)


def test_the_cores_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm and taskset give a process some of the machine's."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {2, 5, 7}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cores() == 64


@pytest.mark.parametrize("profile", ["rtx3050", "rtx3060"])
@pytest.mark.parametrize("bf16", [True, False])
def test_quickstart_trains_alike_on_every_profile(profile: str, bf16: bool) -> None:
    """So it decides alike: a batch in parts, or another one, learns and grows otherwise."""
    machine = Machine(None, 0.0, bf16, cores=4, cuda_devices=0)
    found = {}
    for name in ("cpu", profile):
        asked = load(["experiment=quickstart", f"hardware={name}", "hardware.accelerator=cpu"])
        found[name], _ = resolve(asked.hardware, PROFILES, machine)
    ours, cpu = found[profile], found["cpu"]
    assert ours.gradient_accumulation_steps == 1  # whole: accumulate=exact has no parts
    own = {"name": ours.name, "accumulate": ours.accumulate}
    own |= {"num_workers": ours.num_workers, "max_memory_gb": ours.max_memory_gb}
    assert ours == replace(cpu, **own)
