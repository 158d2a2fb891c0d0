"""Close pools that outlived their use."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.exceptions import QarnotError, QarnotInvalidSpecError
from airflow_qarnot_pool.operators.bases.base import QarnotOperator
from airflow_qarnot_pool.ownership.liveness import dag_run_state
from airflow_qarnot_pool.parameters.templating import is_templated
from airflow_qarnot_pool.parameters.validation import Duration, as_duration

if TYPE_CHECKING:
    from airflow.sdk import Context

_YES, _NO = ("true", "1", "yes"), ("false", "0", "no")


class QarnotReapOperator(QarnotOperator):
    """Close pools of this namespace whose DAG run is over or gone, which have been idle too long or cost too much.

    Qarnot tasks with nodes of their own are aborted when their DAG run is over or gone, unless no Airflow task was to
    wait for them (``wait_for_completion=False``) or they were to survive it (``cancel_on_kill=False``).

    Never touches another namespace, nor what this provider did not make. Refuses to run where the connection (or
    ``[qarnot] namespace``) names no namespace. Returns a report: ``{namespace, dry_run, closed, deleted, kept, aborted,
    pools: [...], tasks: [...], failures: [...]}``. Limits on cost are those that the tasks which made the pools were
    given (``max_cost``, ``max_run_cost``).

    Durations are timedeltas or seconds.

    :param grace: how long after its last work a pool of a finished, or unknown, DAG run is left alone; a Qarnot task
        that still runs for such a run, how long after it was made.
    :param idle: how long a pool may have nothing to do, whatever its DAG run does.
    :param finished: how long a closed pool is kept before it is deleted.
    :param report_only: say what would be done, and do nothing (``dry_run`` is a method of Airflow's).
    """

    template_fields = (*QarnotOperator.template_fields, "report_only", "grace", "idle", "finished")

    def __init__(
        self,
        *,
        grace: Duration = timedelta(minutes=15),
        idle: Duration = timedelta(hours=1),
        finished: Duration = timedelta(days=8),
        report_only: bool | str = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.grace = grace
        self.idle = idle
        self.finished = finished
        self.report_only = report_only
        for name in ("grace", "idle", "finished"):
            if not is_templated(getattr(self, name)):
                self._duration(name)
        if not is_templated(report_only):
            self._reports_only()

    def _duration(self, name: str) -> timedelta:
        found = as_duration(name, given := getattr(self, name), zero=True)
        if found is None:
            raise QarnotInvalidSpecError(
                f"{name} must be a duration, got {given!r}", field=name, remedy="Give a timedelta or seconds."
            )
        return found

    def _reports_only(self) -> bool:
        """What came of a template may be neither, and pools are not closed on a guess."""
        said = str(self.report_only).strip().lower()
        if said not in (*_YES, *_NO):
            raise QarnotInvalidSpecError(
                f"report_only must be True or False, got {self.report_only!r}",
                field="report_only",
                remedy="Check the template, or the task, that yields it.",
            )
        return said in _YES

    def execute(self, context: Context) -> dict[str, Any]:
        from airflow_qarnot_pool.maintenance.reaper import ReapLimits, reap

        settings = self.hook.settings
        report = reap(
            self.client,
            settings.namespace if settings.namespace_is_explicit else None,
            dag_run_state,
            ReapLimits(
                grace=self._duration("grace"),
                idle=self._duration("idle"),
                finished=self._duration("finished"),
            ),
            dry_run=self._reports_only(),
        ).to_json()
        self.log.info(
            "%s pools and %s Qarnot tasks looked at, %s closed, %s deleted, %s aborted%s",
            len(report["pools"]),
            len(report["tasks"]),
            report["closed"],
            report["deleted"],
            report["aborted"],
            " (dry run: nothing was done)" if report["dry_run"] else "",
        )
        if report["failures"]:
            raise QarnotError(
                f"{len(report['failures'])} pools or tasks could not be checked or cleaned up:\n"
                + "\n".join(report["failures"])
            )
        return report
