"""What a training costs, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from sseg_nase.config.compose import load
from sseg_nase.stages import pretrain
from sseg_nase.tracking.sink import Sink
from sseg_nase.training import checkpoint
from sseg_nase.training.interruption import Interrupted
from sseg_nase.training.interventions import importance
from sseg_nase.training.ledger import PARTS
from tests.unit.training.test_going_on import TINY
from tests.unit.training.test_steps import Wanted, grown, trainer

NOTHING = dict.fromkeys(PARTS, 0)
IMAGES, VIEWS = 64, 2  # of an epoch


def spent(*overrides: str, epochs: int = 1) -> dict[str, int]:
    one = trainer("evolution=none", "sparsity=none", f"pretrain.epochs={epochs}", *overrides)
    one.fit()
    return one.ledger.spent


def test_a_step_is_three_passes_of_every_view_and_one_of_the_teacher() -> None:
    macs = trainer("ablation=A2").state.networks.architecture.macs()
    student = 3 * VIEWS * IMAGES * macs
    assert spent("ssl.distillation_weight=0", epochs=2) == NOTHING | {"student": 2 * student}
    assert spent("ablation=A5") == NOTHING | {"student": student, "teacher": IMAGES * macs}
    assert spent("ssl=byol", "ssl.distillation_weight=0") == NOTHING | {
        "student": student,
        "teacher": VIEWS * IMAGES * macs,
    }
    again = ["hardware.gradient_accumulation_steps=2", "hardware.batch_size=8"]
    assert spent("ssl.distillation_weight=0", *again)["student"] == student
    for recomputed in (
        ["hardware.accumulate=exact", *again],
        ["hardware.gradient_checkpointing=true"],
    ):
        found = spent("ssl.distillation_weight=0", *recomputed)
        assert found["student"] == student // 3 * 4, recomputed


def test_what_a_mutation_costs() -> None:
    one = trainer("ablation=A2", "pretrain.epochs=3", "hardware.batch_size=16")
    one.surgery.interventions = [Wanted(lambda t: grown(t, grace=1, control=True))]
    one.fit()
    (record,) = one.state.progress.history
    before, after = record.before["macs"], record.after["macs"]
    held = len(list(one.state.probe.held())) * 16 * VIEWS
    images = 3 * VIEWS * IMAGES
    assert one.ledger.spent == NOTHING | {
        "student": images * (before + 2 * after),
        "control": images * before,
        "checks": 2 * held * (before + after),  # when it is made, and when its probation ends
    }


def test_trials_importance_and_statistics() -> None:
    one = trainer("ablation=A5", "hardware.batch_size=16")
    mutation = grown(one.state).mutation
    assert mutation is not None
    before, after = one.state.networks.architecture.macs(), mutation.after.macs()
    held = len(list(one.state.probe.held())) * 16 * (VIEWS + 1)
    one.state.probe.trials(one.state.networks, [mutation], epoch=0, steps=2, lr=0.01)
    importance(one.state, kind="taylor", batches=3, seed=0)
    batch = 16 * (3 * VIEWS + 1)
    assert one.ledger.spent == NOTHING | {
        "trials": 2 * batch * (before + after) + held * (2 * before + after),
        "importance": 3 * batch * before,
    }
    one.ledger.load({})
    one.state.probe.gap(one.state.networks)
    assert one.ledger.spent["checks"] == 2 * held // (VIEWS + 1) * before
    one.ledger.load({})
    one.state.probe.recalibrate(one.state.networks, 0, 2)  # student and teacher, both views
    assert one.ledger.spent["checks"] == 2 * 2 * 16 * VIEWS * before


def test_a_resumed_run_has_spent_as_much(tmp_path: Path) -> None:
    config = load([*TINY, "ablation=A7", "pretrain.epochs=4"])
    whole = pretrain(config, Sink(), tmp_path / "whole").ledger.state()
    asked = iter(range(1000))
    with pytest.raises(Interrupted):
        pretrain(config, Sink(), tmp_path / "parts", stop=lambda: next(asked) == 5)
    state = checkpoint.load(tmp_path / "parts" / "checkpoints" / "last.pt")
    resumed = pretrain(config, Sink(), tmp_path / "parts", state=state)
    assert resumed.ledger.state() == whole
    assert whole is not None
    assert all(whole[part] > 0 for part in ("student", "teacher", "importance", "checks"))
    del state["macs"]  # of an older version
    assert pretrain(config, Sink(), tmp_path / "old", state=state).ledger.state() is None
