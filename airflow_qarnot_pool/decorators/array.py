"""``.array()`` of ``@task.qarnot``: many calls of a function as the instances of one Qarnot task.

A call is an *item*. See :mod:`~airflow_qarnot_pool.operators.bases.array` for rounds and reports.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.api.limits import parse_json, parsing_stored_state
from airflow_qarnot_pool.decorators import node, payload
from airflow_qarnot_pool.decorators.qarnot import REJECTED, _check_known, _QarnotDecoratedOperator
from airflow_qarnot_pool.exceptions import QarnotTaskFailedError
from airflow_qarnot_pool.hooks.qarnot import QarnotHook
from airflow_qarnot_pool.logs.array_reports import MAX_HELD, MAX_VALUES, ArrayFinder, parse_report
from airflow_qarnot_pool.operators.bases.array import ArrayOperator, in_parallel

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.models import Task
    from airflow_qarnot_pool.decorators.bucket import PayloadBucket

#: Maximum characters of the arguments of all items. Each instance reads all of them.
MAX_ARGUMENTS = 64 * 1024 * 1024


class _QarnotArrayOperator(ArrayOperator, _QarnotDecoratedOperator):
    """Run many calls of a function in one Qarnot task. The list of their results is the XCom.

    :param array_names: names of the arguments that are lists.
    """

    items_parameter = "op_kwargs"
    rejected_parameters: ClassVar[Mapping[str, str]] = {
        name: remedy for name, remedy in REJECTED.items() if name != "chunk_size"
    }

    def __init__(self, *, array_names: Sequence[str], **kwargs: Any) -> None:
        self.array_names = tuple(array_names)
        super().__init__(**kwargs)

    @property
    def _noun(self) -> str:
        return f"@task.qarnot: the array of {self._function.name}()"

    @property
    def _noun_of_items(self) -> str:
        return f"items of {self._function.name}()"

    # --- the items

    def _check_arguments(self, function: Any) -> None:
        args, kwargs = self._arguments()
        self._check_filled(function, args, kwargs)
        lists = {name: kwargs.pop(name) for name in self.array_names}
        known = {name: values for name, values in lists.items() if not hasattr(values, "iter_references")}
        for name, values in known.items():
            self._check_list(name, values)
        if len(known) == len(lists):
            self._check_total(math.prod(map(len, lists.values())))
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

    def _count_items(self) -> int:
        kwargs = dict(self.op_kwargs)
        for name in self.array_names:
            self._check_list(name, kwargs[name])
            # A slice of the results of mapped tasks is one request.
            kwargs[name] = list(kwargs[name][:])
        self.op_kwargs = kwargs
        return math.prod(len(kwargs[name]) for name in self.array_names)

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

    # --- the reports

    @property
    def _mark(self) -> str:
        return f"{node.MARK} {self._nonce} "

    def _new_finder(self) -> ArrayFinder:
        return ArrayFinder(self._mark, parse_report)

    def _has_file(self, name: str) -> bool:
        return self._bucket is not None and self._bucket.has(name)

    def _lines_of(self, error: Mapping[str, str]) -> list[str]:
        return self._error_lines(error)

    def _about(self, task: Task, *, has_errors: bool) -> str:
        return self._this_was(task) if has_errors else self._report(task)

    # --- the result

    def _results(self) -> Any:
        """Return the results in the order of the items, or a reference to them if they are too large."""
        found, name = self._found, self._function.name
        size = found.size + sum(size for _, _, size in found.files.values())
        if size > MAX_VALUES:
            return self._reference(size)
        texts = dict(found.values)
        names = {(file, sha256) for file, sha256, _ in found.files.values()}
        contents: dict[tuple[str, str], Mapping[str, Any]] = {}
        if names:
            bucket = self._results_bucket.connected()
            read = in_parallel(lambda file: _content(bucket, *file), names)
            contents = dict(zip(names, read, strict=True))
        for item, (file, sha256, _) in found.files.items():
            texts[item] = _text_of(contents[file, sha256], item, file)
        return [
            payload.value_of(texts[item], self.serializer, name) if item in texts else None
            for item in range(found.total)
        ]

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
        if self._bucket is None or found.size > MAX_HELD:
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
    # After a retry, neighbours are often in the files of two rounds.
    read = lru_cache(maxsize=2)(partial(_content, bucket))
    for item in map(str, range(total)):
        text = values.get(item)
        if file := files.get(item):
            text = _text_of(read(*file), int(item), file[0])
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


__all__ = ["array_results"]
