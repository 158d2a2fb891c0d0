"""Experiments with Qarnot tasks on the shared pool, which has one node with two slots."""

from __future__ import annotations

from typing import Any

from airflow_qarnot_pool.api.durations import parse_span
from airflow_qarnot_pool.api.filters import equal
from airflow_qarnot_pool.probe.experiment import Experiment, Observations
from airflow_qarnot_pool.probe.sender import Answer, Undecided
from airflow_qarnot_pool.probe.session import NO_RETRY, SLOTS, TASK_ENDS, Session, state_of

_LIMIT = 2048
#: Seconds of a pool's wall time over which its execution time is compared.
_COMPARED_SECONDS = 20.0
_COST_ROUNDS = 20


def observe_ranges(session: Session) -> Observations:
    """Submit a task with the range 0-2, and read its number of instances."""
    task = session.look("tasks", session.task("true", advancedRanges="0-2"))
    return {
        "totalInstanceCount": task.field("totalInstanceCount"),
        "instanceCount": task.field("instanceCount"),
    }


def judge_ranges(seen: Observations) -> str | None:
    """Decide from the larger of the two counts, because one of them may not count ranges."""
    counts = [count for count in seen.values() if isinstance(count, int)]
    return {3: "included", 2: "not included"}.get(max(counts, default=0))


def observe_instances(session: Session) -> Observations:
    """Submit tasks of 2,048 and of 2,049 instances, and delete them at once."""
    seen: Observations = {}
    for count in (_LIMIT, _LIMIT + 1):
        fields = session.task_fields("true", session.pool_with_node())
        answer = session.create("tasks", **fields, instanceCount=count)
        seen[str(count)] = answer.status
        if answer.ok:
            session.drop("tasks", str(answer.field("uuid")))
    return seen


def judge_instances(seen: Observations) -> str | None:
    """Decide between the tried numbers."""
    if seen[str(_LIMIT)] >= 300:
        return "fewer than 2048"
    return "more than 2048" if seen[str(_LIMIT + 1)] < 300 else "2048"


def observe_searched_instances(session: Session) -> Observations:
    """Search for a finished task with 2 instances, until the search shows its end."""
    task = session.run("true", instanceCount=2).field("uuid")
    fields = ["Uuid", "State", "CompletedInstances"]
    body = {"select": {"fields": fields}, "maximumResults": 1, "filter": equal("Uuid", task)}
    for _ in range(5):
        answer = session.read("/tasks/search", body)
        found = answer.data[0] if answer.ok and isinstance(answer.data, list) and answer.data else {}
        found = {name.lower(): value for name, value in found.items()}
        state, instances = str(found.get("state")).lower(), found.get("completedinstances")
        if state in TASK_ENDS:
            break
        session.wait()
    count = len(instances) if isinstance(instances, list) else 0
    return {"status": answer.status, "state": state, "instances": count}


def judge_searched_instances(seen: Observations) -> str | None:
    """Decide only if the search shows that the task has ended, or refuses the field."""
    if seen["status"] == 400:
        return "refused"
    if seen["state"] not in TASK_ENDS:
        return None
    return "returned" if seen["instances"] == 2 else "not returned"


def observe_output(session: Session) -> Observations:
    """Read the output of a finished task with 2 instances twice, by instance and in common."""
    task = session.run("echo probe-line", instanceCount=2).field("uuid")
    seen: Observations = {}
    for name in ("soon", "later"):
        for path in ("stdout/0", "stdout"):
            text = _text_with(session, f"/tasks/{task}/{path}", "probe-line")
            seen[f"{path} {name}"] = "probe-line" in text
        session.wait()
    return seen


def _text_with(session: Session, path: str, words: str) -> str:
    """Read an output until it has some words, at most a few times."""
    for _ in range(5):
        text = str(session.read(path, is_text=True).data or "")
        if words in text:
            return text
        session.wait()
    return text


def judge_output(seen: Observations) -> str | None:
    """Decide only if the output was there at first."""
    if not (seen["stdout/0 soon"] and seen["stdout soon"]):
        return None
    return "kept" if seen["stdout/0 later"] and seen["stdout later"] else "lost"


