"""Trained networks: their checkpoints, files for elsewhere, and predictions from a few photos."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from sseg_nase.apps import found
from sseg_nase.apps.serving import Settings
from sseg_nase.apps.views.parts import launch, most_bytes, offer, uploads, when
from sseg_nase.config.commands import override
from sseg_nase.config.schema import EXPORTS
from sseg_nase.data.archive import unpack
from sseg_nase.errors import UserError
from sseg_nase.files import in_bytes, make_own, writing
from sseg_nase.rundir.names import CHECKPOINTS


def show(settings: Settings) -> None:
    """Draw the view. `run` in the address: the run whose networks are looked at."""
    st.title("Networks")
    root = Path(settings.output_dir)
    runs = [run for run in found.runs(root) if found.checkpoints(run)]
    if not runs:
        st.caption("no run has a checkpoint yet")
        return
    names = [str(run.relative_to(root)) for run in runs]
    asked = st.query_params.get("run")
    run = root / str(st.selectbox("Run", names, names.index(asked) if asked in names else 0))
    files = found.checkpoints(run)
    st.dataframe(
        pd.DataFrame(
            [
                {
                    "file": path.name,
                    "size": in_bytes(path.stat().st_size),
                    "written": when(path.stat().st_mtime),
                }
                for path in files
            ]
        ),
        hide_index=True,
        width="stretch",
    )
    st.markdown(found.row(run).result)
    if found.state_of(run) not in ("FINISHED", "RUNNING"):
        offer("Resume", [override("resume", str(run))], settings)
    names = ["the run's network", *(path.name for path in files)]
    chosen = st.selectbox("Network", names)
    checkpoint = run if chosen == names[0] else run / CHECKPOINTS / str(chosen)
    _export(settings, checkpoint)
    _files(run)
    _predict(settings, run, checkpoint)


def _export(settings: Settings, checkpoint: Path) -> None:
    st.subheader("Export")
    formats = st.multiselect("Formats", EXPORTS, ["onnx"], key="formats")
    if formats:
        told = ["task=export", override("checkpoint", str(checkpoint))]
        offer("Export", [*told, override("export.formats", formats)], settings)


def _files(run: Path) -> None:
    """What was exported already, to be taken away."""
    folder = run / "export"
    for path in sorted(folder.glob("network*")) if folder.is_dir() else []:
        st.download_button(
            f"{path.name} ({in_bytes(path.stat().st_size)})",
            partial(path.read_bytes),
            file_name=path.name,
            key=f"take {path}",
        )


def _predict(settings: Settings, run: Path, checkpoint: Path) -> None:
    st.subheader("Predict")
    support = st.text_input("A folder with a folder of photos per class, on this machine").strip()
    given = st.file_uploader("or a zip of it", type=["zip"], key="support")
    photos = st.file_uploader("Photos to name", accept_multiple_files=True, key="photos")
    pattern = st.text_input("or their file, folder or pattern on this machine").strip()
    threshold = st.slider("Unknown below this probability", 0.0, 1.0, 0.0, 0.01)
    ready = bool(support or given) and bool(photos or pattern)
    if not st.button("Predict", disabled=not ready, key="predict"):
        return
    if given is not None:
        support = str(unpack(given, given.name, uploads(settings), most_bytes(settings)))
    if photos:
        pattern = str(_kept(photos, uploads(settings)))
    arguments = [
        "task=predict",
        override("checkpoint", str(checkpoint)),
        override("support", support),
        override("images", [pattern]),
        *([f"predict.threshold={threshold:g}"] if threshold else []),
    ]
    launch(arguments, settings, predicts=True)


def _kept(photos: Sequence[Any], base: Path) -> Path:
    """Write uploaded photos into a new folder below `base`, and return it."""
    folder = base / f"photos-{secrets.token_hex(3)}"
    make_own(base)
    with writing(base):
        folder.mkdir()
        for photo in photos:
            name = Path(photo.name).name
            if name in ("", ".", "..") or (folder / name).exists():
                raise UserError(f"{photo.name}: two photos have this name; rename one.")
            with (folder / name).open("xb") as file:
                shutil.copyfileobj(photo, file)
    return folder
