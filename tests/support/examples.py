"""The examples of a page of the documentation, as an installed package."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sseg_nase import kinds, packages
from sseg_nase.config import options
from sseg_nase.config.options import load_packages

DOCS = Path(__file__).parents[2] / "docs"
# A block that begins with the name of a file is that file.
FILES = re.compile(r"```(?:python|yaml)\n# (\S+\.(?:py|yaml))\n(.*?)```", re.DOTALL)
TABLES = re.compile(r'\[project\.entry-points\."(.+?)"\]\n((?:\w+ = "[\w:]+"\n)+)')
POINTS = re.compile(r'(\w+) = "([\w:]+)"')


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def write_files(text: str, folder: Path) -> None:
    """Write the files of a page below `folder`."""
    for name, content in FILES.findall(text):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")


def _forget() -> None:
    caches = (load_packages, kinds._load_packages, packages.names_in, options.imported)
    for each in (*options._CACHES, *caches):
        each.cache_clear()


@contextmanager
def installed(text: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Install the files and entry points of pages' `text` in `home`; gives the folder of YAML.

    Afterwards nothing knows of them.
    """
    about = home / "somebodys-1.0.dist-info"
    about.mkdir(parents=True)
    write_files(text, home)
    points = [
        (group, name, named)
        for group, table in TABLES.findall(text)
        for name, named in POINTS.findall(table)
    ]
    modules = [named.partition(":")[0] for _, _, named in points]
    sections: dict[str, str] = {}
    for group, name, named in points:
        sections[group] = sections.get(group, f"[{group}]\n") + f"{name} = {named}\n"
    (about / "METADATA").write_text("Name: somebodys\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("\n".join(sections.values()))
    known = {base: dict(named) for base, named in options._OPTIONS.items()}
    with monkeypatch.context() as patched:
        patched.setattr(kinds, "_KINDS", dict(kinds.kinds()))
        patched.syspath_prepend(home)
        for module in modules:
            sys.modules.pop(module, None)
        _forget()
        yield home / "my_conf"
        options._OPTIONS.update(known)
        for module in modules:
            sys.modules.pop(module, None)
    _forget()
