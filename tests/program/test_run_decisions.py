"""What one run decides outside of its stages: what is told, how it ends, what is left on disk."""

from __future__ import annotations

import dataclasses
import errno
import json
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sseg_nase import run as running
from sseg_nase.config.compose import load
from sseg_nase.config.fingerprint import fingerprint
from sseg_nase.errors import UserError
from sseg_nase.files import StorageError
from sseg_nase.reporting import run_report
from sseg_nase.run import run_name
from sseg_nase.rundir.directory import RunDirectory
from sseg_nase.rundir.lock import locked
from sseg_nase.rundir.status import FAILED, FINISHED, INTERRUPTED, RUNNING, status_of
from sseg_nase.stages import identity, pipeline, results, resuming, tasks
from sseg_nase.stages.running import Membership, Run
from sseg_nase.tracking import Resumed, RunInfo
from sseg_nase.tracking.mlflow_sink import resolve_uri
from sseg_nase.tracking.sink import Sink
from sseg_nase.training import checkpoint
from sseg_nase.training.interruption import Interruption

TINY = ("debug=tiny", "hardware=cpu", "hardware.precision=32-true", "tracking=jsonl")


class Told(Sink):
    """Remembers what it is told, and what status.json said when it was closed."""

    def __init__(self, ends: Callable[[], None] = lambda: None, *, late: bool = False) -> None:
        self.ends, self.late, self.hurried = ends, late, False
        self.opened: list[RunInfo] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.closed: list[tuple[str, str | None, dict[str, Any]]] = []

    @property
    def run_id(self) -> str | None:
        return "abc"

    @property
    def delivered(self) -> bool:
        return bool(self.closed) or not self.late

    def open(self, run: RunInfo) -> None:
        self.opened.append(run)
        assert status_of(run.directory)["status"] == RUNNING

    def event(self, kind: str, values: Mapping[str, Any]) -> None:
        self.events.append((kind, dict(values)))

    def hurry(self) -> None:
        self.hurried = True

    def close(self, status: str, error: str | None = None) -> None:
        self.ends()
        place = Path(next(Path("runs").glob("*/*/status.json"))).parent
        self.closed.append((status, error, dict(status_of(place))))


def texts(sink: Told, kind: str) -> list[str]:
    return [values["text"] for one, values in sink.events if one == kind]


def begun(sink: Sink, *overrides: str, **more: Any) -> Run:
    config = load([*TINY, *overrides])
    given: dict[str, Any] = {"name": "a name", "asked": "asked for", "notes": []} | more
    place = RunDirectory.create(config, overrides)
    return Run(config, place, sink, interruption=Interruption(), **given)


# -- the beginning ---------------------------------------------------------------------------------


def test_what_the_tracker_is_told_of_a_run() -> None:
    sink = Told()
    sweep = Membership("the sweep", "a name", "the parent", "asked for", lambda path: None)
    this = begun(sink, "hardware.threads=3", notes=["a note"], sweep=sweep)
    this.place.notes.append("and one of the folder")
    this.overlaps.append("an overlap")
    this.open(7, Resumed("abc", 3, 1))
    (info,) = sink.opened
    assert (info.name, info.experiment, info.total_epochs) == ("a name", "debug", 7)
    assert (info.directory, info.config_file) == (
        this.directory, this.directory / "config.yaml",
    )  # fmt: skip
    assert info.resumed == Resumed("abc", 3, 1)
    assert info.parent_run_id == "the parent"
    assert info.params["seed"] == 0
    assert info.params["effective/threads"] == 3
    assert None not in info.params.values()
    hidden = ("paths.", "tracking.", "hardware.", "data.", "sweep.", "report.")
    assert not [key for key in info.params if key.startswith(hidden)]
    assert info.tags["asked_fingerprint"] == "asked for"
    assert info.tags["fingerprint"] == fingerprint(this.config) != "asked for"
    assert (info.tags["sweep"], info.tags["task"]) == ("the sweep", "pipeline")
    assert texts(sink, "message") == ["a note", "and one of the folder"]
    assert texts(sink, "warning") == ["an overlap"]
    assert status_of(this.directory)["tracker_run_id"] == "abc"
    assert this.opened
    this.place.release()


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ([], "debug"),
        (["seed=1", "+ssl.x=2"], "seed=1 +ssl.x=2"),
        (["paths.data_dir=x", "++tracking.uri=y", "tracking=jsonl", "hydra.verbose=true"], "debug"),
        (["sweep.parallel=2", "experiment_name=z", "seed=1"], "seed=1"),
        (["seed=" + "1" * 200], "seed=" + "1" * 113 + " …"),
    ],
)
def test_a_run_is_named_by_what_was_overridden(given: list[str], name: str) -> None:
    assert run_name(load(TINY), given) == name


