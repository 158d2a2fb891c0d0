"""Creation, change and end of pools, tasks and jobs."""

from __future__ import annotations

import uuid as uuids
from typing import Any

from airflow_qarnot_pool.probe.experiment import Experiment, Observations, accepted_or_status
from airflow_qarnot_pool.probe.sender import Answer, Undecided
from airflow_qarnot_pool.probe.session import NO_NODE, POOL_ENDS, TASK_ENDS, Session, state_of

_ELASTIC = NO_NODE["elasticProperty"]
_QUEUED = frozenset({"submitted", "partiallydispatched", "fullydispatched"})
#: Rounds in which a condition that may come late is looked for.
_ROUNDS = 5


def observe_task_on_closed(session: Session) -> Observations:
    """Submit a task to a pool that closes, and one when it is closed."""
    pool = session.pool()
    closed = session.send("POST", f"/pools/{pool}/close")
    if not closed.ok:
        raise Undecided(f"the close of a pool was refused: {closed}")
    closing = session.create("tasks", **session.task_fields("true", pool))
    state = state_of(session.until_state("pools", pool, POOL_ENDS))
    once_closed = session.create("tasks", **session.task_fields("true", pool))
    return {"on close": closing.status, "state": state, "once closed": once_closed.status}


def judge_task_on_closed(seen: Observations) -> str | None:
    """Decide for both moments together."""
    first, last = seen["on close"], seen["once closed"]
    if first < 300 or last < 300:
        return "accepted"
    return str(first) if first == last else f"{first}, then {last}"


def observe_close_again(session: Session) -> Observations:
    """Close a pool three times, the last time when it is Closed."""
    pool = session.pool()
    first = session.send("POST", f"/pools/{pool}/close")
    second = session.send("POST", f"/pools/{pool}/close")
    if not first.ok:
        raise Undecided(f"the first close was refused: {first}")
    state = state_of(session.until_state("pools", pool, POOL_ENDS))
    third = session.send("POST", f"/pools/{pool}/close")
    return {"second close": second.status, "state": state, "third close": third.status}


def judge_close_again(seen: Observations) -> str | None:
    """Decide for both moments together."""
    second, third = seen["second close"], seen["third close"]
    return str(third) if second == third else f"{second} while Closing, {third} once Closed"


def observe_put_on_closed(session: Session) -> Observations:
    """Change the tags of a closed pool."""
    pool = session.pool()
    session.closed_pool(pool)
    answer = session.put(f"/pools/{pool}", {"tags": [*session.ledger.tags, "changed"]})
    return {"PUT": answer.status, "tags": "changed" in (session.look("pools", pool).field("tags") or [])}


def judge_put_on_closed(seen: Observations) -> str | None:
    """Distinguish a change from a request that is accepted and ignored."""
    if seen["PUT"] >= 300:
        return "refused"
    return "changed" if seen["tags"] else "ignored"


def observe_put_count(session: Session) -> Observations:
    """Change the number of instances of a pool that has just been created, and delete it."""
    pool = session.created("pools", instanceCount=1)
    answer = session.put(f"/pools/{pool}", {"instanceCount": 2, "tags": session.ledger.tags})
    found = session.look("pools", pool)
    session.drop("pools", pool)
    return {"PUT": answer.status, "instanceCount": found.field("instanceCount")}


def judge_put_count(seen: Observations) -> str | None:
    """Decide from the number that is shown afterwards."""
    if seen["PUT"] >= 300:
        return "refused"
    return {1: "ignored", 2: "applied"}.get(seen["instanceCount"])


def observe_put_absent(session: Session) -> Observations:
    """Change the tags of a pool, and look at its constants."""
    pool = session.pool(constants=[{"key": "PROBE", "value": "kept"}])
    answer = session.put(f"/pools/{pool}", {"tags": [*session.ledger.tags, "changed"]})
    found = session.look("pools", pool)
    return {"PUT": answer.status, "constants": constants_of(found).get("PROBE")}


def constants_of(answer: Answer) -> dict[str, Any]:
    """Return the constants of an object."""
    pairs = answer.field("constants") or []
    return {str(pair.get("key")): pair.get("value") for pair in pairs if isinstance(pair, dict)}


def judge_put_absent(seen: Observations) -> str | None:
    """Decide only if the change was accepted."""
    if seen["PUT"] >= 300:
        return None
    return "unchanged" if seen["constants"] == "kept" else "reset"


def observe_resync(session: Session) -> Observations:
    """Re-sync the resources of a pool without nodes."""
    answer = session.repeat("PATCH", f"/pools/{session.pool()}")
    return {"PATCH": answer.status, "message": answer.message}


