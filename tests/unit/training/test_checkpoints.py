"""Which networks are kept, and that a file runs no code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sseg_nase.config.compose import load as composed
from sseg_nase.errors import UserError
from sseg_nase.stages.setup import seed_backbone
from sseg_nase.tracking.sink import Sink
from sseg_nase.training import callbacks, checkpoint
from sseg_nase.training.callbacks import Checkpoints
from sseg_nase.training.events import Event
from sseg_nase.training.state import EpochMeans, Pretraining
from tests.support.small_state import record_of, state_of


def beginning() -> Pretraining:
    """A training whose checkpoints hold its epoch."""
    state = state_of()
    state.checkpoint = lambda: {"epoch": state.progress.epoch}
    return state


def means_of(level: str, loss: float, total: float = 0.0) -> EpochMeans:
    return EpochMeans(level, (16,), total, loss, None, 1.0)


def kept(folder: Path, epochs: list[tuple[str, float]], interval: int = 1) -> list[int]:
    """The epoch in best.pt after each of `epochs` of a level and a loss."""
    checkpoints, state = Checkpoints(folder, interval, {"extra": 1}), beginning()
    found = []
    for epoch, (level, loss) in enumerate(epochs):
        state.progress.epoch = epoch
        # The total, with the teacher's part, decides nothing.
        state.means = means_of(level, loss, -100.0 * epoch)
        checkpoints.on(Event.EPOCH_END, state)
        found.append(checkpoint.load(folder / "best.pt")["epoch"])
    return found


def test_the_best_is_that_of_the_latest_level(tmp_path: Path) -> None:
    epochs = [
        ("BASIC", 3.0), ("BASIC", 2.0), ("BASIC", 2.5),
        ("TEXTURE", 4.0), ("TEXTURE", 4.1), ("TEXTURE", 3.9),
        ("OBJECT", 9.0),
    ]  # fmt: skip
    assert kept(tmp_path, epochs) == [0, 1, 1, 3, 3, 5, 6]
    assert checkpoint.load(tmp_path / "best.pt")["extra"] == 1


def test_of_equal_losses_the_first_is_kept(tmp_path: Path) -> None:
    assert kept(tmp_path, [("BASIC", 2.0)] * 3) == [0, 0, 0]


def test_the_last_is_written_every_so_many_epochs_and_after_a_mutation(tmp_path: Path) -> None:
    checkpoints, state = Checkpoints(tmp_path, 3, {}), beginning()
    written = []
    for epoch in range(8):
        state.progress.epoch = epoch
        if epoch == 4:
            state.progress.history.append(record_of())
        if epoch == 5:  # a rollback is a change, too
            state.progress.history[0] = record_of(accepted=False)
        (tmp_path / "last.pt").unlink(missing_ok=True)
        checkpoints.on(Event.EPOCH_START, state)
        if (tmp_path / "last.pt").exists():
            written.append(epoch)
    assert written == [3, 4, 5, 6]
    for event in (Event.INTERRUPT, Event.FIT_END):
        (tmp_path / "last.pt").unlink(missing_ok=True)
        checkpoints.on(event, state)
        assert (tmp_path / "last.pt").exists()


def test_the_latest_are_kept_by_the_number_of_their_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, there = beginning(), []
    for epoch in range(9):
        # A new one each time, as after a resume: the folder says what is there.
        checkpoints = Checkpoints(tmp_path, 2, {}, keep=2)
        state.progress.epoch = epoch
        checkpoints.on(Event.EPOCH_START if epoch < 8 else Event.FIT_END, state)
        there.append(sorted(int(path.stem[6:]) for path in tmp_path.glob("epoch_*.pt")))
    assert there == [[], [], [2], [2], [2, 4], [2, 4], [4, 6], [4, 6], [6, 8]]
    assert checkpoint.load(tmp_path / "epoch_0006.pt")["epoch"] == 6
    wanted: list[int] = []
    monkeypatch.setattr(callbacks, "check_room", lambda folder, needed: wanted.append(needed))
    monkeypatch.setattr(callbacks, "size_of", lambda state: 100)
    for folder in (tmp_path, tmp_path / "new"):
        Checkpoints(folder, 2, {}, keep=3).on(Event.FIT_START, state)
    assert wanted == [100 + 100, 200 + 300]  # best.pt and one more; both and three


class Hostile:
    """Runs code where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_a_checkpoint_with_code_in_it_is_refused_and_nothing_runs(tmp_path: Path) -> None:
    path, ran = tmp_path / "evil.pt", tmp_path / "ran"
    torch.save({"schema": checkpoint.SCHEMA, "student": {}, "x": Hostile(ran)}, path)
    for read in (checkpoint.load, checkpoint.backbone_of, checkpoint.resumable):
        with pytest.raises(UserError, match=r"evil\.pt: not a checkpoint of sseg-nase"):
            read(path)
    assert not ran.exists()
    torch.load(path, weights_only=False)  # the file does what it is meant to
    assert ran.exists()


