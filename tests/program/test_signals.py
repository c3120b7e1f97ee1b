"""A request to stop, in every stage: disk, events and terminal agree, and it does not take long."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sseg_nase import run as running
from sseg_nase import stages
from sseg_nase.config.compose import continued, load
from sseg_nase.data import store
from sseg_nase.run import run
from sseg_nase.rundir.directory import RunDirectory
from sseg_nase.tracking import mlflow_sink
from sseg_nase.training import checkpoint
from sseg_nase.training.interruption import (
    NAMES,
    Interrupted,
    Interruption,
    end_at_once,
    from_the_start,
)

TINY = [
    "debug=tiny",
    "hardware=cpu",
    "hardware.threads=1",
    "hardware.precision=32-true",
    "ablation=A2",
    "pretrain.images_per_epoch=32",
    "pretrain.epochs=2",
    "evaluation.episodes=2",
    "evaluation.shots=[1]",
]
MAML = [
    "finetune=maml",
    "evaluation.method=maml",
    "evaluation.normalize=none",
    "evaluation.ways=5",
    "finetune.shots=1",
    "finetune.epochs=1",
    "finetune.episodes_per_epoch=2",
    "finetune.validation_episodes=4",
    "finetune.tasks_per_step=1",
]

pytestmark = pytest.mark.filterwarnings("ignore")  # what MLflow stands on is full of them


def ran(*overrides: str) -> Path:
    given = [*overrides, *continued(overrides)]
    return run(load(given), given)


def told(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "events.jsonl").read_text().splitlines()]


def sent(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, number: int = signal.SIGTERM
) -> list[str]:
    """Let the process get a signal when `owner.name` is called; the list says that it was."""
    original, calls = getattr(owner, name), []

    def stopped(*arguments: Any, **more: Any) -> Any:
        if not calls:
            calls.append(name)
            signal.raise_signal(number)
        return original(*arguments, **more)

    monkeypatch.setattr(owner, name, stopped)
    return calls


def interrupted(
    overrides: list[str], capsys: pytest.CaptureFixture[str], number: int = signal.SIGTERM
) -> Path:
    """Run until a signal stops it, and check that all agree."""
    named = signal.Signals(number).name
    with pytest.raises(Interrupted) as stopped:
        ran(*overrides)
    directory = next(Path("runs/debug").iterdir()).absolute()
    # Only a pipeline is gone on with: the command for it is printed where there is this attribute.
    resumable = not any(o.startswith("task=") for o in overrides)
    assert getattr(stopped.value, "run_dir", None) == (directory if resumable else None)
    status = json.loads((directory / "status.json").read_text())
    assert (status["status"], status["error"]) == ("INTERRUPTED", f"interrupted ({named})")
    if (directory / "events.jsonl").exists():
        last = told(directory)[-1]
        assert (last["kind"], last["values"]["status"]) == ("close", "INTERRUPTED"), last
        assert "INTERRUPTED after" in capsys.readouterr().out
    return directory


STAGES: dict[str, tuple[Callable[[], tuple[Any, str]], list[str]]] = {
    "environment": (lambda: (running, "write_environment"), []),
    "store building": (lambda: (stages.evaluating, "images_of"), []),
    "tracker": (lambda: (mlflow_sink, "open_store"), ["tracking=mlflow"]),
    "before the first step": (lambda: (stages.pretraining, "place"), []),
    "drawing": (lambda: (stages.tasks, "draw_curriculum"), ["task=curriculum"]),
    "untrained reference": (lambda: (stages.pipeline, "evaluate_before_tuning"), []),
    "evaluation": (lambda: (stages.evaluating, "evaluate_episodes"), []),
    "latency": (lambda: (stages.evaluating, "latency_ms"), []),
    "results": (lambda: (stages.results, "write_episodes"), []),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_request_to_stop_is_honoured_in_every_stage(
    stage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place, overrides = STAGES[stage]
    calls = sent(monkeypatch, *place())
    tracking = [] if any("tracking" in o for o in overrides) else ["tracking=jsonl"]
    directory = interrupted([*TINY, *tracking, *overrides, "report.at_end=false"], capsys)
    assert calls
    if "task=curriculum" not in overrides:
        ran(f"resume={directory}")
        assert json.loads((directory / "status.json").read_text())["status"] == "FINISHED"


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGALRM]
)
def test_every_signal_lets_the_step_finish(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sseg_nase.training.loop import Trainer

    step = Trainer.step
    steps = []

    def stopped(self: Trainer) -> None:
        steps.append(1)
        if len(steps) == 3:  # in the second epoch
            signal.raise_signal(number)
        step(self)

    monkeypatch.setattr(Trainer, "step", stopped)
    # Who has started pytest may ignore some of them, as `nohup` does; that is heeded.
    before = signal.signal(number, signal.SIG_DFL)
    try:
        directory = interrupted([*TINY, "tracking=jsonl"], capsys, number)
    finally:
        signal.signal(number, before)
    assert checkpoint.load(directory / "checkpoints" / "last.pt")["step"] == 3


def test_an_evaluation_between_epochs_of_fine_tuning_need_not_be_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [*TINY, *MAML, "ablation=A1", "tracking=jsonl", "report.at_end=false"]
    overrides += ["evaluation.untrained_reference=false"]
    reference = ran(*overrides, "paths.output_dir=reference")
    sent(monkeypatch, stages.finetuning.FewShotTask, "evaluate")
    directory = interrupted(overrides, capsys)
    state = checkpoint.load(directory / "checkpoints" / "finetune_last.pt")
    assert state["finetune"]["position"] == 2  # all steps of the epoch
    ran(f"resume={directory}")
    ours, theirs = (
        [e["values"] for e in told(d) if e["kind"] == "finetune"] for d in (directory, reference)
    )
    for figures in (*ours, *theirs):
        figures.pop("images_per_second")
    assert ours == theirs
    found = [
        json.loads((d / "results.json").read_text())["fewshot"] for d in (directory, reference)
    ]
    assert found[0] == found[1]


def test_fine_tuning_finishes_its_step_and_is_gone_on_with(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sseg_nase.finetune.loop import FineTuner

    update, steps = FineTuner.step, []

    def stopped(self: FineTuner) -> bool:
        steps.append(1)
        if len(steps) == 2:
            signal.raise_signal(signal.SIGTERM)
        return update(self)

    overrides = [*TINY, "ablation=A1", "finetune=prototypical", "tracking=jsonl"]
    overrides += ["evaluation.untrained_reference=false", "report.at_end=false"]
    overrides += ["finetune.epochs=1", "finetune.episodes_per_epoch=4", "finetune.tasks_per_step=1"]
    monkeypatch.setattr(FineTuner, "step", stopped)
    directory = interrupted(overrides, capsys)
    state = checkpoint.load(directory / "checkpoints" / "finetune_last.pt")
    assert state["finetune"]["position"] == 2
    ran(f"resume={directory}")
    assert len(steps) == 4
    assert json.loads((directory / "status.json").read_text())["status"] == "FINISHED"


def test_a_report_that_is_interrupted_leaves_a_finished_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sseg_nase.reporting import run_report

    sent(monkeypatch, run_report, "write_report")
    directory = ran(*TINY, "ablation=A1", "tracking=jsonl", "report.at_end=true")
    assert json.loads((directory / "status.json").read_text())["status"] == "FINISHED"
    assert told(directory)[-1]["values"]["status"] == "FINISHED"
    assert "the report is not written: interrupted" in capsys.readouterr().out


def test_delivering_at_the_end_is_left_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    release = threading.Event()
    original = mlflow_sink.terminate

    def hanging(*arguments: Any, **more: Any) -> None:
        signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)
        release.wait(60)
        original(*arguments, **more)

    monkeypatch.setattr(mlflow_sink, "terminate", hanging)
    monkeypatch.setattr(mlflow_sink, "SECONDS_IN_A_HURRY", 1.0)
    began = time.monotonic()
    directory = ran(*TINY, "ablation=A1", "tracking=mlflow", "report.at_end=false")
    release.set()
    status = json.loads((directory / "status.json").read_text())
    assert (status["status"], status["undelivered"]) == ("FINISHED", True)
    assert told(directory)[-1]["values"]["status"] == "FINISHED"
    said = capsys.readouterr()
    assert "FINISHED after" in said.out
    assert f"task=deliver run={directory}" in said.err
    assert time.monotonic() - began < 40


def test_an_interrupted_run_waits_for_a_dead_tracker_a_few_seconds_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert mlflow_sink.SECONDS_IN_A_HURRY < 5
    monkeypatch.setattr(mlflow_sink, "SECONDS_IN_A_HURRY", 0.5)
    release = threading.Event()

    class Client:
        def log_batch(self, *arguments: Any, **more: Any) -> None:
            release.wait(60)

        def set_terminated(self, *arguments: Any) -> None:
            release.wait(60)

    sink = mlflow_sink.MlflowSink(None, "e", required=False)
    sink._delivery = mlflow_sink._Delivery(
        Client(), "id", name="x", events=Path("events.jsonl"), behind={}, notify=lambda *a: None,
        flush_seconds=0.1, capacity=10,
    )  # fmt: skip
    sink._delivered = False
    sink.metrics({"a": 1.0}, 1)
    began = time.monotonic()
    sink.hurry()
    sink.close("INTERRUPTED")
    assert time.monotonic() - began < 0.5 + 1
    assert not sink.delivered
    release.set()


def test_the_directory_of_a_run_that_is_stopped_as_it_is_made_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent(monkeypatch, RunDirectory, "_describe", signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        ran(*TINY, "tracking=jsonl")
    (directory,) = Path("runs/debug").iterdir()
    assert json.loads((directory / "status.json").read_text())["status"] == "INTERRUPTED"


# -- the mechanism -------------------------------------------------------------------------------


def test_after_a_step_a_request_waits_until_it_is_asked_for() -> None:
    with Interruption() as interruption, contextlib.suppress(Interrupted), interruption.deferred():
        assert not interruption.is_requested()  # the first step is done
        signal.raise_signal(signal.SIGTERM)
        assert interruption.is_requested()
        with pytest.raises(Interrupted, match="SIGTERM"), interruption.at_once():
            raise AssertionError("not reached")


@pytest.mark.parametrize("within", ["nothing", "before a step", "at once"])
def test_where_nothing_is_lost_a_request_does_not_wait(within: str) -> None:
    def stopped() -> None:
        with contextlib.ExitStack() as stack:
            interruption = stack.enter_context(Interruption())
            if within != "nothing":
                stack.enter_context(interruption.deferred())
            if within == "at once":
                interruption.is_requested()
                stack.enter_context(interruption.at_once())
            signal.raise_signal(signal.SIGTERM)
            raise AssertionError("not reached")

    with pytest.raises(Interrupted, match="SIGTERM"):
        stopped()


def test_an_echo_does_not_disturb_the_ending_but_ctrl_c_does() -> None:
    with Interruption() as interruption:
        with contextlib.suppress(Interrupted):
            signal.raise_signal(signal.SIGTERM)
        with interruption.ending():
            for echo in (signal.SIGTERM, signal.SIGUSR1):
                try:
                    signal.raise_signal(echo)
                except Interrupted:
                    pytest.fail(f"{signal.Signals(echo).name} has disturbed the ending")
            with pytest.raises(Interrupted):
                signal.raise_signal(signal.SIGINT)


def test_who_waits_for_another_process_is_not_kept_waiting(tmp_path: Path) -> None:
    with (tmp_path / ".s.lock").open("w") as lock, Interruption():
        fcntl.flock(lock, fcntl.LOCK_EX)  # as another process that builds the store
        began = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(Interrupted), store.locked(tmp_path / "s"):
            raise AssertionError("not reached")
    assert 0.2 <= time.monotonic() - began < 4


class Breaking:
    """Does something in its destructor, where nothing can be raised."""

    def __init__(self, does: Callable[[], Any]) -> None:
        self.does = does

    def __del__(self) -> None:
        self.does()


def test_a_request_that_is_lost_in_a_destructor_is_made_again() -> None:
    def stopped() -> None:
        with Interruption():
            Breaking(lambda: signal.raise_signal(signal.SIGINT))  # gone at once
            for _ in range(200):
                time.sleep(0.02)
            raise AssertionError("not reached")

    with pytest.raises(Interrupted, match="SIGINT"):
        stopped()


def test_what_breaks_in_a_destructor_is_told_until_a_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    hook = sys.unraisablehook
    with Interruption():
        Breaking(lambda: 1 // 0)
        assert len(told) == 1
        with contextlib.suppress(Interrupted):
            signal.raise_signal(signal.SIGTERM)
        Breaking(lambda: 1 // 0)
    assert len(told) == 1
    assert sys.unraisablehook is hook


def test_a_hangup_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            with contextlib.suppress(Interrupted):
                signal.raise_signal(signal.SIGHUP)
            assert interruption.requested is None
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGALRM, signal.SIGXCPU])
def test_a_limit_of_time_is_a_request_unless_the_program_has_a_use_for_it(number: int) -> None:
    heard = list[int]()

    def own(got: int, frame: object) -> None:
        heard.append(got)

    before = signal.signal(number, own)
    try:
        with Interruption() as interruption:
            signal.raise_signal(number)
            assert (heard, interruption.requested) == ([number], None)
        for usual in (signal.SIG_DFL, end_at_once):
            signal.signal(number, usual)
            with Interruption() as interruption, pytest.raises(Interrupted):
                signal.raise_signal(number)
    finally:
        signal.signal(number, before)


def test_the_handlers_of_the_process_are_not_called_after_those_of_a_run() -> None:
    before = signal.signal(signal.SIGTERM, end_at_once)
    try:
        with Interruption(), contextlib.suppress(Interrupted):
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is end_at_once  # and we are still here
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP"])
def test_the_handler_from_before_is_put_back_and_hears_of_the_signal(name: str) -> None:
    """Of the first one: submitit requeues its job on SIGUSR2, and Slurm sends SIGTERM behind it."""
    number, heard = getattr(signal, name), list[int]()
    other = signal.SIGTERM if name != "SIGTERM" else signal.SIGUSR1
    before = {
        one: signal.signal(one, lambda got, frame: heard.append(got)) for one in (number, other)
    }
    requested = []
    try:
        with (
            Interruption() as interruption,
            contextlib.suppress(Interrupted),
            interruption.deferred(first_at_once=False),
        ):
            signal.raise_signal(number)
            signal.raise_signal(other)
            requested = [interruption.requested, *heard]
        assert requested == [name]
        assert heard == [number]
        with Interruption():
            pass
        assert heard == [number]  # nothing came
        signal.raise_signal(other)
        assert heard == [number, other]
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


@pytest.mark.parametrize("first_at_once", [True, False])
def test_a_request_that_nobody_asked_for_raises_at_the_end_of_the_block(
    first_at_once: bool,
) -> None:
    reached = []

    def block() -> None:
        with Interruption() as interruption, interruption.deferred(first_at_once=first_at_once):
            if first_at_once:
                interruption.is_requested()  # after the first step
            signal.raise_signal(signal.SIGTERM)
            reached.append("the end")

    with pytest.raises(Interrupted, match="SIGTERM"):
        block()
    assert reached == ["the end"]


def test_after_what_may_be_left_at_once_a_request_waits_again() -> None:
    waited = []
    with (
        Interruption() as interruption,
        contextlib.suppress(Interrupted),
        interruption.deferred(),
    ):
        interruption.is_requested()
        with interruption.at_once():
            pass
        with interruption.ending():
            pass
        signal.raise_signal(signal.SIGTERM)
        waited.append(interruption.is_requested())
        with pytest.raises(Interrupted):  # the second Ctrl-C waits for nothing
            signal.raise_signal(signal.SIGINT)
    assert waited == [True]


def test_asking_does_not_make_requests_wait_where_they_are_honoured_at_once() -> None:
    with (
        Interruption() as interruption,
        contextlib.suppress(Interrupted),
        interruption.deferred(),
        interruption.at_once(),
    ):
        interruption.is_requested()
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGTERM)


def test_outside_the_main_thread_nothing_is_handled() -> None:
    """Where Python allows no handlers."""
    before = [signal.getsignal(getattr(signal, name)) for name in NAMES]
    ended: list[str] = []

    def work() -> None:
        from_the_start()
        with Interruption() as interruption, interruption.deferred():
            assert not interruption.is_requested()
        ended.append("well")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ended == ["well"]
    assert [signal.getsignal(getattr(signal, name)) for name in NAMES] == before


def test_from_the_start_what_is_ignored_or_handled_stays_so() -> None:
    given = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_IGN,
        signal.SIGUSR1: lambda number, frame: None,
    }
    before = {number: signal.signal(number, handler) for number, handler in given.items()}
    try:
        from_the_start()
        now = {number: signal.getsignal(number) for number in given}
        ours = (signal.SIGINT, signal.SIGTERM)
        assert now == given | dict.fromkeys(ours, end_at_once)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# -- the program ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "seconds"), [(signal.SIGTERM, 0.3), (signal.SIGINT, 1.5)])
def test_the_first_seconds_of_the_program(number: int, seconds: float, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "sseg_nase", *TINY],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    _handles(process.pid, number)
    time.sleep(seconds)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert said.strip().endswith("interrupted"), said
    assert "Traceback" not in said


def _handles(pid: int, number: int) -> None:
    """Wait until the process handles the signal, as the system tells: Python itself must start."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            caught = next(line for line in lines if line.startswith("SigCgt"))
            if int(caught.split()[1], 16) >> (number - 1) & 1 and (
                number == signal.SIGTERM or int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1
            ):
                return
        time.sleep(0.01)
    raise AssertionError("it handles nothing")
