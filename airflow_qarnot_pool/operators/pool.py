"""Create, change, close and delete pools."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.api import specs, states
from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError, QarnotNotFoundError
from airflow_qarnot_pool.claim import end
from airflow_qarnot_pool.conditions import POOL_CLOSED, POOL_READY, Condition, Ending, Outcome
from airflow_qarnot_pool.exceptions import QarnotPoolEndedError
from airflow_qarnot_pool.links import LINKS
from airflow_qarnot_pool.operators.base import QarnotOperator, WaitingOperator, already, reference
from airflow_qarnot_pool.operators.parameters import check_tags, given, is_uuid
from airflow_qarnot_pool.templates import is_templated, known_at_parse
from airflow_qarnot_pool.triggers.keys import POOL_KEY

if TYPE_CHECKING:
    from datetime import datetime

    from airflow.sdk import Context

    from airflow_qarnot_pool.triggers.base import QarnotTrigger


class _PoolOperator(WaitingOperator):
    kind = "pool"
    uuid_key = POOL_KEY
    operator_extra_links = (LINKS["pool"],)

    def _trigger_class(self) -> type[QarnotTrigger]:
        from airflow_qarnot_pool.triggers.pool import QarnotPoolTrigger

        return QarnotPoolTrigger


class QarnotCreatePoolOperator(_PoolOperator):
    """Create a pool and, unless told otherwise, wait until it is ready. Returns its uuid.

    Each life of the Airflow task has one pool: a retry takes up the pool of the try before it, a clear closes
    the old one and creates another. When the wait fails the pool is closed.

    :param name: shown in the console; default: the DAG's and the task's id.
    :param profile: profile of the account, ``docker-batch`` unless told otherwise.
    :param instance_count: size of a fixed pool, in slots (a node each, unless ``slots_per_node`` is given).
    :param slots_per_node: how many slots share one node.
    :param elastic: settings of a pool that follows its load (:class:`~airflow_qarnot_pool.api.specs.Elastic`
        or a mapping of its fields).
    :param scaling: scaling policies, the newer form of the same (``Scaling`` or a mapping).
    :param constants: constants of the pool, text to text.
    :param resource_buckets: buckets (names or ``ResourceBucket``) whose files every node gets.
    :param tags: up to seven tags; three are the provider's.
    :param pool_spec: any other field of :class:`~airflow_qarnot_pool.api.specs.PoolSpec`, by its name there or
        in the API.
    :param ready_when: what to wait for: a state, or a number of running instances. Default: ``FullyExecuting``
        for a pool of fixed size; a pool with ``elastic`` or ``scaling``, which may rest at no nodes, is
        not waited for.
    """

    template_fields = (
        *WaitingOperator.template_fields,
        "name",
        "profile",
        "instance_count",
        "slots_per_node",
        "elastic",
        "scaling",
        "constants",
        "resource_buckets",
        "tags",
        "pool_spec",
        "ready_when",
    )
    template_fields_renderers = {"pool_spec": "json", "scaling": "json", "elastic": "json"}

    def __init__(
        self,
        *,
        name: str | None = None,
        profile: str | None = None,
        instance_count: int | str | None = None,
        slots_per_node: int | str | None = None,
        elastic: specs.Elastic | Mapping[str, Any] | str | None = None,
        scaling: specs.Scaling | Mapping[str, Any] | str | None = None,
        constants: Mapping[str, str] | None = None,
        resource_buckets: Iterable[str | specs.ResourceBucket] | None = None,
        tags: Iterable[str] | None = None,
        pool_spec: Mapping[str, Any] | None = None,
        ready_when: str | int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.name = name
        self.profile = profile
        self.instance_count = instance_count
        self.slots_per_node = slots_per_node
        self.elastic = elastic
        self.scaling = scaling
        self.constants = constants
        self.resource_buckets = resource_buckets
        self.tags = tags
        self.pool_spec = pool_spec
        self.ready_when = ready_when
        known = known_at_parse(self._given())
        self._spec(known)
        if not is_templated([ready_when, instance_count]):
            self._condition(known)

    def _given(self) -> dict[str, Any]:
        return given(
            self,
            ("name", "profile", "instance_count", "slots_per_node", "elastic", "scaling", "constants")
            + ("resource_buckets", "tags"),
            self.pool_spec,
            "pool_spec",
        )

    def _spec(self, values: Mapping[str, Any]) -> specs.PoolSpec:
        check_tags(values.get("tags"))
        return specs.PoolSpec.from_mapping({"name": f"{self.dag_id}.{self.task_id}", **values})

    def _condition(self, values: Mapping[str, Any]) -> Condition | None:
        """What to wait for, or None to go on at once."""
        ready = self.ready_when
        if ready in (None, ""):
            return None if {"elastic", "scaling"} & values.keys() else POOL_READY
        if isinstance(ready, int) or str(ready).strip().isdigit():
            slots = int(str(ready))
            size = str(values.get("instance_count", "")).strip()
            if size.isdigit() and slots > int(size):
                raise QarnotInvalidSpecError(
                    f"ready_when asks for {slots} running instances of a pool of {size}", field="ready_when"
                )
            return Condition(kind="pool", ready_slots=slots)
        return Condition(kind="pool", targets=(str(ready),))

    def execute(self, context: Context) -> str:
        values = self._given()
        spec, condition = self._spec(values), self._condition(values)
        claimed = self._claim(context, spec)
        if not self.wait_for_completion or condition is None:
            return claimed.uuid
        outcome = already(claimed, condition)
        return self._closing_on_error(outcome, claimed.uuid, condition, self._deadline(context))

    def execute_complete(self, context: Context, event: Mapping[str, Any]) -> str:
        """Return the uuid of the pool that is ready, or close it and say why it is not."""
        return self._closing_on_error(self._resumed(context, event))

    def _closing_on_error(
        self,
        outcome: Outcome | None,
        uuid: str = "",
        condition: Condition = POOL_READY,
        deadline: datetime | None = None,
    ) -> str:
        """Finish the wait; when it fails nobody will use the pool, and a failed setup has no teardown."""
        try:
            outcome = outcome or self._wait(uuid, condition, deadline)
            self._raise_for(outcome)
            if outcome.ending is Ending.IMPOSSIBLE:
                raise QarnotPoolEndedError(outcome.message, kind="pool", ref=outcome.uuid)
        except Exception:
            self._end("it did not become ready")
            raise
        self.log.info("Pool %s is %s", outcome.uuid, outcome.state)
        return outcome.uuid


class QarnotUpdatePoolOperator(QarnotOperator):
    """Change a running pool: its elastic or scaling settings, constants, tags; or re-sync its resources.

    What is not given stays as it is. Returns the pool's uuid.

    :param qarnot_pool: uuid or shortname of the pool, or the output of the task that made it.
    :param elastic: new settings of an elastic pool.
    :param scaling: new scaling policies.
    :param constants: constants to add or change.
    :param tags: the user's tags, instead of the present ones; the provider's own stay.
    :param sync_resources: fetch the files of the pool's resource buckets to the nodes once more.
    """

    template_fields = (
        *QarnotOperator.template_fields,
        "qarnot_pool",
        "elastic",
        "scaling",
        "constants",
        "tags",
    )
    operator_extra_links = (LINKS["pool"],)

    def __init__(
        self,
        *,
        qarnot_pool: Any,
        elastic: specs.Elastic | Mapping[str, Any] | str | None = None,
        scaling: specs.Scaling | Mapping[str, Any] | str | None = None,
        constants: Mapping[str, str] | None = None,
        tags: Iterable[str] | None = None,
        sync_resources: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.qarnot_pool = qarnot_pool
        self.elastic = elastic
        self.scaling = scaling
        self.constants = constants
        self.tags = tags
        self.sync_resources = sync_resources
        if not sync_resources and all(one is None for one in (elastic, scaling, constants, tags)):
            raise QarnotInvalidSpecError(
                "Nothing to change: give elastic, scaling, constants, tags or sync_resources=True"
            )
        self._changes(known_at_parse(self._given()))

    def _given(self) -> dict[str, Any]:
        return given(self, ("elastic", "scaling", "constants", "tags"))

    def _changes(self, values: Mapping[str, Any]) -> specs.PoolSpec:
        check_tags(values.get("tags"))
        return specs.PoolSpec.from_mapping({"name": "update", **values})

    def execute(self, context: Context) -> str:
        changes = self._changes(self._given())
        pools = self.client.pools
        pool = pools.get(reference(self.qarnot_pool, "qarnot_pool"))
        self._show_link(context, "pool", pool.uuid)
        if not states.accepts_tasks(pool.state):
            raise QarnotPoolEndedError(
                f"Pool {pool.uuid} is {pool.state} and cannot be changed any more", kind="pool", ref=pool.uuid
            )
        wanted: dict[str, Any] = {"elastic": changes.elastic, "scaling": changes.scaling}
        if self.constants is not None:
            wanted["constants"] = {**(pool.constants or {}), **changes.constants}
        if self.tags is not None:
            ours = [tag for tag in pool.tags or () if tag.startswith("airflow-")]
            wanted["tags"] = [*ours, *changes.tags]
        wanted = {name: value for name, value in wanted.items() if value is not None}
        if wanted:
            pools.update(pool.uuid, **wanted)
            self.log.info("Changed %s of pool %s", ", ".join(wanted), pool.uuid)
        if self.sync_resources:
            pools.sync_resources(pool.uuid)
            self.log.info("Pool %s fetches its resource buckets again", pool.uuid)
        return pool.uuid


class QarnotClosePoolOperator(_PoolOperator):
    """Close a pool; one that is closed, closing or gone already is fine. Returns its uuid.

    :param qarnot_pool: uuid or shortname of the pool, or the output of the task that made it.
    :param wait_for_completion: wait until it is Closed; default: no, as billing ends with the request.
    """

    template_fields = (*WaitingOperator.template_fields, "qarnot_pool")

    def __init__(self, *, qarnot_pool: Any, wait_for_completion: bool = False, **kwargs: Any) -> None:
        # A kill of this task must not undo anything: there is nothing that it would have to end.
        super().__init__(wait_for_completion=wait_for_completion, **{**kwargs, "cancel_on_kill": False})
        self.qarnot_pool = qarnot_pool

    def execute(self, context: Context) -> str:
        ref = reference(self.qarnot_pool, "qarnot_pool")
        end(self.client.pools, ref)
        self.log.info("Pool %s is told to close", ref)
        try:
            uuid = ref if is_uuid(ref) else self.client.pools.get(ref).uuid
        except QarnotNotFoundError:
            return ref
        self._show_link(context, "pool", uuid)
        if not self.wait_for_completion:
            return uuid
        return self._closed(self._wait(uuid, POOL_CLOSED, self._deadline(context)))

    def execute_complete(self, context: Context, event: Mapping[str, Any]) -> str:
        """Return the uuid of the pool that is closed."""
        return self._closed(self._resumed(context, event))

    def _closed(self, outcome: Outcome) -> str:
        if outcome.ending is not Ending.GONE:
            self._raise_for(outcome)
        self.log.info("Pool %s is %s", outcome.uuid, outcome.state or "gone")
        return outcome.uuid


class QarnotDeletePoolOperator(QarnotOperator):
    """Delete a pool, closing it first where it is open; one that is gone already is fine.

    :param qarnot_pool: uuid or shortname of the pool, or the output of the task that made it.
    """

    template_fields = (*QarnotOperator.template_fields, "qarnot_pool")

    def __init__(self, *, qarnot_pool: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.qarnot_pool = qarnot_pool

    def execute(self, context: Context) -> None:
        ref = reference(self.qarnot_pool, "qarnot_pool")
        try:
            self.client.pools.delete(ref)
        except QarnotNotFoundError:
            self.log.info("Pool %s is gone already", ref)
        else:
            self.log.info("Pool %s is deleted", ref)
