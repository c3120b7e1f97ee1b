"""A run is tied to its images: where they lie is frozen, what they are is recorded and compared."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from sseg_nase.config.commands import override
from sseg_nase.config.compose import continued, load
from sseg_nase.data.curriculum.render import DRAWING
from sseg_nase.errors import UserError
from sseg_nase.reporting.aggregate import Entry, aggregate
from sseg_nase.reporting.comparison import compare
from sseg_nase.reporting.figures import curriculum
from sseg_nase.reporting.figures.curriculum import natural_images
from sseg_nase.run import run
from sseg_nase.rundir.directory import RunDirectory, with_former_values
from sseg_nase.rundir.lock import locked
from sseg_nase.rundir.record import read_run
from sseg_nase.rundir.status import own_run_id
from sseg_nase.stages import fitted, identity
from sseg_nase.training import checkpoint

OWN = [
    "debug=tiny",
    "hardware=cpu",
    "hardware.threads=1",
    "hardware.precision=32-true",
    "tracking=jsonl",
    "ablation=A2",
    "dataset=folder",
    "dataset.root=imgs",
    "dataset.image_size=16",
    "curriculum=natural",
    "pretrain.images_per_epoch=24",
    "evaluation.ways=2",
    "evaluation.shots=[1]",
    "evaluation.queries=2",
    "evaluation.untrained_reference=false",
]

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def images(root: Path, seed: int = 0, per_class: int = 4, first: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for split, classes in (("train", range(first, first + 3)), ("val", (10, 11))):
        for c in classes:
            folder = root / split / f"c{c}"
            folder.mkdir(parents=True)
            for i in range(per_class):
                pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")


def ran(*overrides: str) -> Path:
    """As the command line does it: a resumed run's own overrides first."""
    return run(load(overrides), [*overrides, *continued(overrides)])