@pytest.mark.parametrize(
    ("uri", "before", "expected"),
    [
        (None, None, "sqlite:///{cwd}/mlflow.db"),
        (None, "sqlite:////where/it/was.db", "sqlite:////where/it/was.db"),
        ("sqlite:///new.db", "sqlite:////where/it/was.db", "sqlite:///{cwd}/new.db"),
    ],
)
def test_a_run_goes_on_in_the_store_that_it_began_in(
    uri: str | None, before: str | None, expected: str
) -> None:
    config = load(["tracking=mlflow", *([] if uri is None else [f"tracking.uri={uri}"])])
    place = RunDirectory(Path("run"))
    place.tracking_uri = before
    found = running._tracked_where_it_was(config, place)
    expected = expected.format(cwd=Path.cwd())
    assert (resolve_uri(found.tracking.uri), place.tracking_uri) == (expected, expected)
    place.tracking_uri = before
    plain = load(["tracking=jsonl"])
    assert running._tracked_where_it_was(plain, place) == plain
    assert place.tracking_uri == before


@pytest.mark.parametrize(
    ("file", "state", "overrides", "refused"),
    [
        ("last", {"epoch": 3, "batch": 0}, ["pretrain.epochs=3"], None),
        ("last", {"epoch": 3, "batch": 0}, ["pretrain.epochs=2"], "pretrain.epochs=2: .* for 3 "),
        ("last", {"epoch": 2, "batch": 5}, ["pretrain.epochs=3"], None),
        ("last", {"epoch": 2, "batch": 5}, ["pretrain.epochs=2"], "pretrain.epochs=2: .* for 3 "),
        ("finetune_last", {"finetune": {"epoch": 4}}, ["finetune.epochs=4"], None),
        (
            "finetune_last", {"epoch": 9, "finetune": {"epoch": 4}}, ["finetune.epochs=3"],
            "finetune.epochs=3: .* for 4 ",
        ),
        (None, {}, ["pretrain.epochs=1"], None),
    ],
)  # fmt: skip
def test_epochs_that_are_done_cannot_be_undone(
    file: str | None, state: dict[str, Any], overrides: list[str], refused: str | None
) -> None:
    if file is not None:
        known = {"epoch": 0, "step": 0, "history": []}
        checkpoint.save(Path("run/checkpoints") / f"{file}.pt", known | state)
    config = load([*TINY, "finetune=prototypical", *overrides])
    config = dataclasses.replace(config, resume="run")
    resuming.check_epochs(config)  # the epochs are those that were stored
    config = dataclasses.replace(config, resume_overrides=True)
    if refused is None:
        resuming.check_epochs(config)
    else:
        with pytest.raises(UserError, match=refused):
            resuming.check_epochs(config)
    resuming.check_epochs(dataclasses.replace(config, resume=None))


def state_of(**fields: Any) -> dict[str, Any]:
    return {"epoch": 4, "step": 40, "finetune": {"epoch": 2}, **fields}


