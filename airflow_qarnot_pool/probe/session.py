"""Everything that experiments share: requests, new objects, limits, and one pool with a node."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.errors import QarnotError, QarnotProtocolError
from airflow_qarnot_pool.api.resource import parse_credits
from airflow_qarnot_pool.probe.buckets import Buckets
from airflow_qarnot_pool.probe.budget import NodeMeter, RunBudget
from airflow_qarnot_pool.probe.ledger import Ledger
from airflow_qarnot_pool.probe.sender import Answer, Disturbed, Sender, Undecided

#: A pool that needs no node as long as it has no task.
NO_NODE: dict[str, Any] = {
    "elasticProperty": {
        "isElastic": True,
        "minTotalSlots": 0,
        "maxTotalSlots": 1,
        "minIdleSlots": 0,
        "resizePeriod": 90,
        "rampResizeFactor": 0.4,
        "minIdleTimeSeconds": 90,
    }
}
#: Attempts of a request that may be repeated.
_ATTEMPTS = 8
TASK_ENDS = frozenset({"success", "failure", "cancelled"})
POOL_ENDS = frozenset({"closed", "failure"})
NO_RETRY = {"maxTotalRetries": 0, "maxPerInstanceRetries": 0}
#: Slots of the shared pool. They share one node.
SLOTS = 2


class Session:
    """One probe run against one account.

    :param token: API token, for the storage.
    :param profile: profile of the pools.
    :param image: small image with ``sh``, such as ``library/alpine``.
    :param pause: seconds between two polls.
    :param boot_seconds: maximum wait for a node.
    """

    def __init__(
        self,
        client: QarnotClient,
        budget: RunBudget,
        token: str,
        *,
        profile: str = "docker-batch",
        image: str = "library/alpine",
        pause: float = 3.0,
        boot_seconds: float = 900.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.client, self.budget, self.ledger = client, budget, Ledger()
        self.wire = Sender(client.transport)
        self.storage = Buckets(client, token, self.ledger.tag)
        #: Bucket with the resources of the shared pool, and the seconds that its node took to boot.
        self.resources: str | None = None
        self.booted_after: float | None = None
        #: Number of creations whose response was lost.
        self.lost = 0
        self.pause, self.clock, self.sleep = pause, clock, sleep
        self._profile, self._image, self._boot_seconds = profile, image, boot_seconds
        self._ends = float("inf")
        self._with_node: str | Undecided | None = None
        #: Every state that an object of this run was seen in.
        self.states: set[str] = set()

    # ---- limits ----

    @contextmanager
    def experiment(self, seconds: float) -> Iterator[None]:
        """Limit the time of an experiment, and delete its objects at the end. They count against quotas."""
        before = set(self.ledger.objects)
        try:
            with self.at_most(seconds):
                yield
        finally:
            for kind, uuid in sorted(self.ledger.objects - before, reverse=True):
                self.drop(kind, uuid)

    @contextmanager
    def at_most(self, seconds: float) -> Iterator[None]:
        """Limit the time. Later requests raise Undecided."""
        self._ends = self.clock() + seconds
        try:
            yield
        finally:
            self._ends = float("inf")

    def check(self) -> None:
        """Check the limits of the run and of the experiment. Raises LimitReached or Undecided."""
        now = self.clock()
        self.budget.check(now)
        if now > self._ends:
            raise Undecided("it took too long")

    def wait(self) -> None:
        """Wait until the next poll."""
        self.check()
        self.sleep(self.pause)

    def report_costs(self) -> None:
        """Read the costs that Qarnot reports for the pools with nodes. They may be late or missing."""
        for uuid, meter in self.budget.meters.items():
            if meter.counted:
                answer = self._try("GET", f"/credits/v1/pools/{uuid}/credits")
                if answer is not None and answer.ok and isinstance(answer.data, dict):
                    with suppress(QarnotProtocolError):  # the estimate counts
                        euros = parse_credits(answer.data)
                        self.budget.reported[uuid] = max(euros, self.budget.reported.get(uuid, 0.0))

    def _try(self, method: str, path: str) -> Answer | None:
        """Send a request once, whatever the limits are. None if it fails."""
        try:
            return self.wire.send(method, path)
        except (Undecided, QarnotError):
            return None

    # ---- requests ----

    def send(self, method: str, path: str, body: Any = None, *, is_text: bool = False) -> Answer:
        """Send a request that changes something, once. Raises Disturbed if its response is lost."""
        self.check()
        return self.wire.send(method, path, body, is_text=is_text)

    def read(self, path: str, body: Any = None, **options: Any) -> Answer:
        """Read with GET, or with POST if there is a body."""
        return self.repeat("GET" if body is None else "POST", path, body, **options)

    def put(self, path: str, body: Any) -> Answer:
        """Change an object. A second request with the same body has the same effect."""
        return self.repeat("PUT", path, body)

    def repeat(self, method: str, path: str, body: Any = None, **options: Any) -> Answer:
        """Send a request that may take effect twice, and repeat it after a disturbance."""
        for _ in range(_ATTEMPTS - 1):
            try:
                self.check()
                return self.wire.send(method, path, body, **options)
            except Disturbed as disturbance:
                self.sleep(max(min(self.pause, 1.0), disturbance.retry_after))
        return self.wire.send(method, path, body, **options)

    # ---- objects ----

    def create(self, kind: str, **fields: Any) -> Answer:
        """Request a new object with the tags of this run, and record it. ``fields`` are those of the API."""
        body = self.body(kind, **fields)
        nodes = int(fields.get("instanceCount", 0)) if kind == "pools" else 0
        try:
            answer = self.send("POST", f"/{kind}", body)
        except Disturbed:
            self.lost += 1
            if nodes:
                self._end_lost_pools(nodes)
            raise
        if (uuid := self.record(kind, answer)) and kind == "pools":
            self.budget.meters[uuid] = NodeMeter(max(nodes, 1), self.clock())
        return answer

    def _end_lost_pools(self, nodes: int) -> None:
        """Delete the pool of a lost creation. If it is not found now, its nodes count as up until the end."""
        listed = self._try("GET", f"/pools?tag={self.ledger.tag}")
        pools = listed.data if listed is not None and isinstance(listed.data, list) else []
        uuids = {str(pool.get("uuid")) for pool in pools if isinstance(pool, dict)}
        known = self.budget.meters.keys() | {uuid for _, uuid in self.ledger.objects}
        lost = uuids - known
        for uuid in lost or [f"lost {len(self.budget.meters)}"]:
            self.budget.meters[uuid] = NodeMeter(nodes, self.clock(), is_up=True)
        for uuid in lost:
            self.ledger.record("pools", uuid)
            self.drop("pools", uuid)

    def body(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Return the body of a creation."""
        body = {"name": "probe", "tags": self.ledger.tags, **fields}
        return {"profile": self._profile, **body} if kind == "pools" else body

    def record(self, kind: str, answer: Answer) -> str | None:
        """Note the object of a successful creation, and return its uuid."""
        uuid = answer.field("uuid") if answer.ok else None
        if not isinstance(uuid, str):
            return None
        self.ledger.record(kind, uuid)
        return uuid

    def created(self, kind: str, **fields: Any) -> str:
        """Create an object that the experiment needs, and return its uuid. Raises Undecided if it is refused."""
        answer = self.create(kind, **fields)
        if not answer.ok:
            raise Undecided(f"one of the {kind} that it needs was refused: {answer}")
        uuid = answer.field("uuid")
        if not isinstance(uuid, str):
            raise Undecided(f"the creation of one of the {kind} returned no uuid")
        return uuid

    def pool(self, **fields: Any) -> str:
        """Create a pool that needs no node, and return its uuid."""
        return self.created("pools", **{**NO_NODE, **fields})

    def look(self, kind: str, uuid: str) -> Answer:
        """Read an object."""
        answer = self.read(f"/{kind}/{uuid}")
        state = answer.field("state")
        if isinstance(state, str):
            self.states.add(state)
            if kind == "pools" and (meter := self.budget.meters.get(uuid)):
                is_up = bool(answer.field("runningInstanceCount")) or (
                    meter.is_up and state.lower() not in POOL_ENDS
                )
                meter.see(is_up, self.clock())
        return answer

    def until(self, kind: str, uuid: str, is_met: Callable[[Answer], Any], what: str) -> Answer:
        """Poll an object until a condition is met. Raises Undecided if it is deleted or takes too long."""
        while True:
            answer = self.look(kind, uuid)
            if is_met(answer):
                return answer
            if not answer.ok:
                raise Undecided(f"it got {answer} in place of {what}")
            self.wait()

    def until_state(self, kind: str, uuid: str, states: frozenset[str]) -> Answer:
        """Poll an object until it is in one of some states, in lower case."""
        return self.until(
            kind, uuid, lambda answer: state_of(answer) in states, f"a state of {sorted(states)}"
        )

    def closed_pool(self, uuid: str) -> str:
        """Close a pool, wait until it is Closed, and return its state."""
        answer = self.send("POST", f"/pools/{uuid}/close")
        if not answer.ok:
            raise Undecided(f"the close of a pool was refused: {answer}")
        return state_of(self.until_state("pools", uuid, POOL_ENDS))

    def drop(self, kind: str, uuid: str) -> None:
        """Delete an object that is not needed any more. If that fails, the end of the run deletes it."""
        answer = self._try("DELETE", f"/{kind}/{uuid}")
        if answer is not None and (answer.ok or answer.status == 404):
            self.ledger.objects.discard((kind, uuid))
            if meter := self.budget.meters.get(uuid):
                meter.see(False, self.clock())

    # ---- a node ----

    def pool_with_node(self) -> str:
        """Return the shared pool of two slots, whose node is up. It is created for the first experiment that needs it.

        Its tasks are retried once by default.
        """
        if self._with_node is None:
            try:
                self._with_node = self._boot()
            except Disturbed:
                raise
            except Undecided as reason:
                self._with_node = reason
        if isinstance(self._with_node, Undecided):
            raise Undecided(f"no pool with a node: {self._with_node}")
        return self._with_node

    def _boot(self) -> str:
        began = self.clock()
        uuid = self._shared_pool()
        self.budget.meters[uuid].nodes = 1
        try:
            with self.at_most(self._boot_seconds):
                pool = self.until("pools", uuid, _has_node_or_ended, "a node")
        except Undecided:
            self.drop("pools", uuid)
            raise
        if state_of(pool) in POOL_ENDS:
            raise Undecided(f"the pool ended: {pool.field('errors')}")
        self.booted_after = round(self.clock() - began, 1)
        return uuid

    def _shared_pool(self) -> str:
        """Create the shared pool with all that experiments use. If that is refused, create a plain one."""
        with suppress(Exception):  # without boto3 or storage only the experiments with files are not decided
            self.resources = self.storage.new_bucket()
        plain = {"instanceCount": SLOTS, "shortname": self.ledger.new_name()}
        full = {
            **plain,
            "defaultRetrySettings": {"maxPerInstanceRetries": 1},
            "multiSlotsSettings": {"slotsPerNode": SLOTS},
            **({"resourceBuckets": [self.resources]} if self.resources else {}),
        }
        answer = self.create("pools", **full)
        if answer.ok:
            return str(answer.field("uuid"))
        self.resources = None
        return self.created("pools", **{**plain, "instanceCount": 1})

    def task(self, command: str, **fields: Any) -> str:
        """Create a task on the shared pool, and return its uuid."""
        return self.created("tasks", **{**self.task_fields(command, self.pool_with_node()), **fields})

    def task_fields(self, command: str, pool: str) -> dict[str, Any]:
        """Return the fields of a task that runs a shell command on a pool."""
        constants = {"DOCKER_REPO": self._image, "DOCKER_TAG": "latest", "DOCKER_CMD": f"sh -c '{command}'"}
        return {"poolUuid": pool, "constants": [{"key": k, "value": v} for k, v in constants.items()]}

    def run(self, command: str, **fields: Any) -> Answer:
        """Run a command on the shared pool, and return the finished task."""
        return self.until_state("tasks", self.task(command, **fields), TASK_ENDS)

    def server_time(self) -> datetime | None:
        """Return the date of the last response by the server's clock, or None if it had none."""
        dated = self.client.transport.dated
        return None if dated is None else dated[0].astimezone(UTC)


def _has_node_or_ended(pool: Answer) -> bool:
    return bool(pool.field("runningInstanceCount")) or state_of(pool) in POOL_ENDS


def state_of(answer: Answer) -> str:
    """Return the state of an object in lower case, empty if it has none."""
    return str(answer.field("state") or "").lower()
