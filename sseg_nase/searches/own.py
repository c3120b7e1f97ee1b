"""A strategy, a space or an evaluator of the user's own, from a file or a module of theirs."""

from __future__ import annotations

import importlib
from typing import Any

from sseg_nase.errors import UserError, did_you_mean
from sseg_nase.nets.own import module_of


def imported(key: str, target: str) -> Any:
    """Return what `FILE.py:NAME` or `MODULE:NAME` names; `key` is whose value it is.

    Raises `UserError` where there is no such file, module or name, and for what an import raises.
    """
    where, name = _parts(key, target)
    try:
        module = module_of(where) if where.endswith(".py") else importlib.import_module(where)
    except FileNotFoundError as error:
        raise UserError(f"{key}={target}: there is no file {where}.") from error
    except Exception as error:  # whatever the user's own code raises
        raise UserError(
            f"{key}={target}: {where} cannot be imported ({type(error).__name__}: {error})."
        ) from error
    if not hasattr(module, name):
        public = [each for each in vars(module) if not each.startswith("_")]
        raise UserError(f"{key}={target}: {where} has no {name}.{did_you_mean(name, public)}")
    return getattr(module, name)


def called(key: str, target: str, found: Any, *arguments: Any, **settings: Any) -> Any:
    """Return `found(*arguments, **settings)`. Raises `UserError` where it does not take these."""
    try:
        return found(*arguments, **settings)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{key}.target={target} {key}.settings={settings}: it could not be made "
            f"({type(error).__name__}: {error})."
        ) from error


def _parts(key: str, target: str) -> tuple[str, str]:
    where, colon, name = target.rpartition(":")
    if not (colon and where and name.isidentifier()):
        raise UserError(f"{key}={target}: write FILE.py:NAME, or MODULE:NAME.")
    return where, name
