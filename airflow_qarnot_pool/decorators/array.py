"""``.array()`` of ``@task.qarnot``: many calls of a function as the instances of one Qarnot task.

A call is an *item*. Each instance runs a *chunk* of items. The node reports every item in its output
(:func:`airflow_qarnot_pool.decorators.node.run_items`). These reports say which items have succeeded: not the state of
the Qarnot task, because an instance fails with one of its items.

Each Qarnot task of a lineage is a *round*. The first one has all items. The next one has the items that no earlier one
has reported as done. The number of the round is part of the fingerprint, so a later try adopts the Qarnot task of its
own round and no other.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_qarnot_pool.api import filters
from airflow_qarnot_pool.api.errors import (
    QarnotInvalidSpecError,
    QarnotNotFoundError,
    shortened,
)
from airflow_qarnot_pool.api.limits import decompress, parse_json, parse_number, parsing_stored_state
from airflow_qarnot_pool.decorators import node, payload
from airflow_qarnot_pool.decorators.qarnot import REJECTED, _check_known, _QarnotDecoratedOperator
from airflow_qarnot_pool.exceptions import QarnotNodeLostError, QarnotTaskFailedError
from airflow_qarnot_pool.hooks.qarnot import QarnotHook
from airflow_qarnot_pool.logs.failure_report import failure_report, is_node_loss
from airflow_qarnot_pool.logs.report import LineFinder
from airflow_qarnot_pool.logs.writer import RESULT_DEADLINE, fetch, retry_broken_read
from airflow_qarnot_pool.ownership.claim import FINGERPRINT_EXCLUDES
from airflow_qarnot_pool.ownership.decisions import RemoteSnapshot, Usability
from airflow_qarnot_pool.ownership.identity import KEPT_LABEL, LINEAGE_TAG
from airflow_qarnot_pool.version_compat import AirflowSkipException

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_qarnot_pool.api.models import Task
    from airflow_qarnot_pool.api.specs import TaskSpec
    from airflow_qarnot_pool.decorators.bucket import PayloadBucket
    from airflow_qarnot_pool.ownership.claim import Claim
    from airflow_qarnot_pool.waiting.conditions import WaitResult

#: Maximum number of items.
MAX_ITEMS = 10_000
#: Number of instances above which the default chunk has several items.
MANY_INSTANCES = 1_000
#: Maximum number of instances. Qarnot's Rust SDK names it for ``advancedRanges``.
MAX_INSTANCES = 2_048
#: Maximum characters of the arguments of all items. Each instance reads all of them.
MAX_ARGUMENTS = 64 * 1024 * 1024
#: Maximum characters of the results of all items, because they become an XCom.
MAX_VALUES = 10_000_000
#: Maximum characters of results in memory. Honest nodes print less.
_MAX_HELD = 4 * MAX_VALUES
#: Maximum bytes of the report of an instance with any number of items.
_MAX_REPORT = 8_000_000
#: Maximum bytes of all reports of a Qarnot task, because compressed data may become much longer.
_MAX_REPORTS = 200_000_000
#: Number of failed items that an error shows, and of those whose tracebacks it shows.
SHOWN_ITEMS, SHOWN_ERRORS = 20, 3
#: Number of concurrent requests for the output of single instances, and for files.
_MAX_WORKERS = 8
#: Name of the constant that says which items a Qarnot task has (see ``node.items_of``).
_CONSTANT = node.PREFIX + "ARRAY"


class _NothingLeftError(Exception):
    """All items are done, so nothing is submitted."""


class _EndedMeanwhileError(Exception):
    """A Qarnot task of this round has ended since the lookup."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        super().__init__()
        self.tasks = list(tasks)


# --- reports


