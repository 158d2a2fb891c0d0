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
        """The link that this slice has shown, else the one an earlier slice of this try stored."""
        links: dict[str, str] = getattr(operator, "console_links", {})
        if link := links.get(self.xcom_key):
            return link
        # A slice that failed before it knew anything must not overwrite it. In the task process ti_key is the
        # task instance itself; Airflow has removed what the try before this one stored.
        pull: Any = getattr(ti_key, "xcom_pull", None)
        return str(pull(key=self.xcom_key) or "") if pull is not None else ""


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
