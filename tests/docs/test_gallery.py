"""The gallery shows the example DAGs as they are, and its pictures can be read."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tools import dag_picture, gallery
from tools.dag_picture import Graph, Node

EXAMPLES = sorted(gallery.EXAMPLES.glob("qarnot_*.py"))


def graph(*edges: str, group: str = "") -> Graph:
    """Return a graph of edges such as ``a>b``. The tasks whose ids are in *group* are in one."""
    pairs = [tuple(edge.split(">")) for edge in edges]
    names = sorted({name for pair in pairs for name in pair})
    nodes = (Node(name, name, "Note", "qarnot", "g" if name in group else None) for name in names)
    return Graph("d", tuple(nodes), tuple((one, other) for one, other in pairs))


@pytest.fixture(scope="module")
def made() -> dict[Path, str]:
    return gallery.made()


def test_the_gallery_is_that_of_the_examples(made: dict[Path, str]) -> None:
    old = [path.name for path, text in made.items() if not path.exists() or path.read_text() != text]
    assert old == [], "Run `python -m tools.gallery`."
    assert set(gallery.PICTURES.glob("*.svg")) == made.keys() - {gallery.PAGE}


def test_every_example_has_its_picture_and_its_source(made: dict[Path, str]) -> None:
    page = made[gallery.PAGE]
    for path in EXAMPLES:
        assert f"](images/dags/{path.stem}.svg)" in page
        assert f"](../example_dags/{path.name})" in page


def test_a_picture_shows_each_task(made: dict[Path, str]) -> None:
    words = "".join(ET.fromstring(made[gallery.PICTURES / "qarnot_scheduled_pipeline.svg"]).itertext())
    for word in ("open_pool ↗", "close_pool ↘", "extract", "TaskSensor", "@task", "nodes"):
        assert word in words


@pytest.mark.parametrize(
    ("edges", "group", "expected"),
    [
        (("a>b", "b>c"), "", {"a": 0, "b": 1, "c": 2}),
        (("a>c", "b>c"), "", {"a": 0, "b": 0, "c": 1}),
        # A task after a group does not stand under one of its tasks, nor one before it.
        (("a>b", "b>c", "c>d", "b>z"), "abcd", {"a": 0, "b": 1, "c": 2, "d": 3, "z": 4}),
        (("y>c", "b>c", "c>d"), "bcd", {"y": 0, "b": 1, "c": 2, "d": 3}),
    ],
)
def test_layers(edges: tuple[str, ...], group: str, expected: dict[str, int]) -> None:
    assert dag_picture.layers_of(graph(*edges, group=group)) == expected


def test_a_task_between_those_of_a_group_is_refused() -> None:
    with pytest.raises(ValueError, match="between its tasks"):
        dag_picture.layers_of(graph("a>z", "z>b", group="ab"))


WIDE = graph("a>b", "a>c", "a>d", "b>e", "c>e", "d>e", "a>z", "e>z", "y>a", group="abcde")


def test_boxes_do_not_overlap_and_edges_lead_to_the_right() -> None:
    layout, nodes = dag_picture.laid_out(WIDE), {node.id: node for node in WIDE.nodes}
    for one in nodes.values():
        for other in nodes.values():
            (x, y), (across, down) = layout.boxes[one.id], layout.boxes[other.id]
            beside = x + one.width < across or across + other.width < x
            assert one == other or beside or abs(y - down) > dag_picture.HEIGHT
    for line in layout.lines:
        assert [x for x, _ in line] == sorted(x for x, _ in line)
    assert all(0 <= x < layout.width and 0 <= y < layout.height for line in layout.lines for x, y in line)


def test_a_frame_has_the_tasks_of_its_group_and_no_others() -> None:
    layout = dag_picture.laid_out(WIDE)
    left, up, width, height = layout.frames["g"]
    inside = {
        node.id
        for node in WIDE.nodes
        if left < layout.boxes[node.id][0] + node.width and layout.boxes[node.id][0] < left + width
    }
    assert inside == set("abcde")
    assert 0 <= up < up + height <= layout.height


def test_names_are_text_in_a_picture() -> None:
    odd = Graph("<d>", (Node("a", "<a>&", "n", "qarnot"),), ())
    assert "<a>&" in "".join(ET.fromstring(dag_picture.svg(odd)).itertext())
