"""An ablation is one file, which its name, switches, help and documentation follow from."""

from __future__ import annotations

import re
from pathlib import Path

from sseg_nase.cli import help_text
from sseg_nase.config.ablations import Switches, ablations, table
from sseg_nase.config.compose import load
from sseg_nase.config.conf_files import conf_dir, groups
from sseg_nase.config.validation import cautions, switches

README = Path(__file__).resolve().parents[3] / "README.md"
A8 = """# @package _global_
# NASE only: a fixed network that is pruned.
defaults:
  - override /evolution: none
ablation: A8
curriculum:
  progression: false
ssl:
  distillation_weight: 0
"""
MEANT = Switches(ssl=True, evolution=False, sparsity=True, progression=False, distillation=False)


def test_another_one_is_one_file(tmp_path: Path) -> None:
    (tmp_path / "ablation").mkdir()
    (tmp_path / "ablation" / "A8.yaml").write_text(A8)
    assert ablations(tmp_path)["A8"] == ("NASE only", MEANT)
    assert list(ablations(tmp_path))[-1] == "A8"
    assert "A8" not in ablations()
    row = next(line for line in help_text(tmp_path).splitlines() if line.startswith("  A8 "))
    assert row.split() == ["A8", "NASE", "only", "yes", "-", "yes", "-", "-"]
    config = load(["ablation=A8"], tmp_path)
    assert config.ablation == "A8"
    assert switches(config) == MEANT
    assert cautions(config, tmp_path) == []
    (said,) = cautions(load(["ablation=A8", "sparsity=none"], tmp_path), tmp_path)
    assert "ablation=A8 is defined with sparsity, but this run is without" in said
    (unknown,) = cautions(config)  # its folder is not there any more
    assert "ablation=A8: there is no file of that name" in unknown


def test_the_titles_and_switches_of_the_files() -> None:
    known = ablations()
    assert tuple(known) == groups()["ablation"]
    assert [one.title for one in known.values()][:2] == ["Seed only", "SSL only"]
    assert known["A1"].switches == (False,) * 5
    assert known["A7"].switches == (True,) * 5
    assert table({}) == "    ssl  evolution  sparsity  curriculum  distillation"


def test_the_table_of_the_documentation_is_that_of_the_files() -> None:
    text = README.read_text(encoding="utf-8")
    section = text.partition("\n## Ablations\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (A\d) (.+)$", section, re.MULTILINE)
    found = {}
    for name, row in rows:
        title, *cells = (cell.strip() for cell in row.strip("| ").split("|"))
        found[name] = title, tuple(not cell.startswith("–") for cell in cells)
    assert found == {
        name: (one.title, _in_columns(one.switches)) for name, one in ablations().items()
    }


def _in_columns(on: Switches) -> tuple[bool, ...]:
    """As the README has them: self-supervision, evolution, sparsity, curriculum, distillation."""
    return on.ssl, on.evolution, on.sparsity, on.progression, on.distillation


def test_each_file_names_itself() -> None:
    for name in ablations():
        text = (conf_dir() / "ablation" / f"{name}.yaml").read_text(encoding="utf-8")
        assert f"\nablation: {name}\n" in f"{text}\n"
