"""Tables for papers: what pdflatex makes of them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from jinja2 import UndefinedError

from sseg_nase.reporting import html, latex, markdown, rendering
from sseg_nase.reporting.document import CENTRE, LEFT, RIGHT, Bold, Code, Table
from sseg_nase.reporting.latex import CHECK, as_latex, in_latex, preview

needs_pdflatex = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")


def compiled(folder: Path) -> str:
    """Set preview.tex in `folder`; return the log, in which nothing is too long or too short."""
    for _ in range(3):  # a longtable finds its widths from one run to the next
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
    complaints = re.findall(
        r"^(?:Overfull|Underfull|LaTeX Warning|Package \w+ Warning|! ).*", log, re.MULTILINE
    )
    assert complaints == []
    return log


def write(folder: Path, *tables: Table) -> str:
    text = as_latex(tables)
    (folder / "results.tex").write_text(text)
    (folder / "preview.tex").write_text(preview(["results.tex"]))
    return text


ACCURACY = "61.23 ± 0.98"
LONG = (
    "ablation=A7 dataset=cifar_fs curriculum.levels=[BASIC,TEXTURE,OBJECT] a_name_that_never_ends_"
    "and/has/no/spaces/" + 60 * "x"
)


def table(
    caption: str, header: list[str], align: list[str], lines: list[Any], *more: Any, **rest: Any
) -> Table:
    return Table.of(header, align, lines, caption, *more, **rest)


TABLES = {
    "narrow": table("Two.", ["name", "%"], [LEFT, RIGHT], [["a", Bold(ACCURACY)]], ["Note."]),
    "without lines": table("None.", ["name", "%"], [LEFT, RIGHT], []),
    "figures only": table("F.", ["run", *"abcdefgh"], [RIGHT] * 9, [["1", *[ACCURACY] * 8]]),
    "words that do not fit": table(
        f"{LONG}: what was measured.",
        ["method", "backbone", "accuracy", "source"],
        [LEFT, LEFT, RIGHT, LEFT],
        [[LONG, "resnet12 (64-160-320-640)", ACCURACY, LONG], ["short", Code(LONG), "1", "–"]],
        [LONG],
    ),
    "more columns than fit": table(
        "Many.",
        ["configuration", *(f"{n}-shot accuracy" for n in range(12)), CHECK],
        [LEFT, *[RIGHT] * 12, CENTRE],
        [[LONG, *[Bold(ACCURACY)] * 12, CHECK], ["b", *["–"] * 12, "–"]],
    ),
    "more lines than fit": table(
        "Long.", ["name", "%"], [LEFT, RIGHT], [[LONG, ACCURACY]] * 30 + [["a", "1"]] * 100,
        rules=[3, 40],
    ),
    "letters of all kinds": table(
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


def test_a_table_that_is_too_wide_stays_whole_and_is_shrunk(tmp_path: Path) -> None:
    text = write(tmp_path, TABLES["more columns than fit"])
    assert text.count(r"\begin{table}") == text.count(r"\sbox0{%") == 1
    assert r"\ifdim\wd0>\linewidth \resizebox{\linewidth}{!}{\usebox0}\else\usebox0\fi" in text
    assert text.count(rf"\textbf{{61.23 {in_latex('±')} 0.98}}") == 12
    assert text.count(in_latex(CHECK)) == 2  # the column, and its one mark


def test_a_table_that_is_too_long_goes_on_over_pages_and_loses_nothing(tmp_path: Path) -> None:
    text = write(tmp_path, TABLES["more lines than fit"])
    assert text.count(r"\begin{longtable}") == text.count(r"\end{longtable}") == 1
    assert text.count("name & \\% \\\\\n") == 2  # on the first page, and on each further one
    assert text.index(r"\endfirsthead") < text.index(r"\endhead") < text.index("61.23")
    assert r"\begin{longtable}" not in write(tmp_path, TABLES["narrow"])
    assert len(re.findall(r"61\.23 .* 0\.98 \\\\$", text, re.MULTILINE)) == 30
    assert len(re.findall(r"^a & 1 \\\\$", text, re.MULTILINE)) == 100


def test_a_rule_stands_above_the_lines_that_are_named() -> None:
    text = as_latex([table("", ["n"], [RIGHT], [["1"], ["2"], ["3"]], rules=[2])])
    assert "\\midrule\n1 \\\\\n2 \\\\\n\\midrule\n3 \\\\\n" in text


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
    found = table("A caption, e.g. digits/val.", ["one", "two"], [LEFT, LEFT], lines, notes)
    text = as_latex([found])
    broken = [line for line in text.splitlines() if r"\allowbreak" in line]
    assert broken
    for line in broken:
        assert "very-" in line
        assert r"\allowbreak" not in line.partition("&")[2]


@pytest.mark.parametrize("name", TABLES)
def test_every_line_has_a_cell_per_column(name: str) -> None:
    text = as_latex([TABLES[name]])
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    lines = [line for line in text.splitlines() if line.endswith(r" \\")]
    rows = [line for line in lines if "caption" not in line]
    assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {len(TABLES[name].columns)}
    shares = re.findall(r"p\{([\d.]+)\\linewidth\}", text)
    assert sum(map(float, shares)) <= 0.81  # they fit beside each other
    broken = {"narrow": 0, "words that do not fit": 3, "more columns than fit": 1}
    assert len(shares) == broken.get(name, len(shares))


def test_what_a_template_is_given_is_escaped() -> None:
    folder = Path(rendering.FOLDER)
    for made in (latex._templates(), markdown._page().environment):
        start, end = made.variable_start_string, made.variable_end_string
        shown = made.from_string(f"{start} x {end}").render(x="a_b")
        ready = made.from_string(f"{start} x {end}").render(x=rendering.Ready("a_b"))
        assert (shown, ready) == (r"a\_b", "a_b")
    page = html._page().environment.from_string("{{ x }}")
    assert page.render(x="<b>") == "&lt;b&gt;"
    with pytest.raises(UndefinedError):
        page.render()
    assert {path.name for path in folder.iterdir()} == {
        "page.html", "page.md", "tables.tex", "preview.tex", "report.css",
    }  # fmt: skip
