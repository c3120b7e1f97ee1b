"""This machine: its slots for commands, GPUs, memory and disk space."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import streamlit as st

from sseg_nase.apps.commands import WAITING, started
from sseg_nase.apps.serving import Settings
from sseg_nase.apps.views.parts import devices
from sseg_nase.files import free_bytes, in_bytes
from sseg_nase.hardware.profiles import cores
from sseg_nase.hardware.slots import is_taken
from sseg_nase.rundir.status import RUNNING
from sseg_nase.version import __version__


def show(settings: Settings) -> None:
    """Draw the view."""
    st.title("Machine")
    states = [command.standing().state for command in started(Path(settings.output_dir))]
    load = os.getloadavg()[0]
    free = free_bytes(Path(settings.output_dir))
    told = {
        "commands at work": str(states.count(RUNNING)),
        "commands that wait": str(states.count(WAITING)),
        "cores": str(cores()),
        "load": f"{load:.1f}",
        "free for runs": "" if free is None else in_bytes(free),
        "sseg-nase": __version__,
    }
    for (name, value), column in zip(told.items(), st.columns(len(told)), strict=True):
        column.metric(name, value)
    st.subheader("GPUs")
    found = devices()
    if not found:
        st.caption("no NVIDIA GPU is found: commands run on the CPU")
        return
    rows = [
        {
            "GPU": gpu.index,
            "has a job": is_taken(gpu),
            "free GiB": round(gpu.free_gb, 1),
            "of": round(gpu.total_gb, 1),
        }
        for gpu in found
    ]
    st.dataframe(pd.DataFrame(rows), hide_index=True, width="stretch")
