"""Take movements between devices out of the package, one at a time: do the tests of CUDA see it?

    python tests/cuda/removals.py --count 20 --seed 0    # some, drawn by the seed
    python tests/cuda/removals.py --all                  # every one
    python tests/cuda/removals.py --list

A movement is `.to(...)` with a device or another tensor, `.cpu()`, `device=` of torch's functions,
`map_location=`, and `sent`. Each is removed in a copy of the package, on which the tests then run
until one fails; a process is forked for each, so that torch is loaded once.
"""

from __future__ import annotations

import argparse
import ast
import compileall
import copy
import importlib
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PACKAGE = "sseg_nase"
SENDERS = ("sent", "sent_together")
# What reads the CPU alone, whatever trains; and drawings.
LEFT_OUT = ("reporting/", "tracking/", "sweeps/", "config/")
TESTS = ("test_cuda_pretraining.py", "test_cuda_evaluation.py", "test_cuda_ranks.py")
FIRST = {  # the tests that see most of a folder
    "fewshot/": "test_cuda_evaluation.py",
    "finetune/": "test_cuda_evaluation.py",
    "stages/": "test_cuda_evaluation.py",
    "hardware/": "test_cuda_evaluation.py",
    "data/curriculum/difficulty.py": "test_cuda_evaluation.py",
    "training/distributed.py": "test_cuda_ranks.py",
}
HEAVY = ("torch", "torch._dynamo", "torchvision", "lightning_fabric", "numba", "scipy", "pandas",
         "sklearn", "hydra", "pytest", "rich", "PIL.Image")  # fmt: skip
SECONDS = 900  # for the tests of one removal


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
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        name = path.relative_to(ROOT / PACKAGE).as_posix()
        if not name.startswith(LEFT_OUT):
            found += [Removal(name, *each) for each in _in_file(path.read_bytes())]
    return found


def _in_file(source: bytes) -> Iterator[tuple[int, str, bytes]]:
    starts = [0]
    for line in source.split(b"\n"):
        starts.append(starts[-1] + len(line) + 1)
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    for call in sorted(calls, key=lambda node: (node.lineno, node.col_offset)):
        for left in _without(call):
            assert call.end_lineno is not None
            assert call.end_col_offset is not None
            first = starts[call.lineno - 1] + call.col_offset
            last = starts[call.end_lineno - 1] + call.end_col_offset
            text = f"({ast.unparse(left)})"
            # As many lines as before.
            padding = "\n" * (call.end_lineno - call.lineno)
            new = source[:first] + f"({text}{padding})".encode() + source[last:]
            yield call.lineno, f"{ast.unparse(call)} -> {ast.unparse(left)}", new


def _without(call: ast.Call) -> Iterator[ast.expr]:
    """The call without what it moves; nothing where it moves nothing."""
    function, name = call.func, getattr(call.func, "attr", getattr(call.func, "id", ""))
    if isinstance(function, ast.Attribute) and name == "cpu" and not call.args:
        yield function.value
    elif isinstance(function, ast.Attribute) and name == "to":
        yield from _unmoved(call, function.value)
    elif isinstance(function, ast.Name) and name in SENDERS:
        yield call.args[0]
    elif ast.unparse(function).startswith("torch.") and name != "autocast":
        for keyword in call.keywords:
            moves = keyword.arg == "device" and not isinstance(keyword.value, ast.Constant)
            if moves or keyword.arg == "map_location":
                yield _with_keywords(call, [k for k in call.keywords if k is not keyword])


def _unmoved(call: ast.Call, receiver: ast.expr) -> Iterator[ast.expr]:
    """`x.to(...)` without the device: of another tensor there remains its type."""
    given = [k for k in call.keywords if k.arg == "device"]
    if given:
        left = [k for k in call.keywords if k.arg not in ("device", "non_blocking")]
        yield _with_keywords(call, left) if left else receiver
    elif call.args:
        text = ast.unparse(call.args[0])
        if "device" in text:
            yield receiver
        elif "dtype" not in text and not text.startswith("torch."):
            typed = copy.deepcopy(call)
            typed.args = [ast.Attribute(call.args[0], "dtype", ast.Load())]
            yield typed


def _with_keywords(call: ast.Call, keywords: list[ast.keyword]) -> ast.Call:
    new = copy.copy(call)
    new.keywords = keywords
    return new


class Outcome(NamedTuple):
    """`test`: the first that failed, None where all passed."""

    removal: Removal
    test: str | None
    seconds: float


def tried(chosen: list[Removal]) -> Iterator[Outcome]:
    """Run the tests on the package without each of them."""
    for name in HEAVY:
        importlib.import_module(name)
    assert PACKAGE not in sys.modules, "the package is to be imported without a movement"
    with tempfile.TemporaryDirectory(prefix="sseg-nase-removals-") as folder:
        package = Path(folder, PACKAGE)
        shutil.copytree(ROOT / PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
        Path(folder, "conf").symlink_to(ROOT / "conf")
        compileall.compile_dir(package, quiet=1)
        for removal in chosen:
            began = time.monotonic()
            path = package / removal.path
            whole = path.read_bytes()
            path.write_bytes(removal.source)
            for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
                compiled.unlink()
            try:
                test = _first_failure(removal, Path(folder))
            finally:
                path.write_bytes(whole)
            yield Outcome(removal, test, time.monotonic() - began)


def _first_failure(removal: Removal, folder: Path) -> str | None:
    said = folder / "failed"
    said.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        try:
            _run_tests(removal, folder, said)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    found = said.read_text()
    return found if found != "passed" else None


def _run_tests(removal: Removal, folder: Path, said: Path) -> None:
    """In the child. What it is until it has ended: killed."""
    import pytest

    class First:
        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.failed and said.read_text() == "killed":
                said.write_text(report.nodeid)

    said.write_text("killed")
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(folder))
    ahead = [test for start, test in FIRST.items() if removal.path.startswith(start)]
    order = list(dict.fromkeys([*ahead, *TESTS]))
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow"]
    options += ["--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml")]
    if os.name == "posix":
        import signal

        signal.alarm(SECONDS)
    code = pytest.main([*options, *(str(HERE / name) for name in order)], plugins=[First()])
    assert str(folder) in str(sys.modules[PACKAGE].__file__), sys.modules[PACKAGE].__file__
    if said.read_text() == "killed":
        said.write_text("passed" if code == 0 else f"exit code {code}")


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
    parser.add_argument("--only", help="those whose path and line begin with this")
    asked = parser.parse_args()
    chosen = removals() if asked.all or asked.list or asked.only else drawn(asked.count, asked.seed)
    chosen = [one for one in chosen if str(one).startswith(asked.only or "")]
    if asked.list:
        print(*chosen, f"{len(chosen)} movements", sep="\n")
        return 0
    missed = []
    for removal, test, seconds in tried(chosen):
        print(f"{'seen' if test else 'MISSED'} {seconds:.0f} s  {removal}  {test or ''}", flush=True)
        missed += [] if test else [removal]
    print(f"{len(chosen) - len(missed)} of {len(chosen)} removals were seen")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
