"""Links of the operators to the Qarnot console, and to the Pools page of Airflow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.sdk import BaseOperatorLink

from airflow_qarnot_pool.api.fields import is_uuid
from airflow_qarnot_pool.ownership import xcoms

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey

    from airflow_qarnot_pool.hooks.connection_settings import ConnectionSettings


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


class QarnotPoolPageLink(QarnotPoolLink):
    """Link to the pool on the Pools page. It is relative, so it outlives a change of Airflow's address."""

    name = "Qarnot pool in Airflow"

    @property
    def xcom_key(self) -> str:
        """Key under which Airflow stores the link."""
        return "_link_QarnotPoolPageLink"


class QarnotTaskLink(_ConsoleLink):
    """Link to the Qarnot task in the Qarnot console."""

    name = "Qarnot task"

    @property
    def xcom_key(self) -> str:
        """Key under which Airflow stores the link."""
        return "_link_QarnotTaskLink"


LINKS: dict[str, Any] = {"pool": QarnotPoolLink(), "page": QarnotPoolPageLink(), "task": QarnotTaskLink()}
POOL_LINKS = (LINKS["pool"], LINKS["page"])


def show_link(operator: Any, ti: Any, settings: ConnectionSettings, kind: str, uuid: str) -> None:
    """Make the links to a pool or Qarnot task visible.

    The console link is stored now, because Airflow would store it only when the slice ends.
    """
    remember_link(operator, settings, kind, uuid)
    if url := settings.console_link(kind, uuid):
        xcoms.push(ti, LINKS[kind].xcom_key, url)


def remember_link(operator: Any, settings: ConnectionSettings, kind: str, uuid: str) -> None:
    """Make the links visible when the slice ends. There is no console link if there is no console."""
    links = {LINKS[kind].xcom_key: settings.console_link(kind, uuid)}
    if kind == "pool":
        links[LINKS["page"].xcom_key] = page_link(settings.conn_id, uuid)
    operator.console_links = {**getattr(operator, "console_links", {}), **links}


def page_link(conn_id: str, uuid: str) -> str:
    """Return the address of a pool on the Pools page, relative to that of Airflow; empty for a shortname."""
    return f"plugin/qarnot-pools#pool={quote(conn_id, safe='')}/{uuid}" if is_uuid(uuid) else ""
