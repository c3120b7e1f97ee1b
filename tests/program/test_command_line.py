"""What is typed: Hydra's own flags, sweeps in few words, LAST, a rehearsal, the first line."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import sseg_nase
from sseg_nase import __main__ as process
from sseg_nase import cli as entry
from sseg_nase.config.commands import command
from sseg_nase.config.conf_files import groups
from sseg_nase.config.multirun import expand
from sseg_nase.reporting.selection import last_made

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run the program in this process; returns exit code, standard output and error."""

    def invoke(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sseg-nase", *arguments])
        with pytest.raises(SystemExit) as ended:
            entry.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # restored afterwards
    return invoke


def test_what_is_given_to_a_part_that_is_switched_off_is_said(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    run: list[object] = []
    monkeypatch.setattr("sseg_nase.run.run", lambda *given, **more: run.append(given))
    off = ["ablation=A1", "finetune=none", "ssl=none", "evolution=none", "sparsity=none"]
    given = ["finetune.epochs=3", "pretrain.epochs=2", "optimizer.lr=0.01", "sparsity.ratio=0.5",
             "evolution.enabled=false"]  # fmt: skip
    code, _, said = cli("debug=tiny", *off, *given, "curriculum.images={BASIC: 9}")
    assert (code, len(run)) == (0, 1)
    told = [line.partition(": ")[2] for line in said.splitlines() if "no effect" in line]
    assert told == [
        "finetune.epochs: it has no effect with finetune=none.",
        "pretrain.epochs: it has no effect with ssl=none.",
        "sparsity.ratio: it has no effect with sparsity=none.",
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--experimental-rerun", "x"], "resume=RUN_DIR"),
        (["--config-name", "x"], "experiment=NAME"),
        (["--config-path", "x", "seed=0"], "--config-dir DIR"),
        (["--package", "optimizer", "seed=0"], "only with --cfg"),
        (["--cfg", "job", "--package", "nothing"], ""),
        (["--cfg", "hydra", "--resolve"], "--cfg job --resolve"),
        (["--cfg", "all", "--resolve"], "--cfg job --resolve"),
        (["--config-dir", "", "--cfg", "job"], "--config-dir '': there is no such folder"),
        (["--info", "config", "seed=-1"], "seed=-1"),
        (["--shell-completion", "install=nope"], "install=bash"),
        (["--shell-completion", "query=bash"], "it is the shell that asks"),
        (["-r"], "resume=LAST"),
        (["hydra.verbose=3", "seed=0"], "hydra.verbose=[hydra,sseg_nase]"),
        (["-m", "hydra.verbose=[1]", "seed=0,1"], "true, false, or the names of loggers"),
        (["optimizér.lr=1"], "Did you mean 'optimizer.lr'"),
        (["-m", "hydra.sweeper.params.seed=0,1"], "one value, or several to seed itself"),
        (["-m", "hydra.launcher.n_jobs=1,2", "seed=0,1"], "once for the whole sweep"),
        (["hydra.run.dir=/proc/x", "seed=0"], "paths.output_dir=DIR"),
        (["hydra.run.dir=foo", "seed=0"], "paths.output_dir=DIR"),
        (["hydra.output_subdir=foo", "seed=0"], "paths.output_dir=DIR"),
        (["-m", "hydra.sweep.dir=foo", "seed=0,1"], "paths.output_dir=DIR"),
        (["hydra.mode=MULTIRUN", "seed=0,1"], "add -m"),
        (["hydra.sweeper.max_batch_size=2", "seed=0"], "add -m"),
        (["hydra/sweeper=basic", "seed=0"], "add -m"),
        (["+hydra.run.dir=foo", "seed=0"], "paths.output_dir=DIR"),
        (["-m", "seed=0", "--cfg", "job"], "only one of these"),
        (["--resolve", "seed=0"], "only with --cfg or --help"),
        (["-m", "hydra.sweeper.params={seed: '1,2'}"], "as in seed=0,1"),
        (["-m", "+hydra.sweeper.params.seed='1,2'"], "as in seed=0,1"),
        (["-m", "hydra.sweeper.params.seed='1,2'"], "as in seed=0,1"),
        (["-m", "seed=range(3,0)"], "seed=range(3,0): it has no value"),
        (["-m", "seed=0,1,0"], "jobs 0 (seed=0) and 2 (seed=0) are the same"),
        (["-m", "optimizer.lr=0.1,1e-1"], "are the same: give every value once"),
        (["-m"], "what is to be swept?"),
        (["=1"], "an override is written key=value"),
        (["hydra.job.chdir=perhaps", "seed=0"], "hydra.job.chdir"),
        (["hydra/job_logging=nothing", "seed=0"], "job_logging"),
        (["ablation=A1,A2"], "several values are a sweep; add -m."),
        (["evaluation.shots=1,5"], "evaluation.shots=[1,5]"),
        (["tracking.experiment=a,b"], """'tracking.experiment="a,b"'"""),
        (["seed=range(3)"], "add -m"),
        (["ablation=glob(A*)"], "add -m"),
        (["~tracking"], "write tracking=jsonl"),
        (["~sparsity"], "write sparsity=none"),
        (["~backbone"], "choose one of autossl_tiny, cnn, conv4"),
        (["-m", "optimizer.lr=interval(0.1,1)"], "optimizer.lr=range(0.1,1.0,STEP)"),
        (["-m", "ablation=glob(B*)"], "no option matches; ablation has A1"),
        (["-m", "seed=glob(*)"], "chooses among the options of a group"),
        (["-m", "ablation=glob(A[12])"], 'ablation=glob("A[12]")'),
        (["resume=LAST"], "resume=LAST: there is no run in runs yet"),
        (["task=replay", "run=LAST"], "run=LAST: there is no run in runs yet"),
    ],
)
def test_a_mistake_is_one_message_and_leaves_nothing(
    cli: Cli, arguments: list[str], said: str
) -> None:
    code, shown, error = cli(*arguments)
    assert (code, shown) == (2, "")
    assert said in error
    assert len(error.splitlines()) == 1
    assert "Traceback" not in error
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("error", [OSError(2, "No such file", "x"), ValueError("x"), KeyError("x")])
def test_what_hydra_raises_is_a_mistake(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(flag: str | None, overrides: object) -> None:
        raise error

    monkeypatch.setattr(entry, "_hydra", broken)
    code, _, said = cli("hydra.verbose=true")
    assert code == 2
    assert said.startswith("sseg-nase: hydra.verbose=true: Hydra cannot do this: ")
    assert "Traceback" not in said


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_the_version_is_ours(cli: Cli, flag: str) -> None:
    assert cli(flag) == (0, f"sseg-nase {sseg_nase.__version__}\n", "")


def test_flags_may_stand_between_overrides(cli: Cli) -> None:
    code, shown, said = cli("debug=tiny", "-c", "job", "seed=3")
    assert (code, said) == (0, "")
    assert "seed: 3" in shown.splitlines()
    code, shown, said = cli("debug=tiny", "-m", "seed=0,1", "sweep.dry_run=true")
    assert (code, said) == (0, "")
    assert shown.startswith("a new sweep: 2 jobs, seed=0,1\n")


def test_nothing_given_shows_the_help(cli: Cli) -> None:
    code, shown, said = cli()
    assert (code, said) == (0, "")
    assert shown == entry.help_text() + "\n"


@pytest.mark.parametrize(
    ("given", "values"),
    [
        ("ablation=glob(A*)", groups()["ablation"]),
        ("ablation=glob([A1,A2])", ("A1", "A2")),
        ("ablation=glob(A*,exclude=[A1,A2,A3,A4])", ("A5", "A6", "A7")),
        ('ablation=glob("A[12]")', ("A1", "A2")),
        ("ablation=sort(A3,A1)", ("A1", "A3")),
        ("ablation=choice(A1,A2)", ("A1", "A2")),
        ("seed=range(0,6,2)", ("0", "2", "4")),
        ("optimizer.lr=tag(t,choice(0.1,0.2))", ("0.1", "0.2")),
    ],
)
def test_a_sweep_in_few_words(given: str, values: tuple[str, ...]) -> None:
    key = given.partition("=")[0]
    assert [job[0] for job in expand([given])] == [f"{key}={value}" for value in values]


def test_shuffled_values_are_all_there() -> None:
    assert {job[0] for job in expand(["seed=shuffle(range(3))"])} == {"seed=0", "seed=1", "seed=2"}


def test_options_of_a_folder_of_ones_own_match_too(tmp_path: Path) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    for name in ("my_a", "my_b"):
        (tmp_path / "mine" / "experiment" / f"{name}.yaml").write_text("# @package _global_\n")
    jobs = expand(["experiment=glob(my_*)"], tmp_path / "mine")
    assert jobs == [["experiment=my_a"], ["experiment=my_b"]]


# The run and the sweep that were made last


def recorded(name: str, time: float | None, status: str = "INTERRUPTED") -> Path:
    """A run that began at `time`; None: it was stopped before its first event."""
    run = Path("runs/x", name).absolute()
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("seed: 0\n")
    (run / "status.json").write_text(json.dumps({"status": status}))
    if time is not None:
        (run / "events.jsonl").write_text(json.dumps({"time": time, "kind": "open"}) + "\n")
    return run


def test_the_last_run_is_the_one_that_was_made_last() -> None:
    """Not by name, which was local time once, and not by the time of a copy."""
    recorded("20261101-120000-aaaaaa", 100.0)
    last = recorded("20261101-030000-bbbbbb", 200.0)
    os.utime(last / "config.yaml", (1, 1))
    assert last_made("resume", Path("runs")) == last
    unopened = recorded("20261101-010000-cccccc", None)
    assert last_made("resume", Path("runs")) == unopened
    os.utime(unopened / "config.yaml", (150, 150))
    assert last_made("resume", Path("runs")) == last


def test_resume_last_says_which(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    run = recorded("one", 1.0)
    (run / "overrides.yaml").write_text("- optimizer.lr=0.5\n")
    code, shown, said = cli("resume=LAST", "--cfg", "job")
    assert (code, said) == (0, f"sseg-nase: resume=LAST: resume={run}\n")
    assert f"resume: {run}" in shown
    assert "lr: 0.5" in shown
    monkeypatch.chdir(run)
    code, shown, _ = cli("resume=LAST", f"paths.output_dir={run.parents[1]}", "--cfg", "job")
    assert (code, f"resume: {run}" in shown) == (0, True)


@pytest.mark.parametrize("task", ["status", "report"])
def test_where_there_is_no_sweep_single_runs_are_named(cli: Cli, task: str) -> None:
    code, _, said = cli(f"task={task}")
    assert (code, "runs=LAST" in said) == (2, False)
    recorded("one", 1.0)
    code, _, said = cli(f"task={task}")
    assert (code, command(task="report", runs="LAST") in said) == (2, True)


@pytest.mark.parametrize("name", ["My (1), 50%/#2 it's é", "a,b", "[x]"])
def test_a_config_folder_may_have_any_name(cli: Cli, name: str) -> None:
    own = Path(name, "experiment", "mine.yaml")
    own.parent.mkdir(parents=True)
    own.write_text("# @package _global_\nseed: 77\n")
    given = ["--config-dir", name, "experiment=mine"]
    code, shown, said = cli(*given, "--cfg", "job", "--package", "seed")
    assert (code, shown.strip()) == (0, "77"), said
    code, shown, said = cli(*given, "-m", "optimizer.lr=1,2", "sweep.dry_run=true")
    assert (code, "2 jobs" in shown) == (0, True), said


def test_completion_is_installed_and_answers(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    code, shown, _ = cli("-sc", "install=bash")
    assert (code, "hydra_bash_completion" in shown) == (0, True)
    monkeypatch.setenv("COMP_LINE", "sseg-nase dataset=cifar_")
    code, shown, _ = cli("-sc", "query=bash")
    assert (code, shown.split()) == (0, ["dataset=cifar_fs"])
    monkeypatch.setenv("COMP_LINE", "sseg-nase hydra/launcher=j")  # its type is no option
    code, shown, _ = cli("-sc", "query=bash")
    assert (code, shown.split()) == (0, ["hydra/launcher=joblib"])


@pytest.mark.parametrize("arguments", [["seed=0"], ["-m", "seed=0,1"], ["task=status"]])
def test_a_working_directory_that_was_removed_is_named(cli: Cli, arguments: list[str]) -> None:
    Path("gone").mkdir()
    os.chdir("gone")
    Path("../gone").resolve().rmdir()
    code, _, said = cli(*arguments)
    assert (code, "the working directory is not there any more" in said) == (2, True)
    assert "Traceback" not in said


# The rehearsal of a sweep


def test_a_rehearsal_lists_the_jobs_and_writes_nothing(cli: Cli) -> None:
    code, shown, said = cli("-m", "ablation=A1,A2", "seed=3", "debug=tiny", "sweep.dry_run=true")
    assert (code, said) == (0, "")
    assert "a new sweep: 2 jobs, ablation=A1,A2 seed=3\n" in shown
    assert re.search(r"job 1  ablation=A2 seed=3 debug=tiny\n +would run\n", shown)
    assert list(Path().iterdir()) == []
    code, _, said = cli("-m", "ablation=A1,A2", "sweep.dry_run=true", "seed=-1")
    assert (code, "seed=-1" in said) == (2, True)
    code, _, said = cli("sweep.dry_run=true", "seed=0")
    assert (code, "add -m" in said) == (2, True)


# The first line


def test_someone_at_a_terminal_is_told_at_once_that_it_takes_a_while(tmp_path: Path) -> None:
    """Before anything large is imported: the mistake that ends this is found only afterwards."""

    def shown(*arguments: str) -> str:
        ours, theirs = pty.openpty()
        environment = {**os.environ, "PYTHONPATH": str(Path(sseg_nase.__file__).parents[1])}
        subprocess.run(
            [sys.executable, "-m", "sseg_nase", *arguments],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=theirs,
            check=False,
        )
        os.close(theirs)
        try:
            return os.read(ours, 1 << 16).decode()
        except OSError:  # the other side is closed, and nothing was written
            return ""
        finally:
            os.close(ours)

    first, *_ = shown("seed=-1").splitlines()
    assert first == "sseg-nase: loading …"
    assert "loading" not in shown("--version")


def test_it_is_said_only_where_torch_is_loaded_and_someone_looks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(process, "keep_memory", lambda: None)
    monkeypatch.setattr(entry, "main", lambda: None)

    def said(terminal: bool, *arguments: str) -> bool:
        monkeypatch.setattr(sys, "argv", ["sseg-nase", *arguments])
        monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
        process.command()
        return "loading" in capsys.readouterr().err

    assert said(True, "seed=0")
    assert not said(False, "seed=0")
    for looking in ([], ["--help"], ["--cfg", "job"], ["task=status"], ["-m", "seed=0,1"]):
        assert not said(True, *looking)


def test_what_few_runs_need_is_not_loaded_before_it_is_needed() -> None:
    program = (
        "import sys\n"
        "from sseg_nase.run import run\n"
        "assert 'torch._dynamo' not in sys.modules\n"
        "few_need = {'scipy.special', 'scipy.stats', 'sklearn', 'pandas', 'matplotlib', 'mlflow'}\n"
        "assert not few_need & set(sys.modules), few_need & set(sys.modules)\n"
        "import torch, lightning_fabric.wrappers as w\n"
        "from torch import nn\n"
        "assert not isinstance(nn.Identity(), w.OptimizedModule)\n"
        "compiled = torch.compile(nn.Identity())\n"
        "assert isinstance(compiled, w.OptimizedModule)\n"
        "assert w._unwrap_compiled(compiled)[0] is not compiled\n"
        "assert sys.modules['torch._dynamo'].OptimizedModule is not w.OptimizedModule\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
