"""Base of the operators that run many items as the instances of one Qarnot task.

Each instance runs a *chunk* of items. The reports of the nodes (:mod:`~airflow_qarnot_pool.logs.array_reports`) say
which items have succeeded.

Each Qarnot task of a lineage is a *round*. The first one has all items. The next one has the items that no earlier one
has reported as done. The number of the round is part of the fingerprint, so a later try adopts the Qarnot task of its
own round and no other.
"""

from __future__ import annotations

import json
import math
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_qarnot_pool.api import filters
from airflow_qarnot_pool.api.errors import (
    QarnotInvalidSpecError,
    QarnotNotFoundError,
    named_items,
    shortened,
)
from airflow_qarnot_pool.api.limits import parse_number, parsing_stored_state
from airflow_qarnot_pool.exceptions import QarnotNodeLostError, QarnotTaskFailedError
from airflow_qarnot_pool.logs.array_reports import ArrayFinder, ArrayReports, ItemReport
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.ownership.identity import KEPT_LABEL, LINEAGE_TAG
from airflow_qarnot_pool.ownership.ladder import is_lost, is_node_loss
from airflow_qarnot_pool.parameters.array_rounds import items_of, round_text
from airflow_qarnot_pool.version_compat import AirflowSkipException
from airflow_qarnot_pool.waiting.array_progress import ArrayProgress
from airflow_qarnot_pool.waiting.polling import get_confirmed

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_qarnot_pool.api.models import Task
    from airflow_qarnot_pool.api.specs import TaskSpec
    from airflow_qarnot_pool.logs.cursor import LogCursor
    from airflow_qarnot_pool.ownership.claim import Claim
    from airflow_qarnot_pool.waiting.conditions import WaitResult

#: Maximum number of items.
MAX_ITEMS = 10_000
#: Number of instances above which the default chunk has several items.
MANY_INSTANCES = 1_000
#: Maximum number of instances. Qarnot's Rust SDK names it for ``advancedRanges``.
MAX_INSTANCES = 2_048
#: Maximum characters of the progress of all items, because it becomes an XCom.
MAX_PROGRESS = 1_000_000
#: Number of failed items whose errors an error shows in full.
SHOWN_ERRORS = 3
#: Name of the constant that says which items a Qarnot task has (see :func:`round_text`).
ROUND_CONSTANT = "AIRFLOW_QARNOT_PY_ARRAY"
#: Number of concurrent requests for the output of single instances, and for files.
_MAX_WORKERS = 8


class _NothingLeftError(BaseException):
    """All items are done, so nothing is submitted. It is no failure, which would end the Qarnot tasks."""


