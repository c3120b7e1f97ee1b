"""Figures of how a search went: hypervolume and diversity, who descends from whom, the answer."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from sseg_nase.errors import UserError
from sseg_nase.nets.plan import IMAGE
from sseg_nase.reporting.figures import Drawing, absent, style
from sseg_nase.search import Log, Scored
from sseg_nase.searches.analysis import leading, near_the_best
from sseg_nase.searches.progress import RECENT, Progress, short
from sseg_nase.spaces import NetworkSpace
from sseg_nase.spaces.choice import Point
from sseg_nase.spaces.graph import Graph
from sseg_nase.spaces.space import Space

COURSE = "Hypervolume and diversity"
DESCENT = "Descent"
NETWORK = "The best network"
FEW_NODES = 14  # of a network that is drawn as a whole
MOST_NODES = 40
MOST_BLOCKS = 4
MOST_KINDS = 6  # ways that are told apart
ROW = 0.42  # inches


def course(log: Log, space: Space | None = None) -> Drawing:
    """What a Pareto front covers, and how much the latest candidates differ, over the results."""
    progress = Progress(log.objectives, space)
    told = [progress.add(one) for one in log.told]
    if len(told) < 2:
        return absent("course", COURSE, "Two results are needed.")
    rows = [("search/diversity", "diversity (bits)", style.VERMILLION)]
    if any("search/hypervolume" in one for one in told):
        rows.insert(0, ("search/hypervolume", "hypervolume", style.BLUE))
    with style.applied():
        figure = style.page(1.6 * len(rows) + 0.4)
        for axes, (name, label, colour) in zip(
            figure.subplots(len(rows), sharex=True, squeeze=False)[:, 0], rows, strict=True
        ):
            there = [(n, one[name]) for n, one in enumerate(told, start=1) if name in one]
            axes.step(*zip(*there, strict=True), where="post", color=colour)
            axes.set_ylabel(label)
            axes.set_xlim(1, len(told))
            axes.set_ylim(bottom=0)
        axes.set_xlabel("results")
        style.whole(axes.xaxis)
    which = "choices" if space is None else "those that say anything"
    said = f"Diversity: entropy of the values per choice, mean over {which}, last {RECENT} results."
    if len(rows) == 2:
        said = (
            "Hypervolume: the share that the front covers of the box of the first ten results; it "
            f"can pass 1 where the front leaves that box. {said}"
        )
    return Drawing("course", COURSE, said, figure)


def descent(log: Log) -> Drawing:
    """Every candidate at its score, with a line from each of its parents; the best's line bold."""
    goal = leading(log)
    scored = {one.candidate.number: one for one in log.told if log.is_usable(one)}
    born = [
        (parent, child)
        for child, one in scored.items()
        for parent in one.candidate.parents
        if parent in scored
    ]
    if not born:
        return absent("descent", DESCENT, "No candidate of this strategy has a parent.")
    ahead = max(scored.values(), key=log.value).candidate.number
    line, waiting = {ahead}, [ahead]
    while waiting:
        for parent in scored[waiting.pop()].candidate.parents:
            if parent in scored and parent not in line:
                line.add(parent)
                waiting.append(parent)
    kinds = _kinds(list(scored.values()))
    with style.applied():
        figure = style.page(3.2)
        axes: Axes = figure.subplots()
        for parent, child in born:
            bold = {parent, child} <= line
            axes.plot(
                (parent, child), [scored[n].scores[goal] for n in (parent, child)], "-",
                color=style.BLACK if bold else style.PALE, linewidth=1.4 if bold else 0.5,
                zorder=2 if bold else 1,
            )  # fmt: skip
        names = list(dict.fromkeys(kinds.values()))
        handles = []
        for name, look in zip(names, style.looks(len(names)), strict=True):
            members = [number for number, kind in kinds.items() if kind == name]
            (marks,) = axes.plot(
                members, [scored[n].scores[goal] for n in members], look.marker, color=look.colour,
                markersize=3.5, zorder=3, label=name,
            )  # fmt: skip
            handles.append(marks)
        (crown,) = axes.plot(
            [ahead], [scored[ahead].scores[goal]], "o", markerfacecolor="none", markersize=9,
            markeredgecolor=style.BLACK, zorder=4, label="the best",
        )  # fmt: skip
        bold_line = Line2D([], [], color=style.BLACK, linewidth=1.4, label="its ancestors")
        axes.set_xlabel("candidate")
        axes.set_ylabel(goal)
        left_out = near_the_best(log, axes, [one.scores[goal] for one in scored.values()])
        style.whole(axes.xaxis)
        if max(abs(one.scores[goal]) for one in scored.values()) >= 1000:
            style.counted(axes.yaxis)
        style.legend_below(figure, [*handles, crown, bold_line])
    before = len(line) - 1
    caption = (
        f"{goal} of each candidate, a line from each of its parents. The best, candidate {ahead} "
        f"({short(scored[ahead].scores[goal])}), has {before} ancestor{'' if before == 1 else 's'}."
        f"{left_out}"
    )
    return Drawing("descent", DESCENT, caption, figure)


