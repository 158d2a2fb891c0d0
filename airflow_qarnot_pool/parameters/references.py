"""What people give where a pool or a Qarnot task is named: text, the output of a task, a group."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any
from uuid import UUID

from airflow.sdk import XComArg

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.parameters.templating import is_templated

#: XCom key of the result of a task.
XCOM_RETURN_KEY = "return_value"


class NotSet(Enum):
    """What stands for a parameter that is left out where None is not the same: None may come of a task at run time."""

    NOTSET = "not given"

    def __repr__(self) -> str:
        return self.name


NOTSET = NotSet.NOTSET


def as_reference(value: Any, parameter: str) -> Any:
    """*value* as a parameter that names a remote object: for a task, its output; checked as far as it is known.

    :raises QarnotInvalidSpecError: names *parameter*.
    """
    if hasattr(value, "task_id") and hasattr(value, "output"):
        value = value.output
    if hasattr(value, "open_pool"):
        return value.pool  # a QarnotPoolGroup
    _check_pushed(value, parameter)
    if value is not None and not isinstance(value, (str, Mapping)) and not is_templated(value):
        raise _no_reference(value, parameter)
    return value


def _check_pushed(value: Any, parameter: str) -> None:
    """Refuse the result of a task that does not store its result: it is always None at run time.

    :raises QarnotInvalidSpecError: names *parameter* and the task.
    """
    for operator, key in XComArg.iter_xcom_references(value):
        if key == XCOM_RETURN_KEY and not _pushes(operator):
            raise QarnotInvalidSpecError(
                f"{parameter} is the result of task {operator.task_id!r}, which has do_xcom_push=False and so stores "
                "no result. Give that task do_xcom_push=True; the False may come from default_args",
                field=parameter,
            )


def _pushes(operator: Any) -> bool:
    of_class = getattr(operator, "operator_class", type(operator))
    if getattr(of_class, "returns_reference", False):
        return True
    given = getattr(operator, "partial_kwargs", None)  # a mapped operator has no attribute of it
    return bool(getattr(operator, "do_xcom_push", True) if given is None else given.get("do_xcom_push", True))


def is_empty(value: Any) -> bool:
    """Whether what came of a reference is nothing: its task returned nothing, or a template found nothing."""
    return value is None or (isinstance(value, str) and value.strip() in ("", "None"))


def reject_none(value: Any, parameter: str, operator: Any) -> None:
    """Refuse None where nothing else will take its place, as the group does that *operator* stands in.

    :raises QarnotInvalidSpecError: names *parameter*.
    """
    group = getattr(operator, "task_group", None)
    while value is None and not hasattr(group, "open_pool"):
        if group is None:
            raise _no_reference(value, parameter)
        group = group.parent_group


def resolve_ref(value: Any, parameter: str) -> str:
    """The uuid or shortname in *value*: text, or the dict that another operator returned.

    :raises QarnotInvalidSpecError: names *parameter*.
    """
    ref = value.get("uuid") if isinstance(value, Mapping) else value
    if isinstance(ref, (int, UUID)) and not isinstance(ref, bool):
        ref = str(ref)  # a shortname may be a number
    if not isinstance(ref, str) or is_empty(ref):
        raise _no_reference(value, parameter)
    return ref.strip()


def _no_reference(value: Any, parameter: str) -> QarnotInvalidSpecError:
    return QarnotInvalidSpecError(
        f"{parameter} is {value!r}: it must be a uuid, a shortname, or the output of the task that made it",
        field=parameter,
        remedy="Check that task: an empty value often means that it did not run, or returned nothing (as when it was "
        "marked success by hand).",
    )
