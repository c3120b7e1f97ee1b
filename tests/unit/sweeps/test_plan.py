from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import pytest

from sseg_nase.config import compose
from sseg_nase.config.compose import load, stored
from sseg_nase.config.fingerprint import fingerprint
from sseg_nase.config.multirun import expand, launcher, split, swept
from sseg_nase.errors import UserError
from sseg_nase.provenance import code
from sseg_nase.rundir.directory import RunDirectory
from sseg_nase.sweeps.folder import SweepFolder, create, looked_at, same_as, sweeps_in
from sseg_nase.sweeps.launch import launch
from sseg_nase.sweeps.plan import NAME_LENGTH, plan

RUN_TIME = "%Y%m%d-%H%M%S"

planned = functools.cache(lambda overrides: plan(overrides))  # composing takes a while


def made(output_dir: Path, *overrides: str) -> SweepFolder:
    """A sweep on disk, none of whose jobs has begun."""
    title, jobs = planned(overrides)
    paths = dataclasses.replace(jobs[0].config.paths, output_dir=str(output_dir))
    jobs = [
        dataclasses.replace(job, config=dataclasses.replace(job.config, paths=paths))
        for job in jobs
    ]
    first = jobs[0].config
    return create(
        output_dir,
        jobs,
        title=title,
        shared=[],
        settings=first.sweep,
        tracking=first.tracking,
        code=code.describe(),
        diff="a diff",
    )


def test_all_combinations_in_the_order_of_the_command_line() -> None:
    jobs = expand(["ablation=A1,A2", "debug=tiny", "seed=range(0,2)", "hydra/launcher=joblib"])
    assert jobs == [
        [f"ablation={ablation}", "debug=tiny", f"seed={seed}"]
        for ablation in ("A1", "A2")
        for seed in (0, 1)
    ]
    assert swept(jobs) == ["ablation", "seed"]


def test_a_list_is_one_value_and_a_choice_may_hold_lists() -> None:
    jobs = expand(["evaluation.shots=[1,5]", "backbone.channels=[16,32],[8,8]"])
    assert [job[1] for job in jobs] == ["backbone.channels=[16,32]", "backbone.channels=[8,8]"]


def test_params_of_an_experiment_count_and_the_command_line_wins(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\nhydra: {sweeper: {params: {seed: '0,1', ablation: 'A1,A2'}}}\n"
    )
    jobs = expand(["experiment=mine", "ablation=A3"], tmp_path)
    assert [job[0] for job in jobs] == ["seed=0", "seed=1"]
    assert {tuple(job[1:]) for job in jobs} == {("experiment=mine", "ablation=A3")}


def test_what_holds_for_the_whole_sweep_has_one_value() -> None:
    with pytest.raises(UserError, match=r"sweep\.retries=1,2: it is said once"):
        expand(["seed=0,1", "sweep.retries=1,2"])


def test_another_sweeper_is_refused_and_a_launcher_is_found() -> None:
    with pytest.raises(UserError, match=r"other\.Sweeper chooses jobs by the results of others"):
        expand(["hydra.sweeper._target_=other.Sweeper", "seed=0,1"])
    assert launcher([]) == "BasicLauncher"
    assert launcher(["hydra/launcher=joblib"]) == "JoblibLauncher"


def test_a_key_differs_however_it_is_written() -> None:
    assert swept([["++seed=0", "+x=1"], ["seed=1", "+x=1"]]) == ["seed"]


def test_overrides_are_told_apart() -> None:
    hydras, sweeps, jobs = split(["hydra/launcher=joblib", "sweep.retries=1", "seed=0,1"])
    assert (hydras, sweeps, jobs) == (
        ["hydra/launcher=joblib"], ["sweep.retries=1"], ["seed=0,1"],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "title", "labels", "configurations"),
    [
        (
            ["ablation=A1,A2", "seed=0,1", "debug=tiny"],
            "ablation=A1,A2 seed=0,1",
            [
                "ablation=A1 seed=0",
                "ablation=A1 seed=1",
                "ablation=A2 seed=0",
                "ablation=A2 seed=1",
            ],
            ["ablation=A1", "ablation=A1", "ablation=A2", "ablation=A2"],
        ),
        (["seed=0,1", "debug=tiny"], "seed=0,1", ["seed=0", "seed=1"], ["debug=tiny"] * 2),
        (["seed=0,1"], "seed=0,1", ["seed=0", "seed=1"], ["sseg_nase"] * 2),
        (["ablation=A3", "seed=4"], "ablation=A3 seed=4", ["ablation=A3"], ["ablation=A3"]),
        (
            ["ablation=A1,A2", "seed=4", "debug=tiny"],
            "ablation=A1,A2 seed=4",
            ["ablation=A1", "ablation=A2"],
            ["ablation=A1", "ablation=A2"],
        ),
    ],
)
def test_jobs_are_named_by_what_they_differ_in(
    overrides: list[str], title: str, labels: list[str], configurations: list[str]
) -> None:
    found, jobs = plan(overrides)
    assert found == title
    assert [job.label for job in jobs] == labels
    assert [job.configuration for job in jobs] == configurations


