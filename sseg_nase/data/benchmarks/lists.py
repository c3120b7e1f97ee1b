"""Lists that users write: CSV files and class lists, read strictly, with line numbers."""

from __future__ import annotations

import csv
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from io import StringIO
from pathlib import Path

from sseg_nase.data.benchmarks.walk import Seen, listed, native
from sseg_nase.errors import UserError, shown

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
# Not str.splitlines: a label may hold what that takes for line ends, such as U+2028.
_LINE_END = re.compile(r"\r\n|\r|\n")
# What spreadsheets write unless they are asked for CSV.
_NO_TEXT = {
    b"PK\x03\x04": "an Excel, Numbers or LibreOffice file (or a zip archive)",
    b"\xd0\xcf\x11\xe0": "an old Excel file",
    b"PAR1": "a Parquet file",
}
_NUMBER = re.compile(r"([+-]?)(\d+)(?:\.(\d*))?")


@dataclass(frozen=True)
class Row:
    """One row: its cells by column, stripped, and the number of its first line."""

    line: int
    cells: Mapping[str, str]


@dataclass(frozen=True)
class Table:
    """The rows of a CSV file, and what was understood although it is not written as expected."""

    path: Path
    rows: Sequence[Row]
    notices: Sequence[str]


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark.

    Raises UserError naming file, line and remedy when it is in another encoding.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"The list {shown(path)} cannot be read: {error.strerror}.") from error
    if kind := next((kind for magic, kind in _NO_TEXT.items() if raw.startswith(magic)), None):
        raise UserError(f"The list {shown(path)} is no text but {kind}: save it as 'CSV UTF-8'.")
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")) or 4 * raw.count(b"\0") > len(raw):
        raise UserError(
            f"The list {shown(path)} cannot be read: from line 1 on it is UTF-16, or no text. Save "
            "it as 'CSV UTF-8', or: iconv -f utf-16 -t utf-8 OLD > NEW."
        )
    if b"\0" in raw:
        line = raw[: raw.index(b"\0")].count(b"\n") + 1
        raise UserError(f"Line {line} of {shown(path)} has a NUL byte: the file is damaged.")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        byte = raw[error.start]
        raise UserError(
            f"The list {shown(path)} cannot be read: line {line} has a byte (0x{byte:02x}) that "
            "is not UTF-8. It may be of Windows-1252 or Latin-1: save it as 'CSV UTF-8', or: "
            "iconv -f windows-1252 -t utf-8 OLD > NEW."
        ) from error


def read_table(
    path: Path, columns: Sequence[str], optional: Sequence[str] = (), named_by: str = ""
) -> Table:
    """The rows of a CSV file whose header has `columns`, and perhaps `optional` ones.

    Cells and header are stripped, empty lines skipped; the delimiter and the header's case may be
    others (with a notice). Every row has as many cells as the header, none with a line break, and
    a value for each of `columns`; else UserError names file and line. `named_by`: the keys that say
    what the columns are called, if any do.
    """
    text = read_text(path)
    delimiter, header, notices = _header(path, text, columns, optional, named_by)
    rows: list[Row] = []
    for line, cells in _rows(path, text, delimiter):
        if line == header.line:
            continue
        if len(cells) != len(header.cells):
            raise UserError(
                f"Line {line} of {shown(path)} has {len(cells)} cells, its header has "
                f"{len(header.cells)}: {'; '.join(cells)!r}. Write a value that contains "
                f"{_name(delimiter)} in quotation marks."
            )
        named = dict(zip(header.cells.values(), cells, strict=True))
        if lacking := [column for column in columns if not named[column]]:
            raise UserError(
                f"Line {line} of {shown(path)} lacks a value for {' or '.join(columns)} "
                f"({', '.join(lacking)} is empty)."
            )
        rows.append(Row(line, named))
    if not rows:
        raise UserError(f"The CSV file {shown(path)} lists no images.")
    return Table(path, rows, notices)


def _name(delimiter: str) -> str:
    return "a tab" if delimiter == "\t" else f"'{delimiter}'"


