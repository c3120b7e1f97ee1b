from __future__ import annotations

import builtins
import collections
import os
import pickle
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sseg_nase.data.benchmarks.pickles import read_pickle
from sseg_nase.errors import UserError


def write(path: Path, value: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol))
    return path


@pytest.mark.parametrize(
    ("protocol", "core"),
    [(protocol, None) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    # Names end with a line there, so that the other numpy's can be written in.
    + [(protocol, core) for protocol in range(4) for core in (b"numpy._core", b"numpy.core")],
)
def test_arrays_and_plain_containers_come_back(
    tmp_path: Path, protocol: int, core: bytes | None
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    value = {
        "images": images,
        "fortran": np.asfortranarray(images[..., 0]),
        "big": np.arange(5, dtype=">i4"),
        "floats": np.linspace(0, 1, 4, dtype=np.float32),
        "names": np.array(["a", "bcd"]),
        "bytes": b"\x00\xff",
        "none": np.empty((0, 2), np.int64),
        "scalars": [np.int64(3), np.float64(0.5), 7, "x", None, True],
        "classes": collections.OrderedDict(n1=[0, 1], n2=np.array([2])),
        "tuple": ((1, 2), {3}),
    }
    raw = pickle.dumps(value, protocol)
    if core is not None:
        raw = re.sub(rb"numpy\._?core(?=\.)", core, raw)
        assert core + b".multiarray\n" in raw
    (tmp_path / "x.pkl").write_bytes(raw)
    found = read_pickle(tmp_path / "x.pkl")
    assert list(found) == list(value)
    for key in ("images", "fortran", "big", "floats", "names", "none"):
        assert np.array_equal(found[key], value[key]), key
        assert found[key].dtype == value[key].dtype, key  # type: ignore[attr-defined]
    assert found["bytes"] == value["bytes"]
    assert found["scalars"] == value["scalars"]
    assert found["classes"]["n1"] == [0, 1]
    assert found["classes"]["n2"].tolist() == [2]
    assert found["tuple"] == [[1, 2], {3}]


def test_python_2_bytes_are_read_as_latin1(tmp_path: Path) -> None:
    # {'data': array([[250, 3]], dtype=uint8), 'labels': [5]} as Python 2 wrote it.
    raw = (
        b"\x80\x02}q\x01(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
        b"K\x00\x85U\x01b\x87R(K\x01K\x01K\x02\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x02\xfa\x03tb"
        b"U\x06labels]K\x05au."
    )
    (tmp_path / "old.pkl").write_bytes(raw)
    found = read_pickle(tmp_path / "old.pkl")
    assert found["data"].tolist() == [[250, 3]]
    assert found["data"].dtype == np.uint8
    assert found["labels"] == [5]


class Calls:
    """Pickles as a call of `function(*arguments)`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize(
    "attack",
    [
        lambda mark: Calls(os.system, f"touch {mark}"),
        lambda mark: Calls(builtins.exec, f"open({mark!r}, 'w')"),
        lambda mark: Calls(open, mark, "w"),
        lambda mark: Calls(subprocess.run, ["touch", mark]),
        lambda mark: Calls(np.save, mark, np.zeros(1)),
        lambda mark: Calls(getattr, np.ndarray, "tofile"),
        lambda mark: Calls(np.memmap, mark, "u1", "w+", 0, (1,)),
    ],
)
def test_a_malicious_pickle_runs_nothing(tmp_path: Path, attack: Any, protocol: int) -> None:
    mark = tmp_path / "was_here"
    path = write(tmp_path / "evil.pkl", {"data": attack(str(mark))}, protocol)
    with pytest.raises(UserError, match=r"evil\.pkl cannot be read.*nothing in the file was run"):
        read_pickle(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["evil.pkl"]


def test_arrays_of_objects_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "objects.pkl", {"data": np.array([{}, None], dtype=object)})
    with pytest.raises(UserError, match="not accepted"):
        read_pickle(path)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_cut_off_pickle_is_named(tmp_path: Path, protocol: int) -> None:
    path = write(tmp_path / "cut.pkl", {"data": np.zeros((50, 50))}, protocol)
    whole = path.read_bytes()
    for kept in (0, 1, 50, 200, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(UserError, match=r"cut\.pkl"):
            read_pickle(path)


def test_random_damage_ends_in_an_array_or_in_a_users_error(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    path = write(tmp_path / "x.pkl", {"data": np.zeros((2, 2)), "labels": [np.int64(1), "a"]}, 2)
    whole = path.read_bytes()
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for place in random.integers(0, len(whole), 3):
            damaged[place] = random.integers(256)
        path.write_bytes(damaged)
        try:
            read_pickle(path)
        except UserError:
            refused += 1
    assert refused > 50


def test_something_else_than_a_dict_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds a list, expected a dict"):
        read_pickle(write(tmp_path / "x.pkl", [1, 2]))
