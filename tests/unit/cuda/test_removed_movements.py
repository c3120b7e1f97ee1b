"""A movement between devices that is taken out of the package makes a test of CUDA fail."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys

import pytest

from tests.support.removals import ROOT, _in_file, _telling, removals

SOURCE = """
def f(x, y, device):
    α = torch.zeros(3, device=x.device); a = x.to(device).to(memory_format=last)
    b = x.to(torch.float32) + x.to(tl.int64) + x.to(y.dtype) + x.to(y)
    c = module.to(
        device=device, dtype=y.dtype
    ).train()
    d = sent(x, device), make(device=device), torch.load(f, map_location="cpu")
    return g(x.cpu().numpy(), device="cpu"), torch.autocast(device, enabled=False)
"""
LEFT = [
    "torch.zeros(3)",
    "x",
    "x.to(y.dtype)",
    "module.to(dtype=y.dtype)",
    "x",
    "torch.load(f)",
    "x",
]


def test_what_counts_as_a_movement_and_what_is_left_of_it() -> None:
    found = list(_in_file(SOURCE.encode()))
    assert [what.rpartition(" -> ")[2] for _, what, _ in found] == LEFT
    assert [line for line, _, _ in found] == [3, 3, 4, 5, 8, 8, 9]
    for _, what, source in found:
        gone = what.partition(" -> ")[0]
        text = ast.unparse(ast.parse(source))
        assert gone not in text or gone == "x.to(y)"
        assert len(source.splitlines()) == len(SOURCE.splitlines())


def test_every_movement_is_told_once() -> None:
    source, after = _telling(SOURCE.encode(), 5)
    assert after == 5 + len(LEFT)
    told = re.findall(r"tell_a_movement\((\d+),", source.decode())
    assert sorted(map(int, told)) == list(range(5, after))


def test_the_package_has_many() -> None:
    found = removals()
    assert len(found) > 80
    assert {removal.path.partition("/")[0] for removal in found} >= {"data", "fewshot", "training"}
    for removal in found:
        ast.parse(removal.source)


def outcome(*arguments: str) -> tuple[int, int, str]:
    """How many removals were seen, of how many, and what was said."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.removals", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    said = re.search(r"(\d+) of (\d+) removals were seen", done.stdout)
    assert said is not None, done.stdout + done.stderr
    assert done.returncode == (said[1] != said[2])
    return int(said[1]), int(said[2]), done.stdout


@pytest.mark.slow
def test_some_are_seen_and_one_that_no_test_comes_by_is_missed() -> None:
    tests = "test_cuda_ranks.py::test_a_loss_over_all_ranks"
    seen, of, said = outcome("--only", "ssl/objectives.py", "--tests", tests)
    assert (seen, of) == (3, 4), said
    assert re.search(r"MISSED .*repeat|MISSED .*torch.arange\(B", said)


@pytest.mark.slow
def test_every_one_is_seen() -> None:
    """And so at least eighteen of any twenty drawn by chance."""
    seen, of, said = outcome("--all")
    assert seen == of == len(removals()), said
