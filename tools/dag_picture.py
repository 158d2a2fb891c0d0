"""The graph of a DAG as an SVG picture: layers from left to right, without programs that draw.

``Graph.of`` reads the structure of a DAG, ``laid_out`` places it, and ``svg`` draws it. The last two are pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from typing import Any

#: Sizes in pixels.
HEIGHT, GAP, COLUMN, MARGIN, HEADING = 46, 18, 34, 14, 26
WIDTH_OF_LETTER = 7.4
#: Fill and stroke of the kinds of tasks.
COLOURS = {
    "pool": ("#e2f4ec", "#2f8f62"),
    "qarnot": ("#dfedfb", "#2b6cb0"),
    "sensor": ("#efe6fa", "#7a4fb5"),
    "airflow": ("#f4f4f1", "#77756c"),
}
#: The kind of a task, by the first of these words in the name of its operator.
KINDS = {"Sensor": "sensor", "PoolOperator": "pool", "QarnotRun": "qarnot", "@task.qarnot": "qarnot"}


@dataclass(frozen=True)
class Node:
    """An Airflow task. ``note`` is its operator in short, and ``group`` the id of the outermost group that it is in."""

    id: str
    label: str
    note: str
    kind: str
    group: str | None = None

    @property
    def width(self) -> float:
        """Return the width of its box."""
        return round(max(len(self.label) * WIDTH_OF_LETTER, len(self.note) * WIDTH_OF_LETTER * 0.85) + 24)


@dataclass(frozen=True)
class Graph:
    """Tasks and the edges between them."""

    title: str
    nodes: tuple[Node, ...]
    edges: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, dag: Any) -> Graph:
        """Read the structure of a DAG. Edges that follow from others are left out."""
        after = {task.task_id: set(task.downstream_task_ids) for task in dag.tasks}
        reached = {name: _reachable(name, after) for name in after}
        edges = [
            (one, other)
            for one in sorted(after)
            for other in sorted(after[one])
            if not any(other in reached[between] for between in after[one] if between != other)
        ]
        return cls(dag.dag_id, tuple(_node(task) for task in dag.tasks), tuple(edges))


def _reachable(name: str, after: dict[str, set[str]]) -> set[str]:
    found, ahead = set[str](), [name]
    while ahead:
        new = after[ahead.pop()] - found
        found |= new
        ahead += new
    return found


def _node(task: Any) -> Node:
    group, inside = task.task_group, None
    while group is not None and group.group_id is not None:
        inside, group = group.group_id, group.task_group
    label = str(task.label) + (" [ ]" if task.is_mapped else "")
    label = {(True, False): f"{label} ↗", (False, True): f"{label} ↘"}.get(
        (task.is_setup, task.is_teardown), label
    )
    operator = str(getattr(task, "operator_name", task.task_type))
    kind = next((kind for word, kind in KINDS.items() if word in operator), "airflow")
    return Node(task.task_id, label, operator.removeprefix("Qarnot").removesuffix("Operator"), kind, inside)


# --- Layout


@dataclass
class Layout:
    """Places: the left upper corner of each box, the frame of each group, and the points of each edge."""

    width: float
    height: float
    boxes: dict[str, tuple[float, float]] = field(default_factory=dict)
    frames: dict[str, tuple[float, float, float, float]] = field(default_factory=dict)
    lines: list[list[tuple[float, float]]] = field(default_factory=list)


def layers_of(graph: Graph) -> dict[str, int]:
    """Return the layer of each task. Those of a group are together, and others before or after all of them."""
    cluster = {node.id: node.group or f"task {node.id}" for node in graph.nodes}
    inner = _longest(
        {node.id for node in graph.nodes}, [e for e in graph.edges if cluster[e[0]] == cluster[e[1]]]
    )
    outer = {(cluster[one], cluster[other]) for one, other in graph.edges if cluster[one] != cluster[other]}
    spans = {
        name: 1 + max(inner[one] for one in cluster if cluster[one] == name) for name in cluster.values()
    }
    start = _longest(set(cluster.values()), sorted(outer), spans)
    return {node.id: start[cluster[node.id]] + inner[node.id] for node in graph.nodes}


def _longest(
    names: set[str], edges: list[tuple[str, str]], spans: dict[str, int] | None = None
) -> dict[str, int]:
    """Return the length of the longest path to each name.

    :raises ValueError: the edges have a cycle.
    """
    found = dict.fromkeys(names, 0)
    for _ in range(len(names) + 1):
        late = {
            other: found[one] + (spans or {}).get(one, 1)
            for one, other in edges
            if found[other] < found[one] + (spans or {}).get(one, 1)
        }
        if not late:
            return found
        found |= late
    raise ValueError("A task outside of a group is between its tasks")


def laid_out(graph: Graph) -> Layout:
    """Place the tasks in layers, and lead long edges around the tasks between."""
    layer, nodes = layers_of(graph), {node.id: node for node in graph.nodes}
    columns: list[list[str]] = [[] for _ in range(max(layer.values()) + 1)]
    for node in graph.nodes:
        columns[layer[node.id]].append(node.id)
    links, routes = [], []
    for one, other in graph.edges:
        route = [one, *(f"{one}>{other}>{n}" for n in range(layer[one] + 1, layer[other])), other]
        for n, bend in enumerate(route[1:-1], layer[one] + 1):
            columns[n].append(bend)
        links += pairwise(route)
        routes.append(route)
    _order(
        columns,
        links,
        {name: nodes[name].group or "" if name in nodes else "" for c in columns for name in c},
    )
    heights = [sum(_height(name, nodes) for name in column) + GAP * (len(column) - 1) for column in columns]
    framed = any(node.group for node in graph.nodes)
    top = MARGIN + (HEADING if framed else 0)
    layout = Layout(0, max(heights) + top + MARGIN + (MARGIN if framed else 0))
    x, middles = float(MARGIN * 2 if framed else MARGIN), {}
    for column, height in zip(columns, heights, strict=True):
        width = max((nodes[name].width for name in column if name in nodes), default=0.0)
        y = top + (max(heights) - height) / 2
        for name in column:
            if name in nodes:
                layout.boxes[name] = (x + (width - nodes[name].width) / 2, y)
            middles[name] = (x, x + width, y + _height(name, nodes) / 2)
            y += _height(name, nodes) + GAP
        x += width + COLUMN
    layout.width = x - COLUMN + (MARGIN * 2 if framed else MARGIN)
    for route in routes:
        left, right = layout.boxes[route[0]], layout.boxes[route[-1]]
        line = [(left[0] + nodes[route[0]].width, middles[route[0]][2])]
        for bend in route[1:-1]:
            line += [(middles[bend][0], middles[bend][2]), (middles[bend][1], middles[bend][2])]
        layout.lines.append([*line, (right[0], middles[route[-1]][2])])
    for group in dict.fromkeys(node.group for node in graph.nodes if node.group):
        layout.frames[group] = _frame(
            [(layout.boxes[n.id], n.width) for n in graph.nodes if n.group == group]
        )
    return layout


def _height(name: str, nodes: dict[str, Node]) -> float:
    return HEIGHT if name in nodes else 2


def _order(columns: list[list[str]], links: list[tuple[str, str]], group: dict[str, str]) -> None:
    """Sort each column by the mean place of the neighbours, in a few sweeps, and keep groups together."""
    for sweep in range(6):
        pairs = list(pairwise(columns))
        for fixed, free in pairs if sweep % 2 == 0 else [(b, a) for a, b in reversed(pairs)]:
            place = {name: n / max(len(fixed) - 1, 1) for n, name in enumerate(fixed)}
            near: dict[str, list[float]] = {name: [] for name in free}
            for one, other in links:
                for name, neighbour in ((one, other), (other, one)):
                    if name in near and neighbour in place:
                        near[name].append(place[neighbour])
            means = {name: sum(found) / len(found) if found else 0.5 for name, found in near.items()}
            free.sort(key=lambda name: (group[name] == "", means[name], name))


def _frame(boxes: list[tuple[tuple[float, float], float]]) -> tuple[float, float, float, float]:
    left, up = min(x for (x, _), _ in boxes) - MARGIN, min(y for (_, y), _ in boxes) - HEADING
    right = max(x + width for (x, _), width in boxes) + MARGIN
    return left, up, right - left, max(y for (_, y), _ in boxes) + HEIGHT + MARGIN - up


# --- Drawing


def svg(graph: Graph) -> str:
    """Return the picture of a graph."""
    layout = laid_out(graph)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {layout.width:.0f} {layout.height:.0f}" '
        f'width="{layout.width:.0f}" height="{layout.height:.0f}" role="img" '
        'font-family="system-ui, sans-serif" font-size="13">',
        f"<title>Graph of the DAG {escape(graph.title)}</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#8a887f"/></marker></defs>',
        '<rect width="100%" height="100%" rx="8" fill="#fff"/>',
    ]
    for group, (x, y, width, height) in layout.frames.items():
        lines += [
            f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{height:.0f}" rx="10" fill="#fafaf7" '
            'stroke="#c9c7bd" stroke-dasharray="5 4"/>',
            f'<text x="{x + 12:.0f}" y="{y + 17:.0f}" fill="#5f5d55" font-size="12">{escape(group)}</text>',
        ]
    lines += [_path(line) for line in layout.lines]
    for node in graph.nodes:
        (x, y), (fill, stroke) = layout.boxes[node.id], COLOURS[node.kind]
        middle = x + node.width / 2
        lines += [
            f'<rect x="{x:.0f}" y="{y:.0f}" width="{node.width:.0f}" height="{HEIGHT}" rx="6" fill="{fill}" '
            f'stroke="{stroke}"/>',
            f'<text x="{middle:.0f}" y="{y + 19:.0f}" text-anchor="middle" font-weight="600" fill="#22211e">'
            f"{escape(node.label)}</text>",
            f'<text x="{middle:.0f}" y="{y + 36:.0f}" text-anchor="middle" font-size="11" fill="#5f5d55">'
            f"{escape(node.note)}</text>",
        ]
    return "\n".join([*lines, "</svg>", ""])


def _path(line: list[tuple[float, float]]) -> str:
    (x, y), rest = line[0], line[1:]
    words = [f"M{x:.0f} {y:.0f}"]
    for across, down in rest:
        half = (x + across) / 2
        words.append(f"C{half:.0f} {y:.0f} {half:.0f} {down:.0f} {across:.0f} {down:.0f}")
        x, y = across, down
    return f'<path d="{" ".join(words)}" fill="none" stroke="#8a887f" stroke-width="1.4" marker-end="url(#tip)"/>'
