"""CSV files and lists: read strictly, with file and line number in every message."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal
from unicodedata import normalize

import pytest

from sseg_nase.data.benchmarks import available_splits
from sseg_nase.data.benchmarks.lists import alike, folded, read_table
from sseg_nase.data.store import ImageStore
from sseg_nase.errors import UserError
from tests.support.own_images import content, load, own, picture, save, tree

HEADER = "path,label,split\n"
ROWS = "".join(f"c{i}/{j}.bmp,c{i},train\n" for i in range(2) for j in range(3))


@pytest.fixture(autouse=True)
def _images() -> None:
    tree("own", ["c0", "c1"])


def read(text: str | bytes, name: str = "csv", **changed: Any) -> ImageStore:
    raw = text.encode() if isinstance(text, str) else text
    Path("own/list.csv").write_bytes(raw)
    return load(own(name, "own/list.csv", **changed))


def check(store: ImageStore, names: tuple[str, ...] = ("c0", "c1")) -> None:
    assert content(store) == {
        name: sorted(picture(0, label, index).tobytes() for index in range(3))
        for label, name in enumerate(names)
    }


# What is read, and with which words


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEADER + ROWS, None),
        ("\ufeff" + HEADER + ROWS, None),
        (HEADER.replace("\n", "\r\n") + ROWS.replace("\n", "\r\n"), None),
        (HEADER.replace("\n", "\r") + ROWS.replace("\n", "\r"), None),
        ("\n\n" + HEADER + "\n" + ROWS + ",,\n\n", None),
        (" path ,label\t, split\n" + ROWS.replace(",", " , "), None),
        (HEADER + ROWS.replace("train", '"train"').replace("c1,", '"c1",'), None),
        ("path,label,split,note\n" + ROWS.replace("\n", ',"a, b"\n'), None),
        (",path,label,split\n" + "".join(f"{i},{r}\n" for i, r in enumerate(ROWS.split())), None),
        ((HEADER + ROWS).replace(",", ";"), "list.csv is read with semicolons between its cells."),
        ((HEADER + ROWS).replace(",", "\t"), "list.csv is read with tabs between its cells."),
        ((HEADER + ROWS).replace(",", " | "), "list.csv is read with vertical bars between"),
        (
            "Path,Label,SPLIT\n" + ROWS,
            "list.csv: the header's Path as path, Label as label, SPLIT as split is understood.",
        ),
        (
            HEADER + ROWS.replace("/", "\\"),
            "list.csv: 6 paths with backslashes are read with slashes.",
        ),
        (
            HEADER + ROWS.replace("train", "Train", 2),
            "list.csv: the split column's Train as train is understood.",
        ),
        (HEADER + ROWS + ROWS.replace("c0/", "./c0/"), "6 images are not taken (the same file"),
    ],
)
def test_what_is_understood_is_said(
    text: str, said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    check(read(text))
    notices = [record.message for record in caplog.records]
    assert len(notices) == (said is not None), notices
    if said:
        assert said in notices[0]


@pytest.mark.parametrize("label", ["Acer, campestre", '5" pipe', "a;b", "José", "x|y", "a b"])
def test_labels_are_kept_as_they_are_written(label: str) -> None:
    cell = '"' + label.replace('"', '""') + '"'
    check(read(HEADER + ROWS.replace(",c0,", f",{cell},").replace(",c1,", ",~,")), (label, "~"))


def test_a_path_that_has_a_backslash_is_found_first() -> None:
    save("own/a\\b.bmp", 5)
    save("own/a/b.bmp", 6)
    assert content(read(HEADER + "a\\b.bmp,x,train\n"))["x"] == [picture(5).tobytes()]


@pytest.mark.parametrize("listed", ["NFC", "NFD"])
def test_paths_are_found_in_the_other_unicode_form(
    listed: Literal["NFC", "NFD"], caplog: pytest.LogCaptureFixture
) -> None:
    there = "NFD" if listed == "NFC" else "NFC"
    tree("own", [normalize(there, "José")])
    rows = "".join(f"{normalize(listed, 'José')}\\{i}.bmp,José,train\n" for i in range(3))
    check(read(HEADER + rows), ("José",))
    assert "list.csv: 3 paths are found in another Unicode form of their name." in caplog.text


@pytest.mark.parametrize(
    ("cells", "split"),
    [
        (["valid", "validation", "Val"], "val"),
        (["testing", "TEST"], "test"),
        (["training"], "train"),
    ],
)
def test_splits_by_usual_names(cells: list[str], split: str) -> None:
    rows = "".join(f"c0/{i}.bmp,c0,{cell}\n" for i, cell in enumerate(cells))
    Path("own/list.csv").write_text(HEADER + rows)
    store = load(own("csv", "own/list.csv"), split)
    assert store.counts().tolist() == [len(cells)]


# What is refused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # More or fewer cells than the header
        (HEADER + "c0/0.bmp,Acer, campestre,train\n", r"Line 2 of own/list\.csv has 4 cells"),
        (HEADER + ROWS + "c0/0.bmp,c0\n", r"Line 8 of own/list\.csv has 2 cells, its header has 3"),
        (HEADER + ROWS + "c0/0.bmp,c0,train,\n", r"Line 8 of .* has 4 cells"),
        ("path,label\n" + ROWS, r"Line 2 of .* has 3 cells.*in quotation marks"),
        # Quotation marks
        (HEADER + ROWS + 'c0/0.bmp,"c0,train\n', r"Line 8 of .*quotation mark may not be closed"),
        (HEADER + 'c0/0.bmp,"c0,train\n' + ROWS, r"Line 2 of .*quotation mark may not be closed"),
        (HEADER + 'c0/0.bmp,"a\nb",train\n', r"lines 2 to 3 of .* has a line break"),
        (HEADER + '\nc0/0.bmp,"a\rb",train\n', r"lines 3 to 4 of .* has a line break"),
        (HEADER + 'c0/0.bmp,"a"b,train\n', r"Line 2 of .* cannot be read"),
        ('\npath,"label\n' + ROWS, r"Line 2 of .*quotation mark|no column label"),
        # The header
        ("path,label,Label\n", r"Line 1 of .*the column label twice"),
        ("path,label,split,split\n", r"Line 1 of .*the column split twice"),
        ("paht,label\n", r"no column path: it is 'paht,label'.*Write path for paht\."),
        ("file,class\n", r"no column path, label: it is 'file,class'.*path_column and dataset"),
        ("path label\n", r"no column path, label: it is 'path label'.*between commas"),
        (ROWS, r"no column path, label: it is 'c0/0\.bmp,c0,train'"),
        ("\n \n", r"no column path, label: it is ''"),
        # Encodings
        (
            (HEADER + "c0/0.bmp,é,train\n").encode("latin1"),
            r"line 2 has a byte \(0xe9\).*UTF-8",
        ),
        ((HEADER + ROWS).encode("utf-16"), r"UTF-16.*Save it as 'CSV UTF-8'"),
        ((HEADER + ROWS).encode("utf-16-le"), r"UTF-16"),
        ((HEADER + ROWS).encode("utf-16-be"), r"UTF-16"),
        (HEADER + ROWS + "c0/0.bmp,c\0,train\n", r"Line 8 of own/list\.csv has a NUL byte"),
        (b"PK\x03\x04\x14\0\x06\0" + bytes(90), r"is no text but an Excel.*save it as 'CSV UTF-8'"),
        (b"PK\x03\x04" + bytes(range(1, 200)), r"is no text but an Excel"),
        # Lines above the header
        ("# by me\n" + HEADER + ROWS, r"it is '# by me'.*Delete that line"),
        ("sep=;\n" + (HEADER + ROWS).replace(",", ";"), r"it is 'sep=;'.*Delete that line"),
        # Values
        (HEADER + "c0/0.bmp, ,train\n", r"Line 2 of .* lacks a value for path or label"),
        (HEADER + ROWS + ",c0,train\n", r"Line 8 of .* lacks a value for path or label"),
        (HEADER + ROWS + "c0/0.bmp,c0,\n", r"Line 8 of own/list\.csv: the split .* is ''"),
        (HEADER + "c0/0.bmp,c0,tets\n", r"Line 2 of .*'tets'.*Did you mean 'test'"),
        # Files
        (
            HEADER + ROWS + "c9/0.bmp,c0,train\n",
            r"1 images that .*list\.csv .*line 8, own/c9",
        ),
        (HEADER + "https://x.org/0.bmp,c0,train\n", r"line 2, https://x\.org/0\.bmp .*an address"),
        (HEADER + "~/0.bmp,c0,train\n", r"line 2, .* ~ is not the home folder"),
        (HEADER + "'c0/0.bmp',c0,train\n", r"line 2, .*no quotation marks, or double ones"),
        (HEADER + "C:\\c0\\0.bmp,c0,train\n", r"line 2, .*a path of Windows: write paths relative"),
        (HEADER + ROWS + "c0,c0,train\n", r"Line 8 of own/list\.csv: own/c0 is a folder"),
        (HEADER + "c" * 300 + ".bmp,c0,train\n", r"Line 2 of own/list\.csv: .*too long"),
        (HEADER + ROWS + "c1/../c0/1.bmp,c1,train\n", r"two labels, 'c0' and 'c1'.*line 3.*line 8"),
        # Splits
        (HEADER + ROWS + "c0/0.bmp,c7,val\n", r"share an image: .*line 2\) and .*line 8\)"),
        (HEADER + ROWS + "c0/0.bmp,C0,val\n", r"share 1 classes: 'c0' and 'C0'"),
        (HEADER + ROWS.replace("2.bmp,c0,train", "2.bmp,c0,val"), r"or delete the column split"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(text: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(text)


def test_labels_that_differ_hardly_are_said(caplog: pytest.LogCaptureFixture) -> None:
    rows = ROWS.replace(",c0,", ",1,", 2).replace(",c0,", ",1.0,")
    assert read(HEADER + rows).class_names == ("1", "1.0", "c1")
    assert "'1' and '1.0' are two classes." in caplog.text
    with pytest.raises(UserError, match=r"'1' and '1\.0' look like one"):
        read("path,label\n" + rows.replace(",train", ""))


@pytest.mark.parametrize("word", ["NaN", "None", "#N/A"])
def test_labels_that_stand_for_none_are_said(word: str, caplog: pytest.LogCaptureFixture) -> None:
    assert read(HEADER + ROWS).class_names == ("c0", "c1")
    assert "is taken as a class" not in caplog.text
    assert read(HEADER + ROWS.replace(",c0,", f",{word},")).counts().tolist() == [3, 3]
    assert f"list.csv: 3 rows are labelled {word}, which is taken as a class." in caplog.text


def test_mini_imagenets_lists_are_read_as_strictly(caplog: pytest.LogCaptureFixture) -> None:
    for number in range(4):
        save(f"mini/images/{number}.bmp", number)
    good = "filename,label\n0.bmp,a\n1.bmp,b\n"

    def mini(text: str) -> ImageStore:
        Path("mini/train.csv").write_text(text)
        return load(own("minimagenet", "mini"))

    assert mini(good.replace(",", ";")).class_names == ("a", "b")
    assert "train.csv is read with semicolons" in caplog.text
    for text, message in {
        good + "2.bmp,a, b\n": "Line 4 of .*has 3 cells",
        good + '2.bmp,"a\n': "Line 4 of .*quotation mark",
        good + "9.bmp,a\n": r"1 images that .*train\.csv lists .*line 4, .*9\.bmp",
        good + "0.bmp,b\n": "two labels, 'a' and 'b'",
    }.items():
        with pytest.raises(UserError, match=message):
            mini(text)
    # A list that is not asked for may be as it likes.
    Path("mini/test.csv").write_text("nonsense\n")
    mini(good)


def test_class_lists_are_read_as_strictly() -> None:
    tree("cifar/data", ["a", "b"])
    lists = Path("cifar/splits/bertinetto")
    lists.mkdir(parents=True)

    def cifar(raw: bytes) -> ImageStore:
        (lists / "train.txt").write_bytes(raw)
        return load(own("cifar_fs", "cifar"))

    assert cifar(b"\xef\xbb\xbfa\r\n\r\n b \r\n").class_names == ("a", "b")
    for raw, message in {
        b"a\nb\na\n": r"Lines 1 and 3 of .*train\.txt are both a",
        b"a\nc\n": r"train\.txt lists the class c \(line 2\), but there is no folder",
        b"a\n\xe9\n": r"train\.txt cannot be read: line 2 has a byte",
        b"\n": r"names no classes",
    }.items():
        with pytest.raises(UserError, match=message):
            cifar(raw)


def test_a_list_that_is_a_folder_or_unreadable_is_one_message() -> None:
    with pytest.raises(UserError, match=r"The list own cannot be read: Is a directory"):
        read_table(Path("own"), ["path"])


def test_the_splits_of_a_csv() -> None:
    Path("own/list.csv").write_text(HEADER + ROWS)
    found = available_splits(
        own("csv", "own/list.csv"), data_dir=Path("data"), cache_dir=Path("cache")
    )
    assert found == ("train",)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1", "1.0"),
        ("01", "1"),
        ("+1.50", "1.5"),
        ("-0", "0"),
        ("Cat", "cat"),
        ("straße", "STRASSE"),
        ("é", "e\u0301"),
        ("a\u00a0b", "a b"),
        ("a\u200bb", "ab"),
        ("ﬁn", "fin"),
    ],
)
def test_names_that_are_hardly_two(one: str, other: str) -> None:
    assert folded(one) == folded(other)
    assert alike([one, "z", other]) == [(one, other)]


@pytest.mark.parametrize(
    ("one", "other"),
    [("1", "10"), ("1.5", "15"), ("-1", "1"), ("a", "b"), ("ab", "a b"), ("1e3", "1000")],
)
def test_names_that_are_two(one: str, other: str) -> None:
    assert folded(one) != folded(other)
    assert alike([one, other]) == []


def test_all_images_that_are_missing_are_counted_and_the_first_is_named() -> None:
    files = ["c0/0.bmp", "c0/gone.bmp", "c1/0.bmp", "c1/lost.bmp"]
    rows = ["path,label,split", *(f"{file},{file[:2]},train" for file in files)]
    with pytest.raises(UserError, match=r"^2 images that .* are missing: line 3, .*c0/gone\.bmp"):
        read("\n".join(rows))
