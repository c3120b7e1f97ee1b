"""In processes of their own: what is set holds for the rest of a process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from sseg_nase.hardware.allocator import keep_memory

if sys.argv[1] == "keep":
    assert keep_memory()
    assert keep_memory()
count = 16 << 20  # 64 MiB of float32, over every threshold of glibc
for _ in range(20):  # until the heap has found its size
    torch.empty(count).fill_(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.empty(count).fill_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_a_large_block_is_not_filled_by_the_kernel_again() -> None:
    pages = (64 << 20) // 4096
    assert page_faults("as it was") > 4 * pages
    assert page_faults("keep") < pages / 16
