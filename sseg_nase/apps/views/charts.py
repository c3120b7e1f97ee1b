"""The curves of the page, drawn in the browser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd
import streamlit as st

HEIGHT = 220


def epochs_chart(
    events: Sequence[Mapping[str, Any]], key: str, mutations: Sequence[Mapping[str, Any]]
) -> None:
    """Draw a figure over the epochs, with a line where the network was changed."""
    rows = [{"epoch": e["epoch"] + 1, key: e[key]} for e in events if e.get(key) is not None]
    if not rows:
        return
    base = alt.Chart(pd.DataFrame(rows)).mark_line(point=True)
    chart: Any = base.encode(
        x=alt.X("epoch:Q", title="epoch", axis=alt.Axis(tickMinStep=1)),
        y=alt.Y(f"{key}:Q", title=key, scale=alt.Scale(zero=False)),
        tooltip=["epoch", key],
    )
    changes = [
        {"epoch": one["epoch"] + 1, "kind": one["kind"]}
        for one in mutations
        if one.get("accepted") and isinstance(one.get("epoch"), int)
    ]
    if changes:
        rules = alt.Chart(pd.DataFrame(changes)).mark_rule(strokeDash=[4, 4])
        chart += rules.encode(x="epoch:Q", color=alt.Color("kind:N", title=None), tooltip=["kind"])
    st.altair_chart(chart.properties(height=HEIGHT), width="stretch")


def rising_chart(rows: Sequence[Mapping[str, float]], goal: str) -> None:
    """Draw the best score so far over the results of a search."""
    if not rows:
        return
    chart = alt.Chart(pd.DataFrame(rows)).mark_line(interpolate="step-after", point=True)
    st.altair_chart(
        chart.encode(
            x=alt.X("results:Q", axis=alt.Axis(tickMinStep=1)),
            y=alt.Y(f"{_field(goal)}:Q", title=f"best {goal} so far", scale=alt.Scale(zero=False)),
            tooltip=["results", _field(goal)],
        ).properties(height=HEIGHT),
        width="stretch",
    )


def candidates_chart(rows: Sequence[Mapping[str, Any]], goals: Sequence[str]) -> None:
    """Draw the candidates by the first two goals; those of the front are filled."""
    scored = [row for row in rows if row["state"] == "scored"]
    if not scored:
        return
    y, x = goals[:2]
    st.altair_chart(
        alt.Chart(pd.DataFrame(scored))
        .mark_point(size=80)
        .encode(
            x=alt.X(f"{_field(x)}:Q", title=x, scale=alt.Scale(zero=False)),
            y=alt.Y(f"{_field(y)}:Q", title=y, scale=alt.Scale(zero=False)),
            color=alt.Color("front:N", title="on the front"),
            shape=alt.Shape("front:N", title="on the front"),
            tooltip=["candidate", _field(x), _field(y), "point"],
        )
        .properties(height=HEIGHT),
        width="stretch",
    )


def _field(name: str) -> str:
    """A column's name as Vega reads it: dots and brackets would be paths."""
    return name.replace(".", "\\.").replace("[", "\\[").replace("]", "\\]")
