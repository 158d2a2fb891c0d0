"""Parameters that refer to a pool or Qarnot task: text, the output of an Airflow task, or a group."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any
from uuid import UUID

from airflow.sdk import XComArg

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.parameters.templating import EMPTY_WORDS, is_templated

#: XCom key of the result of an Airflow task.
XCOM_RETURN_KEY = "return_value"


class NotSet(Enum):
    """Sentinel for an omitted parameter. None is different: an upstream task can return it at run time."""

    NOTSET = "not given"

    def __repr__(self) -> str:
        return self.name


NOTSET = NotSet.NOTSET


def as_reference(value: Any, parameter: str) -> Any:
    """Return *value* as a reference to a remote object, which is the output of a task. Validates it if it is known.

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
    """Reject the result of a task that does not store it, because it is always None at run time.

    :raises QarnotInvalidSpecError: names *parameter* and the task.
    """
    for operator, key in XComArg.iter_xcom_references(value):
        if key == XCOM_RETURN_KEY and not _pushes(operator):
            raise QarnotInvalidSpecError(
                f"{parameter} is the result of task {operator.task_id!r}, which has do_xcom_push=False and so stores "
                "no result",
                field=parameter,
                remedy="Give that task do_xcom_push=True. The False may come from default_args.",
            )


def _pushes(operator: Any) -> bool:
    operator_class = getattr(operator, "operator_class", type(operator))
    if getattr(operator_class, "returns_reference", False):
        return True
    # A mapped operator has its parameters here, and not as attributes.
    mapped = getattr(operator, "partial_kwargs", None)
    return bool(
        getattr(operator, "do_xcom_push", True) if mapped is None else mapped.get("do_xcom_push", True)
    )


def reject_none(value: Any, parameter: str, operator: Any) -> None:
    """Reject None, unless *operator* is in a group that sets the parameter later.

    :raises QarnotInvalidSpecError: names *parameter*.
    """
    group = getattr(operator, "task_group", None)
    while value is None and not hasattr(group, "open_pool"):
        if group is None:
            raise _no_reference(value, parameter)
        group = group.parent_group


def resolve_ref(value: Any, parameter: str) -> str:
    """Return the uuid or shortname in *value*, which is text or the dict that another operator returned.

    :raises QarnotInvalidSpecError: names *parameter*.
    """
    ref = value.get("uuid") if isinstance(value, Mapping) else value
    if isinstance(ref, (int, UUID)) and not isinstance(ref, bool):
        ref = str(ref)  # A shortname may be a number.
    if not isinstance(ref, str) or ref.strip() in EMPTY_WORDS:
        raise _no_reference(value, parameter)
    return ref.strip()


def _no_reference(value: Any, parameter: str) -> QarnotInvalidSpecError:
    return QarnotInvalidSpecError(
        f"{parameter} must be a uuid, a shortname, or the output of the task that created the object, got {value!r}",
        field=parameter,
        remedy="Check that task. An empty value often means that it did not run, or was marked success by hand.",
    )
