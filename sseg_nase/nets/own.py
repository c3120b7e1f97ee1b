"""Files of the user's own that register operations, spaces or families."""

from __future__ import annotations

import importlib.util
import os
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

from sseg_nase.errors import UserError


def module_of(path: str) -> ModuleType:
    """Run a file and return its module. Raises `FileNotFoundError`, and what its code raises."""
    file = Path(os.path.abspath(path))
    name = f"sseg_nase_own_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def registered_by(key: str, path: str | None) -> None:
    """Run the file that `key` names, once in a process; it registers what it brings.

    Raises `UserError` where there is none, and for whatever its code raises.
    """
    if path is None:
        return
    if not path.endswith(".py"):
        raise UserError(f"{key}={path}: give a file of Python code, such as my_ops.py.")
    try:
        _once(os.path.abspath(os.path.expanduser(path)))
    except FileNotFoundError as error:
        raise UserError(f"{key}={path}: there is no such file ({error.filename}).") from error
    except Exception as error:  # whatever the user's own code raises
        raise UserError(
            f"{key}={path}: it cannot be imported ({type(error).__name__}: {error})."
        ) from error


@cache
def _once(path: str) -> ModuleType:
    return module_of(path)
