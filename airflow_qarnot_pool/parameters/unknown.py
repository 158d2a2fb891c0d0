"""Refuse parameters that an operator does not take, and name the one that is meant."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.parameters.templating import is_templated

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.specs import PoolSpec, TaskSpec


def refuse_unknown(
    operator: type, given: Mapping[str, Any], *, author: str | None = None, others: Collection[str] = ()
) -> None:
    """Refuse what is given and *operator* does not take.

    :param author: what the author of the DAG wrote; default: the operator.
    :param others: names that the author may give besides.
    :raises QarnotInvalidSpecError: names the parameter and never its value, which may be a secret under any name.
    """
    author = author or getattr(operator, "custom_operator_name", operator.__name__)
    names = _parameters(operator) | set(others)
    task = f" (task {given['task_id']})" if isinstance(given.get("task_id"), str) else ""
    if _is_qarnot_pool(given.get("pool")):
        remedy = (
            "Give the Qarnot pool as qarnot_pool."
            if "qarnot_pool" in names
            else "Give the name of an Airflow pool, or leave it out."
        )
        raise QarnotInvalidSpecError(
            f"pool of {author}{task} is Airflow's pool of task slots, got {given['pool']!r}",
            field="pool",
            remedy=remedy,
        )
    for name in given:
        if name not in names:
            raise QarnotInvalidSpecError(
                f"{name} is no parameter of {author}{task}", field=name, remedy=_remedy(name, names)
            )


def _is_qarnot_pool(pool: Any) -> bool:
    """Whether *pool* can only be a Qarnot pool: a reference, a template, a group, or a uuid."""
    from airflow_qarnot_pool.api.resource import is_uuid

    return pool is not None and (not isinstance(pool, str) or is_templated(pool) or is_uuid(pool))


def _remedy(name: str, names: Collection[str]) -> str:
    from airflow_qarnot_pool.api.fields import closest_name, normalise, wire_fields
    from airflow_qarnot_pool.api.specs import PoolSpec, TaskSpec

    if (close := closest_name(name, names, only_synonyms=True)) is not None:
        return f"Did you mean {close!r}?"
    kind = next((one for one in ("pool", "task") if f"{one}_spec" in names), None)
    if kind is not None:
        spec: type[PoolSpec | TaskSpec] = PoolSpec if kind == "pool" else TaskSpec
        fields = {normalise(str(one)) for field, wire in wire_fields(spec) for one in (field.name, wire.name)}
        if normalise(name) in fields:
            return f"Give {kind}_spec={{{name!r}: ...}}."
        if hint := spec.misplaced.get(normalise(name)):
            return hint
    if (close := closest_name(name, names)) is not None:
        return f"Did you mean {close!r}?"
    return (
        f"It takes {', '.join(sorted(set(names) - _airflows_own()))}, and what every Airflow operator takes."
    )


@functools.lru_cache(maxsize=256)
def _parameters(operator: type) -> frozenset[str]:
    """The parameters that a class and its bases take by name."""
    makers = (vars(one).get("__init__") for one in operator.__mro__[:-1])
    return frozenset(
        name
        for make in makers
        if make is not None
        for name, one in inspect.signature(make).parameters.items()
        if name != "self" and one.kind is not inspect.Parameter.VAR_KEYWORD
    )


def _airflows_own() -> frozenset[str]:
    from airflow.sdk import BaseOperator

    return _parameters(BaseOperator)
