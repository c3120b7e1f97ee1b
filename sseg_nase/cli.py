"""The entry point: Hydra composes, `run` runs, and every ending has its exit code.

Exit codes: 0 done, 1 a failure of ours, 2 the user's mistake, 130 interrupted.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, cast

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sseg_nase.config.commands import PROGRAM, command, override
from sseg_nase.config.compose import (
    CONFIG_NAME,
    conf_dir,
    continued,
    load,
    register,
    shown_as_chosen,
    spelled_out,
    to_config,
)
from sseg_nase.config.explain import explaining
from sseg_nase.config.groups.evaluator import OfRuns
from sseg_nase.config.help import help_text
from sseg_nase.config.multirun import refuse_several, superseded
from sseg_nase.config.options import imported
from sseg_nase.config.places import keys_given
from sseg_nase.config.rounds import as_search
from sseg_nase.config.schema import TAKEN_HOME, Config
from sseg_nase.config.validation import cautions, without_effect
from sseg_nase.errors import DONE, FAILURE, MISTAKE, STOPPED, UserError
from sseg_nase.redaction import guarded_output, redacted
from sseg_nase.streams import unbroken_output
from sseg_nase.version import __version__

if TYPE_CHECKING:
    from sseg_nase.searches.launched import Launcher

# By what each of these tasks is done. Of rooms above the configuration nothing is imported before
# it is needed: `--help` and mistakes are answered at once.
INSPECTIONS: Mapping[str, str] = {
    "status": "sseg_nase.searches.inspection:status",
    "report": "sseg_nase.searches.inspection:report",
    "deliver": "sseg_nase.sweeps.deliver:deliver",
}
LAUNCHER_NAMES = {
    "BasicLauncher": "basic",
    "JoblibLauncher": "joblib",
    "LocalLauncher": "submitit_local",
    "SlurmLauncher": "submitit_slurm",
}
# Flags of Hydra's that have no place here, with what to use.
NOT_OURS = {
    "config_path": "the config is the program's own; --config-dir DIR adds options of yours.",
    "config_name": "the config is the program's own; choose an experiment=NAME, and --config-dir "
    "DIR adds those of yours.",
    "experimental_rerun": "a run is resumed with resume=RUN_DIR; its command is in its report.",
}
HYDRAS_FOLDERS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.output_subdir")
_code = DONE  # of the run that this process has done


def main() -> None:
    """Run the command line and exit with its code."""
    with unbroken_output():
        code = _ended()
    sys.exit(code)


def _ended() -> int:
    """Do what the command line says; return the exit code, and say what went wrong."""
    try:
        return _main()
    except UserError as error:
        _say(str(error))
        return MISTAKE
    except KeyboardInterrupt as error:
        run_dir = getattr(error, "run_dir", None)
        go_on = f"; resume with: {command(resume=Path(run_dir))}" if run_dir else ""
        _say(f"interrupted{go_on}")
        return STOPPED


def job(composed: DictConfig) -> None:
    """Do what one composed config says: a run, an inspection of runs, or a job of a sweep."""
    global _code
    if composed.sweep.job is not None:
        from sseg_nase.sweeps.job import perform

        perform(Path(composed.sweep.dir), composed.sweep.job, _launcher())
        return
    try:
        _code = _one(to_config(composed))
    except UserError as error:  # said here, because Hydra adds words to what it lets pass
        _say(str(error))
        _code = MISTAKE
    except Exception as error:
        _say(_where_to_look(error))
        _code = FAILURE


def _one(config: Config) -> int:
    """One run, or one inspection of what is on disk; return the exit code."""
    hydras = HydraConfig.get()
    sources = hydras.runtime.config_sources
    further = [Path(source.path) for source in sources if source.provider == "command-line"]
    overrides = cast(list[str], OmegaConf.to_container(hydras.overrides.task))
    for caution in cautions(config, *further):
        _say(caution)
    if config.task == "pipeline" or (config.task == "search" and not config.search.choices):
        for idle in without_effect(config, sorted(keys_given(overrides))):
            _say(idle)
    if config.task == "ui":
        from sseg_nase.apps.serving import serve  # here, because most commands serve nothing

        return serve(config, _say, *further)
    if config.task in INSPECTIONS:
        inspect: Callable[[Config, Callable[[str], None]], int] = imported(INSPECTIONS[config.task])
        return inspect(config, _say)
    if config.task in TAKEN_HOME:
        from sseg_nase.export.task import TASKS

        return TASKS[config.task](config, overrides, _say)
    from sseg_nase.run import run  # here, because it imports torch

    if config.task != "search":
        run(config, overrides)
        return DONE
    from sseg_nase.searches.task import check_search, perform_search

    check_search(config, overrides, further)
    launcher = _launcher_of_search(config, cast(list[str], list(hydras.overrides.hydra)))
    task = partial(perform_search, overrides=overrides, further=further, launcher=launcher)
    run(config, overrides, task=task)
    return DONE


def _launcher_of_search(config: Config, given: Sequence[str]) -> Launcher | None:
    """The launcher that a search's candidates go through; None: they are its own processes."""
    from sseg_nase.searches.launched import LAUNCHERS, Launcher
    from sseg_nase.searches.parts import final_seeds

    name = _launcher()
    if name == "basic":
        return None
    if name not in LAUNCHERS:
        target = HydraConfig.get().launcher._target_
        raise UserError(
            f"hydra/launcher: {target} is none of {', '.join(LAUNCHERS)}; leave it out, and give "
            "search.slots=2 for two candidates at once on this machine."
        )
    if not isinstance(config.evaluator, OfRuns) and not final_seeds(config):
        raise UserError(
            f"hydra/launcher={name}: it has no effect with evaluator={config.evaluator.name}, "
            "which starts no runs; leave it out."
        )
    own = [text for text in given if text.lstrip("+~").startswith("hydra.launcher.")]
    return Launcher(name, [f"hydra/launcher={name}", *own])


