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

from sseg_nase import __main__ as entry
from sseg_nase.config.layout import groups
from sseg_nase.config.schema import Config
from sseg_nase.config.validation import ABLATIONS
from sseg_nase.errors import UserError

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
    """Run the program in this process with `run` replaced; returns the exit code."""

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
        "from sseg_nase.__main__ import main\n"
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
    assert "experiment: cifar_fs_32, long, quickstart, sseg_nase" in capsys.readouterr().out
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
        (["checkpoint=epoch=3.pt"], """'checkpoint="epoch=3.pt"'"""),
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

    assert cli(run=run) == 2
    assert capsys.readouterr().err == "sseg-nase: paths.data_dir=data: there are no images.\n"


def test_a_failure_of_ours_says_where_to_look(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    def run(config: Config, overrides: Sequence[str]) -> Path:
        error = RuntimeError("it broke")
        error.run_dir = Path("runs/x")  # type: ignore[attr-defined]
        raise error

    assert cli(run=run) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "sseg-nase: RuntimeError: it broke (traceback in runs/x/status.json)"


def test_a_failure_before_there_is_a_run_shows_its_traceback(
    cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(config: Config, overrides: Sequence[str]) -> Path:
        raise RuntimeError("it broke")

    assert cli(run=run) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.endswith("RuntimeError: it broke\n")


def test_an_interruption(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    def run(config: Config, overrides: Sequence[str]) -> Path:
        raise KeyboardInterrupt

    assert cli(run=run) == 130
    assert capsys.readouterr().err == "sseg-nase: interrupted\n"


def test_a_misleading_ablation_is_cautioned(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("ablation=A7", "curriculum=mixed", run=lambda config, overrides: Path()) == 0
    assert "ablation=A7 is defined with progression" in capsys.readouterr().err


# Sweeps


def test_a_sweep_runs_every_job_and_tells_what_was_swept(cli: Cli, tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def run(config: Config, overrides: Sequence[str]) -> Path:
        seen.append(list(overrides))
        return tmp_path

    assert cli("-m", "ablation=A1,A2", "seed=0,1", "debug=tiny", run=run) == 0
    assert seen == [
        [f"ablation={ablation}", f"seed={seed}", "debug=tiny"]
        for ablation in ("A1", "A2")
        for seed in (0, 1)
    ]


def test_a_failing_job_does_not_stop_the_others(
    cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    seeds: list[int] = []

    def run(config: Config, overrides: Sequence[str]) -> Path:
        seeds.append(config.seed)
        if config.seed == 1:
            raise RuntimeError("it broke")
        if config.seed == 2:
            raise UserError("there are no images.")
        return Path()

    assert cli("-m", "seed=0,1,2,3", run=run) == 1
    assert seeds == [0, 1, 2, 3]
    said = capsys.readouterr().err
    assert "sseg-nase: job 1 (seed=1): Traceback" in said
    assert "sseg-nase: job 2 (seed=2): there are no images.\n" in said
    assert said.endswith("sseg-nase: 2 of 4 jobs failed\n")


def test_a_sweep_that_fails_by_mistakes_alone_ends_with_2(cli: Cli) -> None:
    def run(config: Config, overrides: Sequence[str]) -> Path:
        raise UserError("there are no images.")

    assert cli("-m", "seed=0,1", run=run) == 2


def test_an_interruption_ends_the_sweep(cli: Cli) -> None:
    seeds: list[int] = []

    def run(config: Config, overrides: Sequence[str]) -> Path:
        seeds.append(config.seed)
        raise KeyboardInterrupt

    assert cli("-m", "seed=0,1", run=run) == 130
    assert seeds == [0]


def test_two_sweeps_never_share_a_directory(cli: Cli, tmp_path: Path) -> None:
    for _ in range(2):
        assert cli("-m", "seed=0,1", run=lambda config, overrides: Path()) == 0
    sweeps = [folder.name for folder in (tmp_path / "runs" / "sweeps").iterdir()]
    assert len(sweeps) == 2
    pattern = r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_[0-9a-f]{6}"
    assert all(re.fullmatch(pattern, name) for name in sweeps)


def test_a_job_in_another_process_raises_so_that_its_launcher_knows(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(config: Config, overrides: Sequence[str]) -> Path:
        monkeypatch.setattr(entry, "_endings", entry.Endings())  # as after a fresh import
        raise UserError("there are no images.")

    assert cli("-m", "seed=0,1", run=run) == 2
    with pytest.raises(ZeroDivisionError):
        cli("-m", "seed=0,1", run=lambda config, overrides: run_elsewhere(monkeypatch))


def run_elsewhere(monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(entry, "_endings", entry.Endings())
    raise ZeroDivisionError
