"""What is going on and what has been done: commands, runs, sweeps, searches, and one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from sseg_nase.apps import found
from sseg_nase.apps.commands import WAITING, Command, started
from sseg_nase.apps.serving import Settings
from sseg_nase.apps.views.charts import candidates_chart, epochs_chart, rising_chart
from sseg_nase.apps.views.parts import (
    go,
    launch,
    live,
    offer,
    output_of,
    refused,
    state_in_colour,
    when,
)
from sseg_nase.config.commands import override
from sseg_nase.errors import UserError
from sseg_nase.rundir.names import SEARCH
from sseg_nase.rundir.record import RunRecord, read_run
from sseg_nase.rundir.results import class_results, episode_results
from sseg_nase.rundir.status import RUNNING, ask_to_stop, status_of
from sseg_nase.sweeps.launch import stop_jobs
from sseg_nase.sweeps.status import poll
from sseg_nase.tracking.console import mutation_line

COMMANDS = 30
GOES_ON = (RUNNING, WAITING)


def show(settings: Settings) -> None:
    """Draw the view. `command`, `run`, `sweep` or `search` in the address: one of them."""
    root = Path(settings.output_dir)
    for kind, draw in ONE.items():
        if name := st.query_params.get(kind):
            if st.button("All work", key="all"):
                go("Work")
            draw(settings, root / name)
            return
    st.title("Work")
    for kind, (title, listed) in LISTS.items():
        _list(kind, title, listed(root), root)
    if st.button("Look again"):
        st.rerun()


def _list(kind: str, title: str, rows: Sequence[Mapping[str, Any]], root: Path) -> None:
    st.subheader(title)
    if not rows:
        st.caption("none yet")
        return
    table = pd.DataFrame(rows)
    st.dataframe(table.drop(columns="path"), hide_index=True, width="stretch", placeholder="")
    named = {
        str(row["path"]): f"{row['state']}  {row['name']}  {row['what']}"[:120] for row in rows
    }
    chosen = st.selectbox(
        f"Open one of {title.lower()}",
        list(named),
        index=None,
        format_func=lambda path: named[path],
        key=f"open {kind}",
    )
    if chosen is not None:
        go("Work", **{kind: str(Path(chosen).relative_to(root))})


def _commands(root: Path) -> list[dict[str, Any]]:
    rows = []
    for command in started(root)[:COMMANDS]:
        standing = command.standing()
        rows.append(
            {
                "name": command.path.name,
                "state": standing.state,
                "started": when(command.started),
                "what": command.line,
                "reason": standing.reason.split("\n")[0],
                "path": command.path,
            }
        )
    return rows


def _rows(
    folders: Callable[[Path], list[Path]], done: Callable[[found.Row], dict[str, Any]]
) -> Callable[[Path], list[dict[str, Any]]]:
    def rows(root: Path) -> list[dict[str, Any]]:
        made = (found.row(folder) for folder in folders(root))
        return [
            {
                "name": f"{one.path.parent.name}/{one.path.name}",
                "state": one.state,
                "began": when(one.began),
                **done(one),
                "result": one.result,
                "minutes": None if one.minutes is None else round(one.minutes, 1),
                "what": one.what,
                "reason": one.reason,
                "path": one.path,
            }
            for one in made
        ]

    return rows


def _sweeps(root: Path) -> list[dict[str, Any]]:
    rows = []
    for folder in found.sweeps(root):
        try:
            sweep = found.opened_sweep(folder)
        except UserError as error:
            rows.append(
                {"name": folder.name, "state": "damaged", "what": str(error), "path": folder}
            )
            continue
        finished = sum(job.finished for job in sweep.jobs)
        going = sweep.launched() or any(job.alive() for job in sweep.jobs)
        state = RUNNING if going else f"{finished} of {len(sweep.jobs)} finished"
        rows.append({"name": sweep.name, "state": state, "what": sweep.title, "path": folder})
    return rows


# -- one of them -------------------------------------------------------------------------------


def _command(settings: Settings, folder: Path) -> None:
    command = Command(folder)
    if not command.arguments:
        raise UserError(f"{command.path}: there is no such command.")
    st.title("Command")
    st.code(command.line, language="bash", wrap_lines=True)
    going = command.standing().state in GOES_ON
    if going and st.button("Stop", key="stop"):
        with refused():
            command.stop()
            st.toast("It is asked to stop, and writes a checkpoint first.")
    if not going and st.button("Start it again", key="again"):
        launch(
            [text for text in command.arguments if not text.startswith("predict.output=")], settings
        )

    def draw() -> bool:
        standing = command.standing()
        st.markdown(f"{state_in_colour(standing.state)} {standing.reason.split(chr(10))[0]}")
        if (run := command.run()) is not None and run.is_dir():
            _progress(run)
        output_of(command)
        return standing.state in GOES_ON

    _live(draw, going)
    if (run := command.run()) is not None and st.button("Open its run", key="its run"):
        kind = "search" if (run / SEARCH).exists() else "run"
        go("Work", **{kind: str(run.relative_to(settings.output_dir))})
    if command.predictions.exists():
        st.dataframe(pd.read_csv(command.predictions), hide_index=True, width="stretch")


def _run(settings: Settings, folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such run.")
    st.title("Run")
    st.caption(str(folder))
    going = _standing_with_stop(settings, folder)

    def draw() -> bool:
        _progress(folder)
        return found.state_of(folder) == RUNNING

    _live(draw, going)
    if not going:
        offer("Draw its report", ["task=report", override("runs", str(folder))], settings)
        if found.checkpoints(folder) and st.button(
            "Export it, or predict with it", key="its network"
        ):
            go("Networks", run=str(folder.relative_to(settings.output_dir)))


def _search(settings: Settings, folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such search.")
    st.title("Search")
    st.caption(str(folder))
    going = _standing_with_stop(settings, folder)

    def draw() -> bool:
        opened = found.opened_search(folder)
        if opened is None:
            st.caption("nothing was asked for yet")
        else:
            search, log = opened
            rows = found.candidates(search, log)
            goals = list(log.objectives.goals)
            st.markdown(
                f"{search.plan.get('title', '')}: {len(log.told)} results of {len(rows)} candidates"
            )
            rising_chart(found.best_so_far(log), goals[0])
            if len(goals) > 1:
                candidates_chart(rows, goals)
            st.dataframe(pd.DataFrame(rows), hide_index=True, width="stretch")
        return found.state_of(folder) == RUNNING

    _live(draw, going)
    if not going:
        offer("Draw its report", ["task=report", override("search", str(folder))], settings)


def _sweep(settings: Settings, folder: Path) -> None:
    sweep = found.opened_sweep(folder)
    st.title("Sweep")
    st.caption(str(folder))
    st.markdown(sweep.title)
    going = sweep.launched() or any(job.alive() for job in sweep.jobs)
    if going and st.button("Stop", key="stop"):
        with refused():
            if sweep.launched():
                ask_to_stop(sweep.path, sweep.launcher)
            else:
                sweep.stop("it was stopped on the page")
                stop_jobs(sweep, st.toast)
    if not going:
        resumed = ["-m", override("sweep", str(folder))]
        offer("Go on with what is not finished", resumed, settings)
        offer("Draw its report", ["task=report", override("sweep", str(folder))], settings)

    def draw() -> bool:
        seen = poll(sweep)
        st.dataframe(pd.DataFrame(found.jobs(seen)), hide_index=True, width="stretch")
        return sweep.launched() or any(one.state == RUNNING for one in seen)

    _live(draw, going)
    runs = {str(job.run): job.label for job in sweep.jobs if job.run is not None}
    chosen = st.selectbox("Open a job's run", list(runs), None, format_func=lambda run: runs[run])
    if chosen is not None:
        go("Work", run=str(Path(chosen).relative_to(settings.output_dir)))


def _standing_with_stop(settings: Settings, folder: Path) -> bool:
    """Draw how a run or a search stands, and what can be done about it; tell whether it goes on."""
    state, said = found.state_of(folder), status_of(folder)
    st.markdown(f"{state_in_colour(state)} {(said.get('error') or '').split(chr(10))[0]}")
    if state == RUNNING:
        if st.button("Stop", key="stop"):
            with refused():
                ask_to_stop(folder, said.get("process", {}))
                st.toast("It finishes its step, and writes a checkpoint.")
        return True
    if said.get("traceback"):
        with st.expander("Traceback"):
            st.code(said["traceback"], language="text", wrap_lines=True)
    if state != "FINISHED":
        offer("Resume", [override("resume", str(folder))], settings)
    return False


def _live(draw: Callable[[], bool], going: bool) -> None:
    if going:
        live(draw)
    else:
        draw()


def _progress(folder: Path) -> None:
    """How far a run is: epochs, curves, mutations, results."""
    record = read_run(folder)
    epochs, tuned = record.events.get("epoch", []), record.events.get("finetune", [])
    of = record.setting("pretrain.epochs")
    if epochs and isinstance(of, int) and of > 0:
        last = epochs[-1]
        done = int(last.get("epoch", -1)) + 1
        st.progress(min(1.0, done / of), f"epoch {done} of {of}  {last.get('level', '')}")
    if tuned:
        last = tuned[-1]
        done, of = int(last.get("epoch", -1)) + 1, max(1, int(last.get("epochs", 1)))
        st.progress(min(1.0, done / of), f"{last.get('method', '')}: epoch {done} of {of}")
    _figures(record)
    _curves(record, epochs, tuned)
    _mutations(record)
    _results(record)
    for note in record.notes:
        st.caption(note)


def _figures(record: RunRecord) -> None:
    stages = record.events.get("stage", [])
    epochs = record.events.get("epoch", [])
    last = epochs[-1] if epochs else {}
    accepted = sum(bool(one.get("accepted")) for one in record.mutations)
    told = {
        "stage": str(stages[-1].get("stage", "")) if stages else "",
        "level": str(last.get("level", "")),
        "loss": _number(last.get("loss")),
        "params": _number(last.get("params")),
        "images/s": _number(last.get("images_per_second")),
        "mutations": f"{accepted} of {len(record.mutations)}" if record.mutations else "",
    }
    shown = {name: value for name, value in told.items() if value}
    if shown:
        st.markdown(", ".join(f"{name} **{value}**" for name, value in shown.items()))


def _curves(record: RunRecord, epochs: Sequence[Any], tuned: Sequence[Any]) -> None:
    left, right = st.columns(2)
    with left:
        epochs_chart(epochs, "loss", record.mutations)
        epochs_chart(tuned, "val_accuracy", [])
    with right:
        epochs_chart(epochs, "params", record.mutations)
        epochs_chart(tuned, "loss", [])


def _mutations(record: RunRecord) -> None:
    if not record.mutations:
        return
    rows = [
        {
            "epoch": one.get("epoch"),
            "what": mutation_line(one),
            "accepted": one.get("accepted"),
        }
        for one in record.mutations
    ]
    st.dataframe(pd.DataFrame(rows), hide_index=True, width="stretch")


def _results(record: RunRecord) -> None:
    rows = [
        {"images": one.key, "network": one.network, "accuracy": one.accuracy, "±": one.ci95}
        for evaluated in (episode_results(record.results), class_results(record.results))
        for one in evaluated
    ]
    if rows:
        st.dataframe(pd.DataFrame(rows).round(2), hide_index=True, width="stretch")


def _number(value: Any) -> str:
    if not isinstance(value, int | float):
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


LISTS: Mapping[str, tuple[str, Callable[[Path], list[dict[str, Any]]]]] = {
    "command": ("Commands started here", _commands),
    "run": ("Runs", _rows(found.runs, lambda one: {"epoch": one.epoch})),
    "sweep": ("Sweeps", _sweeps),
    "search": ("Searches", _rows(found.searches, lambda one: {"done": found.spent(one.path)})),
}
ONE: Mapping[str, Callable[[Settings, Path], None]] = {
    "command": _command,
    "run": _run,
    "sweep": _sweep,
    "search": _search,
}
