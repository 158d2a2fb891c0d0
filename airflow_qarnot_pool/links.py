"""Links from Airflow to the Qarnot console."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey


class _ConsoleLink(BaseOperatorLink):
    """Airflow stores what :meth:`get_link` answers after every slice of a task, also when it defers."""

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        links: dict[str, str] = getattr(operator, "console_links", {})
        return links.get(self.xcom_key, "")


class QarnotPoolLink(_ConsoleLink):
    """The pool in the Qarnot console."""

    name = "Qarnot pool"

    @property
    def xcom_key(self) -> str:
        return "_link_QarnotPoolLink"


class QarnotTaskLink(_ConsoleLink):
    """The Qarnot task in the Qarnot console."""

    name = "Qarnot task"

    @property
    def xcom_key(self) -> str:
        return "_link_QarnotTaskLink"


LINKS: dict[str, Any] = {"pool": QarnotPoolLink(), "task": QarnotTaskLink()}