@dataclass
class ArrayReports:
    """What the instances of all Qarnot tasks of an array have reported. The first success of an item counts."""

    total: int
    values: dict[int, str] = field(default_factory=dict)
    #: Name and hash of the file that has the result of an item, and the size of the result.
    files: dict[int, tuple[str, str, int]] = field(default_factory=dict)
    skipped: dict[int, str] = field(default_factory=dict)
    errors: dict[int, dict[str, str]] = field(default_factory=dict)
    #: Characters in ``values``.
    size: int = 0

    @property
    def missing(self) -> list[int]:
        """The items that have not succeeded, as far as is known."""
        return [item for item in range(self.total) if not self.is_done(item)]

    def is_done(self, item: int) -> bool:
        """Return whether *item* has a result, or was skipped."""
        return item in self.values or item in self.files or item in self.skipped

    def add(self, report: _Report, *, has_file: bool) -> None:
        """Add a report.

        :param has_file: whether the file that the report names is there.
        """
        for item, outcome in report.outcomes.items():
            if item >= self.total or self.is_done(item):
                continue
            if "value" in outcome:
                self.size += len(outcome["value"])
                # What does not fit into an XCom is not held.
                self.values[item] = outcome["value"] if self.size <= _MAX_HELD else ""
            elif "skip" in outcome:
                self.skipped[item] = outcome["skip"]
            else:
                self.errors[item] = outcome["error"]
        for item, size in report.sizes.items() if has_file else ():
            if item < self.total and not self.is_done(item):
                self.files[item] = (report.file, report.sha256, size)


@dataclass(frozen=True)
class _Report:
    """A report of an instance: of one item, or at the end of all its items."""

    #: Number of its bytes.
    length: int
    outcomes: Mapping[int, Mapping[str, Any]]
    #: Set at the end.
    instance: int | None = None
    file: str = ""
    sha256: str = ""
    sizes: Mapping[int, int] = field(default_factory=dict)


