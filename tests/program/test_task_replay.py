"""task=replay on the log of a run that mutated, and on one that somebody changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from sseg_nase.config.compose import load
from sseg_nase.errors import UserError
from sseg_nase.nets.architecture import Architecture
from sseg_nase.run import run

TINY = ["debug=tiny", "tracking=jsonl", "hardware=cpu", "hardware.precision=32-true"]

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture(scope="module")
def mutated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was finished, with mutations."""
    place = f"paths.output_dir={tmp_path_factory.mktemp('mutated')}"
    taking_turns = [
        "evolution.operators=[grow,widen_all]", "evolution.max_repeats=1",
        "evolution.trial_margin=null", "curriculum.progression=false",
    ]  # fmt: skip
    return run(load([*TINY, "ablation=A7", "pretrain.epochs=8", *taking_turns, place]))


@pytest.fixture
def folder(mutated: Path, tmp_path: Path) -> Path:
    """A copy that a test may change; what replay does not need is not there."""
    copied = tmp_path / "copied"
    copied.mkdir()
    for name in ("config.yaml", "mutations.jsonl", "architecture.json"):
        shutil.copy(mutated / name, copied)
    return copied


def replayed(folder: Path) -> Path:
    return run(load([*TINY, "task=replay", f"run={folder}"]))


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "mutations.jsonl").read_text().splitlines()]


def messages(directory: Path) -> list[str]:
    lines = [json.loads(line) for line in (directory / "events.jsonl").read_text().splitlines()]
    return [line["values"]["text"] for line in lines if line["kind"] == "message"]


def tamper(folder: Path, index: int, change: Callable[[dict[str, Any]], Any]) -> None:
    lines = records(folder)
    change(lines[index])
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "mutations.jsonl").write_text(text)


def test_the_log_alone_gives_the_architecture_of_the_run(mutated: Path, folder: Path) -> None:
    log = records(mutated)
    assert {record["kind"] for record in log} == {"GROW", "WIDEN", "PRUNE"}
    directory = replayed(folder)
    assert json.loads((directory / "status.json").read_text())["status"] == "FINISHED"
    final = (directory / "architecture.json").read_text()
    assert json.loads(final) == json.loads((mutated / "architecture.json").read_text())
    steps = [Architecture.from_dict(a) for a in json.loads((directory / "replay.json").read_text())]
    accepted = [record for record in log if record["accepted"]]
    assert [list(a.channels) for a in steps[1:]] == [r["after"]["channels"] for r in accepted]
    assert [a.macs() for a in steps[1:]] == [r["after"]["macs"] for r in accepted]
    assert steps[0].channels == (16, 32, 64)
    assert steps[-1].to_dict() == json.loads(final)
    said = [text for text in messages(directory) if text.startswith("mutation ")]
    assert len(said) == len(log)
    for text, record in zip(said, log, strict=True):
        after = record["after"]
        assert text == (
            f"mutation {record['index']}: {record['kind']} after epoch "
            f"{record['epoch'] + 1}, "
            f"channels {'-'.join(map(str, after['channels']))}, params {after['params']:,}, "
            f"macs {after['macs']:,} ({'accepted' if record['accepted'] else 'rolled back'})"
        )


def test_neither_the_data_set_nor_a_finished_run_is_needed(folder: Path) -> None:
    (folder / "architecture.json").unlink()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["dataset"] |= {"name": "folder", "root": "nowhere"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    overrides = [*TINY, "task=replay", f"run={folder}", "dataset=folder", "dataset.root=nowhere"]
    assert (run(load(overrides)) / "replay.json").exists()


def test_a_run_without_mutations() -> None:
    directory = replayed(run(load([*TINY, "ablation=A1"])))
    (only,) = json.loads((directory / "replay.json").read_text())
    assert only == json.loads((directory / "architecture.json").read_text())
    assert Architecture.from_dict(only) == Architecture.seed((16, 32, 64), resolution=16)


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        replayed(folder)
    (status,) = Path("runs").glob("*/*/status.json")
    recorded = json.loads(status.read_text())
    assert recorded["status"] == "FAILED"
    assert not (status.parent / "architecture.json").exists()
    message = str(caught.value)
    assert message == recorded["error"]
    assert message.startswith(f"run={folder}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("index", [0, 2])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_tampered_figure_is_named(folder: Path, index: int, when: str) -> None:
    true = records(folder)[index][when]["params"]
    tamper(folder, index, lambda record: record[when].update(params=true - 3))
    said = f"mutations.jsonl, mutation {index}: {when}.params is {true - 3} in the record, "
    assert f"{said}rebuilt it is {true}" in refused(folder)


def cut(path: Path, kept: int) -> None:
    path.write_text(path.read_text()[:kept])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: cut(f / "mutations.jsonl", -40), "mutations.jsonl, mutation {last} is damaged"),
        (
            lambda f: (f / "mutations.jsonl").write_text("[]\n"),
            "mutations.jsonl, mutation 0 is damaged",
        ),
        (
            lambda f: (f / "mutations.jsonl").write_bytes(b"\xff\n"),
            "mutations.jsonl, mutation 0 is damaged",
        ),
        (lambda f: (f / "mutations.jsonl").unlink(), "mutations.jsonl cannot be read (No such"),
        (
            lambda f: tamper(f, 1, lambda record: record.update(index=4)),
            "mutations.jsonl holds mutation 4 where mutation 1 belongs",
        ),
        (
            lambda f: tamper(f, 1, lambda record: record.pop("target")),
            "mutations.jsonl, mutation 1: not a record",
        ),
        (
            lambda f: tamper(f, 0, lambda record: record.update(kind="SHRINK")),
            "mutations.jsonl, mutation 0: mutation kind 'SHRINK': accepted GROW, WIDEN, PRUNE",
        ),
        (lambda f: (f / "mutations.jsonl").write_text(""), "architecture.json is not the arch"),
        (lambda f: cut(f / "architecture.json", 30), "architecture.json is damaged"),
        (lambda f: (f / "architecture.json").write_text("{}"), "architecture.json is damaged"),
        (lambda f: cut(f / "config.yaml", 30), "config.yaml is damaged"),
        (lambda f: (f / "config.yaml").write_text("a: [1"), "config.yaml is damaged"),
        (lambda f: (f / "config.yaml").unlink(), "config.yaml cannot be read (No such"),
    ],
)
def test_a_damaged_file_is_named(folder: Path, damage: Callable[[Path], Any], said: str) -> None:
    last = len(records(folder)) - 1
    damage(folder)
    assert said.format(last=last) in refused(folder)


def test_another_seed_network_is_found_out(folder: Path) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["backbone"]["channels"] = [16, 32, 48]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert "mutation 0: before.channels is [16, 32, 64] in the record" in refused(folder)


def test_only_a_run_that_trained_has_a_history(folder: Path) -> None:
    directory = replayed(folder)
    with pytest.raises(UserError, match="its task was replay"):
        replayed(directory)
