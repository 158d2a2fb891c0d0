"""Wait for a pool to be in a state, or to have slots ready."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.api.fields import Refusal, integer
from airflow_qarnot_pool.links.qarnot import POOL_LINKS
from airflow_qarnot_pool.parameters.references import as_reference
from airflow_qarnot_pool.parameters.templating import is_templated
from airflow_qarnot_pool.sensors.base import QarnotSensor
from airflow_qarnot_pool.waiting.conditions import Condition

if TYPE_CHECKING:
    from airflow_qarnot_pool.triggers.base import QarnotTrigger


class QarnotPoolSensor(QarnotSensor):
    """Wait for a pool. Fails with the remote error as soon as the target can no longer be reached.

    :param qarnot_pool: uuid or shortname of the pool, or the output of the task that created it.
    :param target_states: one state or several, any of which ends the wait. Default: ``FullyExecuting``. The states are
        Submitted, PartiallyDispatched, FullyDispatched, PartiallyExecuting, FullyExecuting, Closing, Closed, Failure
        and PendingDelete.
    :param ready_slots: number of running instances to wait for, instead of a state.
    """

    kind = "pool"
    ref_field = "qarnot_pool"
    template_fields = (*QarnotSensor.template_fields, "qarnot_pool", "ready_slots")
    operator_extra_links = POOL_LINKS

    def __init__(
        self,
        *,
        qarnot_pool: Any,
        target_states: str | Iterable[str] | None = None,
        ready_slots: int | str | None = None,
        **kwargs: Any,
    ) -> None:
        if target_states is not None and ready_slots is not None:
            raise QarnotInvalidSpecError(
                "ready_slots and target_states exclude each other",
                field="ready_slots",
                remedy="Keep one of them, or use two sensors.",
            )
        super().__init__(target_states=target_states, **kwargs)
        self.qarnot_pool = as_reference(qarnot_pool, "qarnot_pool")
        self.ready_slots = ready_slots
        if not is_templated(ready_slots):
            self._check_condition()

    def _condition(self) -> Condition:
        if self.ready_slots is None:
            if self.target_states is None:
                return Condition(kind="pool", targets=("FullyExecuting",), accept_passed=self.accept_passed)
            return super()._condition()
        try:
            return Condition(kind="pool", ready_slots=integer(1)(self.ready_slots))
        except Refusal as refusal:
            raise QarnotInvalidSpecError(
                f"ready_slots {refusal.problem}", field="ready_slots", remedy=refusal.remedy
            ) from None

    def _trigger_class(self) -> type[QarnotTrigger]:
        from airflow_qarnot_pool.triggers.pool import QarnotPoolTrigger

        return QarnotPoolTrigger
