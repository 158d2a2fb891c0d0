"""Find the report that a program on a node prints as a line of its output."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from airflow_qarnot_pool.progress import MARK, MAX_REPORT, parse_progress

T = TypeVar("T")


class LineFinder(Generic[T]):
    """Finds the line with the report in standard output while that is read.

    The last report counts, because Qarnot keeps the attempts of an instance in one output.

    :param mark: prefix of the line.
    :param parse: decodes the rest of the line. Raises ValueError if it is malformed.
    :param max_length: maximum characters of the line.
    :param form: pattern of the rest of the line.
    """

    def __init__(
        self, mark: str, parse: Callable[[str], T], max_length: int, form: str = "[A-Za-z0-9_=.-]+"
    ) -> None:
        self.mark = mark
        self._parse, self._max_length = parse, max_length
        self._line = re.compile(rf"^{re.escape(mark)}({form})", re.MULTILINE)
        #: The report. None if there is none, or if it cannot be read.
        self.report: T | None = None
        #: Why the last report cannot be read.
        self.problem = ""
        #: Whether the output has been read to its end.
        self.complete = False

    def watch(self, pieces: Iterable[str]) -> Iterator[str]:
        """Yield *pieces*, and search them for the report."""
        self.report, self.problem, self.complete = None, "", False
        rest = ""
        for piece in pieces:
            yield piece
            lines, newline, last = (rest + piece).rpartition("\n")
            if newline:
                self._search(lines)
            length = min(len(last), len(self.mark))
            if last[:length] != self.mark[:length]:
                rest = "."  # in the middle of another line
            elif len(last) > self._max_length:
                self.report, self.problem, rest = None, self._too_long(), "."
            else:
                rest = last
        self._search(rest)
        self.complete = True

    def _search(self, lines: str) -> None:
        for match in self._line.finditer(lines):
            self.report, self.problem = None, ""
            try:
                if len(match[1]) > self._max_length:
                    raise ValueError(self._too_long())
                self.report = self._parse(match[1])
            except ValueError as error:
                self.problem = str(error)

    def _too_long(self) -> str:
        return f"it has more than {self._max_length:,} characters"


class ProgressFinder(LineFinder[dict[str, Any]]):
    """Finds the last report of progress. A malformed one is ignored."""

    def __init__(self) -> None:
        super().__init__(MARK, self._note, len(MARK) + MAX_REPORT + 1, form=r"\{.*\}(?=\s*$)")
        self.last: dict[str, Any] | None = None

    def _note(self, text: str) -> dict[str, Any]:
        self.last = parse_progress(text)
        return self.last
