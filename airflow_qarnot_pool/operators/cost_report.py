"""Report the cost of a period."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.operators.bases.base import QarnotOperator
from airflow_qarnot_pool.parameters.templating import is_templated
from airflow_qarnot_pool.parameters.validation import Duration, as_duration

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_qarnot_pool.costs.report import GroupBy


class QarnotCostReportOperator(QarnotOperator):
    """Report the cost of the pools and Qarnot tasks of this namespace in a period, by DAG, task and tag.

    Returns ``{since, until, pools, total, dag: [{name, runs, cost}], task: [...], tag: [...], markdown, html}``; the
    last two are the same as a small table, for a mail or a chat. Costs are as of the moment of asking. Finished
    objects live on Qarnot for a week unless ``completion_ttl`` differs: deleted objects are not counted, so report
    at least that often.

    :param since: start of the period, as a datetime or ISO text; default: *period* before its end.
    :param until: its end, not included; default: the DAG run's ``run_after``, else now.
    :param period: how long it is, as a timedelta or seconds, where *since* is not given.
    :param group_by: tables to make: ``"dag"``, ``"task"``, ``"tag"``. An object with several tags counts under each.
    :param max_rows: longest table.
    """

    template_fields = (*QarnotOperator.template_fields, "since", "until", "period")

    def __init__(
        self,
        *,
        since: datetime | str | None = None,
        until: datetime | str | None = None,
        period: Duration = timedelta(days=1),
        group_by: Sequence[GroupBy] = ("dag", "task", "tag"),
        max_rows: int = 20,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.since = since
        self.until = until
        self.period = period
        self.group_by = group_by
        self.max_rows = max_rows
        if isinstance(group_by, str) or not group_by or not set(group_by) <= {"dag", "task", "tag"}:
            raise QarnotInvalidSpecError(
                f"group_by is not a list of tables, got {group_by!r}",
                field="group_by",
                remedy="Give some of 'dag', 'task' and 'tag'.",
            )
        if not is_templated(period):
            self._period()
        if type(max_rows) is not int or max_rows < 1:
            raise QarnotInvalidSpecError(
                f"max_rows must be a whole number of at least 1, got {max_rows!r}",
                field="max_rows",
                remedy="Give a number.",
            )
        for name, value in (("since", since), ("until", until)):
            if not is_templated(value):
                _moment(name, value)
        if not is_templated([since, until, period]) and (until is not None or since is None):
            self._check_period(_moment("since", since), _moment("until", until))

    def _check_period(self, since: datetime | None, until: datetime | None) -> tuple[datetime, datetime]:
        """Return the period, whose end is the present if nothing says when it is."""
        until = until or datetime.now(UTC)
        try:
            since = since or until - self._period()
        except OverflowError:
            raise QarnotInvalidSpecError(
                f"period begins before all calendars, got {self.period}",
                field="period",
                remedy="Give a shorter one.",
            ) from None
        if since >= until:
            raise QarnotInvalidSpecError(
                f"since is not before the end of the period ({until}), got {since}",
                field="since",
                remedy="Give an earlier moment.",
            )
        return since, until

    def _period(self) -> timedelta:
        found = as_duration("period", self.period)
        if found is None:
            raise QarnotInvalidSpecError(
                "period must be a duration, got None", field="period", remedy="Give a timedelta or seconds."
            )
        return found

    def execute(self, context: Context) -> dict[str, Any]:
        """Return the report of the period, and write it to the log."""
        from airflow_qarnot_pool.costs.report import cost_report

        settings = self.hook.settings
        until = _moment("until", self.until) or getattr(context["dag_run"], "run_after", None)
        since, until = self._check_period(_moment("since", self.since), until)
        report = cost_report(self.client, settings.namespace, since, until, settings.reference_datacenter)
        text = report.markdown(self.group_by, self.max_rows)
        self.log.info("%s", text)
        return {
            **report.to_json(self.group_by, self.max_rows),
            "markdown": text,
            "html": report.html(self.group_by, self.max_rows),
        }


def _moment(name: str, value: Any) -> datetime | None:
    """Return a point in time, in UTC if it has no time zone; None for None."""
    if value is None or (isinstance(value, str) and value.strip() in ("", "None")):
        return None
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value).strip())
    except ValueError:
        raise QarnotInvalidSpecError(
            f"{name} is not a moment, got {value!r}",
            field=name,
            remedy="Give a datetime, or text such as 2026-01-31T12:00:00.",
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
