"""A task group that owns a pool: setup, work, teardown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from airflow.sdk import TaskGroup, TriggerRule, XComArg

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.operators.pool import QarnotClosePoolOperator, QarnotCreatePoolOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.ownership.shared_pool import DEFAULT_KEEP_WARM
from airflow_qarnot_pool.parameters.shell import find_commands, warn_of_shell_characters
from airflow_qarnot_pool.parameters.unknown import refuse_unknown
from airflow_qarnot_pool.parameters.validation import Duration
from airflow_qarnot_pool.sensors.task import QarnotTaskSensor

if TYPE_CHECKING:
    from types import TracebackType

    from airflow.sdk import DAG

SETUP = "open_pool"
TEARDOWN = "close_pool"
#: Names under which Airflow's TaskGroup takes what is not about the pool.
_GROUP_PARAMETERS = frozenset(
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
    :class:`QarnotRunTasksOperator`.

    Airflow takes only tasks with the trigger rule ``all_success`` right after a setup. A task with another rule waits
    for the pool by its upstreams in the group, as ``cleanup`` does in ``frames >> cleanup`` with ``all_done``. A task
    without any upstream gets ``all_success``: it runs when the pool is open. To clean up on the pool and fail the DAG
    run all the same when the work fails, make the clean-up a teardown: ``frames >> cleanup.as_teardown()``.

    A task that does not wait for its Qarnot task (``wait_for_completion=False``) is refused unless a
    :class:`~airflow_qarnot_pool.sensors.task.QarnotTaskSensor` follows it in the group: the teardown would cancel what
    still runs.

    With ``shared`` the pool is not this run's alone: every group, DAG and run of the namespace that says the same name
    uses one pool, which is closed by the last one out. See ``docs/share-a-pool.md``.

    :param group_id: id of the group; the ids of its tasks begin with it.
    :param shared: name of a pool that is shared; it is made from the parameters below, which must be the same for all.
    :param keep_warm: how long a node may be idle before it goes, as a timedelta or seconds; None: the pool keeps its
        size until it is closed, which a shared pool may not.
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
        keep_warm: Duration = DEFAULT_KEEP_WARM,
        setup_retries: int = 3,
        report_cost: bool = False,
        default_args: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        of_the_group = {name: arguments.pop(name) for name in _GROUP_PARAMETERS & arguments.keys()}
        for name in ("task_id", "task_group", "wait_for_completion"):
            if name in arguments:
                raise QarnotInvalidSpecError(
                    f"{name} is no parameter of QarnotPoolGroup, which makes its own setup task",
                    field=name,
                    remedy="Leave it out.",
                )
        refuse_unknown(
            QarnotCreatePoolOperator,
            arguments,
            author="QarnotPoolGroup",
            others={
                *_GROUP_PARAMETERS,
                "shared",
                "keep_warm",
                "setup_retries",
                "report_cost",
                "default_args",
            },
        )
        if type(setup_retries) is not int or setup_retries < 0:
            raise QarnotInvalidSpecError(
                f"setup_retries must be a whole number, got {setup_retries!r}",
                field="setup_retries",
                remedy="Give a number of 0 or more.",
            )
        super().__init__(group_id=group_id, default_args=default_args or {}, **of_the_group)  # type: ignore[arg-type]
        if not {"elastic", "scaling"} & arguments.keys():
            arguments["keep_warm"] = keep_warm
            if keep_warm is None and shared is not None:
                raise QarnotInvalidSpecError(
                    "keep_warm of a shared pool cannot be switched off, got None: it cools down by itself, as it may "
                    "outlive the DAG run that opened it",
                    field="keep_warm",
                    remedy="Give a duration, or scaling or elastic.",
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
            raise QarnotInvalidSpecError(
                "The pool of a QarnotPoolGroup exists inside its `with` only",
                remedy="Use it after `with group:`.",
            )
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
        if (
            opens.get("keep_warm") is DEFAULT_KEEP_WARM
            and {"keep_warm", "elastic", "scaling"} & defaults.keys()
        ):
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
                ids = {task.task_id for task in self._work()}
                first = {task.task_id for task in self._work() if self._follows_setup(task, ids)}
                self._give_pool(first)
                for task in self._work():
                    _warn_if_mapped(task)
                self._wire(first)
                self._refuse_unawaited()
            elif isinstance(error, NotImplementedError) and self._is_mapped:
                raise QarnotInvalidSpecError(
                    f"{self.group_id} is inside a mapped @task_group, where Airflow can expand no task",
                    remedy="Expand the group or the task, not both. QarnotRunTasksOperator runs many commands in one "
                    "task.",
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

    def _follows_setup(self, task: Any, ids: set[str]) -> bool:
        """Return whether *task* may have an edge from the setup, and take one that its parameters made if not.

        :raises QarnotInvalidSpecError: its trigger rule and its upstreams do not let it wait for the pool.
        """
        assert self.open_pool is not None
        rule = getattr(task.trigger_rule, "value", task.trigger_rule)
        before = task.upstream_task_ids - {self.open_pool.task_id}
        if rule == "all_success" or task.is_teardown:
            return True
        if not before:
            # Airflow evaluates no rule for a task without upstreams.
            task.trigger_rule = TriggerRule.ALL_SUCCESS
            return True
        here = f"of {task.task_id} in QarnotPoolGroup {self.group_id!r}"
        if not before & ids:
            raise QarnotInvalidSpecError(
                f"trigger_rule {here} must be 'all_success' because all its upstreams ({', '.join(sorted(before))}) "
                f"are outside the group, got {rule!r}",
                field="trigger_rule",
                remedy=f"Put a task with trigger_rule={rule!r}, such as an EmptyOperator, after these upstreams and "
                f"outside the group, and {task.task_id} with trigger_rule='all_success' after that task.",
            )
        linked = self.open_pool.task_id in task.upstream_task_ids
        if rule == "always" and (linked or _wants_pool(task)):
            raise QarnotInvalidSpecError(
                f"trigger_rule {here} does not wait for the pool that the task runs on, got 'always'",
                field="trigger_rule",
                remedy="Use trigger_rule='all_done': the task runs whatever becomes of its upstreams.",
            )
        if linked:
            task.upstream_task_ids.discard(self.open_pool.task_id)
            self.open_pool.downstream_task_ids.discard(task.task_id)
        return False

    def _give_pool(self, first: set[str]) -> None:
        """Give this pool to tasks that run on one and name none; those of *first* get an edge from the setup."""
        for task in self._work():
            if not _wants_pool(task):
                continue
            if hasattr(task, "partial_kwargs"):
                task.partial_kwargs["qarnot_pool"] = self.pool
            else:
                # Not by setattr, which makes the edge.
                object.__setattr__(task, "qarnot_pool", self.pool)
                if hasattr(task, "on_pool"):
                    task.on_pool = True
                    task.take_limits(self.open_pool)
            if task.task_id in first:
                XComArg.apply_upstream_relationship(task, self.pool)

    def _wire(self, first: set[str]) -> None:
        """Setup before all work, teardown after all of it, and the edges the group was given before it had tasks."""
        assert self.open_pool is not None
        assert self.close_pool is not None
        work = list(self._work())
        ids = {task.task_id for task in work}
        last = [task for task in work if not task.downstream_task_ids & ids]
        ends = [
            task
            for task in work
            if not task.is_teardown
            and all(self._dag.get_task(one).is_teardown for one in task.downstream_task_ids & ids)
        ]
        for task in work:
            if task.task_id in first and not task.upstream_task_ids & ids:
                _edge(self.open_pool, task)
        for task in last:
            _edge(task, self.close_pool)
        for before in self._neighbours(self.upstream_task_ids - ids, self.upstream_group_ids, "get_leaves"):
            _edge(before, self.open_pool)
        for after in self._neighbours(self.downstream_task_ids - ids, self.downstream_group_ids, "get_roots"):
            for task in ends or [self.open_pool]:
                _edge(task, after)

    def _refuse_unawaited(self) -> None:
        """Refuse tasks whose Qarnot tasks the teardown would cancel, as no task of the group waits for their end.

        :raises QarnotInvalidSpecError: names the task, and what to write instead.
        """
        ids = {task.task_id for task in self._work()}
        sensors = {task.task_id for task in self._work() if issubclass(_class_of(task), QarnotTaskSensor)}
        for task in self._work():
            if not self._runs_here(task) or _waits(task):
                continue
            if not sensors & ids & task.get_flat_relative_ids(upstream=False):
                raise QarnotInvalidSpecError(
                    f"{task.task_id} in QarnotPoolGroup {self.group_id!r} does not wait for its Qarnot task, which "
                    "the teardown would cancel, got wait_for_completion=False",
                    field="wait_for_completion",
                    remedy="Remove it: a deferred wait takes no worker slot. Or put a QarnotTaskSensor for the Qarnot "
                    f"task after {task.task_id} in the group. A Qarnot task that outlives the group is submitted "
                    "outside of it.",
                )

    def _runs_here(self, task: Any) -> bool:
        """Return whether *task* submits Qarnot tasks to the pool of this group."""
        if getattr(_class_of(task), "kind", None) != "task" or issubclass(_class_of(task), QarnotTaskSensor):
            return False
        pool = task.partial_kwargs.get("qarnot_pool") if task.is_mapped else task.qarnot_pool
        return any(maker is self.open_pool for maker, _ in XComArg.iter_xcom_references(pool))

    def _neighbours(self, tasks: set[str], groups: set[str | None], ends: str) -> Iterator[Any]:
        """The tasks that stand next to this group, whether it was linked with them or with a group of theirs."""
        for task in tasks:
            yield self._dag.get_task(task)
        known = self._dag.task_group.get_task_group_dict()
        for group in groups:
            # A group that has no tasks yet makes these edges itself, if it is one of ours.
            yield from getattr(known[str(group)], ends)()


def _class_of(task: Any) -> type:
    """Return the class of the operator that a task, mapped or not, runs."""
    found: type = task.operator_class if task.is_mapped else type(task)
    return found


def _waits(task: Any) -> bool:
    """Return whether a task that submits Qarnot tasks waits for them, as do all copies of a mapped one."""
    if not task.is_mapped:
        return bool(task.wait_for_completion)
    expanded = getattr(task.expand_input, "value", {})
    rows = expanded if isinstance(expanded, (list, tuple)) else []
    values = [task.partial_kwargs.get("wait_for_completion", True)]
    values += [row.get("wait_for_completion", True) for row in rows if isinstance(row, dict)]
    if isinstance(expanded, dict) and isinstance(flags := expanded.get("wait_for_completion"), (list, tuple)):
        values += flags
    return all(values)


def _wants_pool(task: Any) -> bool:
    """Whether *task* runs on a pool and names none."""
    if hasattr(task, "partial_kwargs"):
        takes = "qarnot_pool" in getattr(task.operator_class, "template_fields", ())
        return takes and task.partial_kwargs.get("qarnot_pool") is None and not _expands(task, "qarnot_pool")
    return "qarnot_pool" in task.template_fields and task.qarnot_pool is None


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
            f"{name} of {task.task_id} is in some rows of expand_kwargs only, got {naming} of {len(rows)} rows",
            field=name,
            remedy="Name it in all of them, or in none to take the group's.",
        )
    return naming > 0


def _warn_if_mapped(task: Any) -> None:
    """Warn of the commands of a mapped task, which are in no constructor when the DAG is parsed."""
    if hasattr(task, "partial_kwargs") and issubclass(task.operator_class, QarnotRunTaskOperator):
        mapped = getattr(task.expand_input, "value", None)
        rows = mapped.get("command") if isinstance(mapped, dict) else mapped
        listed = rows if isinstance(rows, (list, tuple)) else []
        warn_of_shell_characters(task.task_id, find_commands(task.partial_kwargs, *listed))


def _edge(upstream: Any, downstream: Any) -> None:
    if downstream.task_id not in upstream.downstream_task_ids:
        upstream >> downstream
