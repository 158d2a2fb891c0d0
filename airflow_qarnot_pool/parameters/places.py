"""Name the task of a DAG whose parameters are refused, because Airflow's import error does not show its line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_qarnot_pool.api.errors import QarnotError
from airflow_qarnot_pool.parameters.unknown import has_hidden_parameters, refuse_unknown
from airflow_qarnot_pool.version_compat import current_dag_and_group, operator_metaclass

if TYPE_CHECKING:
    from airflow.sdk.bases.operator import BaseOperatorMeta
else:
    BaseOperatorMeta = operator_metaclass()

T = TypeVar("T")


class CheckedOperatorMeta(BaseOperatorMeta):
    """Class of the operators and sensors, which starts the message of each error with the task."""

    def __call__(cls: type[T], *args: Any, **kwargs: Any) -> T:
        """Refuse unknown parameters before Airflow asks for the missing one that may be meant."""
        made = cls.__new__(cls, *args, **kwargs)
        with naming(lambda: _place_of(made, kwargs)):
            if not has_hidden_parameters(cls):
                refuse_unknown(cls, kwargs)
            made.__init__(*args, **kwargs)  # type: ignore[misc]
        return made


@contextmanager
def naming(place: Callable[[], str | None]) -> Iterator[None]:
    """Start the message of an error with *place*, unless it has one."""
    try:
        yield
    except QarnotError as error:
        if found := place():
            error.locate(found)
        raise


def place_in_dag(noun: str, name: Any, arguments: Mapping[str, Any]) -> str | None:
    """Return the place of a task or group that Airflow has not made yet.

    :param arguments: those of the task or group, which may name a DAG and a group.
    """
    if not isinstance(name, str):
        return None
    dag, group = current_dag_and_group(arguments.get("dag"))
    group = arguments.get("task_group") or arguments.get("parent_group") or group
    return place(noun, group.child_id(name) if group is not None else name, dag)


def place(noun: str, name: str, dag: Any) -> str:
    """Return a task or group in words, with its DAG if that is known."""
    return f"{noun} {name!r} of DAG {dag.dag_id!r}" if dag is not None else f"{noun} {name!r}"


def _place_of(operator: Any, arguments: Mapping[str, Any]) -> str | None:
    task_id = getattr(operator, "task_id", None)
    if task_id is None:  # Airflow has not set it yet.
        return place_in_dag("Task", arguments.get("task_id"), arguments)
    return place("Task", task_id, operator.dag if operator.has_dag() else None)
