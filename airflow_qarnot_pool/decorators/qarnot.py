"""``@task.qarnot``: a Python function that runs on a node."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, Protocol, TypeVar, overload

from airflow.sdk.bases.decorator import DecoratedOperator, task_decorator_factory

from airflow_qarnot_pool.api.errors import QarnotError, QarnotInvalidSpecError
from airflow_qarnot_pool.decorators import node, payload
from airflow_qarnot_pool.decorators.function import FunctionSource
from airflow_qarnot_pool.exceptions import QarnotTaskFailedError
from airflow_qarnot_pool.logs.cursor import LogCursor
from airflow_qarnot_pool.logs.failure_report import is_node_loss
from airflow_qarnot_pool.logs.writer import fetch, retry_broken_read
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.ownership.identity import TaskInstanceIdentity
from airflow_qarnot_pool.parameters.references import NOTSET
from airflow_qarnot_pool.parameters.templating import is_templated
from airflow_qarnot_pool.parameters.unknown import refuse_unknown
from airflow_qarnot_pool.parameters.validation import Duration, as_duration, check_durations
from airflow_qarnot_pool.version_compat import context_keys

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_qarnot_pool.api.models import Task
    from airflow_qarnot_pool.api.specs import TaskSpec
    from airflow_qarnot_pool.decorators.bucket import PayloadBucket

P = ParamSpec("P")
R = TypeVar("R")

DEFAULT_IMAGE = "python:3.12-slim"
#: Parameters of QarnotRunTaskOperator that have no meaning here, and why.
_REJECTED = {
    "command": "The function is what runs.",
    "wait_for_completion": "The function's result is the task's: let nothing depend on it, to go on at once.",
}
_ONE_INSTANCE = (
    "@task.qarnot runs one instance, as one call has one result. Use .expand() for many calls, or "
    "QarnotRunTaskOperator for one command in many instances."
)


class _QarnotDecoratedOperator(DecoratedOperator, QarnotRunTaskOperator):
    """Run a Python function on a node; what it returns is the XCom. See :func:`qarnot_task`."""

    custom_operator_name = "@task.qarnot"
    template_fields: tuple[str, ...] = (
        *(one for one in QarnotRunTaskOperator.template_fields if one != "command"),
        "op_args",
        "op_kwargs",
        "requirements",
        "payload_bucket",
        "timeout",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {
        **DecoratedOperator.template_fields_renderers,
        **{
            name: how
            for name, how in QarnotRunTaskOperator.template_fields_renderers.items()
            if name != "command"
        },
    }
    rendered_by_airflow: ClassVar[tuple[str, ...]] = ("op_args", "op_kwargs")
    shallow_copy_attrs: Sequence[str] = ("python_callable",)
    # An async function is awaited on the node; the wait for it is the operator's.
    is_async = False

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        image: str | None = DEFAULT_IMAGE,
        requirements: Sequence[str] | str | None = None,
        timeout: Duration = None,
        serializer: payload.Serializer = "json",
        payload_bucket: str | None = None,
        **kwargs: Any,
    ) -> None:
        _refuse_foreign(kwargs)
        self._function = FunctionSource.of(python_callable)
        if image == DEFAULT_IMAGE and _image_elsewhere(kwargs):
            image = None
        kwargs["command"] = payload.COMMAND
        kwargs["wait_for_completion"] = True
        super().__init__(
            python_callable=python_callable, op_args=op_args, op_kwargs=op_kwargs, image=image, **kwargs
        )
        self.requirements = requirements
        self.timeout = timeout
        self.serializer = serializer
        self.payload_bucket = payload_bucket
        self._check(python_callable)
        self._identity: TaskInstanceIdentity | None = None
        self._reports: dict[str, payload.ReportFinder] = {}

    def _check(self, function: Callable[..., Any]) -> None:
        """What only this task's parameters can be wrong about, when the DAG is parsed."""
        name = self._function.name
        if self.serializer not in ("json", "pickle"):
            raise QarnotInvalidSpecError(
                f"serializer is not known, got {self.serializer!r}",
                field="serializer",
                remedy="Give 'json' or 'pickle'.",
            )
        check_durations(timeout=self.timeout)
        if not is_templated(self.requirements):
            _requirements(self.requirements)
        if self.payload_bucket is not None and not is_templated(self.payload_bucket):
            _payload_bucket(self.payload_bucket)
        args, kwargs = self._arguments()
        unfilled = [one for one in _context_parameters(function) if one not in kwargs]
        if unfilled := [one for one in unfilled if one not in _by_position(function, args)]:
            one = unfilled[0]
            raise QarnotInvalidSpecError(
                f"@task.qarnot: Airflow's {one!r} does not reach the node, where there is no Airflow. Pass what "
                f"{name}() needs of it as an argument, such as day='{{{{ dag_run.run_after | ds }}}}'",
                field="op_kwargs",
            )
        known = {key: value for key, value in kwargs.items() if not is_templated(value)}
        known |= {f"number {n}": value for n, value in enumerate(args, 1) if not is_templated(value)}
        payload.arguments_text((), known, self.serializer, name)

    def _arguments(self) -> tuple[Sequence[Any], Mapping[str, Any]]:
        return tuple(self.op_args), dict(self.op_kwargs)

    # --- sending it

    def execute(self, context: Context) -> Any:
        self._live(context)
        return super().execute(context)

    def execute_complete(self, context: Context, event: Mapping[str, Any]) -> Any:
        """Return what the function returned, or raise what became of it."""
        self._live(context)
        return super().execute_complete(context, event)

    def _live(self, context: Context) -> None:
        self._identity = TaskInstanceIdentity.of(context, self.hook.settings.namespace)

    @property
    def _lineage(self) -> str:
        assert self._identity is not None
        return self._identity.lineage

    @property
    def _nonce(self) -> str:
        """The same in every try of this life, which may take up the Qarnot task of the one before."""
        return payload.digest("result", self._lineage)

    @property
    def _bucket(self) -> PayloadBucket | None:
        from airflow_qarnot_pool.decorators.bucket import PayloadBucket

        if not self.payload_bucket:
            return None
        name = _payload_bucket(self.payload_bucket)
        return PayloadBucket(self.hook.settings, name, f"airflow-qarnot/{self._lineage}/")

    def _given_now(self) -> dict[str, Any]:
        """The parameters, and the call. It is in no attribute: Airflow shows those in its UI."""
        values = super()._given_now()
        bucket = self._bucket
        result_file = None
        if bucket is not None and not values.get("result_bucket"):
            result_file = f"result-{self._nonce}"
            values |= {
                "result_bucket": bucket.name,
                "results_prefix": bucket.prefix,
                "results_whitelist": result_file,
            }
        args, kwargs = self._arguments()
        packed = payload.pack(
            self._function,
            payload.arguments_text(args, kwargs, self.serializer, self._function.name),
            nonce=self._nonce,
            serializer=self.serializer,
            requirements=_requirements(self.requirements),
            timeout=as_duration("timeout", self.timeout),
            result_file=result_file,
        )
        if len(packed) <= payload.MAX_BYTES:
            constants = payload.constants(packed)
        elif bucket is None:
            raise QarnotInvalidSpecError(
                f"@task.qarnot: {self._function.name}() and its arguments are {len(packed):,} bytes when "
                f"compressed, and {payload.MAX_BYTES:,} fit in the constants of a Qarnot task. Give "
                "payload_bucket='...' to send them by bucket, or put the data in a resource bucket "
                "(resource_buckets=['...']) and pass the name of the file",
                field="op_kwargs",
            )
        else:
            from airflow_qarnot_pool.api.specs import ResourceBucket

            name = bucket.upload(packed)
            mine = ResourceBucket(bucket=bucket.name, prefix=bucket.prefix + name, strip_prefix=bucket.prefix)
            values["resource_buckets"] = [*_listed(values.get("resource_buckets")), mine]
            constants = {node.PREFIX + "FILE": name}
        values["constants"] = {**(values.get("constants") or {}), **constants}
        return values

    def _spec(self, values: Mapping[str, Any], pool: str | None) -> TaskSpec:
        spec = super()._spec(values, pool)
        if spec.instance_ids() != frozenset({0}):
            field = "ranges" if spec.ranges else "instance_count"
            raise QarnotInvalidSpecError(
                f"{field} is not that of one instance, got {getattr(spec, field)!r}",
                field=field,
                remedy=_ONE_INSTANCE,
            )
        return spec

    # --- bringing its result back

    @property
    def _is_recordable(self) -> bool:
        return False  # what the function returned is in its output, or in a bucket

    def _output(self, task: Task) -> payload.ReportFinder:
        """Return what is known of the report in standard output, all of which is read."""
        finder = self._reports.get(task.uuid)
        if finder is None or not finder.complete:
            retry_broken_read(lambda: deque(self._kept(task.uuid, "stdout"), maxlen=0))
        return self._reports[task.uuid]

    def _nothing_written(self, uuid: str) -> LogCursor:
        # What the function returned is not for the log.
        return LogCursor(uuid=uuid, instance=0, hidden=f"{node.MARK} {self._nonce} ")

    def _kept(self, uuid: str, stream: str) -> Iterable[str]:
        pieces = fetch(self.client, uuid, stream, 0)
        if stream != "stdout":
            return pieces
        finder = self._reports[uuid] = payload.ReportFinder(self._nonce)
        return finder.watch(pieces)

    def _report(self, task: Task) -> str:
        """Why there is no result: what the function raised on the node, or what became of the Qarnot task."""
        try:
            report = self._output(task).report or {}
        except QarnotError:
            report = {}
        error = report.get("error")
        if not error or is_node_loss(task):
            return super()._report(task)
        link = self.hook.settings.console_link("task", task.uuid)
        lines = [error["summary"], error["detail"].rstrip(), f"This was Qarnot task {task.uuid}, see {link}"]
        return "\n".join(line for line in lines if line)

    def _result(self, task: Task) -> Any:
        finder = self._output(task)
        report = finder.report
        if report is None and finder.problem:
            raise QarnotTaskFailedError(
                f"Qarnot task {task.uuid} ended in {task.state}, but the result of {self._function.name}() cannot "
                f"be read from its output: {finder.problem}. Clear the task to run it again",
                kind="task",
                ref=task.uuid,
            )
        if report is None:
            raise QarnotTaskFailedError(
                f"Qarnot task {task.uuid} ended in {task.state}, but the result of {self._function.name}() is "
                "not in its output. Qarnot keeps the end of an output only: what the function left running may "
                "have gone on writing. Or the image's entrypoint does not run the command. Clear the task to "
                "run it again",
                kind="task",
                ref=task.uuid,
            )
        if "error" in report:
            raise QarnotTaskFailedError(self._report(task), kind="task", ref=task.uuid)
        text = report.get("value")
        if text is None:
            bucket = self._bucket
            if bucket is None:
                raise QarnotInvalidSpecError(
                    f"The result of {self._function.name}() is in the bucket that payload_bucket named when it "
                    "was submitted; set it again",
                    field="payload_bucket",
                )
            text = bucket.download(report["file"], report["sha256"]).decode()
        return payload.value_of(text, self.serializer, self._function.name)


