"""What all operators share: the connection, waiting in both modes, and ending what was started."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self

from airflow.sdk import BaseOperator

from airflow_qarnot_pool.hooks.qarnot import QarnotHook, check_conn_id
from airflow_qarnot_pool.links.qarnot import show_link
from airflow_qarnot_pool.operators.bases.parameters import ParametersMixin
from airflow_qarnot_pool.waiting.conditions import (
    Kind,
)

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_qarnot_pool.api.client import QarnotClient

#: Seconds of them in which Qarnot must say whether a later try has taken over.
_ASK = 1.5


class QarnotOperator(ParametersMixin, BaseOperator):
    """Base of the operators.

    :param qarnot_conn_id: connection of type ``qarnot``.
    """

    template_fields: tuple[str, ...] = ("qarnot_conn_id",)
    ui_color = "#e2f4ec"
    #: Whether the result is the uuid of a remote object, by which later tasks find it.
    returns_reference: ClassVar[bool] = False

    def __init__(self, *, qarnot_conn_id: str = QarnotHook.default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_conn_id(qarnot_conn_id)
        self.qarnot_conn_id = qarnot_conn_id
        if self.returns_reference:
            # Without the uuid the pool would boot and be billed, and its tasks would fail. The settings may come
            # from default_args that are meant for other tasks.
            self.do_xcom_push = True
            self.multiple_outputs = False

    def as_setup(self) -> Self:
        """As Airflow's, with a type: DAGs can be checked strictly."""
        super().as_setup()
        return self

    @cached_property
    def hook(self) -> QarnotHook:
        """The hook of this operator's connection."""
        return QarnotHook(self.qarnot_conn_id)

    @property
    def client(self) -> QarnotClient:
        """The client of this operator's connection."""
        return self.hook.client

    def _show_link(self, context: Context, kind: Kind, uuid: str) -> None:
        """Make the console link visible now; Airflow stores it by itself only at the end of a slice."""
        show_link(self, context["ti"], kind, self.hook.settings.console_link(kind, uuid))
