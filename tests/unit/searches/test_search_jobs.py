"""The evaluator `run`: jobs of a search, here performed by a stand-in that trains nothing."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from PIL import Image

from sseg_nase.config.compose import continued, load
from sseg_nase.errors import UserError
from sseg_nase.nets import own as own_files
from sseg_nase.nets.building import build, configured
from sseg_nase.nets.ops import OPERATIONS
from sseg_nase.run import run
from sseg_nase.rundir.status import status_of
from sseg_nase.search import Candidate, Log, Objectives, Scored
from sseg_nase.search.latency import timed
from sseg_nase.searches import jobs
from sseg_nase.searches.jobs import (
    FIDELITY_KEYS,
    check_goals,
    fidelity_overrides,
    of_jobs,
    scores_of,
)
from sseg_nase.searches.parts import parts_of
from sseg_nase.searches.promotion import goes_on
from sseg_nase.spaces import choices_space
from sseg_nase.sweeps.folder import JobFolder, SweepFolder
from tests.support.small_search import CHOICES, QUIET, own, searched

RESULTS = {
    "fewshot": {"digits/val/5w1s": {"accuracy": 50.0}, "digits/val/5w5s": {"accuracy": 70.0}},
    "efficiency": {"params": 1000, "macs": 2000, "latency_ms_b1": 0.5, "peak_memory_mb": None},
    "training_macs": {"total": 70_000, "student": 70_000},
    "seconds": {"pretrain": 2.0, "evaluate": 1.0},
    "images_seen": {"synthetic": 30, "real_unlabeled": 10},
}


def finish(job: JobFolder, status: str = "FINISHED") -> None:
    """As the process of a job does."""
    run = job.path.parents[3] / "stand_in" / str(job.number)
    run.mkdir(parents=True, exist_ok=True)
    job.note(run=str(run), started=1.0, ended=2.0, status=status)
    (run / "results.json").write_text(json.dumps(RESULTS), encoding="utf-8")
    (run / "status.json").write_text(json.dumps({"status": status}), encoding="utf-8")


class Performed:
    """Stands in for `perform`; remembers which jobs it was asked for."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.does: Callable[[JobFolder], None] = finish

    def __call__(self, path: Path, number: int, launcher: str) -> None:
        self.numbers.append(number)
        self.does(SweepFolder(path).jobs[number])


@pytest.fixture
def performed(monkeypatch: pytest.MonkeyPatch) -> Performed:
    stand_in = Performed()
    monkeypatch.setattr(jobs, "perform", stand_in)
    return stand_in


def begin(*given: str) -> Path:
    return searched("task=search", CHOICES, *QUIET, "search.budget.candidates=2", *given)


def interrupted(*given: str) -> Path:
    with pytest.raises(KeyboardInterrupt) as stopped:
        begin(*given)
    return Path(stopped.value.run_dir)  # type: ignore[attr-defined]


def log_of(path: Path) -> Log:
    return Log.read(path / "candidates.jsonl")


def test_every_candidate_is_a_job_with_its_overrides(performed: Performed) -> None:
    both = threading.Barrier(2, timeout=30)  # it breaks unless two are at work at once

    def together(job: JobFolder) -> None:
        both.wait()
        finish(job)

    performed.does = together
    path = begin("pretrain.epochs=3", "search.slots=2", "search.at_once=2")
    assert sorted(performed.numbers) == [0, 1]
    log = log_of(path)
    assert {s.scores["accuracy"] for s in log.told} == {60.0}
    assert (log.spent.seconds, log.spent.images) == (6.0, 80.0)
    assert log.spent.training_macs == 2 * 70_000
    for candidate, job in zip(log.candidates, SweepFolder(path).jobs, strict=True):
        config = job.config
        assert (config.task, config.pretrain.epochs, config.search.choices) == ("pipeline", 3, {})
        assert config.optimizer.lr == candidate.point["optimizer.lr"]
        assert config.ssl.temperature == candidate.point["ssl.temperature"]
        assert not config.report.at_end
        assert Path(config.paths.output_dir).is_absolute()