def observe_labels(session: Session) -> Observations:
    """Clone a pool with two labels, and set one of them and a new one."""
    pool = session.pool(labels={"a": "1", "b": "1"})
    body = {"labels": {"b": "2", "c": "2"}, "tags": session.ledger.tags}
    copy = session.record("pools", session.send("POST", f"/pools/{pool}/clone", body))
    if copy is None:
        raise Undecided("the clone was refused")
    labels = session.look("pools", copy).field("labels")
    return {"labels": labels if isinstance(labels, dict) else {}}


def judge_labels(seen: Observations) -> str | None:
    """Decide from the labels of the copy."""
    readings = {"replaced": {"b": "2", "c": "2"}, "merged": {"a": "1", "b": "2", "c": "2"}}
    readings |= {"kept": {"a": "1", "b": "1"}}
    return next((answer for answer, labels in readings.items() if seen["labels"] == labels), None)


def observe_clone_of_closed(session: Session) -> Observations:
    """Clone a pool that has a secret constant and is closed."""
    pool = session.pool(constants=[{"key": "QARNOT_SECRET__PROBE", "value": "no secret"}])
    session.closed_pool(pool)
    answer = session.send("POST", f"/pools/{pool}/clone", {"tags": session.ledger.tags})
    copy = session.record("pools", answer)
    names = constants_of(session.look("pools", copy)) if copy else {}
    return {"clone": answer.status, "has the constant": "QARNOT_SECRET__PROBE" in names}


def judge_clone_of_closed(seen: Observations) -> str | None:
    """Decide from the copy. Nothing shows the value of its secret."""
    if seen["clone"] >= 300:
        return "no"
    return "yes" if seen["has the constant"] else "without the secret"


def observe_both_sizes(session: Session) -> Observations:
    """Create a pool with an active elastic block and with scaling."""
    always = {"type": "Always", "name": "always"}
    policy = {"type": "ManagedTasksQueue", "name": "queue", "minTotalSlots": 0, "maxTotalSlots": 1}
    scaling = {"policies": [{**policy, "enabledPeriods": [always]}]}
    session.created("pools", scaling=scaling)  # the control
    answer = session.create("pools", elasticProperty=_ELASTIC, scaling=scaling)
    return {"creation": answer.status, "message": answer.message}


def observe_bounds(session: Session) -> Observations:
    """Create elastic pools with the smallest period, and with the largest factor."""
    period = session.create("pools", elasticProperty={**_ELASTIC, "resizePeriod": 1})
    factor = session.create("pools", elasticProperty={**_ELASTIC, "rampResizeFactor": 1})
    return {"resizePeriod 1": period.status, "rampResizeFactor 1": factor.status}


def judge_bounds(seen: Observations) -> str | None:
    """Name the refused fields."""
    refused = [name for name in ("resizePeriod 1", "rampResizeFactor 1") if seen[name] >= 300]
    return f"not {', '.join(refused)}" if refused else "both accepted"


def observe_count_with_elastic(session: Session) -> Observations:
    """Create an elastic pool with a number of instances, and look how many it requests."""
    answer = session.create("pools", elasticProperty={**_ELASTIC, "maxTotalSlots": 4}, instanceCount=2)
    uuid = answer.field("uuid")
    requested: set[Any] = set()
    for _ in range(_ROUNDS if answer.ok else 0):
        requested.add(session.look("pools", str(uuid)).field("targetRunningInstanceCount"))
        session.wait()
    if answer.ok:
        session.drop("pools", str(uuid))
    return {
        "creation": answer.status,
        "requested": max((n for n in requested if isinstance(n, int)), default=None),
    }


def judge_count_with_elastic(seen: Observations) -> str | None:
    """Decide from the largest number of instances that the pool requested."""
    if seen["creation"] >= 300:
        return "refused"
    if seen["requested"] is None:
        return None
    return "counted" if seen["requested"] else "ignored"


def observe_bulk(session: Session) -> Observations:
    """Submit two tasks at once whose pool does not exist."""
    fields = session.task_fields("true", str(uuids.uuid4()))
    answer = session.send("POST", "/tasks", [session.body("tasks", **fields)] * 2)
    return {"status": answer.status, "is a list": isinstance(answer.data, list)}


def judge_bulk(seen: Observations) -> str | None:
    """Name the status and the form."""
    return f"{seen['status']} {'list' if seen['is a list'] else 'message'}"


def observe_idle_job(session: Session) -> Observations:
    """Close a pool that has a job without tasks, and look for the job afterwards."""
    pool = session.pool()
    job = session.created("jobs", poolUuid=pool)
    answer = session.send("POST", f"/pools/{pool}/close")
    if not answer.ok:
        raise Undecided(f"the close of a pool was refused: {answer}")
    # Undecided if it stays open: other reasons can delay the end.
    state = state_of(session.until_state("pools", pool, POOL_ENDS))
    found = session.look("jobs", job)
    return {"pool": state, "job": found.status, "state of the job": found.field("state")}