def _refuse_foreign(parameters: Mapping[str, Any]) -> None:
    """Refuse parameters of QarnotRunTaskOperator that contradict a function call."""
    for name, why in _REJECTED.items():
        if parameters.get(name) not in (None, True):
            raise QarnotInvalidSpecError(
                f"{name} is no parameter of @task.qarnot, got {parameters[name]!r}", field=name, remedy=why
            )
    for name, fine in (("instance_count", (None, 1, "1")), ("ranges", (None, "0"))):
        value = parameters.get(name)
        if value not in fine and not is_templated(value):
            raise QarnotInvalidSpecError(
                f"{name} is not that of one instance, got {value!r}", field=name, remedy=_ONE_INSTANCE
            )


def _image_elsewhere(parameters: Mapping[str, Any]) -> bool:
    """Whether the image is named by a constant or in ``task_spec``: then the default stands back."""
    names: set[str] = set()
    for parameter in ("constants", "task_spec"):
        value = parameters.get(parameter)
        names |= set(value) if isinstance(value, Mapping) else set()
    return bool(names & {"DOCKER_REPO", "DOCKER_TAG", "DOCKER_SRV", "image"})


def _requirements(value: Any) -> list[str]:
    if value is None or (isinstance(value, (list, tuple)) and all(isinstance(one, str) for one in value)):
        return [one.strip() for one in value or () if one.strip()]
    if isinstance(value, str):
        return value.split()
    raise QarnotInvalidSpecError(
        f"requirements is not a list of what pip installs, got {value!r}",
        field="requirements",
        remedy="Give a list such as ['numpy==2.1'].",
    )


