"""A task group that owns a pool: setup, work, teardown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from airflow.sdk import TaskGroup, TriggerRule, XComArg

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.api.fields import short_repr
from airflow_qarnot_pool.api.states import is_terminal
from airflow_qarnot_pool.operators.bases.cost_limits import accept_limits
from airflow_qarnot_pool.operators.close_pool import check_linger
from airflow_qarnot_pool.operators.pool import QarnotClosePoolOperator, QarnotCreatePoolOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator
from airflow_qarnot_pool.ownership.identity import DEFAULT_KEEP_WARM
from airflow_qarnot_pool.parameters.places import naming, place, place_in_dag
from airflow_qarnot_pool.parameters.shell import find_commands, warn_of_shell_characters
from airflow_qarnot_pool.parameters.templating import is_templated
from airflow_qarnot_pool.parameters.unknown import refuse_unknown
from airflow_qarnot_pool.parameters.validation import Duration, scales
from airflow_qarnot_pool.sensors.task import QarnotTaskSensor
from airflow_qarnot_pool.waiting.conditions import Condition

if TYPE_CHECKING:
    from types import TracebackType

    from airflow.sdk import DAG

SETUP = "open_pool"
TEARDOWN = "close_pool"
#: Parameters of Airflow's TaskGroup, which do not concern the pool.
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
#: Start of the errors of a group.
_NOUN = "QarnotPoolGroup"


class QarnotPoolGroup(TaskGroup):
    """Task group that shares one warm pool, which is opened before its first task and closed after its last one.

    .. code-block:: python

        with QarnotPoolGroup("render", instance_count=4, slots_per_node=2) as group:
            frames = QarnotRunTaskOperator.partial(task_id="frame").expand(command=[...])
            frames >> QarnotRunTaskOperator(task_id="merge", command="...")

    Tasks inside that run on a pool use this one unless they name another. The group creates a setup task
    (``open_pool``) and a teardown task (``close_pool``). When the ``with`` ends it adds all edges between them and the
    work, including mapped tasks, nested groups and tasks with upstreams outside, which Airflow's own ``with teardown``
    omits. ``before >> group`` and ``group >> after`` work as usual. Tasks after the group wait for the work, not for
    the pool to close.

    Idle nodes shut down after ``keep_warm`` if Airflow never gets to close the pool, unless ``pool_spec`` has
    ``elastic`` or ``scaling``.

    In a mapped ``@task_group`` each copy of this group has its own pool, and with ``shared`` all have one. Airflow
    cannot expand a task in there. Expand inside this group, or map over the commands with
    :class:`QarnotRunTasksOperator`.

    Airflow accepts only tasks with the trigger rule ``all_success`` right after a setup. A task with another rule waits
    for the pool through its upstreams in the group, as ``cleanup`` does in ``frames >> cleanup`` with ``all_done``. A
    task without any upstream gets ``all_success``, and runs when the pool is open. To clean up on the pool and still
    fail the DAG run when the work fails, make the clean-up a teardown: ``frames >> cleanup.as_teardown()``.

    A task that does not wait for its Qarnot task (``wait_for_completion=False``) is refused unless a
    :class:`~airflow_qarnot_pool.sensors.task.QarnotTaskSensor` in the group waits for the end of that Qarnot task,
    because the teardown would cancel it. Several Qarnot tasks, such as those of a mapped task, need a mapped sensor.

    With ``shared`` all groups, DAGs and runs of the namespace that give the same name use one pool. The last one closes
    it. See ``docs/share-a-pool.md``.

    :param group_id: id of the group, and prefix of the ids of its tasks.
    :param shared: name of a shared pool. It is created from the parameters below, which must be the same for all.
    :param keep_warm: how long a node may be idle before it shuts down, as a timedelta or seconds. None: the pool keeps
        its size until it is closed, which is refused for a shared pool. Its first task starts with its first slot,
        unless ``ready_when`` is given.
    :param setup_retries: retries of ``open_pool`` and ``close_pool``, unless ``default_args`` has ``retries``.
    :param report_cost: have ``close_pool`` store the cost of the pool and the DAG run as XCom ``qarnot_cost``.
    :param linger: keep a shared pool for the next scheduled run, as ``linger`` of
        :class:`~airflow_qarnot_pool.operators.pool.QarnotClosePoolOperator`.
    :param default_args: default arguments of every task inside.
    :param arguments: parameters of :class:`~airflow.sdk.TaskGroup` (``tooltip``, ``prefix_group_id``, ...), and of
        :class:`~airflow_qarnot_pool.operators.pool.QarnotCreatePoolOperator` (``instance_count``,
        ``slots_per_node``, ``pool_spec``, ``ready_when``, ``qarnot_conn_id``, ...).
    """

    def __init__(
        self,
        group_id: str,
        *,
        shared: str | None = None,
        keep_warm: Duration = DEFAULT_KEEP_WARM,
        setup_retries: int = 3,
        report_cost: bool = False,
        linger: float | None = None,
        default_args: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        group_arguments = {name: arguments.pop(name) for name in _GROUP_PARAMETERS & arguments.keys()}
        with naming(lambda: place_in_dag(_NOUN, group_id, group_arguments)):
            _check(arguments, shared, keep_warm, setup_retries)
            check_linger(linger, shared)
        super().__init__(group_id=group_id, default_args=default_args or {}, **group_arguments)  # type: ignore[arg-type]
        if not scales(arguments.get("pool_spec")):
            arguments["keep_warm"] = keep_warm
        elif keep_warm is not None and keep_warm is not DEFAULT_KEEP_WARM:
            arguments["keep_warm"] = keep_warm  # which the operator refuses beside scaling
        if shared is not None:
            arguments["shared"] = shared
        self._pool_arguments = arguments
        self._setup_retries = setup_retries
        self._report_cost = report_cost
        self._linger = linger
        self.open_pool: QarnotCreatePoolOperator | None = None
        self.close_pool: QarnotClosePoolOperator | None = None

    @property
    def pool(self) -> XComArg:
        """Return the pool's uuid, for tasks outside the group or for parameters that need it."""
        if self.open_pool is None:
            raise QarnotInvalidSpecError(
                f"The pool of QarnotPoolGroup {self.group_id!r} exists inside its `with` only",
                remedy="Use it after `with group:`.",
            )
        return XComArg(self.open_pool)

    def __enter__(self) -> QarnotPoolGroup:
        super().__enter__()
        try:
            self._make_setup_and_teardown()
        except BaseException as error:
            # Python calls no __exit__ after an __enter__ that failed, and this group must not stay the current one.
            super().__exit__(type(error), error, error.__traceback__)  # type: ignore[no-untyped-call]
            raise
        return self

    def _make_setup_and_teardown(self) -> None:
        both: dict[str, Any] = {"task_group": self}
        # default_args take precedence over the defaults of this group.
        defaults = {**self._dag.default_args, **self.default_args}
        if "retries" not in defaults:
            both["retries"] = self._setup_retries
        opens = {**both, **self._pool_arguments}
        if opens.get("keep_warm") is DEFAULT_KEEP_WARM and (
            "keep_warm" in defaults or scales(opens.get("pool_spec", defaults.get("pool_spec")))
        ):
            del opens["keep_warm"]
        if "ready_when" not in defaults and _boots_all_nodes({**defaults, **opens}):
            opens.setdefault("ready_when", 1)
        self.open_pool = QarnotCreatePoolOperator(task_id=SETUP, **opens).as_setup()
        if self.open_pool.shared is None:
            self.open_pool.default_name = f"{self._dag.dag_id}.{self.group_id}"
        closes: dict[str, Any] = {
            name: opens[name] for name in ("qarnot_conn_id", "deferrable", "shared") if name in opens
        }
        if self._linger is not None:
            closes["linger"] = self._linger
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
            with naming(lambda: place(_NOUN, str(self.group_id), self._dag)):
                if kind is None:
                    self._finish()
                elif isinstance(error, NotImplementedError) and self._is_mapped:
                    raise QarnotInvalidSpecError(
                        "This group is inside a mapped @task_group, where Airflow can expand no task",
                        remedy="Expand the group or the task, not both. QarnotRunTasksOperator runs many commands in "
                        "one task.",
                    ) from error
        finally:
            super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]

    def _finish(self) -> None:
        """Give the tasks inside their pool and their edges."""
        ids = {task.task_id for task in self._work()}
        first = {task.task_id for task in self._work() if self._follows_setup(task, ids)}
        self._give_pool(first)
        for task in self._work():
            _warn_if_mapped(task)
        self._wire(first)
        self._refuse_unawaited()

    @property
    def _dag(self) -> DAG:
        return self.dag

    def _work(self) -> Iterator[Any]:
        """Yield the tasks inside, including those of nested groups, without the setup and the teardown."""
        for task in self.iter_tasks():
            if task is not self.open_pool and task is not self.close_pool:
                yield task

    @property
    def _is_mapped(self) -> bool:
        return next(self.iter_mapped_task_groups(), None) is not None

    def _follows_setup(self, task: Any, ids: set[str]) -> bool:
        """Return whether *task* may have an edge from the setup, and remove one that its parameters created if not.

        :raises QarnotInvalidSpecError: with its trigger rule and its upstreams it cannot wait for the pool.
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
        if not before & ids:
            raise QarnotInvalidSpecError(
                f"trigger_rule of {task.task_id} must be 'all_success' because all its upstreams "
                f"({', '.join(sorted(before))}) are outside the group, got {rule!r}",
                field="trigger_rule",
                remedy=f"Put a task with trigger_rule={rule!r}, such as an EmptyOperator, after these upstreams and "
                f"outside the group, and {task.task_id} with trigger_rule='all_success' after that task.",
            )
        linked = self.open_pool.task_id in task.upstream_task_ids
        if rule == "always" and (linked or _wants_pool(task)):
            raise QarnotInvalidSpecError(
                f"trigger_rule of {task.task_id} does not wait for the pool that the task runs on, got 'always'",
                field="trigger_rule",
                remedy="Use trigger_rule='all_done'. The task then runs whether or not its upstreams succeed.",
            )
        if linked:
            task.upstream_task_ids.discard(self.open_pool.task_id)
            self.open_pool.downstream_task_ids.discard(task.task_id)
        return False

    def _give_pool(self, first: set[str]) -> None:
        """Set this pool on tasks that run on a pool and name none. Those of *first* get an edge from the setup."""
        for task in self._work():
            if not _wants_pool(task):
                continue
            if hasattr(task, "partial_kwargs"):
                task.partial_kwargs["qarnot_pool"] = self.pool
            else:
                # Not with setattr, which would add the edge.
                object.__setattr__(task, "qarnot_pool", self.pool)
                if hasattr(task, "on_pool"):
                    task.on_pool = True
                    accept_limits(task, self.open_pool)
            if task.task_id in first:
                XComArg.apply_upstream_relationship(task, self.pool)

    def _wire(self, first: set[str]) -> None:
        """Add the edges between the setup, the work, the teardown and the neighbours of the group."""
        assert self.open_pool is not None
        assert self.close_pool is not None
        work = list(self._work())
        ids = {task.task_id for task in work}
        for task in work:
            if task.task_id in first and not task.upstream_task_ids & ids:
                _edge(self.open_pool, task)
            if not task.downstream_task_ids & ids:
                _edge(task, self.close_pool)
        self._wire_neighbours(ids, [task for task in work if self._is_end(task, ids)] or [self.open_pool])

    def _wire_neighbours(self, ids: set[str], ends: list[Any]) -> None:
        """Add the edges from upstream neighbours to the setup, and from *ends* to downstream ones."""
        assert self.open_pool is not None
        for before in self._neighbours(self.upstream_task_ids - ids, self.upstream_group_ids, "get_leaves"):
            _edge(before, self.open_pool)
        for after in self._neighbours(self.downstream_task_ids - ids, self.downstream_group_ids, "get_roots"):
            for task in ends:
                _edge(task, after)

    def _is_end(self, task: Any, ids: set[str]) -> bool:
        """Return whether no work but teardowns follows *task* among the tasks *ids*."""
        followers = task.downstream_task_ids & ids
        return not task.is_teardown and all(
            self._dag.get_task(follower).is_teardown for follower in followers
        )

    def _refuse_unawaited(self) -> None:
        """Refuse tasks whose Qarnot tasks the teardown would cancel, because no task of the group waits for their end.

        :raises QarnotInvalidSpecError: there is such a task. The message names it.
        """
        sensors = [task for task in self._work() if issubclass(_class_of(task), QarnotTaskSensor)]
        for task in self._work():
            unawaited = (
                [flag for flag in _wait_flags(task) if flag is not True] if self._runs_here(task) else []
            )
            if unawaited and not any(_awaits_end(sensor, task) for sensor in sensors):
                raise QarnotInvalidSpecError(
                    f"{task.task_id} does not wait for its Qarnot task, which the teardown would cancel, got "
                    f"wait_for_completion={short_repr(unawaited[0])}",
                    field="wait_for_completion",
                    remedy="Remove it, because a deferred wait takes no worker slot. Or put a QarnotTaskSensor for the "
                    f"end of each Qarnot task after {task.task_id} in the group. Submit a Qarnot task that outlives "
                    "the group outside of it.",
                )

    def _runs_here(self, task: Any) -> bool:
        """Return whether *task* submits Qarnot tasks to the pool of this group."""
        if getattr(_class_of(task), "kind", None) != "task" or issubclass(_class_of(task), QarnotTaskSensor):
            return False
        pool = task.partial_kwargs.get("qarnot_pool") if task.is_mapped else task.qarnot_pool
        if isinstance(pool, str):
            return (
                self.open_pool is not None and self.open_pool.task_id in pool
            )  # a template that pulls the XCom
        return any(maker is self.open_pool for maker, _ in XComArg.iter_xcom_references(pool))

    def _neighbours(self, tasks: set[str], groups: set[str | None], ends: str) -> Iterator[Any]:
        """Yield the tasks next to this group, which was linked with them or with their group."""
        for task in tasks:
            yield self._dag.get_task(task)
        task_groups = self._dag.task_group.get_task_group_dict()
        for group in groups:
            # A pool group that has no tasks yet adds these edges itself.
            yield from getattr(task_groups[str(group)], ends)()


def _check(arguments: dict[str, Any], shared: str | None, keep_warm: Duration, setup_retries: int) -> None:
    """Refuse wrong arguments of a group.

    :raises QarnotInvalidSpecError: names the argument.
    """
    for name in ("task_id", "task_group", "wait_for_completion"):
        if name in arguments:
            raise QarnotInvalidSpecError(
                f"{name} is not a parameter of QarnotPoolGroup, which creates its own setup task",
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
            "linger",
            "default_args",
        },
    )
    if type(setup_retries) is not int or setup_retries < 0:
        raise QarnotInvalidSpecError(
            f"setup_retries must be a whole number, got {setup_retries!r}",
            field="setup_retries",
            remedy="Give a number of 0 or more.",
        )
    if keep_warm is None and shared is not None and not scales(arguments.get("pool_spec")):
        raise QarnotInvalidSpecError(
            "keep_warm of a shared pool cannot be switched off, because the pool may outlive the DAG run that "
            "opened it, got None",
            field="keep_warm",
            remedy="Give a duration, or a pool_spec with scaling or elastic.",
        )


def _boots_all_nodes(arguments: dict[str, Any]) -> bool:
    """Return whether the nodes of a pool with these *arguments* boot though nothing is queued on it.

    A managed pool boots them for its warm-up, which occupies the slots that are ready. Its end could stop the boot of
    the other nodes.
    """
    pool_spec = arguments.get("pool_spec")
    is_template = isinstance(pool_spec, str)
    return arguments.get("keep_warm") is None and not is_template and not scales(pool_spec)


def _class_of(task: Any) -> type:
    """Return the class of the operator that a task, mapped or not, runs."""
    operator_class: type = task.operator_class if task.is_mapped else type(task)
    return operator_class


def _wait_flags(task: Any) -> list[Any]:
    """Return the values of ``wait_for_completion`` of *task*, of which a mapped task may have several."""
    if not task.is_mapped:
        return [task.wait_for_completion]
    expanded = getattr(task.expand_input, "value", {})
    rows = expanded if isinstance(expanded, (list, tuple)) else []
    flags = [task.partial_kwargs.get("wait_for_completion", True)]
    flags += [row.get("wait_for_completion", True) for row in rows if isinstance(row, dict)]
    if isinstance(expanded, dict) and "wait_for_completion" in expanded:
        mapped = expanded["wait_for_completion"]
        flags += mapped if isinstance(mapped, (list, tuple)) else [mapped]
    return flags


def _awaits_end(sensor: Any, task: Any) -> bool:
    """Return whether *sensor* waits for the end of all Qarnot tasks of *task*, as far as a parsed DAG shows it."""
    after = task.get_flat_relative_ids(upstream=False)
    is_one = not task.is_mapped and not issubclass(_class_of(task), QarnotRunTasksOperator)
    if sensor.task_id not in after or not (is_one or sensor.is_mapped):
        return False
    if not _are_terminal(_targets_of(sensor)):
        return False
    ref = _awaited_by(sensor)
    makers = [maker for maker, _ in XComArg.iter_xcom_references(ref)]
    # A task in between may pick the uuids from the result of *task*.
    return any(
        maker is task or (maker.task_id in after and getattr(_class_of(maker), "kind", None) != "task")
        for maker in makers
    ) or (not makers and is_templated(ref))


def _targets_of(sensor: Any) -> Any:
    if sensor.is_mapped:
        return sensor.partial_kwargs.get("target_states", "Success")
    return sensor.target_states


def _awaited_by(sensor: Any) -> Any:
    if sensor.is_mapped:
        return [sensor.partial_kwargs.get("qarnot_task"), getattr(sensor.expand_input, "value", None)]
    return sensor.qarnot_task


def _are_terminal(targets: Any) -> bool:
    """Return whether all target states of a sensor end a Qarnot task. Those that are not known yet count as such."""
    if is_templated(targets):
        return True
    names = (targets,) if isinstance(targets, str) else tuple(targets)
    return all(map(is_terminal, Condition(kind="task", targets=names).targets))


def _wants_pool(task: Any) -> bool:
    """Return whether *task* runs on a pool and names none."""
    if hasattr(task, "partial_kwargs"):
        takes = "qarnot_pool" in getattr(task.operator_class, "template_fields", ())
        return takes and task.partial_kwargs.get("qarnot_pool") is None and not _expands(task, "qarnot_pool")
    return "qarnot_pool" in task.template_fields and task.qarnot_pool is None


def _expands(task: Any, name: str) -> bool:
    """Return whether a mapped task maps over *name*. Rows of ``expand_kwargs`` from another task are not known yet.

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
            remedy="Name it in all of them, or in none to use the group's.",
        )
    return naming > 0


def _warn_if_mapped(task: Any) -> None:
    """Warn of the commands of a mapped task, whose constructor does not see them when the DAG is parsed."""
    if hasattr(task, "partial_kwargs") and issubclass(task.operator_class, QarnotRunTaskOperator):
        mapped = getattr(task.expand_input, "value", None)
        rows = mapped.get("command") if isinstance(mapped, dict) else mapped
        listed = rows if isinstance(rows, (list, tuple)) else []
        warn_of_shell_characters(task.task_id, find_commands(task.partial_kwargs, *listed))


def _edge(upstream: Any, downstream: Any) -> None:
    if downstream.task_id not in upstream.downstream_task_ids:
        upstream >> downstream
