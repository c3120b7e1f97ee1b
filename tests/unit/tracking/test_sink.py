from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from sseg_nase.tracking.sink import RunInfo, Sink, Tracker


class Recorder(Sink):
    """Writes every call into a list shared with the others."""

    def __init__(self, name: str, calls: list[str], **behaviour: Any) -> None:
        self.name, self.calls, self.behaviour = name, calls, behaviour

    @property
    def run_id(self) -> str | None:
        return self.behaviour.get("run_id")

    @property
    def delivered(self) -> bool:
        return bool(self.behaviour.get("delivered", True))

    @property
    def page(self) -> str | None:
        return self.behaviour.get("page")

    def hurry(self) -> None:
        self.calls.append(f"{self.name} hurry")

    def open(self, run: RunInfo) -> None:
        self.calls.append(f"{self.name} open")
        self.opened = run
        if "open_error" in self.behaviour:
            raise self.behaviour["open_error"]

    def metrics(self, values: Any, step: int) -> None:
        self.calls.append(f"{self.name} metrics {dict(values)} {step}")

    def event(self, kind: str, values: Any) -> None:
        self.calls.append(f"{self.name} event {kind} {dict(values)}")

    def progress(self, epoch: int, step: int, steps: int, values: Any) -> None:
        self.calls.append(f"{self.name} progress {epoch} {step} {steps} {dict(values)}")

    def artifact(self, path: Path, folder: str | None = None) -> None:
        self.calls.append(f"{self.name} artifact {path} {folder}")

    def close(self, status: str, error: str | None = None) -> None:
        self.calls.append(f"{self.name} close {status} {error}")
        if "close_error" in self.behaviour:
            raise self.behaviour["close_error"]


@pytest.fixture
def run(tmp_path: Path) -> RunInfo:
    return RunInfo(tmp_path, "name", "trial", tmp_path / "config.yaml", 1)


def tell_everything(sink: Sink, run: RunInfo) -> None:
    sink.open(run)
    sink.metrics({"pretrain/loss": 1.0}, 3)
    sink.event("level", {"level": "TEXTURE"})
    sink.progress(0, 1, 2, {"loss": 1.0})
    sink.artifact(Path("x.json"), "final")
    sink.close("FINISHED")


def test_all_sinks_are_told_in_order_and_closed_in_reverse(run: RunInfo) -> None:
    calls: list[str] = []
    tracker = Tracker([Recorder("a", calls), Recorder("b", calls, run_id="7")])
    assert tracker.run_id == "7"
    tell_everything(tracker, run)
    told = [
        "open",
        "metrics {'pretrain/loss': 1.0} 3",
        "event level {'level': 'TEXTURE'}",
        "progress 0 1 2 {'loss': 1.0}",
        "artifact x.json final",
    ]
    both = [f"{name} {call}" for call in told for name in "ab"]
    assert calls == [*both, "b close FINISHED None", "a close FINISHED None"]


def test_closing_twice_closes_once(run: RunInfo) -> None:
    calls: list[str] = []
    tracker = Tracker([Recorder("a", calls)])
    tracker.open(run)
    tracker.close("FAILED", "why")
    tracker.close("FINISHED")
    assert calls == ["a open", "a close FAILED why"]


def test_a_sink_that_cannot_open_closes_those_before_it(run: RunInfo) -> None:
    calls: list[str] = []
    error = ValueError("no store")
    tracker = Tracker(
        [Recorder("a", calls), Recorder("b", calls, open_error=error), Recorder("c", calls)]
    )
    with pytest.raises(ValueError, match="no store"):
        tracker.open(run)
    assert calls == ["a open", "b open", "a close FAILED no store"]


def test_a_sink_that_fails_to_close_keeps_no_other_open(run: RunInfo) -> None:
    calls: list[str] = []
    tracker = Tracker([Recorder("a", calls), Recorder("b", calls, close_error=OSError("full"))])
    tracker.open(run)
    with pytest.raises(OSError, match="full"):
        tracker.close("FINISHED")
    assert calls[-1] == "a close FINISHED None"


def test_an_unknown_status_is_refused(run: RunInfo) -> None:
    with pytest.raises(AssertionError, match="KILLED"):
        Tracker([]).close("KILLED")


def test_the_null_sink_takes_everything_and_leaves_nothing(run: RunInfo) -> None:
    sink = Sink()
    tell_everything(sink, run)
    assert sink.run_id is None
    assert list(run.directory.iterdir()) == []


def test_what_any_of_them_knows_the_tracker_knows() -> None:
    calls: list[str] = []
    known = Recorder("b", calls, run_id="7", page="http://x", delivered=False)
    tracker = Tracker([Recorder("a", calls), known, Recorder("c", calls, run_id="8", page="y")])
    assert (tracker.run_id, tracker.page, tracker.delivered) == ("7", "http://x", False)
    nothing = Tracker([Recorder("a", calls)])
    assert (nothing.run_id, nothing.page, nothing.delivered) == (None, None, True)
    tracker.hurry()
    assert calls == ["a hurry", "b hurry", "c hurry"]


@pytest.mark.parametrize(
    ("error", "ended"),
    [
        (KeyboardInterrupt(), "INTERRUPTED interrupted"),
        (KeyboardInterrupt("SIGTERM"), "INTERRUPTED SIGTERM"),
        (ValueError(), "FAILED ValueError"),
        (OSError("http://bob:pw@host is away"), "FAILED http://host is away"),
    ],
)
def test_how_those_before_a_sink_that_cannot_open_are_closed(
    run: RunInfo, error: BaseException, ended: str
) -> None:
    calls: list[str] = []
    first = Recorder("a", calls, close_error=OSError("full"))
    with pytest.raises(type(error)) as raised:
        Tracker([first, Recorder("b", calls, open_error=error)]).open(run)
    assert calls[-1] == f"a close {ended}"
    assert raised.value is error  # the second does not hide it
    assert str(error.__context__) == "full"


def test_the_first_error_of_a_close_is_raised(run: RunInfo) -> None:
    calls: list[str] = []
    sinks = [Recorder(name, calls, close_error=OSError(name)) for name in "abc"]
    tracker = Tracker(sinks)
    tracker.open(run)
    with pytest.raises(OSError, match="c"):
        tracker.close("FINISHED")
    assert len([call for call in calls if "close" in call]) == 3


def test_no_sink_is_given_a_password(run: RunInfo) -> None:
    address, left = "http://bob:pw@host", "http://host"
    calls: list[str] = []
    sink = Recorder("a", calls)
    tracker = Tracker([sink])
    tracker.open(dataclasses.replace(run, name=address, params={"x": address}, tags={"y": address}))
    assert (sink.opened.name, sink.opened.params, sink.opened.tags) == (
        left,
        {"x": left},
        {"y": left},
    )
    tracker.event("message", {"text": [address]})
    tracker.close("FAILED", address)
    assert calls[1:] == [f"a event message {{'text': ['{left}']}}", f"a close FAILED {left}"]