def _payload_bucket(value: Any) -> str:
    from airflow_qarnot_pool.api.buckets import check_bucket

    return check_bucket(value, "payload_bucket", "Write {bucket!r}; the task chooses the path in it.")


def _listed(buckets: Any) -> list[Any]:
    return [buckets] if isinstance(buckets, (str, Mapping)) else list(buckets or ())


def _context_parameters(function: Callable[..., Any]) -> list[str]:
    """Parameters that Airflow fills in for a function that runs on a worker."""
    known = context_keys()
    return [name for name in inspect.signature(function).parameters if name in known]


def _by_position(function: Callable[..., Any], args: Sequence[Any]) -> set[str]:
    return set(list(inspect.signature(function).parameters)[: len(args)])


class QarnotTask(Protocol[P, R]):
    """A decorated function, for type checkers.

    Calls take and give ``Any``: at that point arguments and results may be XComs, which only Airflow's own mypy
    plugin could tell from values (it knows ``@task.qarnot``'s type, not this one).
    """

    function: Callable[P, R]

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    def partial(self, **kwargs: Any) -> QarnotTask[P, R]: ...

    def expand(self, **kwargs: Any) -> Any: ...

    def expand_kwargs(self, kwargs: Any, *, strict: bool = True) -> Any: ...

    def override(self, **kwargs: Any) -> QarnotTask[P, R]: ...


