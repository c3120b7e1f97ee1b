"""Take movements between devices out of the package, one at a time: do the tests of CUDA see it?

    python -m tests.support.removals --count 20 --seed 0    # some, drawn by the seed
    python -m tests.support.removals --all                  # every one
    python -m tests.support.removals --list

A movement is `.to(...)` with a device or another tensor, `.cpu()`, `device=` of torch's functions,
`map_location=`, and `sent`. The tests run once on a copy of the package that tells which of them
come by which movement. Then each is removed, and those tests run until one fails. A process is
forked for each, so that torch is loaded once.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import compileall
import copy
import importlib
import importlib.util
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / "tests" / "unit" / "cuda"
PACKAGE = "sseg_nase"
SENDERS = ("sent", "sent_together")
# What reads the CPU alone, whatever trains; and drawings.
LEFT_OUT: tuple[str, ...] = ("reporting/", "tracking/", "sweeps/", "config/")
if importlib.util.find_spec("triton") is None:
    LEFT_OUT += ("data/views/kernels.py",)
TESTS = (
    "test_cuda_pretraining.py", "test_cuda_evaluation.py", "test_cuda_ranks.py",
    "test_cuda_search.py",
)  # fmt: skip
HEAVY = ("torch", "torch._dynamo", "torchvision", "lightning_fabric", "numba", "scipy", "pandas",
         "sklearn", "pytest", "rich", "PIL.Image")  # fmt: skip
MOST_TESTS = 40  # of those that come by a movement: what the quickest do not see is missed
TOLD = "tell_a_movement"  # the name of a function


class Removal(NamedTuple):
    """A movement in `path` (relative to the package), and the file without it."""

    path: str
    line: int
    what: str
    source: bytes

    def __str__(self) -> str:
        return f"{self.path}:{self.line}  {self.what}"


def removals() -> list[Removal]:
    """All of them, in the order of the files."""
    found = []
    for path in _files():
        name = path.relative_to(ROOT / PACKAGE).as_posix()
        found += [Removal(name, *each) for each in _in_file(path.read_bytes())]
    return found


def _files() -> list[Path]:
    package = ROOT / PACKAGE
    files = sorted(package.rglob("*.py"))
    return [f for f in files if not f.relative_to(package).as_posix().startswith(LEFT_OUT)]


def _calls(tree: ast.AST) -> list[ast.Call]:
    """Those that move something, in their order."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and _without(node)]
    return sorted(calls, key=lambda node: (node.lineno, node.col_offset, -_end(node)))


def _end(node: ast.expr) -> int:
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    return node.end_lineno * 1000 + node.end_col_offset


def _in_file(source: bytes) -> Iterator[tuple[int, str, bytes]]:
    starts = [0]
    for line in source.split(b"\n"):
        starts.append(starts[-1] + len(line) + 1)
    for call in _calls(ast.parse(source)):
        left = _without(call)
        assert left is not None
        assert call.end_lineno is not None
        assert call.end_col_offset is not None
        first = starts[call.lineno - 1] + call.col_offset
        last = starts[call.end_lineno - 1] + call.end_col_offset
        # As many lines as before.
        lines = "\n" * (call.end_lineno - call.lineno)
        new = source[:first] + f"({ast.unparse(left)}{lines})".encode() + source[last:]
        yield call.lineno, f"{ast.unparse(call)} -> {ast.unparse(left)}", new


def _telling(source: bytes, first: int) -> tuple[bytes, int]:
    """The file with `TOLD(number, movement)` for its movements, and the number after the last."""
    tree = ast.parse(source)
    numbers = {id(call): first + i for i, call in enumerate(_calls(tree))}

    class Teller(ast.NodeTransformer):
        def visit_Call(self, node: ast.Call) -> ast.expr:
            number = numbers.get(id(node))
            self.generic_visit(node)
            if number is None:
                return node
            return ast.Call(ast.Name(TOLD, ast.Load()), [ast.Constant(number), node], [])

    return ast.unparse(Teller().visit(tree)).encode(), first + len(numbers)


def _without(call: ast.Call) -> ast.expr | None:
    """The call without what it moves; None where it moves nothing."""
    function, name = call.func, getattr(call.func, "attr", getattr(call.func, "id", ""))
    if isinstance(function, ast.Attribute) and name == "cpu" and not call.args:
        return function.value
    if isinstance(function, ast.Attribute) and name == "to":
        return _unmoved(call, function.value)
    if isinstance(function, ast.Name) and name in SENDERS:
        return call.args[0]
    if ast.unparse(function).startswith("torch.") and name != "autocast":
        for keyword in call.keywords:
            moves = keyword.arg == "device" and not isinstance(keyword.value, ast.Constant)
            if moves or keyword.arg == "map_location":
                return _with_keywords(call, [k for k in call.keywords if k is not keyword])
    return None


def _unmoved(call: ast.Call, receiver: ast.expr) -> ast.expr | None:
    """`x.to(...)` without the device: of another tensor there remains its type."""
    if any(k.arg == "device" for k in call.keywords):
        left = [k for k in call.keywords if k.arg not in ("device", "non_blocking")]
        return _with_keywords(call, left) if left else receiver
    text = ast.unparse(call.args[0]) if call.args else "dtype"
    if "device" in text:
        return receiver
    if "dtype" in text or text.startswith(("torch.", "tl.")):  # a type of torch's or of Triton's
        return None
    typed = copy.copy(call)
    typed.args = [ast.Attribute(call.args[0], "dtype", ast.Load())]
    return typed