def test_every_job_with_a_mistake_is_named_before_any_starts() -> None:
    with pytest.raises(UserError) as raised:
        plan(["seed=0,-1,-2", "ssl=none,simclr"])
    text = str(raised.value)
    assert text.startswith("no job was started; 5 mistakes:")
    assert "job 2 (seed=-1 ssl=none)" in text


def test_of_many_mistakes_a_handful_is_told_and_the_rest_counted() -> None:
    with pytest.raises(UserError) as raised:
        plan(["seed=range(-9,-2)"])
    text = str(raised.value)
    assert [f"job {number} (" in text for number in range(7)] == [True] * 5 + [False] * 2
    assert "and 2 jobs more" in text


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["seed=0,1,0"], r"jobs 0 \(seed=0\) and 2 \(seed=0\) are the same"),
        (["task=status", "seed=0,1"], r"task=status: .*leave -m out"),
        (["task=deliver,status", "run=a"], r"no job was started|leave -m out"),
        (["resume=runs/x", "seed=0,1"], r"resume: .*leave"),
        (["resume=null,runs/x"], r"resume: .*leave"),
    ],
)
def test_what_is_no_job_of_a_sweep_is_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        plan(overrides)


def test_jobs_are_recorded_in_one_store_wherever_they_run() -> None:
    for job in plan(["seed=0,1", "tracking=mlflow", "tracking.uri=sqlite:///here.db"])[1]:
        assert job.config.tracking.uri == f"sqlite:///{Path.cwd()}/here.db"
    for job in plan(["seed=0,1", "tracking=jsonl"])[1]:
        assert not hasattr(job.config.tracking, "uri")


def test_jobs_know_no_password_and_are_named_without_it() -> None:
    address = "http://me:s3cret-enough@127.0.0.1:9"
    given = ["tracking=server", f"tracking.uri='{address}','{address}0'"]
    title, jobs = plan(given)
    for said in (title, *(repr(job) for job in jobs)):
        assert "s3cret" not in said
    assert [job.config.tracking.uri for job in jobs] == [
        "http://127.0.0.1:9",
        "http://127.0.0.1:90",
    ]


def test_names_are_no_longer_than_a_table_takes() -> None:
    values = ",".join(f"a-data-set-{number:03}" for number in range(12))
    title, jobs = plan([f"experiment_name={values}", "tracking=jsonl"])
    assert len(title) == NAME_LENGTH
    assert len({one.label for one in jobs}) == 12


def test_places_are_no_part_of_a_name() -> None:
    title, (job,) = plan(["paths.output_dir=elsewhere", "tracking=jsonl", "debug=tiny", "seed=3"])
    assert (title, job.label, job.configuration) == ("debug=tiny seed=3", *["debug=tiny"] * 2)


def test_jobs_are_composed_with_the_folders_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 7\n")
    _, (job,) = plan(["experiment=mine"], tmp_path)
    assert job.config.seed == 7


def test_a_frozen_job_is_the_config_that_was_composed(tmp_path: Path) -> None:
    sweep = made(tmp_path / "runs", "ablation=A7", "seed=0,1", "debug=tiny")
    assert (sweep.path / "code.diff").read_text() == "a diff"
    for seed, job in enumerate(sweep.jobs):
        composed = load(["ablation=A7", f"seed={seed}", "debug=tiny"])
        assert (
            dataclasses.replace(job.config, paths=composed.paths, tracking=composed.tracking)
            == composed
        )
        assert job.fingerprint == fingerprint(composed) == fingerprint(job.config)
        assert Path(job.config.paths.cache_dir).is_absolute()


def test_a_frozen_config_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    with pytest.raises(UserError, match="cannot be read"):
        stored(path)
    path.write_text("- a\n")
    with pytest.raises(UserError, match="does not fit this version"):
        stored(path)
    path.write_text("learning_rate: 1\n")
    with pytest.raises(UserError, match="learning_rate: there is no such key"):
        stored(path)


