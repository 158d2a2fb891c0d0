"""A task group that owns a pool: setup, work, teardown."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import TaskGroup, XComArg

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.operators.pool import QarnotClosePoolOperator, QarnotCreatePoolOperator

if TYPE_CHECKING:
    from types import TracebackType

    from airflow.sdk import DAG

SETUP = "open_pool"
TEARDOWN = "close_pool"
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
    Airflow never come to close it. Airflow cannot expand a task inside a mapped ``@task_group``: expand inside
    this group, or map over the commands with :class:`QarnotRunTasksOperator`.

    :param group_id: id of the group; the ids of its tasks begin with it.
    :param keep_warm: how long a node may be idle before it goes; None: the pool keeps its size until it is closed.
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
        keep_warm: timedelta | None = timedelta(minutes=10),
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
        super().__init__(group_id=group_id, default_args=default_args or {}, **of_the_group)  # type: ignore[arg-type]
        if keep_warm is not None and not {"elastic", "scaling"} & arguments.keys():
            arguments["keep_warm"] = keep_warm
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
        shared: dict[str, Any] = {"task_group": self}
        if "retries" not in {**self._dag.default_args, **self.default_args}:
            shared["retries"] = self._setup_retries
        opens = {"name": f"{self._dag.dag_id}.{self.group_id}", **shared, **self._pool_arguments}
        self.open_pool = QarnotCreatePoolOperator(task_id=SETUP, **opens).as_setup()
        closes = {
            name: opens[name] for name in ("qarnot_conn_id", "deferrable", "poll_interval") if name in opens
        }
        self.close_pool = QarnotClosePoolOperator(
            task_id=TEARDOWN,
            qarnot_pool=self.open_pool.output,
            report_cost=self._report_cost,
            **shared,
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

    def _give_pool(self) -> None:
        """Tasks that run on a pool and name none get this one."""
        for task in self._work():
            if hasattr(task, "partial_kwargs"):
                takes = "qarnot_pool" in getattr(task.operator_class, "template_fields", ())
                given = task.partial_kwargs.get("qarnot_pool") is not None or _expands(task, "qarnot_pool")
                if takes and not given:
                    task.partial_kwargs["qarnot_pool"] = self.pool
                    XComArg.apply_upstream_relationship(task, self.pool)
            elif "qarnot_pool" in task.template_fields and task.qarnot_pool is None:
                task.qarnot_pool = self.pool
                if hasattr(task, "on_pool"):
                    task.on_pool = True
                XComArg.apply_upstream_relationship(task, self.pool)

    def _wire(self) -> None:
        """Setup before all work, teardown after all of it, and the edges the group was given before it had tasks."""
        assert self.open_pool is not None
        assert self.close_pool is not None
        work = list(self._work())
        ids = {task.task_id for task in work}
        for task in work:
            if not task.upstream_task_ids & ids:
                _edge(self.open_pool, task)
            if not task.downstream_task_ids & ids:
                _edge(task, self.close_pool)
        for before in self.upstream_task_ids - ids:
            _edge(self._dag.get_task(before), self.open_pool)
        for after in self.downstream_task_ids - ids:
            for task in work or [self.open_pool]:
                if not task.downstream_task_ids & ids:
                    _edge(task, self._dag.get_task(after))


def _expands(task: Any, name: str) -> bool:
    """Whether a mapped task maps over *name*; what ``expand_kwargs`` brings is known at run time only."""
    value = getattr(task.expand_input, "value", {})
    return isinstance(value, dict) and name in value


def _edge(upstream: Any, downstream: Any) -> None:
    if downstream.task_id not in upstream.downstream_task_ids:
        upstream >> downstream
