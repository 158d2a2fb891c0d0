"""How far the output of a Qarnot task is in a log, handed from whoever writes it to whoever goes on.

Whoever follows an output notes what it is about to write before it writes, and that it is written once that is
certain. So the next one knows which lines may or may not have arrived. Those it writes again, with the time they had:
Airflow's log view leaves out a line that is the same as the one before, time included. Nothing here does I/O.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any, NamedTuple, Self

from airflow_qarnot_pool.api.limits import reading
from airflow_qarnot_pool.logs.cursor import LogCursor

#: Seconds between the times of two lines. Airflow sorts the lines of a log by milliseconds.
STEP = 0.001
#: Followers that a claim remembers.
MAX_FOLLOWERS = 50
#: Maximum lines in doubt that a note can name. A look writes far fewer.
MAX_DOUBTFUL = 2_000_000


class Batch(NamedTuple):
    """Lines on their way to the log.

    ``counts``: how many by label (``[stdout 0``), in their order. ``first``: time of the first line, in seconds since
    1970; the others follow in steps of ``step`` seconds.
    """

    counts: tuple[tuple[str, int], ...]
    first: float
    step: float

    @classmethod
    def of(cls, lines: Sequence[str], since: float | None, now: float) -> Batch:
        """The times end *now* and, where that is known, begin after *since*, the time of the line before."""
        step = STEP if since is None else min(STEP, max(0.0, now - since) / max(1, len(lines)))
        counts = Counter(_label(line) for line in lines)
        return cls(tuple(counts.items()), round(now - step * (len(lines) - 1), 6), step)

    @property
    def size(self) -> int:
        return sum(count for _, count in self.counts)

    def times(self) -> Iterator[float]:
        return (self.first + number * self.step for number in range(self.size))

    def to_json(self) -> list[Any]:
        return [[list(one) for one in self.counts], self.first, self.step]

    @classmethod
    def from_json(cls, value: Sequence[Any]) -> Batch:
        counts, first, step = value
        return cls(tuple((str(label), int(count)) for label, count in counts), float(first), float(step))


@dataclass(frozen=True, kw_only=True)
class Offset:
    """How far a follower is.

    :param cursor: up to where the output is in the log for certain.
    :param batches: what comes after that and may be in the log or not.
    :param written: lines this follower has written in all.
    """

    cursor: LogCursor
    batches: tuple[Batch, ...] = ()
    written: int = 0

    @property
    def doubtful(self) -> int:
        """Lines that may be in the log or not."""
        return sum(batch.size for batch in self.batches)

    def to_json(self) -> dict[str, Any]:
        batches = [batch.to_json() for batch in self.batches]
        return {**self.cursor.to_json(), "batches": batches, "written": self.written}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Offset:
        """Read back what :meth:`to_json` wrote; without batches what the release before did.

        :raises QarnotProtocolError: it is something else.
        """
        with reading("How far the output of a Qarnot task is written"):
            position = cls(
                cursor=LogCursor.from_json(value),
                batches=tuple(Batch.from_json(one) for one in value.get("batches") or ()),
                written=int(value.get("written") or 0),
            )
            if position.doubtful > MAX_DOUBTFUL:
                raise ValueError(f"{position.doubtful} lines are in doubt")
            return position


@dataclass(frozen=True)
class WriterLease:
    """Who writes the output of an Airflow task to its log, the last one now. Each has a position of its own.

    :param earlier: a position, where the release before has stored it in the claim's place.
    """

    followers: tuple[str, ...] = ()

    @property
    def holder(self) -> str | None:
        return self.followers[-1] if self.followers else None

    def acquired_by(self, follower: str) -> Self:
        others = tuple(one for one in self.followers if one != follower)
        return type(self)((*others, follower)[-MAX_FOLLOWERS:])

    def to_json(self) -> dict[str, Any]:
        return {"followers": list(self.followers)}

    @classmethod
    def from_json(cls, value: Any) -> WriterLease:
        """Read back what is stored; nothing, and what is no claim, is one that nobody holds."""
        followers = value.get("followers") if isinstance(value, Mapping) else None
        if not isinstance(followers, list):
            return cls()
        return cls(tuple(str(one) for one in followers[-MAX_FOLLOWERS:]))


class TimestampedLine(NamedTuple):
    """A line for the log, and its time."""

    line: str
    time: str


def with_timestamps(
    lines: Sequence[str], batches: tuple[Batch, ...], since: float | None, now: float
) -> tuple[list[TimestampedLine], tuple[Batch, ...]]:
    """*lines* with their times: the first ones of each label those they had in *batches*; and all batches."""
    times: dict[str, deque[float]] = {}

    def know(batch: Batch) -> None:
        ahead = batch.times()
        for label, count in batch.counts:
            times.setdefault(label, deque()).extend(islice(ahead, count))

    for batch in batches:
        know(batch)
        since = max(since or 0.0, batch.first + batch.step * (batch.size - 1))
    known = Counter({label: len(queue) for label, queue in times.items()})
    fresh: list[str] = []
    for line in lines:
        known[_label(line)] -= 1
        if known[_label(line)] < 0:
            fresh.append(line)
    if fresh:
        new = Batch.of(fresh, since, max(now, since or now))
        know(new)
        batches = (*batches, new)
    return [TimestampedLine(line, _text(times[_label(line)].popleft())) for line in lines], batches


def rewrite_notice(count: int) -> str:
    """Announces that lines are written again."""
    lines = "One line" if count == 1 else f"{count:,} lines"
    return (
        f"{lines} of the output may not have reached the log when the triggerer before stopped, and "
        f"{'is' if count == 1 else 'are'} written again here, with the time of the first writing: where both are "
        "there, Airflow's log view shows one"
    )


def _label(line: str) -> str:
    return line.partition("]")[0]


def _text(time: float) -> str:
    return datetime.fromtimestamp(time, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
