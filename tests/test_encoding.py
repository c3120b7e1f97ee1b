from __future__ import annotations

import os
import subprocess
import sys

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
