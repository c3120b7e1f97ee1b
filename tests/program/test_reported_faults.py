"""Each fault that bug reports and an audit had led to, as a user met it: commands, public names.

The closer tests of every mechanism stand beside it; these would also have run before there was one.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from sseg_nase import (
    ImageStore,
    UserError,
    load_config,
    make_views,
    open_dataset,
    stages,
)
from sseg_nase import cli as entry
from sseg_nase import run as runs
from sseg_nase.config.schema import Config
from sseg_nase.rundir.directory import RunDirectory
from sseg_nase.sweeps.launch import launch
from sseg_nase.tracking import mlflow_sink
from sseg_nase.tracking.sink import Sink
from tests.support.fake_cuda import fake_cuda

Cli = Callable[..., tuple[int, str]]

TINY = [
    "debug=tiny",
    "ablation=A2",
    "hardware=cpu",
    "hardware.threads=1",
    "tracking=jsonl",
    "pretrain.images_per_epoch=16",
    "pretrain.epochs=1",
    "evaluation.episodes=2",
    "evaluation.shots=[1]",
    "evaluation.untrained_reference=false",
]
CLASSES = [f"c{i}" for i in range(6)]

pytestmark = pytest.mark.filterwarnings("ignore")  # of MLflow and of damaged files


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run the program in this process; returns exit code, and all that was printed."""

    def invoke(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["sseg-nase", *arguments])
        with pytest.raises(SystemExit) as ended:
            entry.main()
        return int(ended.value.code or 0), "".join(capsys.readouterr())

    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # restored afterwards
    return invoke


def tree(root: str, suffix: str = ".bmp", per_class: int = 4, seed: int = 0) -> list[Path]:
    """A folder of 16 × 16 images of noise in six classes; returns the files."""
    shutil.rmtree(root, ignore_errors=True)
    rng = np.random.default_rng(seed)
    files = [Path(root, c, f"{i}{suffix}") for c in CLASSES for i in range(per_class)]
    for path in files:
        path.parent.mkdir(parents=True, exist_ok=True)
        form = {".jfif": "JPEG"}.get(suffix)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(path, form)
    return files


def opened(kind: str, root: str) -> ImageStore:
    dealt = ["dataset.split_by=classes"] if kind == "folder" else []
    overrides = [f"dataset={kind}", f"dataset.root={root}", "dataset.image_size=16", *dealt]
    return open_dataset(load_config([*overrides, f"paths.cache_dir={Path('cache').absolute()}"]))


def listed(rows: str) -> ImageStore:
    Path("c", "l.csv").write_text("path,label\n" + rows)
    return open_dataset(
        load_config(
            [
                *("dataset=csv", "dataset.root=c/l.csv", "dataset.image_size=16"),
                f"paths.cache_dir={Path('cache').absolute()}",
            ]
        )
    )


def the_run(root: str = "runs") -> Path:
    (found,) = Path(root, "debug").iterdir()
    return found.absolute()


def status(run: Path) -> str:
    return str(json.loads((run / "status.json").read_text())["status"])


@pytest.mark.slow
def test_a_run_that_diverges_does_not_finish(cli: Cli) -> None:
    code, said = cli(*TINY, "optimizer.lr=1e9", "pretrain.epochs=2")
    assert code in (1, 2)
    assert status(the_run()) == "FAILED"
    assert "optimizer.lr" in said


def test_images_that_moved_are_read_again() -> None:
    tree("a")
    os.utime("a/c0/0.bmp", (4e9, 4e9))  # as an archive from another time zone has it
    assert opened("folder", "a").class_names
    for name in CLASSES:
        os.rename(f"a/{name}", f"a/renamed {name}")
    assert all(name.startswith("renamed") for name in opened("folder", "a").class_names)


