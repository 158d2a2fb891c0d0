"""Names and references."""

from __future__ import annotations

import uuid as uuids

from airflow_qarnot_pool.probe.experiment import Experiment, Observations, accepted_or_status
from airflow_qarnot_pool.probe.sender import Undecided
from airflow_qarnot_pool.probe.session import NO_NODE, Session

_LENGTHS = (63, 64, 256)
_UNITS = {
    "300 letters": "a" * 300,
    "600 letters": "a" * 600,
    "300 of 2 bytes": "é" * 300,
    "300 of 4 bytes": "😀" * 300,
}


def observe_taken_name(session: Session) -> Observations:
    """Create two pools of one shortname."""
    name = session.ledger.new_name()
    session.pool(shortname=name)
    second = session.create("pools", **NO_NODE, shortname=name)
    return {"second pool": second.status, "message": second.message}


def observe_name_of_closed(session: Session) -> Observations:
    """Create a second pool while the first of the name is open, and a third one when that is closed."""
    name = session.ledger.new_name()
    first = session.pool(shortname=name)
    second = session.create("pools", **NO_NODE, shortname=name)
    state = session.closed_pool(first)
    third = session.create("pools", **NO_NODE, shortname=name)
    return {"while open": second.status, "state": state, "once closed": third.status}


def judge_name_of_closed(seen: Observations) -> str | None:
    """Decide how long a shortname is taken."""
    if seen["while open"] < 300:
        return "not enforced"
    return "free once closed" if seen["once closed"] < 300 else "taken until deleted"


def observe_name_in_path(session: Session) -> Observations:
    """Read, change and close a pool by its shortname."""
    name = session.ledger.new_name()
    uuid = session.pool(shortname=name)
    body = {"tags": [*session.ledger.tags, "changed"]}
    control = session.put(f"/pools/{uuid}", body)
    if not control.ok:
        raise Undecided(f"the control was refused: PUT by uuid got {control}")
    return {
        "GET": session.read(f"/pools/{name}").status,
        "PUT": session.put(f"/pools/{name}", body).status,
        "close": session.send("POST", f"/pools/{name}/close").status,
    }


def judge_name_in_path(seen: Observations) -> str | None:
    """Decide for all verbs together."""
    accepted = [verb for verb in ("GET", "PUT", "close") if seen[verb] < 300]
    if len(accepted) == 3:
        return "yes"
    return "no" if not accepted else f"only {', '.join(accepted)}"


def observe_name_in_pool_uuid(session: Session) -> Observations:
    """Submit a task with the uuid of the shared pool, and one with its shortname."""
    uuid = session.pool_with_node()
    name = session.look("pools", uuid).field("shortname")
    by_uuid = session.create("tasks", **session.task_fields("true", uuid))
    by_name = session.create("tasks", **session.task_fields("true", str(name)))
    return {"uuid": by_uuid.status, "shortname": by_name.status, "message": by_name.message}


def observe_name_in_job_uuid(session: Session) -> Observations:
    """Submit a task with the uuid of a job, and one with its shortname."""
    pool, name = session.pool_with_node(), session.ledger.new_name()
    job = session.created("jobs", poolUuid=pool, shortname=name)
    fields = session.task_fields("true", pool)
    del fields["poolUuid"]
    by_uuid = session.create("tasks", **fields, jobUuid=job)
    by_name = session.create("tasks", **fields, jobUuid=name)
    return {"uuid": by_uuid.status, "shortname": by_name.status, "message": by_name.message}


def judge_name_as_uuid(seen: Observations) -> str | None:
    """Decide only if the control, the uuid, was accepted."""
    if seen["uuid"] >= 300:
        return None
    return "yes" if seen["shortname"] < 300 else "no"


def observe_name_length(session: Session) -> Observations:
    """Create pools with shortnames of several lengths."""
    seen: Observations = {}
    for length in _LENGTHS:
        name = session.ledger.new_name()
        answer = session.create("pools", **NO_NODE, shortname=name + "a" * (length - len(name)))
        seen[str(length)] = answer.status
    return seen


def judge_name_length(seen: Observations) -> str | None:
    """Decide between the tried lengths."""
    accepted = [length for length in _LENGTHS if seen[str(length)] < 300]
    if not accepted:
        return "less than 63"
    return {63: "63", 64: "64 to 255", 256: "256 or more"}[max(accepted)]


def observe_units(session: Session) -> Observations:
    """Set tags of as many characters as fit or do not fit, by each way of counting."""
    uuid = session.pool()
    return {
        name: session.put(f"/pools/{uuid}", {"tags": [*session.ledger.tags, text]}).status
        for name, text in _UNITS.items()
    }


def judge_units(seen: Observations) -> str | None:
    """Decide from the longest tag that is accepted. The limit on tags is 511."""
    two, four = seen["300 of 2 bytes"] < 300, seen["300 of 4 bytes"] < 300
    if seen["300 letters"] >= 300:
        return None
    if seen["600 letters"] < 300:
        return "no limit of 511"
    if four:
        return "characters" if two else None
    return "UTF-16 units" if two else "bytes"


def observe_unknown(session: Session) -> Observations:
    """Create objects with a profile, a pool and a job that do not exist."""
    unknown = str(uuids.uuid4())
    profile = session.create("pools", **NO_NODE, profile=f"no-profile-{session.ledger.run}")
    pool = session.create("tasks", **session.task_fields("true", unknown))
    fields = session.task_fields("true", unknown)
    del fields["poolUuid"]
    job = session.create("tasks", **fields, jobUuid=unknown)
    return {"profile": profile.status, "pool": pool.status, "job": job.status}


def judge_unknown(seen: Observations) -> str | None:
    """Decide for the three together if they agree."""
    statuses = [seen[name] for name in ("profile", "pool", "job")]
    if min(statuses) < 300:
        return "accepted"
    return str(statuses[0]) if len(set(statuses)) == 1 else "profile {}, pool {}, job {}".format(*statuses)


EXPERIMENTS = (
    Experiment(
        "pool-name-taken",
        observe_taken_name,
        accepted_or_status("second pool"),
        assumed=("400", "403", "409", "422"),
    ),
    Experiment(
        "name-of-closed-pool", observe_name_of_closed, judge_name_of_closed, assumed=("taken until deleted",)
    ),
    Experiment("shortname-in-path", observe_name_in_path, judge_name_in_path, assumed=("yes",)),
    Experiment(
        "shortname-in-pool-uuid",
        observe_name_in_pool_uuid,
        judge_name_as_uuid,
        assumed=("no",),
        needs_node=True,
    ),
    Experiment(
        "names-as-uuids", observe_name_in_job_uuid, judge_name_as_uuid, assumed=("no",), needs_node=True
    ),
    Experiment(
        "shortname-length", observe_name_length, judge_name_length, assumed=("63", "64 to 255", "256 or more")
    ),
    Experiment("unit-of-limits", observe_units, judge_units, assumed=("UTF-16 units",)),
    Experiment("unknown-references", observe_unknown, judge_unknown, assumed=("400",)),
)
