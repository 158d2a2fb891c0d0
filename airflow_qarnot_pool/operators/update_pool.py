"""Change pools that run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.api import states
from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.exceptions import QarnotPoolEndedError
from airflow_qarnot_pool.links.qarnot import POOL_LINKS
from airflow_qarnot_pool.operators.bases.base import QarnotOperator
from airflow_qarnot_pool.parameters.references import as_reference, resolve_ref
from airflow_qarnot_pool.parameters.templating import hide_secrets
from airflow_qarnot_pool.parameters.validation import (
    check_flags,
    has_values,
    make_pool_spec,
    reject_empty,
    spec_values,
)

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_qarnot_pool.api.models import Pool
    from airflow_qarnot_pool.api.specs import Elastic, PoolSpec, Scaling

_CHANGES = ("elastic", "scaling", "constants", "tags")


class QarnotUpdatePoolOperator(QarnotOperator):
    """Change a running pool: its elastic or scaling settings, constants, tags; or re-sync its resources.

    Omitted parameters stay as they are. Returns the pool's uuid.

    :param qarnot_pool: uuid or shortname of the pool, or the output of the task that made it.
    :param elastic: new settings of an elastic pool.
    :param scaling: new scaling policies.
    :param constants: constants to add or change.
    :param tags: the user's tags, instead of the present ones; the provider's own stay.
    :param sync_resources: fetch the files of the pool's resource buckets to the nodes once more. It goes on while
        this returns: a task that needs the new files waits for it with ``task_spec=
        {"wait_for_pool_resources_synchronization": True}``.
    """

    template_fields = (
        *QarnotOperator.template_fields,
        "qarnot_pool",
        "elastic",
        "scaling",
        "constants",
        "tags",
    )
    operator_extra_links = POOL_LINKS
    returns_reference = True

    def __init__(
        self,
        *,
        qarnot_pool: Any,
        elastic: Elastic | Mapping[str, Any] | str | None = None,
        scaling: Scaling | Mapping[str, Any] | str | None = None,
        constants: Mapping[str, str] | None = None,
        tags: Iterable[str] | None = None,
        sync_resources: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.qarnot_pool = as_reference(qarnot_pool, "qarnot_pool")
        self.elastic = elastic
        self.scaling = scaling
        self.constants = hide_secrets(constants)
        self.tags = tags
        self.sync_resources = sync_resources
        check_flags(sync_resources=sync_resources)
        if not sync_resources and all(one is None for one in (elastic, scaling, constants, tags)):
            raise QarnotInvalidSpecError(
                "There is nothing to change",
                remedy="Give elastic, scaling, constants, tags or sync_resources=True.",
            )
        self._filled = has_values(self, _CHANGES)
        reject_empty(self, self._filled)
        self._changes(self._given(parsing=True))

    def _given(self, *, parsing: bool = False) -> dict[str, Any]:
        return spec_values(self, _CHANGES, parsing=parsing)

    def _changes(self, values: Mapping[str, Any]) -> PoolSpec:
        return make_pool_spec({"name": "update", **values})

    def execute(self, context: Context) -> str:
        """Change the pool, and return its uuid."""
        reject_empty(self, self._filled)
        changes = self._changes(self._given())
        pools = self.client.pools
        pool = pools.get(resolve_ref(self.qarnot_pool, "qarnot_pool"))
        self._show_link(context, "pool", pool.uuid)
        if not states.accepts_tasks(pool.state):
            raise QarnotPoolEndedError(
                f"Pool {pool.uuid} is {pool.state} and cannot be changed any more", kind="pool", ref=pool.uuid
            )
        wanted = self._wanted(pool, changes)
        if wanted:
            pools.update(pool.uuid, **wanted)
            self.log.info("Changed %s of pool %s", ", ".join(wanted), pool.uuid)
        if self.sync_resources:
            pools.sync_resources(pool.uuid)
            self.log.info("Pool %s fetches its resource buckets again", pool.uuid)
        return pool.uuid

    def _wanted(self, pool: Pool, changes: PoolSpec) -> dict[str, Any]:
        """Return the new values of the fields of *pool* that change."""
        wanted: dict[str, Any] = {"elastic": changes.elastic, "scaling": changes.scaling}
        if self.constants is not None:
            wanted["constants"] = _merged_constants(pool, changes)
        if self.tags is not None:
            ours = [tag for tag in pool.tags or () if tag.startswith("airflow-")]
            wanted["tags"] = [*ours, *changes.tags]
        return {name: value for name, value in wanted.items() if value is not None}


def _merged_constants(pool: Pool, changes: PoolSpec) -> dict[str, str]:
    """Return the constants of *pool* with those of *changes*.

    :raises QarnotInvalidSpecError: a secret one, which cannot be read back, is not given.
    """
    from airflow_qarnot_pool.api.fields import is_secret_constant

    hidden = [name for name in pool.constants if is_secret_constant(name) and name not in changes.constants]
    if hidden:
        raise QarnotInvalidSpecError(
            f"Pool {pool.uuid} has the secret constants {', '.join(hidden)}, which cannot be read back and "
            "would be overwritten",
            field="constants",
            remedy="Give them, too.",
        )
    return {**pool.constants, **changes.constants}
