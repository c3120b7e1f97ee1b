"""The help is the files' own, read without Hydra; a folder of one's own is in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from sseg_nase import cli
from sseg_nase.config import conf_files
from sseg_nase.config.conf_files import conf_dir, read_values
from sseg_nase.config.help import asked_for, help_text
from sseg_nase.errors import MISTAKE, UserError

FILES = sorted(conf_dir().rglob("*.yaml"))


def helped(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The program, and at its end what it has imported."""
    program = (
        "import sys\n"
        f"sys.argv = ['sseg-nase', *{arguments!r}]\n"
        "from sseg_nase.__main__ import command\n"
        "command()\n"
        "known = {'hydra', 'omegaconf', 'torch', 'numpy', 'argparse', 'sseg_nase.config.schema'}\n"
        "print(*sorted(known & set(sys.modules)), sep=' ', file=sys.stderr)"
    )
    return subprocess.run(
        [sys.executable, "-c", program], cwd=cwd, capture_output=True, text=True, check=False
    )


def of_ones_own(folder: Path) -> Path:
    (folder / "ablation").mkdir(parents=True)
    (folder / "ablation" / "A9.yaml").write_text(
        "# @package _global_\n# Without pruning: for this test.\n"
        "defaults:\n  - override /sparsity: none\nssl:\n  distillation_weight: 1e-2\nablation: A9\n"
    )
    (folder / "ssl").mkdir()
    (folder / "ssl" / "mine.yaml").write_text("name: mine\n")
    return folder


def test_options_of_ones_own_are_in_the_help_at_once(tmp_path: Path) -> None:
    mine = of_ones_own(tmp_path / "mine")
    for arguments in (["--help", "--config-dir", "mine"], ["-cd", "mine", "-h"]):
        done = helped(*arguments, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "\n")  # nothing heavy was imported
        assert done.stdout == help_text(mine) + "\n"
    (ssl,) = (line for line in done.stdout.splitlines() if line.startswith("ssl: "))
    assert "mine" in ssl.removeprefix("ssl: ").split(", ")
    assert "  A9  Without pruning" in done.stdout
    (row,) = (line for line in done.stdout.splitlines() if line.startswith("  A9 "))
    assert row.split()[-5:] == ["yes", "yes", "-", "yes", "yes"]
    (mine / "ssl" / "another.yaml").write_text("name: another\n")
    assert "ssl: another, " in helped("--help", "--config-dir=mine", cwd=tmp_path).stdout
    without = helped(cwd=tmp_path)
    assert without.stdout == help_text() + "\n" != help_text(mine) + "\n"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    mine = of_ones_own(tmp_path / "mine")
    broken = mine / "ablation" / "B.yaml"
    for text, why in (
        ("a: [1", "expected"),
        ("a: 1\nb: 2\na: 3\n", "duplicate key a"),
        ("- a\n", "no keys"),
    ):
        broken.write_text(text)
        said = f"{broken}: this config file cannot be read"
        with pytest.raises(UserError, match="cannot be read") as error:
            read_values(broken)
        assert said in str(error.value)
        assert why in str(error.value)
    with pytest.raises(UserError, match="No such file"):
        read_values(mine / "nothing.yaml")
    done = helped("--help", "--config-dir", "mine", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (MISTAKE, "")
    assert done.stderr.startswith(f"sseg-nase: {said}")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "folders"),
    [
        ([], []),
        (["-h"], []),
        (["--help", "--help"], []),
        (["--config-dir", "mine", "--help"], ["mine"]),
        (["--help", "--config-dir=mine"], ["mine"]),
        (["--help", "-cd", "mine"], ["mine"]),
        (["--config-dir", "mine"], None),
        (["seed=0"], None),
        (["--help", "seed=0"], None),
        (["--help", "--resolve"], None),
        (["--help", "--cfg", "job"], None),
        (["--help", "--config-dir"], None),
        (["--help", "--config-dir", "elsewhere"], None),
        (["--help", "--config-dir", "mine", "seed=0"], None),
    ],
)
def test_only_a_command_line_of_help_is_answered_at_once(
    arguments: list[str], folders: list[str] | None
) -> None:
    Path("mine").mkdir()
    expected = None if folders is None else [Path(folder).absolute() for folder in folders]
    assert asked_for(arguments) == expected


def test_a_place_that_is_gone_is_for_the_command_line_to_refuse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def gone() -> str:
        raise FileNotFoundError

    monkeypatch.setattr(os, "getcwd", gone)
    assert asked_for(["--help"]) is None


def test_what_is_read_is_what_omegaconf_reads() -> None:
    assert len(FILES) > 100
    for file in FILES:
        known = OmegaConf.to_container(OmegaConf.load(file))
        assert read_values(file) == (known or {}), file


NUMBERS = """
a: 1e-3
b: 1E5
c: -2.5e+3
d: 1_000.5
e: 2026-11-29
f: .5
g: .inf
h: 1.
i: 0x1F
j: 1e
k: ${a}
l: 12:30
m: "1e-3"
n: 1_0e2
o: ???
p: null
q: [on, yes, No]
"""


def test_numbers_dates_and_words_are_as_omegaconf_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "numbers.yaml"
    file.write_text(NUMBERS)
    known = OmegaConf.to_container(OmegaConf.load(file))
    assert isinstance(known, dict)
    assert isinstance(known["a"], float)
    assert isinstance(known["e"], str)
    assert read_values(file) == known
    assert [type(v) for v in read_values(file).values()] == [type(v) for v in known.values()]


def test_the_parser_of_libyaml_is_used_where_there_is_one() -> None:
    there = hasattr(yaml, "CSafeLoader")
    assert issubclass(conf_files._Loader, yaml.CSafeLoader if there else yaml.SafeLoader)


def test_both_ways_to_the_help_say_the_same() -> None:
    assert cli.help_text is help_text