def test_a_failed_job_is_recorded_with_its_reason(performed: Performed) -> None:
    def fail(job: JobFolder) -> None:
        finish(job)
        if job.number == 1:
            finish(job, "FAILED")
            job.note(reason="it diverged")

    performed.does = fail
    result = log_of(begin()).result(1)
    assert result is not None
    assert result.error == "it diverged"
    assert result.run is not None


def test_a_candidate_that_composes_to_no_config_is_recorded_and_not_run(
    performed: Performed,
) -> None:
    only = "search.choices={evaluation.shots: [[1], [-3]]}"
    path = searched("task=search", only, *QUIET)
    errors = [s.error for s in log_of(path).told if s.error]
    assert len(errors) == 1
    assert "evaluation.shots=-3: it must be at least 1" in errors[0]
    assert len(performed.numbers) == 1


def folder_of(base: Path, *classes: str) -> str:
    """Images of one's own, for `dataset.root`."""
    for name in classes:
        for number in range(12):
            path = base / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (16, 16), 10 * number + ord(name) % 10).save(path)
    return f"{base}"


def test_images_that_no_candidate_could_use_are_said_once(
    performed: Performed, tmp_path: Path
) -> None:
    one = folder_of(tmp_path / "one", "a")
    closed = ("dataset=folder", "dataset.split_by=images", "evaluation=knn")
    with pytest.raises(UserError, match="all images are of one class, a"):
        begin(*closed, f"dataset.root={one}")
    few = ("dataset=folder", f"dataset.root={one}")
    with pytest.raises(UserError, match="there is one class"):
        begin(*few)
    folder_of(tmp_path / "split" / "train", "a")
    folder_of(tmp_path / "split" / "val", "b", "c")
    with pytest.raises(UserError, match="finetune=linear needs labels of two classes"):
        begin(*few[:1], f"dataset.root={tmp_path}/split", "finetune=linear")
    given = ("evaluation.ways=2", "evaluation.shots=[1]", "evaluation.queries=5")
    tuned = ("finetune=linear", "finetune.ways=2", "finetune.shots=1", *given)
    with pytest.raises(UserError, match="the train split has 1 class"):
        begin(*few[:1], f"dataset.root={tmp_path}/split", *tuned)
    assert performed.numbers == []
    assert not [*tmp_path.glob("runs/searches/*/candidates.jsonl")]


def test_where_points_choose_the_images_each_candidate_says_its_own(
    performed: Performed, tmp_path: Path
) -> None:
    roots = [folder_of(tmp_path / "one", "a"), folder_of(tmp_path / "two", "a", "b", "c")]
    chosen = f"search.choices={{dataset.root: [{','.join(roots)}]}}"
    given = ("dataset=folder", f"dataset.root={roots[0]}", "dataset.split_by=images")
    searched("task=search", chosen, *QUIET, *given, "evaluation=knn", "search.budget.candidates=2")
    assert sorted(performed.numbers) == [0, 1]


def test_test_classes_are_never_evaluated(performed: Performed) -> None:
    with pytest.raises(UserError, match="must not see test classes"):
        begin("evaluation.split=test")
    assert performed.numbers == []


def test_an_interrupted_search_lets_no_further_job_begin(
    performed: Performed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(self: Any) -> Scored:
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs.Jobs, "result", stopped)
    path = interrupted()
    assert status_of(path)["status"] == "INTERRUPTED"
    assert SweepFolder(path).stopped is not None


