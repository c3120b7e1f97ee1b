"""Stand-ins for packages that are not installed: what does not need them can be imported."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import make_dataclass
from types import ModuleType
from typing import Any

# What the program has beside torch, numpy, Hydra and Fabric.
OTHERS = (
    "PIL", "filelock", "hydra_plugins", "matplotlib", "mlflow", "numba", "pandas", "rich", "scipy",
    "sklearn", "torchvision",
)  # fmt: skip


class Absent(type):
    """A class whose attributes are absent, too; nothing can be made of it but a decoration."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(name, (), {})

    # ruff: noqa: D102
    def __new__(mcs, name: str, bases: Any, values: Any) -> Any:
        return super().__new__(mcs, name, (), dict(values) if isinstance(values, dict) else {})

    def __init__(cls, *_: Any, **__: Any) -> None:
        """Nothing."""

    def __call__(cls, *_: Any, **__: Any) -> Any:
        return cls

    def __fspath__(cls) -> str:
        return ""

    def __or__(cls, other: Any) -> Any:
        return cls

    __ror__ = __or__


class _Module(ModuleType):
    __path__: Sequence[str] = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        # Hydra keeps a dataclass for each launcher.
        return make_dataclass(name, []) if name.endswith("Conf") else Absent(name, (), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, names: frozenset[str]) -> None:
        self.names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] in self.names:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing."""


def stand_in(names: Sequence[str] = OTHERS) -> list[str]:
    """Let those of `names` be imported that are not installed; return them."""
    absent = [name for name in names if importlib.util.find_spec(name) is None]
    sys.meta_path.append(_Finder(frozenset(absent)))
    return absent
