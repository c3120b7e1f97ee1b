"""Families of networks: one module each, found by being here.

A family is its option (keys, bounds and checks, as in `config.groups`) with what they describe. The
module imports no torch, for composition and `--help` read it. A family that is made of operations
says them in `plan`, and is whole in one file (`mobilenet.py`). One with a network of its own is a
folder: the option, and beside it `network.py` with description, wiring and network, which the
option names (`resnet12/`). The chain of blocks is no member: configuration counts it by formula,
and operators know it by its description, `nets/architecture.py`.

A package has families of its own by an entry point `sseg_nase.families` (`config.options`).
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