def _rows(path: Path, text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    """Line number and stripped cells of every row that is not empty."""
    reader = csv.reader(
        StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True
    )
    rows, before = [], 0
    try:
        for cells in reader:
            start, before = before + 1, reader.line_num
            if not any(cell.strip() for cell in cells):
                continue
            if any("\n" in cell or "\r" in cell for cell in cells):
                raise UserError(
                    f"The row on lines {start} to {before} of {shown(path)} has a line break "
                    "within a cell: a quotation mark may not be closed, or two are too many."
                )
            rows.append((start, [cell.strip() for cell in cells]))
    except csv.Error as error:
        raise UserError(
            f"Line {before + 1} of {shown(path)} cannot be read: {error}. A quotation mark may "
            'not be closed; within quotation marks write "" for one.'
        ) from error
    return rows


@dataclass(frozen=True)
class _Header:
    line: int
    cells: Mapping[int, str]


def _header(
    path: Path, text: str, columns: Sequence[str], optional: Sequence[str], named_by: str
) -> tuple[str, _Header, list[str]]:
    expected = ",".join(columns)
    wanted = {*columns, *optional}
    for delimiter, called in DELIMITERS.items():
        first = _first_row(path, text, delimiter)
        if first is None:
            break
        line, cells = first
        known = [cell.lower() if cell.lower() in wanted else cell for cell in cells]
        if not set(columns) <= set(known):
            continue
        if twice := sorted({name for name in known if name and known.count(name) > 1}):
            raise UserError(
                f"Line {line} of {shown(path)}, its header, has the column {twice[0]} twice."
            )
        notices = []
        if delimiter != ",":
            notices.append(f"{path.name} is read with {called} between its cells.")
        if others := [f"{a} as {b}" for a, b in zip(cells, known, strict=True) if a != b]:
            notices.append(f"{path.name}: the header's {', '.join(others)} is understood.")
        # Columns without a name, as pandas writes its index, are of no interest here.
        names = {place: name or f"#{place}" for place, name in enumerate(known)}
        return delimiter, _Header(line, names), notices
    header = next((line for line in _LINE_END.split(text) if line.strip()), "")
    cells = re.split(r"[,;\t|]", header)
    missing = [column for column in columns if column not in map(str.strip, cells)]
    near = [(get_close_matches(name, map(str.strip, cells), n=1), name) for name in missing]
    remedy = "".join(f" Write {name} for {word[0]}." for word, name in near if word)
    remedy = remedy or (f" {named_by} name other columns." if named_by else "")
    if re.match(r"#|//|sep=", header.strip().strip('"')):
        remedy = " Delete that line: the header must be the first one."
    raise UserError(
        f"The header of {shown(path)} has no column {', '.join(missing or columns)}: it is "
        f"'{header}', expected '{expected}', between commas, semicolons, tabs or |.{remedy}"
    )


def _first_row(path: Path, text: str, delimiter: str) -> tuple[int, list[str]] | None:
    for number, line in enumerate(_LINE_END.split(text), start=1):
        if line.strip():
            rows = _rows(path, "\n" * (number - 1) + line, delimiter)
            return (number, rows[0][1]) if rows else (number, [])
    return None


def read_names(path: Path) -> list[tuple[int, str]]:
    """Line number and stripped text of every line of a list that is not empty."""
    lines = enumerate(_LINE_END.split(read_text(path)), start=1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def listed_images(
    file: Path, base: Path, entries: Sequence[tuple[int, str]]
) -> tuple[list[Seen], list[str]]:
    """The images that lines of `file` name, relative to `base`, and notices on how they were found.

    Raises UserError naming the first line whose image is not there, and how many are missing.
    """
    seen: list[Seen] = []
    missing: list[tuple[int, str]] = []
    understood: Counter[str] = Counter()
    for line, name in entries:
        for variant, how in _variants(name):
            if found := _at(file, base, variant, line):
                seen.append(found)
                understood[how] += 1
                break
        else:
            missing.append((line, name))
    if missing:
        line, name = missing[0]
        raise UserError(
            f"{len(missing)} images that {shown(file)} lists are missing: line {line}, "
            f"{_place(base, name)} does not exist.{_remedy(base, name)}"
        )
    notices = [
        f"{file.name}: {count} paths {how}." for how, count in understood.items() if how and count
    ]
    return seen, notices


def _variants(name: str) -> Iterator[tuple[str, str]]:
    """A path as it is written, and as it may be called on this disk: how it is then read."""
    yield name, ""
    slashed = name.replace("\\", "/")
    if slashed != name:  # as Windows writes paths
        yield slashed, "with backslashes are read with slashes"
    for form in ("NFC", "NFD"):  # Linux and Windows, macOS
        if (other := unicodedata.normalize(form, slashed)) != slashed:
            yield other, "are found in another Unicode form of their name"


def _at(file: Path, base: Path, name: str, line: int) -> Seen | None:
    return listed(native(str(base / name)), name, file, line)


def _place(base: Path, name: str) -> str:
    """Where `name` was looked for; an address as it is written."""
    return shown(name) if "://" in name else shown(base / name)


def _remedy(base: Path, name: str) -> str:
    if re.match(r"[A-Za-z]:[\\/]", name):
        return " It is a path of Windows: write paths relative to the list's own folder."
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", name):
        return (
            " It is an address: only files on this machine are read. Download the images and write "
            f"paths relative to {shown(base)}."
        )
    if name.startswith("~"):
        return f" ~ is not the home folder in a list: write paths relative to {shown(base)}."
    if name[0] in "'\"":
        return ' Write no quotation marks, or double ones ("), around a path.'
    return f" Paths are relative to {shown(base)}."


def folded(name: str) -> str:
    """What class names have in common that are hardly meant to be two classes.

    Case, Unicode form, invisible characters, spaces, and how a number is written (1, 01, 1.0).
    """
    text = unicodedata.normalize("NFKC", name).casefold()
    text = "".join(char for char in text if unicodedata.category(char) != "Cf")
    text = " ".join(unicodedata.normalize("NFKC", text).split())
    if number := _NUMBER.fullmatch(text):
        sign, whole, fraction = number.groups()
        whole, fraction = whole.lstrip("0") or "0", (fraction or "").rstrip("0")
        negative = "-" * (sign == "-" and (whole, fraction) != ("0", ""))
        return negative + whole + (f".{fraction}" if fraction else "")
    return text


def alike(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of different `names` that are equal when `folded`."""
    first: dict[str, str] = {}
    pairs = []
    for name in names:
        other = first.setdefault(folded(name), name)
        if other != name:
            pairs.append((other, name))
    return pairs


def both(one: str, other: str) -> str:
    """Two names that look alike, so that one sees how they differ."""
    if one.isprintable() and other.isprintable() and one.isascii() and other.isascii():
        return f"'{one}' and '{other}'"
    return f"{one!a} and {other!a}"