@pytest.mark.parametrize("label", ["Acer, red", '"Acer', '"Acer\nred"'])
def test_labels_of_a_list_are_not_cut(label: str) -> None:
    files = [path.relative_to("c") for path in tree("c")]
    rows = "".join(f"{path},{label if i == 12 else path.parent}\n" for i, path in enumerate(files))
    with pytest.raises(UserError, match=r"l\.csv"):
        listed(rows)


def test_an_image_that_is_listed_twice_is_one() -> None:
    files = [path.relative_to("c") for path in tree("c")]
    rows = "".join(f"{path},{path.parent}\n./{path},{path.parent}\n" for path in files)
    assert listed(rows).counts().tolist() == [4] * len(listed(rows).counts())


def as_seen(image: Image.Image, name: str, **options: Any) -> np.ndarray:
    """What becomes of an image that stands in six classes: `[16, 16]`, its red."""
    for number, each in enumerate(CLASSES):
        Path("d", each).mkdir(parents=True)
        image.putpixel((0, 0), (number,) * len(image.getbands()))  # no two are the same
        image.save(Path("d", each, name), **options)
    return opened("folder", "d").images[0, :, :, 0]


def test_floats_are_not_black() -> None:
    ramp = np.tile(np.linspace(0, 1, 16, dtype=np.float32), (16, 1))
    folder = Path("d")
    for number, each in enumerate(CLASSES):
        (folder / each).mkdir(parents=True)
        ramp[8, 8] = number / 10
        Image.fromarray(ramp).save(folder / each / "x.tif")
    assert opened("folder", "d").images.max() > 200


def test_what_is_transparent_is_not_black() -> None:
    drawn = np.zeros((16, 16, 4), np.uint8)
    drawn[4:12, 4:12, 3] = 255
    seen = as_seen(Image.fromarray(drawn), "x.png")
    assert seen[6:10, 6:10].max() < 50
    assert seen[13:, 13:].min() > 200


def test_photographs_stand_upright() -> None:
    above = np.zeros((16, 16, 3), np.uint8)
    above[:8] = 255
    turned = Image.Exif()
    turned[0x0112] = 6
    assert as_seen(Image.fromarray(above), "x.jpg", exif=turned)[4:, -4:].mean() > 200


def test_names_that_are_not_utf8_and_loops_are_no_tracebacks() -> None:
    tree("e")
    os.rename("e/c0", os.fsencode("e/caf") + b"\xe9")
    Path("e/c1/self").symlink_to("..")
    assert opened("folder", "e").class_names


def test_what_is_left_out_is_said(caplog: pytest.LogCaptureFixture) -> None:
    tree("f", ".jfif")
    for name in CLASSES:
        Path("f", name, "more").mkdir()
        shutil.copy(Path("f", name, "0.jfif"), Path("f", name, "more", "0.jfif"))
        Path("f", name, "x.heic").write_bytes(b"x")
    assert opened("folder", "f").counts().tolist()[0] == 4
    assert ".heic" in caplog.text
    assert "sub-folder" in caplog.text


@pytest.mark.parametrize(
    "given", [["resume="], ["finetune=prototypical", "finetune.from="]], ids=lambda given: given[-1]
)
def test_an_empty_path_is_refused(cli: Cli, given: list[str]) -> None:
    code, said = cli(*TINY, *given)
    assert code == 2
    assert "empty" in said
    assert not Path("runs").exists()


