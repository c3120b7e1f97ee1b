"""Tables for papers: what pdflatex makes of them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sseg_nase.reporting.document import CENTRE, LEFT, RIGHT, Bold, Code
from sseg_nase.reporting.latex import CHECK, LatexTable, as_latex, in_latex, preview

needs_pdflatex = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")


def compiled(folder: Path) -> str:
    """Set preview.tex in `folder`; return the log, in which nothing is too long or too short."""
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "preview.tex"],
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
        check=False,
    )
    log = (folder / "preview.log").read_text(errors="replace")
    assert done.returncode == 0, log[-2000:]
    assert (folder / "preview.pdf").stat().st_size > 1000
    complaints = re.findall(r"^(?:Overfull|Underfull|LaTeX Warning|! ).*", log, re.MULTILINE)
    assert complaints == []
    return log


def write(folder: Path, *tables: LatexTable) -> str:
    text = as_latex(tables)
    (folder / "results.tex").write_text(text)
    (folder / "preview.tex").write_text(preview(["results.tex"]))
    return text


ACCURACY = "61.23 ± 0.98"
LONG = (
    "ablation=A7 dataset=cifar_fs curriculum.levels=[BASIC,TEXTURE,OBJECT] a_name_that_never_ends_"
    "and/has/no/spaces/" + 60 * "x"
)
TABLES = {
    "narrow": LatexTable("Two.", ["name", "%"], [LEFT, RIGHT], [["a", Bold(ACCURACY)]], ["Note."]),
    "without lines": LatexTable("None.", ["name", "%"], [LEFT, RIGHT], []),
    "figures only": LatexTable("F.", ["run", *"abcdefgh"], [RIGHT] * 9, [["1", *[ACCURACY] * 8]]),
    "words that do not fit": LatexTable(
        f"{LONG}: what was measured.",
        ["method", "backbone", "accuracy", "source"],
        [LEFT, LEFT, RIGHT, LEFT],
        [[LONG, "resnet12 (64-160-320-640)", ACCURACY, LONG], ["short", Code(LONG), "1", "–"]],
        [LONG],
    ),
    "more columns than fit": LatexTable(
        "Many.",
        ["configuration", *(f"{n}-shot accuracy" for n in range(12)), CHECK],
        [LEFT, *[RIGHT] * 12, CENTRE],
        [[LONG, *[Bold(ACCURACY)] * 12, CHECK], ["b", *["–"] * 12, "–"]],
    ),
    "more lines than fit": LatexTable(
        "Long.", ["name", "%"], [LEFT, RIGHT], [[LONG, ACCURACY]] * 30 + [["a", "1"]] * 100,
        rules=[3, 40],
    ),
    "letters of all kinds": LatexTable(
        r"\ & % $ # _ { } ~ ^ < > | \" ` ' − × · √ → ≤ ≥ ≈ † Δ α β γ λ μ µ τ σ “q” ‘r’ …",
        ["Größe", "naïve"],
        [LEFT, RIGHT],
        [["Łódź, Čapek, Ærø, Ñandú, façade, Ångström, İ, 中文 🙂 тест", "−5.00"]],
    ),
}  # fmt: skip


@needs_pdflatex
@pytest.mark.parametrize("name", TABLES)
def test_pdflatex_has_nothing_to_complain_about(tmp_path: Path, name: str) -> None:
    write(tmp_path, TABLES[name])
    compiled(tmp_path)


@needs_pdflatex
def test_the_log_is_really_looked_at(tmp_path: Path) -> None:
    (tmp_path / "preview.tex").write_text(
        preview(["results.tex"]).replace(r"\input{results.tex}", r"\mbox{" + 200 * "x" + "}")
    )
    with pytest.raises(AssertionError, match="Overfull"):
        compiled(tmp_path)


def test_a_table_that_is_too_wide_comes_in_parts_that_lose_nothing(tmp_path: Path) -> None:
    text = write(tmp_path, TABLES["more columns than fit"])
    parts = text.split(r"\begin{table}")[1:]
    assert len(parts) == text.count(r"\end{table}") > 1
    for number, part in enumerate(parts, start=1):
        assert f"(part {number} of {len(parts)})" in part
        assert "b & " in part.replace(r"\hspace{0pt}", "")  # each part names its lines
    assert text.count(rf"\textbf{{61.23 {in_latex('±')} 0.98}}") == 12
    assert text.count(in_latex(CHECK)) == 2  # the column, and its one mark


def test_a_table_that_is_too_long_comes_in_parts_that_lose_nothing(tmp_path: Path) -> None:
    text = write(tmp_path, TABLES["more lines than fit"])
    assert len(re.findall(r"61\.23 .* 0\.98 \\\\$", text, re.MULTILINE)) == 30
    assert len(re.findall(r"^(?:\\hspace\{0pt\})?a & 1 \\\\$", text, re.MULTILINE)) == 100


def test_letters() -> None:
    assert in_latex("a_b & 5 % <x> {y}") == r"a\_b \& 5 \% $<$x$>$ \{y\}"
    assert in_latex("-1.50 ± 0.20") == r"$-$1.50 $\pm$ 0.20"
    assert in_latex(("a-b ", Bold("c"), Code("d"))) == r"a-b \textbf{c}\texttt{d}"
    assert in_latex("é ï Š ß") == r"{\'{e}} {\"{\i}} {\v {S}} \ss{}"
    assert "[U+4E2D]" in in_latex("中")


def test_only_what_is_wider_than_its_column_is_broken() -> None:
    long = "a-name-of-" + 12 * "very-" + "many_parts=1"
    lines = [
        ["ablation=A1, seed 0", "no, over seeds and episodes"],
        [long, "significant (p < 0.05)"],
    ]
    notes = ["Intervals are of Student's t; digits/val/5w1s."]
    table = LatexTable("A caption, e.g. digits/val.", ["one", "two"], [LEFT, LEFT], lines, notes)
    text = as_latex([table])
    broken = [line for line in text.splitlines() if r"\penalty" in line]
    assert broken
    for line in broken:
        assert "very-" in line
        assert r"\penalty" not in line.partition("&")[2]