def network(log: Log, results: Sequence[Scored], space: Space | None) -> Drawing:
    """The best point as a graph, or, of a larger network, each different block of it."""
    if not results:
        return absent("network", NETWORK, "No candidate has a score within the caps yet.")
    best = max(results, key=log.value).candidate
    try:
        parts = [] if space is None else blocks_of(space, best.point)
    except UserError:
        parts = []
    if not parts:
        return absent("network", NETWORK, "The points of this space are no graphs.")
    with style.applied():
        column = max(style.text_width(each) for _, graph in parts for each in graph.labels) + 0.2
        most = max(1, int(style.PAGE / column))
        placed = [layout(graph, most) for _, graph in parts]
        columns = max(size[0] for _, size in placed)
        arcs = [
            _arc(graph, places) * column / 2 / ROW
            for (_, graph), (places, _) in zip(parts, placed, strict=True)
        ]
        heights = [rows + arc + 0.3 for (_, (_, rows)), arc in zip(placed, arcs, strict=True)]
        figure = style.page(
            ROW * sum(heights) + 0.18 * len(parts), max(style.COLUMN, columns * column)
        )
        every = figure.subplots(len(parts), squeeze=False, height_ratios=heights)[:, 0]
        for axes, (name, graph), (places, (_, rows)), arc in zip(
            every, parts, placed, arcs, strict=True
        ):
            _draw(axes, graph, places)
            axes.set_xlim(-0.6, columns - 0.4)
            axes.set_ylim(-rows + 0.4, 0.6 + arc)
            axes.set_axis_off()
            axes.set_title(name, loc="left", fontsize=style.SMALL)
    what = "its operations, as far as they count for the output"
    if len(parts) > 1 or parts[0][0]:
        what = "the operations of its blocks, equal ones once, without blocks of one operation"
    caption = (
        f"Candidate {best.number}: {what}, and what each reads. What several arrows bring is "
        "added, or, at the output of some cells, put side by side."
    )
    return Drawing("network", NETWORK, caption, figure)


