"""Hook for the Qarnot API."""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook

from airflow_qarnot_pool.api.errors import QarnotError, QarnotInvalidSpecError
from airflow_qarnot_pool.hooks import connection_form
from airflow_qarnot_pool.hooks.account_status import account_status
from airflow_qarnot_pool.hooks.connection_settings import ConnectionSettings
from airflow_qarnot_pool.parameters.templating import is_templated

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.client import QarnotClient


def check_conn_id(conn_id: Any) -> None:
    """Reject an empty id, which a template may yield. It does not mean the default connection."""
    is_text = isinstance(conn_id, str) and conn_id.strip()
    if not is_text and not is_templated(conn_id):
        raise QarnotInvalidSpecError(
            f"qarnot_conn_id is not the id of a connection, got {conn_id!r}",
            field="qarnot_conn_id",
            remedy=f"Give the id, or omit the parameter for {QarnotHook.default_conn_name}.",
        )


class QarnotHook(BaseHook):
    """Connect to Qarnot with the credentials of an Airflow connection.

    .. code-block:: python

        client = QarnotHook().get_conn()
        for pool in client.pools.list():
            print(pool.name, pool.state)

    :param qarnot_conn_id: connection of type ``qarnot``. Its password is the API token, its host the API's URL.
    """

    conn_name_attr = "qarnot_conn_id"
    default_conn_name = "qarnot_default"
    conn_type = connection_form.CONNECTION_TYPE
    hook_name = connection_form.HOOK_NAME

    def __init__(self, qarnot_conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_conn_id(qarnot_conn_id)
        self.qarnot_conn_id = qarnot_conn_id

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """Return the form fields for Airflow 3.1. Later versions read the provider metadata."""
        return connection_form.widgets()

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Return labels and placeholders for Airflow 3.1. Later versions read the provider metadata."""
        return connection_form.behaviour()

    @cached_property
    def settings(self) -> ConnectionSettings:
        """The validated settings of the connection.

        :raises QarnotInvalidSpecError: names the invalid field.
        """
        return ConnectionSettings.of(self.get_connection(self.qarnot_conn_id))

    @cached_property
    def client(self) -> QarnotClient:
        """The client of this connection."""
        return self.settings.client()

    def reconnect(self) -> None:
        """Read the connection again, because its token may have been replaced. If that fails, the old one serves."""
        try:
            settings = ConnectionSettings.of(self.get_connection(self.qarnot_conn_id))
            if settings != self.settings:
                self.settings, self.client = settings, settings.client()
        except Exception as error:  # Airflow's own API may be down for a while
            self.log.warning("Could not read connection %s again: %s", self.qarnot_conn_id, error)

    def get_conn(self) -> QarnotClient:
        """Return the client of this connection."""
        return self.client

    def test_connection(self) -> tuple[bool, str]:
        """Test the connection, for the Test button of its form. Return ``(usable, sentences)``."""
        try:
            # One attempt, because the user is waiting.
            client = self.settings.client(retries=0, deadline=15.0)
            account = client.account.info()
        except QarnotError as error:
            return False, str(error)
        credits = None
        with suppress(QarnotError):  # Some accounts may not see them.
            credits = client.account.credits()
        return account_status(account, credits, self.settings.risks)