@overload
def qarnot_task(python_callable: Callable[P, R]) -> QarnotTask[P, R]: ...


@overload
def qarnot_task(
    *,
    multiple_outputs: bool | None = None,
    qarnot_pool: Any = NOTSET,
    image: str | None = DEFAULT_IMAGE,
    requirements: Sequence[str] | str | None = None,
    timeout: Duration = None,
    serializer: payload.Serializer = "json",
    payload_bucket: str | None = None,
    **kwargs: Any,
) -> Callable[[Callable[P, R]], QarnotTask[P, R]]: ...


def qarnot_task(
    python_callable: Callable[..., Any] | None = None,
    *,
    multiple_outputs: bool | None = None,
    **kwargs: Any,
) -> Any:
    """Run a Python function on a node, as ``@task.qarnot`` or ``@qarnot_task``.

    .. code-block:: python

        @task.qarnot(requirements=["numpy==2.1"], timeout=timedelta(minutes=10))
        def norm(values: list[float]) -> float:
            import numpy as np

            return float(np.linalg.norm(values))

    The function's source and its arguments go to the node, where there is no Airflow and nothing of the DAG file:
    imports stand inside the function, and other values come as arguments. What it returns is the XCom; what it
    raises comes back as :class:`~airflow_qarnot_pool.exceptions.QarnotTaskFailedError` with the traceback. What it
    prints is in the task log. Its arguments and its result can be read in the Qarnot console: pass no secrets.

    Retries, clears and kills are those of :class:`~airflow_qarnot_pool.operators.task.QarnotRunTaskOperator`, and
    all its parameters but ``command``, ``wait_for_completion`` and more than one instance are taken, too.

    :param python_callable: the function, where the decorator is used without parentheses.
    :param multiple_outputs: each key of the returned dict is an XCom of its own.
    :param qarnot_pool: the pool; in a ``QarnotPoolGroup`` that of the group.
    :param image: image with ``python3`` (3.8 or newer); None: the pool's, else Qarnot's own default.
    :param requirements: what pip installs on the node before every call.
    :param timeout: longest time on the node, as a timedelta or seconds, requirements included; then the function is
        killed there.
    :param serializer: ``"json"``, or ``"pickle"`` for arguments and results that are not JSON. With pickle, what
        runs on the node can run any code on the Airflow worker.
    :param payload_bucket: bucket for arguments of more than 192 KiB (compressed, with the source) and for results
        of more than 1,000,000 characters. Needs the ``[storage]`` extra. What is in it stays there.
    :raises QarnotInvalidSpecError: when the DAG is parsed: the function cannot run by itself.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        refuse_unknown(_QarnotDecoratedOperator, kwargs)
        _refuse_foreign(kwargs)
        FunctionSource.of(function)  # mapped tasks make no operator when the DAG is parsed
        return task_decorator_factory(
            python_callable=function,
            multiple_outputs=multiple_outputs,
            decorated_operator_class=_QarnotDecoratedOperator,
            **kwargs,
        )

    if python_callable is None:
        return decorate
    if not callable(python_callable):
        raise TypeError(f"@task.qarnot takes named parameters only, got {python_callable!r}")
    return decorate(python_callable)


__all__ = ["DEFAULT_IMAGE", "QarnotTask", "qarnot_task"]
