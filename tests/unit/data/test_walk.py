"""What is found in folders, what is left out and named, and which layout it is taken for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, features

from sseg_nase.config.groups.dataset import SPLITS
from sseg_nase.data.benchmarks import available_splits, walk
from sseg_nase.data.benchmarks.layouts import split_classes
from sseg_nase.data.benchmarks.walk import image_suffixes
from sseg_nase.errors import UserError, shown
from tests.support.own_images import content, load, own, picture, save, tree

NAMES = [f"c{number}" for number in range(6)]
ROOT = Path("own")


def splits(root: Path | str = ROOT, **changed: Any) -> list[str]:
    dataset = own("folder", root, **changed)
    return list(available_splits(dataset, data_dir=Path("data"), cache_dir=Path("cache")))


# What Pillow reads, and what is left out


@pytest.mark.parametrize("suffix", [".jfif", ".JPE", ".avif", ".pbm", ".tga", ".jp2", ".ico"])
def test_what_pillow_reads_is_read(suffix: str) -> None:
    feature = {".avif": "avif", ".jp2": "jpg_2000"}.get(suffix)
    tree(ROOT / "train", ["a", "b"], count=1)
    formats = {".jfif": "JPEG", ".JPE": "JPEG", ".jp2": "JPEG2000", ".avif": "AVIF"}
    if feature is None or features.check(feature):
        image = Image.fromarray(picture(5)).resize((16, 16))
        image.save(f"own/train/a/x{suffix}", formats.get(suffix))
        assert load(own("folder", ROOT)).counts().tolist() == [2, 1]
    else:
        assert suffix not in image_suffixes()


def test_avif_is_left_out_where_pillow_cannot_read_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tree(ROOT / "train", ["a", "b"], count=1)
    Path("own/train/a/x.avif").touch()
    image_suffixes.cache_clear()
    monkeypatch.setattr(features, "check", lambda name: False)
    try:
        assert load(own("folder", ROOT)).counts().tolist() == [1, 1]
    finally:
        image_suffixes.cache_clear()
    assert "train/a: 1 file is not taken (.avif 1)." in caplog.text


def test_one_notice_names_all_that_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    tree(ROOT / "train", NAMES)
    for name in NAMES[:4]:
        Path(f"own/train/{name}/x.HEIC").touch()
    for left in ("c1/.hidden.png", "c1/.DS_Store", "c1/noext", "c1/Thumbs.db", "c2/x.txt"):
        Path(f"own/train/{left}").touch()
    save("own/train/c0/more/deep/1.bmp", 1)
    save("own/train/c0/more/2.bmp", 2)
    save("own/train/loose.bmp", 3)
    for folder in ("c3/x.png", "__MACOSX/c0", ".git/c0", "@eaDir/c0", "lost+found"):
        Path(f"own/train/{folder}").mkdir(parents=True)
    os.mkfifo("own/train/c4/pipe.png")  # opening it would wait for ever
    os.symlink("gone", "own/train/c4/link")
    os.symlink(".", "own/train/c5/self")
    os.symlink("..", "own/train/above")
    store = load(own("folder", ROOT))
    assert content(store) == content(
        load(own("folder", tree("same", NAMES), split_by="classes", split_fractions=[1, 0, 0]))
    )
    notice = (
        "dataset=folder: train and 5 more: 20 files are not taken (.heic 4, in sub-folders 2, "
        ".DS_Store 1, .bmp beside the class folders 1, .git/ 1, .txt 1, @eaDir/ 1, Thumbs.db 1, "
        "__MACOSX/ 1, broken links 1, folders named as images 1, hidden 1, "
        "links to a folder around them 1, lost+found/ 1, neither files nor folders 1, "
        "without extension 1). HEIC photos are read after: pip install pillow-heif"
    )
    said = [record.message for record in caplog.records if "not taken" in record.message]
    assert said == [notice]


def test_an_unreadable_folder_of_the_system_is_not_entered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tree(ROOT, NAMES)
    (ROOT / "lost+found").mkdir()
    real = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("lost+found"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert len(load(own("folder", ROOT)).class_names) == 3


def test_a_link_to_no_image_is_named() -> None:
    tree(ROOT / "train", NAMES)
    os.symlink("gone.png", "own/train/c0/link.png")
    with pytest.raises(UserError, match=r"c0/link\.png is a symbolic link to what does not exist"):
        load(own("folder", ROOT))
    os.unlink("own/train/c0/link.png")
    os.symlink("round.png", "own/train/c0/round.png")
    with pytest.raises(UserError, match=r"c0/round\.png is a symbolic link"):
        load(own("folder", ROOT))


def test_a_class_of_sub_folders_says_so() -> None:
    tree(ROOT / "train", ["a", "b/deep"])
    with pytest.raises(UserError, match=r"train/b has no images, only sub-folders.*root=own"):
        load(own("folder", ROOT))


def test_splits_below_a_split_and_empty_splits_are_said() -> None:
    tree(ROOT / "train/train", NAMES[:2])
    with pytest.raises(UserError, match=r"sub-folders are the classes or splits.*root=own/train/"):
        load(own("folder", ROOT))
    tree(ROOT / "train", NAMES[:2])
    Path("own/val").mkdir()
    with pytest.raises(UserError, match=r"no class folders in own/val: add one per class"):
        load(own("folder", ROOT), "val")
    save("own/val/0.bmp", 9)
    with pytest.raises(UserError, match=r"no class folders in own/val, only images"):
        load(own("folder", ROOT), "val")


def test_splits_made_for_classification_can_be_dealt() -> None:
    tree(ROOT / "train", NAMES)
    tree(ROOT / "val", NAMES, seed=1)
    with pytest.raises(UserError, match=r"share 6 classes.*dataset\.split_by=classes"):
        load(own("folder", ROOT))
    assert len(load(own("folder", ROOT / "train", split_by="classes")).class_names) == 3


def test_what_photos_of_phones_need_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tree(ROOT / "train", ["a", "b"], count=1)
    Path("own/train/a/x.HEIC").touch()
    image_suffixes.cache_clear()
    monkeypatch.setattr(walk, "reads_heif", lambda: False)
    try:
        assert load(own("folder", ROOT)).counts().tolist() == [1, 1]
        assert "(.heic 1). HEIC photos are read after: pip install pillow-heif" in caplog.text
        Path("own/train/a/0.bmp").unlink()
        with pytest.raises(UserError, match=r"train/a has no images.*pip install pillow-heif"):
            load(own("folder", ROOT))
    finally:
        image_suffixes.cache_clear()


# Names


def test_names_that_are_not_utf8_are_written_with_backslashes() -> None:
    tree(ROOT / "train", NAMES[:2])
    raw = os.fsencode(ROOT / "train") + b"/caf\xe9"
    os.mkdir(raw)
    Path("own/train/c0/0.bmp").rename(os.fsdecode(raw + b"/\xe8.bmp"))
    store = load(own("folder", ROOT))
    assert store.class_names == ("c0", "c1", "caf\\xe9")
    assert content(store)["caf\\xe9"] == [picture(0, 0, 0).tobytes()]
    Path(os.fsdecode(raw + b"/broken\xe8.png")).write_bytes(b"no image")
    with pytest.raises(UserError, match=r"caf\\xe9/broken\\xe8\.png") as caught:
        load(own("folder", ROOT))
    str(caught.value).encode()
    tree(ROOT / "train", ["caf\\xe9"])
    os.mkdir(raw)
    with pytest.raises(UserError, match=r"both shown as caf\\xe9"):
        load(own("folder", ROOT))


def test_control_characters_in_names_reach_no_terminal() -> None:
    tree(ROOT / "train", ["a\x1b[31mred", "b\nc"])
    assert load(own("folder", ROOT)).class_names == ("a\\x1b[31mred", "b\\x0ac")


PERSONS = [
    "José",
    "Zoë",
    "Łukasz",
    "Nguyễn Văn Ánh",
    "Ǻse",
    "søren",
    "김민준",
    "名" * 80,
    "x" * 255,
]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_folder_per_person(form: str) -> None:
    written = [name for name in PERSONS if len(unicodedata.normalize(form, name).encode()) <= 255]
    tree(ROOT, [unicodedata.normalize(form, name) for name in written])
    dealt = split_classes([unicodedata.normalize("NFC", n) for n in written], [0.5, 0.25, 0.25], 0)
    for split in SPLITS:
        names = load(own("folder", ROOT), split).class_names
        # The deal is the same whichever form the file system has.
        assert sorted(unicodedata.normalize("NFC", name) for name in names) == dealt[split]


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from tests.support.own_images import load, own
for split in ("train", "val", "test"):
    names = load(own("folder", "own"), split).class_names
    print(split, ascii(names))
"""