def test_a_search_that_was_killed_trains_nothing_twice(
    performed: Performed, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = begin("search.slots=2", "search.at_once=2")
    whole = (path / "candidates.jsonl").read_text(encoding="utf-8")
    lines = whole.splitlines(keepends=True)
    first = next(n for n, line in enumerate(lines) if '"scored"' in line)
    # Killed before it was told of any result, though all but job 1 had finished.
    (path / "candidates.jsonl").write_text("".join(lines[:first]), encoding="utf-8")
    SweepFolder(path).jobs[1].forget()
    (path / "status.json").write_text('{"status": "RUNNING"}', encoding="utf-8")
    performed.numbers.clear()
    searched(*continued([f"resume={path}"]), f"resume={path}")
    assert performed.numbers == [1]
    assert log_of(path).lines() == Log.read(_written(path, whole)).lines()


def _written(path: Path, text: str) -> Path:
    other = path / "other.jsonl"
    other.write_text(text, encoding="utf-8")
    return other


def test_a_job_that_a_killed_search_has_left_at_work_is_waited_for(
    performed: Performed, tmp_path: Path
) -> None:
    path = begin("search.budget.candidates=1")
    job = SweepFolder(path).jobs[0]
    job.note(status=None)
    run = job.run
    assert run is not None
    (run / "status.json").write_text('{"status": "RUNNING"}', encoding="utf-8")
    lock = FileLock(run / ".lock")
    lock.acquire()
    performed.numbers.clear()
    evaluator = jobs.Jobs.__new__(jobs.Jobs)
    evaluator._path, evaluator._arm, evaluator._numbers = path, "", {("", 0): 0}
    evaluator._results = jobs.queue.Queue()
    evaluator._space = timed(choices_space({"x": [1]}), lambda point: 4.5)
    candidate = log_of(path).candidates[0]
    thread = threading.Thread(target=evaluator._perform, args=(candidate,))
    thread.start()
    time.sleep(0.1)
    assert evaluator._results.empty()
    assert performed.numbers == []
    (run / "status.json").write_text('{"status": "FINISHED"}', encoding="utf-8")
    lock.release()
    thread.join()
    scores = evaluator._results.get().scores
    assert (scores["accuracy"], scores["latency_ms"]) == (60.0, 4.5)  # that of the table
    assert performed.numbers == []


def test_a_space_that_says_nothing_to_a_run_is_refused(
    performed: Performed, tmp_path: Path
) -> None:
    target = f"space.target={own(tmp_path)}:line"
    with pytest.raises(UserError, match="the points of space=own are no settings of a run"):
        searched("task=search", *QUIET, "space.name=own", target)


OPERATION = """
from torch import nn
from sseg_nase.nets.ops import register

@register("{name}")
def one_by_one(in_channels, out_channels, stride):
    return nn.Conv2d(in_channels, out_channels, 1, stride)
"""


def test_jobs_know_the_operations_of_ones_own(performed: Performed, tmp_path: Path) -> None:
    (tmp_path / "my_ops.py").write_text(OPERATION.format(name="mine_1x1"), encoding="utf-8")
    settings = "space.settings={cells: 1, width: 4, operations: [mine_1x1, skip_connect]}"
    given = ["space=darts", settings, "space.imports=my_ops.py", "dataset.image_size=16"]
    path = searched("task=search", *given, *QUIET, "search.budget.candidates=1")
    backbone = SweepFolder(path).jobs[0].config.backbone
    assert backbone.imports == str(tmp_path / "my_ops.py")
    OPERATIONS.pop("mine_1x1")
    own_files._once.cache_clear()  # as in the process of a job
    network = build(configured(backbone, 16))
    assert "mine_1x1" in str(network.architecture)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("none.py", "none.py: there is no such file"),
        ("ops.txt", "give a file of Python code"),
        ("bad.py", r"it cannot be imported \(ZeroDivisionError"),
    ],
)
def test_a_file_of_operations_that_cannot_be_imported_is_said(file: str, said: str) -> None:
    Path("bad.py").write_text("1 / 0", encoding="utf-8")
    with pytest.raises(UserError, match=said) as refused:
        load_and_describe(f"backbone.imports={file}")
    assert str(refused.value).startswith(f"backbone.imports={file}")
    with pytest.raises(UserError, match=said):  # before the checkpoint is built
        run(load(["task=evaluate", "checkpoint=none.pt", *SEARCHED, f"backbone.imports={file}"]))