@pytest.mark.slow
def test_the_same_jobs_are_the_same_sweep(tmp_path: Path) -> None:
    first = made(tmp_path, "ablation=A1,A2", "seed=0,1")
    _, jobs = plan(["ablation=A1,A2", "seed=0,1", "sweep.parallel=7", "tracking=jsonl"])
    found = same_as(jobs, tmp_path)
    assert found is not None
    assert found.path == first.path
    for other in (
        ["ablation=A1,A2", "seed=0,1,2"],
        ["ablation=A1,A2", "seed=0,1", "optimizer.lr=1"],
    ):
        assert same_as(plan(other)[1], tmp_path) is None
    second = made(tmp_path, "ablation=A1,A2", "seed=0,1")
    assert [s.path for s in sweeps_in(tmp_path)] == [first.path, second.path]
    assert looked_at("LAST", tmp_path).path == looked_at(None, tmp_path).path == second.path
    with pytest.raises(UserError, match="there is no sweep in"):
        looked_at(None, tmp_path / "nowhere")


def test_a_sweep_is_launched_by_one_process_at_a_time(tmp_path: Path) -> None:
    sweep = made(tmp_path, "seed=0,1")
    other = SweepFolder(sweep.path)
    assert not other.launched()
    with sweep.launching():
        sweep.begin_launch(sweep.settings, "0")
        assert other.launched()
        with pytest.raises(UserError, match="it is being run by"), other.launching():
            pass
    assert not other.launched()
    with other.launching():
        pass


def test_what_has_changed_in_the_code_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    before = code.describe()
    assert code.changed_since(before) == []
    assert "conf/config.yaml" in before["files"]
    files = {**before["files"], "conf/config.yaml": "0", "sseg_nase/gone.py": "1"}
    assert code.changed_since({"files": files}) == ["conf/config.yaml", "sseg_nase/gone.py"]


def test_the_latest_sweep_is_the_one_that_was_made_last(tmp_path: Path) -> None:
    """Names are times of some machine: local ones once, and clocks are set back."""
    first = made(tmp_path, "seed=0,1")
    renamed = first.path.with_name("2099-01-01_00-00-00_aaaaaa")
    first.path.rename(renamed)
    second = made(tmp_path, "seed=0,1")
    assert second.path.name < renamed.name
    assert [sweep.path for sweep in sweeps_in(tmp_path)] == [renamed, second.path]
    assert looked_at(None, tmp_path).path == looked_at("LAST", tmp_path).path == second.path
    found = same_as(plan(["seed=0,1"])[1], tmp_path)
    assert found is not None
    assert found.path == second.path