def test_names_are_the_same_in_a_locale_that_is_not_utf8() -> None:
    tree(ROOT, ["Jose\u0301", "Zoë", *NAMES])
    os.mkdir(os.fsencode(ROOT) + b"/caf\xe9")
    save("picture.bmp", 3).rename(os.fsdecode(os.fsencode(ROOT) + b"/caf\xe9/\xe8.bmp"))
    expected = [f"{split} {load(own('folder', ROOT), split).class_names!a}" for split in SPLITS]
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(Path(__file__).parents[3])],
        env={**os.environ, **plain},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == expected, done.stderr
    assert done.returncode == 0


def test_names_that_differ_hardly_are_one_class() -> None:
    pairs = [("café", "cafe\u0301"), ("Cat", "cat"), ("a b", "a  b"), ("1", "01"), ("x ", "x")]
    for one, other in pairs:
        tree(ROOT / "train", [one, "c1"])
        tree(ROOT / "val", [other, "c2"], seed=1)
        for split in ("train", "val"):
            with pytest.raises(UserError, match="share 1 classes"):
                load(own("folder", ROOT), split)
        tree("dealt", [one, other, "c1", "c2"])
        with pytest.raises(UserError, match="look like one, and could be dealt into two"):
            load(own("folder", "dealt", split_by="classes"))
        shutil.rmtree(ROOT)