def observe_cursor(session: Session) -> Observations:
    """Read an output with GET, and its fresh part with POST afterwards, twice."""
    task = session.run("echo probe-line").field("uuid")
    read = _text_with(session, f"/tasks/{task}/stdout/0", "probe-line")
    fresh = session.send("POST", f"/tasks/{task}/stdout/0", is_text=True)
    again = session.send("POST", f"/tasks/{task}/stdout/0", is_text=True)
    return {
        "GET": "probe-line" in read,
        "POST": "probe-line" in str(fresh.data),
        "second POST": "probe-line" in str(again.data),
    }


def judge_cursor(seen: Observations) -> str | None:
    """Decide only if GET had the line."""
    if not seen["GET"]:
        return None
    if seen["second POST"]:
        return "POST repeats"
    return "GET does not move it" if seen["POST"] else "GET moves it"


def observe_retries(session: Session) -> Observations:
    """Run a command that fails: with the default of the pool, one retry, and with 0."""
    default = session.run("exit 3")
    replaced = session.run("exit 3", retrySettings=NO_RETRY)
    return {"attempts by default": _attempts(default), "attempts with 0": _attempts(replaced)}


def _attempts(task: Answer) -> Any:
    instances = task.field("completedInstances") or [{}]
    return instances[0].get("executionAttemptCount") if isinstance(instances[0], dict) else None


def judge_retries(seen: Observations) -> str | None:
    """Decide only if the default of the pool had an effect."""
    if seen["attempts by default"] != 2:
        return None
    return {1: "replaced", 2: "not replaced"}.get(seen["attempts with 0"])


def observe_error_code(session: Session) -> Observations:
    """Run a command that fails, and read the error of its instance."""
    task = session.run("exit 3", retrySettings=NO_RETRY)
    instances = task.field("completedInstances") or [{}]
    error = instances[0].get("error") or {}
    return {
        "state": task.field("state"),
        "code": error.get("code"),
        "message": str(error.get("message"))[:160],
    }


def judge_error_code(seen: Observations) -> str | None:
    """Return the code of a command that ends with another exit code than 0."""
    return seen["code"] if isinstance(seen["code"], str) else None


def observe_secret(session: Session) -> Observations:
    """Run a command that prints the names of the variables with a value, which is a secret constant and no secret."""
    fields = session.task_fields("env", session.pool_with_node())
    secret = {"key": "QARNOT_SECRET__PROBE", "value": "probe-value"}
    task = session.run("env", constants=[*fields["constants"], secret]).field("uuid")
    text = _text_with(session, f"/tasks/{task}/stdout/0", "probe-value")
    lines = [line.partition("=") for line in text.splitlines()]
    return {"variables": sorted(name for name, _, value in lines if value == "probe-value")}


def judge_secret(seen: Observations) -> str | None:
    """Decide from the names."""
    names = seen["variables"]
    if "QARNOT_SECRET__PROBE" in names:
        return "its own name"
    return "without the prefix" if "PROBE" in names else None


def observe_progress(session: Session) -> Observations:
    """Read the progress of a task that has succeeded."""
    task = session.run("true")
    return {"state": task.field("state"), "progress": task.field("progress")}


def judge_progress(seen: Observations) -> str | None:
    """Decide from the progress of a whole task."""
    if str(seen["state"]).lower() != "success":
        return None
    return {1: "0 to 1", 100: "0 to 100"}.get(seen["progress"])


def observe_abort_again(session: Session) -> Observations:
    """Abort a running task twice, and once more when it has ended."""
    task = session.task("sleep 600")
    session.until("tasks", task, lambda found: "executing" in state_of(found), "a running task")
    first = session.send("POST", f"/tasks/{task}/abort")
    second = session.send("POST", f"/tasks/{task}/abort")
    if not first.ok:
        raise Undecided(f"the first abort was refused: {first}")
    session.until_state("tasks", task, TASK_ENDS)
    third = session.send("POST", f"/tasks/{task}/abort")
    return {"second abort": second.status, "third abort": third.status}


