"""Writing files so that a reader, or a crash, never sees half of one.

Everything that is written passes here: texts are `redacted`, and a disk that is full or cannot be
written becomes one `StorageError` that says how much room there is and how much is needed.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from sseg_nase.errors import UserError
from sseg_nase.finite import plain
from sseg_nase.redaction import redacted

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNWRITABLE = (*FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)
IN_THE_WAY = (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY)
# What the system says of a place where something is to be written, and of no place that is read.
UNWRITABLE_THERE = (*UNWRITABLE, *IN_THE_WAY, errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP)
WORDS = {
    errno.ENOSPC: "no space is left",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "it is larger than a file may be there",
    errno.EROFS: "it is read-only",
    errno.EACCES: "writing there is not allowed",
    errno.EPERM: "writing there is not allowed",
    errno.EIO: "the disk has failed",
    errno.ESTALE: "the file server has lost it",
    errno.EISDIR: "a folder stands where a file belongs",
    errno.ENOTDIR: "a file stands where a folder belongs",
    errno.EEXIST: "a file stands where a folder belongs",
    errno.ENOTEMPTY: "a folder stands where a file belongs",
    errno.ENOENT: "it is not there any more",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ELOOP: "its links lead to themselves",
}

EMPTY = "is empty"  # a line

# In a folder that is all this program's: a walk through images around it does not enter it.
OWN = ".sseg-nase"


class StorageError(UserError):
    """Something cannot be written: the disk is full, read-only, or not ours to write.

    `folder` is where, `needed` the bytes that were to be written, where that is known, `name`
    what is in the way.
    """

    def __init__(
        self, folder: Path, number: int, needed: int | None = None, name: str | None = None
    ) -> None:
        self.folder, self.number, self.needed = folder, number, needed
        free = free_bytes(folder)
        room = f"; {in_bytes(free)} are free" if free is not None and number in FULL else ""
        wanted = f", {in_bytes(needed)} are needed" if needed and room else ""
        remedy = "Make room there" if number in FULL else "Make it writable"
        what = ""
        if number in IN_THE_WAY:
            remedy, what = "Move it away", f" ({name})" if name else ""
        elif number == errno.ENOENT:
            remedy = "Bring it back"
        words = f"{WORDS.get(number, os.strerror(number))}{what}"
        super().__init__(
            f"{folder} cannot be written: {words}{room}{wanted}. {remedy}, or set another folder."
        )


def storage_error(error: BaseException, folder: Path) -> StorageError | None:
    """Return what `error` says of the storage in `folder`; None where it is about something else.

    `folder` stands for the place where `error` names none.
    """
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        if isinstance(found, StorageError):
            return found
        if isinstance(found, OSError) and found.errno in UNWRITABLE:
            named = found.filename2 or found.filename
            place = Path(os.fsdecode(named)).parent if isinstance(named, str | bytes) else folder
            return StorageError(place, found.errno)
        if isinstance(found, sqlite3.OperationalError) and "disk is full" in str(found):
            return StorageError(folder, errno.ENOSPC)
        found = found.__cause__ or found.__context__
    return None


@contextmanager
def writing(folder: Path, needed: int | None = None) -> Iterator[None]:
    """Context manager: an `OSError` of what is written to `folder` becomes a `StorageError`."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if error.errno not in UNWRITABLE_THERE:
            raise
        named = error.filename2 or error.filename
        name = os.fsdecode(named) if isinstance(named, str | bytes) else None
        raise StorageError(folder, error.errno, needed, name) from error