def test_names_that_differ_hardly_in_one_split_are_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tree(ROOT / "train", ["Cat", "cat", "dog"])
    assert load(own("folder", ROOT)).class_names == ("Cat", "cat", "dog")
    assert "'Cat' and 'cat' are two classes." in caplog.text


def test_numbers_as_class_names_are_compared() -> None:
    for split in ("train", "val"):
        tree(ROOT / split, ["0", "1"], seed=len(split))
    with pytest.raises(UserError, match=r"share 2 classes: 0, 1\."):
        load(own("folder", ROOT))


# One file under two names


def test_one_file_twice_in_a_class_is_taken_once(caplog: pytest.LogCaptureFixture) -> None:
    tree(ROOT / "train", NAMES)
    os.symlink("0.bmp", "own/train/c0/again.bmp")
    os.link("own/train/c1/0.bmp", "own/train/c1/hard.bmp")  # another file, with equal pixels
    counts = load(own("folder", ROOT, **kept())).counts().tolist()
    assert counts == [3, 4, 3, 3, 3, 3]
    assert "1 images are not taken (the same file twice), among them own/train/c0/again.bmp." in (
        caplog.text
    )


def kept() -> dict[str, str]:
    """Equal pixels are another matter than one file."""
    return {"duplicates": "keep"} if hasattr(own("folder", ROOT), "duplicates") else {}


@pytest.mark.parametrize("by", ["file", "folder"])
def test_one_file_under_two_labels_is_refused(by: str) -> None:
    tree(ROOT / "train", NAMES)
    if by == "file":
        os.symlink("../c0/0.bmp", "own/train/c1/again.bmp")
    else:
        os.symlink("c0", "own/train/d0")
    with pytest.raises(UserError, match=r"One image has two labels, 'c0' and '(c1|d0)'"):
        load(own("folder", ROOT))


def test_one_file_in_two_splits_is_refused() -> None:
    tree(ROOT / "train", NAMES[:3])
    tree(ROOT / "val", NAMES[3:], seed=1)
    os.symlink("../../train/c1/2.bmp", "own/val/c4/again.bmp")
    for split in ("train", "val"):
        with pytest.raises(
            UserError, match=r"share an image: .*c1/2\.bmp and .*again\.bmp.* from one"
        ):
            load(own("folder", ROOT), split)
    tree("dealt", NAMES)
    os.symlink("../c0/0.bmp", "dealt/c1/again.bmp")
    mine = own("folder", "dealt", split_by="classes")
    dealt = split_classes(NAMES, mine.split_fractions, mine.split_seed)
    concerned = [split for split in SPLITS if {"c0", "c1"} & set(dealt[split])]
    assert len(concerned) == 2
    for split in concerned:
        with pytest.raises(
            UserError, match=r"share an image: .*again\.bmp.*remove one image of ea"
        ):
            load(mine, split)


