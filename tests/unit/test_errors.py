"""What every file and terminal takes, and the codes that scripts read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sseg_nase.errors import DONE, FAILURE, MISTAKE, STOPPED, UserError, did_you_mean, shown


def test_the_exit_codes_that_scripts_read() -> None:
    assert (DONE, FAILURE, MISTAKE, STOPPED) == (0, 1, 2, 130)


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("plain name", "plain name"),
        ("é λ", "é λ"),
        ("two\nlines\x1b[1m", "two\\x0alines\\x1b[1m"),
        ("é\t", "é\\x09"),
        (os.fsdecode(b"caf\xe9"), "caf\\xe9"),
        (os.fsdecode(b"caf\xe9\n"), "caf\\xe9\\x0a"),
    ],
)
def test_a_name_can_be_printed_everywhere(name: str, left: str) -> None:
    assert shown(name) == left
    assert shown(Path(name)) == left
    shown(name).encode("utf-8")


def test_a_message_with_bytes_of_a_file_name_can_be_written() -> None:
    name = os.fsdecode(b"caf\xe9")
    assert str(UserError(f"{name}: it is not there.")) == "caf\\xe9: it is not there."
    assert str(UserError("é stays")) == "é stays"
    assert str(UserError()) == ""


def test_the_nearest_word_is_asked_for_and_a_far_one_is_not() -> None:
    known = (word for word in ("taylor", "magnitude"))
    assert did_you_mean("tailor", known) == " Did you mean 'taylor'?"
    assert did_you_mean("xyz", ("taylor", "magnitude")) == ""
