"""Read the reports of the items of an array from the output of its Qarnot tasks.

The node reports every item in the output of its instance. These reports say which items have succeeded. The state of
the Qarnot task does not, because an instance fails with one of its items.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from airflow_qarnot_pool.api import command_array
from airflow_qarnot_pool.api.commands import RETURN_FILE
from airflow_qarnot_pool.api.limits import decompress, parse_json, parse_number
from airflow_qarnot_pool.logs.report import LineFinder
from airflow_qarnot_pool.parameters.json_values import json_problem
from airflow_qarnot_pool.progress import parse_progress

#: Maximum characters of the results of all items, because they become an XCom.
MAX_VALUES = 10_000_000
#: Maximum characters of results in memory. Honest nodes print less.
MAX_HELD = 4 * MAX_VALUES
#: Maximum bytes of the report of an instance with any number of items.
MAX_REPORT = 8_000_000
#: Maximum bytes of all reports of a Qarnot task, because compressed data may become much longer.
MAX_REPORTS = 200_000_000


@dataclass
class ArrayReports:
    """What the instances of all Qarnot tasks of an array have reported. The first success of an item counts."""

    total: int
    values: dict[int, str] = field(default_factory=dict)
    #: Name and hash of the file that has the result of an item, and the size of the result.
    files: dict[int, tuple[str, str, int]] = field(default_factory=dict)
    skipped: dict[int, str] = field(default_factory=dict)
    errors: dict[int, dict[str, str]] = field(default_factory=dict)
    #: The last progress that an item has reported.
    progress: dict[int, dict[str, Any]] = field(default_factory=dict)
    #: Characters in ``values``.
    size: int = 0

    @property
    def missing(self) -> list[int]:
        """The items that have not succeeded, as far as is known."""
        return [item for item in range(self.total) if not self.is_done(item)]

    def is_done(self, item: int) -> bool:
        """Return whether *item* has a result, or was skipped."""
        return item in self.values or item in self.files or item in self.skipped

    def add(self, report: ItemReport, *, has_file: bool) -> None:
        """Add a report.

        :param has_file: whether the file that the report names is there.
        """
        for item, values in report.progress.items():
            if item < self.total and not self.is_done(item):
                self.progress[item] = values
        for item, outcome in report.outcomes.items():
            if item >= self.total or self.is_done(item):
                continue
            if "value" in outcome:
                self.size += len(outcome["value"])
                # What does not fit into an XCom is not held.
                self.values[item] = outcome["value"] if self.size <= MAX_HELD else ""
            elif "skip" in outcome:
                self.skipped[item] = outcome["skip"]
            else:
                self.errors[item] = outcome["error"]
        for item, size in report.sizes.items() if has_file else ():
            if item < self.total and not self.is_done(item):
                self.files[item] = (report.file, report.sha256, size)


@dataclass(frozen=True)
class ItemReport:
    """A report of an instance: of one item, or at the end of all its items."""

    #: Number of its bytes.
    length: int
    outcomes: Mapping[int, Mapping[str, Any]]
    #: Set at the end.
    instance: int | None = None
    file: str = ""
    sha256: str = ""
    sizes: Mapping[int, int] = field(default_factory=dict)
    progress: Mapping[int, dict[str, Any]] = field(default_factory=dict)


def parse_report(encoded: str) -> ItemReport:
    """Decode a report. Raises ValueError unless it has the format of :mod:`~airflow_qarnot_pool.decorators.node`."""
    try:
        data = decompress(base64.urlsafe_b64decode(encoded), MAX_REPORT)
        report = parse_json(data)
        instance = report.get("instance")
        return ItemReport(
            length=len(data),
            outcomes={_index(item): _outcome(outcome) for item, outcome in report["items"].items()},
            instance=None if instance is None else _index(instance),
            file=str(report.get("file", "")),
            sha256=str(report.get("sha256", "")),
            sizes={_index(item): _index(size) for item, size in report.get("sizes", {}).items()},
            progress=dict(_progress(report.get("progress", {}))),
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError("it does not have the format that the node writes") from error


def parse_command_report(text: str, skip_codes: Collection[int]) -> ItemReport:
    """Decode a report of :mod:`~airflow_qarnot_pool.api.command_array`. Raises ValueError if it is malformed.

    :param skip_codes: exit codes with which an item skips.
    """
    item, code, kind, data = [*text.split("."), "", "", ""][:4]
    if item == "end":
        return ItemReport(length=len(text), outcomes={}, instance=_index(code))
    outcome = _outcome_of_command(_index(code), kind, data, skip_codes)
    return ItemReport(length=len(text), outcomes={_index(item): outcome})


def _outcome_of_command(code: int, kind: str, data: str, skip_codes: Collection[int]) -> dict[str, Any]:
    if code in skip_codes:
        return {"skip": f"The command exited with code {code}"}
    if code:
        return _error(f"the command exited with code {code}")
    if kind == "none":
        return {"value": "null"}
    if kind == "long":
        return _error(
            f"the values of its instance have more than {command_array.MAX_VALUES:,} bytes. Set a smaller chunk_size, "
            "or let the command write files and return their names"
        )
    if kind != "json":
        raise ValueError("it does not have the format that the node writes")
    try:
        value = base64.urlsafe_b64decode(data).decode()
        problem = json_problem(parse_json(value), for_xcom=True)
    except ValueError as error:
        return _error(f"the file {RETURN_FILE} is not JSON ({error})")
    return (
        _error(f"the file {RETURN_FILE} has {problem}, which no XCom can have")
        if problem
        else {"value": value}
    )


def _error(summary: str) -> dict[str, Any]:
    return {"error": {"summary": summary, "detail": ""}}


def _index(value: Any) -> int:
    number = parse_number(str(value))
    if number is None:
        raise ValueError(f"{value!r} is no number")
    return number


def _progress(reported: Mapping[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the progress of each item. A malformed one is ignored, because the results beside it count."""
    for item, values in reported.items():
        with suppress(ValueError):
            yield _index(item), parse_progress(json.dumps(values))


def _outcome(outcome: Mapping[str, Any]) -> Mapping[str, Any]:
    error = outcome.get("error")
    if isinstance(error, Mapping):
        return {"error": {name: str(error[name]) for name in ("summary", "detail")}}
    if not all(isinstance(text, str) for text in outcome.values()) or not {"value", "skip"} & outcome.keys():
        raise ValueError("it does not have the format that the node writes")
    return outcome


class ArrayFinder(LineFinder[ItemReport]):
    """Finds all reports in the common output of the instances, in which each line starts with the instance's number.

    Also reads the output of one instance, which has no such numbers.
    """

    def __init__(self, mark: str, parse: Callable[[str], ItemReport]) -> None:
        super().__init__(mark, parse, 2 * MAX_REPORT)
        self._line = re.compile(rf"^(?:\d{{1,9}}> )?{re.escape(self.mark)}([A-Za-z0-9_=.-]+)$", re.MULTILINE)
        self.reports: list[ItemReport] = []
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
                if self._held > MAX_REPORTS:
                    raise ValueError(f"the reports are more than {MAX_REPORTS:,} bytes")
                self.reports.append(report)
            except ValueError as error:
                self.problem = str(error)
