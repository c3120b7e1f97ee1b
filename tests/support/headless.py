"""A headless Chromium, spoken to over pipes by the DevTools protocol: nothing more is needed."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

NAMES = (os.environ.get("CHROME") or "", "chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next((path for name in NAMES if name and (path := shutil.which(name))), None)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium is found: apt-get install chromium, or set CHROME=PATH"
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
    "--use-fake-device-for-media-stream",  # a camera that shows a test picture
    "--use-fake-ui-for-media-stream",
    "--remote-debugging-pipe",
)
# The browser reads orders from the file descriptor 3 and answers in 4.
START = (
    "import fcntl, os, sys\n"
    "given = [fcntl.fcntl(int(text), fcntl.F_DUPFD, 10) for text in sys.argv[1:3]]\n"
    "for number, own in enumerate(given, 3): os.dup2(own, number)\n"
    "os.execv(sys.argv[3], sys.argv[3:])\n"
)
PATIENCE = 60  # seconds for one answer


class Browser:
    """One page. `requests` are the addresses that it asked for, `told` what went wrong on it."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        orders, self._orders = os.pipe()
        self._answers, answers = os.pipe()
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-S", "-c", START, str(orders), str(answers)),
                *(CHROMIUM, *FLAGS, f"--user-data-dir={profile}"),
            ],
            pass_fds=(orders, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(orders)
        os.close(answers)
        self._unread = b""
        self._number = 0
        self._session: str | None = None
        self.requests: list[str] = []
        self.told: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Network", "Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        order: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            order["sessionId"] = self._session
        os.write(self._orders, json.dumps(order).encode() + b"\0")
        while (message := self._read()).get("id") != self._number:
            self._heed(message)
        assert "error" not in message, f"{method}: {message['error']}"
        found: dict[str, Any] = message["result"]
        return found

    def open(self, page: Path | str) -> None:
        self.call("Page.navigate", url=page if isinstance(page, str) else page.as_uri())
        self.until("document.readyState === 'complete'")

    def run(self, code: str) -> Any:
        """The value of an expression of JavaScript, waited for where it is a promise."""
        found = self.call(
            "Runtime.evaluate",
            expression=code,
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, code: str, seconds: float = PATIENCE) -> None:
        """Wait until an expression is true."""
        stop = time.monotonic() + seconds
        while not self.run(f"Boolean({code})"):
            assert time.monotonic() < stop, f"{code} did not come true; {self.told}"
            time.sleep(0.02)

    def give(self, element: str, files: list[Path]) -> None:
        """Choose `files` in the file input that the expression `element` finds."""
        found = self.call("Runtime.evaluate", expression=element)["result"]
        chosen = [str(path) for path in files]
        self.call("DOM.setFileInputFiles", files=chosen, objectId=found["objectId"])

    def close(self) -> None:
        self._session = None
        with contextlib.suppress(OSError, AssertionError):
            self.call("Browser.close")
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        os.close(self._orders)
        os.close(self._answers)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._answers], [], [], PATIENCE)
            assert ready, f"the browser has said nothing for {PATIENCE} seconds"
            part = os.read(self._answers, 1 << 20)
            assert part, "the browser has ended"
            self._unread += part
        message, _, self._unread = self._unread.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def _heed(self, message: dict[str, Any]) -> None:
        method, found = message.get("method"), message.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(found["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.told.append(str(found["exceptionDetails"]))
        elif method == "Log.entryAdded" and found["entry"]["level"] == "error":
            self.told.append(found["entry"]["text"])
