"""Base of the operators that create or close pools."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.links.qarnot import POOL_LINKS
from airflow_qarnot_pool.operators.bases.base import WAIT_FIELDS, QarnotOperator
from airflow_qarnot_pool.ownership.identity import check_shared_name
from airflow_qarnot_pool.ownership.xcoms import POOL_KEY
from airflow_qarnot_pool.parameters.templating import is_templated
from airflow_qarnot_pool.parameters.validation import Duration, as_duration

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_qarnot_pool.hooks.connection_settings import ConnectionSettings
    from airflow_qarnot_pool.ownership.identity import TaskInstanceIdentity
    from airflow_qarnot_pool.triggers.base import QarnotTrigger


class PoolOperator(QarnotOperator):
    """Base of the operators that create or close a pool, which may be shared.

    Wait:

    :param wait_for_completion: wait until the pool is ready, or closed.
    :param deferrable: wait in the triggerer, with one poll for all waits of a connection. Default:
        ``[operators] default_deferrable`` of Airflow if it is set, else True.
    :param wait_timeout: maximum wait, as a timedelta or seconds; default: no limit but ``execution_timeout``, which
        counts across deferral. The wait for room (``wait_for_quota``) is not part of it.
    :param cancel_on_kill: close the pool when the Airflow task is killed, cleared or runs out of time. A pool whose
        task fails in another way is closed in any case, as nothing else would close it.
    :param wait_for_quota: maximum wait for room when a quota of the account is full; default: fail at once.
    """

    kind = "pool"
    uuid_key = POOL_KEY
    returns_reference = True
    operator_extra_links = POOL_LINKS
    template_fields: tuple[str, ...] = (*QarnotOperator.template_fields, *WAIT_FIELDS, "shared")

    def __init__(
        self,
        *,
        shared: str | None = None,
        wait_for_completion: bool = True,
        deferrable: bool | None = None,
        wait_timeout: Duration = None,
        cancel_on_kill: bool = True,
        wait_for_quota: Duration = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._set_wait(
            wait_for_completion=wait_for_completion,
            deferrable=deferrable,
            wait_timeout=wait_timeout,
            cancel_on_kill=cancel_on_kill,
            wait_for_quota=wait_for_quota,
        )
        self.shared = _text(shared)
        if self.shared is not None and not is_templated(self.shared):
            check_shared_name(self.shared)

    def _identity_of(self, context: Context) -> TaskInstanceIdentity:
        identity = super()._identity_of(context)
        return identity if self.shared is None else shared_identity(identity, self.shared, self.hook.settings)

    def _warm_up_limit(self, context: Context) -> timedelta | None:
        """Return the maximum time for which a warm-up holds a node; None for that of a boot."""
        return as_duration("wait_timeout", self.wait_timeout)

    def _trigger_class(self) -> type[QarnotTrigger]:
        from airflow_qarnot_pool.triggers.pool import QarnotPoolTrigger

        return QarnotPoolTrigger


def _text(name: Any) -> Any:
    """Return the name of a shared pool. A native template may have rendered a number."""
    return str(name) if type(name) is int else name


def shared_identity(
    identity: TaskInstanceIdentity, name: str, settings: ConnectionSettings
) -> TaskInstanceIdentity:
    """Return *identity* as a sharer of the pool *name*.

    :raises QarnotInvalidSpecError: the name is invalid, or no namespace is set. Without one, another deployment on the
        same account would share the pool, too.
    """
    name = _text(name)
    check_shared_name(name)
    if not settings.namespace_is_explicit:
        raise QarnotInvalidSpecError(
            f"The shared pool {name!r} needs an explicit namespace: without one another deployment may share it",
            field="namespace",
            remedy=f"Set it in the connection {settings.conn_id!r}, or as [qarnot] namespace.",
        )
    return replace(identity, shared=name)
