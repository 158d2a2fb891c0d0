"""Wait for a Qarnot task to be in a state."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.links.qarnot import LINKS
from airflow_qarnot_pool.parameters.references import as_reference
from airflow_qarnot_pool.sensors.base import QarnotSensor

if TYPE_CHECKING:
    from airflow_qarnot_pool.triggers.base import QarnotTrigger


class QarnotTaskSensor(QarnotSensor):
    """Wait for a Qarnot task. Fails with the remote error as soon as the target can no longer be reached.

    :param qarnot_task: uuid or shortname of the Qarnot task, or the output of the Airflow task that submitted it.
    :param target_states: one state or several, any of which ends the wait. Default: ``Success``.
    """

    kind = "task"
    ref_field = "qarnot_task"
    template_fields = (*QarnotSensor.template_fields, "qarnot_task")
    operator_extra_links = (LINKS["task"],)

    def __init__(
        self, *, qarnot_task: Any, target_states: str | Iterable[str] = "Success", **kwargs: Any
    ) -> None:
        super().__init__(target_states=target_states, **kwargs)
        self.qarnot_task = as_reference(qarnot_task, "qarnot_task")
        self._check_condition()

    def _trigger_class(self) -> type[QarnotTrigger]:
        from airflow_qarnot_pool.triggers.task import QarnotTaskTrigger

        return QarnotTaskTrigger
