"""Objects of the local Qarnot, as plain data. Their life is in pools.py, tasks.py and attempt.py."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from airflow_qarnot_pool.local.backend import states
from airflow_qarnot_pool.local.backend.billing import BillingMeter
from airflow_qarnot_pool.local.backend.clock import Timer
from airflow_qarnot_pool.local.backend.scaling import Policy


@dataclass(kw_only=True, slots=True, eq=False)
class Remote:
    """Base of pools, tasks and jobs. Times are virtual epoch seconds."""

    uuid: str
    seq: int
    name: str
    shortname: str
    created: float
    state: str
    tags: list[str] = field(default_factory=list)
    constants: dict[str, str] = field(default_factory=dict, repr=False)
    spec: dict[str, Any] = field(default_factory=dict)
    """Fields of the creation that are stored and returned unchanged."""
    previous_state: str = ""
    moved: float = 0.0
    previously_moved: float = 0.0
    modified: float = 0.0
    ended: float | None = None
    errors: list[dict[str, str]] = field(default_factory=list)
    time_to_live: float = 0.0
    auto_delete: bool = False
    skew: float = 0.0
    """Error of all its shown times, in seconds."""

    def __post_init__(self) -> None:
        self.previous_state = self.previous_state or self.state
        self.moved = self.previously_moved = self.modified = self.created


FINAL_STATES = frozenset({"success", "failure", "cancelled"})


@dataclass(slots=True)
class Dependency:
    """A task that must finish first, and the final states after which the dependent task may run.

    :param condition: the requested final states, as responses return them, or None for any.
    :param final: the final state once the task has finished.
    """

    uuid: str
    allowed: frozenset[str] = FINAL_STATES
    advanced: bool = False
    condition: Any = None
    final: str | None = None

    @property
    def met(self) -> bool | None:
        """Whether the condition is met, or None if that is not known yet."""
        return None if self.final is None else self.final.lower() in self.allowed


class InstancePhase(Enum):
    """Phase of an instance. The values are Qarnot's phase names, if it has one."""

    WAITING = "waiting"
    PLACED = "dispatch"
    RUNNING = "execution"
    UPLOADING = "upload"
    SUCCESS = "Success"
    FAILURE = "Failure"
    CANCELLED = "Cancelled"


@dataclass(slots=True, eq=False)
class Instance:
    task: Task
    id: int
    phase: InstancePhase = InstancePhase.WAITING
    attempts: int = 0
    node: Node | None = None
    """Its node."""
    booting: Node | None = None
    """The node that boots for it if its task has no pool."""
    started: float | None = None
    executed: float = 0.0
    """Seconds of execution in all attempts."""
    run: str | None = None
    """Id of its run in the supervisor."""
    lost: bool = False
    directory: str | None = None

    @property
    def is_finished(self) -> bool:
        return self.phase in (InstancePhase.SUCCESS, InstancePhase.FAILURE, InstancePhase.CANCELLED)

    @property
    def on_node(self) -> bool:
        return self.phase in (InstancePhase.PLACED, InstancePhase.RUNNING, InstancePhase.UPLOADING)


@dataclass(slots=True, eq=False)
class Node:
    """One machine. It lives as long as its pool, or for one attempt of a task without a pool."""

    id: str
    number: int
    slots: int
    asked: float
    pool: Pool | None = None
    instance: Instance | None = None
    placed: bool = False
    up: float | None = None
    is_released: bool = False
    loss: str = "lost"
    """How it was lost, if it was: lost or preempted."""
    idle_since: float = 0.0
    running: set[Instance] = field(default_factory=set)
    timers: list[Timer] = field(default_factory=list)
    run: str | None = None
    """Id of its preparation command while that runs."""

    @property
    def owner(self) -> Pool | Task | None:
        """The object that pays for it."""
        return self.pool or (self.instance.task if self.instance else None)

    @property
    def free(self) -> int:
        return self.slots - len(self.running) if self.up is not None and not self.is_released else 0


@dataclass(kw_only=True, slots=True, eq=False)
class Pool(Remote):
    profile: str
    instance_count: int
    slots_per_node: int
    elastic: dict[str, Any]
    scaling: list[Policy] | None
    meter: BillingMeter
    nodes: dict[int, Node] = field(default_factory=dict)
    tasks: dict[str, Task] = field(default_factory=dict)
    queue: deque[Instance] = field(default_factory=deque)
    waiting: int = 0
    running: int = 0
    """Instances on its nodes."""
    slots: int = 0
    target: int = 0
    policy: str | None = None
    settled: bool = False
    grow_after: float = 0.0
    last_tick: float = float("-inf")
    resize_timer: Timer | None = None
    close_timer: Timer | None = None
    syncing: int = 0
    """Number of nodes that are copying the resources of the pool again."""
    syncs: int = 0
    """How many times that was requested."""
    output: dict[int, Output] = field(default_factory=dict)

    @property
    def is_open(self) -> bool:
        return self.state in states.POOL_OPEN


@dataclass(kw_only=True, slots=True, eq=False)
class Task(Remote):
    profile: str
    pool: Pool | None
    job: Job | None
    ranges: str | None
    instance_count: int
    per_instance_retries: int | None
    total_retries: int | None
    meter: BillingMeter
    instances: dict[int, Instance] = field(default_factory=dict)
    waiting: int = 0
    placed: int = 0
    running: int = 0
    uploading: int = 0
    executed: bool = False
    succeeded: list[int] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    retried: int = 0
    completed: list[dict[str, Any]] = field(default_factory=list)
    results_count: int = 0
    depends_on: list[Dependency] = field(default_factory=list)
    held: bool = False
    """Whether it waits for the tasks it depends on."""
    ending: bool = False
    """Whether it was cancelled or deleted and its processes still end."""
    cancelling_until: float | None = None
    """Earliest virtual time at which an aborted task leaves PendingCancel."""
    output: dict[int, Output] = field(default_factory=dict)
    snapshots: dict[str, dict[str, Any]] = field(default_factory=dict)
    snapshot_destination: list[Any] = field(default_factory=list)
    """Bucket, prefix and filters of the periodic snapshots."""
    snapshot_timer: Timer | None = None

    @property
    def unfinished(self) -> int:
        """Number of unfinished instances."""
        return self.waiting + self.placed + self.running + self.uploading

    @property
    def is_finished(self) -> bool:
        return self.state in states.TASK_TERMINAL


@dataclass(kw_only=True, slots=True, eq=False)
class Job(Remote):
    pool: Pool | None
    use_dependencies: bool = False
    tasks: dict[str, Task] = field(default_factory=dict)


@dataclass(slots=True)
class Output:
    """Output files of one instance (or pool node), and how much of them was read as new output."""

    stdout: str
    stderr: str
    max_bytes: int
    """Number of bytes at the end of each stream that can still be read."""
    bytes_read: dict[tuple[str, bool], int] = field(default_factory=dict)
    """Bytes already returned, by stream and whether aggregated."""
    is_finished: bool = False
