"""Validate operator parameters, and build specifications from them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from configparser import ConfigParser
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.api.fields import Refusal, duration, is_secret_constant, parse_literal, short_repr
from airflow_qarnot_pool.parameters.templating import (
    EMPTY_WORDS,
    is_templated,
    known_at_parse_time,
    reveal_secrets,
)

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.specs import PoolSpec, TaskSpec

SpecT = TypeVar("SpecT", "PoolSpec", "TaskSpec")


#: A parameter that is a duration: a timedelta, seconds, text that a template may have rendered, or None.
Duration = timedelta | float | str | None
#: Maximum duration, because the date that is so long from now must exist.
MAX_DURATION = timedelta(days=36_500)


def as_list(buckets: Any) -> list[Any]:
    """Return buckets as a list, of which a single one may be given."""
    return [buckets] if isinstance(buckets, (str, Mapping)) else list(buckets or ())


def spec_values(
    operator: Any, names: Iterable[str], spec_name: str | None = None, *, parsing: bool = False
) -> dict[str, Any]:
    """Return the parameters of *operator* that are set, and the fields of its free-form spec by our names.

    :param spec_name: ``pool_spec`` or ``task_spec``.
    :param parsing: return the values that are known when the DAG is parsed.
    :raises QarnotInvalidSpecError: a field is in both.
    """
    values = {name: value for name in names if (value := getattr(operator, name)) not in (None, "")}
    fields = {} if spec_name is None else spec_fields(operator, spec_name, parsing=parsing)
    for name, value in fields.items():
        if name in values:
            raise QarnotInvalidSpecError(
                f"{name} is given as a parameter and in {spec_name}", field=name, remedy="Keep one of them."
            )
        values[name] = value
    revealed: dict[str, Any] = reveal_secrets(values)
    return known_at_parse_time(revealed) if parsing else revealed


def spec_fields(operator: Any, spec_name: str, *, parsing: bool) -> dict[str, Any]:
    """Return the fields in ``pool_spec`` or ``task_spec`` by our names.

    :param parsing: return none if the whole spec is a template, which is not rendered when the DAG is parsed.
    :raises QarnotInvalidSpecError: the spec is not a mapping, or has a field twice.
    """
    given = parse_rendered(getattr(operator, spec_name))
    if given in (None, "") or (parsing and is_templated(given) and not isinstance(given, Mapping)):
        return {}
    return fields_by_our_names(given, spec_name)


def fields_by_our_names(given: Any, spec_name: str) -> dict[str, Any]:
    """Return the fields of a mapping by our names, which checks and defaults refer to.

    :raises QarnotInvalidSpecError: *given* is not a mapping, or has a field twice.
    """
    if not isinstance(given, Mapping):
        raise QarnotInvalidSpecError(
            f"{spec_name} is not a mapping, got {short_repr(given)}",
            field=spec_name,
            remedy=f"Give the fields by name, such as {spec_name}={{'labels': {{'team': 'a'}}}}.",
        )
    from airflow_qarnot_pool.api.specs import PoolSpec, TaskSpec

    spec = PoolSpec if spec_name == "pool_spec" else TaskSpec
    try:
        return spec.by_our_names(given)
    except QarnotInvalidSpecError as error:
        raise _naming_parameter(error, spec) from None


def scales(pool_spec: Any) -> bool:
    """Return whether a ``pool_spec`` defines the scaling of the pool."""
    if not isinstance(pool_spec, Mapping):
        return False
    return bool({"elastic", "scaling"} & fields_by_our_names(pool_spec, "pool_spec").keys())


def parse_rendered(value: Any) -> Any:
    """Parse a list or mapping that a template has rendered as text. Return any other *value* unchanged."""
    if not isinstance(value, str) or is_templated(value):
        return value
    return parse_literal(value)


def parse_commands(commands: Any) -> Sequence[Any]:
    """Return the list of ``commands``, which a template may have rendered as text. Refuse anything else."""
    commands = parse_rendered(commands)
    if isinstance(commands, Sequence) and not isinstance(commands, (str, bytes)):
        return commands
    # Anything but text may have a secret in it.
    got = repr(commands) if isinstance(commands, str) else type(commands).__name__
    raise QarnotInvalidSpecError(
        f"commands must be a list of commands, got {got}"[:200],
        field="commands",
        remedy="Give a list, even for a single command.",
    )


def secret_constants(constants: Any) -> dict[str, str]:
    """Return the secret ones of *constants*, a mapping or its text."""
    constants = parse_rendered(constants)
    given = reveal_secrets(constants).items() if isinstance(constants, Mapping) else ()
    return {str(name): str(value) for name, value in given if value and is_secret_constant(str(name))}


def has_values(operator: Any, names: Iterable[str], spec_name: str | None = None) -> tuple[str, ...]:
    """Return the parameters that are set, and the set fields of a spec, such as ``task_spec.ranges``.

    Stored when the operator is created, for :func:`reject_empty`. None means omitted only then: in the source of the
    DAG, or in the arguments of a mapped task.
    """
    fields = () if spec_name is None else spec_fields(operator, spec_name, parsing=True)
    return (
        *(name for name in names if getattr(operator, name) is not None),
        *(f"{spec_name}.{field}" for field in fields),
    )


def is_empty(value: Any) -> bool:
    """Return whether a rendered value is empty, because its task or template yielded nothing."""
    return value is None or (isinstance(value, str) and value.strip() in EMPTY_WORDS)


def reject_empty(operator: Any, names: Iterable[str]) -> None:
    """Reject parameters that were set and are empty now, such as blank text or a template that rendered to None.

    Treating an empty value as omitted would drop the limit, use size 1 or the default image, or discard the results.
    """
    for path in names:
        parameter, _, field = path.partition(".")
        value = (
            spec_fields(operator, parameter, parsing=False).get(field)
            if field
            else getattr(operator, parameter)
        )
        name = field or parameter
        if is_empty(value) or (name == "command" and value == []):
            raise QarnotInvalidSpecError(
                f"{name} is empty, got {value!r}",
                field=name,
                remedy="Check the template or upstream task that sets it, or omit the parameter.",
            )


def check_rendered(operator: Any, filled: Iterable[str], durations: Iterable[str]) -> None:
    """Check rendered values that are needed once a remote object exists. Nothing would end the object then.

    :param filled: see :func:`reject_empty`.
    :param durations: parameters that are durations of more than 0. ``defer_after`` may be 0.
    :raises QarnotInvalidSpecError: a template has rendered to another value, or to nothing.
    """
    reject_empty(operator, filled)
    for name in durations:
        as_duration(name, getattr(operator, name))
    as_duration("defer_after", operator.defer_after, zero=True)


def check_flags(**flags: Any) -> None:
    """Reject values other than True and False. Any text, also a template, would count as True."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise QarnotInvalidSpecError(
                f"{name} must be True or False, got {short_repr(value)}{_no_template(value)}",
                field=name,
                remedy="Give the value itself.",
            )