def test_names_are_times_of_no_time_zone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for zone in ("Asia/Tokyo", "America/Los_Angeles"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        sweep = made(tmp_path, "seed=0,1")
        run = RunDirectory.create(load([f"paths.output_dir={tmp_path}"]), [])
        run.release()
        for name, form in ((sweep.name[:19], "%Y-%m-%d_%H-%M-%S"), (run.path.name[:15], RUN_TIME)):
            named = datetime.strptime(name, form).replace(tzinfo=timezone.utc)
            assert abs((named - datetime.now(timezone.utc)).total_seconds()) < 600
    monkeypatch.undo()
    time.tzset()


def test_a_rehearsal_says_what_would_become_of_every_job(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["seed=0,1,2", f"paths.output_dir={tmp_path}", "tracking=jsonl"]
    sweep = made(tmp_path, *given)
    for number, status in ((0, "FINISHED"), (1, "INTERRUPTED")):
        run = tmp_path / "x" / str(number)
        run.mkdir(parents=True)
        (run / "status.json").write_text(json.dumps({"status": status}))
        sweep.jobs[number].note(run=str(run))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    def rehearsed(*overrides: str) -> list[str]:
        assert launch([*overrides, "sweep.dry_run=true"], lambda overrides: None, print) == 0
        shown = capsys.readouterr().out.splitlines()
        assert str(sweep.path) in shown[0]
        return [line.strip() for line in shown[2:7:2]]

    wanted = [
        f"is FINISHED in {tmp_path}/x/0: would be skipped",
        f"would be resumed in {tmp_path}/x/1",
        "would run",
    ]
    assert rehearsed(*given) == wanted
    assert rehearsed(f"sweep={sweep.path}") == wanted
    assert rehearsed(f"sweep={sweep.path}", "sweep.rerun=true") == ["would run"] * 3
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_rehearsal_of_a_sweep_in_another_order_tells_of_its_own_jobs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = made(tmp_path, "seed=0,1", f"paths.output_dir={tmp_path}", "tracking=jsonl")
    run = tmp_path / "x"
    run.mkdir()
    (run / "status.json").write_text(json.dumps({"status": "INTERRUPTED"}))
    sweep.jobs[0].note(run=str(run))
    given = ["seed=1,0", f"paths.output_dir={tmp_path}", "tracking=jsonl", "sweep.dry_run=true"]
    assert launch(given, lambda overrides: None, print) == 0
    lines = capsys.readouterr().out.splitlines()
    (resumed,) = (n for n, line in enumerate(lines) if "would be resumed" in line)
    assert "seed=0" in lines[resumed - 1]
    assert "MLflow was not asked" not in lines[-1]


def test_keys_that_a_sweep_goes_on_without_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They change no result, so it is the same sweep; its jobs were frozen with others."""
    place = f"paths.output_dir={tmp_path}"
    made(tmp_path, "seed=0,1", place, "tracking=jsonl")
    said = list[str]()
    asked = ["seed=0,1", place, "tracking=server", "tracking.uri=http://h:1", "sweep.dry_run=true"]
    launch(asked, lambda overrides: None, said.append)
    assert "tracking.name=jsonl and not tracking.name=server" in said[0]
    assert "sweep.rerun=true" in said[0]
    said.clear()
    launch(["seed=0,1", place, "tracking=jsonl", asked[-1]], lambda overrides: None, said.append)
    assert said == []


def test_values_that_are_given_twice_are_named() -> None:
    with pytest.raises(UserError, match=r"jobs 0 \(seed=0\) and 1 \(seed=0\) are the same"):
        plan(["debug=tiny", "seed=0,0"])


def test_values_that_have_no_effect_are_said(tmp_path: Path) -> None:
    said = list[str]()
    place = [f"paths.output_dir={tmp_path}", "tracking=jsonl", "sweep.dry_run=true"]
    launch(["seed=0,1", *place, "seed=2,3"], lambda overrides: None, said.append)
    assert said == ["seed=0,1 is not used: seed=2,3 stands behind it"]
    with pytest.raises(UserError, match="what is to be swept"):
        launch(["sweep.parallel=1"], lambda overrides: None, print)


@pytest.mark.slow
def test_a_plan_that_takes_long_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    said = list[str]()
    plan(["debug=tiny", "seed=range(0,7)"], say=said.append)
    assert said == []
    monkeypatch.setattr("sseg_nase.sweeps.plan.LONG", 0.01)
    plan(["debug=tiny", "seed=range(0,7)"], say=said.append)
    assert len(said) == 1
    assert "7 jobs are composed and checked first" in said[0]


def test_jobs_that_differ_behind_a_long_name_are_two_configurations() -> None:
    long = "experiment_name=" + 120 * "x"
    _, jobs = plan(["debug=tiny", f"{long}1,{long.partition('=')[2]}2", "seed=0,1"])
    assert len({job.configuration for job in jobs}) == 2
    assert len({job.label for job in jobs}) == 4
    assert all(len(job.label) <= 120 for job in jobs)


@pytest.mark.slow
def test_a_plan_composes_the_options_of_its_groups_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And every job has the config that it would have alone."""
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\nexperiment_name: mine\npretrain: {epochs: 7}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    lines = ["debug=tiny", "experiment=mine", "ablation=A2,A3", "seed=0,1,2", "optimizer.lr=0.1"]
    lines += ["~curriculum.images.OBJECT", "curriculum.levels=[BASIC]", "++evaluation.shots=[1]"]
    alone = [load(job, tmp_path) for job in expand(lines, tmp_path)]
    calls, composed = list[object](), compose._composed
    monkeypatch.setattr(compose, "_composed", lambda given: calls.append(given) or composed(given))
    _, jobs = plan(lines, tmp_path)
    assert [job.fingerprint for job in jobs] == [fingerprint(config) for config in alone]
    assert [job.config.pretrain for job in jobs] == [config.pretrain for config in alone]
    assert len(calls) == 2
    with pytest.raises(UserError, match=r"job 0 .*pretrain\.epoch: .*'pretrain\.epochs'"):
        plan(["pretrain.epoch=1,2"])


@pytest.mark.parametrize("given", [["sweep.parallel=2"], ["sweep.parallel=1"]])
def test_jobs_that_run_one_after_another_are_said_to(tmp_path: Path, given: list[str]) -> None:
    said, launched = list[str](), list[list[str]]()
    place = [f"paths.output_dir={tmp_path}", "tracking=jsonl", "debug=tiny"]

    def hydra(overrides: Sequence[str]) -> None:
        launched.append(list(overrides))

    launch(["seed=0,1", *place, *given], hydra, said.append)
    assert len(launched) == 1
    told = [line for line in said if line.startswith("one job after another")]
    assert bool(told) == (given == ["sweep.parallel=2"])
    assert all("hydra/launcher=joblib runs sweep.parallel=2 at once" in line for line in told)
