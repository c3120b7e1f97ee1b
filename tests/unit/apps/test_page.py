"""The page without a browser: what it shows, starts and refuses."""

from __future__ import annotations

import importlib.util
import json
import os
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sseg_nase.apps import forms, serving
from sseg_nase.apps.commands import Command
from sseg_nase.apps.found import spent as spent_of
from sseg_nase.cli import main
from sseg_nase.config.compose import load, spelled_out
from sseg_nase.errors import UserError
from sseg_nase.files import write_json
from sseg_nase.run import run
from sseg_nase.rundir.directory import RunDirectory
from sseg_nase.rundir.status import this_process
from sseg_nase.searches.task import perform_search
from sseg_nase.sweeps.folder import SweepFolder, create
from sseg_nase.sweeps.plan import plan
from tests.support.own_photos import photos

needs_streamlit = pytest.mark.skipif(
    importlib.util.find_spec("streamlit") is None,
    reason="Streamlit is not installed: pip install 'sseg-nase[ui]'",
)
TOKEN = "of-this-test"
Opened = Callable[..., Any]


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Open the page at an address; what a command is started with comes to `told`."""
    testing = pytest.importorskip("streamlit.testing.v1")
    settings = serving.Settings(
        output_dir=str(tmp_path / "kept"),
        data_dir=str(tmp_path / "data"),
        cache_dir=os.environ["SSEG_NASE_CACHE"],
        config_dirs=[],
        upload_gb=0.001,
        token=TOKEN,
    )
    monkeypatch.setenv(serving.SETTINGS, json.dumps(vars(settings)))

    def open_at(**address: Any) -> Any:
        page = testing.AppTest.from_file(str(serving.PAGE), default_timeout=120)
        for key, value in {"token": TOKEN, **address}.items():
            page.query_params[key] = value
        page.run()
        assert not page.exception, page.exception
        return page

    return open_at


def command_line(page: Any) -> str:
    return str(page.code[0].value)


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """What the page starts, which is not run."""
    from sseg_nase.apps.views import parts

    told: list[list[str]] = []

    def start(arguments: list[str], output_dir: Path, **_: Any) -> Command:
        told.append(list(arguments))
        folder = output_dir / "commands" / f"{len(told)}"
        folder.mkdir(parents=True)
        write_json(folder / "command.json", {"arguments": arguments, "exitcode": 2})
        (folder / "console.log").write_text("sseg-nase: seed: this is why.\n")
        return Command(folder)

    monkeypatch.setattr(parts, "start", start)
    return told


@needs_streamlit
@pytest.mark.parametrize("token", ["", "another"])
def test_who_does_not_know_the_token_sees_nothing(token: str, opened: Opened) -> None:
    page = opened(token=token)
    assert page.error[0].value.startswith("Open the address that `sseg-nase task=ui`")
    assert not page.button
    assert not page.selectbox


@needs_streamlit
def test_a_run_is_put_together_from_options_and_keys(
    opened: Opened, begun: list[list[str]], tmp_path: Path
) -> None:
    page = opened()
    page.selectbox(key="one debug None").select("tiny")
    page.selectbox(key="one optimizer None").select("sgd").run()
    page.text_input[0].input("optimizer.").run()
    lr, momentum = (
        page.number_input(key=f"field optimizer.{k}") for k in ("lr 0.03", "momentum 0.9")
    )
    assert lr.help.endswith("above 0; usually 0.03")
    lr.set_value(0.5)
    momentum.set_value(0.25)
    page.run()
    page.text_input[0].input("levels").run()
    page.multiselect[0].set_value(["BASIC", "OBJECT"]).run()
    place = f"paths.output_dir={tmp_path / 'kept'}"  # not where a command writes by itself
    assert command_line(page) == (
        "sseg-nase debug=tiny optimizer=sgd optimizer.lr=0.5 optimizer.momentum=0.25 "
        f"'curriculum.levels=[BASIC,OBJECT]' {place}"
    )
    page.button(key="start").click().run()
    assert begun[0][:3] == ["debug=tiny", "optimizer=sgd", "optimizer.lr=0.5"]
    assert load([text for text in begun[0] if "paths" not in text]).optimizer.momentum == 0.25
    # How it went is shown at once, with the reason.
    assert page.title[0].value == "Command"
    assert any("this is why" in text.value for text in page.markdown)


@needs_streamlit
def test_a_mistake_is_said_and_nothing_can_be_started(opened: Opened) -> None:
    page = opened(**{"with": ["dataset=folder"]})
    assert page.warning[0].value.startswith("dataset=folder: which images? Add")
    assert page.button(key="start").disabled
    page.text_area[0].input("dataset.root=photos\noptimizer.lr=-1").run()
    assert "optimizer.lr=-1" in page.warning[0].value
    page.text_area[0].input("dataset.root=photos").run()
    assert not page.warning
    assert not page.button(key="start").disabled


@needs_streamlit
def test_a_sweep_and_a_search(opened: Opened, begun: list[list[str]]) -> None:
    page = opened()
    page.toggle(key="several").set_value(True).run()
    page.multiselect(key="several ablation").set_value(["A2", "A7"])
    page.text_area[0].input("seed=0,1").run()
    assert command_line(page).startswith("sseg-nase -m ablation=A2,A7 ")
    assert any(c.value.startswith("4 jobs: ablation=A2 seed=0, ") for c in page.caption)
    page = opened(**{"with": ["experiment=search_digits"]})
    page.selectbox[0].select("search").run()
    assert command_line(page).startswith("sseg-nase task=search experiment=search_digits ")
    page.button(key="start").click().run()
    assert begun == [[text for text in begun[0] if text != "-m"]]


MEASURE = """
def measure(candidate):
    return {"accuracy": 60 - 1000 * abs(candidate.point["optimizer.lr"] - 0.001)}
