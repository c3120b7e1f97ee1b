"""A plugin of pytest: the processor's time of every test, its processes included.

`make test ARGS="-p tests.support.cpu_times"` adds a line "seconds, tab, test" per test to
`cpu_times.tsv` in the folder where pytest starts. Unlike durations these hold on a busy machine,
too.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest

TIMES = Path("cpu_times.tsv").absolute()


def spent() -> float:
    """By this process and by those that it has waited for, in seconds."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Measure one test with its fixtures."""
    before = spent()
    try:
        return (yield)
    finally:
        with TIMES.open("a", encoding="utf-8") as file:  # of all workers: a line is written at once
            file.write(f"{spent() - before:.2f}\t{item.nodeid}\n")
