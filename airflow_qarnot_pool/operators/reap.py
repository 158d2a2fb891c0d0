"""Close pools that outlived their use."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.api.errors import shortened
from airflow_qarnot_pool.environments.specification import DEFAULT_BUCKET
from airflow_qarnot_pool.exceptions import QarnotError, QarnotInvalidSpecError
from airflow_qarnot_pool.operators.bases.base import QarnotOperator
from airflow_qarnot_pool.ownership.liveness import dag_run_state
from airflow_qarnot_pool.parameters.templating import is_templated
from airflow_qarnot_pool.parameters.validation import Duration, as_duration

if TYPE_CHECKING:
    from airflow.sdk import Context

#: Maximum characters of the reasons of all failures.
MAX_REASONS = 10_000
_YES, _NO = ("true", "1", "yes"), ("false", "0", "no")


class QarnotReapOperator(QarnotOperator):
    """Close pools of this namespace whose DAG run has finished or is unknown, or that are idle or over a cost limit.

    A shared pool is closed if only such runs have Qarnot tasks on it, and no unfinished run has opened it. A pool for
    which somebody chose *Close when idle* on the Pools page is closed once it has had no work for five minutes.

    Qarnot tasks without a pool are aborted if their DAG run has finished or is unknown. Tasks that no Airflow task
    waits for (``wait_for_completion=False``) and tasks that outlive it (``cancel_on_kill=False``) are spared.

    The reaper never touches another namespace, or an object that this provider did not create. It fails if neither the
    connection nor ``[qarnot] namespace`` sets a namespace. The cost limits are those of the tasks that created the
    pools (``max_cost``, ``max_run_cost``). Returns a report: ``{namespace, dry_run, closed, deleted, kept, aborted,
    pools: [...], tasks: [...], failures: [...], environments: [key, ...]}``.

    Durations are timedeltas or seconds.

    :param grace_period: how long a pool of a finished or unknown DAG run is spared after its last work. A Qarnot task
        that still runs for such a run is spared this long after its creation.
    :param idle_timeout: how long a pool may be idle, regardless of its DAG run.
    :param delete_finished_after: how long a closed pool is kept before it is deleted.
    :param delete_environments_after: how long an :class:`~airflow_qarnot_pool.environments.QarnotEnvironment` is kept
        after its last use, at least two days. Archives that unfinished pools or Qarnot tasks of the account bring are
        kept in any case, and a deleted one is made again when it is needed.
    :param environment_bucket: the bucket of the environments.
    :param report_only: report the actions without taking them (``dry_run`` is a method of Airflow's operators).
    """

    template_fields = (
        *QarnotOperator.template_fields,
        "report_only",
        "grace_period",
        "idle_timeout",
        "delete_finished_after",
        "delete_environments_after",
        "environment_bucket",
    )

    def __init__(
        self,
        *,
        grace_period: Duration = timedelta(minutes=15),
        idle_timeout: Duration = timedelta(hours=1),
        delete_finished_after: Duration = timedelta(days=8),
        delete_environments_after: Duration = timedelta(days=30),
        environment_bucket: str = DEFAULT_BUCKET,
        report_only: bool | str = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.grace_period = grace_period
        self.idle_timeout = idle_timeout
        self.delete_finished_after = delete_finished_after
        self.delete_environments_after = delete_environments_after
        self.environment_bucket = environment_bucket
        self.report_only = report_only
        for name in ("grace_period", "idle_timeout", "delete_finished_after"):
            if not is_templated(getattr(self, name)):
                self._duration(name)
        if not is_templated(delete_environments_after):
            self._environments_age()
        if not is_templated(report_only):
            self._reports_only()

    def _duration(self, name: str) -> timedelta:
        found = as_duration(name, given := getattr(self, name), zero=True)
        if found is None:
            raise QarnotInvalidSpecError(
                f"{name} must be a duration, got {given!r}", field=name, remedy="Give a timedelta or seconds."
            )
        return found

    def _environments_age(self) -> timedelta:
        from airflow_qarnot_pool.maintenance.environments import check_max_age

        age = self._duration("delete_environments_after")
        check_max_age(age)
        return age

    def _reports_only(self) -> bool:
        """Return whether to report only. Refuse an unclear value, because pools must not be closed on a guess."""
        said = str(self.report_only).strip().lower()
        if said not in (*_YES, *_NO):
            raise QarnotInvalidSpecError(
                f"report_only must be True or False, got {self.report_only!r}",
                field="report_only",
                remedy="Check the template, or the task, that yields it.",
            )
        return said in _YES

    def execute(self, context: Context) -> dict[str, Any]:
        """Close and delete what no DAG run needs, and return the report."""
        from airflow_qarnot_pool.maintenance.environments import reap_environments
        from airflow_qarnot_pool.maintenance.reaper import ReapLimits, reap

        settings = self.hook.settings
        found = reap(
            self.client,
            settings.namespace if settings.namespace_is_explicit else None,
            dag_run_state,
            ReapLimits(
                grace_period=self._duration("grace_period"),
                idle_timeout=self._duration("idle_timeout"),
                delete_finished_after=self._duration("delete_finished_after"),
            ),
            dry_run=self._reports_only(),
        )
        report: dict[str, Any] = {**found.to_json(), "environments": []}
        try:
            report["environments"] = reap_environments(
                settings, self.environment_bucket, self._environments_age(), dry_run=self._reports_only()
            )
        except QarnotError as error:
            report["failures"].append(str(error))
        self.log.info(
            "Checked %s pools and %s Qarnot tasks, %s closed, %s deleted, %s aborted, %s environments deleted%s",
            len(found.entries),
            len(report["tasks"]),
            report["closed"],
            report["deleted"],
            report["aborted"],
            len(report["environments"]),
            " (dry run: nothing was done)" if report["dry_run"] else "",
        )
        if report["failures"]:
            reasons = shortened("\n".join(report["failures"]), MAX_REASONS)
            raise QarnotError(
                f"{len(report['failures'])} pools, tasks or buckets could not be checked or cleaned up:\n{reasons}"
            )
        return report
