"""What is installed: the source distribution and the wheel, and the program out of the wheel."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torchvision

import sseg_nase

ROOT = Path(__file__).resolve().parents[2]


class Built(NamedTuple):
    wheel: Path
    sdist: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return Built(*folder.glob("*.whl"), *folder.glob("*.tar.gz"))


def files(folder: Path) -> set[str]:
    """The files of a folder of the repository."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_holds_the_package_and_its_configuration_and_nothing_else(built: Built) -> None:
    names = zipfile.ZipFile(built.wheel).namelist()
    inside = {name for name in names if ".dist-info/" not in name}
    expected = files(ROOT / "sseg_nase") | {f"sseg_nase/{name}" for name in files(ROOT / "conf")}
    assert inside == expected
    assert len(names) == len(set(names))


def test_the_metadata_say_what_it_is(built: Built) -> None:
    archive = zipfile.ZipFile(built.wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    told = Parser().parsestr(archive.read(name).decode())
    assert (told["Name"], told["Version"]) == ("sseg-nase", sseg_nase.__version__)
    assert told["Description-Content-Type"] == "text/markdown"
    assert told["License-Expression"] == "MIT"
    versions = {text.rpartition(" ")[2] for text in told.get_all("Classifier", [])}
    assert {"3.10", "3.11", "3.12", "3.13"} <= versions


def test_the_source_distribution_has_what_builds_tests_and_documents_it(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        inside = {member.name.partition("/")[2] for member in archive.getmembers()}
    for folder in ("sseg_nase", "conf", "tests", "docs", "notebooks", "launchers", "benchmarks"):
        assert files(ROOT / folder) <= inside, folder
    assert {"Makefile", "constraints.txt", "CHANGELOG.md", "CITATION.cff", "LICENSE"} <= inside


def test_the_citation_and_the_changelog_name_the_version() -> None:
    version = sseg_nase.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_pairs_of_torch_in_the_documentation_are_those_that_are_pinned() -> None:
    page = (ROOT / "docs" / "get-started.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| (3\.\S+)(?: to \S+)? \| ([\d.]+) \| ([\d.]+) \|$", page, re.MULTILINE)
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {}
    for line in pins:
        name, version, *marker = re.split(r"==| ; ", line, maxsplit=2)
        for python in ("3.10", "3.11"):
            other = {"3.10": ">= '3.11'", "3.11": "< '3.11'"}[python]
            if not (marker and other in marker[0]):
                pinned[python, name] = version
    assert told == [(p, pinned[p, "torch"], pinned[p, "torchvision"]) for p in ("3.10", "3.11")]


def test_torchvision_fits_torch() -> None:
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2.1]])
    assert torchvision.ops.nms(boxes, torch.tensor([0.1, 0.9]), 0.5).tolist() == [1]


def test_the_container_copies_what_there_is() -> None:
    recipe = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    copied = [
        name for line in re.findall(r"^COPY (.*) \S+$", recipe, re.M) for name in line.split()
    ]
    kept = set((ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines())
    assert {"pyproject.toml", "sseg_nase", "conf"} <= set(copied)
    assert all((ROOT / name).exists() and f"!{name}" in kept for name in copied)


@pytest.mark.slow
def test_the_program_runs_out_of_the_wheel(built: Built, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True)
    python = tmp_path / "env" / "bin" / "python"
    where = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    found = subprocess.run([python, "-c", where], check=True, capture_output=True, text=True)
    # The libraries are those of the tests. A folder that a .pth file names has none read itself,
    # so that this checkout is not among them.
    installed = Path(found.stdout.strip())
    (installed / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    quiet = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([python, *quiet, str(built.wheel)], check=True)
    away = tmp_path / "elsewhere"
    away.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["SSEG_NASE_CACHE"] = str(tmp_path / "cache")

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [str(python.parent / "sseg-nase"), *arguments],
            cwd=away,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("--version").split()[-1] == sseg_nase.__version__
    place = "import sseg_nase; print(sseg_nase.__file__)"
    taken = subprocess.run([python, "-c", place], cwd=away, env=environment, capture_output=True)
    assert str(installed) in taken.stdout.decode()
    run("debug=tiny", "tracking=jsonl")
    assert list(away.glob("runs/*/*/results.json"))
