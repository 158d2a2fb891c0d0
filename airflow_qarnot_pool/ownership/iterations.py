"""The iteration that a task instance runs in, if Airflow repeats a task within one DAG run.

Airflow 3.4 repeats a task group with ``.loop()``; the context then has ``loop``, and the task instance the id of the
execution it belongs to (``region_id``). An open proposal (AIP-104) runs the elements of an iterable within one task
instance, each with its ``index``. Iterations share DAG, run, task, map index and try. Without another coordinate, the
second iteration would be treated as a retry of the first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any
from uuid import UUID

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError

#: Attributes of a task instance, and keys of the context, that number an iteration.
_NUMBERS = ("index", "iteration", "loop_index", "loop_iteration", "iteration_index", "element_index")
#: Attributes that locate a task instance of a loop in Airflow's database. Outside of a loop they are redundant.
_REGION = ("region_id", "region_index")
_NO_REGION = UUID(int=0)
#: Attributes that are named like a coordinate, but are not one or are part of the identity anyway.
_NO_COORDINATES = frozenset(
    {"map_index", "rendered_map_index", "map_index_template", "loop", *_NUMBERS, *_REGION}
)
_LIKE_A_COORDINATE = re.compile(
    r"(^|_)(index|iteration|loop|element|trajectory|shard|batch|chunk|slice|cycle|round|position|coordinate|ordinal)"
    r"(_|$)"
)


def iteration_of(context: Mapping[str, Any]) -> str:
    """Return the coordinates of this iteration within its task instance; "" outside of loops.

    :raises QarnotInvalidSpecError: the task instance, or the context, has a coordinate that this release does not
        know.
    """
    ti = context["ti"]
    coordinates = {
        **_numbers(context, "context"),
        **_of_loop(context.get("loop")),
        **_numbers(_attributes(ti), "ti"),
    }
    region = {name: value for name in _REGION if (value := _text(f"ti.{name}", getattr(ti, name, None)))}
    mapped = region.get("region_index") in (None, str(getattr(ti, "map_index", None)))
    if coordinates or not mapped:
        coordinates |= region
    named = {name: context.get(name) for name in context if _LIKE_A_COORDINATE.search(name)}
    for name, value in (*_unknown("ti.", _attributes(ti)), *_unknown("context.", named)):
        raise QarnotInvalidSpecError(
            f"This Airflow distinguishes task instances by {name} ({value}), which this release does not support. "
            "Two of them would use each other's Qarnot tasks. Upgrade airflow-qarnot-pool, or use the operator "
            "outside of the construct that repeats it.",
            field=name.partition(".")[2],
        )
    return " ".join(f"{name}={value}" for name, value in sorted(coordinates.items()))


def _of_loop(loop: Any) -> dict[str, str]:
    """Return the coordinates from ``context["loop"]``. A rerun of a loop has another region."""
    if loop is None:
        return {}
    of_loop = loop.get if isinstance(loop, Mapping) else partial(getattr, loop)
    index = _text("loop.index", of_loop("index", None))
    if index is None:
        raise QarnotInvalidSpecError(
            f"The context has a loop without a number (loop.index): {loop!r}. Upgrade airflow-qarnot-pool, or "
            "use the operator outside of the loop.",
            field="loop",
        )
    region = _text("loop.region_id", of_loop("region_id", None))
    return {"loop.index": index, **({"loop.region_id": region} if region else {})}


def _numbers(values: Mapping[str, Any], where: str) -> dict[str, str]:
    named = {name: _text(f"{where}.{name}", values.get(name)) for name in _NUMBERS}
    return {name: value for name, value in named.items() if value is not None}


def _attributes(ti: Any) -> dict[str, Any]:
    """Return the attributes of *ti* that may be coordinates, properties included. Methods are excluded."""
    names = {*getattr(ti, "__dict__", ()), *dir(type(ti))}
    named = {name for name in names if name in _NUMBERS or _LIKE_A_COORDINATE.search(name)}
    values = {name: getattr(ti, name, None) for name in named if not name.startswith("_")}
    return {name: value for name, value in values.items() if not callable(value)}


def _unknown(where: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in sorted(values.items()):
        if name in _NO_COORDINATES or isinstance(value, bool):
            continue
        if isinstance(value, (str, UUID)) or (isinstance(value, int) and value >= 0):
            yield where + name, value


def _text(name: str, value: Any) -> str | None:
    """Return a coordinate as text; None if it is not set."""
    if value is None or value in (-1, "", _NO_REGION):
        return None
    if isinstance(value, bool) or not isinstance(value, (int, str, UUID)):
        raise QarnotInvalidSpecError(
            f"{name} must be a number, text or a UUID, got {value!r}. Upgrade airflow-qarnot-pool",
            field=name,
        )
    return str(value)
