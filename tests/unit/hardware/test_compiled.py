"""Work shared among threads: those of torch where it has OpenMP, else a pool of our own."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from sseg_nase.hardware import compiled
from sseg_nase.hardware.compiled import in_blocks


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(params=["team", "pool", "elsewhere"])
def where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Torch's threads, our own as without OpenMP, or a call from another thread than the main."""
    kind: str = request.param
    if kind == "team" and compiled._torch_team() is None:
        pytest.skip("torch computes without GNU OpenMP here")
    if kind == "pool":
        monkeypatch.setattr(compiled, "_torch_team", lambda: None)
    return kind


def share(
    where: str, done: list[tuple[int, int]], count: int, *, fails: type | None = None
) -> None:
    def work(start: int, stop: int) -> None:
        if fails and start:
            raise fails(start)
        done.append((start, stop))

    if where != "elsewhere":
        in_blocks(work, count)
        return
    raised: list[BaseException] = []

    def run() -> None:
        try:
            in_blocks(work, count)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 100, 101])
def test_everything_is_done_once(where: str, threads: int, count: int) -> None:
    done: list[tuple[int, int]] = []
    share(where, done, count)
    assert sorted(i for start, stop in done for i in range(start, stop)) == list(range(count))
    assert threads > 1 or len(done) <= 1


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_error_reaches_the_caller_and_the_next_call_works(
    where: str, threads: int, error: type[BaseException]
) -> None:
    if threads > 1:
        with pytest.raises(error):
            share(where, [], 100, fails=error)
    done: list[tuple[int, int]] = []
    share(where, done, 100)
    assert sum(stop - start for start, stop in done) == 100


def test_torchs_threads_are_taken_where_it_has_openmp(monkeypatch: pytest.MonkeyPatch) -> None:
    if compiled._torch_team() is None:
        pytest.skip("torch computes without GNU OpenMP here")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)

    def no_pool(threads: int) -> None:
        raise AssertionError("further threads would share the cores with torch's")

    monkeypatch.setattr(compiled, "_pool", no_pool)
    both, seen = threading.Barrier(2, timeout=20), set()

    def work(start: int, stop: int) -> None:
        seen.add(threading.get_ident())
        if start < 2:  # the first two blocks wait for each other
            both.wait()

    in_blocks(work, 4)
    assert len(seen) == 2
    assert threading.get_ident() in seen


def test_the_team_belongs_to_the_main_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)

    def team(*_: object) -> None:
        raise AssertionError("two threads would take each other's blocks")

    monkeypatch.setattr(compiled, "_torch_team", lambda: team)
    done: list[tuple[int, int]] = []
    share("elsewhere", done, 100)
    assert sum(stop - start for start, stop in done) == 100


def test_what_no_thread_has_done_is_done_by_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(compiled, "_torch_team", lambda: lambda *_: None)
    done: list[tuple[int, int]] = []
    share("team", done, 100)
    assert sum(stop - start for start, stop in done) == 100


def test_openmp_that_is_not_torchs_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled._torch_team.cache_clear()
    monkeypatch.delattr("os.RTLD_NOLOAD", raising=False)
    try:
        assert compiled._torch_team() is None
    finally:
        compiled._torch_team.cache_clear()
