"""Completion of the command line, as docs/get-started.md has it for every shell."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sseg_nase.provenance import PACKAGE

BIN = Path(sys.executable).parent
PAGE = PACKAGE.parent / "docs" / "get-started.md"
# How a script of the shell asks what would complete `sseg-nase dataset=cif`.
ASKED = {
    "bash": (
        "COMP_LINE='sseg-nase dataset=cif' COMP_CWORD=1 COMP_WORDS=(sseg-nase dataset=cif)\n"
        'COMP_POINT=${#COMP_LINE}\nhydra_bash_completion\nprintf "%s\\n" "${COMPREPLY[@]}"'
    ),
    "zsh": (
        "export COMP_LINE='sseg-nase dataset=cif'\n"
        "[[ ${_comps[sseg-nase]} == *hydra_bash_completion* ]] && "
        "sseg-nase -sc query=bash | fmt -w 1"
    ),
    "fish": "complete -C 'sseg-nase dataset=cif'",
}


@pytest.mark.slow
@pytest.mark.skipif(not (BIN / "sseg-nase").exists(), reason="sseg-nase is not installed here")
@pytest.mark.skipif(not PAGE.exists(), reason="the documentation is not there")
@pytest.mark.parametrize("shell", ASKED)
def test_each_shell_completes_options(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not there")
    blocks = re.findall(r"```(\w+)\n# \1: \S+\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    script = dict(blocks)[shell] + ASKED[shell]
    found = {"HOME": str(tmp_path), "PATH": f"{BIN}:{os.environ['PATH']}"}
    command = [shell, *{"zsh": ["-f"], "bash": ["--norc"], "fish": ["-N"]}[shell], "-c", script]
    done = subprocess.run(
        command, env={**os.environ, **found}, capture_output=True, text=True, timeout=120
    )
    options = {line.partition("\t")[0].rpartition("=")[2] for line in done.stdout.splitlines()}
    assert {"cifar_fs", "cifar10", "cifar100"} <= options, done.stderr
    assert "digits" not in options
