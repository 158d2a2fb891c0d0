"""Reject unknown parameters of an operator, and suggest a known one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.api.fields import closest_name, is_uuid, normalise, wire_fields
from airflow_qarnot_pool.parameters.dag_warnings import QarnotDefaultArgsWarning, warn_at_the_dag
from airflow_qarnot_pool.parameters.templating import is_templated

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.specs import PoolSpec, TaskSpec

#: Normalised names of parameters that are set elsewhere, a parameter of the operators to which that applies, and the
#: remedy.
_ELSEWHERE: Sequence[tuple[Collection[str], str, str]] = (
    (
        {"pollinterval", "pokeinterval", "pollinginterval", "pollingperiod", "pollingperiodseconds"},
        "wait_timeout",
        "Set poll_interval in the connection, or [qarnot] poll_interval for all connections.",
    ),
    (
        {"deferafter"},
        "keep_warm",
        "Give it to the tasks on the pool. A setup follows [qarnot] defer_after.",
    ),
    (
        {"maxruncost"},
        "max_cost",
        "Give it to the QarnotPoolGroup or QarnotCreatePoolOperator that creates the pool.",
    ),
    (
        {"requirements"},
        "environment",
        "Give environment={'requirements': [...]}. Nothing is installed on the nodes, which may have no network.",
    ),
    (
        {"costwarningthreshold"},
        "max_cost",
        "Set [qarnot] cost_warning_threshold, which holds for all limits.",
    ),
)
#: Normalised names that Airflow, another operator of ours or one of another provider has as a parameter.
_OF_OTHERS = frozenset(
    normalise(name)
    for name in (
        "command",
        "commands",
        "constants",
        "constraints",
        "dependencies",
        "elastic",
        "image",
        "instance_count",
        "job",
        "labels",
        "name",
        "pool",
        "privileges",
        "profile",
        "project",
        "ranges",
        "resource_buckets",
        "result_bucket",
        "retry",
        "scaling",
        "shortname",
        "slots_per_node",
        "tags",
    )
)


#: Similarity (0 to 1) from which a name is a misspelling of another: one letter of seven, or two letters swapped.
_MISSPELT = 0.9
#: Parameter that Airflow adds to those of a mapped task.
_FROM_MAPPED = "_airflow_from_mapped"


def refuse_unknown(
    operator: type, given: Mapping[str, Any], *, author: str | None = None, others: Collection[str] = ()
) -> None:
    """Reject parameters that *operator* does not have.

    An operator may list inherited parameters that it does not accept, and the remedy, as ``rejected_parameters``.

    :param author: name of the callable in the DAG; default: the operator.
    :param others: other valid names.
    :raises QarnotInvalidSpecError: names the parameter, but not its value, which may be a secret.
    """
    author = author or getattr(operator, "custom_operator_name", operator.__name__)
    rejected: Mapping[str, str] = getattr(operator, "rejected_parameters", {})
    names = (_parameters(operator) | set(others)) - rejected.keys()
    if _is_qarnot_pool(given.get("pool")):
        remedy = (
            "Give the Qarnot pool as qarnot_pool."
            if "qarnot_pool" in names
            else "Give the name of an Airflow pool, or leave it out."
        )
        raise QarnotInvalidSpecError(
            f"pool of {author} is Airflow's pool of task slots, got {given['pool']!r}",
            field="pool",
            remedy=remedy,
        )
    for name in given:
        if name not in names and name != _FROM_MAPPED:
            raise QarnotInvalidSpecError(
                f"{name} is not a parameter of {author}",
                field=name,
                remedy=rejected.get(name) or _remedy(name, names),
            )


def _is_qarnot_pool(pool: Any) -> bool:
    """Return whether *pool* must be a Qarnot pool: a reference, a template, a group, or a uuid."""
    return pool is not None and (not isinstance(pool, str) or is_templated(pool) or is_uuid(pool))


def refuse_unknown_defaults(operator: type, default_args: Mapping[str, Any] | None) -> None:
    """Reject fields of a specification in ``default_args``. Airflow ignores names there that no operator has.

    Names that operators of other providers have, too, are accepted (:data:`_OF_OTHERS`). A name that is almost a
    parameter gets a warning.

    :raises QarnotInvalidSpecError: names the field, but not its value.
    """
    for name in default_args or ():
        if name in _parameters(operator):
            continue
        if specs := _only_fields().get(normalise(str(name))):
            raise QarnotInvalidSpecError(
                f"{name} in default_args is not a parameter of {operator.__name__} or another operator",
                field=str(name),
                remedy=f"Give {' or '.join(f'{spec}={{{name!r}: ...}}' for spec in specs)} there.",
            )
        if meant := _misspelt(str(name), operator):
            _warn_of_misspelt(str(name), meant)


@functools.lru_cache(maxsize=256)
def _misspelt(name: str, operator: type) -> str | None:
    """Return the parameter of *operator* that *name* almost is, or None."""
    import difflib  # Imported here because few DAGs need it.

    names = {normalise(known): known for known in _parameters(operator)}
    close = difflib.get_close_matches(normalise(name), names, n=1, cutoff=_MISSPELT)
    return names[close[0]] if close and name not in _OF_OTHERS else None


@functools.lru_cache(maxsize=256)
def _warn_of_misspelt(name: str, meant: str) -> None:
    """Warn once of a name in ``default_args`` that no operator has.

    This is no error, because code of the DAG may read the name, or import an operator that has it later.
    """
    if not any(name in _parameters(operator) for operator in _loaded_operators()):
        warn_at_the_dag(
            f"{name} in default_args is not a parameter of any operator that is imported, so Airflow ignores it. "
            f"Did you mean {meant!r}?",
            QarnotDefaultArgsWarning,
        )


def _loaded_operators() -> Iterator[type]:
    """Yield all classes of operators that this process has imported."""
    from airflow.sdk import BaseOperator

    pending: list[type] = [BaseOperator]
    while pending:
        found = pending.pop()
        yield found
        pending += found.__subclasses__()


@functools.cache
def _only_fields() -> Mapping[str, list[str]]:
    """Return normalised names of fields that nothing but a specification has, and the parameters for them."""
    from airflow_qarnot_pool.api.specs import PoolSpec, TaskSpec

    found: dict[str, list[str]] = {}
    for kind, spec in (("pool_spec", PoolSpec), ("task_spec", TaskSpec)):
        for name in _field_names(spec) - _OF_OTHERS:
            found.setdefault(name, []).append(kind)
    return found


def _field_names(spec: type[PoolSpec | TaskSpec]) -> frozenset[str]:
    """Return the normalised names of all fields, ours and those of the API."""
    return frozenset(
        normalise(str(name)) for field, wire in wire_fields(spec) for name in (field.name, wire.name) if name
    )


def _remedy(name: str, names: Collection[str]) -> str:
    from airflow_qarnot_pool.api.specs import PoolSpec, TaskSpec

    if (close := closest_name(name, names, only_synonyms=True)) is not None:
        return f"Did you mean {close!r}?"
    if remedy := _remedy_elsewhere(name, names):
        return remedy
    fields: set[str] = set()
    if kind := next((kind for kind in ("pool_spec", "task_spec") if kind in names), None):
        spec: type[PoolSpec | TaskSpec] = PoolSpec if kind == "pool_spec" else TaskSpec
        fields = {field.name for field, _ in wire_fields(spec)}
        if remedy := _remedy_in_spec(name, kind, spec, fields):
            return remedy
    if (close := closest_name(name, [*names, *fields])) is not None:
        return f"Did you mean {close!r}?" if close in names else f"Did you mean {kind}={{{close!r}: ...}}?"
    return f"It takes {', '.join(sorted(set(names) - _airflow_parameters()))}, and the parameters of BaseOperator."


def _remedy_elsewhere(name: str, names: Collection[str]) -> str | None:
    for spelled, needed, remedy in _ELSEWHERE:
        if normalise(name) in spelled and needed in names:
            return remedy
    return None


def _remedy_in_spec(
    name: str, kind: str, spec: type[PoolSpec | TaskSpec], fields: Collection[str]
) -> str | None:
    if normalise(name) in _field_names(spec):
        return f"Give {kind}={{{name!r}: ...}}."
    if hint := spec.misplaced.get(normalise(name)):
        return hint
    close = closest_name(name, fields, only_synonyms=True)
    return None if close is None else f"Give {kind}={{{close!r}: ...}}."


def refuse_hidden(operator: type, given: Mapping[str, Any]) -> None:
    """Refuse what a subclass that may take any parameter has passed on. Others are checked before their constructor."""
    if has_hidden_parameters(operator):
        refuse_unknown(operator, given)


def has_hidden_parameters(operator: type) -> bool:
    """Return whether a subclass in another package may take parameters that its constructor does not name."""
    for base in operator.__mro__:
        if base.__module__.startswith("airflow_qarnot_pool."):
            return False
        constructor = vars(base).get("__init__")
        if constructor is not None and any(
            parameter.kind is inspect.Parameter.VAR_KEYWORD
            for parameter in inspect.signature(constructor).parameters.values()
        ):
            return True
    return False


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