def results(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "results.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `one` with a run of one epoch, and `imgs`."""
    folder = tmp_path_factory.mktemp("data") / "one"
    images(folder / "imgs")
    before = Path.cwd()
    os.chdir(folder)
    try:
        ran(*OWN, "pretrain.epochs=1")
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def one(finished: Path, tmp_path: Path) -> Path:
    """A copy of `finished`, whose run says where it lies now."""
    folder = tmp_path / "one"
    shutil.copytree(finished, folder)
    for name in ("config.yaml", "overrides.yaml", "status.json", "data.json"):
        path = only_run(folder) / name
        path.write_text(path.read_text().replace(str(finished), str(folder)))
    return folder


def only_run(folder: Path) -> Path:
    (found,) = (folder / "runs" / "debug").iterdir()
    return found


def other(folder: Path, name: str, **how: Any) -> Path:
    """Another folder beside `folder` that has other images under the same relative name."""
    place = folder.parent / name
    images(place / "imgs", **how)
    return place


# -- where they lie ------------------------------------------------------------------------------


def test_paths_are_absolute_in_what_a_run_has_written(one: Path) -> None:
    config = yaml.safe_load((only_run(one) / "config.yaml").read_text())
    assert config["dataset"]["root"] == str(one / "imgs")
    assert config["paths"]["data_dir"] == str(one / "data")
    assert config["paths"]["output_dir"] == str(one / "runs")
    assert Path(config["paths"]["cache_dir"]).is_absolute()
    assert f"dataset.root={one / 'imgs'}" in (only_run(one) / "overrides.yaml").read_text()


def test_the_tracker_is_told_of_every_split_and_what_it_is_for(one: Path) -> None:
    first = (only_run(one) / "events.jsonl").read_text().splitlines()[0]
    told = json.loads(first)["values"]["datasets"]
    known = json.loads((only_run(one) / "data.json").read_text())["images"]
    assert {each["name"]: each["roles"] for each in told} == {
        "folder/val": "evaluate",
        "folder/train": "centre, pretrain",
    }
    assert {each["name"]: (each["digest"], each["images"]) for each in told} == {
        key: (image["identity"], image["count"]) for key, image in known.items()
    }


@pytest.mark.parametrize("name", ["it's (1), 50%", 'a "b" = [c]', "back\\slash"])
def test_odd_paths_come_back_as_they_are(name: str, tmp_path: Path) -> None:
    place = tmp_path / name
    place.mkdir()
    os.chdir(place)
    overrides = ["tracking=jsonl", "task=evaluate", "checkpoint=x.pt"]
    made = RunDirectory.create(_settled(overrides), overrides)
    made.release()
    (line,) = (o for o in continued([override("resume", made.path)]) if "checkpoint" in o)
    assert load(["task=evaluate", line]).checkpoint == str(place / "x.pt")


def _settled(overrides: list[str]) -> Any:
    from sseg_nase.config.places import settled

    config, _ = fitted(settled(load(overrides)))
    return config


def test_a_run_is_resumed_in_any_folder_on_its_own_images(
    one: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = other(one, "two", seed=7, first=5)  # has other images under the same name
    monkeypatch.chdir(elsewhere)
    place = only_run(one)
    ran(f"resume={place}", "pretrain.epochs=2", "resume_overrides=true")
    assert not (elsewhere / "runs").exists()
    (trained,) = results(place)["data"]["trained"]
    assert trained["source"] == str(one / "imgs")
    assert "c11" in (place / "per_class.csv").read_text()


def test_images_that_have_moved_need_no_consent(one: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (one / "imgs").rename(one.parent / "moved")
    place = only_run(one)
    with pytest.raises(UserError, match=r"dataset\.root"):  # it is not there
        ran(f"resume={place}", "pretrain.epochs=2", "resume_overrides=true")
    ran(
        f"resume={place}",
        f"dataset.root={one.parent / 'moved'}",
        "pretrain.epochs=2",
        "resume_overrides=true",
    )
    assert "earlier" not in json.loads((place / "data.json").read_text())
    assert f"dataset.root is {one.parent / 'moved'} now" in (place / "events.jsonl").read_text()


def test_a_resumed_run_that_is_refused_stays_what_it_was(one: Path) -> None:
    place = only_run(one)
    before = (place / "config.yaml").read_text()
    (one / "imgs").rename(one / "hidden")
    with pytest.raises(UserError, match=r"dataset\.root"):
        ran(f"resume={place}", "pretrain.epochs=2", "resume_overrides=true")
    assert (place / "config.yaml").read_text() == before
    (one / "hidden").rename(one / "imgs")
    ran(f"resume={place}", "pretrain.epochs=2", "resume_overrides=true")  # not "nothing to do"
    assert checkpoint.load(place / "checkpoints" / "last.pt")["epoch"] == 2
    with pytest.raises(UserError, match=r"pretrain\.epochs=1: .* has trained for 2 already"):
        ran(f"resume={place}", "pretrain.epochs=1", "resume_overrides=true")


def test_data_folders_of_another_machine_are_where_the_environment_says(
    one: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert any("paths.data_dir" in o for o in _with_data_dir(one, one / "imgs"))
    assert not any("paths.data_dir" in o for o in _with_data_dir(one, one / "gone"))


def _with_data_dir(one: Path, folder: Path) -> list[str]:
    path = only_run(one) / "overrides.yaml"
    lines = [o for o in yaml.safe_load(path.read_text()) if "data_dir" not in o]
    path.write_text(yaml.safe_dump([*lines, f"paths.data_dir='{folder}'"]))
    return continued([f"resume={only_run(one)}"])


# -- what they are -------------------------------------------------------------------------------


def more_images(root: Path) -> None:
    Image.new("RGB", (16, 16), (9, 9, 9)).save(root / "train" / "c0" / "more.png")


def other_pixels(root: Path) -> None:
    Image.new("RGB", (16, 16), (9, 9, 9)).save(root / "train" / "c0" / "0.png")


def other_class(root: Path) -> None:
    (root / "train" / "c0").rename(root / "train" / "renamed")


def other_label(root: Path) -> None:
    (root / "train" / "c0" / "0.png").rename(root / "train" / "c1" / "z.png")


def other_evaluation(root: Path) -> None:
    Image.new("RGB", (16, 16), (9, 9, 9)).save(root / "val" / "c10" / "0.png")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (more_images, r"folder/train: 12 images then, 13 now"),
        (other_pixels, r"folder/train: .* other pixels"),
        (other_class, r"folder/train: classes gone: c0; new classes: renamed"),
        (other_label, r"folder/train: .* other (pixels|labels)"),
        (other_evaluation, r"folder/val: .* other pixels"),
    ],
)
def test_other_images_are_refused_and_the_run_stays_as_it_was(
    change: Callable[[Path], None], said: str, one: Path
) -> None:
    place = only_run(one)
    before = {p: p.read_bytes() for p in place.rglob("*") if p.is_file()}
    change(one / "imgs")
    status = place / "status.json"
    status.write_text(status.read_text().replace("FINISHED", "INTERRUPTED"))
    with pytest.raises(UserError, match=said) as refused:
        ran(f"resume={place}")
    assert "resume_overrides=true" in str(refused.value)
    assert "INTERRUPTED" in status.read_text()
    after = {p: p.read_bytes() for p in place.rglob("*") if p.is_file() and p.name != "status.json"}
    assert all(after[p] == content for p, content in before.items() if p != status)


def test_other_images_that_are_meant_are_recorded_with_the_first_ones(one: Path) -> None:
    place = only_run(one)
    first = json.loads((place / "data.json").read_text())
    other_pixels(one / "imgs")
    ran(f"resume={place}", "pretrain.epochs=2", "resume_overrides=true")
    data = json.loads((place / "data.json").read_text())
    (earlier,) = data["earlier"]
    assert earlier["until_epoch"] == 1
    assert earlier["images"] == first["images"]
    assert data["images"]["folder/train"] != first["images"]["folder/train"]
    assert len(results(place)["data"]["trained"]) == 2
    assert "resumed with other data" in (place / "events.jsonl").read_text()


DRAWN = [
    *(o for o in OWN if not o.startswith(("dataset", "curriculum"))),
    "dataset.image_size=16",
    "evaluation.episodes=2",
    "pretrain.epochs=1",
]


def test_pictures_that_another_version_drew_are_other_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = ran(*DRAWN)
    assert json.loads((place / "data.json").read_text())["drawing"] == DRAWING
    assert results(place)["data"]["drawing"] == DRAWING
    interrupted(place)
    monkeypatch.setattr(identity, "DRAWING", DRAWING + 1)
    said = rf"BASIC.* drawn by version {DRAWING} of .* has version {DRAWING + 1}\n.*begun with;"
    with pytest.raises(UserError, match=said):
        ran(f"resume={place}")
    ran(f"resume={place}", "pretrain.epochs=2", "resume_overrides=true")
    data = json.loads((place / "data.json").read_text())
    assert [part["drawing"] for part in data["earlier"]] == [DRAWING]
    assert data["drawing"] == DRAWING + 1
    # What is shown of its levels would not be what it saw.
    assert curriculum.images_of(read_run(place), "BASIC", 16) is None
    monkeypatch.setattr(curriculum, "DRAWING", DRAWING + 1)
    assert curriculum.images_of(read_run(place), "BASIC", 16) is not None


def test_a_refusal_names_the_epochs_that_were_trained(one: Path) -> None:
    place = only_run(one)
    ran(f"resume={place}", "pretrain.epochs=3", "resume_overrides=true")
    other_pixels(one / "imgs")
    status = place / "status.json"
    status.write_text(status.read_text().replace("FINISHED", "INTERRUPTED"))
    with pytest.raises(UserError, match="others than those of epochs 1–3"):
        ran(f"resume={place}")


def test_a_run_of_an_older_version_is_resumed_and_says_that_it_was_not_compared(one: Path) -> None:
    place = only_run(one)
    (place / "data.json").unlink()
    config = place / "config.yaml"
    config.write_text(config.read_text().replace(str(one / "imgs"), "imgs"))
    ran(f"resume={place}", "pretrain.epochs=2", "resume_overrides=true")
    assert "they are not compared" in (place / "events.jsonl").read_text()
    assert (place / "data.json").exists()


def as_an_older_version_wrote(config: Path) -> None:
    """Take out of a run's config.yaml what an older version did not have."""
    values = yaml.safe_load(config.read_text())
    for section, key in (
        ("dataset", "background"),
        ("dataset", "value_range"),
        ("dataset", "duplicates"),
        ("dataset", "overlap"),
        ("sweep", "dry_run"),
        ("hardware", "accumulate"),
    ):
        del values[section][key]
    config.write_text(yaml.safe_dump(values, sort_keys=False))


def test_keys_that_an_older_version_did_not_have_are_unchanged(one: Path) -> None:
    place = only_run(one)
    as_an_older_version_wrote(place / "config.yaml")
    status = place / "status.json"
    status.write_text(status.read_text().replace("FINISHED", "INTERRUPTED"))
    ran(f"resume={place}")
    assert "FINISHED" in status.read_text()
    assert "resumed with" not in (place / "events.jsonl").read_text()


def interrupted(place: Path) -> None:
    status = place / "status.json"
    status.write_text(status.read_text().replace("FINISHED", "INTERRUPTED"))


def test_python_resumes_a_run_as_the_command_line_does(one: Path) -> None:
    place = only_run(one)
    before = load([f"resume={place}"])
    assert (before.dataset.name, before.evaluation.ways, before.ablation) == ("folder", 2, "A2")
    interrupted(place)
    run(before)
    assert "resumed with" not in (place / "events.jsonl").read_text()
    run(load([f"resume={place}", "pretrain.epochs=2", "resume_overrides=true"]))
    said = (place / "events.jsonl").read_text()
    assert "resumed with pretrain.epochs: 1 -> 2" in said
    assert said.count('"resumed with ') == 1
    assert len(results(place)["data"]["trained"]) == 1
    interrupted(place)
    ran(f"resume={place}")  # with what Python has left of its overrides


def test_a_run_that_lost_its_overrides_is_resumed_by_its_config(one: Path) -> None:
    place = only_run(one)
    interrupted(place)
    # The last names what came from the `--config-dir` of its command.
    for text in (None, "{a: 1}", "- a b=[", "- experiment=of_mine"):
        path = place / "overrides.yaml"
        path.unlink() if text is None else path.write_text(text)
        config = load([f"resume={place}"])
        assert (config.dataset.root, config.pretrain.epochs) == (str(one / "imgs"), 1)
    ran(f"resume={place}")
    assert results(place)["status"] == "FINISHED"


def test_checkpoints_that_were_cut_off_are_named_with_what_to_do(one: Path) -> None:
    place = only_run(one)
    interrupted(place)
    last, best = (place / "checkpoints" / f"{name}.pt" for name in ("last", "best"))
    whole = last.read_bytes()
    last.write_bytes(whole[: len(whole) // 2])
    for further in ([], ["pretrain.epochs=2", "resume_overrides=true"]):
        with pytest.raises(UserError, match=rf"^resume={place}: .*last\.pt.*\(cp {best} {last}\)"):
            ran(f"resume={place}", *further)
    assert "INTERRUPTED" in (place / "status.json").read_text()
    last.write_bytes(whole)
    best.write_bytes(whole[: len(whole) // 2])
    ran(f"resume={place}")  # all is trained: nothing is lost but a comparison
    assert "best.pt is damaged" in (place / "events.jsonl").read_text()
    assert "fewshot_best" not in results(place)


def test_an_older_run_accumulates_as_it_began(one: Path) -> None:
    """Whatever its profile has now: its schedule and losses are those of plain accumulation."""
    place = only_run(one)
    as_an_older_version_wrote(place / "config.yaml")
    given = [f"resume={place}", "hardware=rtx3050", "hardware.accelerator=cpu"]
    config = load(given)
    assert config.hardware.accumulate == "exact"
    assert with_former_values(config, given).hardware.accumulate == "plain"
    given.append("hardware.accumulate=exact")
    assert with_former_values(load(given), given).hardware.accumulate == "exact"
    assert with_former_values(load(given[1:]), given[1:]).hardware.accumulate == "exact"


def test_keys_that_an_older_version_did_not_have_count_where_they_are_given(one: Path) -> None:
    place = only_run(one)
    as_an_older_version_wrote(place / "config.yaml")
    with pytest.raises(UserError, match=r"dataset\.background: None -> \[0, 0, 0\]"):
        ran(f"resume={place}", "dataset.background=[0,0,0]")


def test_a_file_with_other_keys_is_no_config_of_a_run(one: Path) -> None:
    place = only_run(one)
    (place / "config.yaml").write_text("{}")
    with pytest.raises(UserError, match=r"no readable config\.yaml"):
        ran(f"resume={place}")


# -- evaluation, fine-tuning, other files --------------------------------------------------------


def evaluated(*overrides: str) -> tuple[Path, dict[str, Any]]:
    kept = [o for o in OWN if not o.startswith(("ablation", "curriculum", "pretrain"))]
    directory = ran(*kept, *overrides)
    return directory, results(directory)["data"]


def test_evaluation_says_where_its_images_were_trained_on(one: Path) -> None:
    os.chdir(one)
    path = only_run(one) / "checkpoints" / "last.pt"
    assert checkpoint.load(path)["data"]["images"].keys() == {"folder/train", "folder/val"}
    task = ["task=evaluate", f"checkpoint={path}"]
    _, data = evaluated(*task)
    assert data["doubts"] == []
    assert [each["key"] for each in data["trained"]] == ["folder/train"]
    directory, data = evaluated(*task, "evaluation.split=train")
    assert data["doubts"] == ["the 12 images of folder/train were trained on: folder/train"]
    assert "were trained on" in (directory / "events.jsonl").read_text()


def test_evaluation_on_changed_images_says_so(one: Path) -> None:
    os.chdir(one)
    task = ["task=evaluate", f"checkpoint={only_run(one) / 'checkpoints' / 'last.pt'}"]
    other_pixels(one / "imgs")
    _, data = evaluated(*task)
    (doubt,) = data["doubts"]
    assert doubt.startswith("folder/train is not what the weights were trained on")
    (one / "imgs" / "train" / "c2").rename(one / "imgs" / "val" / "c2")  # dealt otherwise
    _, data = evaluated(*task)
    assert any("1 classes of folder/val have names of classes" in each for each in data["doubts"])


def test_fine_tuning_knows_what_its_start_has_seen_and_when_it_was_replaced(one: Path) -> None:
    os.chdir(one)
    start = one.parent / "start.pt"
    shutil.copy(only_run(one) / "checkpoints" / "last.pt", start)
    tuning = [
        "finetune=prototypical",
        "finetune.ways=2",
        "finetune.shots=1",
        "finetune.queries=2",
        "finetune.epochs=1",
        "finetune.episodes_per_epoch=2",
        "finetune.validation_episodes=2",
    ]
    kept = [o for o in OWN if not o.startswith(("ablation", "curriculum", "pretrain"))]
    directory = ran(*kept, *tuning, "finetune.start=../start.pt")
    data = json.loads((directory / "data.json").read_text())
    assert data["files"]["finetune.start"]["path"] == str(one / ".." / "start.pt")
    assert [each["key"] for each in data["trained_before"]] == ["folder/train"]
    state = checkpoint.load(start)
    checkpoint.save(start, {**state, "another": True})
    status = directory / "status.json"
    status.write_text(status.read_text().replace("FINISHED", "INTERRUPTED"))
    with pytest.raises(UserError, match=r"finetune\.start: .* another file"):
        ran(f"resume={directory}")


# -- reports ---------------------------------------------------------------------------------------


def test_only_like_is_averaged_and_paired_with_like(one: Path) -> None:
    os.chdir(one)
    same = ran(*OWN, "pretrain.epochs=1", "seed=1")
    copied = shutil.copytree(one / "imgs", one / "copied")
    elsewhere = ran(*OWN, "pretrain.epochs=1", "seed=2", f"dataset.root={copied}")
    other_evaluation(one / "imgs")
    changed = ran(*OWN, "pretrain.epochs=1", "seed=3")
    runs = [only_run_of(one, 0), same, elsewhere, changed]
    found = aggregate([Entry("a", seed, directory) for seed, directory in enumerate(runs)])
    rows = found.summary[found.summary.key == "folder/val/2w1s"]
    assert set(rows.seeds) == {3}  # the folder does not matter, the images do
    assert any("a, seed 3" in note and "other images" in note for note in found.notes)
    compared = compare(runs, with_published=False)
    (table,) = compared.tables
    assert {each.run for each in table.differences} == {2, 3}
    assert any(note.startswith("run 4") and "other images" in note for note in compared.notes)


def test_a_report_shows_no_other_images_than_those_that_were_trained_on(one: Path) -> None:
    ran(f"resume={only_run(one)}", "pretrain.epochs=2", "resume_overrides=true")
    record = read_run(only_run(one))
    assert natural_images(record) is not None
    other_pixels(one / "imgs")
    assert natural_images(record) is None


def only_run_of(one: Path, seed: int) -> Path:
    every = (one / "runs" / "debug").iterdir()
    (found,) = (r for r in every if yaml.safe_load((r / "config.yaml").read_text())["seed"] == seed)
    return found


# -- two processes, copies, archives -------------------------------------------------------------


def test_two_processes_cannot_resume_one_run(one: Path) -> None:
    place = only_run(one)
    status = place / "status.json"
    status.write_text(status.read_text().replace("FINISHED", "INTERRUPTED"))
    given = [f"resume={place}", *continued([f"resume={place}"])]
    first = RunDirectory.reopen(_settled(given), given)
    try:
        with pytest.raises(UserError, match="going on in another process"):
            ran(f"resume={place}")
    finally:
        first.release()


def test_a_copy_does_not_write_into_the_run_of_the_original(tmp_path: Path) -> None:
    original, copy = tmp_path / "original", tmp_path / "copy"
    made = RunDirectory(original)
    original.mkdir()
    made.run_id, made.tracking_uri = "abc", "sqlite:////x.db"
    made.write_status("INTERRUPTED")
    assert own_run_id(original, made.status()) == ("abc", None)
    link = tmp_path / "link"
    link.symlink_to(original)
    assert own_run_id(link, made.status()) == ("abc", None)  # the same folder by another name
    shutil.copytree(original, copy)
    said = RunDirectory(copy).status()
    run_id, note = own_run_id(copy, said)
    assert run_id is None
    assert "is a copy" in str(note)
    shutil.rmtree(original)
    run_id, note = own_run_id(copy, said)
    assert run_id == "abc"  # it was moved: it is the same run
    assert "was moved here" in str(note)
    elsewhere = {**said, "process": {"host": "another", "pid": 1}}
    assert own_run_id(copy, elsewhere)[0] is None  # nobody can tell whether the original is there


def test_a_run_that_was_left_running_is_resumed_with_a_word(one: Path) -> None:
    place = only_run(one)
    said = json.loads((place / "status.json").read_text())
    words = {"another": "taken for dead. If it is not", socket.gethostname(): "process was killed"}
    for epochs, (host, why) in enumerate(words.items(), start=2):
        said |= {"status": "RUNNING", "process": {"host": host, "pid": 1}}
        (place / "status.json").write_text(json.dumps(said))
        ran(f"resume={place}", f"pretrain.epochs={epochs}", "resume_overrides=true")
        told = (place / "events.jsonl").read_text()
        assert f"said RUNNING, on {host}, and nothing held the folder: " in told
        assert why in told


def test_the_lock_of_an_archived_run_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from filelock import FileLock

    def refused(*arguments: Any, **more: Any) -> None:
        raise OSError(30, "Read-only file system", ".lock")

    (tmp_path / ".lock").touch()
    with FileLock(tmp_path / ".lock"):
        monkeypatch.setattr(FileLock, "acquire", refused)
        assert locked(tmp_path)
        monkeypatch.undo()
    monkeypatch.setattr(FileLock, "acquire", refused)
    assert not locked(tmp_path)
    (tmp_path / "config.yaml").write_text("experiment_name: x")
    with pytest.raises(UserError, match="archived run is resumed from a copy"):
        RunDirectory.reopen(load([f"resume={tmp_path}"]), [])
