"""Tell how many items of an array have finished. Nothing here sends a request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.models import Task

#: Minimum seconds between two lines of the log.
REPORT_INTERVAL = 10.0


class ArrayProgress:
    """Makes lines of a log from the polls of an array: at most one every 10 s, and only if something has changed.

    A poll shows which instances have finished, and not which items. So the items of a chunk count when the chunk has
    finished.

    :param items: number of items in this Qarnot task.
    :param size: number of items of an instance. The last one may have fewer.
    :param done: number of items that earlier Qarnot tasks of the array have done.
    """

    def __init__(self, items: int, size: int, done: int = 0) -> None:
        self._items, self._size, self._done = items, size, done
        self._last = (0, 0, 0)
        self._told_at = float("-inf")

    def to_json(self) -> dict[str, int]:
        """Return the arguments, for a trigger."""
        return {"items": self._items, "size": self._size, "done": self._done}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> ArrayProgress:
        """Read the result of :meth:`to_json`."""
        return cls(int(stored["items"]), int(stored["size"]), int(stored["done"]))

    def line(self, task: Task, now: float) -> str | None:
        """Return a line about the state that a poll shows; None if there is nothing new, or if it is too soon.

        :param now: monotonic time in seconds.
        """
        failed = self._items_of(task.failed_instances)
        finished = self._items_of(task.succeeded_instances) + failed
        running = min((task.running_instance_count or 0) * self._size, self._items - finished)
        counts = (finished, running, failed)
        if counts == self._last or now - self._told_at < REPORT_INTERVAL:
            return None
        self._last, self._told_at = counts, now
        where = "failed" if self._size == 1 else "in instances that failed"
        failures = f" ({failed:,} {where})" if failed else ""
        total = self._done + self._items
        return f"Items: {self._done + finished:,} of {total:,} finished{failures}, {running:,} running"

    def _items_of(self, instances: Iterable[int]) -> int:
        return sum(max(0, min(self._size, self._items - one * self._size)) for one in instances)


__all__ = ["REPORT_INTERVAL", "ArrayProgress"]
