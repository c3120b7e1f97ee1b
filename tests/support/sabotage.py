"""Runs that go wrong, or slowly, or wait: in whatever process a launcher starts them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

# Python imports a `sitecustomize` by itself; this one changes `stages.pretrain` once it is there.
SITE = """
import importlib.abc
import importlib.util
import itertools
import os
import signal
import sys
import time
from pathlib import Path


HELD_AT = 6  # in the second epoch of debug=tiny: there is a checkpoint, and more to save


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "sseg_nase.stages":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (load(module), sabotage(module))
        return spec


def sabotage(stages):
    pretrain = stages.pretrain

    def sabotaged(config, *arguments, stop, **more):
        order = Path(os.environ["SABOTAGE"]) / str(config.seed)

        def ordered():
            return order.read_text().split() if order.exists() else [""]

        steps = itertools.count(1)

        def held():
            if next(steps) >= HELD_AT:
                while ordered()[0] == "hold" and not stop():
                    order.with_suffix(".held").touch()
                    time.sleep(0.05)
                order.with_suffix(".held").unlink(missing_ok=True)
            if ordered()[0] == "step":
                time.sleep(float(ordered()[1]))
            return stop()

        what = ordered()[0]
        if what == "raise":
            raise RuntimeError("it broke")
        if what == "exit":
            os._exit(9)
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        return pretrain(config, *arguments, stop=held, **more)

    stages.pretrain = sabotaged


sys.meta_path.insert(0, Finder())
"""


def hear_interrupts() -> None:
    """Before a process begins. What a script has in the background ignores Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Sabotage:
    """Orders to the runs of a seed, obeyed by every process with `environment`.

    `raise`, `exit` (os._exit(9)) and `kill` (-9) happen where training begins; with `hold` a run
    stands in its second epoch until it is told to stop or the order is taken back; `step S` adds S
    seconds to every step.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(SITE)
        self._folder = folder

    @property
    def environment(self) -> dict[str, str]:
        """What is to be added to the environment."""
        path = os.pathsep.join(filter(None, [str(self._folder), os.environ.get("PYTHONPATH")]))
        return {"PYTHONPATH": path, "SABOTAGE": str(self._folder)}

    def order(self, seed: int, what: str) -> None:
        """From now on."""
        temporary = self._folder / f"{seed}.new"
        temporary.write_text(what)
        temporary.replace(self._folder / str(seed))

    def holds(self, *seeds: int) -> bool:
        """Whether the runs of these seeds stand."""
        return all((self._folder / f"{seed}.held").exists() for seed in seeds)

    def take_back(self, *seeds: int) -> None:
        """Let the runs of these seeds be."""
        for seed in seeds:
            self.order(seed, "nothing")
