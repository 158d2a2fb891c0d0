"""Finding objects without looking at all of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from airflow_qarnot_pool.local.backend.models import Remote
from airflow_qarnot_pool.local.backend.readings import DEFAULT_READINGS
from airflow_qarnot_pool.local.backend.store import Store
from airflow_qarnot_pool.local.http.filters import FilterEvaluator
from airflow_qarnot_pool.local.schemas import formats
from airflow_qarnot_pool.local.schemas.responses import ResponseBody

COUNT = 1000
looks = 0


def look(name: str) -> Any:
    def get(world: Any, item: Remote) -> Any:
        global looks
        looks += 1
        value = getattr(item, name)
        return formats.stamp(value) if name == "moved" else value

    return get


BODY: ResponseBody[Remote] = ResponseBody(
    {
        "uuid": look("uuid"),
        "name": look("name"),
        "shortname": look("shortname"),
        "tags": look("tags"),
        "state": look("state"),
        "stateTransitionTime": look("moved"),
    },
    summary=[],
)


def make(number: int) -> Remote:
    return Remote(
        uuid=f"00000000-0000-0000-0000-{number:012d}",
        seq=number,
        name=f"n{number}",
        shortname=f"s{number}",
        created=float(number),
        state="Submitted",
        tags=["all", f"t{number % 100}"],
    )


@pytest.fixture
def store() -> Store[Remote]:
    global looks
    found: Store[Remote] = Store()
    for number in range(COUNT):
        found.add(make(number))
    looks = 0
    return found


def find(store: Store[Remote], node: Any) -> list[int]:
    world: Any = SimpleNamespace(readings=DEFAULT_READINGS)
    return [item.seq for item in FilterEvaluator(world, store, BODY).find(node)]


def leaf(operator: str, field: str, value: Any) -> dict[str, Any]:
    return {"operator": operator, "field": field, "value": value}


def both(*filters: Any) -> dict[str, Any]:
    return {"operator": "And", "filters": list(filters)}


@pytest.mark.parametrize(
    ("node", "found", "at_most"),
    [
        (leaf("Equal", "Shortname", "s7"), [7], 1),
        (leaf("In", "Uuid", [make(3).uuid, make(500).uuid]), [3, 500], 2),
        (leaf("Equal", "Tags", "t5"), list(range(5, COUNT, 100)), 10),
        (both(leaf("Equal", "Tags", "all"), leaf("Equal", "Tags", "t5")), list(range(5, COUNT, 100)), 20),
        (leaf("GreaterThanOrEqual", "StateTransitionTime", "1970-01-01T00:16:38Z"), [998, 999], 0),
        (
            both(
                leaf("Equal", "Tags", "all"),
                leaf("GreaterThan", "StateTransitionTime", "1970-01-01T00:16:37Z"),
            ),
            [998, 999],
            3,
        ),
        (
            {"operator": "Or", "filters": [leaf("Equal", "Shortname", "s1"), leaf("Equal", "Tags", "t2")]},
            [1, *range(2, COUNT, 100)],
            22,
        ),
        (leaf("Equal", "Name", "n5"), [5], COUNT),  # no index: everything is looked at
    ],
)
def test_only_candidates_are_looked_at(
    store: Store[Remote], node: Any, found: list[int], at_most: int
) -> None:
    assert find(store, node) == found
    assert looks <= at_most


def test_transitions_are_found_by_their_latest_time(store: Store[Remote]) -> None:
    first, second = store.find("s1"), store.find("s2")
    assert first is not None
    assert second is not None
    for step in range(20_000):  # many more than are kept
        store.move(first, f"state{step % 7}", 2000.0 + step)
    store.move(second, "Closed", 21_999.0)
    assert [item.seq for item in store.moved_since(2000.0)] == [1, 2]
    assert store.moved_since(22_000.0) == []
    assert (second.previous_state, second.previously_moved, second.modified) == ("Submitted", 2.0, 21_999.0)
    assert store.move(second, "Closed", 30_000.0) is False
    assert second.moved == 21_999.0


def test_a_removed_or_retagged_object_is_not_found(store: Store[Remote]) -> None:
    first, second = store.find("s1"), store.find("s2")
    assert first is not None
    assert second is not None
    store.remove(first)
    store.retag(second, ["new"])
    assert store.find("s1") is None
    assert store.get(first.uuid) is None
    assert [item.seq for item in store.tagged("t1")] == list(range(101, COUNT, 100))
    assert second not in store.tagged("t2")
    assert store.tagged("new") == [second]
    assert first not in store.moved_since(0)
    store.remove(first)  # a second time: nothing happens
    assert len(store) == COUNT - 1


def test_the_newest_of_several_with_one_name(store: Store[Remote]) -> None:
    twin = make(COUNT)
    twin.shortname = "s5"
    store.add(twin)
    assert store.find("s5") is twin
    store.remove(twin)
    found = store.find("s5")
    assert found is not None
    assert found.seq == 5