def test_images_without_labels_may_not_be_those_of_another_split() -> None:
    tree(ROOT / "val", NAMES)
    Path("own/train").mkdir()
    os.symlink("../val/c0/0.bmp", "own/train/0.bmp")
    with pytest.raises(UserError, match="share an image"):
        load(own("folder", ROOT))


# Layouts


def test_class_folders_are_dealt_without_a_key(caplog: pytest.LogCaptureFixture) -> None:
    tree(ROOT, NAMES)
    assert splits() == list(SPLITS)
    by_key = load(own("folder", ROOT, split_by="classes"), cached="other")
    assert content(load(own("folder", ROOT))) == content(by_key)
    assert "own has class folders and no train, val and test (dataset.split_by=auto takes" in (
        caplog.text
    )
    load(own("folder", ROOT), "val")
    assert caplog.text.count("class folders and no train") == 1  # not for every split


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("Train", "valid", "testing"),
        ("training", "Validation", "TEST"),
        ("train", "val", "test"),
    ],
)
def test_split_folders_by_usual_names(
    train: str, val: str, test: str, caplog: pytest.LogCaptureFixture
) -> None:
    named = dict(zip(SPLITS, (train, val, test), strict=True))
    for number, split in enumerate(SPLITS):
        tree(ROOT / named[split], NAMES[2 * number : 2 * number + 2], seed=number)
    assert splits() == splits(split_by="folder") == list(SPLITS)
    for number, split in enumerate(SPLITS):
        names = load(own("folder", ROOT), split).class_names
        assert names == tuple(NAMES[2 * number : 2 * number + 2])
        if named[split] != split:
            assert f"the folder {named[split]} is taken as the {split} split." in caplog.text
    assert ("is taken as" in caplog.text) is (train != "train")


def test_benchmarks_know_the_usual_names_too() -> None:
    tree("data/cifar_fs/Train", NAMES[:2])
    tree("data/cifar_fs/valid", NAMES[2:], seed=1)
    assert load(own("cifar_fs", None), "val").class_names == tuple(NAMES[2:])


def test_two_folders_for_one_split_are_refused() -> None:
    for name in ("train", "val", "valid"):
        tree(ROOT / name, NAMES)
    for split_by in ("auto", "folder"):
        with pytest.raises(UserError, match=r"own/val and valid are both a val split"):
            load(own("folder", ROOT, split_by=split_by))


def test_a_class_called_train_is_a_class(caplog: pytest.LogCaptureFixture) -> None:
    tree(ROOT, ["train", "car", "plane", "bus"])
    assert splits() == list(SPLITS)
    names = [name for split in SPLITS for name in load(own("folder", ROOT), split).class_names]
    assert sorted(names) == ["bus", "car", "plane", "train"]
    assert "train is taken as a class, as the folders beside it" in caplog.text
    # Where the key says so it is a split, and what is not read is named.
    assert load(own("folder", ROOT, split_by="folder")).class_names == ("",)
    assert "bus, car, plane beside the splits train is not read" in caplog.text


def test_a_split_is_no_class_for_what_lies_beside_it(caplog: pytest.LogCaptureFixture) -> None:
    tree(ROOT / "train", NAMES)
    save("own/extra/0.bmp", 1)  # images, as a class has
    assert splits() == ["train"]
    assert load(own("folder", ROOT)).class_names == tuple(NAMES)
    assert "extra beside the splits train is not read" in caplog.text
    # Images without labels, and a folder that is no class.
    tree("plain", ["train"])
    Path("plain/docs").mkdir()
    assert splits("plain") == ["train"]
    assert load(own("folder", "plain")).class_names == ("",)


