"""Validate operator parameters, and build specifications from them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping
from configparser import ConfigParser
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.api.fields import Refusal, duration, parse_literal, short_repr
from airflow_qarnot_pool.parameters.references import is_empty
from airflow_qarnot_pool.parameters.templating import is_templated, reveal_secrets

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.specs import PoolSpec, TaskSpec

SpecT = TypeVar("SpecT", "PoolSpec", "TaskSpec")


#: A parameter that is a duration: a timedelta, seconds, text that a template may have rendered, or None.
Duration = timedelta | float | str | None


def spec_values(
    operator: Any, names: Iterable[str], others: Mapping[str, Any] | None = None, others_name: str = ""
) -> dict[str, Any]:
    """Return the parameters of *operator* that are set, with those of its free-form spec.

    :raises QarnotInvalidSpecError: a parameter is in both.
    """
    values: dict[str, Any] = reveal_secrets(
        {name: getattr(operator, name) for name in names if getattr(operator, name) not in (None, "")}
    )
    others = parse_rendered(others)
    if others not in (None, "") and not isinstance(others, Mapping):
        raise QarnotInvalidSpecError(
            f"{others_name} is not a mapping, got {short_repr(others)}",
            field=others_name,
            remedy=f"Give the fields by name, such as {others_name}={{'labels': {{'team': 'a'}}}}.",
        )
    for name, value in reveal_secrets(others or {}).items():
        if name in values:
            raise QarnotInvalidSpecError(
                f"{name} is given as a parameter and in {others_name}", field=name, remedy="Keep one of them."
            )
        values[name] = value
    return values


def parse_rendered(value: Any) -> Any:
    """Parse a list or mapping that a template has rendered as text. Return any other *value* unchanged."""
    if not isinstance(value, str) or is_templated(value):
        return value
    return parse_literal(value)


def has_values(operator: Any, names: Iterable[str]) -> tuple[str, ...]:
    """Return the parameters that are set. Stored when the operator is created, for :func:`reject_empty`.

    None means omitted only then: in the source of the DAG, or in the arguments of a mapped task.
    """
    return tuple(name for name in names if getattr(operator, name) is not None)


def reject_empty(operator: Any, names: Iterable[str]) -> None:
    """Reject parameters that were set and are empty now, such as blank text or a template that rendered to None.

    Treating an empty value as omitted would drop the limit, use size 1 or the default image, or discard the results.
    """
    for name in names:
        value = getattr(operator, name)
        if is_empty(value) or (name == "command" and value == []):
            raise QarnotInvalidSpecError(
                f"{name} is empty, got {value!r}",
                field=name,
                remedy="Check the template or upstream task that sets it, or omit the parameter.",
            )


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
    if converted is None or (not converted and not zero):
        minimum = "0 or more" if zero else "more than 0"
        raise QarnotInvalidSpecError(
            f"{name} must be a duration of {minimum}, got {short_repr(value)}{_no_template(value)}",
            field=name,
            remedy="Give a timedelta or seconds.",
        )
    return converted


def check_durations(**durations: Any) -> None:
    """Reject invalid durations. None is valid, and a template is validated after it is rendered."""
    for name, value in durations.items():
        if not is_templated(value):
            as_duration(name, value)


def _no_template(value: Any) -> str:
    return (
        "; it takes no template, because it is needed when the DAG is parsed" if is_templated(value) else ""
    )


def make_pool_spec(values: Mapping[str, Any]) -> PoolSpec:
    """Return a validated pool specification.

    Imports it here, because the import of an operator must stay cheap.
    """
    from airflow_qarnot_pool.api.specs import PoolSpec

    _check_tags(values.get("tags"))
    return _made(PoolSpec, values)


def make_task_spec(values: Mapping[str, Any]) -> TaskSpec:
    """Return a validated task specification."""
    from airflow_qarnot_pool.api.specs import TaskSpec

    _check_tags(values.get("tags"))
    return _made(TaskSpec, values)


def _made(spec: type[SpecT], values: Mapping[str, Any]) -> SpecT:
    """Build a specification. An error starts with the parameter, because the author of the DAG wrote no class."""
    try:
        return spec.from_mapping(values)
    except QarnotInvalidSpecError as error:
        message = error.message.removeprefix(f"{spec.__name__}.")
        raise QarnotInvalidSpecError(message, field=error.field, remedy=error.remedy) from None


def _check_tags(tags: Any) -> None:
    """Reject more tags than Qarnot takes beside those of this provider."""
    from airflow_qarnot_pool.api.specs import MAX_TAGS, MAX_USER_TAGS, OUR_TAGS

    if isinstance(tags, (list, tuple)) and len(tags) > MAX_USER_TAGS:
        raise QarnotInvalidSpecError(
            f"tags has too many entries, got {len(tags)}",
            field="tags",
            remedy=f"Give at most {MAX_USER_TAGS}: Qarnot takes {MAX_TAGS}, of which this provider needs {OUR_TAGS}.",
        )


def join_command(command: Any) -> Any:
    """Join the words of a command to one text, quoted for a shell."""
    return shlex.join(map(str, command)) if isinstance(command, (list, tuple)) else command
