"""``@task.qarnot``: a Python function that runs on a node."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, ParamSpec, Protocol, TypeVar, cast, overload

from airflow.sdk import XComArg
from airflow.sdk.bases.decorator import DecoratedOperator

from airflow_qarnot_pool.api.command_array import MAX_BYTES, as_constants
from airflow_qarnot_pool.api.errors import QarnotError, QarnotInvalidSpecError
from airflow_qarnot_pool.api.fields import closest_name
from airflow_qarnot_pool.decorators import node, payload
from airflow_qarnot_pool.decorators.function import FunctionSource
from airflow_qarnot_pool.environments.shared import bring, folder_for, has_environments
from airflow_qarnot_pool.environments.specification import (
    QarnotEnvironment,
    check_files,
    folder_of,
    is_beside,
    missing_imports,
)
from airflow_qarnot_pool.environments.storage import EnvironmentStorage, archive_in
from airflow_qarnot_pool.exceptions import QarnotPoolEndedError, QarnotTaskFailedError
from airflow_qarnot_pool.hooks.qarnot import QarnotHook
from airflow_qarnot_pool.operators.bases.base import QarnotOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.ownership import xcoms
from airflow_qarnot_pool.ownership.ladder import is_node_loss
from airflow_qarnot_pool.parameters.places import naming, place_in_dag
from airflow_qarnot_pool.parameters.references import NOTSET
from airflow_qarnot_pool.parameters.templating import is_templated
from airflow_qarnot_pool.parameters.unknown import refuse_unknown
from airflow_qarnot_pool.parameters.validation import (
    Duration,
    as_duration,
    as_list,
    check_durations,
    fields_by_our_names,
    has_values,
)
from airflow_qarnot_pool.version_compat import AirflowSkipException, context_keys, task_decorator_class

if TYPE_CHECKING:
    from pathlib import Path

    import jinja2
    from airflow.sdk import Context

    from airflow_qarnot_pool.api.models import Task
    from airflow_qarnot_pool.api.specs import ResourceBucket, TaskSpec
    from airflow_qarnot_pool.decorators.bucket import PayloadBucket
    from airflow_qarnot_pool.logs.report import LineFinder

P = ParamSpec("P")
R = TypeVar("R")

DEFAULT_IMAGE = "python:3.12-slim"
#: Images of Python that contain no other modules.
_PLAIN_IMAGE = re.compile(r"(docker\.io/)?(library/)?python:[\w.-]+")
_ONE_INSTANCE = (
    "@task.qarnot runs one instance, as one call has one result. Use .array() or .expand() for many calls, or "
    "QarnotRunTaskOperator for one command in many instances."
)
#: Parameters of QarnotRunTaskOperator that the decorator does not accept, and the remedy.
REJECTED = {
    "command": "The function is the command.",
    "wait_for_completion": "The function's result is that of the task. To continue at once, let no task depend on it.",
    "instance_count": _ONE_INSTANCE,
    "result_bucket": "Give task_spec={'result_bucket': ...}.",
    "chunk_size": "Give it to .array() by .override(chunk_size=...).",
}


class _QarnotDecoratedOperator(DecoratedOperator, QarnotRunTaskOperator):
    """Run a Python function on a node. Its result is the XCom. See :func:`qarnot_task`."""

    custom_operator_name = "@task.qarnot"
    returns_output = True  # or a bucket has it
    rejected_parameters: ClassVar[Mapping[str, str]] = REJECTED
    template_fields: tuple[str, ...] = (
        *(field for field in QarnotRunTaskOperator.template_fields if field != "command"),
        "op_args",
        "op_kwargs",
        "payload_bucket",
        "timeout",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {
        **DecoratedOperator.template_fields_renderers,
        **{
            name: renderer
            for name, renderer in QarnotRunTaskOperator.template_fields_renderers.items()
            if name != "command"
        },
    }
    #: The arguments of the call, which are no parameters of ours.
    rendered_by_airflow: ClassVar[tuple[str, ...]] = ("op_args", "op_kwargs")
    shallow_copy_attrs: Sequence[str] = ("python_callable",)
    # An async function is awaited on the node. The operator waits for its Qarnot task.
    is_async = False

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        image: str | None = DEFAULT_IMAGE,
        environment: QarnotEnvironment | Mapping[str, Any] | None = None,
        timeout: Duration = None,
        serializer: payload.Serializer = "json",
        payload_bucket: str | None = None,
        **kwargs: Any,
    ) -> None:
        refuse_unknown(type(self), {name: kwargs[name] for name in REJECTED if name in kwargs})
        self._function = FunctionSource.of(python_callable)
        if image == DEFAULT_IMAGE and _image_elsewhere(kwargs):
            image = None
        kwargs["command"] = payload.COMMAND
        kwargs["wait_for_completion"] = True
        super().__init__(
            python_callable=python_callable, op_args=op_args, op_kwargs=op_kwargs, image=image, **kwargs
        )
        self.environment = environment
        self.timeout = timeout
        self.serializer = serializer
        self.payload_bucket = payload_bucket
        self._used_bucket: PayloadBucket | None = None
        self._filled += has_values(self, ("payload_bucket",))
        self._check(python_callable)
        self._renders_call = False
        self._ti: Any = None
        #: The task that opens the pool, as far as the parameter shows it.
        self._opener: Any = None

    def render_template(
        self,
        content: Any,
        context: Context,
        jinja_env: jinja2.Environment | None = None,
        seen_oids: set[int] | None = None,
    ) -> Any:
        """Render the arguments of the call as Airflow does."""
        if content is self.qarnot_pool and isinstance(content, XComArg):
            self._opener = getattr(content, "operator", None)
        by_airflow = super(QarnotOperator, self).render_template
        if self._renders_call:
            return by_airflow(content, context, jinja_env, seen_oids)
        if not any(content is getattr(self, name) for name in self.rendered_by_airflow):
            return super().render_template(content, context, jinja_env, seen_oids)
        self._renders_call = True
        try:
            return by_airflow(content, context, jinja_env, seen_oids)
        finally:
            self._renders_call = False

    def _check(self, function: Callable[..., Any]) -> None:
        """Refuse wrong values of the decorator's own parameters when the DAG is parsed."""
        if self.serializer not in ("json", "pickle"):
            raise QarnotInvalidSpecError(
                f"serializer is not known, got {self.serializer!r}",
                field="serializer",
                remedy="Give 'json' or 'pickle'.",
            )
        check_durations(timeout=self.timeout)
        if (environment := QarnotEnvironment.of(self.environment)) is not None:
            check_files(environment, folder_of(function))
        if self.payload_bucket is not None and not is_templated(self.payload_bucket):
            _payload_bucket(self.payload_bucket)
        self._check_arguments(function)
        pool = (
            getattr(self.qarnot_pool, "operator", None) if self.on_pool else _pool_of_group(self.task_group)
        )
        _refuse_unshipped(self._function, folder_of(function), [self, pool])

    def _check_arguments(self, function: Callable[..., Any]) -> None:
        args, kwargs = self._arguments()
        self._check_filled(function, args, kwargs)
        known = kwargs | {f"number {n}": value for n, value in enumerate(args, 1)}
        _check_known(known, self.serializer, self._function.name)

    def _check_filled(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        _refuse_context(function, {*kwargs, *_by_position(function, args)})

    def _arguments(self) -> tuple[Sequence[Any], dict[str, Any]]:
        return tuple(self.op_args), dict(self.op_kwargs)

    # --- submit the call

    def _set_identity(self, context: Context) -> None:
        super()._set_identity(context)
        self._ti = context["ti"]

    @property
    def _lineage(self) -> str:
        assert self._identity is not None
        return self._identity.lineage

    @property
    def _nonce(self) -> str:
        """Return a value that is the same in every try of a lineage, which may adopt the previous Qarnot task."""
        return payload.digest("result", self._lineage)

    @property
    def _bucket(self) -> PayloadBucket | None:
        """The bucket of this run. Each object makes a client of its own, which costs requests and CPU."""
        from airflow_qarnot_pool.decorators.bucket import PayloadBucket

        if not self.payload_bucket:
            return None
        name, prefix = _payload_bucket(self.payload_bucket), f"airflow-qarnot/{self._lineage}/"
        used = self._used_bucket
        if used is None or (used.name, used.prefix) != (name, prefix):
            self._used_bucket = used = PayloadBucket(self.hook.settings, name, prefix)
        return used

    def _given_now(self) -> dict[str, Any]:
        """Return the parameters and the call, which is in no attribute because Airflow shows those in its UI."""
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
        environment = QarnotEnvironment.of(self.environment)
        if environment is not None:
            archive = EnvironmentStorage(self.hook.settings, environment.bucket).prepare(
                environment, folder_of(self.python_callable)
            )
            values["resource_buckets"] = [*as_list(values.get("resource_buckets")), archive]
        packed = payload.pack(
            self._function,
            self._arguments_text(args, kwargs),
            array=self._array(),
            nonce=self._nonce,
            serializer=self.serializer,
            environment=archive_in(archive) if environment else None,
            pool_environment=self._pool_archive(),
            timeout=as_duration("timeout", self.timeout),
            result_file=result_file,
        )
        if len(packed) <= MAX_BYTES:
            constants = as_constants(node.PREFIX, packed)
        elif bucket is None:
            raise QarnotInvalidSpecError(
                f"@task.qarnot: {self._function.name}() and its arguments are {len(packed):,} bytes when "
                f"compressed, and {MAX_BYTES:,} fit in the constants of a Qarnot task. Give "
                "payload_bucket='...' to send them by bucket, or put the data in a resource bucket "
                "(resource_buckets=['...']) and pass the name of the file",
                field="op_kwargs",
            )
        else:
            from airflow_qarnot_pool.api.specs import ResourceBucket

            name = bucket.upload(packed)
            source = ResourceBucket(
                bucket=bucket.name, prefix=bucket.prefix + name, strip_prefix=bucket.prefix
            )
            values["resource_buckets"] = [*as_list(values.get("resource_buckets")), source]
            constants = {node.PREFIX + "FILE": name}
        values["constants"] = {**(values.get("constants") or {}), **constants}
        return values

    def _arguments_text(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        return payload.arguments_text(args, kwargs, self.serializer, self._function.name)

    def _array(self) -> dict[str, Any] | None:
        """Return what the node has to know of an array; None for a single call."""
        return None

    def _pool_archive(self) -> str | None:
        """Return the environment that this DAG run has brought to its shared pool, which may have others, too."""
        opener = self._opener
        if not getattr(opener, "environment", None) or not getattr(opener, "shared", None):
            return None
        # A copy of a mapped task group uses the pool of its own copy.
        map_index = -1 if opener.get_closest_mapped_task_group() is None else self._ti.map_index
        archive: str | None = xcoms.pull_of(self._ti, opener.task_id, map_index, xcoms.ENVIRONMENT_KEY)
        return archive

    def _next_pool(self, context: Context, pool: str) -> str | None:
        uuid = super()._next_pool(context, pool)
        if uuid is None:
            return None
        # Another DAG run may have created it, with another environment.
        if self._opener is None and has_environments(self.client.pools.get(uuid)):
            raise QarnotPoolEndedError(
                f"Pool {pool} was closed, and pool {uuid}, which replaces it, may have the environment of another DAG "
                "run. Give qarnot_pool as the output of the task that opens the pool, which then brings its own "
                "environment",
                kind="pool",
                ref=pool,
            )
        if archive := self._pool_archive():
            bucket = cast("QarnotEnvironment", QarnotEnvironment.of(self._opener.environment)).bucket
            bring(
                self.client,
                EnvironmentStorage(self.hook.settings, bucket),
                self.client.pools.get(uuid),
                archive,
                folder_for(self.hook.settings.namespace, str(self._opener.shared), archive),
            )
        return uuid

    def _spec(self, values: Mapping[str, Any], pool: str | None) -> TaskSpec:
        spec = super()._spec(values, pool)
        if spec.reports:
            raise QarnotInvalidSpecError(
                "return_file and skip_on_exit_code are parameters of commands",
                field="return_file" if spec.return_file else "skip_on_exit_code",
                remedy="Return the value, and raise AirflowSkipException to skip.",
            )
        if spec.instance_ids() != frozenset({0}):
            field = "ranges" if spec.ranges else "instance_count"
            raise QarnotInvalidSpecError(
                f"{field} is not that of one instance, got {getattr(spec, field)!r}",
                field=field,
                remedy=_ONE_INSTANCE,
            )
        return spec

    # --- lineage

    def _describe_work(self, spec: Any) -> dict[str, Any]:
        return {"function": f"{self.python_callable.__module__}.{self._function.name}"}

    # --- read the result

    def _expected_seconds(self, context: Context) -> float | None:
        return None  # the result is that of the function

    def _new_finder(self) -> LineFinder[Any]:
        return payload.ReportFinder(self._nonce)

    def _report(self, task: Task) -> str:
        """Return why there is no result: the error of the function, or that of the Qarnot task."""
        try:
            report = self._output(task.uuid).report or {}
        except QarnotError:
            report = {}
        error = report.get("error")
        if not error or is_node_loss(task):
            return super()._report(task)
        return "\n".join((*self._error_lines(error), self._this_was(task)))

    def _error_lines(self, error: Mapping[str, str]) -> list[str]:
        """Return the error of the function, with the lines of the DAG file in its traceback."""
        detail = self._function.with_lines_of_file(error["detail"]).rstrip()
        return [error["summary"], detail] if detail else [error["summary"]]

    def _this_was(self, task: Task) -> str:
        link = self.hook.settings.console_link("task", task.uuid)
        return f"This was Qarnot task {task.uuid}" + (f", see {link}" if link else "")

    def _result(self, task: Task) -> Any:
        finder = self._output(task.uuid)
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
                "not in its output. Qarnot keeps the end of an output only, and a process that the function left "
                "running may have continued to write. Or the image's entrypoint does not run the command. Clear "
                "the task to run it again",
                kind="task",
                ref=task.uuid,
            )
        if "error" in report:
            raise QarnotTaskFailedError(self._report(task), kind="task", ref=task.uuid)
        if "skip" in report:
            raise AirflowSkipException(report["skip"])
        text = report.get("value")
        if text is None:
            bucket = self._bucket
            if bucket is None:
                raise QarnotInvalidSpecError(
                    f"The result of {self._function.name}() is in the bucket that payload_bucket named when it "
                    "was submitted. Set it again",
                    field="payload_bucket",
                )
            text = bucket.download(report["file"], report["sha256"]).decode()
        return payload.value_of(text, self.serializer, self._function.name)


class _QarnotTaskDecorator(task_decorator_class()):  # type: ignore[misc]
    """A decorated function, which checks mapped calls. Airflow creates no operator of them when the DAG is parsed."""

    def array(self, **lists: Any) -> Any:
        """Create one Airflow task with a call for each combination of the arguments, in one Qarnot task.

        See ``docs/ten-thousand-calls.md``.
        """
        from airflow_qarnot_pool.decorators.array import _QarnotArrayOperator

        self._validate_arg_names("array", lists)
        made = self.override(array_names=tuple(lists))
        made.operator_class, made.multiple_outputs = _QarnotArrayOperator, False
        shared = made.kwargs.pop("op_kwargs", {})
        with self._naming():
            if not lists:
                raise QarnotInvalidSpecError(
                    f"@task.qarnot: the array of {self.function.__name__}() has no list",
                    field="op_kwargs",
                    remedy="Give an argument as a list, as in .array(number=[1, 2, 3]).",
                )
            if twice := shared.keys() & lists.keys():
                raise QarnotInvalidSpecError(
                    f"@task.qarnot: argument {min(twice)} of {self.function.__name__}() is in .partial() and in "
                    ".array()",
                    field="op_kwargs",
                    remedy="Keep one of them.",
                )
        return made(**shared, **lists)

    def _naming(self) -> AbstractContextManager[None]:
        return naming(lambda: place_in_dag("Task", self.kwargs["task_id"], self.kwargs))

    def _validate_arg_names(self, func: Any, kwargs: dict[str, Any]) -> None:
        try:
            super()._validate_arg_names(func, kwargs)
        except TypeError:
            names = list(inspect.signature(self.function).parameters)
            unknown = next((name for name in kwargs if name not in names), None)
            if unknown is None:
                raise
            near = closest_name(unknown, names)
            with self._naming():
                raise QarnotInvalidSpecError(
                    f".{func}(): {unknown} is not an argument of {self.function.__name__}()",
                    field="op_kwargs",
                    remedy=f"Did you mean {near!r}?" if near else f"It takes {', '.join(names) or 'none'}.",
                ) from None

    def expand(self, **map_kwargs: Any) -> Any:
        """Create a mapped task with a call for each combination of the arguments."""
        items = {
            f"{name}[{index}]": item
            for name, values in map_kwargs.items()
            if not is_templated(values) and isinstance(values, (list, tuple, dict))
            for index, item in enumerate(values.items() if isinstance(values, dict) else values)
        }
        self._check_mapped(map_kwargs, items)
        return self._with_environment_checked(super().expand(**map_kwargs))

    def expand_kwargs(self, kwargs: Any, *, strict: bool = True) -> Any:
        """Create a mapped task with a call for each row of arguments."""
        rows = list(kwargs) if isinstance(kwargs, (list, tuple)) else [kwargs]
        for index, row in enumerate(rows):
            if isinstance(row, Mapping):
                self._check_mapped(row, {f"{name} (row {index})": value for name, value in row.items()})
            else:
                # A row that is known when the task runs can have any argument.
                self._check_mapped(_context_parameters(self.function), {})
        return self._with_environment_checked(super().expand_kwargs(kwargs, strict=strict))

    def _check_mapped(self, names: Iterable[str], mapped: Mapping[str, Any]) -> None:
        partial = self.kwargs.get("op_kwargs") or {}
        with self._naming():
            _refuse_context(self.function, {*partial, *names})
            _check_known({**partial, **mapped}, self.kwargs.get("serializer", "json"), self.function.__name__)

    def _with_environment_checked(self, mapped: Any) -> Any:
        """Return the mapped task. Its place in the DAG decides on which pool it runs, and so what it can import."""
        with self._naming():
            operator = mapped.operator
            defaults: dict[str, Any] = {}
            for place in (operator.dag, operator.task_group):
                defaults |= getattr(place, "default_args", None) or {}
            given = dict.fromkeys(("environment", "resource_buckets", "task_spec")) | defaults | self.kwargs
            folder = folder_of(self.function)
            if (environment := QarnotEnvironment.of(given["environment"])) is not None:
                check_files(environment, folder)
            if "qarnot_pool" in given:
                pool = getattr(given["qarnot_pool"], "operator", None)
            else:
                pool = _pool_of_group(operator.task_group)
            _refuse_unshipped(FunctionSource.of(self.function), folder, [SimpleNamespace(**given), pool])
        return mapped


class _NoPool:
    """Stands for the pool of a function with nodes of its own."""

    environment = resource_buckets = None


def _pool_of_group(group: Any) -> Any:
    """Return the task that opens the pool of the innermost QarnotPoolGroup around *group*, or :class:`_NoPool`."""
    while group is not None and getattr(group, "open_pool", None) is None:
        group = group.parent_group
    return _NoPool if group is None else group.open_pool


def _refuse_unshipped(function: FunctionSource, folder: Path, sources: Iterable[Any]) -> None:
    """Refuse an import of a module beside the DAG file that does not reach the node, as far as that is known.

    :param sources: the parameters of the function, and the task that opens its pool.
    """
    sources = list(sources)
    if any(map(_brings_other_files, sources)):
        return
    environments = [QarnotEnvironment.of(source.environment) for source in sources]
    missing = [
        module
        for module in function.imported_modules()
        if is_beside(module, folder) and not any(one.ships(module) for one in environments if one)
    ]
    if missing:
        raise QarnotInvalidSpecError(
            f"@task.qarnot: {function.name}() imports {missing[0]!r}, which is beside the DAG file and does not reach "
            f"the node. Give environment=QarnotEnvironment(modules={missing!r}) to the pool, or to the function if it "
            "has nodes of its own",
            field="environment",
        )
    for environment in filter(None, environments):
        for file, module in missing_imports(environment, folder):
            if not any(one.ships(module) for one in environments if one):
                raise QarnotInvalidSpecError(
                    f"environment.modules brings {file}, which imports {module!r}. That is beside the DAG file and "
                    f"does not reach the node. Add {module!r} to the modules",
                    field="environment.modules",
                )


def _brings_other_files(source: Any) -> bool:
    """Return whether other files than those of an environment may reach the node."""
    spec = getattr(source, "pool_spec", None) or getattr(source, "task_spec", None) or {}
    if not _PLAIN_IMAGE.fullmatch(str(getattr(source, "image", DEFAULT_IMAGE))):
        return True  # an image may have modules, too
    if not hasattr(source, "environment") or source.resource_buckets or not isinstance(spec, Mapping):
        return True
    return bool({"resource_buckets", "resourceBuckets", "advancedResourceBuckets"} & spec.keys())


def _refuse_context(function: Callable[..., Any], filled: Collection[str]) -> None:
    """Refuse a function that expects Airflow to fill in a parameter."""
    if unfilled := [name for name in _context_parameters(function) if name not in filled]:
        name = function.__name__
        raise QarnotInvalidSpecError(
            f"@task.qarnot: Airflow's {unfilled[0]!r} does not reach the node, which has no Airflow. Pass the data "
            f"that {name}() needs as an argument, such as day='{{{{ dag_run.run_after | ds }}}}'",
            field="op_kwargs",
        )


def _check_known(arguments: Mapping[str, Any], serializer: payload.Serializer, name: str) -> None:
    """Refuse arguments that cannot be sent, if they are known when the DAG is parsed."""
    known = {key: value for key, value in arguments.items() if not is_templated(value)}
    payload.arguments_text((), known, serializer, name)


def _refuse_instances(task_spec: Any) -> None:
    """Refuse several instances for a mapped function, of which Airflow creates no operator when the DAG is parsed."""
    fields = fields_by_our_names(task_spec, "task_spec") if isinstance(task_spec, Mapping) else {}
    for name, fine in (("instance_count", (1, "1")), ("ranges", ("0",))):
        value = fields.get(name)
        if value is not None and value not in fine and not is_templated(value):
            raise QarnotInvalidSpecError(
                f"{name} is not that of one instance, got {value!r}", field=name, remedy=_ONE_INSTANCE
            )


def _image_elsewhere(parameters: Mapping[str, Any]) -> bool:
    """Return whether a constant or ``task_spec`` names the image, in place of the default."""
    constants, task_spec = parameters.get("constants"), parameters.get("task_spec")
    fields = fields_by_our_names(task_spec, "task_spec") if isinstance(task_spec, Mapping) else {}
    names = {"image"} & fields.keys()
    for mapping in (constants, fields.get("constants")):
        names |= set(mapping) if isinstance(mapping, Mapping) else set()
    return bool(names & {"DOCKER_REPO", "DOCKER_TAG", "DOCKER_SRV", "image"})


def _payload_bucket(value: Any) -> str:
    from airflow_qarnot_pool.api.buckets import check_bucket

    return check_bucket(value, "payload_bucket", "Write {bucket!r}; the task chooses the path in it.")


def _context_parameters(function: Callable[..., Any]) -> list[str]:
    """Return the parameters that Airflow fills in for a function that runs on a worker."""
    known = context_keys()
    return [name for name in inspect.signature(function).parameters if name in known]


def _by_position(function: Callable[..., Any], args: Sequence[Any]) -> set[str]:
    return set(list(inspect.signature(function).parameters)[: len(args)])


class QarnotTask(Protocol[P, R]):
    """A decorated function, for type checkers.

    Calls accept and return ``Any``, because arguments and results may be XComs when the DAG is parsed. Only Airflow's
    own mypy plugin could distinguish them from values, and it knows the type of ``@task.qarnot`` but not this one.
    """

    function: Callable[P, R]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Create the task of one call."""

    def partial(self, **kwargs: Any) -> QarnotTask[P, R]:
        """Set arguments that all calls of a mapped task or an array have, as in ``f.partial(number=100)``."""

    def expand(self, **kwargs: Any) -> Any:
        """Create a mapped task with a call for each combination of the arguments, as in ``f.expand(seed=[1, 2])``."""

    def expand_kwargs(self, kwargs: Any, *, strict: bool = True) -> Any:
        """Create a mapped task with a call for each row of arguments, as in ``f.expand_kwargs([{"seed": 1}])``."""

    def array(self, **lists: Any) -> Any:
        """Create one Airflow task with many calls, in one Qarnot task, as in ``f.array(seed=range(1000))``.

        See ``docs/ten-thousand-calls.md``.
        """

    def override(self, **kwargs: Any) -> QarnotTask[P, R]:
        """Replace parameters of the decorator for one call, as in ``f.override(task_id="again", retries=3)``."""


@overload
def qarnot_task(python_callable: Callable[P, R]) -> QarnotTask[P, R]: ...


@overload
def qarnot_task(
    *,
    environment: QarnotEnvironment | Mapping[str, Any] | None = None,
    timeout: Duration = None,
    serializer: payload.Serializer = "json",
    payload_bucket: str | None = None,
    multiple_outputs: bool | None = None,
    image: str | None = DEFAULT_IMAGE,
    registry_conn_id: str | None = None,
    constants: Mapping[str, str] | None = None,
    resource_buckets: Iterable[str | ResourceBucket] | None = None,
    task_spec: Mapping[str, Any] | None = None,
    qarnot_pool: Any = NOTSET,
    max_cost: float | str | None = None,
    log_output: bool | Literal["live"] = True,
    deferrable: bool | None = None,
    wait_timeout: Duration = None,
    wait_for_quota: Duration = None,
    cancel_on_kill: bool = True,
    qarnot_conn_id: str = QarnotHook.default_conn_name,
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

        @task.qarnot(environment={"requirements": ["numpy==2.1.3"]}, timeout=timedelta(minutes=10))
        def norm(values: list[float]) -> float:
            import numpy as np

            return float(np.linalg.norm(values))

    The source and the arguments of the function are sent to the node, which has neither Airflow nor the DAG file.
    Import inside the function, and pass other values as arguments. The result becomes the XCom. An exception becomes a
    :class:`~airflow_qarnot_pool.exceptions.QarnotTaskFailedError` with the traceback. The output is in the task log.
    The arguments and the result can be read in the Qarnot console, so pass no secrets.

    Retries, clears and kills work as with :class:`~airflow_qarnot_pool.operators.task.QarnotRunTaskOperator`. The
    parameters of Airflow's ``BaseOperator`` are accepted, too.

    The function:

    :param python_callable: the function, if the decorator is used without parentheses.
    :param environment: a :class:`~airflow_qarnot_pool.environments.QarnotEnvironment` (packages, and modules of the
        DAG's bundle), or a mapping with its parameters. Its packages are brought to the nodes of this function. The
        environment of a pool is given where the pool is created.
    :param timeout: maximum time on the node, as a timedelta or seconds. The function is killed after that.
    :param serializer: ``"json"``, or ``"pickle"`` for arguments and results that are not JSON. With pickle, code on the
        node can run any code on the Airflow worker.
    :param payload_bucket: bucket for arguments of more than 192 KiB (compressed, with the source) and for results
        of more than 1,000,000 characters. Needs the ``[storage]`` extra. Its objects are not deleted.
    :param multiple_outputs: store each key of the returned dict as a separate XCom.

    Container and files:

    :param image: image with ``python3`` (3.8 or newer). None: the image of the pool, or else Qarnot's default.
    :param registry_conn_id: Airflow connection with login and password of a private registry.
    :param constants: constants, which the function sees as environment variables.
    :param resource_buckets: buckets (names or ``ResourceBucket``) whose files are in the working directory.
    :param task_spec: any other field of :class:`~airflow_qarnot_pool.api.specs.TaskSpec`, such as ``name``, ``tags``,
        ``retry`` or ``result_bucket``.

    Pool:

    :param qarnot_pool: the pool. Default in a ``QarnotPoolGroup``: the pool of the group.
    :param max_cost: maximum cost of the pool, or of a Qarnot task without a pool, in euros. Default: the limit of the
        operator that creates the pool.

    Wait:

    :param log_output: write the output to the Airflow task log: when the function is done, or ``"live"``.
    :param deferrable: wait in the triggerer. Default: ``[operators] default_deferrable`` of Airflow if it is set, else
        True.
    :param wait_timeout: maximum wait, as a timedelta or seconds; default: no limit but ``execution_timeout``.
    :param wait_for_quota: maximum wait for room when a quota of the account is full; default: fail at once.
    :param cancel_on_kill: abort the Qarnot task when the Airflow task is killed, cleared or runs out of time.
    :param qarnot_conn_id: connection of type ``qarnot``.
    :raises QarnotInvalidSpecError: the function needs more than its own source, when the DAG is parsed.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        name = kwargs.get("task_id") or getattr(function, "__name__", None)
        with naming(lambda: place_in_dag("Task", name, kwargs)):
            refuse_unknown(_QarnotDecoratedOperator, kwargs)
            _refuse_instances(kwargs.get("task_spec"))
            FunctionSource.of(function)  # a mapped task creates no operator when the DAG is parsed
        outputs = {} if multiple_outputs is None else {"multiple_outputs": multiple_outputs}
        return _QarnotTaskDecorator(
            function=function, operator_class=_QarnotDecoratedOperator, kwargs=kwargs, **outputs
        )

    if python_callable is None:
        return decorate
    if not callable(python_callable):
        raise TypeError(f"@task.qarnot accepts named parameters only, got {python_callable!r}")
    return decorate(python_callable)


__all__ = ["DEFAULT_IMAGE", "QarnotTask", "qarnot_task"]
