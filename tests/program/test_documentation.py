"""README and docs/: links lead somewhere, commands are understood, and marked ones run.

`<!-- run -->` before a block of commands runs them as they stand, `<!-- run: KEY=VALUE ... -->`
with these added to every run, and `<!-- run slow: ... -->` in the slow tests.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from sseg_nase import cli
from sseg_nase.config.compose import load
from sseg_nase.config.conf_files import groups
from sseg_nase.config.layout import WRITTEN_AS, is_section, key_types, open_keys
from sseg_nase.config.options import fields_of, load_packages
from sseg_nase.config.rounds import as_search
from sseg_nase.config.schema import Config
from sseg_nase.errors import UserError
from sseg_nase.sweeps.plan import expand
from tests.support.examples import TABLES, installed, write_files

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "launchers" / "README.md", *ROOT.glob("docs/**/*.md")])
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
MARKED = re.compile(
    r"^(?:(<!-- run)( slow)?(?:: (.*?))? -->\n)?```(bash|console)\n(.*?)^```", re.M | re.S
)
# What a reader puts in: runs/…, DIR, RUN/checkpoints/best.pt; also what must be there.
OPEN = re.compile(r"^.*=(?:.*(?:…|\.\.\.)|[A-Z][A-Z_]{2,}(?:[\d,/].*)?$)")
SECTIONS = ["index", *(name for name, kind, _ in fields_of(Config) if is_section(kind))]
GENERATED = {"docs/reference/cli.md", *(f"docs/reference/config/{s}.md" for s in SECTIONS)}
INSPECTIONS = {"task=status", "task=report", "task=deliver"}

pytestmark = pytest.mark.skipif(len(PAGES) < 10, reason="the documentation is not there")


class Block(NamedTuple):
    page: str
    extra: list[str] | None  # None: not marked
    slow: bool
    commands: list[list[str]]


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def slug(heading: str) -> str:
    """The anchor of a heading, as MkDocs and forges make it."""
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip().lower())


def anchors(path: Path) -> set[str]:
    return {slug(h) for h in re.findall(r"^#+ (.+)$", FENCE.sub("", read(path)), re.MULTILINE)}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", read(path))):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        inside = file.relative_to(ROOT).as_posix()
        assert file.exists() or inside in GENERATED, target
        assert not anchor or anchor in anchors(file), target
        # A page of the web site links to nothing beside it.
        assert path.parent.name == ROOT.name or "docs" not in path.parts or "docs" in file.parts


def test_the_first_page_is_short() -> None:
    assert len(read(ROOT / "README.md").splitlines()) <= 150


def commands(language: str, text: str) -> Iterator[list[str]]:
    """The arguments that a shell hands to the program, with the variables of the block."""
    joined = text.replace("\\\n", " ")
    if language == "console":
        joined = "\n".join(line[2:] for line in joined.splitlines() if line.startswith("$ "))
    kept = [
        line for line in joined.splitlines() if re.match(r"(?:export )?[A-Z_]+=|sseg-nase ", line)
    ]
    if not kept or "there is no such key" in text:  # a mistake, shown with its message
        return
    # What another program would print is not known, and none is started here.
    kept = [re.sub(r"\$\([^()]*\)|`[^`]*`", "…", line) for line in kept]
    shell = 'sseg-nase() { printf "%s\\0" "$@"; printf "\\n"; }; set -f\n' + "\n".join(kept)
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        yield line.split("\0")[:-1]


def test_reading_commands_starts_no_program(tmp_path: Path) -> None:
    made = tmp_path / "made"
    text = f'sseg-nase tracking.uri="$(touch {made}; echo x)" seed=`touch {made}`\n'
    assert [*commands("bash", text)] == [["tracking.uri=…", "seed=…"]]
    assert not made.exists()


def blocks() -> Iterator[Block]:
    for path in PAGES:
        for marked, slow, extra, language, text in MARKED.findall(read(path)):
            found = list(commands(language, text))
            given = shlex.split(extra) if marked else None
            yield Block(path.relative_to(ROOT).as_posix(), given, bool(slow), found)


BLOCKS = list(blocks())


def known(given: str, further: Path) -> bool:
    """Whether an override names a group with its options, or a key."""
    key, _, value = given.lstrip("+~").partition("=")
    key = key.partition("@")[0]
    options = groups(*[further] * further.is_dir())
    if key in options and "." not in key:
        several = re.fullmatch(r"\[?([\w,/]+)\]?", value)
        return several is None or set(several[1].split(",")) <= {*options[key], "none"}
    # A stage of fine-tuning has keys of its own, as finetune.linear.epochs.
    plain = re.sub(rf"^finetune\.({'|'.join(options['finetune'])})\.", "finetune.", key)
    written = {*key_types(), *WRITTEN_AS.values()}
    inside = any(plain.startswith(f"{open_key}.") for open_key in open_keys())
    return plain in written or inside or plain.startswith("hydra")


@pytest.mark.parametrize("page", sorted({block.page for block in BLOCKS if block.commands}))
def test_commands_name_what_there_is(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with installed(read(ROOT / page), tmp_path / "installed", monkeypatch) as conf:
        load_packages()
        for given in (given for block in BLOCKS if block.page == page for given in block.commands):
            assert [text for text in given if "=" in text and not known(text, conf)] == []


COMPOSED = {
    (block.page, tuple(given))
    for block in BLOCKS
    for given in block.commands
    if "--config-dir" not in given and any("=" in text for text in given)
    if not any(OPEN.search(text) for text in given)
}


@pytest.mark.slow
@pytest.mark.parametrize(("page", "given"), sorted(COMPOSED))
def test_commands_compose(
    page: str, given: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are whole pass all checks, or are refused as the page shows; of a sweep its first
    and last job."""
    text = read(ROOT / page)
    overrides = [one for one in given if "=" in one]
    search = as_search(overrides) if "-m" in given else None
    jobs = [search or overrides] if search or "-m" not in given else expand(overrides)
    with ExitStack() as stack:
        if TABLES.search(text):  # it has a package of its own
            stack.enter_context(installed(text, tmp_path / "installed", monkeypatch))
            load_packages()
        if any(f"\nsseg-nase: {one}: " in text for one in overrides):
            with pytest.raises(UserError) as refused:
                load(jobs[0])
            assert f"\nsseg-nase: {refused.value}\n" in text
            return
        for job in (jobs[0], jobs[-1]):
            load(job)


