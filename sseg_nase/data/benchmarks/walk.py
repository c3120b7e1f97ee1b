"""What lies in a folder: its images, its sub-folders, and what is left out, and why.

Every reader looks at folders and files through this module alone: with one `stat` per image, which
also serves for the key of the store and for seeing one file under two names.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from PIL import features

from sseg_nase.data.opening import reads_avif, reads_heif
from sseg_nase.errors import UserError, shown
from sseg_nase.files import OWN

# fmt: off
ALWAYS_READ = frozenset({
    ".apng", ".bmp", ".dib", ".gif", ".ico", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm",
    ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
})
# fmt: on
HEIF = (".heic", ".heif", ".hif")
# What systems, file managers and archivers leave behind. It is counted as left out like the rest.
CLUTTER = frozenset(
    {"mlruns", "__macosx", "@eadir", "lost+found", "thumbs.db", "desktop.ini", "$recycle.bin"}
)
HIDDEN, BELOW, BROKEN, SPECIAL, NO_SUFFIX, LOOP, TWICE = (
    "hidden",
    "in sub-folders",
    "broken links",
    "neither files nor folders",
    "without extension",
    "links to a folder around them",
    "the same file twice",
)

Names = Iterable[str]
LeftOut = Counter[str]  # number of files by reason; Counter() where all were taken


@lru_cache(maxsize=1)
def image_suffixes() -> frozenset[str]:
    """The extensions of image files, in lower case, that this installation of Pillow reads."""
    own = {
        (".avif",): reads_avif(),
        (".jp2",): features.check("jpg_2000"),
        HEIF: reads_heif(),
    }
    return ALWAYS_READ.union(*(suffixes for suffixes, read in own.items() if read))


class Seen(NamedTuple):
    """An image file as it was found: how it is called in its class or list, and its status."""

    path: str
    name: str
    size: int
    modified: int  # ns
    changed: int  # ns; Windows: created
    inode: int
    device: int
    link: str = ""  # the target of a symbolic link
    line: int = 0  # of the list that names it; 0: found in a folder

    def __str__(self) -> str:
        return shown(self.path) + (f" (line {self.line})" if self.line else "")

    def stamp(self) -> str:
        """A line that is another when the file was replaced, renamed or written to.

        The device is left out: it may change when a disk is mounted again.
        """
        name = f"{shown(self.name)}\t{self.link}"
        return f"{name}\t{self.size}\t{self.modified}\t{self.changed}\t{self.inode}"


@dataclass(frozen=True)
class Contents:
    """What lies directly in one folder, by name."""

    images: Sequence[Seen]
    folders: Mapping[str, str]  # path by name, as `shown`
    left_out: LeftOut


def suffix_of(name: str) -> str:
    """The extension in lower case, with its dot; empty if there is none."""
    dot = name.rfind(".")
    return name[dot:].lower() if dot > 0 else ""


def native(text: str) -> str:
    """A path that was written in a UTF-8 file as Python gives it to this system."""
    return os.fsdecode(text.encode("utf-8", "surrogateescape"))


@contextmanager
def looking(where: str | os.PathLike[str]) -> Iterator[None]:
    """Turn any OSError while looking for data into one UserError that names file or folder."""
    try:
        yield
    except OSError as error:
        place = shown(error.filename if isinstance(error.filename, str) else os.fspath(where))
        raise UserError(
            f"{place} cannot be read: {error.strerror or error}. Check its permissions, or move "
            "it out of the data set."
        ) from error


def scan(folder: str | os.PathLike[str]) -> Contents:
    """Look into `folder`, not into what is below it. Symbolic links are followed.

    Raises UserError for an image that is a broken link, and OSError.
    """
    images, folders, left_out = [], {}, Counter[str]()
    suffixes = image_suffixes()
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            suffix = suffix_of(name)
            if name[0] == "." or name.lower() in CLUTTER:
                left_out[_clutter(entry)] += 1
            elif suffix in suffixes and _is_file(entry):
                images.append(_seen(entry))
            elif _is_folder(entry):
                if _is_own(entry):
                    continue
                clean = shown(name)
                if clean in folders:
                    raise UserError(
                        f"Two folders in {shown(folder)} are both shown as {clean}: rename one."
                    )
                folders[clean] = entry.path
            else:
                left_out[_why(entry, suffix)] += 1
    images.sort(key=_shown_name)
    return Contents(images, dict(sorted(folders.items())), left_out)


def _shown_name(seen: Seen) -> str:
    return shown(seen.name)


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself
        return False


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_own(entry: os.DirEntry[str]) -> bool:
    """Whether a folder is one of ours, for runs or stores, which may lie among the images."""
    return os.path.exists(os.path.join(entry.path, OWN))


def _seen(entry: os.DirEntry[str]) -> Seen:
    # On Windows an entry's own status has no inode.
    status = entry.stat() if os.name == "posix" else os.stat(entry.path)
    link = shown(os.readlink(entry.path)) if entry.is_symlink() else ""
    return _from_status(entry.path, entry.name, status, link=link)


def _from_status(
    path: str, name: str, status: os.stat_result, *, link: str = "", line: int = 0
) -> Seen:
    times = status.st_mtime_ns, status.st_ctime_ns
    return Seen(path, name, status.st_size, *times, status.st_ino, status.st_dev, link, line)


def listed(path: str, name: str, file: Path, line: int) -> Seen | None:
    """The image at `path`, which line `line` of `file` calls `name`; None where there is none.

    Raises UserError where it is no file, or cannot be looked at.
    """
    try:
        status = os.stat(path)
        link = shown(os.readlink(path)) if os.path.islink(path) else ""
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(
            f"Line {line} of {shown(file)}: {shown(path)} cannot be read: {error.strerror}."
        ) from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise UserError(f"Line {line} of {shown(file)}: {shown(path)} is {kind}, not an image.")
    return _from_status(path, name, status, link=link, line=line)


def of_file(path: str | os.PathLike[str]) -> Seen:
    """A single file; raises OSError."""
    return _from_status(os.fspath(path), os.path.basename(path), os.stat(path))


def _clutter(entry: os.DirEntry[str]) -> str:
    """What hidden files and clutter are called; a folder of that kind counts as one, unopened."""
    name = entry.name
    if _is_folder(entry):
        return f"{shown(name)}/"
    return HIDDEN if name.startswith(".") and name != ".DS_Store" else shown(name)


def _why(entry: os.DirEntry[str], suffix: str) -> str:
    try:
        there = os.stat(entry.path)
    except OSError:
        if suffix in image_suffixes():
            raise UserError(
                f"The image {shown(entry.path)} is a symbolic link to what does not exist: mend "
                "or remove the link."
            ) from None
        return BROKEN
    if not stat.S_ISREG(there.st_mode):
        return SPECIAL
    return shown(suffix) if suffix else NO_SUFFIX


def identity(path: str | os.PathLike[str]) -> tuple[int, int]:
    """What a folder is, whatever its name: device and inode."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def files_below(folder: str, around: Names = ()) -> int:
    """Number of files in `folder` and below, those through links too, each folder counted once.

    The folders `around` are not entered. Raises OSError.
    """
    visited = {identity(path) for path in around}
    pending, count = [folder], 0
    while pending:
        path = pending.pop()
        here = identity(path)
        if here in visited:
            continue
        visited.add(here)
        with os.scandir(path) as entries:
            for entry in entries:
                if _is_folder(entry):
                    if not _is_own(entry):
                        pending.append(entry.path)
                else:
                    count += 1
    return count