def _main() -> int:
    global _code
    _code = DONE
    if {"-V", "--version"} & set(sys.argv[1:]):
        print(f"{PROGRAM} {__version__}", flush=True)
        return DONE
    flags = _arguments()
    _check_flags(flags)
    _check_place()
    further = [Path(flags.config_dir).absolute()] if flags.config_dir else []
    if flags.help or len(sys.argv) == 1:
        print(help_text(*further), flush=True)  # Hydra's own listing of the groups takes a second
        return DONE
    if flags.shell_completion:
        return _complete(flags.overrides)
    if flags.run and not flags.overrides:
        raise UserError(
            f"-r: what is to be run? An experiment=NAME (see --help); {override('resume', 'LAST')} "
            "resumes the run that was made last."
        )
    _check_hydras(flags.overrides, multirun=flags.multirun)
    register()
    # Threads that wait spin for long by default: on a shared machine a step then takes five times
    # as long. Spinning briefly costs an idle machine nothing. Must stand before torch loads.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # Hydra prints its errors and exits with 1; with this it raises them, to be said better.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    if flags.multirun:
        from sseg_nase.sweeps.launch import NOTHING, launch

        if not flags.overrides:
            raise UserError(NOTHING)
        if (search := as_search(flags.overrides)) is not None:
            return _as_typed([*_flags_but("-m", "--multirun"), *search])
        return launch(flags.overrides, partial(_hydra, "--multirun"), _say, *further)
    overrides = spelled_out(flags.overrides)
    _check_alone(overrides)
    with explaining(overrides, *further):
        for note in superseded(overrides):
            _say(note)
    overrides = _with_last(overrides)
    with _of_hydra(), explaining(overrides, *further):
        if flags.cfg in ("job", "all") or flags.info in ("config", "all"):
            load(overrides, *further)  # Hydra would show a config that no run accepts
        # What Hydra itself shows of a config is often kept, or sent to others.
        shown = flags.cfg or flags.info
        with (
            guarded_output() if shown else nullcontext(),
            shown_as_chosen(resolve=bool(flags.resolve)) if shown else nullcontext(),
        ):
            _hydra(None, [*overrides, *continued(overrides)])
    return _code