@contextmanager
def replacing(path: Path, needed: int | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is renamed over `path`.

    When the body raises, the temporary file is removed and `path` stays as it was. Raises
    `StorageError` where nothing can be written; `needed` bytes are then named in it.
    """
    with writing(path.parent, needed):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        finally:
            with suppress(OSError):  # it must not hide why we are here
                temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write `content` to `path` atomically. Raises `StorageError`."""
    needed = len(content)
    with replacing(path, needed) as temporary:
        free = free_bytes(path.parent)
        if free is not None and free < needed:  # said before half of it is written
            raise StorageError(path.parent, errno.ENOSPC, needed)
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write `text`, without passwords and tokens, to `path` atomically. Raises `StorageError`."""
    content = _encoded(text)
    with replacing(path, len(content)) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON to `path` atomically; what is not finite becomes null."""
    text = json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file; None where there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def append_line(path: Path, value: Any) -> None:
    """Append `value` as one JSON line and flush it to the operating system.

    What is not finite becomes null. Raises `StorageError` where it does not fit; half a line does
    not stay.
    """
    line = _encoded(json.dumps(plain(value), ensure_ascii=False, allow_nan=False) + "\n")
    with writing(path.parent, len(line)), path.open("ab", buffering=0) as lines:
        before = os.fstat(lines.fileno()).st_size
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[lines.write(rest) or 0 :]
        except OSError:
            with suppress(OSError):
                lines.truncate(before)
            raise


class JsonLine(NamedTuple):
    """A line of a file of JSON objects, counted from 1.

    `value` is None where it is no object, and `why` says so. `torn`: it has no line end, because
    whoever wrote it was killed; who writes there next cuts it off.
    """

    number: int
    value: dict[str, Any] | None
    why: str
    torn: bool


def read_lines(path: Path, *, containing: str = "", errors: str = "strict") -> Iterator[JsonLine]:
    """Yield the lines of a file of JSON objects, one a line. Raises `OSError`.

    `containing`: only those with this text in them. `errors`: of decoding UTF-8.
    """
    wanted = containing.encode()
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if wanted in line:
                yield _json_line(line, number, errors)


def last_lines(path: Path, size: int = 1 << 16) -> list[JsonLine]:
    """Return the JSON objects in the last `size` bytes of a file, a line each.

    Their numbers are not known, and are 0. None of a file that cannot be read.
    """
    try:
        with path.open("rb") as lines:
            lines.seek(max(0, lines.seek(0, os.SEEK_END) - size))
            found = [_json_line(line, 0, "replace") for line in lines]
    except OSError:
        return []
    return [line for line in found if line.value is not None]


def cut_torn_line(path: Path) -> None:
    """Drop what a killed process left behind the last line end of a file, if it is there."""
    with path.open("rb+") as lines:
        content = lines.read()
        if content and not content.endswith(b"\n"):
            lines.truncate(content.rfind(b"\n") + 1)


def _json_line(line: bytes, number: int, errors: str) -> JsonLine:
    torn = not line.endswith(b"\n")
    try:
        value = json.loads(line.decode("utf-8", errors))
    except UnicodeDecodeError:
        return JsonLine(number, None, "is no UTF-8", torn)
    except (ValueError, RecursionError):
        return JsonLine(number, None, "is no JSON" if line.strip() else EMPTY, torn)
    if not isinstance(value, dict):
        return JsonLine(number, None, "is no object", torn)
    return JsonLine(number, value, "", torn)


def overwrite_json(path: Path, value: Any) -> None:
    """Write `value` over the file that is there, into the blocks that it has, without a new file.

    For a last word on a full disk: a reader at that instant may see half of it. Raises `OSError`
    where that fails, too.
    """
    text = json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    content = _encoded(text)
    with path.open("rb+", buffering=0) as file:
        file.write(content.ljust(os.fstat(file.fileno()).st_size))
        os.fsync(file.fileno())


def make_own(*folders: Path) -> None:
    """Make folders, each within the one before, and mark the first that is all this program's.

    One that is there and holds something else may be the user's: it stays as it is. Where nothing
    can be made, that is said by what is written there next.
    """
    with suppress(OSError):
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / OWN).exists():
                return
            if not any(folder.iterdir()):
                (folder / OWN).touch()
                return


def check_room(folder: Path, needed: int) -> None:
    """Raise `StorageError` unless `needed` bytes are free in `folder`, which need not exist yet."""
    free = free_bytes(folder)
    if free is not None and free < needed:
        raise StorageError(folder, errno.ENOSPC, needed)


def free_bytes(folder: Path) -> int | None:
    """Return the bytes that this user may still write to `folder`; None where it is not known."""
    for place in (folder, *folder.parents):
        with suppress(OSError):
            total, _, free = shutil.disk_usage(place)
            return free if total else None  # some file systems do not say
    return None


def in_bytes(count: int) -> str:
    """Return a number of bytes for people, such as `1.3 MB`."""
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _encoded(text: str) -> bytes:
    """Without secrets. A name that is no UTF-8 is spelled out, as JSON reads it back."""
    return redacted(text).encode("utf-8", errors="backslashreplace")


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