def test_a_resumed_training_keeps_the_best_so_far(tmp_path: Path) -> None:
    kept(tmp_path, [("BASIC", 3.0), ("BASIC", 2.0)])
    before, after, state = Checkpoints(tmp_path, 1, {}), Checkpoints(tmp_path, 1, {}), beginning()
    for checkpoints, epoch, loss in ((before, 1, 2.0), (after, 2, 2.5)):
        if checkpoints is after:
            after.load_state_dict(before.state_dict())
        state.progress.epoch = epoch
        state.means = means_of("BASIC", loss)
        checkpoints.on(Event.EPOCH_END, state)
    assert checkpoint.load(tmp_path / "best.pt")["epoch"] == 1


def test_sparsity_is_the_share_of_channels_that_were_removed() -> None:
    told: list[dict[str, float]] = []

    class Told(Sink):
        def metrics(self, values: Any, step: int) -> None:
            told.append(dict(values))

    state = state_of(sink=Told())
    left = sum(state.networks.architecture.axes.values())
    removed = {"0": range(4), "1": range(left // 3 - 4)}
    state.progress.history.append(record_of(kind="PRUNE", target={"removed": removed}))
    callbacks.ArchitectureMetrics().on(Event.FIT_END, state)
    (figures,) = told
    assert figures["arch/sparsity"] == pytest.approx(0.25, rel=0.01)
    assert (figures["arch/blocks"], figures["arch/width"]) == (3, 64)


def test_room_is_wanted_for_the_files_that_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: list[int] = []
    monkeypatch.setattr(callbacks, "check_room", lambda folder, needed: wanted.append(needed))
    monkeypatch.setattr(callbacks, "size_of", lambda state: 100)
    for name in ("nothing", *callbacks.FILES):
        (tmp_path / name).touch()
        Checkpoints(tmp_path, 1, {}).on(Event.FIT_START, beginning())
    assert wanted == [200, 100, 100]


def test_a_loaded_network_is_in_eval_mode(tmp_path: Path) -> None:
    network = seed_backbone(composed(["hardware=cpu"])).train()
    weights = {f"backbone.{name}": tensor for name, tensor in network.state_dict().items()}
    payload = {"architecture": network.architecture.to_dict(), "student": weights}
    checkpoint.save(tmp_path / "last.pt", payload)
    assert not checkpoint.load_network(tmp_path / "last.pt").training


def test_the_fine_tuned_network_stands_for_its_run(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("last.pt", "finetune_best.pt"):
        (folder / name).touch()
        assert checkpoint.file_of(tmp_path) == folder / name


def test_a_resumed_training_does_not_write_again_what_it_began_with(tmp_path: Path) -> None:
    before, after, state = (
        Checkpoints(tmp_path, 100, {}),
        Checkpoints(tmp_path, 100, {}),
        beginning(),
    )
    state.progress.epoch = 3
    state.progress.history.append(record_of())
    before.on(Event.INTERRUPT, state)
    (tmp_path / "last.pt").unlink()
    after.load_state_dict(before.state_dict())
    after.on(Event.EPOCH_START, state)
    assert not (tmp_path / "last.pt").exists()


def test_the_room_for_a_checkpoint_is_that_after_the_first_step() -> None:
    weights = {"w": torch.zeros(10), "b": torch.zeros(2, dtype=torch.float64)}  # 56 bytes
    assert callbacks.size_of({"student": weights, "moments": {}}) == 3 * 56
    assert callbacks.size_of({"student": weights, "moments": {"w": weights}}) == 2 * 56
    kept = {"student": {}, "moments": {}, "memory": [weights, (weights, "text", 3)], "epoch": 7}
    assert callbacks.size_of(kept) == 2 * 56


def test_only_files_of_this_version_are_read(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    for payload in ({"student": {}}, {"schema": checkpoint.SCHEMA + 1}, [1, 2]):
        torch.save(payload, path)
        with pytest.raises(UserError, match="not a checkpoint of this version"):
            checkpoint.load(path)
    with pytest.raises(UserError, match=r"nowhere\.pt: there is no such file"):
        checkpoint.load(tmp_path / "nowhere.pt")


FINE, BAD = {"w": torch.ones(2)}, {"w": torch.tensor([1.0, float("nan")])}


@pytest.mark.parametrize(
    ("last", "best", "said"),
    [
        ("last", FINE, r"best\.pt is finite: replace last\.pt with it"),
        ("last", BAD, r"Remove .*last\.pt to begin again"),
        ("last", None, r"Remove .*last\.pt to begin again"),
        # What fine-tuning has found best is no state to train on from.
        ("finetune_last", FINE, r"Remove .*finetune_last\.pt to begin again"),
    ],
)
def test_what_cannot_be_trained_on_from_is_refused_with_what_to_do(
    last: str, best: dict[str, Any] | None, said: str, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    path = folder / f"{last}.pt"
    progress = dict.fromkeys(checkpoint.PROGRESS[last], 0)
    torch.save({"schema": checkpoint.SCHEMA, **progress, "student": BAD}, path)
    if best is not None:
        torch.save(
            {"schema": checkpoint.SCHEMA, "student": best},
            folder / path.name.replace("last", "best"),
        )
    with pytest.raises(UserError, match=rf"resume={tmp_path}: .*student\.w.*{said}"):
        checkpoint.resumable(path)
    checkpoint.save(path, {**progress, "student": FINE})
    assert torch.equal(checkpoint.resumable(path)["student"]["w"], FINE["w"])


def stored_network(path: Path, *overrides: str, accepted: bool | None = None) -> Any:
    """A checkpoint of a seed network; `accepted`: whether the mutation in its history was."""
    network = seed_backbone(composed(["hardware=cpu", *overrides]))
    history = [] if accepted is None else [{"accepted": accepted}]
    checkpoint.save(
        path,
        {
            "architecture": network.architecture.to_dict(),
            "student": {f"backbone.{name}": t for name, t in network.state_dict().items()},
            "history": history,
        },
    )
    return network


def test_a_network_is_that_of_its_file_or_none(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    network = stored_network(path)
    payload = checkpoint.load(path)
    teacher = {name.removeprefix("backbone."): t + 1 for name, t in payload["student"].items()}
    checkpoint.save(path, {**payload, "teacher": teacher})  # which is not what is asked for
    found = checkpoint.backbone_of(path).state_dict()
    assert all(torch.equal(found[name], t) for name, t in network.state_dict().items())
    for change in ("missing", "left over"):
        student = dict(payload["student"])
        if change == "missing":
            student.pop(next(iter(student)))
        else:
            student["backbone.more"] = torch.ones(1)
        checkpoint.save(path, {**payload, "student": student})
        with pytest.raises(UserError, match="architecture and weights do not belong together"):
            checkpoint.backbone_of(path)


@pytest.mark.parametrize(
    ("trained", "accepted", "asked", "said"),
    [
        ([], None, [], None),
        ([], None, ["backbone=conv4"], r"backbone=conv4: .*holds another network"),
        (["backbone=conv4"], None, [], None),  # the default asks for nothing in particular
        (["backbone=conv4"], None, ["backbone=conv4"], None),
        (
            ["backbone=conv4"],
            None,
            ["backbone=conv4", "backbone.blocks_per_stage=2"],
            "64-64-64-64",
        ),
        (
            ["backbone=seed_wide", "backbone.blocks_per_stage=2"],
            None,
            ["backbone=seed_wide", "backbone.blocks_per_stage=2"],
            None,
        ),
        ([], True, ["backbone=conv4"], None),  # it may have been a conv4 once
        ([], False, ["backbone=conv4"], r"backbone=conv4: .*holds another network"),
        (["backbone=resnet12_quarter"], None, ["backbone=conv4"], "holds another network"),
        (["dataset.channels=1"], None, [], r"dataset.channels=3: .*in_channels=1"),
        ([], None, ["dataset.channels=1"], r"dataset.channels=1: .*in_channels=3"),
        (["backbone=vit_small"], None, ["dataset.image_size=64"], "takes .* px only"),
        ([], None, ["dataset.image_size=64"], None),
    ],
)
def test_a_network_for_the_images_of_a_run(
    trained: list[str], accepted: bool | None, asked: list[str], said: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "last.pt"
    rigid = ["evolution=none", "sparsity=none"]
    stored_network(path, *rigid, *trained, accepted=accepted)
    config = composed(["hardware=cpu", *rigid, *asked])
    if said is not None:
        with pytest.raises(UserError, match=said):
            checkpoint.backbone_for(path, config)
        return
    network = checkpoint.backbone_for(path, config)
    assert network.architecture.resolution == config.dataset.image_size