RUN = [
    pytest.param(block, id=f"{block.page}-{number}", marks=[pytest.mark.slow] * block.slow)
    for number, block in enumerate(BLOCKS)
    if block.extra is not None
]


@pytest.mark.filterwarnings("ignore")  # of Hydra and what it stands on
@pytest.mark.parametrize("block", RUN)
def test_marked_commands_run(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, in one folder that has the files of the page."""
    assert block.commands
    text = read(ROOT / block.page)
    write_files(text, tmp_path)
    with installed(text, tmp_path / "installed", monkeypatch):
        for given in block.commands:
            more = [] if INSPECTIONS & set(given) else block.extra or []
            monkeypatch.setattr(sys, "argv", ["sseg-nase", *given, *more])
            with pytest.raises(SystemExit) as ended:
                cli.main()
            assert ended.value.code == 0, given


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="make docs installs MkDocs")
def test_the_web_site_is_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    keys = read(tmp_path / "reference" / "config" / "evolution" / "index.html")
    row = r"evolution\.plateau_threshold.*?0\.05.*?≥ 0.*?of the loss in nats"
    assert re.search(row, keys, re.S)
    shown = re.sub(r"<[^>]+>", "", read(tmp_path / "architecture" / "index.html"))  # no colours
    assert "Architecture.seed" in shown