class _EndedMeanwhileError(Exception):
    """A Qarnot task of this round has ended since the lookup."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        super().__init__()
        self.tasks = list(tasks)


class ArrayOperator(QarnotRunTaskOperator):
    """Base of the operators that run many items in one Qarnot task.

    Items of an array:

    :param chunk_size: number of items in an instance. Default: 1 for up to 1,000 items, and as many as make 1,000
        instances for more.
    """

    returns_output = True
    #: Each instance would boot a node for a few items.
    _leaves_pool = False
    #: Parameter that has the items.
    items_parameter: ClassVar[str]

    def __init__(self, *, chunk_size: int | None = None, **kwargs: Any) -> None:
        self.chunk_size = _chunk_size(chunk_size)
        super().__init__(**kwargs)
        self._labels[KEPT_LABEL] = "true"
        self._reports: ArrayReports | None = None
        self._base = ""
        self._round = 1
        #: Qarnot tasks of earlier rounds whose reports are read.
        self._earlier: list[str] = []
        self._lost_rounds: list[Task] = []
        #: The progress of the Qarnot task of this round.
        self._array_progress: ArrayProgress | None = None

    # --- what differs

    @abstractmethod
    def _count_items(self) -> int:
        """Return the number of items, of which all parameters are rendered."""

    @property
    @abstractmethod
    def _noun(self) -> str:
        """A name of the array at the start of an error."""

    @property
    @abstractmethod
    def _noun_of_items(self) -> str:
        """A name of the items after their number."""

    @property
    @abstractmethod
    def _mark(self) -> str:
        """Prefix of the lines with reports, which the work itself cannot know."""

    @abstractmethod
    def _new_finder(self) -> ArrayFinder:
        """Return a finder of these lines."""

    @abstractmethod
    def _results(self) -> Any:
        """Return the result of an array, all of whose items are done."""

    @abstractmethod
    def _lines_of(self, error: Mapping[str, str]) -> list[str]:
        """Return the lines of the error of an item."""

    def _of_items(self, spec: TaskSpec, items: Sequence[int], values: Mapping[str, Any]) -> TaskSpec:
        """Return *spec* for a round with these items.

        :param values: number of instances, and constants.
        """
        made: TaskSpec = spec.with_values(**values)
        return made

    def _has_file(self, name: str) -> bool:
        """Return whether a file with results is there, although Qarnot does not say that its instance succeeded."""
        return False

    # --- the items

    def _check_total(self, total: int) -> None:
        if total > MAX_ITEMS:
            raise QarnotInvalidSpecError(
                f"{self._noun} has {total:,} items, and {MAX_ITEMS:,} fit",
                field=self.items_parameter,
                remedy="Let each item do the work of several, or make several arrays.",
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
        total = self._count_items()
        self._check_total(total)
        if not total:
            self._end("the array has no items")  # of an earlier try, or from before a clear
            raise AirflowSkipException(f"{self._noun} has no items")
        self._reports = ArrayReports(total)

    @property
    def _found(self) -> ArrayReports:
        assert self._reports is not None
        return self._reports

    def _given_now(self) -> dict[str, Any]:
        # An instance that Qarnot repeats would run items again that have succeeded.
        values = {"retry": 0, **super()._given_now()}
        # The round replaces it. It counts as a constant here, of which a Qarnot task has a limited number.
        return {**values, "constants": {**(values.get("constants") or {}), ROUND_CONSTANT: ""}}

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
        if spec.ranges or spec.instance_count != 1:
            field = "ranges" if spec.ranges else "instance_count"
            raise QarnotInvalidSpecError(
                f"{field} is not a parameter of an array, which numbers its instances itself",
                field=field,
                remedy="Leave it out.",
            )
        return spec

    # --- submit a round

    def _submit_and_wait(self, context: Context, *args: Any, **options: Any) -> Any:
        try:
            return super()._submit_and_wait(context, *args, **options)
        except _NothingLeftError:
            self._log_end()
            self._push_progress(context)
            return self._results_or_skip()

    def _claim(self, context: Context, spec: TaskSpec, **options: Any) -> Claim:
        """Get the Qarnot task of this round, with the items that no earlier one has done.

        :raises _NothingLeftError: all items are done.
        """
        from airflow_qarnot_pool.ownership.claim import FINGERPRINT_EXCLUDES

        assert self._identity is not None
        self._base = spec.fingerprint(exclude=FINGERPRINT_EXCLUDES)
        if options.get("lookup_first") or self._identity.has_history:
            self._look_up()
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
        size, total = self._size(len(items)), self._found.total
        count = math.ceil(len(items) / size)
        self.log.info(
            "Round %d: %s in %s", self._round, _counted(len(items), "item"), _counted(count, "instance")
        )
        self._array_progress = ArrayProgress(len(items), size, total - len(items))
        text = round_text(self._round, size, items, total)
        constants = {**(spec.constants or {}), ROUND_CONSTANT: text}
        return self._of_items(spec, items, {"instance_count": count, "constants": constants})

    def _refine(self, spec: TaskSpec, earlier: Iterable[Task]) -> TaskSpec:
        """Refuse to repeat a round that has ended."""
        if ended := list(earlier):
            raise _EndedMeanwhileError(ended)
        return spec

    def _look_up(self) -> None:
        """Find the Qarnot tasks of earlier rounds, and read what they have done."""
        from airflow_qarnot_pool.ownership.decisions import RemoteSnapshot

        assert self._identity is not None
        tagged = filters.equal("Tags", LINEAGE_TAG + self._identity.lineage)
        found = list(self.client.tasks.iterate(tagged))
        self._lost_rounds.clear()
        self._note(found)
        generations = {RemoteSnapshot.of(task).generation for task in found}
        if gone := set(range(1, max(generations, default=0))) - generations:
            self.log.warning(
                "%d earlier Qarnot tasks of this Airflow task are deleted. Items that only they have done run again",
                len(gone),
            )

    def _note(self, tasks: Iterable[Task]) -> None:
        """Read the Qarnot tasks of this array that have ended, and choose the number of the next round."""
        from airflow_qarnot_pool.ownership.decisions import RemoteSnapshot, Usability

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
            if is_lost(task):
                self._lost_rounds.append(task)
        if live:
            self._round = min(live)[1]

    def _carried(self) -> dict[str, Any]:
        return {**super()._carried(), "earlier": self._earlier}

    # --- its progress

    def _still_waiting(self, remote: Task) -> None:
        super()._still_waiting(remote)
        if self._array_progress and (line := self._array_progress.line(remote, time.monotonic())):
            self.log.info("%s", line)

    def _trigger_options(self, uuid: str) -> dict[str, Any]:
        options = super()._trigger_options(uuid)
        return {**options, "array": self._array_progress.to_json()} if self._array_progress else options

    def _log_end(self) -> None:
        found, failed = self._found, len(self._found.missing)
        succeeded, skipped = found.total - failed - len(found.skipped), len(found.skipped)
        self.log.info(
            "Items: %d of %d succeeded, %d skipped, %d failed", succeeded, found.total, skipped, failed
        )

    def _last_progress(self) -> dict[str, Any] | None:
        """Return the last progress of each item that has reported any, as far as it fits into an XCom."""
        found: dict[str, Any] = {}
        size = 0
        for item, values in sorted(self._found.progress.items()):
            size += len(json.dumps(values))
            if size > MAX_PROGRESS:
                self.log.warning("The progress of items from %d on does not fit into the XCom", item)
                break
            found[str(item)] = values
        return found or None

    # --- read the reports

    def _kept(self, uuid: str, stream: str, seconds: float) -> Iterable[str]:
        from airflow_qarnot_pool.logs.writer import fetch

        pieces = fetch(self.client, uuid, stream, None, seconds)
        if stream != "stdout":
            return pieces
        self._finders[uuid] = finder = self._new_finder()
        return finder.watch(pieces)

    def _nothing_written(self, uuid: str) -> LogCursor:
        from airflow_qarnot_pool.logs.cursor import LogCursor

        return LogCursor(uuid=uuid, hidden=self._mark)

    def _read(self, task: Task) -> None:
        """Read the reports of a Qarnot task that has ended."""
        try:
            self._read_output(task)
        except QarnotNotFoundError as error:
            if error.foreign or self._exists(task.uuid):
                raise  # the next try reads it
            self.log.warning("Qarnot task %s is deleted. Items that only it has done run again", task.uuid)

    def _exists(self, uuid: str) -> bool:
        try:
            get_confirmed(self.client.tasks, uuid)
        except QarnotNotFoundError as error:
            if error.foreign:
                raise
            return False
        return True

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
        text = task.constants.get(ROUND_CONSTANT)
        text = text or self.client.tasks.get(task.uuid).constants.get(ROUND_CONSTANT, "")
        with parsing_stored_state(f"The constant {ROUND_CONSTANT} of Qarnot task {task.uuid}"):
            items = {one: items_of(text, self._found.total, one) for one in instances}
        instances = [one for one in instances if not all(map(self._found.is_done, items[one]))]
        if instances:
            self.log.info("Reading %d outputs of Qarnot task %s one by one", len(instances), task.uuid)
        for start in range(0, len(instances), _MAX_WORKERS):
            batch = instances[start : start + _MAX_WORKERS]
            for reports in in_parallel(partial(self._read_instance, task), batch):
                self._add(task, reports)

    def _read_instance(self, task: Task, instance: int) -> list[ItemReport]:
        from airflow_qarnot_pool.logs.writer import RESULT_DEADLINE, retry_broken_read

        finder = self._new_finder()

        def read(seconds: float) -> None:
            deque(finder.watch(self._kept_of_instance(task, instance, seconds)), maxlen=0)

        retry_broken_read(read, RESULT_DEADLINE)
        return finder.reports

    def _kept_of_instance(self, task: Task, instance: int, seconds: float) -> Iterable[str]:
        try:
            return self.client.limited(deadline=seconds).tasks.stream_output(task.uuid, "stdout", instance)
        except QarnotNotFoundError as error:
            # A proxy does not know whether the instance has run, and one that has ended has an output.
            if error.foreign or instance in task.succeeded_instances | task.failed_instances:
                raise
            return ()

    def _add(self, task: Task, reports: Iterable[ItemReport]) -> None:
        succeeded = task.succeeded_instances
        for report in reports:
            # Qarnot need not have brought the files of an instance that failed or was cancelled.
            has_file = bool(report.file) and (report.instance in succeeded or self._has_file(report.file))
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
        return QarnotRunTaskOperator._report(self, task)  # without that of a single call

    def _result_or_error(self, task: Task, *, succeeded: bool) -> Any:
        self._read(task)
        self._log_end()
        if not self._found.missing:
            return self._results_or_skip()
        errors = self._found.errors
        # The error of a node that is lost is not an error of the work.
        is_lost = is_node_loss(task) and not any(item in errors for item in self._found.missing)
        raise (QarnotNodeLostError if is_lost else QarnotTaskFailedError)(
            self._failure(task), kind="task", ref=task.uuid
        )

    def _is_to_be_replaced(self, context: Context, task: Task) -> bool:
        if not is_lost(task):
            return super()._is_to_be_replaced(context, task)
        self._read(task)
        # An item that failed is not lost, though the node was lost after that.
        has_failed = any(item in self._found.errors for item in self._found.missing)
        return not has_failed and super()._is_to_be_replaced(context, task)

    def _repeats_all(self, spec: TaskSpec) -> bool:
        return False

    def _results_or_skip(self) -> Any:
        total, skipped = self._found.total, self._found.skipped
        if len(skipped) == total:
            raise AirflowSkipException(f"All {total:,} items skipped. {skipped[0]}")
        return self._results()

    def _failure(self, task: Task) -> str:
        """Return which items failed, and why the first of them did."""
        found = self._found
        missing = found.missing
        failed = [item for item in missing if item in found.errors]
        lost = [item for item in missing if item not in found.errors]
        lines = [
            f"{len(missing):,} of {found.total:,} {self._noun_of_items} failed: {named_items(missing)}. A retry runs "
            f"only {'these' if len(missing) > 1 else 'this'} again"
        ]
        for item in failed[:SHOWN_ERRORS]:
            summary, *detail = self._lines_of(found.errors[item])
            lines += [f"Item {item}: {summary}", *detail]
        if len(failed) > SHOWN_ERRORS:
            lines.append(f"The errors of the other {len(failed) - SHOWN_ERRORS:,} are in the output")
        if lost:
            lines.append(
                f"{len(lost):,} of them have reported neither a result nor an error: {named_items(lost)}"
            )
        lines.append(self._about(task, has_errors=not lost))
        return "\n".join(line for line in lines if line)

    def _about(self, task: Task, *, has_errors: bool) -> str:
        """Return the end of an error.

        :param has_errors: whether the error of each item that failed is known.
        """
        return self._report(task)


def in_parallel(function: Callable[[Any], Any], values: Iterable[Any]) -> list[Any]:
    """Return the results of *function* for *values*, some at the same time."""
    values = list(values)
    if not values:
        return []
    with ThreadPoolExecutor(max_workers=min(len(values), _MAX_WORKERS)) as threads:
        return list(threads.map(function, values))


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _chunk_size(value: Any) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise QarnotInvalidSpecError(
        f"chunk_size is not a whole number of at least 1, got {shortened(repr(value), 80)}",
        field="chunk_size",
        remedy="Give a number, or leave it out.",
    )


__all__ = ["MAX_ITEMS", "ROUND_CONSTANT", "ArrayOperator", "in_parallel"]
