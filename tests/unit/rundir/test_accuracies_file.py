from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sseg_nase.rundir.episodes import read_episodes, write_episodes
from sseg_nase.rundir.unreadable import UnreadableError

ACCURACIES = {
    "last": {"digits/val/5w1s": np.array([60.0, 100 / 3]), "digits/val/5w5s": np.array([1.5])},
    "best": {"digits/val/5w1s": np.array([70.0, 20.0])},
}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_episodes(tmp_path, ACCURACIES)
    with np.load(tmp_path / "episodes.npz") as arrays:
        assert set(arrays.files) == {"digits/val/5w1s", "digits/val/5w5s", "best:digits/val/5w1s"}
        assert {arrays[name].dtype for name in arrays.files} == {np.dtype(np.float32)}
    found = read_episodes(tmp_path)
    assert found.keys() == ACCURACIES.keys()
    for network, evaluated in ACCURACIES.items():
        assert found[network].keys() == evaluated.keys()
        for key, values in evaluated.items():
            assert found[network][key].dtype == np.float64
            assert found[network][key] == pytest.approx(values, rel=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["episodes.npz"]


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match=r"has no episodes\.npz"):
        read_episodes(tmp_path)


def test_a_torn_file_is_said_to_be_one_wherever_it_is_cut(tmp_path: Path) -> None:
    write_episodes(tmp_path, ACCURACIES)
    path = tmp_path / "episodes.npz"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UnreadableError, match="cannot be read"):
            read_episodes(tmp_path)


def test_a_damaged_file_gives_no_other_error(tmp_path: Path) -> None:
    write_episodes(tmp_path, ACCURACIES)
    path = tmp_path / "episodes.npz"
    whole = path.read_bytes()
    refused = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            read_episodes(tmp_path)
        except UnreadableError:
            refused += 1
    assert refused > len(whole) / 4


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    with (tmp_path / "episodes.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(UnreadableError, match="cannot be read"):
        read_episodes(tmp_path)