SEARCHED = ("backbone=searched", "evolution=none", "sparsity=none", "hardware=cpu",
            "tracking=jsonl")  # fmt: skip


def load_and_describe(*given: str) -> None:
    configured(load([*SEARCHED, *given]).backbone, 16)


def test_jobs_get_what_is_not_the_searchs_own() -> None:
    given = ["task=search", "++search.choices={a: 1}", "strategy=gp", "strategy.pool=3", "resume=x",
             "space=own", "evaluator=run", "sweep.retries=1", "hydra/launcher=joblib"]  # fmt: skip
    kept = ["experiment=search_digits", "paths.output_dir=x", "ssl=byol", "tracking=jsonl"]
    assert of_jobs([*given, *kept]) == kept


def test_a_fidelity_is_an_override() -> None:
    asked = Candidate(0, {}, "", {"epochs": 9, "resolution": 16})
    assert fidelity_overrides(asked) == ["pretrain.epochs=9", "dataset.image_size=16"]
    with pytest.raises(UserError, match="fidelity depth: a run has epochs"):
        fidelity_overrides(Candidate(0, {}, "", {"depth": 1}))
    load([f"{key}=16" for key in FIDELITY_KEYS.values()])


HALVING = ("strategy=halving", "strategy.least=1", "strategy.most=4", "strategy.eta=2",
           "strategy.candidates=4")  # fmt: skip


def trained(job: JobFolder) -> None:
    """As a run does that has its last checkpoint, and counts what it has seen over all epochs."""
    run, epochs = job.run, job.config.pretrain.epochs
    if run is None:
        finish(job)
        run = job.run
        assert run is not None
        (run / "checkpoints").mkdir()
        (run / "checkpoints" / "finetune_last.pt").write_bytes(b"tuned")
        seen = 0
    else:
        assert status_of(run)["status"] == "INTERRUPTED"
        assert not (run / "results.json").exists()
        assert not (run / "checkpoints" / "finetune_last.pt").exists()
        seen = int((run / "checkpoints" / "last.pt").read_text())
        assert job.config.resume_overrides
    (run / "checkpoints" / "last.pt").write_text(str(epochs))
    (run / "trained.txt").write_text(f"{seen} to {epochs}")
    images = {"synthetic": 100 * epochs, "real_unlabeled": 0, "real_labeled": 7}
    macs = {"total": 1000 * epochs + 50, "student": 1000 * epochs}
    macs |= {"finetune_linear": 30, "finetune_prototypical": 20}
    results = RESULTS | {"images_seen": images, "training_macs": macs}
    (run / "results.json").write_text(json.dumps(results), encoding="utf-8")
    (run / "status.json").write_text('{"status": "FINISHED"}', encoding="utf-8")