def _parse(encoded: str) -> _Report:
    """Decode a report. Raises ValueError unless it has the format of :mod:`~airflow_qarnot_pool.decorators.node`."""
    try:
        data = decompress(base64.urlsafe_b64decode(encoded), _MAX_REPORT)
        report = parse_json(data)
        instance = report.get("instance")
        return _Report(
            length=len(data),
            outcomes={_index(item): _outcome(outcome) for item, outcome in report["items"].items()},
            instance=None if instance is None else _index(instance),
            file=str(report.get("file", "")),
            sha256=str(report.get("sha256", "")),
            sizes={_index(item): _index(size) for item, size in report.get("sizes", {}).items()},
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError("it does not have the format that the node writes") from error


def _index(value: Any) -> int:
    number = parse_number(str(value))
    if number is None:
        raise ValueError(f"{value!r} is no number")
    return number


def _outcome(outcome: Mapping[str, Any]) -> Mapping[str, Any]:
    error = outcome.get("error")
    if isinstance(error, Mapping):
        return {"error": {name: str(error[name]) for name in ("summary", "detail")}}
    if not all(isinstance(text, str) for text in outcome.values()) or not {"value", "skip"} & outcome.keys():
        raise ValueError("it does not have the format that the node writes")
    return outcome


class ArrayFinder(LineFinder[_Report]):
    """Finds all reports in the common output of the instances, in which each line starts with the instance's number.

    Also reads the output of one instance, which has no such numbers.
    """

    def __init__(self, nonce: str) -> None:
        super().__init__(f"{node.MARK} {nonce} ", _parse, 2 * _MAX_REPORT)
        self._line = re.compile(rf"^(?:\d{{1,9}}> )?{re.escape(self.mark)}([A-Za-z0-9_=-]+)$", re.MULTILINE)
        self.reports: list[_Report] = []
        self._held = 0

    @property
    def ended(self) -> set[int]:
        """The instances that have reported all their items."""
        return {report.instance for report in self.reports if report.instance is not None}

    def watch(self, pieces: Iterable[str]) -> Iterator[str]:
        """Yield *pieces*, and search them for reports."""
        self.reports, self.problem, self.complete, self._held = [], "", False, 0
        unfinished: list[str] = []
        size = 0
        for piece in pieces:
            yield piece
            lines, newline, rest = piece.rpartition("\n")
            if newline:
                self._search_all("".join([*unfinished, lines]))
                unfinished, size = [], 0
            size += len(rest)
            # A longer line is no report. Its end is not read as a line of its own.
            unfinished = [*unfinished, rest] if size <= self._max_length else ["."]
        self._search_all("".join(unfinished))
        self.complete = True

    def _search_all(self, lines: str) -> None:
        for match in self._line.finditer(lines):
            try:
                report = self._parse(match[1])
                self._held += report.length
                if self._held > _MAX_REPORTS:
                    raise ValueError(f"the reports are more than {_MAX_REPORTS:,} bytes")
                self.reports.append(report)
            except ValueError as error:
                self.problem = str(error)


# --- the operator


class _QarnotArrayOperator(_QarnotDecoratedOperator):
    """Run many calls of a function in one Qarnot task. The list of their results is the XCom.

    :param array_names: names of the arguments that are lists.
    :param chunk_size: number of items in an instance.
    """

    rejected_parameters: ClassVar[Mapping[str, str]] = {
        name: remedy for name, remedy in REJECTED.items() if name != "chunk_size"
    }

    def __init__(self, *, array_names: Sequence[str], chunk_size: int | None = None, **kwargs: Any) -> None:
        self.array_names = tuple(array_names)
        self.chunk_size = _chunk_size(chunk_size)
        super().__init__(**kwargs)
        self._labels[KEPT_LABEL] = "true"
        self._reports: ArrayReports | None = None
        self._base = ""
        self._round = 1
        #: Qarnot tasks of earlier rounds whose reports are read.
        self._earlier: list[str] = []

    # --- the items

    def _check_arguments(self, function: Any) -> None:
        args, kwargs = self._arguments()
        self._check_filled(function, args, kwargs)
        lists = {name: kwargs.pop(name) for name in self.array_names}
        known = {name: values for name, values in lists.items() if not hasattr(values, "iter_references")}
        for name, values in known.items():
            self._check_list(name, values)
        if len(known) == len(lists):
            self._check_total(lists)
        for name, values in known.items():
            if not isinstance(values, range):
                kwargs |= {f"{name}[{index}]": item for index, item in enumerate(values)}
        _check_known(kwargs, self.serializer, self._function.name)

    def _check_list(self, name: str, values: Any) -> None:
        if not isinstance(values, Sequence) or isinstance(values, (str, bytes, bytearray)):
            raise QarnotInvalidSpecError(
                f"@task.qarnot: argument {name} of the array of {self._function.name}() is no list, got "
                f"{type(values).__name__}",
                field="op_kwargs",
                remedy="Give a list, tuple, range or the output of a task that is one. Set arguments that all items "
                "share with .partial().",
            )

    def _check_total(self, lists: Mapping[str, Sequence[Any]]) -> None:
        total = math.prod(map(len, lists.values()))
        if total > MAX_ITEMS:
            raise QarnotInvalidSpecError(
                f"@task.qarnot: the array of {self._function.name}() has {total:,} items, and {MAX_ITEMS:,} fit",
                field="op_kwargs",
                remedy="Let each call do the work of several items, or make several arrays.",
            )
        self._size(total)

    def _size(self, count: int) -> int:
        """Return how many of *count* items an instance runs."""
        size = self.chunk_size or max(1, math.ceil(count / MANY_INSTANCES))
        if math.ceil(count / size) > MAX_INSTANCES:
            raise QarnotInvalidSpecError(
                f"chunk_size is too small for {count:,} items in at most {MAX_INSTANCES:,} instances, got {size}",
                field="chunk_size",
                remedy=f"Give at least {math.ceil(count / MAX_INSTANCES)}, or leave it out.",
            )
        return size

    def _set_identity(self, context: Context) -> None:
        super()._set_identity(context)
        kwargs = dict(self.op_kwargs)
        for name in self.array_names:
            self._check_list(name, kwargs[name])
            # A slice of the results of mapped tasks is one request.
            kwargs[name] = list(kwargs[name][:])
        self.op_kwargs = kwargs
        lists = {name: kwargs[name] for name in self.array_names}
        self._check_total(lists)
        self._reports = ArrayReports(math.prod(map(len, lists.values())))

    @property
    def _found(self) -> ArrayReports:
        assert self._reports is not None
        return self._reports

    def _arguments_text(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        text = super()._arguments_text(args, kwargs)
        if len(text) > MAX_ARGUMENTS:
            raise QarnotInvalidSpecError(
                f"@task.qarnot: the arguments of the array of {self._function.name}() are {len(text):,} characters, "
                f"and {MAX_ARGUMENTS:,} fit",
                field="op_kwargs",
                remedy="Put the data in a resource bucket and pass the names of the files.",
            )
        return text

    def _array(self) -> dict[str, Any]:
        return {"total": self._found.total, "names": list(self.array_names)}

    def _given_now(self) -> dict[str, Any]:
        # An instance that Qarnot repeats would run items again that have succeeded.
        return {"retry": 0, **super()._given_now()}

    def _spec(self, values: Mapping[str, Any], pool: str | None) -> TaskSpec:
        spec = super()._spec(values, pool)
        retried = spec.retry and (spec.retry.max_total_retries or spec.retry.max_per_instance_retries)
        if retried or spec.max_retries_per_instance:
            raise QarnotInvalidSpecError(
                "retry is not a parameter of an array, because Qarnot would repeat items that have succeeded",
                field="retry" if retried else "max_retries_per_instance",
                remedy="Give retries=..., which run the failed items again.",
            )
        if spec.snapshot_every:
            raise QarnotInvalidSpecError(
                "snapshot_every is not a parameter of an array, whose instances would overwrite each other's files",
                field="snapshot_every",
                remedy="Leave it out. A retry runs only the items that have not succeeded.",
            )
        if spec.ranges:
            raise QarnotInvalidSpecError(
                "ranges is not a parameter of an array, which numbers its instances itself",
                field="ranges",
                remedy="Leave it out.",
            )
        return spec

    # --- submit a round

    def execute(self, context: Context) -> Any:
        self._set_identity(context)
        if not self._found.total:
            raise AirflowSkipException(f"The array of {self._function.name}() has no items")
        return super().execute(context)

    def _submit_and_wait(self, context: Context, *args: Any, **options: Any) -> Any:
        try:
            return super()._submit_and_wait(context, *args, **options)
        except _NothingLeftError:
            return self._results()

    def _claim(self, context: Context, spec: TaskSpec, **options: Any) -> Claim:
        """Get the Qarnot task of this round, with the items that no earlier one has done.

        :raises _NothingLeftError: all items are done.
        """
        assert self._identity is not None
        self._base = spec.fingerprint(exclude=FINGERPRINT_EXCLUDES)
        if options.get("lookup_first") or self._identity.has_history:
            self._look_up()
        options["refine"] = self._refuse_if_ended
        while missing := self._found.missing:
            try:
                return super()._claim(
                    context,
                    self._of_round(spec, missing),
                    fingerprint=f"{self._base}.{self._round}",
                    **options,
                )
            except _EndedMeanwhileError as meanwhile:
                self._note(meanwhile.tasks)
        raise _NothingLeftError

    def _of_round(self, spec: TaskSpec, items: Sequence[int]) -> TaskSpec:
        size = self._size(len(items))
        mask = "*"
        if len(items) < self._found.total:
            bits = sum(1 << item for item in items)
            mask = base64.urlsafe_b64encode(
                bits.to_bytes(math.ceil(self._found.total / 8), "little")
            ).decode()
        count = math.ceil(len(items) / size)
        self.log.info("Round %d: %d items in %d instances", self._round, len(items), count)
        made: TaskSpec = spec.with_values(
            instance_count=count,
            constants={**(spec.constants or {}), _CONSTANT: f"{self._round} {size} {mask}"},
        )
        return made

    @staticmethod
    def _refuse_if_ended(spec: TaskSpec, earlier: Iterable[Task]) -> TaskSpec:
        if ended := list(earlier):
            raise _EndedMeanwhileError(ended)
        return spec

    def _look_up(self) -> None:
        """Find the Qarnot tasks of earlier rounds, and read what they have done."""
        assert self._identity is not None
        tagged = filters.equal("Tags", LINEAGE_TAG + self._identity.lineage)
        found = list(self.client.tasks.iterate(tagged))
        self._note(found)
        generations = {RemoteSnapshot.of(task).generation for task in found}
        if gone := set(range(1, max(generations, default=0))) - generations:
            self.log.warning(
                "%d earlier Qarnot tasks of this Airflow task are deleted. Items that only they have done run again",
                len(gone),
            )

    def _note(self, tasks: Iterable[Task]) -> None:
        """Read the Qarnot tasks of this array that have ended, and choose the number of the next round."""
        assert self._identity is not None
        live = []
        for task in tasks:
            snapshot = RemoteSnapshot.of(task)
            base, _, number = snapshot.fingerprint.partition(".")
            if (snapshot.lineage, base, snapshot.retries) != (
                self._identity.lineage,
                self._base,
                self._identity.retries,
            ):
                continue
            if snapshot.usability is Usability.LIVE:
                live.append((snapshot.age, parse_number(number) or 1))
                continue
            self._round = max(self._round, 1 + (parse_number(number) or 0))
            self._read(task)
            self._earlier.append(task.uuid)
        if live:
            self._round = min(live)[1]

    def _carried(self) -> dict[str, Any]:
        return {"earlier": self._earlier}

    # --- read the reports

    def _new_finder(self) -> ArrayFinder:
        return ArrayFinder(self._nonce)

    def _kept(self, uuid: str, stream: str, seconds: float) -> Iterable[str]:
        pieces = fetch(self.client, uuid, stream, None, seconds)
        if stream != "stdout":
            return pieces
        self._finders[uuid] = finder = self._new_finder()
        return finder.watch(pieces)

    def _nothing_written(self, uuid: str) -> Any:
        from airflow_qarnot_pool.logs.cursor import LogCursor

        return LogCursor(uuid=uuid, hidden=self._new_finder().mark)

    def _read(self, task: Task) -> None:
        """Read the reports of a Qarnot task that has ended."""
        try:
            self._read_output(task)
        except QarnotNotFoundError as error:
            if error.foreign:
                raise
            self.log.warning("Qarnot task %s is deleted. Items that only it has done run again", task.uuid)

    def _read_output(self, task: Task) -> None:
        """Read the common output of all instances, and then that of instances whose last report it lacks.

        Qarnot keeps the end of the common output only.
        """
        finder = self._output(task.uuid)
        assert isinstance(finder, ArrayFinder)
        self._add(task, finder.reports)
        instances = sorted(set(range(task.instances or 0)) - finder.ended)
        finder.reports = []
        if not instances:
            return
        array = task.constants.get(_CONSTANT) or self.client.tasks.get(task.uuid).constants.get(_CONSTANT, "")
        with parsing_stored_state(f"The constant {_CONSTANT} of Qarnot task {task.uuid}"):
            items = {one: node.items_of(array, self._found.total, one) for one in instances}
        instances = [one for one in instances if not all(map(self._found.is_done, items[one]))]
        if instances:
            self.log.info("Reading %d outputs of Qarnot task %s one by one", len(instances), task.uuid)
        for start in range(0, len(instances), _MAX_WORKERS):
            batch = instances[start : start + _MAX_WORKERS]
            for reports in _in_parallel(partial(self._read_instance, task.uuid), batch):
                self._add(task, reports)

    def _read_instance(self, uuid: str, instance: int) -> list[_Report]:
        finder = self._new_finder()

        def read(seconds: float) -> None:
            deque(finder.watch(self._kept_of_instance(uuid, instance, seconds)), maxlen=0)

        retry_broken_read(read, RESULT_DEADLINE)
        return finder.reports

    def _kept_of_instance(self, uuid: str, instance: int, seconds: float) -> Iterable[str]:
        try:
            return self.client.limited(deadline=seconds).tasks.stream_output(uuid, "stdout", instance)
        except QarnotNotFoundError as error:
            if error.foreign:
                raise  # a proxy does not know whether the instance has run
            return ()

    def _add(self, task: Task, reports: Iterable[_Report]) -> None:
        succeeded = task.succeeded_instances
        for report in reports:
            # Qarnot need not have brought the files of an instance that failed or was cancelled.
            has_file = bool(report.file) and (
                report.instance in succeeded or (self._bucket is not None and self._bucket.has(report.file))
            )
            self._found.add(report, has_file=has_file)

    # --- the result

    def _finish(self, context: Context, outcome: WaitResult, resume_state: Mapping[str, Any]) -> Any:
        for uuid in resume_state.get("earlier") or ():
            if uuid in self._earlier:
                continue
            self._earlier.append(uuid)
            if (task := self.client.tasks.find(uuid)) is None:
                self.log.warning("Qarnot task %s is deleted. Items that only it has done run again", uuid)
            else:
                self._read(task)
        return super()._finish(context, outcome, resume_state)

    def _report(self, task: Task) -> str:
        return failure_report(self.client, task, self.hook.settings.console_link("task", task.uuid))

    def _result_or_error(self, task: Task, *, succeeded: bool) -> Any:
        self._read(task)
        if not self._found.missing:
            return self._results()
        errors = self._found.errors
        # The error of a node that is lost is not an error of the function.
        is_lost = is_node_loss(task) and not any(item in errors for item in self._found.missing)
        raise (QarnotNodeLostError if is_lost else QarnotTaskFailedError)(
            self._failure(task), kind="task", ref=task.uuid
        )

    def _failure(self, task: Task) -> str:
        """Return which items failed, and why the first of them did."""
        found, name = self._found, self._function.name
        missing = found.missing
        failed = [item for item in missing if item in found.errors]
        lost = [item for item in missing if item not in found.errors]
        lines = [
            f"{len(missing):,} of {found.total:,} items of {name}() failed: items {_some(missing)}. A retry runs "
            "only these again"
        ]
        for item in failed[:SHOWN_ERRORS]:
            summary, *detail = self._error_lines(found.errors[item])
            lines += [f"Item {item}: {summary}", *detail]
        if len(failed) > SHOWN_ERRORS:
            lines.append(f"The errors of the other {len(failed) - SHOWN_ERRORS:,} are in the output")
        if lost:
            lines.append(
                f"{len(lost):,} of them have reported neither a result nor an error: items {_some(lost)}"
            )
            lines.append(self._report(task))
        else:
            lines.append(self._this_was(task))
        return "\n".join(line for line in lines if line)

    def _results(self) -> Any:
        """Return the results in the order of the items, or a reference to them if they are too large."""
        found, name = self._found, self._function.name
        if len(found.skipped) == found.total:
            raise AirflowSkipException(f"All {found.total:,} items skipped. {found.skipped[0]}")
        self.log.info(
            "%d items of %s(): %d succeeded, %d skipped",
            found.total,
            name,
            found.total - len(found.skipped),
            len(found.skipped),
        )
        size = found.size + sum(size for _, _, size in found.files.values())
        if size > MAX_VALUES:
            return self._reference(size)
        texts = dict(found.values)
        names = {(file, sha256) for file, sha256, _ in found.files.values()}
        contents = dict(zip(names, _in_parallel(self._download, names), strict=True))
        for item, (file, sha256, _) in found.files.items():
            texts[item] = _text_of(contents[file, sha256], item, file)
        return [
            payload.value_of(texts[item], self.serializer, name) if item in texts else None
            for item in range(found.total)
        ]

    def _download(self, file: tuple[str, str]) -> Mapping[str, Any]:
        return _content(self._results_bucket, *file)

    @property
    def _results_bucket(self) -> PayloadBucket:
        if (bucket := self._bucket) is None:
            raise QarnotInvalidSpecError(
                f"Results of {self._function.name}() are in the bucket that payload_bucket named when they were "
                "submitted. Set it again",
                field="payload_bucket",
            )
        return bucket

    def _reference(self, size: int) -> dict[str, Any]:
        """Store which result is where, and return a reference to that, which :func:`array_results` reads."""
        found = self._found
        if self._bucket is None or found.size > _MAX_HELD:
            raise QarnotTaskFailedError(
                f"All {found.total:,} items of {self._function.name}() succeeded, but their results are {size:,} "
                f"characters as {self.serializer}, and {MAX_VALUES:,} fit into an XCom",
                remedy="Give payload_bucket='...' to keep them in a bucket and clear the task, or let the function "
                "write files and return their names.",
                kind="task",
            )
        index = {
            "values": found.values,
            "files": {item: [file, sha256] for item, (file, sha256, _) in found.files.items()},
        }
        data = json.dumps(index).encode()
        name = self._bucket.upload(data, "index")
        self.log.info("The results are %d characters, and are in bucket %s", size, self._bucket.name)
        return {
            "bucket": self._bucket.name,
            "prefix": self._bucket.prefix,
            "index": name,
            "sha256": payload.sha256(data),
            "total": found.total,
            "serializer": self.serializer,
        }


def array_results(value: Any, qarnot_conn_id: str = QarnotHook.default_conn_name) -> Iterator[Any]:
    """Iterate over the results of an array in the order of its items, whether they are in its XCom or in a bucket.

    .. code-block:: python

        @task
        def total(squares) -> int:
            return sum(array_results(squares))

    Files of a bucket are read one after another. Needs the ``[storage]`` extra for those.

    :param value: the output of the array.
    :param qarnot_conn_id: connection of type ``qarnot``.
    :raises QarnotProtocolError: *value* is no output of an array.
    """
    if not isinstance(value, Mapping):
        return iter(value)
    return _results_in_bucket(value, qarnot_conn_id)


def _results_in_bucket(value: Mapping[str, Any], qarnot_conn_id: str) -> Iterator[Any]:
    from airflow_qarnot_pool.decorators.bucket import PayloadBucket

    with parsing_stored_state("The output of an array"):
        settings = QarnotHook(qarnot_conn_id).settings
        bucket = PayloadBucket(settings, str(value["bucket"]), str(value["prefix"]))
        total, serializer = int(value["total"]), value["serializer"]
        index = _content(bucket, str(value["index"]), str(value["sha256"]))
        values, files = index["values"], index["files"]
    known: tuple[Any, Mapping[str, Any]] = (None, {})
    for item in map(str, range(total)):
        text = values.get(item)
        if file := files.get(item):
            if known[0] != file:
                known = (file, _content(bucket, *file))
            text = _text_of(known[1], int(item), file[0])
        yield None if text is None else payload.value_of(text, serializer, f"item {item}")


def _content(bucket: PayloadBucket, name: str, sha256: str) -> Mapping[str, Any]:
    with parsing_stored_state(f"The file {name} in bucket {bucket.name}"):
        return dict(parse_json(bucket.download(name, sha256)))


def _text_of(content: Mapping[str, Any], item: int, file: str) -> str:
    text = content.get(str(item))
    if not isinstance(text, str):
        raise QarnotTaskFailedError(
            f"The file {file} has no result of item {item}", remedy="Clear the task.", kind="task"
        )
    return text


def _in_parallel(function: Any, values: Iterable[Any]) -> list[Any]:
    values = list(values)
    if not values:
        return []
    with ThreadPoolExecutor(max_workers=min(len(values), _MAX_WORKERS)) as threads:
        return list(threads.map(function, values))


def _some(items: Sequence[int]) -> str:
    text = ", ".join(map(str, items[:SHOWN_ITEMS]))
    return f"{text} ..." if len(items) > SHOWN_ITEMS else text


def _chunk_size(value: Any) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise QarnotInvalidSpecError(
        f"chunk_size is not a whole number of at least 1, got {shortened(repr(value), 80)}",
        field="chunk_size",
        remedy="Give a number, or leave it out.",
    )


__all__ = ["MAX_ITEMS", "array_results"]
