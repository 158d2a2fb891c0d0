"""Checkpoint of how much of a Qarnot task's output has been written to the log, passed from one writer to the next.

A writer stores the lines that it is about to write, writes them, and confirms them once the write is known to have
succeeded. So the next writer knows which lines may or may not be in the log. It writes those again with their first
time. Airflow's log view omits a line that equals the line before it, time included. Nothing here does I/O.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any, NamedTuple, Self

from airflow_qarnot_pool.api.limits import parsing_stored_state
from airflow_qarnot_pool.logs.cursor import LogCursor

#: Seconds between the times of two lines, because Airflow sorts the lines of a log by milliseconds.
STEP = 0.001
#: Maximum number of followers in a lease.
MAX_FOLLOWERS = 50
#: Maximum number of unconfirmed lines in a checkpoint. A read yields far fewer.
MAX_DOUBTFUL = 2_000_000


class Batch(NamedTuple):
    """Unconfirmed lines, which may not be in the log yet.

    ``counts`` has the number of lines by label (``[stdout 0``), in their order. ``first`` is the time of the first
    line, in seconds since 1970. The others follow in steps of ``step`` seconds.
    """

    counts: tuple[tuple[str, int], ...]
    first: float
    step: float

    @classmethod
    def of(cls, lines: Sequence[str], since: float | None, now: float) -> Batch:
        """Return a batch of *lines*.

        :param since: time of the previous line, after which the times start, if it is known.
        :param now: time of the last line.
        """
        step = STEP if since is None else min(STEP, max(0.0, now - since) / max(1, len(lines)))
        counts = Counter(_label(line) for line in lines)
        return cls(tuple(counts.items()), round(now - step * (len(lines) - 1), 6), step)

    @property
    def size(self) -> int:
        """Return the number of lines."""
        return sum(count for _, count in self.counts)

    def times(self) -> Iterator[float]:
        """Return the times of the lines."""
        return (self.first + number * self.step for number in range(self.size))

    def to_json(self) -> list[Any]:
        """Return a JSON value."""
        return [[list(count) for count in self.counts], self.first, self.step]

    @classmethod
    def from_json(cls, value: Sequence[Any]) -> Batch:
        """Return the batch of which :meth:`to_json` returned *value*."""
        counts, first, step = value
        return cls(tuple((str(label), int(count)) for label, count in counts), float(first), float(step))


@dataclass(frozen=True, kw_only=True)
class Offset:
    """Position of a follower in an output.

    :param cursor: the end of the output that is in the log for certain.
    :param batches: unconfirmed lines after that.
    :param written: number of lines that this follower has written in all.
    """

    cursor: LogCursor
    batches: tuple[Batch, ...] = ()
    written: int = 0

    @property
    def doubtful(self) -> int:
        """Return the number of unconfirmed lines."""
        return sum(batch.size for batch in self.batches)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value."""
        batches = [batch.to_json() for batch in self.batches]
        return {**self.cursor.to_json(), "batches": batches, "written": self.written}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Offset:
        """Return the offset of which :meth:`to_json` returned *value*.

        :raises QarnotProtocolError: *value* is something else.
        """
        with parsing_stored_state("How far the output of a Qarnot task is written"):
            position = cls(
                cursor=LogCursor.from_json(value),
                batches=tuple(Batch.from_json(batch) for batch in value.get("batches") or ()),
                written=int(value.get("written") or 0),
            )
            if position.doubtful > MAX_DOUBTFUL:
                raise ValueError(f"{position.doubtful} lines are unconfirmed")
            return position


@dataclass(frozen=True)
class WriterLease:
    """The followers that have written the output of an Airflow task to its log. The last one is the current writer."""

    followers: tuple[str, ...] = ()

    @property
    def holder(self) -> str | None:
        """Return the current writer."""
        return self.followers[-1] if self.followers else None

    def acquired_by(self, follower: str) -> Self:
        """Return the lease with *follower* as the current writer."""
        others = tuple(other for other in self.followers if other != follower)
        return type(self)((*others, follower)[-MAX_FOLLOWERS:])

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value."""
        return {"followers": list(self.followers)}

    @classmethod
    def from_json(cls, value: Any) -> WriterLease:
        """Parse a stored lease. A missing or malformed value yields a lease without a holder."""
        followers = value.get("followers") if isinstance(value, Mapping) else None
        if not isinstance(followers, list):
            return cls()
        return cls(tuple(str(follower) for follower in followers[-MAX_FOLLOWERS:]))


class TimestampedLine(NamedTuple):
    """A line of output with its time."""

    line: str
    time: str


def with_timestamps(
    lines: Sequence[str], batches: tuple[Batch, ...], since: float | None, now: float
) -> tuple[list[TimestampedLine], tuple[Batch, ...]]:
    """Return *lines* with their times, and all batches.

    The first lines of each label get the times that they have in *batches*. The others form a new batch.
    """
    times: dict[str, deque[float]] = {}

    def add_times(batch: Batch) -> None:
        remaining = batch.times()
        for label, count in batch.counts:
            times.setdefault(label, deque()).extend(islice(remaining, count))

    for batch in batches:
        add_times(batch)
        since = max(since or 0.0, batch.first + batch.step * (batch.size - 1))
    unmatched = Counter({label: len(queue) for label, queue in times.items()})
    new_lines: list[str] = []
    for line in lines:
        unmatched[_label(line)] -= 1
        if unmatched[_label(line)] < 0:
            new_lines.append(line)
    if new_lines:
        new = Batch.of(new_lines, since, max(now, since or now))
        add_times(new)
        batches = (*batches, new)
    return [TimestampedLine(line, _text(times[_label(line)].popleft())) for line in lines], batches


def rewrite_notice(count: int) -> str:
    """Return the warning that *count* lines are written again."""
    lines = "One line" if count == 1 else f"{count:,} lines"
    return (
        f"{lines} of the output may not have reached the log when the previous triggerer stopped, and "
        f"{'is' if count == 1 else 'are'} written again here, with the time of the first writing. If both are "
        "there, Airflow's log view shows one"
    )


def _label(line: str) -> str:
    return line.partition("]")[0]


def _text(time: float) -> str:
    return datetime.fromtimestamp(time, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
