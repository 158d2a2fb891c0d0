"""Operator parameters on their way into a spec."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping
from configparser import ConfigParser
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.parameters.references import is_empty
from airflow_qarnot_pool.parameters.templating import is_templated, reveal_secrets

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.specs import PoolSpec, TaskSpec

SpecT = TypeVar("SpecT", "PoolSpec", "TaskSpec")


#: What a parameter takes that is a time: a timedelta, seconds, text that a template may have rendered, or nothing.
Duration = timedelta | float | str | None


def spec_values(
    operator: Any, names: Iterable[str], others: Mapping[str, Any] | None = None, others_name: str = ""
) -> dict[str, Any]:
    """The parameters of *operator* that are set, and those of its free-form spec; a name in both is refused."""
    values = {name: getattr(operator, name) for name in names if getattr(operator, name) not in (None, "")}
    values = reveal_secrets(values)
    others = parse_rendered(others)
    if others not in (None, "") and not isinstance(others, Mapping):
        raise QarnotInvalidSpecError(
            f"{others_name} is not a mapping, got {_shown(others)}",
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
    """Return the list or mapping that a template has left as text, else *value* itself."""
    if not isinstance(value, str) or is_templated(value):
        return value
    from airflow_qarnot_pool.api.fields import parse_literal

    return parse_literal(value)


def has_values(operator: Any, names: Iterable[str]) -> tuple[str, ...]:
    """Which of these parameters are given; kept when the operator is made, for :func:`reject_empty`.

    None is as good as left out only there: in the DAG's source, or in a row of a mapped task.
    """
    return tuple(name for name in names if getattr(operator, name) is not None)


def reject_empty(operator: Any, names: Iterable[str]) -> None:
    """Refuse what was given and is empty, text without words and what renders to None included.

    Taken for left out, a limit would be none, a size one, an image another, and results would be stored nowhere.
    """
    for name in names:
        value = getattr(operator, name)
        if is_empty(value) or (name == "command" and value == []):
            raise QarnotInvalidSpecError(
                f"{name} is given, but empty, got {value!r}",
                field=name,
                remedy="Check the template, or the task, that yields it, or leave the parameter out.",
            )


def check_flags(**flags: Any) -> None:
    """Refuse what is neither True nor False: text, a template too, would count as True."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise QarnotInvalidSpecError(
                f"{name} must be True or False, got {_shown(value)}{_no_template(value)}",
                field=name,
                remedy="Give the value itself.",
            )


def default_deferrable() -> bool:
    """Return ``[operators] default_deferrable`` if somebody has set it, else True: a wait should hold no worker.

    Airflow has a default of its own for the option, false, and writes it with all its other defaults into the
    ``airflow.cfg`` that it generates. There it is nobody's decision.
    """
    from airflow.configuration import conf

    section, option = "operators", "default_deferrable"
    if conf.getboolean(section, option, fallback=True):
        return True
    if f"AIRFLOW__{section}__{option}".upper() in os.environ:
        return False
    # Airflow's own has_option finds its defaults, too.
    in_file = partial(ConfigParser.has_option, conf, section)
    generated = all(in_file(one) for one in conf.get_options_including_defaults(section))
    return generated or not in_file(option)


def as_duration(name: str, value: Any, *, zero: bool = False) -> timedelta | None:
    """Return a timedelta for one, for seconds, or for text such as ``00:10:00``; None for None.

    :param zero: whether no time at all is a duration, too.
    :raises QarnotInvalidSpecError: *value* is none.
    """
    if value is None:
        return None
    from airflow_qarnot_pool.api.fields import Refusal, duration

    try:
        found = duration(value)
    except Refusal:
        found = None
    if found is None or (not found and not zero):
        least = "0 or more" if zero else "more than 0"
        raise QarnotInvalidSpecError(
            f"{name} must be a duration of {least}, got {_shown(value)}{_no_template(value)}",
            field=name,
            remedy="Give a timedelta or seconds.",
        )
    return found


def check_durations(**durations: Any) -> None:
    """Refuse what is no time to wait; None is fine, and a template is checked when it is rendered."""
    for name, value in durations.items():
        if not is_templated(value):
            as_duration(name, value)


def _shown(value: Any) -> str:
    from airflow_qarnot_pool.api.fields import short_repr

    return short_repr(value)


def _no_template(value: Any) -> str:
    return "; it takes no template, as it is needed when the DAG is parsed" if is_templated(value) else ""


def make_pool_spec(values: Mapping[str, Any]) -> PoolSpec:
    """A checked pool spec. Loaded here and not above: importing an operator module must cost nothing."""
    from airflow_qarnot_pool.api.specs import PoolSpec

    _check_tags(values.get("tags"))
    return _made(PoolSpec, values)


def make_task_spec(values: Mapping[str, Any]) -> TaskSpec:
    """A checked spec of a Qarnot task."""
    from airflow_qarnot_pool.api.specs import TaskSpec

    _check_tags(values.get("tags"))
    return _made(TaskSpec, values)


def _made(spec: type[SpecT], values: Mapping[str, Any]) -> SpecT:
    """Make a spec; a refusal begins with the parameter, as the author of the DAG wrote no spec."""
    try:
        return spec.from_mapping(values)
    except QarnotInvalidSpecError as error:
        message = error.message.removeprefix(f"{spec.__name__}.")
        raise QarnotInvalidSpecError(message, field=error.field, remedy=error.remedy) from None


def _check_tags(tags: Any) -> None:
    """Qarnot takes ten tags, of which three are ours."""
    from airflow_qarnot_pool.api.specs import MAX_TAGS, MAX_USER_TAGS, OUR_TAGS

    if isinstance(tags, (list, tuple)) and len(tags) > MAX_USER_TAGS:
        raise QarnotInvalidSpecError(
            f"tags has too many entries, got {len(tags)}",
            field="tags",
            remedy=f"Give at most {MAX_USER_TAGS}: Qarnot takes {MAX_TAGS}, of which this provider needs {OUR_TAGS}.",
        )


def join_command(command: Any) -> Any:
    """A command as one text: words are quoted as a shell would need it."""
    return shlex.join(map(str, command)) if isinstance(command, (list, tuple)) else command
