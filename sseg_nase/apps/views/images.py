"""Images of one's own, in a folder, a list or a zip, and what the readers make of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import streamlit as st

from sseg_nase.apps import forms
from sseg_nase.apps.serving import Settings
from sseg_nase.apps.views.parts import go, most_bytes, refused, uploads
from sseg_nase.config.commands import override
from sseg_nase.config.groups.dataset import OnDisk
from sseg_nase.data.archive import unpack
from sseg_nase.data.benchmarks import Preview, load_split, preview
from sseg_nase.data.store import ImageStore
from sseg_nase.errors import UserError
from sseg_nase.files import in_bytes

SAMPLES = 8
SIZE = 84


def show(settings: Settings) -> None:
    """Draw the view. `root` in the address: the folder or the list that is looked at."""
    st.title("Images")
    _upload(settings)
    _uploaded(settings)
    root = st.text_input(
        "A folder with a folder of images per class, or a CSV file (path,label), on this machine",
        st.query_params.get("root", ""),
        key=f"root {st.query_params.get('root', '')}",
    ).strip()
    if not root:
        return
    dataset = "csv" if Path(root).expanduser().is_file() else "folder"
    overrides = [f"dataset={dataset}", override("dataset.root", root)]
    found = forms.composed(overrides).dataset
    assert isinstance(found, OnDisk)
    places = {"data_dir": Path(settings.data_dir), "cache_dir": Path(settings.cache_dir)}
    seen = _looked_at(found, **places)
    _classes(seen)
    if st.button(
        "Read every image", help="As a run does before it begins; what cannot be read is named"
    ):
        with refused(), st.spinner("reading"):
            for split in seen.splits:
                _samples(split, load_split(found, split, workers=0, **places))
            st.success("Every image was read.")
    left, right = st.columns(2)
    if left.button("Start a run on them", key="run on them"):
        go("Start", **{"with": overrides})
    if right.button("Search on them", key="search on them"):
        go("Start", **{"with": ["task=search", *overrides]})


@st.cache_data(ttl=30, show_spinner="looking")
def _looked_at(dataset: OnDisk, data_dir: Path, cache_dir: Path) -> Preview:
    return preview(dataset, data_dir=data_dir, cache_dir=cache_dir)


def _upload(settings: Settings) -> None:
    most = most_bytes(settings)
    given = st.file_uploader(
        f"A zip with a folder of images per class, {in_bytes(most)} at most", type=["zip"]
    )
    if given is None or not st.button("Unpack", key="unpack"):
        return
    if given.size > most:
        raise UserError(f"{given.name}: {in_bytes(most)} are the most (ui.upload_gb).")
    with st.spinner("unpacking"):
        folder = unpack(given, given.name, uploads(settings), most)
    go("Images", root=str(folder))


def _uploaded(settings: Settings) -> None:
    folders = sorted(path for path in uploads(settings).glob("[!.]*") if path.is_dir())
    if not folders:
        return
    chosen = st.selectbox(
        "Uploaded before", folders, index=None, format_func=lambda path: path.name, key="uploaded"
    )
    if chosen is not None and str(chosen) != st.query_params.get("root"):
        go("Images", root=str(chosen))


def _classes(seen: Preview) -> None:
    st.markdown(f"layout **{seen.layout}** in `{seen.path}`")
    for notice in seen.notices:
        st.warning(notice)
    rows = [
        {"split": split, "class": name, "images": count}
        for split, classes in seen.splits.items()
        for name, count in classes.items()
    ]
    table = pd.DataFrame(rows)
    totals = table.groupby("split", sort=False)["images"].agg(["count", "sum"])
    for (split, (classes, images)), column in zip(
        totals.iterrows(), st.columns(len(totals)), strict=True
    ):
        column.metric(str(split), f"{images:,} images", f"{classes} classes", delta_color="off")
    st.dataframe(table, hide_index=True, width="stretch")


def _samples(split: str, store: ImageStore) -> None:
    """A few images of a split, as the network will see them."""
    at = np.linspace(0, len(store) - 1, min(SAMPLES, len(store))).astype(int)
    st.caption(split)
    st.image([np.asarray(store.images[i]).squeeze() for i in at], width=SIZE)
    for notice in store.manifest["notices"]:
        st.warning(notice)