@pytest.mark.parametrize(
    ("resumed", "state", "tuning", "where"),
    [
        (False, None, None, []),
        (True, None, None, ["the beginning: there is no checkpoint yet"]),
        (True, state_of(), None, ["epoch 5, step 40"]),
        (True, state_of(), state_of(step=60), ["epoch 3 of fine-tuning, step 60"]),
    ],
)
def test_where_a_run_goes_on_is_said(
    resumed: bool, state: Any, tuning: Any, where: list[str]
) -> None:
    sink = Told()
    this = begun(sink)
    this.place.resumed, this.place.changes = resumed, {"optimizer.lr": (0.1, 0.2)}
    resuming.tell_where_it_resumes(this, state, tuning)
    assert texts(sink, "message") == [f"resumed at {one}" for one in where]
    changed = [values for kind, values in sink.events if kind == "warning"]
    assert [(v["key"], v["old"], v["new"]) for v in changed] == (
        [("optimizer.lr", 0.1, 0.2)] if resumed else []
    )
    said = ["resumed with optimizer.lr: 0.1 -> 0.2"]
    assert texts(sink, "warning") == (said if resumed else [])
    this.place.release()


@pytest.mark.parametrize(
    ("state", "tuning", "step", "mutations"),
    [
        (None, None, 0, 0),
        (state_of(history=[{}, {}]), None, 40, 2),
        (state_of(history=[{}]), state_of(step=60, history=[{}, {}, {}]), 60, 3),
    ],
)
def test_what_was_told_up_to_the_checkpoint_stays(
    state: Any, tuning: Any, step: int, mutations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OpenedError(Exception):
        pass

    def opens(this: Run, total_epochs: int, resumed: Resumed | None = None) -> None:
        told.append(resumed)
        raise OpenedError

    told: list[Resumed | None] = []
    found = {"last": state, "finetune_last": tuning}
    monkeypatch.setattr(pipeline, "state_to_resume", lambda this, name: found[name])
    monkeypatch.setattr(Run, "tie", lambda *given, **more: None)
    monkeypatch.setattr(Run, "open", opens)
    this = begun(Told())
    this.place.resumed, this.place.run_id = True, "abc"
    with pytest.raises(OpenedError):
        pipeline.pipeline(this)
    assert told == [Resumed("abc", step, mutations)]
    this.place.release()


@pytest.mark.parametrize("meant", [True, False])
@pytest.mark.parametrize("changed", [True, False])
def test_a_run_is_tied_to_its_images(
    changed: bool, meant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = {"images": {"d/val": 2}, "roles": {}, "files": {}, "trained_before": []}
    before = {"images": {"d/val": 1}, "roles": {}, "files": {}, "earlier": ["one"], "more": 0}
    monkeypatch.setattr(identity, "data_of", lambda *arguments, **more: now)
    monkeypatch.setattr(
        identity, "differences", lambda *arguments: {"d/val": "others"} if changed else {}
    )
    monkeypatch.setattr(identity, "trained_on", lambda data: [])
    monkeypatch.setattr(identity, "overlaps", lambda *arguments: ["they overlap"])
    monkeypatch.setattr(identity, "changed_base", lambda *arguments: ["the base is another"])
    monkeypatch.setattr(identity, "drawn_otherwise", lambda data: ["drawn otherwise"])
    this = begun(Told())
    this.config = dataclasses.replace(this.config, resume_overrides=meant)
    (this.directory / "data.json").write_text(json.dumps(before))
    if changed and not meant:
        with pytest.raises(UserError, match="others"):
            this.tie([], pretrained=True, epochs=5)
        assert json.loads((this.directory / "data.json").read_text()) == before
        return
    this.tie([], pretrained=True, epochs=5)
    stored = json.loads((this.directory / "data.json").read_text())
    kept = {"images": {"d/val": 1}, "roles": {}, "files": {}}
    then = {"until_epoch": 5, **kept, "changed": {"d/val": "others"}}
    assert stored == {**now, "earlier": ["one", *([then] if changed else [])]}
    assert this.data == stored
    assert this.overlaps == ["they overlap", "the base is another", "drawn otherwise"]
    assert this.notes == (["resumed with other data: d/val: others"] if changed else [])


def test_images_that_were_never_recorded_are_from_here_on(monkeypatch: pytest.MonkeyPatch) -> None:
    now = {"images": {}, "roles": {}, "files": {}, "trained_before": []}
    monkeypatch.setattr(identity, "data_of", lambda *arguments, **more: now)
    for resumed in (False, True):
        this = begun(Told())
        this.place.resumed = resumed
        this.tie([], pretrained=False)
        assert len(this.notes) == resumed
        assert json.loads((this.directory / "data.json").read_text()) == now


def test_a_stage_is_told_and_timed() -> None:
    sink = Told()
    this = begun(sink)
    with this.stage("one"):
        assert sink.events == [("stage", {"stage": "one"})]
        assert this.seconds == {}
    assert this.seconds["one"] >= 0
    with pytest.raises(ZeroDivisionError), this.stage("two"):
        raise ZeroDivisionError
    assert list(this.seconds) == ["one"]


@pytest.mark.parametrize("threads", [None, 3])
def test_a_run_takes_the_threads_it_was_given(
    threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    capped: list[Any] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(running, "enforce_memory_cap", lambda *given: capped.append(given))
    hardware = dataclasses.replace(
        load([*TINY]).hardware, threads=threads, accelerator="cpu", max_memory_gb=2.0
    )
    running._prepare(hardware)
    assert asked == ([] if threads is None else [threads])
    assert capped == [(torch.device("cpu"), 2.0)]


# -- the end ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [FINISHED, FAILED, INTERRUPTED])
@pytest.mark.parametrize("late", [True, False])
def test_the_end_is_on_disk_before_anybody_is_told(status: str, late: bool) -> None:
    sink = Told(late=late)
    this = begun(sink)
    running._end(this, status, "why", "a traceback")
    ((told, error, on_disk),) = sink.closed
    assert (told, error, on_disk["status"], on_disk["error"]) == (status, "why", status, "why")
    assert on_disk.get("undelivered", False) is late  # it may be killed while it delivers
    now = status_of(this.directory)
    assert (now["status"], now["traceback"]) == (status, "a traceback")
    assert "undelivered" not in now
    assert (this.ended, sink.hurried) == (status, False)


def test_a_run_that_was_asked_to_stop_delivers_in_a_hurry() -> None:
    sink = Told()
    this = begun(sink)
    this.interruption.requested = "SIGTERM"
    running._end(this, INTERRUPTED, "why")
    assert sink.hurried


@pytest.mark.parametrize("status", [FINISHED, FAILED])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), StorageError(Path("/"), errno.ENOSPC)])
def test_whatever_happens_to_the_delivery_the_end_stays(
    status: str, error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise error

    sink = Told(fails, late=True)
    this = begun(sink)
    running._end(this, status, "why")
    now = status_of(this.directory)
    assert (now["status"], now["undelivered"], this.ended) == (status, True, status)
    said = capsys.readouterr().err
    if isinstance(error, KeyboardInterrupt):
        assert f"task=deliver run={this.directory} sends what is missing" in said
    else:
        assert ("the end of the run is not in events.jsonl" in said) == (status == FINISHED)


@pytest.mark.parametrize("status", [FINISHED, FAILED, INTERRUPTED])
def test_only_a_finished_run_must_be_able_to_say_so(
    status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = Told()
    this = begun(sink)

    def full(*arguments: Any, **more: Any) -> None:
        raise StorageError(this.directory, errno.ENOSPC)

    monkeypatch.setattr(RunDirectory, "write_status", full)
    if status == FINISHED:
        with pytest.raises(StorageError):
            running._end(this, status)
        assert (this.ended, sink.closed) == (None, [])
    else:
        running._end(this, status, "why")
        assert len(sink.closed) == 1


ENDINGS: dict[str, tuple[BaseException, type[BaseException], str, str]] = {
    "interrupted": (KeyboardInterrupt(), KeyboardInterrupt, INTERRUPTED, "interrupted (SIGINT)"),
    "a mistake": (UserError("a.b=1: no"), UserError, FAILED, "a.b=1: no"),
    "ours": (ValueError("broken"), ValueError, FAILED, "ValueError: broken"),
    "an exit": (SystemExit(3), SystemExit, FAILED, "SystemExit: 3"),
    "a full disk": (
        OSError(errno.ENOSPC, "No space left"), UserError, FAILED, "cannot be written",
    ),
    "memory": (torch.OutOfMemoryError("CUDA out of memory."), UserError, FAILED, "out of memory"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ENDINGS)
@pytest.mark.parametrize("task", ["pipeline", "curriculum"])
def test_how_a_run_ends_follows_from_what_was_raised(
    task: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    error, raised, status, said = ENDINGS[kind]
    this = begun(Told(), f"task={task}")

    def fails(this: Run) -> None:
        raise error

    monkeypatch.setitem(running.TASKS, task, fails)  # type: ignore[arg-type]
    with pytest.raises(raised) as caught:
        running._run(this)
    now = status_of(this.directory)
    assert now["status"] == status
    assert said in now["error"]
    assert (this.directory / "environment.json").exists()
    ours = kind in ("ours", "an exit", "memory")
    assert ("traceback" in now) == ours
    shown = kind in ("ours", "an exit") or (kind, task) == ("interrupted", "pipeline")
    assert (getattr(caught.value, "run_dir", None) == this.directory) == shown
    again = f"Then resume it: sseg-nase resume={this.directory}"
    assert (again in str(caught.value)) == (kind == "a full disk" and task == "pipeline")


def test_an_interruption_after_the_end_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def concluded(this: Run) -> None:
        this.summary = {"some": "results"}, []

    def shown(*given: Any) -> None:
        told.append((*given, status_of(this.directory)["status"]))
        raise KeyboardInterrupt

    told: list[Any] = []
    this = begun(Told())
    monkeypatch.setitem(running.TASKS, "pipeline", concluded)  # type: ignore[arg-type]
    monkeypatch.setattr(running, "print_summary", shown)
    running._run(this)
    assert told == [({"some": "results"}, [], None, FINISHED)]
    assert status_of(this.directory)["status"] == FINISHED


@pytest.mark.parametrize(
    ("resumed", "opened", "full", "restored"),
    [
        (True, False, False, True),
        (True, True, False, False),
        (False, False, False, False),
        (True, False, True, False),
    ],
)
def test_only_a_resumed_run_that_was_refused_is_left_as_it_was(
    resumed: bool, opened: bool, full: bool, restored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    this = begun(Told())
    this.place.resumed, this.opened = resumed, opened
    put_back: list[bool] = []

    def refuse(this: Run) -> None:
        raise StorageError(this.directory, errno.ENOSPC) if full else UserError("refused")

    monkeypatch.setattr(this.place, "restore", lambda: put_back.append(True))
    monkeypatch.setitem(running.TASKS, "pipeline", refuse)  # type: ignore[arg-type]
    with pytest.raises(UserError):
        running._run(this)
    assert put_back == ([True] if restored else [])
    assert (status_of(this.directory)["status"] == FAILED) == (not restored)


@pytest.mark.parametrize(
    "error", [UserError("no such tracker"), KeyboardInterrupt(), ValueError("broken")]
)
def test_a_run_that_cannot_be_told_of_gives_its_folder_back(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(tracking: Any) -> Sink:
        raise error

    monkeypatch.setattr(running, "build_tracker", fails)
    began: list[Path] = []
    sweep = Membership("s", "n", None, "asked", began.append)
    with pytest.raises(type(error)):
        running.run(load(TINY), TINY, sweep)
    (directory,) = began
    ends = {UserError: FAILED, KeyboardInterrupt: INTERRUPTED}
    assert status_of(directory)["status"] == ends.get(type(error), RUNNING)
    assert not locked(directory)


def test_a_finished_run_is_said_and_given_back(capsys: pytest.CaptureFixture[str]) -> None:
    this = begun(Told())
    this.place.write_status(FINISHED)
    this.place.release()
    config = dataclasses.replace(this.config, resume=str(this.directory))
    assert running.run(config) == this.directory
    assert "is FINISHED: there is nothing left to do" in capsys.readouterr().out
    assert not locked(this.directory)
    assert status_of(this.directory)["status"] == FINISHED


# -- the results -----------------------------------------------------------------------------------

KEY = "digits/val/5w1s"
COSTS = {
    "params": 70, "macs": 700, "latency_ms_b1": None, "latency_ms_b64": 2.0,
    "peak_memory_mb": float("nan"),
}  # fmt: skip


def evaluation(accuracy: float) -> Any:
    result = {"accuracy": accuracy, "ci95": 1.0, "top_k": {"2": 90.0}, "doubts": []}
    return SimpleNamespace(results={KEY: result}, accuracies={}, confusions={}, embeddings=None)


@pytest.mark.parametrize("best", ["there", "lost", None])
@pytest.mark.parametrize("again", [True, False])
@pytest.mark.parametrize("report", [True, False])
def test_what_is_recorded_of_what_was_evaluated(
    report: bool, again: bool, best: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink, figures, drawn = Told(), list[tuple[dict[str, float], int]](), list[Path]()
    this = begun(sink, f"report.at_end={str(report).lower()}")
    sink.metrics = lambda values, step: figures.append((dict(values), step))  # type: ignore
    backbone = SimpleNamespace(
        architecture=SimpleNamespace(summary=lambda: {"params": 70}, to_dict=lambda: {"n": 1})
    )
    history = [{"accepted": True}, {"accepted": False}]
    reached: Any = SimpleNamespace(
        backbone=backbone,
        history=history,
        step=33,
        images_seen={"synthetic": 5},
        skipped={},
        tuned=(),
        macs={"student": 7, "trials": 0},
    )
    monkeypatch.setattr(results, "evaluate", lambda *given: evaluation(50.0))
    monkeypatch.setattr(results, "evaluate_best", lambda *given: ({"params": 60}, evaluation(60.0)))
    monkeypatch.setattr(results, "efficiency", lambda *given: COSTS)
    groups: list[set[str]] = []
    monkeypatch.setattr(
        results, "doubted", lambda found: (groups.append(set(found)), ["a doubt"])[1]
    )
    monkeypatch.setattr(results, "report", lambda this: drawn.append(this.directory))
    monkeypatch.setattr(identity, "in_results", lambda data: {"evaluated": {}})
    this.overlaps.append("an overlap")
    path = None if best is None else this.directory / "best.pt"
    if best == "there":
        checkpoint.save(this.directory / "best.pt", {})
    if again:
        (this.directory / "results.json").write_text("{}")
    untrained = {"fewshot_untrained": evaluation(20.0).results}
    results.conclude(this, reached, [], untrained, path)
    written = json.loads((this.directory / "results.json").read_text())
    assert written["status"] == FINISHED
    assert this.summary is not None
    assert (this.summary[0]["fewshot"], this.summary[1]) == (written["fewshot"], history)
    assert written["fewshot"][KEY]["accuracy"] == 50.0
    assert written["fewshot_untrained"][KEY]["accuracy"] == 20.0
    assert ("fewshot_best" in written) == ("best" in written) == (best == "there")
    assert (written["mutations"], written["images_seen"]) == (1, {"synthetic": 5})
    assert written["training_macs"] == {"total": 7, "student": 7}
    assert written["data"] == {"evaluated": {}, "doubts": ["an overlap"]}
    assert {step for _, step in figures} == {33 if again else 0}
    told = {key: value for values, _ in figures for key, value in values.items()}
    chosen = (60.0, 60) if best == "there" else (50.0, 70)
    assert (told[f"headline/{KEY}"], told["headline/params"]) == chosen
    assert (told[f"fewshot/{KEY}/accuracy"], told[f"fewshot/{KEY}/top2"]) == (50.0, 90.0)
    assert told.get(f"fewshot_best/{KEY}/accuracy") == (60.0 if best == "there" else None)
    measured = {key: value for key, value in told.items() if key.startswith("efficiency/")}
    assert measured == {
        "efficiency/params": 70, "efficiency/macs": 700, "efficiency/latency_ms_b64": 2.0,
        "efficiency/training_macs": 7,
    }  # fmt: skip
    expected = {"fewshot", "fewshot_untrained"}
    assert groups[0] >= expected | ({"fewshot_best"} if best == "there" else set())
    warned = texts(sink, "warning")
    assert "a doubt" in warned
    assert any("the best network is not evaluated" in text for text in warned) == (best == "lost")
    assert drawn == ([this.directory] if report else [])
    assert json.loads((this.directory / "architecture.json").read_text()) == {"n": 1}
    assert set(this.seconds) == {"evaluate", "efficiency"}


# -- the report ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyboardInterrupt(), "the report is not written: interrupted; "),
        (ValueError("broken."), "the report is not written: ValueError: broken; "),
        (OSError(errno.ENOSPC, "No space left"), "cannot be written"),
    ],
)
@pytest.mark.parametrize("untold", [True, False])
def test_a_report_that_is_not_drawn_costs_a_warning(
    error: BaseException,
    said: str,
    untold: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(*arguments: Any, **more: Any) -> None:
        raise error

    sink = Told(late=True)
    this = begun(sink)
    monkeypatch.setattr(run_report, "write_report", fails)
    if untold:
        event = sink.event

        def told(kind: str, values: Mapping[str, Any]) -> None:
            if kind == "warning":
                raise StorageError(this.directory, errno.ENOSPC)
            event(kind, values)

        monkeypatch.setattr(sink, "event", told)
    results.report(this)
    now = status_of(this.directory)
    assert (now["status"], now["undelivered"]) == (FINISHED, True)
    warned = [capsys.readouterr().err] if untold else texts(sink, "warning")
    assert said in warned[0]
    assert f"task=report runs={this.directory} writes it" in warned[0]


def test_the_files_of_a_report_stand_where_they_stand_on_disk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sink = Told()
    this = begun(sink, "report.at_end=true", "report.published=false")
    folder = this.directory / "report"
    asked: list[Any] = []

    def written(run: Path, *, published: bool) -> list[Path]:
        asked.append((run, published, status_of(run)["status"]))
        return [folder / "report.md", folder / "figures" / "a.png"]

    placed: list[Any] = []
    monkeypatch.setattr(run_report, "write_report", written)
    monkeypatch.setattr(sink, "artifact", lambda path, where: placed.append((path.name, where)))
    results.report(this)
    assert asked == [(this.directory, False, FINISHED)]
    assert placed == [("report.md", "report"), ("a.png", "report/figures")]
    assert texts(sink, "message") == [f"report: {folder / 'report.html'}"]


def test_signals_reach_a_run_from_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(config: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(running, "settled", asked)
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        running.run(load(TINY))
    assert not Path("runs").exists()


def test_the_latest_of_what_was_replayed_is_the_architecture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts = {"channels": [4, 6], "params": 5000, "macs": 7000}
    architectures = [
        SimpleNamespace(to_dict=lambda n=n: {"n": n}, summary=lambda: counts) for n in range(3)
    ]
    records = [
        {"index": n, "kind": "GROW", "epoch": n, "after": counts, "accepted": n == 0}
        for n in range(2)
    ]
    monkeypatch.setattr(tasks, "replayed", lambda run: (records, architectures))
    sink = Told()
    this = begun(sink, "task=replay", "run=somewhere")
    tasks.replay_run(this)
    assert json.loads((this.directory / "architecture.json").read_text()) == {"n": 2}
    replayed = json.loads((this.directory / "replay.json").read_text())
    assert replayed == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert texts(sink, "message") == [
        "seed network: channels 4-6, params 5,000, macs 7,000",
        "mutation 0: GROW after epoch 1, channels 4-6, params 5,000, macs 7,000 (accepted)",
        "mutation 1: GROW after epoch 2, channels 4-6, params 5,000, macs 7,000 (rolled back)",
    ]