def class_folders(parent: str | os.PathLike[str]) -> tuple[Mapping[str, str], LeftOut]:
    """The class folders in `parent` (path by name, sorted), and the files beside them.

    Raises UserError where there are none.
    """
    contents = scan(parent)
    folders, left_out = dict(contents.folders), Counter(contents.left_out)
    for seen in contents.images:
        left_out[f"{suffix_of(seen.name)} beside the class folders"] += 1
    for name, path in contents.folders.items():
        if os.path.islink(path) and _leads_up(path, parent):
            del folders[name]
            left_out[LOOP] += 1
    if not folders:
        raise UserError(
            f"There are no class folders in {shown(parent)}: add one per class, with its images "
            "in it, or move the empty folder away."
            if not contents.images
            else f"There are no class folders in {shown(parent)}, only images: move them into one "
            "folder per class."
        )
    return folders, left_out


def _leads_up(path: str, parent: str | os.PathLike[str]) -> bool:
    real = Path(os.path.realpath(parent))
    here = identity(path)
    return any(identity(above) == here for above in (real, *real.parents))


def class_images(folder: str, around: str | os.PathLike[str]) -> tuple[list[Seen], LeftOut]:
    """The image files directly in a class folder, by name, and what is left out.

    Raises UserError naming the folder when there are none.
    """
    contents = scan(folder)
    left_out = Counter(contents.left_out)
    if not contents.images:
        there = f" ({reasons(left_out)} not taken)" if left_out else ""
        below = ", only sub-folders, which are not read" if contents.folders else ""
        remedy = "add some or move it away"
        if below:
            remedy += (
                ", or, where its sub-folders are the classes or splits, set "
                f"dataset.root={shown(folder)}"
            )
        raise UserError(
            f"The class folder {shown(folder)} has no images{below}{there}: {remedy}. "
            f"Accepted are {', '.join(sorted(image_suffixes()))}.{_package(left_out)}"
        )
    for name, path in contents.folders.items():
        if files := files_below(path, [folder, os.fspath(around)]):
            left_out[BELOW] += files
        elif suffix_of(name) in image_suffixes():
            left_out["folders named as images"] += 1
    return list(contents.images), left_out