def test_who_has_no_home_folder_can_look_at_a_run() -> None:
    script = """
import pwd, sys
def unknown(user):
    raise KeyError(user)
pwd.getpwuid = unknown
sys.argv = ["sseg-nase", "--cfg", "job"]
from sseg_nase.__main__ import command
command()
"""
    homeless = {k: v for k, v in os.environ.items() if k not in ("HOME", "SSEG_NASE_CACHE")}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=homeless | {"TMPDIR": str(Path.cwd())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_full_disk_is_one_message(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    mkstemp, full = tempfile.mkstemp, []

    def made(*arguments: Any, **more: Any) -> tuple[int, str]:
        full.extend(["now"] if "checkpoints" in str(more.get("dir")) else [])
        if full and "runs" in str(more.get("dir")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), more["dir"])
        return mkstemp(*arguments, **more)

    monkeypatch.setattr(tempfile, "mkstemp", made)
    code, said = cli(*TINY)
    assert full
    assert code in (1, 2)
    assert "Traceback" not in said
    assert "free" in said
    assert f"resume={the_run()}" in said


def test_a_printed_command_can_be_pasted(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "My Project (1), 50%" / "#2 it's é"
    folder.mkdir(parents=True)
    resumed: list[str | None] = []

    def interrupted(config: Config, overrides: Sequence[str], *more: Any) -> None:
        if config.resume is not None:
            resumed.append(config.resume)
            return
        made = RunDirectory.create(config, overrides)
        made.release()
        stopped = KeyboardInterrupt()
        stopped.run_dir = made.path  # type: ignore[attr-defined]
        raise stopped

    monkeypatch.setattr(runs, "run", interrupted)
    monkeypatch.chdir(folder)
    code, said = cli(*TINY)
    assert code == 130
    _, *pasted = shlex.split(_command(said))
    monkeypatch.chdir("/")
    assert cli(*pasted)[0] == 0
    assert resumed == [str(the_run(str(folder / "runs")))]


def _command(said: str) -> str:
    """The command at the end of what was said."""
    return said[re.search(r"sseg-nase '?\"?resume=", said).start() :]  # type: ignore[union-attr]


@pytest.mark.slow
def test_the_last_sweep_is_the_one_that_was_made_last(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def planned(given: list[str]) -> None:
        raise UserError("no job of it is needed here")

    with monkeypatch.context() as elsewhere:
        for zone, seeds in (("Asia/Tokyo", "0,1"), ("UTC", "2,3")):
            elsewhere.setenv("TZ", zone)
            time.tzset()
            with pytest.raises(UserError, match="no job of it"):
                launch([*TINY, f"seed={seeds}"], planned, print)
    time.tzset()
    cli("--version")  # takes away what was said until here
    said = cli("task=status")[1]
    assert re.search(r"seed[ =]3", said), said


@pytest.mark.parametrize("cap", ["max_params", "max_flops"])
def test_a_cap_below_the_seed_network_is_refused(cap: str) -> None:
    with pytest.raises(UserError, match=rf"evolution\.{cap}"):
        load_config(["debug=tiny", "ablation=A3", f"evolution.{cap}=10"])


def test_a_signal_while_the_tracker_is_opened_is_an_interruption(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        mlflow_sink, "open_store", lambda *given, **more: signal.raise_signal(signal.SIGTERM)
    )
    code, said = cli(*TINY, "tracking=mlflow")
    assert code == 130
    assert status(the_run()) == "INTERRUPTED"
    events = (the_run() / "events.jsonl").read_text()
    assert "FAILED" not in said + events


@pytest.mark.slow
def test_a_password_is_not_published(cli: Cli) -> None:
    cli(*TINY, "tracking=server", "tracking.uri='http://bob:s3cret@127.0.0.1:9'")
    files = [path for path in Path().rglob("*") if path.is_file()]
    assert any(path.name == "config.yaml" for path in files)
    assert not [path for path in files if b"s3cret" in path.read_bytes()]


def test_the_address_of_the_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://team:5000")
    assert mlflow_sink.resolve_uri(load_config(["debug=tiny"]).tracking.uri) == "http://team:5000"


def test_a_store_that_cannot_be_opened_is_said_at_once(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("mlflow.db").mkdir()
    sleep, slept = time.sleep, [0.0]

    def asleep(seconds: float) -> None:
        if sys._getframe(1).f_globals["__name__"].startswith("mlflow"):
            slept.append(seconds)
        else:
            sleep(seconds)

    monkeypatch.setattr(time, "sleep", asleep)
    code, said = cli(*TINY, "tracking=mlflow")
    assert (code, "mlflow.db" in said) == (0, True)
    assert sum(slept) < 1


@pytest.mark.slow
def test_a_run_keeps_to_its_images(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    own = ["dataset=folder", "dataset.root=imgs", "dataset.split_by=classes"]
    small = ["curriculum=natural", "evaluation.ways=2", "evaluation.queries=2"]
    for place, seed in (("pa", 0), ("pb", 1)):
        tree(f"{place}/imgs", per_class=5, seed=seed)
    for name in CLASSES:
        os.rename(f"pb/imgs/{name}", f"pb/imgs/other {name}")
    monkeypatch.chdir("pa")
    split = "dataset.split_fractions=[0.34,0.33,0.33]"
    assert cli(*TINY, *own, *small, split)[0] == 0
    run = the_run()
    monkeypatch.chdir("../pb")
    assert cli(f"resume={run}", "pretrain.epochs=2", "resume_overrides=true")[0] == 0
    assert "other" not in (run / "per_class.csv").read_text()


@pytest.mark.parametrize("given", [["--experimental-rerun", "x"], ["hydra.run.dir=/proc/x"]])
def test_hydras_own_flags_are_no_tracebacks(cli: Cli, given: list[str]) -> None:
    code, said = cli(*given, "debug=tiny")
    assert code == 2
    assert "Traceback" not in said


# -- of the path on GPUs ---------------------------------------------------------------------------

# Of stages: a run on a CPU would take bfloat16 instead.
HALF = ["debug=tiny", "hardware=cpu", "hardware.threads=1", "hardware.precision=16-mixed"]
HEADS = ["ssl.projection_hidden=16", "ssl.projection_dim=8"]


@pytest.mark.slow
def test_trials_compute_in_half_precision_as_training_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plain, found = nn.Conv2d.forward, set()

    def watched(module: nn.Conv2d, images: Tensor) -> Tensor:
        out = plain(module, images)
        if torch.is_grad_enabled():
            found.add(out.dtype)
        return out

    monkeypatch.setattr(nn.Conv2d, "forward", watched)
    given = [*HALF, *HEADS, "ablation=A3", "pretrain.epochs=3", "pretrain.images_per_epoch=32"]
    trainer = stages.pretrain(load_config(given), Sink(), tmp_path)
    assert trainer.progress.history
    assert len(found) == 1, found


def test_what_views_need_is_sent_in_one_copy() -> None:
    config = load_config(["views=simclr", "views.grey=0.5", "views.blur=1"])
    with fake_cuda() as fake:
        images = torch.zeros(4, 3, 16, 16, dtype=torch.uint8, device="cuda")
        fake.copies.clear()
        fake.waits.clear()
        make_views(images, config.views, image_size=16, seed=0)
    assert (sum(fake.copies.values()), sum(fake.waits.values())) == (1, 0)


def begin_with(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every scaler of gradients begin with `scale`."""
    plain = torch.amp.GradScaler.__init__
    monkeypatch.setattr(
        torch.amp.GradScaler, "__init__", lambda scaler, device: plain(scaler, device, scale)
    )


def test_fine_tuning_keeps_the_scale_of_its_gradients(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begin_with(1024.0, monkeypatch)
    few = ["finetune.epochs=1", "finetune.episodes_per_epoch=2", "finetune.validation_episodes=2"]
    config = load_config([*HALF, "finetune=prototypical", *few, "finetune.queries=5"])
    start = stages.Reached(stages.seed_backbone(config))
    stages.fine_tune(config, start, Sink(), tmp_path)
    kept = torch.load(tmp_path / "checkpoints" / "finetune_last.pt", weights_only=False)
    assert kept.get("precision", {}).get("scale") == 1024.0


def test_steps_that_the_scaler_skips_are_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begin_with(2.0**20, monkeypatch)
    config = load_config([*HALF, *HEADS, "ablation=A2", "pretrain.epochs=3"])  # of 4 batches
    assert 0 < stages.pretrain(config, Sink(), tmp_path).progress.step < 12
