"""What `--help` shows, from the files of `conf/` alone: the answer comes before Hydra is loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from string import Template

from sseg_nase.config.ablations import ablations, table
from sseg_nase.config.conf_files import conf_dir, groups, read_values

FLAGS = {"-h", "--help"}
FOLDER_FLAGS = ("--config-dir", "-cd")


def help_text(*further: Path) -> str:
    """Return what `--help` shows; `further` are config folders beside `conf/`.

    Raises `UserError` for a file of theirs that cannot be read.
    """
    template = read_values(conf_dir() / "hydra" / "help" / "sseg_nase.yaml")["template"]
    choices = [f"{group}: {', '.join(options)}" for group, options in groups(*further).items()]
    of_ablations = table(ablations(*further)).replace("\n", "\n  ")
    return Template(template).substitute(
        APP_CONFIG_GROUPS="\n".join(choices), ABLATIONS=of_ablations
    )


def asked_for(arguments: Sequence[str]) -> list[Path] | None:
    """Return the further config folders of a command line that asks for help and nothing else.

    None where it asks for something else, or where a flag or the place is wrong: that is for
    Hydra's parser to read.
    """
    rest = [each for each in arguments if each not in FLAGS]
    if arguments and len(rest) == len(arguments):
        return None
    if rest and rest[0].startswith("--config-dir="):
        rest = [*rest[0].split("=", 1), *rest[1:]]
    if rest and (len(rest) != 2 or rest[0] not in FOLDER_FLAGS or not os.path.isdir(rest[1])):
        return None
    try:
        os.getcwd()
    except OSError:
        return None
    return [Path(folder).absolute() for folder in rest[1:]]
