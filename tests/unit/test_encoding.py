from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sseg_nase.streams import unbroken_output

PROGRAM = """
import sys
import sseg_nase.cli
sseg_nase.cli.main = lambda: print("71.25 \\u00b1 0.48 %")
sys.argv = ["sseg-nase", "--version"]
from sseg_nase.__main__ import command
command()
"""


def test_a_result_is_printed_where_the_locale_lacks_its_letters() -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **plain},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"71.25 ? 0.48 %\n"), done.stderr


@pytest.mark.parametrize("closed", ["1>&-", "2>&-"])
def test_an_output_that_is_closed_from_the_start_is_done_without(closed: str) -> None:
    shell = f'exec "$0" -c "$1" {closed}'
    done = subprocess.run(
        ["sh", "-c", shell, sys.executable, PROGRAM.replace("--version", "task=curriculum")],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_what_nobody_listens_to_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", encoding="utf-8", buffering=1) as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        with unbroken_output():
            print("lost")
            print("lost, too", flush=True)
            assert not sys.stdout.isatty()
        assert sys.stdout is pipe


@pytest.mark.slow
def test_a_run_outlives_who_reads_its_output(tmp_path: Path) -> None:
    given = ["debug=tiny", "hardware=cpu", "tracking=jsonl", "ablation=A1", "report.at_end=false"]
    given += ["evaluation.episodes=2", "evaluation.untrained_reference=false"]
    with subprocess.Popen(
        [sys.executable, "-m", "sseg_nase", *given],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        run.stdout.close()  # as `| head -1` does
        said = run.stderr.read()
    assert run.returncode == 0, said
    (status,) = tmp_path.glob("runs/debug/*/status.json")
    assert json.loads(status.read_text())["status"] == "FINISHED"