def test_a_split_of_another_name_is_not_beside_the_splits(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tree(ROOT / "Training", NAMES[:3])
    tree(ROOT / "val", NAMES[3:], seed=1)
    load(own("folder", ROOT))
    assert "the folder Training is taken as the train split." in caplog.text
    assert "beside the splits" not in caplog.text


def test_a_folder_with_images_and_further_folders_is_a_class(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tree(ROOT, ["only"])
    save("own/only/more/1.bmp", 9)
    assert splits(split_fractions=None) == ["train"]
    Path("own/list.csv").touch()
    assert len(load(own("folder", ROOT, split_fractions=None))) == 3
    assert "own has class folders and no train, val and test" in caplog.text
    assert "own: 1 file is not taken (.csv 1)." in caplog.text


def test_what_lies_beside_the_splits_is_named(caplog: pytest.LogCaptureFixture) -> None:
    tree(ROOT / "train", NAMES)
    (ROOT / "docs").mkdir()
    Path("own/docs/readme.txt").touch()
    Path("own/labels.csv").touch()
    save("own/loose.bmp", 1)
    assert splits() == ["train"]
    load(own("folder", ROOT))
    assert "docs beside the splits train is not read" in caplog.text
    assert "own: 2 files are not taken (.bmp beside the splits 1, .csv 1)." in caplog.text


def test_a_flat_folder_serves_for_pretraining(caplog: pytest.LogCaptureFixture) -> None:
    for number in range(4):
        save(f"own/{number}.bmp", number)
    Path("own/x.heic").touch()
    assert splits() == ["train"]
    store = load(own("folder", ROOT))
    assert (store.class_names, len(store)) == (("",), 4)
    assert "own has 4 images and no class folders: they have no labels" in caplog.text
    assert "own: 1 file is not taken (.heic 1)." in caplog.text
    with pytest.raises(UserError, match="no val split"):
        load(own("folder", ROOT), "val")


def test_one_folder_too_high_is_said() -> None:
    tree("own/photos", NAMES)
    with pytest.raises(UserError, match=r"set dataset\.root=own/photos\."):
        load(own("folder", ROOT))


def test_an_empty_folder_is_said() -> None:
    ROOT.mkdir()
    with pytest.raises(UserError, match="has neither folders nor images"):
        load(own("folder", ROOT))


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("folder", lambda: Path("x.csv").write_text("path,label\n"), r"set dataset=csv"),
        ("folder", lambda: save("x.png", 0), r"It is an image: set dataset\.root"),
        ("folder", lambda: Path("x.tar.gz").touch(), r"is an archive: unpack it"),
        ("sketch", lambda: Path("x.zip").touch(), r"is an archive: unpack it"),
        ("cifar_fs", lambda: Path("x.tgz").touch(), r"is an archive: unpack it"),
        ("csv", lambda: Path("x.zip").touch(), r"is an archive: unpack it"),
        ("csv", lambda: save("x.png", 0), r"is an image\. Expected: a CSV file"),
        ("csv", lambda: tree("x", NAMES), r"For a folder of class folders set dataset=folder"),
        ("csv", lambda: save("x/0.png", 0) and Path("x/l.csv").touch(), r"dataset\.root=x/l\.csv"),
    ],
)
def test_a_root_of_another_kind_names_the_option(
    name: str, make: Callable[[], Any], message: str
) -> None:
    make()
    root = next(path for path in Path().glob("x*"))
    with pytest.raises(UserError, match=message):
        load(own(name, root))


@pytest.mark.parametrize(
    ("name", "archive"),
    [
        ("cifar_fs", "cifar-100-python.tar.gz"),
        ("cifar_fs", "CIFAR-FS.zip"),
        ("minimagenet", "miniimagenet.zip"),
        ("minimagenet", "miniImageNet_category_split.zip"),
        ("omniglot", "images_background.zip"),
    ],
)
def test_an_archive_that_lies_there_is_to_be_unpacked(name: str, archive: str) -> None:
    Path("data").mkdir()
    Path("data", archive).touch()
    with pytest.raises(UserError, match=rf"There is data/{archive}: unpack it there"):
        load(own(name, None))
    with pytest.raises(UserError, match=rf"There is data/{archive}: unpack it there"):
        load(own(name, "data"))


def test_shown_leaves_ordinary_names_alone() -> None:
    for name in ("a b/c.png", "José", "名", "Łódź (1), 50%/#2"):
        assert shown(name) == name
    assert shown(os.fsdecode(b"caf\xe9")) == "caf\\xe9"
