"""A task group that owns a pool: setup, work, teardown."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import TaskGroup, XComArg

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.operators.pool import QarnotClosePoolOperator, QarnotCreatePoolOperator
from airflow_qarnot_pool.shared import KEEP_WARM

if TYPE_CHECKING:
    from types import TracebackType

    from airflow.sdk import DAG

SETUP = "open_pool"
TEARDOWN = "close_pool"
#: Trigger rules that count successes or ends: the setup's would be one of them, had the task an edge from it.
_COUNTING_RULES = frozenset(
    {
        "all_failed",
        "all_skipped",
        "one_success",
        "one_done",
        "none_failed_min_one_success",
        "all_done_min_one_success",
    }
)
#: Names under which Airflow's TaskGroup takes what is not about the pool.
_OF_THE_GROUP = frozenset(
    {
        "prefix_group_id",
        "parent_group",
        "dag",
        "tooltip",
        "doc_md",
        "ui_color",
        "ui_fgcolor",
        "group_display_name",
    }
)


class QarnotPoolGroup(TaskGroup):
    """The tasks inside share one warm pool, which is opened before the first and closed after the last of them.

    .. code-block:: python

        with QarnotPoolGroup("render", instance_count=4, slots_per_node=2) as group:
            frames = QarnotRunTaskOperator.partial(task_id="frame").expand(command=[...])
            frames >> QarnotRunTaskOperator(task_id="merge", command="...")

    Tasks inside that run on a pool take this one unless they name another. The group makes a setup task
    (``open_pool``), a teardown task (``close_pool``) and, when the ``with`` ends, all edges between them and the
    work: also for mapped tasks, nested groups and tasks that have upstreams outside, which Airflow's own
    ``with teardown`` leaves out. ``before >> group`` and ``group >> after`` mean what they say; what comes after
    waits for the work and not for the pool to close.

    Unless ``elastic`` or ``scaling`` says otherwise the pool cools down by itself (see ``keep_warm``), should
    Airflow never come to close it.

    In a mapped ``@task_group`` each of its copies has a pool of its own (with ``shared`` all have one), but Airflow
    cannot expand a task in there: expand inside this group, or map over the commands with
    :class:`QarnotRunTasksOperator`. A task whose trigger rule counts successes or ends (``one_success``,
    ``none_failed_min_one_success``, ...) has no edge from the setup where it has upstreams in the group: the setup's
    success would be counted, too.

    With ``shared`` the pool is not this run's alone: every group, DAG and run of the namespace that says the same name
    uses one pool, which is closed by the last one out. See ``docs/share-a-pool.md``.

    :param group_id: id of the group; the ids of its tasks begin with it.
    :param shared: name of a pool that is shared; it is made from the parameters below, which must be the same for all.
    :param keep_warm: how long a node may be idle before it goes; None: the pool keeps its size until it is closed,
        which a shared pool may not.
    :param setup_retries: retries of ``open_pool`` and ``close_pool``, where ``default_args`` names none.
    :param report_cost: have ``close_pool`` store what the pool and the DAG run have cost as XCom ``qarnot_cost``.
    :param default_args: for every task inside.
    :param arguments: parameters of :class:`~airflow.sdk.TaskGroup` (``tooltip``, ``prefix_group_id``, ...), and of
        :class:`~airflow_qarnot_pool.operators.pool.QarnotCreatePoolOperator` (``instance_count``, ``profile``,
        ``slots_per_node``, ``elastic``, ``ready_when``, ``qarnot_conn_id``, ...).
    """

    def __init__(
        self,
        group_id: str,
        *,
        shared: str | None = None,
        keep_warm: timedelta | None = KEEP_WARM,
        setup_retries: int = 3,
        report_cost: bool = False,
        default_args: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        of_the_group = {name: arguments.pop(name) for name in _OF_THE_GROUP & arguments.keys()}
        for name in ("task_id", "task_group", "wait_for_completion"):
            if name in arguments:
                raise QarnotInvalidSpecError(
                    f"QarnotPoolGroup makes its own setup task, which takes no {name}", field=name
                )
        if type(setup_retries) is not int or setup_retries < 0:
            raise QarnotInvalidSpecError(
                f"setup_retries must be a whole number, not {setup_retries!r}", field="setup_retries"
            )
        super().__init__(group_id=group_id, default_args=default_args or {}, **of_the_group)  # type: ignore[arg-type]
        if not {"elastic", "scaling"} & arguments.keys():
            arguments["keep_warm"] = keep_warm
            if keep_warm is None and shared is not None:
                raise QarnotInvalidSpecError(
                    "A shared pool cools down by itself, as it may outlive the DAG run that opened it: give a "
                    "keep_warm, or scaling or elastic",
                    field="keep_warm",
                )
        if shared is not None:
            arguments["shared"] = shared
        self._pool_arguments = arguments
        self._setup_retries = setup_retries
        self._report_cost = report_cost
        self.open_pool: QarnotCreatePoolOperator | None = None
        self.close_pool: QarnotClosePoolOperator | None = None

    @property
    def pool(self) -> XComArg:
        """The pool's uuid, for tasks outside the group or parameters that want it by name."""
        if self.open_pool is None:
            raise QarnotInvalidSpecError("The pool of a QarnotPoolGroup exists inside its `with` only")
        return XComArg(self.open_pool)

    def __enter__(self) -> QarnotPoolGroup:
        super().__enter__()
        try:
            self._make_setup_and_teardown()
        except BaseException as error:
            # Nobody calls __exit__ after an __enter__ that failed, and this group must not stay the current one.
            super().__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def _make_setup_and_teardown(self) -> None:
        both: dict[str, Any] = {"task_group": self}
        # What default_args say comes before what this group would say by itself.
        defaults = {**self._dag.default_args, **self.default_args}
        if "retries" not in defaults:
            both["retries"] = self._setup_retries
        named = "shared" in self._pool_arguments or "name" in defaults
        opens = {
            **({} if named else {"name": f"{self._dag.dag_id}.{self.group_id}"}),
            **both,
            **self._pool_arguments,
        }
        if opens.get("keep_warm") is KEEP_WARM and {"keep_warm", "elastic", "scaling"} & defaults.keys():
            del opens["keep_warm"]
        self.open_pool = QarnotCreatePoolOperator(task_id=SETUP, **opens).as_setup()
        closes = {
            name: opens[name]
            for name in ("qarnot_conn_id", "deferrable", "poll_interval", "shared")
            if name in opens
        }
        self.close_pool = QarnotClosePoolOperator(
            task_id=TEARDOWN,
            qarnot_pool=self.open_pool.output,
            report_cost=self._report_cost,
            **both,
            **closes,
        ).as_teardown(setups=self.open_pool)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._give_pool()
                self._wire()
            elif isinstance(error, NotImplementedError) and self._is_mapped:
                raise QarnotInvalidSpecError(
                    f"{self.group_id} is inside a mapped @task_group, where Airflow can expand no task: expand "
                    "the group or the task, not both; many commands of one task are QarnotRunTasksOperator's"
                ) from error
        finally:
            super().__exit__(kind, error, trace)

    @property
    def _dag(self) -> DAG:
        return self.dag

    def _work(self) -> Iterator[Any]:
        """Every task inside but the two of the group itself, those of nested groups included."""
        for task in self.iter_tasks():
            if task is not self.open_pool and task is not self.close_pool:
                yield task

    @property
    def _is_mapped(self) -> bool:
        return next(self.iter_mapped_task_groups(), None) is not None

    def _give_pool(self) -> None:
        """Tasks that run on a pool and name none get this one."""
        ids = {task.task_id for task in self._work()}
        for task in self._work():
            # What other tasks of the group precede comes after the setup in any case.
            rule = getattr(task.trigger_rule, "value", task.trigger_rule)
            with_edge = rule not in _COUNTING_RULES or not task.upstream_task_ids & ids
            if hasattr(task, "partial_kwargs"):
                takes = "qarnot_pool" in getattr(task.operator_class, "template_fields", ())
                given = task.partial_kwargs.get("qarnot_pool") is not None or _expands(task, "qarnot_pool")
                if not takes or given:
                    continue
                task.partial_kwargs["qarnot_pool"] = self.pool
            elif "qarnot_pool" in task.template_fields and task.qarnot_pool is None:
                # Not by setattr, which makes the edge.
                object.__setattr__(task, "qarnot_pool", self.pool)
                if hasattr(task, "on_pool"):
                    task.on_pool = True
                    task.take_limits(self.open_pool)
            else:
                continue
            if with_edge:
                XComArg.apply_upstream_relationship(task, self.pool)

    def _wire(self) -> None:
        """Setup before all work, teardown after all of it, and the edges the group was given before it had tasks."""
        assert self.open_pool is not None
        assert self.close_pool is not None
        work = list(self._work())
        ids = {task.task_id for task in work}
        last = [task for task in work if not task.downstream_task_ids & ids]
        for task in work:
            if not task.upstream_task_ids & ids:
                _edge(self.open_pool, task)
        for task in last:
            _edge(task, self.close_pool)
        for before in self._neighbours(self.upstream_task_ids - ids, self.upstream_group_ids, "get_leaves"):
            _edge(before, self.open_pool)
        for after in self._neighbours(self.downstream_task_ids - ids, self.downstream_group_ids, "get_roots"):
            for task in last or [self.open_pool]:
                _edge(task, after)

    def _neighbours(self, tasks: set[str], groups: set[str | None], ends: str) -> Iterator[Any]:
        """The tasks that stand next to this group, whether it was linked with them or with a group of theirs."""
        for task in tasks:
            yield self._dag.get_task(task)
        known = self._dag.task_group.get_task_group_dict()
        for group in groups:
            # A group that has no tasks yet makes these edges itself, if it is one of ours.
            yield from getattr(known[str(group)], ends)()


def _expands(task: Any, name: str) -> bool:
    """Whether a mapped task maps over *name*; what ``expand_kwargs`` brings from another task is not known yet.

    :raises QarnotInvalidSpecError: only some of its rows name it.
    """
    value = getattr(task.expand_input, "value", {})
    if isinstance(value, dict):
        return name in value
    if not isinstance(value, (list, tuple)):
        return False
    rows = [row for row in value if isinstance(row, dict)]
    naming = sum(name in row for row in rows)
    if 0 < naming < len(rows):
        raise QarnotInvalidSpecError(
            f"{task.task_id}: {naming} of {len(rows)} rows of expand_kwargs name {name}; name it in all of them, or "
            "in none to take the group's",
            field=name,
        )
    return naming > 0


def _edge(upstream: Any, downstream: Any) -> None:
    if downstream.task_id not in upstream.downstream_task_ids:
        upstream >> downstream
