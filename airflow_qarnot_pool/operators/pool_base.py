"""What the operators that make and close pools share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.links import LINKS
from airflow_qarnot_pool.operators.base import WaitingOperator
from airflow_qarnot_pool.shared import check_name, shared_life
from airflow_qarnot_pool.templates import is_templated
from airflow_qarnot_pool.triggers.keys import POOL_KEY

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_qarnot_pool.claim import Claim
    from airflow_qarnot_pool.identity import Life
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

    def _life_of(self, context: Context) -> Life:
        life = super()._life_of(context)
        return life if self.shared is None else shared_life(life, self.shared, self.hook.settings)

    def _take(self, spec: Any, life: Life, pause: Any, **options: Any) -> Claim:
        if not life.shared:
            return super()._take(spec, life, pause, **options)
        from airflow_qarnot_pool.shared import acquire

        create = options.pop("create", None) or self.client.pools.create_once
        options["create"] = self._room(life).creating("pool", create)
        return acquire(self.client, spec, life, pause, **options)

    def _trigger_class(self) -> type[QarnotTrigger]:
        from airflow_qarnot_pool.triggers.pool import QarnotPoolTrigger

        return QarnotPoolTrigger
