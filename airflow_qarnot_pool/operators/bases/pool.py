"""What the operators that make and close pools share."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.links.qarnot import LINKS
from airflow_qarnot_pool.operators.bases.waiting import WaitingOperator
from airflow_qarnot_pool.ownership.shared_pool import check_name
from airflow_qarnot_pool.ownership.xcoms import POOL_KEY
from airflow_qarnot_pool.parameters.templating import is_templated

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_qarnot_pool.hooks.connection_settings import ConnectionSettings
    from airflow_qarnot_pool.ownership.claim import Claim
    from airflow_qarnot_pool.ownership.identity import TaskInstanceIdentity
    from airflow_qarnot_pool.triggers.base import QarnotTrigger


class PoolOperator(WaitingOperator):
    """Base of the operators that make or close a pool, one of their own or a shared one."""

    kind = "pool"
    uuid_key = POOL_KEY
    returns_reference = True
    operator_extra_links = (LINKS["pool"],)

    def __init__(self, *, shared: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shared = str(shared) if type(shared) is int else shared
        if shared is not None and not is_templated(shared):
            check_name(self.shared)

    def _life_of(self, context: Context) -> TaskInstanceIdentity:
        identity = super()._life_of(context)
        return identity if self.shared is None else shared_identity(identity, self.shared, self.hook.settings)

    def _take(self, spec: Any, identity: TaskInstanceIdentity, pause: Any, **options: Any) -> Claim:
        if not identity.shared:
            return super()._take(spec, identity, pause, **options)
        from airflow_qarnot_pool.ownership.claim import ClaimRequest
        from airflow_qarnot_pool.ownership.shared_pool import acquire_shared_pool

        create = options.pop("create", None) or self.client.pools.create_once
        options["create"] = self._room(identity).wrap_create("pool", create)
        request = ClaimRequest(
            resource=self.client.pools, spec=spec, identity=identity, pause=pause, **options
        )
        return acquire_shared_pool(self.client, request)

    def _trigger_class(self) -> type[QarnotTrigger]:
        from airflow_qarnot_pool.triggers.pool import QarnotPoolTrigger

        return QarnotPoolTrigger


def shared_identity(
    identity: TaskInstanceIdentity, name: str, settings: ConnectionSettings
) -> TaskInstanceIdentity:
    """*identity* as a sharer of the pool *name*.

    :raises QarnotInvalidSpecError: the name is none, or no namespace is set: then another deployment on the same
        account would share the pool, too.
    """
    name = str(name) if type(name) is int else name
    check_name(name)
    if not settings.namespace_is_explicit:
        raise QarnotInvalidSpecError(
            f"The shared pool {name!r} needs an explicit namespace: without one another deployment may share it",
            field="namespace",
            remedy=f"Set it in the connection {settings.conn_id!r}, or as [qarnot] namespace.",
        )
    return replace(identity, shared=name)
