"""The page, as Streamlit runs it, from the top at every click; `apps.serving` starts it."""

from __future__ import annotations

import hmac
from importlib import import_module

import streamlit as st

from sseg_nase.apps.serving import Settings
from sseg_nase.apps.views.parts import go, places, refused

# Imported when they are opened: some of them import torch.
VIEWS = ("Start", "Work", "Images", "Networks", "Machine")


def main() -> None:
    """Show the view that the address names."""
    st.set_page_config(page_title="sseg-nase", layout="wide")
    settings = Settings.given()
    if not hmac.compare_digest(st.query_params.get("token", ""), settings.token):
        st.error("Open the address that `sseg-nase task=ui` has printed: it ends in a token.")
        st.stop()
    named = st.query_params.get("view", "Start")
    at = VIEWS.index(named) if named in VIEWS else 0
    chosen = st.sidebar.radio("sseg-nase", VIEWS, index=at, key=f"view {named}")
    if chosen != VIEWS[at]:
        go(chosen)
    places(settings)
    st.sidebar.caption(f"runs in {settings.output_dir}")
    with refused():
        import_module(f"sseg_nase.apps.views.{chosen.lower()}").show(settings)


main()
