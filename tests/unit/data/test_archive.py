"""A zip is unpacked whole or not at all, and nothing of it lands outside of its folder."""

from __future__ import annotations

import io
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from sseg_nase.data.archive import unpack
from sseg_nase.errors import UserError

MB = 10**6


def packed(path: Path, **files: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.name[0] != "."}


def test_a_zip_becomes_a_new_folder_each_time(tmp_path: Path) -> None:
    given = packed(tmp_path / "My photos (1).zip", **{"cat/1.png": b"a", "dog/1.png": b"b"})
    first, second = (unpack(given, given.name, tmp_path / "up", MB) for _ in range(2))
    assert (first.name, second.name) == ("My_photos_1", "My_photos_1-2")
    assert everything(first) == {"cat", "cat/1.png", "dog", "dog/1.png"} == everything(second)
    assert (first / "dog" / "1.png").read_bytes() == b"b"
    assert stat.S_IMODE(first.stat().st_mode) == 0o755


def test_the_one_folder_of_class_folders_is_what_is_returned(tmp_path: Path) -> None:
    given = packed(
        tmp_path / "a.zip", **{"photos/cat/1.png": b"", "__MACOSX/x": b"", "photos/dog/1.png": b""}
    )
    assert unpack(given, "a.zip", tmp_path / "up", MB) == tmp_path / "up" / "a" / "photos"


def link(archive: zipfile.ZipFile) -> None:
    entry = zipfile.ZipInfo("cat/1.png")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive.writestr(entry, "/etc/passwd")


def pipe(archive: zipfile.ZipFile) -> None:
    entry = zipfile.ZipInfo("cat/1.png")
    entry.external_attr = (stat.S_IFIFO | 0o644) << 16
    archive.writestr(entry, "")


def named(*names: str) -> Callable[[zipfile.ZipFile], None]:
    def write(archive: zipfile.ZipFile) -> None:
        archive.writestr("cat/0.png", b"good")
        for name in names:
            archive.writestr(name, b"x")

    return write


def bomb(archive: zipfile.ZipFile) -> None:
    for number in range(20):
        archive.writestr(f"cat/{number}.png", bytes(MB), zipfile.ZIP_DEFLATED)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("write", "why"),
    [
        (named("../x"), r"\.\./x leads out of the folder"),
        (named("cat/../../x"), "leads out of the folder"),
        (named("..\\x"), "leads out of the folder"),
        (named("/tmp/x"), "/tmp/x is an absolute path"),
        (named("C:\\x"), "is an absolute path"),
        (named("cat/0.png"), "cat/0.png is in it twice"),
        (named("cat/0.png/x"), "cat/0.png is a file and a folder"),
        (link, "cat/1.png is a link"),
        (pipe, "is neither a file nor a folder"),
        (bomb, "unpacked it has 20.0 MB; 10.0 MB are the most"),
        (lambda archive: None, "there is nothing in it"),
    ],
)
def test_what_is_refused_leaves_nothing_behind(
    write: Callable[[zipfile.ZipFile], None], why: str, tmp_path: Path
) -> None:
    given = io.BytesIO()
    with zipfile.ZipFile(given, "w") as archive:
        write(archive)
    before = everything(tmp_path)
    with pytest.raises(UserError, match=f"^photos.zip: .*{why}"):
        unpack(given, "photos.zip", tmp_path / "here" / "up", 10 * MB)
    assert everything(tmp_path) == before | {"here", "here/up"}
    assert not [path for path in (tmp_path / "here" / "up").iterdir() if path.is_dir()]


def test_an_entry_that_is_larger_than_it_says_is_refused(tmp_path: Path) -> None:
    content = packed(tmp_path / "a.zip", **{"cat/1.png": bytes(5 * MB)}).read_bytes()
    said = (5 * MB).to_bytes(4, "little")
    assert content.count(said) == 2  # in its own header, and in the list at the end
    given = io.BytesIO(content.replace(said, (1000).to_bytes(4, "little")))
    with pytest.raises(UserError, match=r"a.zip: it is no zip that can be read"):
        unpack(given, "a.zip", tmp_path / "up", MB)
    assert everything(tmp_path / "up") == set()


def test_two_gigabytes_are_refused_by_what_they_declare(tmp_path: Path) -> None:
    content = packed(tmp_path / "a.zip", **{"cat/1.png": bytes(5 * MB)}).read_bytes()
    said = (5 * MB).to_bytes(4, "little")
    given = io.BytesIO(content.replace(said, (2 * 10**9).to_bytes(4, "little")))
    with pytest.raises(UserError, match=r"unpacked it has 2.0 GB; 1.0 GB are the most"):
        unpack(given, "a.zip", tmp_path / "up", 10**9)
    assert everything(tmp_path / "up") == set()


def test_what_is_no_zip_and_what_has_a_password(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a.zip: it is no zip that can be read"):
        unpack(io.BytesIO(b"no zip at all"), "a.zip", tmp_path, MB)
    content = bytearray(packed(tmp_path / "b.zip", **{"cat/1.png": b"x"}).read_bytes())
    content[6] |= 1  # the flag of a password, in both headers
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(UserError, match=r"cat/1.png has a password"):
        unpack(io.BytesIO(bytes(content)), "b.zip", tmp_path / "up", MB)