def has(folder: str | os.PathLike[str]) -> tuple[bool, bool]:
    """Whether images and whether sub-folders lie directly in `folder`; raises OSError."""
    images = folders = False
    suffixes = image_suffixes()
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name.lower() in CLUTTER:
                continue
            folders = folders or (_is_folder(entry) and not _is_own(entry))
            suffix = suffix_of(entry.name)
            images = images or (suffix in suffixes and _is_file(entry))
            if images and folders:
                break
    return images, folders


def reasons(left_out: LeftOut) -> str:
    """Write `left_out` as ".heic 10, in sub-folders 2", the most frequent first."""
    ordered = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{reason} {count}" for reason, count in ordered if count)


def left_out_notice(left_out: Mapping[str, LeftOut]) -> list[str]:
    """One sentence on the files that were left out, by the folder they are in; none if none."""
    places = [place for place, counts in left_out.items() if counts.total()]
    if not places:
        return []
    together = sum((left_out[place] for place in places), Counter[str]())
    total = together.total()
    where = places[0] + (f" and {len(places) - 1} more" if len(places) > 1 else "")
    files = "1 file is" if total == 1 else f"{total} files are"
    return [f"{where}: {files} not taken ({reasons(together)}).{_package(together)}"]


def _package(left_out: LeftOut) -> str:
    """What to install where photos of phones were left out."""
    if not any(left_out[suffix] for suffix in HEIF):
        return ""
    return " HEIC photos are read after: pip install pillow-heif"


def same_files(images: Iterable[Seen]) -> Iterator[tuple[Seen, Seen]]:
    """Pairs of one file under two paths or names: the first one, and each other one.

    The first one stands where the file is, if it is among them: it is the one by no symbolic link,
    of itself or of a folder. Two hard links are two files with equal pixels.
    """
    by_inode: dict[tuple[int, int], list[Seen]] = {}
    for seen in images:
        by_inode.setdefault((seen.device, seen.inode), []).append(seen)
    for several in by_inode.values():
        if len(several) == 1:
            continue
        by_path: dict[str, list[Seen]] = {}
        for seen in several:
            by_path.setdefault(os.path.realpath(seen.path), []).append(seen)
        for place, same in by_path.items():
            first = max(same, key=partial(_common_end, place))
            yield from ((first, seen) for seen in same if seen is not first)


def _common_end(place: str, seen: Seen) -> int:
    """In how many of its last parts a path is the real one: all of its start may be a link."""
    parts = zip(Path(place).parts[::-1], Path(seen.path).parts[::-1], strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], parts)))
