"""One door for what must not be published: users, passwords and tokens in addresses.

The process keeps working with them (`use` puts an address's user and password into the environment,
where MLflow and the processes of a sweep find them); nothing that is written, logged or sent has
them: every writer of `sseg_nase.files`, every sink and every printed error passes `redacted`.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO
from urllib.parse import quote, unquote, urlsplit

USERNAME, PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
VARIABLES = (USERNAME, PASSWORD)
HIDDEN = "***"
# Variables whose values are replaced wherever they occur. A user's name is not: it may be a word.
SECRET_VARIABLES = (
    PASSWORD,
    "MLFLOW_TRACKING_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_CONNECTION_STRING",
)
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
ADDRESS_VARIABLES = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_S3_ENDPOINT_URL",
    *_PROXIES,
    *(name.lower() for name in _PROXIES),
)
# A shorter value, or a plain word, occurs in texts by chance: `digits` as a password must not turn
# `dataset=digits` into something else. In addresses it is removed all the same.
SHORTEST, SHORTEST_TOKEN = 6, 16

# It looks for `://` first: to look for a scheme takes minutes in a picture written as base64.
_USER_INFO = re.compile(r"(?<=[A-Za-z0-9+.\-]):(//)[^/\s\"<>]*@")
# An address that lacks its scheme, where it is known to be one.
_BARE = re.compile(r"(\buri['\"]?\s*[=:]\s*['\"]?)[^/\s\"'<>@:]+:[^/\s\"'<>]*@")
# A password cut off in the middle of an address has no @ behind it any more.
_NAMED = (
    r"(?:[\w\-]*(?:token|password|passwd|secret|credential|signature|api[_\-]?key|access[_\-]?key)"
    r"[\w\-]*|pwd|sig|auth)"
)
# In a query or, as of a page that one was sent to, behind #; a message may go on behind it.
_QUERY = re.compile(rf"([?&;#]{_NAMED}=)[^&;\s\"'<>#]*[^&;\s\"'<>#:,.)\]}}]", re.IGNORECASE)
_VARIABLES = "|".join((*SECRET_VARIABLES, "AWS_ACCESS_KEY_ID"))
_VARIABLE = re.compile(rf"\b({_VARIABLES})(['\"]?[=:]\s*['\"]?)[^\s\"',}}]+")
_HEADER = re.compile(
    r"(\bauthorization['\"]?\s*[:=]\s*['\"]?(?:basic|bearer)\s+)[^\s\"']+", re.IGNORECASE
)

_known: set[str] = set()
# The server whose user and password `use` has put into the environment.
_used_for: str | None = None


def redacted(text: str) -> str:
    """Return `text` without user information and tokens of addresses, and known passwords."""
    if "//" in text or "=" in text or ":" in text:
        text = _USER_INFO.sub(r":\1", text)
        text = _BARE.sub(r"\1", text)
        text = _QUERY.sub(rf"\1{HIDDEN}", text)
        text = _VARIABLE.sub(rf"\1\2{HIDDEN}", text)
        text = _HEADER.sub(rf"\1{HIDDEN}", text)
    for secret in _secrets():
        if secret in text:
            text = text.replace(secret, HIDDEN)
    return text


def plainly(value: Any) -> Any:
    """Return nested plain data with every text in it, keys too, `redacted`."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {plainly(key): plainly(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plainly(inner) for inner in value]
    return value


def use(address: str) -> str:
    """Return `address` without its user and password; the environment has them from here on.

    MLflow reads them there, and the processes of a sweep inherit them. Those of an earlier address
    are not sent to another server. Raises `ValueError` where a password holds a raw slash.
    """
    global _used_for
    scheme, mark, rest = address.partition("://")
    if not mark or scheme.lower() not in ("http", "https"):
        return address
    authority, slash, path = rest.partition("/")
    if "@" not in authority and "@" in path and ":" in authority and not _has_port(authority):
        _remember(rest.rpartition("@")[0])
        raise ValueError("a slash in a password must be written as %2F")
    info, at, place = authority.rpartition("@")
    if not at:
        if _used_for not in (None, authority):
            for name in VARIABLES:
                os.environ.pop(name, None)
            _used_for = None
        return address
    user, _, password = info.partition(":")
    _remember_user_info(info)
    os.environ[USERNAME] = unquote(user)
    if password:
        os.environ[PASSWORD] = unquote(password)
    _used_for = place
    return f"{scheme}://{place}{slash}{path}"


def overrides_without(overrides: Sequence[str]) -> list[str]:
    """Return overrides as they may be written: what `use` keeps in the environment is cut out."""
    for override in overrides:
        for found in re.finditer(r"[A-Za-z][A-Za-z0-9+.\-]*://([^/\s\"<>]*)@", override):
            _remember_user_info(found[1])
    return [redacted(override) for override in overrides]


class Redacting:
    """A text stream that passes everything on `redacted`, line by line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._rest, self._lock = stream, "", threading.RLock()

    def write(self, text: str) -> int:
        """Write whole lines; the rest of one waits for its end or for `flush`."""
        with self._lock:
            whole, end, self._rest = (self._rest + text).rpartition("\n")
            if end:
                self._stream.write(redacted(whole) + end)
        return len(text)

    def flush(self) -> None:
        """Write what waits."""
        with self._lock:
            if self._rest:
                self._stream.write(redacted(self._rest))
                self._rest = ""
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def guard_output() -> None:
    """From here on what this process prints, and the tracebacks of its threads, are `redacted`."""
    for name in ("stdout", "stderr"):
        if not isinstance(getattr(sys, name), Redacting):
            setattr(sys, name, Redacting(getattr(sys, name)))


@contextmanager
def guarded_output() -> Iterator[None]:
    """What is printed within is `redacted`."""
    before = sys.stdout, sys.stderr
    guard_output()
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stdout, sys.stderr = before


def _has_port(authority: str) -> bool:
    return authority.rpartition(":")[2].isdigit()


def _remember_user_info(info: str) -> None:
    """A user's name alone may be a word, or part of a path; a long one is a token."""
    _, colon, password = info.partition(":")
    if colon:
        _remember(info)
        _remember(password)
    elif len(info) >= SHORTEST_TOKEN:
        _remember(info)


def _remember(secret: str) -> None:
    for form in (secret, unquote(secret), quote(unquote(secret), safe="")):
        if _rare(form):
            _known.add(form)


def _rare(secret: str) -> bool:
    return len(secret) >= SHORTEST and not (secret.isalpha() and secret.islower())


def _secrets() -> list[str]:
    """What is replaced wherever it stands, the longest first."""
    found = {value for name in SECRET_VARIABLES if _rare(value := os.environ.get(name, ""))}
    for name in ADDRESS_VARIABLES:
        value = os.environ.get(name, "")
        if "@" in value:
            password = urlsplit(value).netloc.rpartition("@")[0].partition(":")[2]
            if _rare(password):
                found.add(password)
    return sorted(found | _known, key=len, reverse=True)
