"""When `hardware.compile` compiles, and (slow: it takes half a minute) that it changes nothing."""

from __future__ import annotations

import copy
import itertools
import json
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sseg_nase.config.compose import load
from sseg_nase.nets.mutations.grow import grow
from sseg_nase.run import run
from sseg_nase.stages.pretraining import trainer_of
from sseg_nase.tracking.sink import Sink
from sseg_nase.training import compiling, loop
from sseg_nase.training.compiling import TIMED_STEPS, WARMUP_STEPS, choose
from sseg_nase.training.distributed import workers
from sseg_nase.training.interruption import Interrupted
from sseg_nase.training.loop import Trainer
from sseg_nase.training.measurements import Probe
from sseg_nase.training.networks import Networks
from sseg_nase.training.state import Pretraining
from sseg_nase.training.surgery import Decision


def test_an_architecture_is_compiled_once_it_has_lasted_an_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    epochs, compiled = list[int](), list[int]()
    train_epoch = Trainer.train_epoch

    def counted(trainer: Trainer) -> None:
        epochs.append(trainer.state.progress.epoch)
        train_epoch(trainer)

    monkeypatch.setattr(Trainer, "train_epoch", counted)
    monkeypatch.setattr(Networks, "compile", lambda networks: compiled.append(epochs[-1]))
    monkeypatch.setattr("sseg_nase.hardware.profiles.shutil.which", lambda name: name)
    overrides = ["debug=tiny", "hardware=cpu", "hardware.compile=true", "tracking=jsonl"]
    directory = run(load(overrides), overrides)
    lines = (directory / "mutations.jsonl").read_text().splitlines()
    changed = {record["epoch"] for record in map(json.loads, lines) if record["accepted"]}
    assert changed
    assert len(set(epochs)) == len(epochs) > 3
    expected = [epoch for epoch in epochs if epoch > 0 and epoch - 1 not in changed]
    assert compiled == expected
    assert compiled


# -- hardware.compile=auto -------------------------------------------------------------------------

LASTING = [
    "debug=tiny", "hardware=cpu", "hardware.precision=32-true", "hardware.threads=1",
    "ssl.distillation_weight=0.5", "ssl.projection_hidden=16", "ssl.projection_dim=8",
    "pretrain.epochs=4", "pretrain.images_per_epoch=32", "hardware.compile=auto",
]  # fmt: skip
STILL = ["evolution=none", "sparsity=none"]  # networks that are never changed


class Told(Sink):
    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def event(self, kind: str, values: Any) -> None:
        self.events.append((kind, dict(values)))

    def choices(self) -> list[dict[str, Any]]:
        return [values for _, values in self.events if "compiled_ms" in values]


class Compiler:
    """Stands in for torch's compiler and for the clock: a pass takes the seconds that it is told.

    To compile takes its time, and draws from all generators.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, plain: float, compiled: float) -> None:
        self.compiled: list[Networks] = []
        self.now = 0.0
        self.passes: list[bool] = []
        differentiate = Probe.differentiate

        def timed(probe: Probe, networks: Networks, *given: Any, **more: Any) -> Any:
            known = self.knows(networks)
            self.passes.append(known)
            first = self.passes.count(known) == 1
            self.now += (compiled + 100 * first) if known else plain
            for draw in (torch.rand, np.random.rand, lambda one: random.random()):
                draw(1) if known else None
            return differentiate(probe, networks, *given, **more)

        monkeypatch.setattr(Probe, "differentiate", timed)
        monkeypatch.setattr(Networks, "compile", lambda networks: self.compiled.append(networks))
        monkeypatch.setattr(compiling, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def knows(self, networks: Networks) -> bool:
        return any(networks is one for one in self.compiled)


def lasting(*overrides: str, state: Any = None, **more: Any) -> tuple[Trainer, Told]:
    told = Told()
    stop = more.get("stop", lambda: False)
    return trainer_of(load([*LASTING, *overrides]), [], told, state, stop), told


def same(first: Any, second: Any) -> bool:
    """Bit for bit, in nested dictionaries."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    return bool(first == second)