def default_deferrable() -> bool:
    """Return ``[operators] default_deferrable`` if the deployment sets it, else True, which keeps waits off workers.

    Airflow's default of the option is false. Airflow writes all its defaults to the ``airflow.cfg`` that it generates,
    so the option in such a file does not mean that the deployment sets it.
    """
    from airflow.configuration import conf

    section, option = "operators", "default_deferrable"
    if conf.getboolean(section, option, fallback=True):
        return True
    if f"AIRFLOW__{section}__{option}".upper() in os.environ:
        return False
    # Airflow's has_option also finds its defaults.
    in_file = partial(ConfigParser.has_option, conf, section)
    generated = all(in_file(name) for name in conf.get_options_including_defaults(section))
    return generated or not in_file(option)


def as_duration(name: str, value: Any, *, zero: bool = False) -> timedelta | None:
    """Convert a timedelta, seconds, or text such as ``00:10:00`` to a timedelta. None stays None.

    :param zero: whether zero is valid.
    :raises QarnotInvalidSpecError: *value* is not a duration.
    """
    if value is None:
        return None
    try:
        converted = duration(value)
    except Refusal:
        converted = None
    if converted is None or (not converted and not zero) or converted > MAX_DURATION:
        minimum = "0 or more" if zero else "more than 0"
        if converted is not None and converted > MAX_DURATION:
            minimum = f"at most {MAX_DURATION.days} days"
        raise QarnotInvalidSpecError(
            f"{name} must be a duration of {minimum}, got {short_repr(value)}{_no_template(value)}",
            field=name,
            remedy="Give a timedelta or seconds.",
        )
    return converted


def check_durations(*, zero: bool = False, **durations: Any) -> None:
    """Reject invalid durations. None is valid, and a template is validated after it is rendered.

    :param zero: whether zero is valid.
    """
    for name, value in durations.items():
        if not is_templated(value):
            as_duration(name, value, zero=zero)


def _no_template(value: Any) -> str:
    return (
        "; it takes no template, because it is needed when the DAG is parsed" if is_templated(value) else ""
    )


def make_pool_spec(values: Mapping[str, Any]) -> PoolSpec:
    """Return a validated pool specification.

    Imports it here, because the import of an operator must stay cheap.
    """
    from airflow_qarnot_pool.api.specs import PoolSpec

    return _made(PoolSpec, values)


def make_task_spec(values: Mapping[str, Any]) -> TaskSpec:
    """Return a validated task specification."""
    from airflow_qarnot_pool.api.specs import TaskSpec

    return _made(TaskSpec, values)


def _made(spec: type[SpecT], values: Mapping[str, Any]) -> SpecT:
    from airflow_qarnot_pool.api.specs import MAX_TAGS, MAX_USER_TAGS, OUR_TAGS

    try:
        made = spec.from_mapping(values)
    except QarnotInvalidSpecError as error:
        raise _naming_parameter(error, spec) from None
    if len(made.tags) > MAX_USER_TAGS:
        raise QarnotInvalidSpecError(
            f"tags has too many entries, got {len(made.tags)}",
            field="tags",
            remedy=f"Give at most {MAX_USER_TAGS}: Qarnot takes {MAX_TAGS}, of which this provider needs {OUR_TAGS}.",
        )
    return made


def _naming_parameter(error: QarnotInvalidSpecError, spec: type) -> QarnotInvalidSpecError:
    """Return *error* with a message that starts with the field, because the author of the DAG wrote no class."""
    message = error.message.removeprefix(f"{spec.__name__}.")
    return QarnotInvalidSpecError(message, field=error.field, remedy=error.remedy)
