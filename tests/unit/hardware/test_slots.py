from __future__ import annotations

import itertools
import os
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from sseg_nase.hardware.slots import gpu_slot, gpus, slot_of

# index, uuid, free MiB, total MiB
TWO = ["0, GPU-aaaa, 10240, 12288", "1, GPU-bbbb, 1024, 12288"]
BOARD = ["0, GPU-cccc, [N/A], [N/A]"]


@pytest.fixture(autouse=True)
def _own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an `nvidia-smi` that prints the file `gpus` beside it."""
    folder = tmp_path / "driver"
    folder.mkdir()
    script = folder / "nvidia-smi"
    script.write_text(f'#!/bin/sh\ncase "$1" in --query-gpu=*) cat "{folder}/gpus";; esac\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def have(machine: Path, lines: list[str]) -> None:
    (machine / "gpus").write_text("\n".join(lines) + "\n")


def slot(count: int = 1, free_gb: float | None = None, visible: str | None = None, told=None):  # type: ignore[no-untyped-def]
    return gpu_slot(
        count,
        free_gb=free_gb,
        visible=visible,
        waiting=(told if told is not None else []).append,
        seconds_between_tries=0.02,
    )


def test_a_machine_without_a_driver_has_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert gpus() == []
    with slot() as environment:
        assert environment == {}


@pytest.mark.parametrize(
    ("visible", "indices"),
    [(None, [0, 1]), ("1", [1]), ("1,0", [1, 0]), ("GPU-bb", [1]), ("", []), ("7", [])],
)
def test_visible_devices_pick_and_order(
    machine: Path, visible: str | None, indices: list[int]
) -> None:
    have(machine, TWO)
    assert [gpu.index for gpu in gpus(visible)] == indices
    assert [gpu.free_gb for gpu in gpus()] == [10.0, 1.0]


def test_the_gpu_with_enough_free_memory_is_given(machine: Path) -> None:
    have(machine, TWO)
    with slot() as environment:
        assert environment == {"CUDA_VISIBLE_DEVICES": "GPU-aaaa"}
    with slot(free_gb=0.5, visible="1") as environment:
        assert environment == {"CUDA_VISIBLE_DEVICES": "GPU-bbbb"}
    with slot(count=2, free_gb=0.5) as environment:
        assert environment == {"CUDA_VISIBLE_DEVICES": "GPU-aaaa,GPU-bbbb"}
    with slot(count=3) as environment:  # the run itself says that there are fewer
        assert environment == {}


def test_a_board_that_does_not_tell_its_memory_is_given(machine: Path) -> None:
    have(machine, BOARD)
    with slot() as environment:
        assert environment == {"CUDA_VISIBLE_DEVICES": "GPU-cccc"}


def test_one_waits_for_memory_and_says_so(machine: Path) -> None:
    have(machine, TWO)
    told: list[str] = []
    threading.Timer(0.3, have, (machine, [TWO[0], "1, GPU-bbbb, 9000, 12288"])).start()
    with slot(visible="1", told=told) as environment:
        assert environment == {"CUDA_VISIBLE_DEVICES": "GPU-bbbb"}
    assert told == ["waiting for 1 free GPU: GPU 1 has 1.0 of 6.0 GiB free"]


HOLD = """
import sys, time
from pathlib import Path
import tempfile
tempfile.tempdir = sys.argv[1]
from sseg_nase.hardware.slots import gpu_slot
with gpu_slot(1, free_gb=0.5, visible=None, waiting=print, seconds_between_tries=0.02) as given:
    began = time.time()
    time.sleep(0.4)
    print(given["CUDA_VISIBLE_DEVICES"], began, time.time(), flush=True)
"""


def test_processes_never_share_a_gpu(machine: Path, tmp_path: Path) -> None:
    have(machine, TWO)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(6)
    ]
    spans: dict[str, list[tuple[float, float]]] = {}
    for process in processes:
        said, _ = process.communicate(timeout=60)
        gpu, began, ended = said.splitlines()[-1].split()
        spans.setdefault(gpu, []).append((float(began), float(ended)))
    assert sorted(spans) == ["GPU-aaaa", "GPU-bbbb"]
    for held in spans.values():
        held.sort()
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(held))


def test_a_killed_holder_frees_its_gpu(machine: Path, tmp_path: Path) -> None:
    have(machine, TWO[:1])
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.replace("0.4", "60"), str(tmp_path)], stdout=subprocess.PIPE
    )
    locks = tmp_path / "sseg-nase-gpus"
    while not list(locks.glob("*.lock")):
        time.sleep(0.02)
    time.sleep(0.2)
    told: list[str] = []
    threading.Timer(0.3, process.kill).start()
    with slot(free_gb=0.5, told=told) as environment:
        assert environment == {"CUDA_VISIBLE_DEVICES": "GPU-aaaa"}
    assert told == ["waiting for 1 free GPU: GPU 0 has a job"]
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_places_are_given_one_by_one(tmp_path: Path) -> None:
    places = tmp_path / "places"
    with slot_of(places, 2, 0.02) as first, slot_of(places, 2, 0.02) as second:
        assert {first, second} == {0, 1}
        taken: list[int] = []

        def third() -> None:
            with slot_of(places, 2, 0.02) as place:
                taken.append(place)

        thread = threading.Thread(target=third)
        thread.start()
        thread.join(0.2)
        assert taken == []
    thread.join()
    assert len(taken) == 1


def test_a_gpu_is_free_again_after_its_job(machine: Path) -> None:
    have(machine, TWO[:1])
    for _ in range(2):
        with slot(free_gb=0.5) as environment:
            assert environment == {"CUDA_VISIBLE_DEVICES": "GPU-aaaa"}


def test_of_too_few_free_gpus_none_is_held(machine: Path) -> None:
    """Else two jobs that want two each would wait for each other."""
    have(machine, TWO)
    told: list[str] = []
    threading.Timer(0.4, have, (machine, [TWO[0], "1, GPU-bbbb, 9000, 12288"])).start()
    taken: list[str] = []

    def another() -> None:
        time.sleep(0.2)
        with slot(visible="0") as environment:
            taken.append(environment["CUDA_VISIBLE_DEVICES"])

    thread = threading.Thread(target=another)
    thread.start()
    with slot(count=2, told=told) as environment:
        assert environment == {"CUDA_VISIBLE_DEVICES": "GPU-aaaa,GPU-bbbb"}
        assert taken == ["GPU-aaaa"]
    thread.join()
    assert len(told) == 1


def test_all_users_of_the_machine_see_the_same_locks(machine: Path, tmp_path: Path) -> None:
    have(machine, ["3, GPU-eeee, 10240, 12288"])
    before = os.umask(0o077)
    try:
        with slot():
            folder = tmp_path / "sseg-nase-gpus"
            (lock,) = folder.iterdir()
            assert lock.name == "GPU-eeee.lock"  # an index differs with what is visible
            assert stat.S_IMODE(folder.stat().st_mode) == 0o1777
            assert stat.S_IMODE(lock.stat().st_mode) == 0o666
    finally:
        os.umask(before)


@pytest.mark.parametrize("error", [subprocess.TimeoutExpired("nvidia-smi", 30), OSError()])
def test_a_driver_that_does_not_answer_is_none(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(*arguments: object, **more: object) -> None:
        raise error

    monkeypatch.setattr(subprocess, "run", hang)
    assert gpus() == []


def test_only_visible_gpus_count(machine: Path) -> None:
    have(machine, TWO)
    with slot(count=2, free_gb=0.5, visible="0") as environment:
        assert environment == {}  # there are two, but one is seen