def _with_keywords(call: ast.Call, keywords: list[ast.keyword]) -> ast.Call:
    new = copy.copy(call)
    new.keywords = keywords
    return new


class Outcome(NamedTuple):
    """`test`: the first that failed, None where all passed of those `coming` by the movement."""

    removal: Removal
    test: str | None
    coming: int
    seconds: float


def tried(chosen: list[Removal], tests: Sequence[str] = TESTS) -> Iterator[Outcome]:
    """Run `tests` on the package without each of them."""
    for name in HEAVY:
        importlib.import_module(name)
    assert PACKAGE not in sys.modules, "the package is to be imported without a movement"
    with tempfile.TemporaryDirectory(prefix="sseg-nase-removals-") as folder:
        package = Path(folder, PACKAGE)
        shutil.copytree(ROOT / PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
        Path(folder, "conf").symlink_to(ROOT / "conf")
        compileall.compile_dir(package, quiet=1)
        coming_by = _coming_by(Path(folder), tests)
        numbers = {str(removal): i for i, removal in enumerate(removals())}
        for removal in chosen:
            began = time.monotonic()
            by = coming_by.get(numbers[str(removal)], [])[:MOST_TESTS]
            test = None
            if by:
                with _replaced(package / removal.path, removal.source):
                    test = _run(Path(folder), by).failed
            yield Outcome(removal, test, len(by), time.monotonic() - began)


@contextmanager
def _replaced(path: Path, source: bytes) -> Iterator[None]:
    whole = path.read_bytes()
    path.write_bytes(source)
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
        compiled.unlink()
    try:
        yield
    finally:
        path.write_bytes(whole)


def _coming_by(folder: Path, tests: Sequence[str]) -> dict[int, list[str]]:
    """The tests that come by each movement, the quickest first. All pass on the whole package."""
    number = 0
    with ExitStack() as stack:
        for path in _files():
            source, after = _telling(path.read_bytes(), number)
            if after > number:
                there = folder / path.relative_to(ROOT)
                stack.enter_context(_replaced(there, source))
            number = after
        ran = _run(folder, [str(PLACE / name) for name in tests])
    said = (folder / "log").read_text()[-4000:]
    assert ran.failed is None, f"{ran.failed} fails with all movements: {said}"
    found: dict[int, list[str]] = {}
    for test in sorted(ran.seconds, key=lambda test: ran.seconds[test]):
        for each in ran.told.get(test, []):
            found.setdefault(each, []).append(str(ROOT / test))
    return found


class Ran(NamedTuple):
    """The first test that failed; of each that ran the seconds it took, and what it came by."""

    failed: str | None
    seconds: dict[str, float]
    told: dict[str, list[int]]


def _run(folder: Path, tests: list[str]) -> Ran:
    """Run `tests` until one fails on the package in `folder`, in a process of their own."""
    said = folder / "said"
    said.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        try:
            _run_here(folder, tests, said)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    if not said.exists():
        raise AssertionError(f"the tests ended too soon: {(folder / 'log').read_text()[-4000:]}")
    return Ran(**json.loads(said.read_text()))


def _run_here(folder: Path, tests: list[str], said: Path) -> None:
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(folder))
    results = _Results()
    setattr(builtins, TOLD, results.tell)
    options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", "--assert=plain"]
    options += ["--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml")]
    options += ["-o", "pythonpath="]  # the package of `folder` comes first
    code = pytest.main([*options, *tests], plugins=[results])
    assert str(folder) in str(sys.modules[PACKAGE].__file__), sys.modules[PACKAGE].__file__
    assert (code == 0) == (results.failed is None), code
    told = {test: sorted(numbers) for test, numbers in results.told.items()}
    said.write_text(json.dumps(Ran(results.failed, results.seconds, told)._asdict()))


class _Results:
    """What pytest tells of its tests."""

    def __init__(self) -> None:
        self.failed: str | None = None
        self.seconds: dict[str, float] = {}
        self.told: dict[str, set[int]] = {}
        self.now = ""

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.now = nodeid

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and self.failed is None:
            self.failed = report.nodeid
        before = self.seconds.get(report.nodeid, 0.0)
        self.seconds[report.nodeid] = before + report.duration

    def tell(self, number: int, moved: Any) -> Any:
        self.told.setdefault(self.now, set()).add(number)
        return moved


def drawn(count: int, seed: int) -> list[Removal]:
    """`count` of them at random."""
    return random.Random(seed).sample(removals(), count)


def main() -> int:
    """What is asked for on the command line; 1 where a removal is not seen."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--tests", nargs="*", default=TESTS, help="files, or tests in them")
    parser.add_argument("--only", help="those whose path and line begin with this")
    asked = parser.parse_args()
    chosen = removals() if asked.all or asked.list or asked.only else drawn(asked.count, asked.seed)
    chosen = [one for one in chosen if str(one).startswith(asked.only or "")]
    if asked.list:
        print(*chosen, f"{len(chosen)} movements", sep="\n")
        return 0
    missed = []
    for removal, test, coming, seconds in tried(chosen, asked.tests):
        by = test or f"{coming} tests come by"
        print(f"{'seen' if test else 'MISSED'} {seconds:.0f} s  {removal}  {by}", flush=True)
        missed += [] if test else [removal]
    print(f"{len(chosen) - len(missed)} of {len(chosen)} removals were seen")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
