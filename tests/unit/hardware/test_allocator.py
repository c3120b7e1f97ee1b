"""In processes of their own: what is set holds for the rest of a process."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")

KEEP = "from sseg_nase.hardware.allocator import keep_memory; keep_memory()\n"
LARGE = """
import resource, sys
import torch

count = 16 << 20  # 64 MiB of float32
for _ in range(20):
    torch.empty(count).fill_(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.empty(count).fill_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
RELEASE = """
import torch
from sseg_nase.hardware.allocator import release_memory
from sseg_nase.hardware.memory import resident_memory_mb

blocks = [torch.ones(2 << 20) for _ in range(260)]  # 8 MiB each
last = torch.ones(1)
del blocks
full = resident_memory_mb()
release_memory()
print(full - resident_memory_mb())
"""


def said(program: str, **environment: str) -> float:
    inherited = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def test_the_kernel_does_not_fill_a_large_block_again() -> None:
    pages = (64 << 20) // 4096
    assert said(KEEP + LARGE) < pages / 16


def test_what_the_user_has_set_is_left_alone() -> None:
    program = "import os\n" + KEEP + "print(int(os.environ['GLIBC_TUNABLES'] == 'glibc.rtld=1'))"
    assert said(program, GLIBC_TUNABLES="glibc.rtld=1") == 1


def test_it_starts_once_more_and_no_more_with_the_same_arguments() -> None:
    code = "import sys, os; print(os.getpid(), sys.argv, file=sys.stderr); " + KEEP
    command = [sys.executable, "-X", "dev", "-c", code, "a b", "--c=d"]
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    first, second = done.stderr.splitlines()
    assert first == second
    assert first.endswith("['-c', 'a b', '--c=d']")


@pytest.mark.slow
def test_a_large_process_gives_back_what_it_does_not_use() -> None:
    assert said(KEEP + RELEASE) > 1800
