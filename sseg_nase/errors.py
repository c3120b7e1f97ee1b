"""Errors that are meant for people, and the exit codes that scripts read."""

from __future__ import annotations

import difflib
import os
import unicodedata
from collections.abc import Iterable

DONE, FAILURE, MISTAKE, STOPPED = 0, 1, 2, 130


class UserError(ValueError):
    """The user's mistake: one clear message, exit code 2, no traceback.

    The message names the key, the value, what would be accepted and what to do. Bytes of a file
    name that are not UTF-8 are written with backslashes: every file and terminal takes them so.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(encodable(message))


def encodable(text: str) -> str:
    """Return `text` with backslashes for the bytes of file names that are not UTF-8.

    Python keeps such bytes as surrogates, which no file and no terminal takes.
    """
    if text.isascii():
        return text
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def shown(path: str | os.PathLike[str]) -> str:
    """Return a path or a name as text that can be printed, stored and hashed everywhere.

    Bytes of a file name that are not UTF-8, and control characters, become backslash escapes.
    Whether Python took the locale's encoding for file names makes no difference.
    """
    text = os.fspath(path)
    if text.isascii() and text.isprintable():
        return text
    text = encodable(text)
    if text.isprintable():
        return text
    return "".join(
        character if unicodedata.category(character) != "Cc" else f"\\x{ord(character):02x}"
        for character in text
    )


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the nearest of `known`, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{near[0]}'?" if near else ""