def _as_typed(arguments: Sequence[str]) -> int:
    """Do what another command line says, which is shown."""
    _say(f"by rounds: {command(*arguments)}")
    given = sys.argv
    sys.argv = [given[0], *arguments]
    try:
        return _main()
    finally:
        sys.argv = given


def _flags_but(*names: str) -> list[str]:
    """What stands on the command line beside overrides, without some flags."""
    overrides = set(_arguments().overrides)
    return [text for text in sys.argv[1:] if text not in overrides and text not in names]


def _complete(overrides: Sequence[str]) -> int:
    """Install, remove or answer the completion of a shell; the words are no overrides of ours."""
    what, _, shell = "".join(overrides).partition("=")
    if what not in ("install", "uninstall", "query") or shell not in ("bash", "zsh", "fish"):
        raise UserError(
            f"--shell-completion {' '.join(overrides)}: add one of install=bash, uninstall=bash, "
            "query=bash, or of these with zsh or fish; --hydra-help has the command to paste."
        )
    if what == "query" and not os.environ.get("COMP_LINE"):
        raise UserError(f"--shell-completion {what}={shell}: it is the shell that asks this.")
    register()
    answer = io.StringIO()
    with _of_hydra(), redirect_stdout(answer):
        _hydra(None, overrides)
    # Hydra takes the types of its launchers, which `register` names so, for options.
    print(re.sub(r"\S+_schema(\s|$)", "", answer.getvalue()), end="", flush=True)
    return DONE


def _with_last(overrides: Sequence[str]) -> list[str]:
    """`resume=LAST` and `run=LAST` with the run that was made last, which is said."""
    from sseg_nase.reporting.selection import last_made

    texts = list(overrides)
    for key in ("resume", "run"):
        if f"{key}=LAST" not in texts:
            continue
        places = [text for text in texts if text.lstrip("+").startswith("paths.")]
        output_dir = Path(load(["task=status", *places]).paths.output_dir)
        named = override(key, last_made(key, output_dir))
        _say(f"{key}=LAST: {named}")
        texts[texts.index(f"{key}=LAST")] = named
    return texts


@contextmanager
def _of_hydra() -> Iterator[None]:
    """What Hydra itself cannot do with its flags and keys is a mistake, not a failure of ours.

    A run says how it ended before this is reached.
    """
    try:
        yield
    except SystemExit as ended:  # Hydra has said why
        sys.exit(MISTAKE if ended.code else DONE)
    except (UserError, HydraException, OmegaConfBaseException):
        raise
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, AssertionError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        given = " ".join(t for t in sys.argv[1:] if t.startswith("-") or "hydra" in t)
        raise UserError(f"{given or 'hydra'}: Hydra cannot do this: {text}") from error


def _arguments() -> Namespace:
    """The command line as Hydra's parser takes it, with flags also between overrides."""
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message}. An override is written key=value, flags are in --help.")

    parser.error = refuse  # type: ignore[method-assign]  # it prints its usage and exits
    return parser.parse_intermixed_args()


def _hydra(flag: str | None, overrides: Sequence[str]) -> None:
    """Let Hydra compose and call `job`, with these overrides instead of the command line's."""
    given = sys.argv
    given_overrides = set(_arguments().overrides)
    flags = [text for text in given[1:] if text not in given_overrides]
    added = [flag] if flag and not {"-m", "--multirun"} & set(flags) else []
    sys.argv = [given[0], *flags, *added, *overrides]
    try:
        hydra.main(str(conf_dir()), CONFIG_NAME, version_base="1.3")(job)()
    finally:
        sys.argv = given


