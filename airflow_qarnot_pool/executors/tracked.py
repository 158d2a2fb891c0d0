"""An attempt on its way through Qarnot, as the executor's thread knows it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from airflow_qarnot_pool.executors import retries

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.models import Task
    from airflow_qarnot_pool.api.specs import TaskSpec
    from airflow_qarnot_pool.executors.pool import PoolKey
    from airflow_qarnot_pool.executors.running import Attempt
    from airflow_qarnot_pool.executors.watches import CallbackSubscriber

#: Maximum seconds from an accepted abort to its end for which the next attempt of the task instance waits.
MAX_HELD = 240.0


@dataclass(frozen=True, kw_only=True)
class Submission:
    """An attempt, and the Qarnot task to create for it on a pool, whose nodes need *archive* of a bundle."""

    attempt: Attempt
    spec: TaskSpec = field(repr=False)
    pool: PoolKey
    archive: str | None = None


@dataclass(eq=False, slots=True)
class Tracked:
    """An attempt on its way: to be submitted, to be found, or watched."""

    attempt: Attempt
    #: None for an attempt of another scheduler.
    submission: Submission | None = None
    uuid: str | None = None
    watch: CallbackSubscriber | None = None
    is_sending: bool = False
    #: Whether it may exist on Qarnot without a known uuid.
    is_unclear: bool = False
    is_aborting: bool = False
    #: When Qarnot has accepted its abort, on the clock of ``time.monotonic``.
    aborted_at: float = math.inf
    #: The Qarnot task that was seen to fail.
    failed: Task | None = None
    #: Whether the Qarnot task belongs to another attempt of the same task instance, and perhaps to another scheduler.
    is_twin: bool = False
    #: When Qarnot has first refused it, and when it may be asked again, on the clock of ``time.monotonic``.
    refused_since: float | None = None
    retry_at: float = 0.0
    #: When the scheduler has handed it over, on the clock of ``time.monotonic``.
    since: float = field(default_factory=time.monotonic)

    @property
    def is_unsent(self) -> bool:
        """Whether it has yet to be created."""
        return self.submission is not None and self.uuid is None

    @property
    def archive(self) -> str | None:
        """The archive of a bundle that its nodes need."""
        return self.submission.archive if self.submission is not None else None

    @property
    def seconds_left(self) -> float:
        """Seconds until it has waited for too long to be submitted, or for a slot."""
        limit = self.submission.spec.max_time_queue if self.submission is not None else None
        return math.inf if limit is None else limit.total_seconds() - (time.monotonic() - self.since)

    @property
    def holds_next(self) -> bool:
        """Whether the next attempt of its task instance waits for its end. A lost end holds it for minutes only."""
        return self.is_aborting and time.monotonic() - self.aborted_at < MAX_HELD

    @property
    def is_to_abort(self) -> bool:
        """Whether its abort has yet to be sent."""
        return self.is_aborting and self.aborted_at == math.inf

    @property
    def is_due(self) -> bool:
        """Whether Qarnot may be asked about it now."""
        return time.monotonic() >= self.retry_at

    def refuse(self) -> bool:
        """Record that Qarnot refuses it, and return whether it has done so for long enough to count."""
        now = time.monotonic()
        self.refused_since = now if self.refused_since is None else self.refused_since
        age = now - self.refused_since
        self.retry_at = now + min(max(retries.FIRST_PAUSE, age), retries.MAX_PAUSE)
        return age >= retries.REFUSED_FOR