@pytest.mark.parametrize(
    ("plain", "compiled", "chosen"), [(0.02, 0.01, True), (0.01, 0.02, False), (0.01, 0.01, False)]
)
def test_what_is_faster_is_chosen_once(
    plain: float, compiled: float, chosen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, told = lasting(*STILL)
    compiler = Compiler(monkeypatch, plain, compiled)
    one.fit()
    (found,) = told.choices()
    assert (found["epoch"], found["since"], found["compiled"]) == (1, -1, chosen)
    assert found["plain_ms"] == pytest.approx(1000 * plain)
    assert found["compiled_ms"] == pytest.approx(1000 * compiled)
    words = "compiled" if chosen else "plain"
    assert found["text"].startswith(f"hardware.compile=auto: {words}; ")
    assert compiler.knows(one.state.networks) == chosen
    measured = WARMUP_STEPS + TIMED_STEPS
    assert compiler.passes == [False, True] * measured  # in turn, on copies, and never again


def test_to_measure_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, statistics, moments, what was spent, generators, and what is told."""
    drawn: list[Any] = []

    def chosen(*given: Any, **more: Any) -> Any:
        drawn.append(generators())
        found = choose(*given, **more)
        drawn.append(generators())
        return found

    @contextmanager
    def unwatched(device: torch.device) -> Iterator[None]:
        drawn.append(device.type)  # its memory is no part of the training's peaks
        yield

    monkeypatch.setattr(loop, "choose", chosen)
    monkeypatch.setattr(compiling, "unwatched", unwatched)
    without, expected = lasting(*STILL, "hardware.compile=false")
    without.fit()
    one, told = lasting(*STILL)
    Compiler(monkeypatch, 0.01, 0.02)
    one.fit()
    assert len(told.choices()) == 1
    found = one.state_dict()
    assert found.pop("compiling")["compiled"] is False
    assert without.state_dict().pop("compiling") is None
    assert same(found, {k: v for k, v in without.state_dict().items() if k != "compiling"})
    kinds = [kind for kind, values in told.events if "compiled_ms" not in values]
    assert kinds == [kind for kind, _ in expected.events]
    before, device, after = drawn
    assert before == after
    assert device == "cpu"


def generators() -> Any:
    _, key, place, *_ = np.random.get_state()
    return random.getstate(), key.tolist(), place, torch.get_rng_state().tolist()


def test_a_resumed_training_chooses_as_before_without_measuring(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = itertools.count(1)
    # The passes of the measurement ask, too.
    last = 2 + 2 * (WARMUP_STEPS + TIMED_STEPS) + 1
    one, _ = lasting(*STILL, stop=lambda: next(steps) == last)
    Compiler(monkeypatch, 0.02, 0.01)
    with pytest.raises(Interrupted):
        one.fit()
    state = copy.deepcopy(one.state_dict())
    assert (state["epoch"], state["batch"], state["compiling"]["compiled"]) == (1, 1, True)
    again, told = lasting(*STILL, state=state)
    compiler = Compiler(monkeypatch, 0.01, 0.02)  # the machine would say otherwise now
    again.fit()
    assert not told.choices()
    assert not compiler.passes
    assert {id(networks) for networks in compiler.compiled} == {id(again.state.networks)}


def test_who_is_to_stop_measures_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = itertools.count(1)
    one, told = lasting(*STILL, stop=lambda: next(steps) >= 4)
    compiler = Compiler(monkeypatch, 0.01, 0.02)
    with pytest.raises(Interrupted):
        one.fit()
    assert len(compiler.passes) == 2
    assert not told.choices()
    assert one.state_dict()["compiling"] is None
    assert (one.state.progress.epoch, one.state.progress.step) == (1, 3)


class Grows:
    """After the epochs 2 and 3: what is new then does not last."""

    name = "grows"

    def observe(self, state: Pretraining) -> None:
        """Nothing."""

    def decide(self, state: Pretraining) -> Decision:
        epoch, networks = state.progress.epoch, state.networks
        if epoch not in (2, 3):
            return Decision(None, {"reason": "another epoch"})
        widths = {"out_channels": 64 + 8 * epoch, "mode": "preserve", "seed": 3}
        return Decision(grow(networks.architecture, **widths), {"reason": "asked for"})

    def state_dict(self) -> dict[str, Any]:
        return {}


def test_networks_that_have_changed_are_measured_anew_once_they_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, told = lasting(*STILL, "pretrain.epochs=7", "curriculum.max_epochs_per_level=9")
    one.surgery.interventions = [Grows()]
    Compiler(monkeypatch, 0.01, 0.02)
    one.fit()
    assert [record.epoch for record in one.state.progress.history if record.accepted] == [2, 3]
    assert [(c["since"], c["epoch"]) for c in told.choices()] == [(-1, 1), (3, 5)]


def test_networks_that_cannot_be_compiled_stay_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    one, told = lasting(*STILL)
    compiler = Compiler(monkeypatch, 0.01, 0.01)
    timed = Probe.differentiate

    def refused(probe: Probe, networks: Networks, *given: Any, **more: Any) -> Any:
        if compiler.knows(networks):
            raise RuntimeError("no kernel\nin detail")
        return timed(probe, networks, *given, **more)

    monkeypatch.setattr(Probe, "differentiate", refused)
    one.fit()
    (choice,) = told.choices()
    assert choice["text"].endswith("plain, because torch cannot compile: no kernel")
    assert not compiler.knows(one.state.networks)
    assert one.state.progress.step == 8


def of_rank(rank: int) -> dict[str, Any]:
    """What a process of two chooses: by the clock of the second one it would be plain."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        one, told = lasting(*STILL, "hardware.devices=2", "hardware.batch_size=8")
        compiler = Compiler(monkeypatch, 0.02, 0.03 if rank else 0.01)
        one.fit()
        chosen = one.state_dict()["compiling"]
        assert chosen["compiled"] is True
        assert (chosen["plain_ms"], len(told.choices())) == (pytest.approx(20), 1)
        assert compiler.knows(one.state.networks)
        return {"digest": one._digest()}


@pytest.mark.slow
def test_two_processes_choose_what_the_first_one_measures() -> None:
    with workers(of_rank, devices=2):
        assert of_rank(0)


# -- what is compiled ------------------------------------------------------------------------------

SMALL = [
    "debug=tiny", "hardware=cpu", "hardware.precision=32-true", "evolution=none", "sparsity=none",
    "ssl.distillation_weight=0.5", "ssl.projection_hidden=16", "ssl.projection_dim=8",
    "backbone.channels=[8,8]", "pretrain.epochs=1", "pretrain.images_per_epoch=64",
    "hardware.batch_size=8", "hardware.gradient_accumulation_steps=2",
]  # fmt: skip


def trained(accumulate: str, *, compiled: bool) -> Trainer:
    """Steps of two parts, compiled from the first one on or never."""
    config = load([*SMALL, f"hardware.accumulate={accumulate}"])
    one = trainer_of(config, [], Sink(), None, lambda: False)
    if compiled:
        one.state.networks.compile()
    one.fit()
    return one


@pytest.mark.slow
def test_compiled_parts_give_the_gradient_of_the_whole_batch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Though each part comes twice: with a graph and without, with BN that tracks and without."""
    if shutil.which("g++") is None:
        pytest.skip("torch compiles for a CPU with a C++ compiler")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    parts, plain = trained("exact", compiled=True), trained("exact", compiled=False)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] >= 3, counters["stats"]
    assert not counters["graph_break"]
    found, expected = parts.state.networks.state_dict(), plain.state.networks.state_dict()
    for kind in ("student", "teacher"):
        assert found[kind].keys() == expected[kind].keys()
        for name, value in expected[kind].items():
            torch.testing.assert_close(found[kind][name], value, atol=2e-5, rtol=1e-4, msg=name)
    assert parts.state.progress.step == 4
    # Seen: what is compared here is not what averaging over parts gives.
    averaged = trained("plain", compiled=False).networks.state_dict()["student"]
    assert any(
        not torch.allclose(averaged[name], value, atol=1e-3)
        for name, value in expected["student"].items()
        if value.is_floating_point()
    )