def blocks_of(space: Space, point: Point) -> list[tuple[str, Graph]]:
    """Return what is drawn of a point's network: a name and a graph each.

    The whole where it is small. Else every block of two operations at least, those with the same
    operations and the same arrows once, `MOST_BLOCKS` at most. Raises `UserError` where there are
    no graphs.
    """
    whole = space.graph(point)
    if len(whole.labels) <= FEW_NODES or not isinstance(space, NetworkSpace):
        return [("", whole)] if len(whole.labels) <= MOST_NODES else []
    nodes = space.plan(space.canonical(point)).nodes
    blocks: dict[str, list[int]] = {}
    for number, node in enumerate(nodes):
        blocks.setdefault(node.block, []).append(number)
    found: dict[tuple[object, ...], tuple[list[str], Graph]] = {}
    for name, members in blocks.items():
        if len(members) < 2:
            continue
        outside = sorted({s for n in members for s in nodes[n].inputs} - {*members})
        froms = ["images" if s == IMAGE else nodes[s].block for s in outside]
        before = list(dict.fromkeys(froms))  # a cell before is one thing, however it ends
        place = {s: before.index(name) for s, name in zip(outside, froms, strict=True)}
        place |= {number: len(before) + at for at, number in enumerate(members)}
        last = len(before) + len(members)
        edges = [(place[s], place[n]) for n in members for s in nodes[n].inputs]
        read = {source for source, _ in edges}
        edges += [(place[n], last) for n in members if place[n] not in read]
        ops = [nodes[n].op for n in members]
        graph = Graph((*before, *ops, "output"), tuple(dict.fromkeys(edges)))
        found.setdefault((tuple(ops), graph.edges), ([], graph))[0].append(name)
    return [
        (", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else ""), graph)
        for names, graph in list(found.values())[:MOST_BLOCKS]
    ]


def layout(graph: Graph, most: int) -> tuple[list[tuple[float, float]], tuple[int, int]]:
    """Return a place (x, y) per node, and how many columns, `most` at most, and rows there are.

    A node stands one column behind the last that it reads; a long network goes on in further rows.
    """
    depth: list[int] = []
    for sources in graph.sources():  # a node reads earlier ones alone
        depth.append(max((depth[source] + 1 for source in sources), default=0))
    layers: dict[int, list[int]] = {}
    for node, layer in enumerate(depth):
        layers.setdefault(layer, []).append(node)
    count = max(depth) + 1
    columns = min(count, most)
    places: list[tuple[float, float]] = [(0.0, 0.0)] * len(depth)
    top = 0
    for first in range(0, count, columns):
        band = range(first, min(first + columns, count))
        height = max(len(layers[layer]) for layer in band)
        for layer in band:
            members = layers[layer]
            for n, node in enumerate(members):
                y = -(top + (height - len(members)) / 2 + n)
                places[node] = (float(layer - first), float(y))
        top += height
    return places, (columns, top)


def _draw(axes: Axes, graph: Graph, places: Sequence[tuple[float, float]]) -> None:
    for source, target in graph.edges:
        (x, y), (u, v) = places[source], places[target]
        around = y == v and u - x > 1  # what stands between them in the same row
        axes.annotate(
            "", (u, v), (x, y),
            arrowprops={
                "arrowstyle": "-|>", "color": style.GREY, "linewidth": 0.8, "shrinkA": 9,
                "shrinkB": 11, "connectionstyle": f"arc3,rad={-_bend(u - x) if around else 0.0}",
            },
        )  # fmt: skip
    inner = [label for node, label in enumerate(graph.labels) if graph.sources()[node]][:-1]
    named = list(dict.fromkeys(inner))
    for label, place in zip(graph.labels, places, strict=True):
        known = label in named
        colour = style.COLOURS[named.index(label) % len(style.COLOURS)] if known else style.BLACK
        axes.text(
            *place, label, ha="center", va="center", fontsize=style.SMALL,
            bbox={
                "boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": colour,
                "linewidth": 1.1,
            },
        )  # fmt: skip


def _bend(span: float) -> float:
    """How much an arrow over `span` columns bends, of its length; longer ones rise higher."""
    return (0.35 + 0.12 * span) / span


def _arc(graph: Graph, places: Sequence[tuple[float, float]]) -> float:
    """How high the highest arrow rises over its row, in columns, twice."""
    spans = [places[t][0] - places[s][0] for s, t in graph.edges if places[s][1] == places[t][1]]
    return max((0.35 + 0.12 * span for span in spans if span > 1), default=0.0)


def _kinds(results: Sequence[Scored]) -> dict[int, str]:
    """How the candidates are told apart: by network type where there are several, else by how."""
    types = {one.candidate.number: str(one.candidate.point.get("type", "")) for one in results}
    if len(set(types.values())) > 1:
        return types
    ways = {one.candidate.number: one.candidate.how.split(" ")[0] for one in results}
    common = list(dict.fromkeys(ways.values()))[:MOST_KINDS]
    return {number: way if way in common else "other" for number, way in ways.items()}
