"""Links from Airflow to the Qarnot console."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperatorLink

from airflow_qarnot_pool.ownership import xcoms

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey


class _ConsoleLink(BaseOperatorLink):
    """Base of the links. Airflow calls :meth:`get_link` at the end of every slice of a task, and stores the result."""

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Return the link that this slice has set, else the one that an earlier slice of this try has stored."""
        links: dict[str, str] = getattr(operator, "console_links", {})
        if self.xcom_key in links:
            return links[self.xcom_key]
        # A slice that fails before it knows the object must not overwrite the link. In the task process ti_key is
        # the task instance. Airflow has removed the links of earlier tries.
        if not hasattr(ti_key, "xcom_pull") or not self._can_exist(operator):
            return ""
        stored = xcoms.pull(ti_key, self.xcom_key)
        return stored if isinstance(stored, str) else ""

    def _can_exist(self, operator: BaseOperator) -> bool:
        return True


class QarnotPoolLink(_ConsoleLink):
    """Link to the pool in the Qarnot console."""

    name = "Qarnot pool"

    def _can_exist(self, operator: BaseOperator) -> bool:
        # A Qarnot task may run without a pool. Airflow logs an error when a missing XCom is read.
        return bool(getattr(operator, "on_pool", True))

    @property
    def xcom_key(self) -> str:
        """Key under which Airflow stores the link."""
        return "_link_QarnotPoolLink"


class QarnotTaskLink(_ConsoleLink):
    """Link to the Qarnot task in the Qarnot console."""

    name = "Qarnot task"

    @property
    def xcom_key(self) -> str:
        """Key under which Airflow stores the link."""
        return "_link_QarnotTaskLink"


LINKS: dict[str, Any] = {"pool": QarnotPoolLink(), "task": QarnotTaskLink()}


def show_link(operator: Any, ti: Any, kind: str, url: str) -> None:
    """Make a link visible now, because Airflow would store it only when the slice ends.

    :param url: empty if there is no console.
    """
    remember_link(operator, kind, url)
    if url:
        xcoms.push(ti, LINKS[kind].xcom_key, url)


def remember_link(operator: Any, kind: str, url: str) -> None:
    """Make a link visible when the slice ends."""
    operator.console_links = {**getattr(operator, "console_links", {}), LINKS[kind].xcom_key: url}
