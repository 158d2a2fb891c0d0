"""Reject unknown parameters of an operator, and suggest a known one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.api.fields import closest_name, is_uuid, normalise, wire_fields
from airflow_qarnot_pool.parameters.templating import is_templated

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.specs import PoolSpec, TaskSpec


def refuse_unknown(
    operator: type, given: Mapping[str, Any], *, author: str | None = None, others: Collection[str] = ()
) -> None:
    """Reject parameters that *operator* does not have.

    :param author: name of the callable in the DAG; default: the operator.
    :param others: other valid names.
    :raises QarnotInvalidSpecError: names the parameter, but not its value, which may be a secret.
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
                f"{name} is not a parameter of {author}{task}", field=name, remedy=_remedy(name, names)
            )


def _is_qarnot_pool(pool: Any) -> bool:
    """Return whether *pool* must be a Qarnot pool: a reference, a template, a group, or a uuid."""
    return pool is not None and (not isinstance(pool, str) or is_templated(pool) or is_uuid(pool))


def _remedy(name: str, names: Collection[str]) -> str:
    from airflow_qarnot_pool.api.specs import PoolSpec, TaskSpec

    if (close := closest_name(name, names, only_synonyms=True)) is not None:
        return f"Did you mean {close!r}?"
    kind = next((kind for kind in ("pool", "task") if f"{kind}_spec" in names), None)
    if kind is not None:
        spec: type[PoolSpec | TaskSpec] = PoolSpec if kind == "pool" else TaskSpec
        fields = {
            normalise(str(name)) for field, wire in wire_fields(spec) for name in (field.name, wire.name)
        }
        if normalise(name) in fields:
            return f"Give {kind}_spec={{{name!r}: ...}}."
        if hint := spec.misplaced.get(normalise(name)):
            return hint
    if (close := closest_name(name, names)) is not None:
        return f"Did you mean {close!r}?"
    return f"It takes {', '.join(sorted(set(names) - _airflow_parameters()))}, and the parameters of BaseOperator."


@functools.lru_cache(maxsize=256)
def _parameters(operator: type) -> frozenset[str]:
    """Return the named parameters of a class and its bases."""
    constructors = (vars(base).get("__init__") for base in operator.__mro__[:-1])
    return frozenset(
        name
        for constructor in constructors
        if constructor is not None
        for name, parameter in inspect.signature(constructor).parameters.items()
        if name != "self" and parameter.kind is not inspect.Parameter.VAR_KEYWORD
    )


def _airflow_parameters() -> frozenset[str]:
    from airflow.sdk import BaseOperator

    return _parameters(BaseOperator)