def judge_idle_job(seen: Observations) -> str | None:
    """Decide from the job, once its pool has closed."""
    return "the pool closes, the job stays" if seen["job"] < 300 else "the pool closes, the job goes"


def observe_job_creation(session: Session) -> Observations:
    """Create a job without a pool, list it by its tag, and create one with the longest name."""
    tag = session.ledger.new_name()
    answer = session.create("jobs", tags=[*session.ledger.tags, tag])
    began = session.clock()
    listed = session.read("/jobs", params=[("tag", tag)]).data or []
    seconds = session.clock() - began
    long = session.create("jobs", name="n" * 2047)
    return {
        "creation": answer.status,
        "listed": len(listed),
        "after": round(seconds, 2),
        "long name": long.status,
    }


def judge_job_creation(seen: Observations) -> str | None:
    """Name the difference. A list that took long shows nothing about its delay."""
    if seen["creation"] >= 300:
        return "it needs a pool"
    if not seen["listed"]:
        return "it is listed late"
    if seen["after"] > 1.0:
        return None
    return "no pool, listed at once" + ("" if seen["long name"] < 300 else ", shorter name")


def observe_queued_at_close(session: Session) -> Observations:
    """Close a pool of one slot, on which a task runs and another is queued."""
    pool = session.created("pools", instanceCount=1)
    running = session.created("tasks", **session.task_fields("sleep 120", pool))
    session.until("tasks", running, lambda task: "executing" in state_of(task), "a running task")
    queued = session.created("tasks", **session.task_fields("true", pool))
    if state_of(session.look("tasks", queued)) not in _QUEUED:
        raise Undecided("the second task was not queued")
    session.closed_pool(pool)
    seen: Observations = {}
    for name, uuid in (("running", running), ("queued", queued)):
        for _ in range(_ROUNDS):
            found = session.look("tasks", uuid)
            if not found.ok or state_of(found) in TASK_ENDS:
                break
            session.wait()
        seen[name] = state_of(found) if found.ok else found.status
    session.drop("pools", pool)
    return seen


def judge_queued_at_close(seen: Observations) -> str | None:
    """Decide from the states some rounds after the pool has closed."""
    if seen["running"] != "cancelled":
        return f"running: {seen['running']}, queued: {seen['queued']}"
    if seen["queued"] in _QUEUED:
        return "queued ones stay"
    return "cancelled" if seen["queued"] == "cancelled" else f"queued: {seen['queued']}"


EXPERIMENTS = (
    Experiment(
        "task-on-closed-pool",
        observe_task_on_closed,
        judge_task_on_closed,
        assumed=("400", "403", "400, then 403", "403, then 400"),
    ),
    Experiment("close-again", observe_close_again, judge_close_again),
    Experiment("put-on-closed", observe_put_on_closed, judge_put_on_closed, assumed=("refused",)),
    Experiment(
        "put-instance-count", observe_put_count, judge_put_count, assumed=("ignored",), node_seconds=10
    ),
    Experiment("put-absent-keys", observe_put_absent, judge_put_absent, assumed=("unchanged",)),
    Experiment("resync-without-nodes", observe_resync, accepted_or_status("PATCH", "200")),
    Experiment("labels-of-copies", observe_labels, judge_labels, assumed=("replaced",)),
    Experiment("clone-of-closed", observe_clone_of_closed, judge_clone_of_closed, assumed=("yes",)),
    Experiment(
        "elastic-and-scaling",
        observe_both_sizes,
        lambda seen: "no" if seen["creation"] < 300 else "an error",
        assumed=("an error",),
    ),
    Experiment("resize-bounds", observe_bounds, judge_bounds, assumed=("both accepted",)),
    Experiment(
        "count-with-elastic",
        observe_count_with_elastic,
        judge_count_with_elastic,
        assumed=("ignored",),
        node_seconds=10,
    ),
    Experiment("bulk-all-fail", observe_bulk, judge_bulk),
    Experiment(
        "job-without-tasks",
        observe_idle_job,
        judge_idle_job,
        assumed=("the pool closes, the job stays", "the pool closes, the job goes"),
    ),
    Experiment(
        "job-creation", observe_job_creation, judge_job_creation, assumed=("no pool, listed at once",)
    ),
    Experiment(
        "queued-at-close",
        observe_queued_at_close,
        judge_queued_at_close,
        assumed=("cancelled",),
        node_seconds=150,
        seconds=1200,
    ),
)
