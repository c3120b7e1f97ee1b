"""The long way, in a browser: what is started on the page outlives a reload and the page itself."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

from tests.support.headless import Browser, needs_chromium
from tests.support.own_photos import photos

pytestmark = [
    pytest.mark.slow,
    needs_chromium,
    pytest.mark.skipif(
        importlib.util.find_spec("streamlit") is None,
        reason="Streamlit is not installed: pip install 'sseg-nase[ui]'",
    ),
]
PATIENCE = 600
TINY = ["debug=tiny", "tracking=jsonl"]
BUTTON = (
    "[...document.querySelectorAll('button')].find(b => b.innerText.trim() === {!r} && !b.disabled)"
)


class Served(NamedTuple):
    address: str
    process: subprocess.Popen[str]
    folder: Path


def served(folder: Path) -> Served:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "sseg_nase", "task=ui", f"ui.port={port}", "ui.upload_gb=0.01"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    stop = time.monotonic() + PATIENCE
    while time.monotonic() < stop:
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                return Served(address, process, folder)
        time.sleep(0.2)
    raise AssertionError("the page was not served")


class Page:
    """The page in a browser, by what is written on it."""

    def __init__(self, browser: Browser, server: Served) -> None:
        self.browser, self.server = browser, server

    def open(self, view: str, *overrides: str, **about: str) -> None:
        token = parse_qs(urlsplit(self.server.address).query)["token"][0]
        asked = [("token", token), ("view", view), *(("with", one) for one in overrides)]
        base = self.server.address.partition("?")[0]
        self.browser.open(f"{base}?{urlencode([*asked, *about.items()])}")

    def says(self, text: str, seconds: float = PATIENCE) -> None:
        try:
            self.browser.until(f"(document.body?.innerText ?? '').includes({text!r})", seconds)
        except AssertionError:
            said = self.browser.run("document.body?.innerText")
            raise AssertionError(f"{text!r} is not on the page:\n{said}") from None

    def click(self, label: str) -> None:
        self.browser.until(BUTTON.format(label), PATIENCE)
        self.browser.run(f"{BUTTON.format(label)}.click()")

    def address(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.browser.run("location.href")).query)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Served]:
    started = served(tmp_path)
    yield started
    started.process.kill()
    started.process.wait()
    assert started.process.stdout is not None
    started.process.stdout.close()
    for told in tmp_path.glob("runs/commands/*/command.json"):
        notes = json.loads(told.read_text())
        if "exitcode" not in notes:
            os.kill(notes["pid"], signal.SIGTERM)


@pytest.fixture
def page(server: Served, tmp_path: Path) -> Iterator[Page]:
    browser = Browser(tmp_path / "profile")
    yield Page(browser, server)
    browser.close()


def waited(happened: Callable[[], object], what: str) -> None:
    stop = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < stop, what
        time.sleep(0.1)


def runs(page: Page) -> list[Path]:
    return [path.parent for path in page.server.folder.glob("runs/debug/*/status.json")]


def status(run: Path) -> str:
    return str(json.loads((run / "status.json").read_text())["status"])


def test_a_run_is_reloaded_stopped_resumed_and_outlives_the_page(page: Page) -> None:
    page.open("Start", *TINY, "pretrain.epochs=60")
    page.says("sseg-nase debug=tiny")
    page.click("Start")
    page.says("epoch ")
    page.says(" of 60")
    page.browser.call("Page.reload")
    page.says(" of 60")
    assert page.address()["command"][0].startswith("commands/")
    page.says("GROW")
    page.click("Stop")
    page.says("INTERRUPTED")
    (run,) = runs(page)
    assert status(run) == "INTERRUPTED"
    page.click("Open its run")
    page.says("Resume")
    page.click("Resume")
    page.says("RUNNING")
    waited(lambda: status(run) == "RUNNING", "the run goes on")
    page.server.process.kill()  # the page, not what it has started
    page.server.process.wait()
    waited(lambda: status(run) == "FINISHED", f"{run} is {status(run)}")
    assert json.loads((run / "results.json").read_text())["fewshot"]


def test_a_sweep_and_a_search_on_an_uploaded_zip(page: Page, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", classes=12, images=8)
    archive = tmp_path / "photos.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted(folder.rglob("*.png")):
            packed.write(path, str(path.relative_to(folder)))
    page.open("Images")
    page.says("A zip with a folder of images per class")
    page.browser.until("document.querySelector('input[type=file]')")
    page.browser.give("document.querySelector('input[type=file]')", [archive])
    page.click("Unpack")
    page.says("6 classes")
    page.click("Search on them")
    page.says("task=search dataset=folder")
    root = page.address()["with"]
    small = ["search.choices={seed: [0,1]}", "search.budget.candidates=2", "search.final_seeds=0"]
    page.open("Start", *root, *TINY, *small, "evaluation.ways=2", "evaluation.shots=[1]")
    page.click("Start")
    page.says("FINISHED")
    page.click("Open its run")
    page.says("2 results of 2 candidates")
    page.open("Start", *TINY, "pretrain.epochs=1", "seed=0,1", several="yes")
    page.says("2 jobs: seed=0, seed=1")
    page.click("Start")
    page.says("FINISHED")
    (sweep,) = page.server.folder.glob("runs/sweeps/*/sweep.json")
    page.open("Work", sweep=f"sweeps/{sweep.parent.name}")
    page.says("Go on with what is not finished")
    assert {status(run) for run in runs(page)} == {"FINISHED"}
    assert not page.browser.told


def test_what_is_too_large_is_refused_by_the_page(page: Page, tmp_path: Path) -> None:
    large = tmp_path / "large.zip"
    with large.open("wb") as file:
        file.truncate(2 * 10**9)  # a file of holes: it takes no room
    page.open("Images")
    page.browser.until("document.querySelector('input[type=file]')", PATIENCE)
    page.browser.give("document.querySelector('input[type=file]')", [large])
    page.says("File must be 10.0MB or smaller")
    assert not (tmp_path / "data").exists()