def judge_abort_again(seen: Observations) -> str | None:
    """Decide for both moments together."""
    second, third = seen["second abort"], seen["third abort"]
    return str(third) if second == third else f"{second} at first, {third} once finished"


def observe_capacity(session: Session) -> Observations:
    """Read the counts of a pool whose two slots share one node."""
    pool = session.look("pools", session.pool_with_node())
    settings = pool.field("multiSlotsSettings") or {}
    names = ("instanceCount", "runningInstanceCount", "totalSlotCapacity")
    return {"slotsPerNode": settings.get("slotsPerNode"), **{name: pool.field(name) for name in names}}


def judge_capacity(seen: Observations) -> str | None:
    """Decide only if two slots share a node."""
    if seen["slotsPerNode"] != SLOTS:
        return None
    return {SLOTS: "slots", 1: "nodes"}.get(seen["totalSlotCapacity"])


def observe_credits_of_task(session: Session) -> Observations:
    """Compare the costs of the shared pool and of a task on it, once the pool has some."""
    task, pool = session.run("true").field("uuid"), session.pool_with_node()
    began = session.clock()
    for _ in range(_COST_ROUNDS):
        credits = session.read(f"/credits/v1/pools/{pool}/credits").field("credits")
        if credits:
            break
        session.wait()
    answer = session.read(f"/credits/v1/tasks/{task}/credits")
    waited = round(session.clock() - began)
    return {
        "pool": credits,
        "reported after": waited,
        "task": answer.field("credits") if answer.ok else f"{answer.status}",
    }


def judge_credits_of_task(seen: Observations) -> str | None:
    """Decide only once the pool has costs."""
    if not seen["pool"]:
        return None
    if isinstance(seen["task"], str):
        return "not reported"
    return "0" if seen["task"] == 0 else "its own"


def observe_execution(session: Session) -> Observations:
    """Compare the execution time of the shared pool with its wall time, over some seconds."""
    uuid = session.pool_with_node()
    first = session.look("pools", uuid)
    while True:
        last = session.look("pools", uuid)
        wall = _seconds(last, "wallTime") - _seconds(first, "wallTime")
        if wall >= _COMPARED_SECONDS:
            break
        session.wait()
    settings = last.field("multiSlotsSettings") or {}
    execution = _seconds(last, "executionTime") - _seconds(first, "executionTime")
    return {"slots per node": settings.get("slotsPerNode"), "wall": wall, "execution": execution}


def _seconds(pool: Answer, name: str) -> float:
    try:
        return parse_span(str(pool.field(name))).total_seconds()
    except ValueError:
        raise Undecided(f"{name} is {pool.field(name)!r}") from None


def judge_execution(seen: Observations) -> str | None:
    """Decide from the seconds of execution per second, of one node with two slots."""
    if seen["slots per node"] != SLOTS:
        return None
    share = seen["execution"] / seen["wall"]
    if 0.8 <= share <= 1.2:
        return "of nodes"
    return "of slots" if 1.8 <= share <= 2.2 else None


EXPERIMENTS = tuple(
    Experiment(row, observe, judge, assumed=assumed, needs_node=True, node_seconds=20.0)
    for row, observe, judge, assumed in (
        ("range-end", observe_ranges, judge_ranges, ("included",)),
        ("max-instances", observe_instances, judge_instances, ("2048", "more than 2048")),
        ("instances-in-search", observe_searched_instances, judge_searched_instances, ("returned",)),
        ("output-kept", observe_output, judge_output, ("kept",)),
        ("output-cursor", observe_cursor, judge_cursor, None),
        ("retries-replaced", observe_retries, judge_retries, ("replaced",)),
        ("error-codes", observe_error_code, judge_error_code, None),
        ("secret-variables", observe_secret, judge_secret, ("its own name", "without the prefix")),
        ("progress-scale", observe_progress, judge_progress, None),
        ("abort-again", observe_abort_again, judge_abort_again, None),
        ("capacity-unit", observe_capacity, judge_capacity, ("slots",)),
        ("credits-of-tasks", observe_credits_of_task, judge_credits_of_task, ("0", "not reported")),
        ("execution-time", observe_execution, judge_execution, ("of nodes",)),
    )
)
