"""The objects of the local Qarnot. Plain data: what happens to them is in pools.py, tasks.py and attempt.py."""

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
    """What pools, tasks and jobs have in common. Times are virtual epoch seconds."""

    uuid: str
    seq: int
    name: str
    shortname: str
    created: float
    state: str
    tags: list[str] = field(default_factory=list)
    constants: dict[str, str] = field(default_factory=dict, repr=False)
    spec: dict[str, Any] = field(default_factory=dict)
    """Creation fields that are stored and given back as they came."""
    previous_state: str = ""
    moved: float = 0.0
    previously_moved: float = 0.0
    modified: float = 0.0
    ended: float | None = None
    errors: list[dict[str, str]] = field(default_factory=list)
    time_to_live: float = 0.0
    auto_delete: bool = False
    skew: float = 0.0
    """Seconds by which all times shown of it are off."""

    def __post_init__(self) -> None:
        self.previous_state = self.previous_state or self.state
        self.moved = self.previously_moved = self.modified = self.created


FINAL_STATES = frozenset({"success", "failure", "cancelled"})


@dataclass(slots=True)
class Dependency:
    """A task that has to be over first, and in which final states of it the dependent may run.

    :param condition: as it was asked for, to be given back. :param final: its final state once it is over.
    """

    uuid: str
    allowed: frozenset[str] = FINAL_STATES
    advanced: bool = False
    condition: Any = None
    final: str | None = None

    @property
    def met(self) -> bool | None:
        """None = not known yet."""
        return None if self.final is None else self.final.lower() in self.allowed


class InstancePhase(Enum):
    """Where an instance of a task is. The values are Qarnot's phase names where it has one."""

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
    """The node it is on."""
    booting: Node | None = None
    """The node that boots for it, when its task has no pool."""
    started: float | None = None
    executed: float = 0.0
    """Seconds of execution in all attempts."""
    run: str | None = None
    """Id of the process run with the supervisor."""
    lost: bool = False
    directory: str | None = None

    @property
    def on_node(self) -> bool:
        return self.phase in (InstancePhase.PLACED, InstancePhase.RUNNING, InstancePhase.UPLOADING)


@dataclass(slots=True, eq=False)
class Node:
    """One machine. In a pool it lives with the pool; for a task without one it lives for one attempt."""

    id: str
    number: int
    slots: int
    asked: float
    pool: Pool | None = None
    instance: Instance | None = None
    placed: bool = False
    up: float | None = None
    gone: bool = False
    idle_since: float = 0.0
    running: set[Instance] = field(default_factory=set)
    timers: list[Timer] = field(default_factory=list)
    run: str | None = None
    """Id of its preparation command while that runs."""

    @property
    def free(self) -> int:
        return self.slots - len(self.running) if self.up is not None and not self.gone else 0


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
    """Nodes that are copying the pool's resources again."""
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
    """Waits for the tasks it depends on."""
    ending: bool = False
    """Cancelled, or deleted, and waiting for its processes to be gone."""
    cancelling_until: float | None = None
    """Earliest virtual time at which an aborted task leaves PendingCancel."""
    output: dict[int, Output] = field(default_factory=dict)
    snapshots: dict[str, dict[str, Any]] = field(default_factory=dict)
    snapshot_timer: Timer | None = None

    @property
    def left(self) -> int:
        """Instances that are not over."""
        return self.waiting + self.placed + self.running + self.uploading

    @property
    def is_over(self) -> bool:
        return self.state in states.TASK_TERMINAL


@dataclass(kw_only=True, slots=True, eq=False)
class Job(Remote):
    pool: Pool | None
    use_dependencies: bool = False
    tasks: dict[str, Task] = field(default_factory=dict)


@dataclass(slots=True)
class Output:
    """Where the output of one instance (or pool node) is, and how much of it was read as "fresh"."""

    stdout: str
    stderr: str
    kept: int
    """Bytes of each stream that can still be read: its end."""
    fresh: dict[tuple[str, bool], int] = field(default_factory=dict)
    """(stream, aggregated) -> bytes already given out."""
    over: bool = False
