"""The entry point: Hydra composes, `run` runs, and every ending has its exit code.

Exit codes: 0 done, 1 a failure of ours, 2 the user's mistake, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import cast

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from sseg_nase.config.compose import CONFIG_NAME, conf_dir, continued, load, register, to_config
from sseg_nase.config.explain import explaining
from sseg_nase.config.layout import groups
from sseg_nase.config.validation import cautions
from sseg_nase.errors import UserError

DONE, FAILED, MISTAKE, INTERRUPTED = 0, 1, 2, 130


@dataclass
class Endings:
    """How the jobs of one command line ended."""

    process: int | None = None
    jobs: int = 0
    failed: dict[str, int] = field(default_factory=dict)

    def code(self) -> int:
        """Return the exit code: 2 where all failures are mistakes of the user."""
        return min(self.failed.values(), default=DONE)


_endings = Endings()


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        code = _main()
    except UserError as error:
        _say(str(error))
        code = MISTAKE
    except BrokenPipeError:  # `sseg-nase --help | head`: who listened has heard enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = DONE
    except KeyboardInterrupt as error:
        run_dir = getattr(error, "run_dir", None)
        go_on = f"; go on with: sseg-nase resume={run_dir}" if run_dir else ""
        _say(f"interrupted{go_on}")
        code = INTERRUPTED
    sys.exit(code)


def job(composed: DictConfig) -> str | None:
    """Run one composed config; return the run's directory, or None when it failed.

    In the process of the command line a failure is reported and counted, so that a sweep goes on.
    In a process that a launcher has started it is raised, so that the launcher knows.
    """
    settings = HydraConfig.get()
    overrides = cast(list[str], OmegaConf.to_container(settings.overrides.task))
    name = ""
    if settings.mode == RunMode.MULTIRUN:
        name = f"job {settings.job.num} ({' '.join(overrides)}): "
    _endings.jobs += 1
    try:
        config = to_config(composed)
        for caution in cautions(config):
            _say(f"{name}{caution}")
        from sseg_nase.run import run  # here, because it imports torch

        return str(run(config, overrides))
    except Exception as error:
        if os.getpid() != _endings.process:
            raise
        mistake = isinstance(error, UserError)
        _endings.failed[name] = MISTAKE if mistake else FAILED
        _say(f"{name}{error if mistake else _where_to_look(error)}")
    return None


def help_text(*further: Path) -> str:
    """Return what `--help` shows; `further` are config folders beside `conf/`."""
    template = OmegaConf.load(conf_dir() / "hydra" / "help" / "sseg_nase.yaml").template
    choices = [f"{group}: {', '.join(options)}" for group, options in groups(*further).items()]
    return Template(template).substitute(APP_CONFIG_GROUPS="\n".join(choices))


def _main() -> int:
    global _endings
    _endings = Endings(process=os.getpid())
    flags = get_args_parser().parse_args()
    _check_flags(flags)
    further = [Path(flags.config_dir).absolute()] if flags.config_dir else []
    if flags.help:
        print(help_text(*further), flush=True)  # Hydra's own listing of the groups takes a second
        return DONE
    register()
    # Threads that wait spin for long by default: on a shared machine a step then takes five times
    # as long. Spinning briefly costs an idle machine nothing. Must stand before torch loads.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # Hydra prints its errors and exits with 1; with this it raises them, to be said better.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    if not flags.multirun:
        stored = continued(flags.overrides)
        flags.overrides, sys.argv = [*flags.overrides, *stored], [*sys.argv, *stored]
    with explaining(flags.overrides, *further):
        if flags.cfg in ("job", "all"):
            load(flags.overrides, *further)  # Hydra would show a config that no run accepts
        hydra.main(str(conf_dir()), CONFIG_NAME, version_base="1.3")(job)()
    if _endings.jobs > 1 and _endings.failed:
        _say(f"{len(_endings.failed)} of {_endings.jobs} jobs failed")
    return _endings.code()


def _check_flags(flags: Namespace) -> None:
    commands = ("run", "multirun", "cfg", "info", "shell_completion")
    given = [f"--{name.replace('_', '-')}" for name in commands if getattr(flags, name)]
    if len(given) > 1:
        raise UserError(f"{' '.join(given)}: only one of these is possible.")
    if flags.resolve and not (flags.cfg or flags.help):
        raise UserError("--resolve: it is possible only with --cfg or --help.")
    if flags.config_dir and not Path(flags.config_dir).is_dir():
        raise UserError(f"--config-dir {flags.config_dir}: there is no such folder.")


def _where_to_look(error: Exception) -> str:
    """Say what failed and where the traceback is; without a run to hold it, the traceback."""
    run_dir = getattr(error, "run_dir", None)
    if run_dir is None:
        return "".join(traceback.format_exception(error)).rstrip()
    return f"{type(error).__name__}: {error} (traceback in {run_dir}/status.json)"


def _say(text: str) -> None:
    print(f"sseg-nase: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    # Under its own name, so that launchers can send `job` to other processes.
    from sseg_nase import __main__ as entry

    entry.main()