"""


def searched(folder: Path) -> Path:
    """A search that was finished, whose candidates were trained by nobody."""
    (folder / "mine.py").write_text(MEASURE)
    overrides = spelled_out(
        [
            *("task=search", "search.choices={optimizer.lr: loguniform(1e-4,1e-2)}"),
            *("tracking=jsonl", "hardware=cpu", "report.at_end=false", "search.final_seeds=0"),
            *("evaluator.name=own", f"evaluator.target={folder / 'mine.py'}:measure"),
            *("strategy=random", "search.budget.candidates=4"),
            f"paths.output_dir={folder / 'kept'}",
        ]
    )
    task = partial(perform_search, overrides=overrides, further=())
    return run(load(overrides), overrides, task=task)


def swept(output_dir: Path) -> SweepFolder:
    """A sweep of two jobs, of which the first has failed and the second was not begun."""
    title, jobs = plan(
        ["debug=tiny", "tracking=jsonl", "seed=0,1", f"paths.output_dir={output_dir}"]
    )
    first = jobs[0].config
    made = create(
        output_dir,
        jobs,
        title=title,
        shared=[],
        settings=first.sweep,
        tracking=first.tracking,
        code={},
        diff="",
    )
    place = RunDirectory.create(first, made.jobs[0].overrides)
    place.write_status("FAILED", error="dataset.root=photos: there are none.\nTraceback")
    place.release()
    made.jobs[0].note(run=str(place.path), **this_process(), started=1.0)
    return made


@needs_streamlit
def test_runs_sweeps_and_searches_are_shown_with_their_state(
    opened: Opened, begun: list[list[str]], tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    search, sweep = searched(tmp_path), swept(kept)
    page = opened(view="Work")
    of_run, of_sweep, of_search = (each.value.iloc[0] for each in page.dataframe)
    assert (of_run.state, of_run.reason) == ("FAILED", "dataset.root=photos: there are none.")
    assert (of_sweep.state, of_sweep.what) == ("0 of 2 finished", sweep.title)
    assert (of_search.state, of_search["name"]) == ("FINISHED", f"searches/{search.name}")
    assert of_search.done == "4 of at most 4 candidates"
    assert "epoch" not in of_search  # of which a search has none
    page = opened(view="Work", search=f"searches/{search.name}")
    assert any("4 results of 4 candidates" in one.value for one in page.markdown)
    (rows,) = (each.value for each in page.dataframe)
    assert rows.state.tolist() == ["scored"] * 4
    assert rows.accuracy[rows.best].tolist() == [rows.accuracy.max()]
    page.button[-1].click().run()
    page = opened(view="Work", sweep=f"sweeps/{sweep.path.name}")
    (rows,) = (each.value for each in page.dataframe)
    assert rows.state.tolist() == ["FAILED", "WAITING"]
    assert rows.reason[0].startswith("dataset.root=photos: there are none.")
    resume = next(b for b in page.button if b.label == "Go on with what is not finished")
    resume.click().run()
    assert begun == [
        ["task=report", f"search={search}"],
        ["-m", f"sweep={sweep.path}"],
    ]


def test_a_search_tells_how_much_of_its_budget_is_spent(tmp_path: Path) -> None:
    def spent(budget: dict[str, float] | None) -> str:
        write_json(tmp_path / "search.json", {} if budget is None else {"budget": budget})
        return spent_of(tmp_path)

    assert spent({"candidates": 20}) == ""
    cost = {"seconds": 30.0, "images": 1000.0, "training_macs": 2e9}
    told = [{"scored": {"number": number, "cost": cost}} for number in range(2)]
    lines = [{"version": 1}, {"asked": [{}, {}, {}]}, *told]
    log = "".join(f"{json.dumps(line)}\n" for line in lines)
    # The last line is torn: it is not yet told.
    (tmp_path / "candidates.jsonl").write_text(log + json.dumps(told[0]))
    assert spent({"candidates": 1000}) == "2 of at most 1,000 candidates"
    assert spent({"epochs": 30}) == "2 of at most 30 epochs"
    said = "2 candidates, 20% of images, 50% of training macs"
    assert spent({"images": 10_000, "training_macs": 8e9}) == said
    assert spent({"candidates": 4, "seconds": 90}) == "2 of at most 4 candidates, 67% of seconds"
    assert spent(None) == "2 candidates"  # of an older version


@needs_streamlit
def test_a_zip_is_unpacked_looked_at_and_searched_on(opened: Opened, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos")
    (folder / "class03" / "notes.txt").write_text("not an image")
    archive = tmp_path / "photos.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted(folder.rglob("*.*")):
            packed.write(path, str(path.relative_to(folder)))
    page = opened(view="Images")
    page.file_uploader[0].set_value(("photos.zip", archive.read_bytes(), "application/zip")).run()
    page.button(key="unpack").click().run()
    root = tmp_path / "data" / "uploads" / "photos"
    assert page.query_params["root"] in (str(root), [str(root)])
    told = {metric.label: (metric.value, metric.delta) for metric in page.metric}
    assert told == {
        "train": ("18 images", "6 classes"),
        "val": ("9 images", "3 classes"),
        "test": ("9 images", "3 classes"),
    }
    assert any("notes.txt" in w.value or ".txt" in w.value for w in page.warning), page.warning
    page.button(key="search on them").click().run()
    assert page.title[0].value == "Start"
    assert "task=search dataset=folder" in command_line(page)
    assert str(root) in command_line(page)


@needs_streamlit
def test_what_the_readers_and_the_zip_refuse_is_said(opened: Opened, tmp_path: Path) -> None:
    page = opened(view="Images", root=str(tmp_path / "nowhere"))
    assert "does not exist" in page.error[0].value
    evil = tmp_path / "evil.zip"
    with zipfile.ZipFile(evil, "w") as packed:
        packed.writestr("../x", "stolen")
    page = opened(view="Images")
    page.file_uploader[0].set_value(("evil.zip", evil.read_bytes(), "application/zip")).run()
    page.button(key="unpack").click().run()
    assert (
        page.error[0].value == "evil.zip: ../x leads out of the folder (..); nothing was unpacked."
    )
    assert not list(tmp_path.rglob("x"))


def test_what_is_typed_becomes_what_the_command_line_takes() -> None:
    wanted = forms.Wanted(
        {"ssl": ["byol"], "dataset": []},
        {
            "experiment_name": "a b",
            "evaluation.shots": forms.Raw("[1,5]"),
            "dataset.image_size": 32,
        },
        ["seed=3"],
    )
    config = load(wanted.overrides())
    assert (config.ssl.name, config.experiment_name, config.seed) == ("byol", "a b", 3)
    assert (config.evaluation.shots, config.dataset.image_size) == ([1, 5], 32)
    assert forms.check(wanted).problem is None
    assert forms.check(forms.Wanted(further=["seed=0,1"])).problem is not None
    assert forms.check(forms.Wanted(further=["seed=0,1"], several=True)).jobs == [
        "seed=0",
        "seed=1",
    ]


def test_other_machines_reach_the_page_only_where_it_was_asked_for() -> None:
    for address in ("127.0.0.1", "::1", "localhost"):
        assert load(["task=ui", f"ui.address='{address}'"]).ui.address == address
    for address in ("0.0.0.0", "192.168.0.7", "some.host", "::"):
        with pytest.raises(UserError, match=r"open the page through a tunnel .*ui.remote=true"):
            load(["task=ui", f"ui.address='{address}'"])
        assert load(["task=ui", f"ui.address='{address}'", "ui.remote=true"]).ui.remote
    with pytest.raises(UserError, match=r"ui.remote=true: it has no effect with task=pipeline"):
        load(["ui.remote=true"])


def served(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> tuple[int | str | None, list[str]]:
    """The exit code of `task=ui`, and what it would become."""
    became: list[str] = []
    monkeypatch.setattr(serving.os, "execv", lambda _, arguments: became.extend(arguments))
    monkeypatch.setattr("sys.argv", ["sseg-nase", "task=ui", *overrides])
    monkeypatch.delenv(serving.SETTINGS, raising=False)
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, became


def test_the_page_is_served_to_this_machine_alone_and_guarded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serving.importlib.util, "find_spec", lambda _: object())
    with serving.socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, became = served(monkeypatch, f"ui.port={port}")
        assert (code, became) == (2, [])
        assert f"ui.port={port}: the page cannot be served there" in capsys.readouterr().err
    _, became = served(monkeypatch, f"ui.port={port}", "ui.upload_gb=0.5")
    for flag in (
        "--server.address=127.0.0.1",
        "--server.enableXsrfProtection=true",
        "--server.enableCORS=true",
        "--server.maxUploadSize=500",
        "--browser.gatherUsageStats=false",
    ):
        assert flag in became
    token = serving.Settings.given().token
    assert f"http://127.0.0.1:{port}/?token={token}\n" == capsys.readouterr().out
    assert not any(token in text for text in became)  # others see the arguments of a process
    monkeypatch.setattr(serving.importlib.util, "find_spec", lambda _: None)
    assert served(monkeypatch) == (2, [])
    assert "pip install 'sseg-nase[ui]'" in capsys.readouterr().err
