"""A zip of images, unpacked so that nothing of it lands outside of one new folder."""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from sseg_nase.errors import UserError, shown
from sseg_nase.files import check_room, in_bytes, make_own, writing

MOST_FILES = 2_000_000  # the training images of ImageNet and as many again
ENCRYPTED = 0x1  # a bit of an entry's flags
BLOCK = 1 << 20


def unpack(archive: Path | BinaryIO, name: str, folder: Path, most_bytes: int) -> Path:
    """Unpack a zip into a new folder below `folder`, and return it, or the one folder in it.

    All of it is there afterwards, or nothing. `name`: what the new folder is called, after the
    file's; `most_bytes`: the most that the file and what it holds may have. Raises `UserError` for
    what is no zip, is too large, has a name that leads elsewhere, a link or another special file,
    a password, or a name twice.
    """
    make_own(folder)
    with writing(folder):
        work = Path(tempfile.mkdtemp(dir=folder, prefix=".unpacking.", suffix=".tmp"))
    try:
        _unpack(archive, name, work, most_bytes)
        with writing(folder):
            os.chmod(work, 0o755)
            target = _moved(work, folder, _plain(name))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return _only_folder(target)


def _unpack(archive: Path | BinaryIO, name: str, work: Path, most_bytes: int) -> None:
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = opened.infolist()
            _check(entries, name, most_bytes)
            check_room(work, sum(entry.file_size for entry in entries))
            with writing(work):
                for entry in entries:
                    _write(opened, entry, work)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise UserError(
            f"{name}: it is no zip that can be read ({error}). Pack it again."
        ) from None


def _check(entries: Sequence[zipfile.ZipInfo], name: str, most_bytes: int) -> None:
    """Refuse before anything is written. zipfile reads no more of an entry than it declares."""
    if not entries:
        raise UserError(f"{name}: there is nothing in it.")
    if len(entries) > MOST_FILES:
        raise UserError(f"{name}: it has {len(entries):,} files; {MOST_FILES:,} are the most.")
    declared = sum(entry.file_size for entry in entries)
    if declared > most_bytes:
        raise UserError(
            f"{name}: unpacked it has {in_bytes(declared)}; {in_bytes(most_bytes)} are the most "
            "(ui.upload_gb). Unpack it on this machine yourself, and name its folder."
        )
    files, folders = set[PurePosixPath](), set[PurePosixPath]()
    for entry in entries:
        place = PurePosixPath(entry.filename)
        why = _wrong(entry) or ("is in it twice" if place in files else None)
        if why is not None:
            raise UserError(f"{name}: {shown(entry.filename)} {why}; nothing was unpacked.")
        if not entry.is_dir():
            files.add(place)
        folders |= {*place.parents, *([place] if entry.is_dir() else [])}
    for place in sorted(files & folders)[:1]:
        raise UserError(f"{name}: {shown(place)} is a file and a folder; nothing was unpacked.")


def _wrong(entry: zipfile.ZipInfo) -> str | None:
    """Why an entry is refused, as a clause; None where it is not."""
    path = entry.filename.replace("\\", "/")
    if path.startswith("/") or re.match(r"[A-Za-z]:", path):
        return "is an absolute path"
    if ".." in path.split("/"):
        return "leads out of the folder (..)"
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link" if kind == stat.S_IFLNK else "is neither a file nor a folder"
    if entry.flag_bits & ENCRYPTED:
        return "has a password"
    return None


def _write(opened: zipfile.ZipFile, entry: zipfile.ZipInfo, work: Path) -> None:
    target = work / PurePosixPath(entry.filename)
    if entry.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with opened.open(entry) as source, target.open("xb") as file:
        shutil.copyfileobj(source, file, BLOCK)


def _plain(name: str) -> str:
    """A folder's name after the file's: letters, digits, dashes and dots inside."""
    stem = PurePosixPath(name.replace("\\", "/")).stem
    return re.sub(r"[^\w.-]+", "_", stem).strip("._")[:100] or "images"


def _moved(work: Path, folder: Path, name: str) -> Path:
    """`work` under the first of `name`, `name-2`, … that is not there."""
    number = 1
    while True:
        target = folder / (name if number == 1 else f"{name}-{number}")
        number += 1
        if not target.exists():
            os.rename(work, target)
            return target


def _only_folder(folder: Path) -> Path:
    """The folder itself, or the one in it, where a whole folder of class folders was packed."""
    inside = [path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX"))]
    if len(inside) != 1 or not inside[0].is_dir():
        return folder
    return inside[0] if any(path.is_dir() for path in inside[0].iterdir()) else folder