def test_a_promoted_candidate_goes_on_from_its_own_checkpoint(performed: Performed) -> None:
    """Both rungs; the run before stays as it was, and what it took is not counted again."""
    performed.does = trained
    path = begin(*HALVING, "search.budget.candidates=7")
    log = log_of(path)
    assert [s.error for s in log.told] == [None] * 7
    ways = {}
    for scored in log.told:
        candidate = scored.candidate
        assert scored.run is not None
        told = (Path(scored.run) / "trained.txt").read_text()
        ways.setdefault(candidate.fidelity["epochs"], set()).add(told)
        before = 0 if not candidate.parents else candidate.fidelity["epochs"] // 2
        epochs = candidate.fidelity["epochs"] - before
        assert scored.cost.images == 100 * epochs + 7  # the fine-tuning is done again
        assert scored.cost.training_macs == 1000 * epochs + 50
    assert ways == {1: {"0 to 1"}, 2: {"1 to 2"}, 4: {"2 to 4"}}
    runs = [job.run for job in SweepFolder(path).jobs]
    assert len({*runs}) == 7
    # Killed before it was told of the last: that is read, and not copied again.
    lines = (path / "candidates.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (path / "candidates.jsonl").write_text("".join(lines[:-1]), encoding="utf-8")
    (path / "status.json").write_text('{"status": "RUNNING"}', encoding="utf-8")
    performed.numbers.clear()
    searched(*continued([f"resume={path}"]), f"resume={path}")
    assert performed.numbers == []
    assert log_of(path).lines() == log.lines()
    assert [job.run for job in SweepFolder(path).jobs] == runs


@pytest.mark.parametrize(
    ("fidelity", "key", "goes"),
    [
        ({"epochs": 9}, "a", True),
        ({"epochs": 9}, "b", False),  # another network
        ({"epochs": 3}, "a", False),  # the same run
        ({"epochs": 1}, "a", False),  # epochs cannot be undone
        ({"images": 9}, "a", False),
    ],
)
def test_what_goes_on_from_a_checkpoint(fidelity: Any, key: str, goes: bool) -> None:
    before = {"key": "a", "fidelity": {"epochs": 3}}
    assert goes_on(before, Candidate(1, {}, key, fidelity)) is goes


def test_other_images_and_another_resolution_are_another_training() -> None:
    for name in ("images", "resolution"):
        before = {"key": "a", "fidelity": {name: 3}}
        assert not goes_on(before, Candidate(1, {}, "a", {name: 9}))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("search.objectives={acuracy: max}", "no run tells acuracy. Did you mean 'accuracy'"),
        ("search.objectives={latency_ms: min}", "comes from a table: add search.latency=FILE"),
        ("search.caps={energy_mj_b1: 3}", "energy_mj_b1 is not measured here: no counters"),
    ],
)
def test_a_goal_that_no_run_tells_is_refused_before_any_is_started(given: str, said: str) -> None:
    config = load(["task=search", CHOICES, given])
    objectives = Objectives(config.search.objectives or {"accuracy": "max"}, config.search.caps)
    with pytest.raises(UserError, match=said):
        check_goals(config, objectives, "no counters")
    check_goals(config, Objectives({"accuracy/digits/val/5w1s": "max", "macs": "min"}), None)


def test_scores_are_the_mean_accuracy_and_what_the_network_costs() -> None:
    assert scores_of(RESULTS) == {
        "accuracy": 60.0,
        "accuracy/digits/val/5w1s": 50.0,
        "accuracy/digits/val/5w5s": 70.0,
        "params": 1000,
        "macs": 2000,
        "latency_ms_b1": 0.5,
    }


def test_a_training_whose_cost_is_not_known_is_refused_with_the_reason(
    performed: Performed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RESULTS, "training_macs", None)  # as of a checkpoint of an older version
    with pytest.raises(UserError, match=r"training MACs are not known.*finetune\.from"):
        begin()


def test_the_experiment_of_make_search_makes_jobs_of_the_pipeline() -> None:
    config = load(["experiment=search_digits"])
    assert (config.task, config.evaluator.name) == ("search", "run")
    job = load(
        [*of_jobs(["experiment=search_digits"]), "backbone.channels=[8,16]", "task=pipeline"]
    )
    assert job.task == "pipeline"
    assert job.backbone.channels == [8, 16]


def test_no_network_above_a_cap_is_asked_for_or_built() -> None:
    """What a run's network has become is looked at, too: it may have grown above the cap."""
    widths = "search.choices={backbone.channels: [[8,16],[16,32],[64,128]], seed: int(0,3)}"
    given = ["task=search", widths]
    config = load([*given, "search.caps={params: 6000, latency_ms_b1: 2}"])
    parts = parts_of(config, given)
    allowed = {str(point["backbone.channels"]) for point in parts.space.points()}
    assert allowed == {"[8,16]", "[16,32]"}
    assert parts.space.caps == {"params": 6000}
    assert parts.objectives.caps == {"params": 6000, "latency_ms_b1": 2}
    config = dataclasses.replace(
        config, search=dataclasses.replace(config.search, caps={"params": 1000})
    )
    with pytest.raises(UserError, match=r'the smallest has params = 1,416 .*"\[8,16\]"'):
        parts_of(config, given)
