from __future__ import annotations

import os
import re
import subprocess
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sseg_nase import cli as entry
from sseg_nase.config import ablations as defined
from sseg_nase.config.conf_files import groups
from sseg_nase.config.multirun import split
from sseg_nase.config.schema import Config
from sseg_nase.errors import UserError
from sseg_nase.sweeps import launch as launching
from sseg_nase.sweeps.folder import create
from sseg_nase.sweeps.plan import plan

ABLATIONS = {name: one.switches for name, one in defined.ablations().items()}

Run = Callable[[Config, Sequence[str]], Path]
Cli = Callable[..., int]


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the program as its users do, with warnings as errors."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "sseg_nase", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(entry.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """Run the program in this process with `run` replaced; returns the exit code.

    A sweep's jobs are only planned: `run` gets the config of each.
    """

    def launch(overrides: Sequence[str], hydra: object, say: object, *further: Path) -> int:
        hydras, sweeps, _ = split(overrides)
        if sweeps or hydras:
            return real_launch(overrides, not_reached, say, *further)
        for job in plan(overrides, *further)[1]:
            sys.modules["sseg_nase.run"].run(job.config, job.overrides)
        return 0

    real_launch: Callable[..., int] = launching.launch
    monkeypatch.setattr(launching, "launch", launch)

    def invoke(*arguments: str, run: Run) -> int:
        stub = types.ModuleType("sseg_nase.run")
        stub.run = run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "sseg_nase.run", stub)
        monkeypatch.setattr(sys, "argv", ["sseg-nase", *arguments])
        with pytest.raises(SystemExit) as ended:
            entry.main()
        assert isinstance(ended.value.code, int)
        return ended.value.code

    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # restored afterwards
    monkeypatch.chdir(tmp_path)
    return invoke


def not_reached(config: Config, overrides: Sequence[str]) -> Path:
    raise AssertionError("a run was started")


# --help and --cfg


def test_help_shows_groups_ablations_and_five_commands(tmp_path: Path) -> None:
    done = command("--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for group, options in groups().items():
        assert f"{group}: {', '.join(options)}\n" in done.stdout
    assert len(re.findall(r"^ {2}sseg-nase ", done.stdout, re.MULTILINE)) == 5
    for ablation, switches in ABLATIONS.items():
        row = next(line for line in done.stdout.splitlines() if line.startswith(f"  {ablation} "))
        marks = [cell == "yes" for cell in row.split()[-5:]]
        columns = ("ssl", "evolution", "sparsity", "progression", "distillation")
        assert marks == [getattr(switches, column) for column in columns]
    assert list(tmp_path.iterdir()) == []


def test_the_commands_of_the_help_are_accepted(cli: Cli) -> None:
    started: list[str] = []

    def run(config: Config, overrides: Sequence[str]) -> Path:
        started.append(config.task)
        return Path()

    for line in re.findall(r"^ {2}sseg-nase (.*)$", entry.help_text(), re.MULTILINE):
        first_of_each = re.sub(r"=([^, ]+),\S+", r"=\1", line)
        assert cli(*first_of_each.split(), run=run) == 0
    assert started == ["pipeline", "pipeline", "pipeline", "evaluate", "pipeline"]


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], ["pretrain.epochs=ten"]])
def test_quick_answers_import_neither_torch_nor_mlflow(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        f"sys.argv = ['sseg-nase', *{arguments!r}]\n"
        "from sseg_nase.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit:\n    pass\n"
        "heavy = {'torch', 'mlflow', 'numpy', 'pandas', 'sklearn', 'lightning'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_cfg_shows_the_choice_of_the_group(tmp_path: Path) -> None:
    done = command("--cfg", "job", "ablation=A3", "task=curriculum", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shown = OmegaConf.create(done.stdout)
    assert (shown.ablation, shown.task) == ("A3", "curriculum")
    assert shown.sparsity.enabled is False
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--cfg", "hydra"],
        ["--cfg", "all"],
        ["--cfg", "job", "--package", "optimizer"],
        ["--cfg", "job", "--resolve"],
        ["--hydra-help"],
        ["--info", "defaults"],
        ["--info", "searchpath"],
    ],
)
def test_flags_of_hydra_work(cli: Cli, arguments: list[str]) -> None:
    try:
        assert cli(*arguments, run=not_reached) == 0
    finally:
        # --info sets up logging for the whole process.
        import logging

        logging.getLogger().handlers.clear()
        logging.getLogger().setLevel(logging.WARNING)


def test_a_folder_of_ones_own_adds_options(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "long.yaml").write_text(
        "# @package _global_\npretrain:\n  epochs: 999\n"
    )
    mine = ("--config-dir", str(tmp_path / "mine"))
    epochs: list[int] = []

    def run(config: Config, overrides: Sequence[str]) -> Path:
        epochs.append(config.pretrain.epochs)
        return tmp_path

    assert cli(*mine, "experiment=long", run=run) == 0
    assert epochs == [999]
    assert cli(*mine, "--cfg", "job", "experiment=long", run=not_reached) == 0
    assert cli(*mine, "--help", run=not_reached) == 0
    said = capsys.readouterr().out
    (line,) = (line for line in said.splitlines() if line.startswith("experiment: "))
    assert {"cifar_fs_32", "long", "baseline/protonet"} <= set(
        line[len("experiment: ") :].split(", ")
    )
    assert cli(*mine, "experiment=long", "seeed=1", run=not_reached) == 2
    assert capsys.readouterr().err.startswith("sseg-nase: seeed: there is no such key.")


# One run


def test_a_run_gets_the_config_and_what_was_overridden(cli: Cli, tmp_path: Path) -> None:
    seen: list[tuple[Config, list[str]]] = []

    def run(config: Config, overrides: Sequence[str]) -> Path:
        seen.append((config, list(overrides)))
        return tmp_path

    assert cli("ablation=A3", "pretrain.epochs=7", "hydra.verbose=false", run=run) == 0
    ((config, overrides),) = seen
    assert (config.ablation, config.pretrain.epochs) == ("A3", 7)
    assert overrides == ["ablation=A3", "pretrain.epochs=7"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["++pretrain.lrr=1"], "pretrain.lrr"),
        (["pretrain.epochs=ten"], "pretrain.epochs=ten"),
        (["ablation=A9"], "A1, A2, A3, A4, A5, A6, A7"),
        (["tracking.experiment=a=b"], """'tracking.experiment="a=b"'"""),
    ],
)
def test_a_mistake_ends_with_exit_code_2_and_one_message(
    tmp_path: Path, arguments: list[str], said: str
) -> None:
    done = command(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("sseg-nase: ")
    assert said in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--cfg", "job", "++pretrain.lrr=1"], "pretrain.lrr"),
        (["--cfg", "job", "-m"], "only one"),
        (["--resolve"], "--resolve"),
        (["seed=1", "--nope"], "unrecognized arguments: --nope"),
        (["seed=1", "--cfg"], "expected one argument"),
        (["--info", "nope"], "choose from"),
        (["--config-dir", "nowhere"], "nowhere"),
        (["dataset=null"], "cifar_fs"),
        (["seed=${nothing}"], "nothing"),
        (["-m", "ablation=A1,A9"], "ablation=A9"),
        (["-m", "pretrain.epochs=2,ten"], "pretrain.epochs=ten"),
    ],
)
def test_a_mistake_is_found_before_anything_runs(
    cli: Cli, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert cli(*arguments, run=not_reached) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sseg-nase: ")
    assert said in line


def test_a_mistake_found_by_the_run(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    def run(config: Config, overrides: Sequence[str]) -> Path:
        raise UserError("paths.data_dir=data: there are no images.")

    assert cli("seed=0", run=run) == 2
    assert capsys.readouterr().err == "sseg-nase: paths.data_dir=data: there are no images.\n"


def test_a_failure_of_ours_says_where_to_look(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    def run(config: Config, overrides: Sequence[str]) -> Path:
        error = RuntimeError("it broke")
        error.run_dir = Path("runs/x")  # type: ignore[attr-defined]
        raise error

    assert cli("seed=0", run=run) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "sseg-nase: RuntimeError: it broke (traceback in runs/x/status.json)"


def test_a_failure_before_there_is_a_run_shows_its_traceback(
    cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(config: Config, overrides: Sequence[str]) -> Path:
        raise RuntimeError("it broke")

    assert cli("seed=0", run=run) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.endswith("RuntimeError: it broke\n")


def test_an_interruption(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    def run(config: Config, overrides: Sequence[str]) -> Path:
        raise KeyboardInterrupt

    assert cli("seed=0", run=run) == 130
    assert capsys.readouterr().err == "sseg-nase: interrupted\n"


def test_an_ending_is_that_of_its_own_command(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(config: Config, overrides: Sequence[str]) -> Path:
        raise RuntimeError("it broke")

    assert cli("paths.output_dir=my runs (1)", run=run) == 1
    assert sys.argv == ["sseg-nase", "paths.output_dir=my runs (1)"]  # as it was given
    assert cli("--cfg", "job", run=not_reached) == 0
    monkeypatch.setattr(entry, "imported", lambda name: lambda config, say: 1)
    assert cli("task=status", run=not_reached) == 1
    assert cli("--version", run=not_reached) == 0


def test_what_is_said_has_no_password(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    def failing(error: Exception) -> Run:
        def run(config: Config, overrides: Sequence[str]) -> Path:
            raise error

        return run

    address = "http://bob:S3cret-Pw@host"
    for error, code in ((UserError(f"{address} is away"), 2), (RuntimeError(address), 1)):
        assert cli("seed=0", run=failing(error)) == code
        said = capsys.readouterr().err
        assert "http://host" in said
        assert "S3cret" not in said


def test_who_listened_and_went_away_is_no_failure() -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(
        [sys.executable, "-m", "sseg_nase", "--help"],
        stdout=theirs,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(theirs)
    assert (done.returncode, done.stderr) == (0, b"")


def test_folders_of_ones_own_are_those_of_a_sweep_too(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed: list[tuple[object, ...]] = []

    def launch(overrides: Sequence[str], hydra: object, say: object, *further: Path) -> int:
        handed.append((overrides, *further))
        return 1

    monkeypatch.setattr(launching, "launch", launch)
    mine = tmp_path / "mine"
    mine.mkdir()
    assert cli("-m", "--config-dir", "mine", "seed=0,1", run=not_reached) == 1
    assert handed == [(["seed=0,1"], mine)]


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("hydra._internal.core_plugins.basic_launcher.BasicLauncher", "basic"),
        ("hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher", "joblib"),
        ("hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher", "submitit_local"),
        ("hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher", "submitit_slurm"),
        ("somebody.Else", "another"),
    ],
)
def test_a_launcher_by_its_class(target: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = types.SimpleNamespace(launcher=types.SimpleNamespace(_target_=target))
    monkeypatch.setattr(entry.HydraConfig, "get", lambda: found)
    assert entry._launcher() == name


def test_a_misleading_ablation_is_cautioned(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("ablation=A7", "curriculum=mixed", run=lambda config, overrides: Path()) == 0
    assert "ablation=A7 is defined with progression" in capsys.readouterr().err


# Sweeps: what they do is tested in tests/unit/sweeps


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["seed=1", "sweep.retries=1"], "sweep.retries=1: it has no effect on a single run"),
        (["seed=1", "sweep=somewhere"], "sweep=somewhere: it has no effect with task=pipeline"),
        (["seed=1", "sweep.watch=true"], "sweep.watch=true: it has no effect with task=pipeline"),
        (["-m", "seed=0,1", "sweep.watch=true"], "have no effect with -m"),
        (["-m", "seed=0,1", "sweep.retries=1,2"], "once for the whole sweep"),
        (["-m", "seed=0,1", "sweep.on_failure=never"], "choose one of continue, stop"),
        (["-m", "seed=0,1", "sweep=nowhere"], "its jobs are fixed; leave out seed=0,1"),
        (["-m", "sweep=nowhere"], "not the directory of a sweep"),
        (["-m", "task=status,report"], "it inspects what is on disk and is no job of a sweep"),
        (["-m", "seed=0,1", "resume=somewhere"], "resume: a sweep is resumed where"),
        (["-m", "seed=0,-1"], "no job was started; job 1 (seed=-1): seed=-1"),
        (["-m", "hydra/sweeper=optuna", "seed=0,1"], "optuna"),
        (["-m", "hydra/launcher=slurm", "seed=0,1"], "slurm"),
        (["task=status"], "there is no sweep in"),
        (["task=report", "sweep=nowhere"], "not the directory of a sweep"),
    ],
)
def test_a_mistake_about_sweeps(
    cli: Cli, arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(*arguments, run=not_reached) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_sweeps_never_share_a_directory(tmp_path: Path) -> None:
    _, jobs = plan(["seed=0,1", "debug=tiny"])
    given = {
        "title": "",
        "shared": [],
        "settings": jobs[0].config.sweep,
        "tracking": jobs[0].config.tracking,
        "code": {},
        "diff": None,
    }
    made = [create(tmp_path, jobs, **given).path for _ in range(20)]  # type: ignore[arg-type]
    assert len(set(made)) == 20
    pattern = r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_[0-9a-f]{6}"
    assert all(re.fullmatch(pattern, path.name) for path in made)