def _launcher() -> str:
    """The name of the option in `hydra/launcher` that has started this job."""
    target = str(HydraConfig.get().launcher._target_)
    return LAUNCHER_NAMES.get(target.rpartition(".")[2], "another")


def _check_flags(flags: Namespace) -> None:
    commands = ("run", "multirun", "cfg", "info", "shell_completion")
    given = [f"--{name.replace('_', '-')}" for name in commands if getattr(flags, name)]
    if len(given) > 1:
        raise UserError(f"{' '.join(given)}: only one of these is possible.")
    if flags.resolve and not (flags.cfg or flags.help):
        raise UserError("--resolve: it is possible only with --cfg or --help.")
    if flags.resolve and flags.cfg in ("hydra", "all"):
        raise UserError(
            f"--cfg {flags.cfg} --resolve: Hydra sets some of its own values only in a sweep; use "
            "--cfg job --resolve."
        )
    for name, instead in NOT_OURS.items():
        if (value := getattr(flags, name)) is not None:
            raise UserError(f"--{name.replace('_', '-')} {value}: {instead}")
    if flags.package is not None and not flags.cfg:
        raise UserError(f"--package {flags.package}: it is possible only with --cfg.")
    where = flags.config_dir
    if where is not None and not (where.strip() and Path(where).is_dir()):
        raise UserError(f"--config-dir {shlex.quote(where)}: there is no such folder.")


def _check_place() -> None:
    """Refuse to start in a folder that was removed, or may not be entered."""
    try:
        os.getcwd()
    except OSError as error:
        raise UserError(
            f"the working directory is not there any more, or cannot be entered ({error.strerror}):"
            " change to another folder (cd)."
        ) from error


def _check_alone(overrides: Sequence[str]) -> None:
    """Refuse what only a sweep can be told."""
    refuse_several(overrides)
    for text in overrides:
        key = text.lstrip("+~").partition("=")[0]
        if key.startswith("sweep.") and key not in ("sweep.dir", "sweep.watch"):
            raise UserError(f"{text}: it has no effect on a single run; add -m for a sweep.")


def _check_hydras(overrides: Sequence[str], *, multirun: bool) -> None:
    """Refuse keys of Hydra's that the program decides itself; they would be half obeyed."""
    for text in overrides:
        key = text.lstrip("+~").partition("=")[0]
        if key in HYDRAS_FOLDERS:
            raise UserError(
                f"{text}: runs and sweeps make their own folders; name where with "
                "paths.output_dir=DIR."
            )
        if key == "hydra.verbose" and not _names_loggers(text):
            raise UserError(
                f"{text}: true, false, or the names of loggers are needed, such as "
                "hydra.verbose=[hydra,sseg_nase]."
            )
        if key == "hydra.mode":
            raise UserError(f"{text}: leave it out, and add -m for a sweep.")
        if key.startswith(("hydra.sweeper", "hydra/sweeper")) and not multirun:
            raise UserError(f"{text}: it has no effect on a single run; add -m for a sweep.")


def _names_loggers(text: str) -> bool:
    """Whether hydra.verbose is given what Hydra takes; what it cannot read, it says itself."""
    try:
        values = OverridesParser.create().parse_override(text).value()
    except HydraException:
        return True
    names = values if isinstance(values, list) else [values]
    return isinstance(values, bool) or all(isinstance(name, str) for name in names)


def _where_to_look(error: Exception) -> str:
    """Say what failed and where the traceback is; without a run to hold it, the traceback."""
    run_dir = getattr(error, "run_dir", None)
    if run_dir is None:
        return "".join(traceback.format_exception(error)).rstrip()
    return f"{type(error).__name__}: {error} (traceback in {run_dir}/status.json)"


def _say(text: str) -> None:
    print(f"sseg-nase: {redacted(text)}", file=sys.stderr, flush=True)
