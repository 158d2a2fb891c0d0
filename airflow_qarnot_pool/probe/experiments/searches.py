"""Searches, pages, times and costs."""

from __future__ import annotations

from typing import Any

from airflow_qarnot_pool.api.durations import parse_timestamp
from airflow_qarnot_pool.api.filters import equal
from airflow_qarnot_pool.api.states import PoolState, TaskState
from airflow_qarnot_pool.probe.experiment import Experiment, Observations
from airflow_qarnot_pool.probe.sender import Answer, Undecided
from airflow_qarnot_pool.probe.session import Session

_MANY = 10_000
_SAMPLES = 3
_ROUNDS = 6
#: Seconds within which the first search after a creation must have been sent to show a delay.
_AT_ONCE = 1.0
_CLOCK_TOLERANCE = 5.0
_JOB_STATES = ("Active", "Completed")
_KNOWN_STATES = {state.lower() for state in (*PoolState, *TaskState, *_JOB_STATES)}


def _search(session: Session, filter: dict[str, Any]) -> Answer:
    """Search for one pool."""
    body = {"select": {"fields": ["Uuid"]}, "maximumResults": 1, "filter": filter}
    return session.read("/pools/search", body)


def _uuids(answer: Answer) -> set[str]:
    data = answer.data if answer.ok and isinstance(answer.data, list) else []
    return {str(item.get("uuid") or item.get("Uuid")) for item in data if isinstance(item, dict)}


def _until_found(session: Session, uuid: str) -> None:
    while uuid not in _uuids(answer := _search(session, equal("Uuid", uuid))):
        if not answer.ok:
            raise Undecided(f"a search was refused: {answer}")
        session.wait()


def observe_in_filter(session: Session) -> Observations:
    """Search for a pool by each spelling of an In filter, and by both."""
    uuid = session.pool()
    _until_found(session, uuid)
    spellings = {"values": {"values": [uuid]}, "value": {"value": [uuid]}}
    spellings["both"] = {"values": [uuid], "value": [uuid]}
    return {
        name: uuid in _uuids(_search(session, {"operator": "In", "field": "Uuid", **spelling}))
        for name, spelling in spellings.items()
    }


def judge_in_filter(seen: Observations) -> str | None:
    """Decide from the spellings that found the pool."""
    if not seen["both"]:
        return "not both together"
    if seen["value"] and seen["values"]:
        return "either"
    return next((name for name in ("value", "values") if seen[name]), None)


def observe_cap(session: Session) -> Observations:
    """Compare the length of a search for all pools with the total of a page, until two rounds agree."""
    for _ in range(3):
        _until_found(session, session.pool())
    everything = {"select": {"fields": ["Uuid"]}, "maximumResults": _MANY}
    rounds: list[tuple[Any, ...]] = []
    while len(rounds) < 2 or (rounds[-1] != rounds[-2] and len(rounds) < _ROUNDS):
        answer = session.read("/pools/search", everything)
        page = session.read("/pools/summaries/paginate", {"maximumResults": 1})
        length = len(answer.data) if answer.ok and isinstance(answer.data, list) else None
        rounds.append((answer.status, length, page.field("total")))
        session.wait()
    status, length, total = rounds[-1]
    return {"status": status, "found": length, "total": total, "twice": rounds[-1] == rounds[-2]}


def judge_cap(seen: Observations) -> str | None:
    """Decide only if nothing changed meanwhile."""
    if seen["status"] == 400:
        return f"{_MANY} is refused"
    if not seen["twice"] or not isinstance(seen["total"], int) or seen["found"] is None:
        return None
    if seen["found"] == seen["total"]:
        return f"none up to {seen['found']}"
    return str(seen["found"]) if seen["found"] < seen["total"] else None


def observe_lag(session: Session) -> Observations:
    """Search for pools that have just been created, until the search shows them."""
    seen: Observations = {"first search after": [], "found at once": [], "visible after": []}
    for _ in range(_SAMPLES):
        uuid, created_at = session.pool(), session.clock()
        found = uuid in _uuids(_search(session, equal("Uuid", uuid)))
        seen["first search after"].append(round(session.clock() - created_at, 2))
        seen["found at once"].append(found)
        while uuid not in _uuids(_search(session, equal("Uuid", uuid))):
            session.wait()
        seen["visible after"].append(0.0 if found else round(session.clock() - created_at, 2))
        session.drop("pools", uuid)
    return seen


def judge_lag(seen: Observations) -> str | None:
    """Decide from the pool that was visible last. A search that was sent late shows no delay."""
    if not all(seen["found at once"]):
        return f"up to {max(seen['visible after']):g} s"
    return "at once" if max(seen["first search after"]) <= _AT_ONCE else None


def observe_page_tokens(session: Session) -> Observations:
    """Read a page of one pool, wait, and read the next one."""
    first, second = session.pool(), session.pool()
    _until_found(session, first)
    _until_found(session, second)
    tag = {"filter": equal("Tags", session.ledger.tag), "maximumResults": 1}
    page = session.read("/pools/paginate", tag)
    token = page.field("nextToken")
    began = session.clock()
    for _ in range(3):
        session.wait()
    following = session.read("/pools/paginate", {**tag, "token": token})
    return {"token": bool(token), "after": round(session.clock() - began), "status": following.status}


def judge_page_tokens(seen: Observations) -> str | None:
    """Decide only whether a token lives for the tried time."""
    if not seen["token"]:
        return None
    return f"at least {seen['after']} s" if seen["status"] < 300 else f"less than {seen['after']} s"


def observe_date(session: Session) -> Observations:
    """Compare the date of the response to a creation with the creation time of the pool."""
    session.client.transport.dated = None
    began = session.clock()
    uuid = session.pool()
    took, date = session.clock() - began, session.server_time()
    created = session.look("pools", uuid).field("creationDate")
    if not isinstance(created, str) or (moment := parse_timestamp(created)) is None:
        raise Undecided(f"the creation time is {created!r}")
    apart = None if date is None else round(max(0.0, abs((date - moment).total_seconds()) - took))
    return {"date": date is not None, "seconds apart": apart}


def judge_date(seen: Observations) -> str | None:
    """Decide from the distance of the two clocks."""
    if not seen["date"]:
        return "no date"
    return "a close clock" if seen["seconds apart"] <= _CLOCK_TOLERANCE else "another clock"


def observe_carbon(session: Session) -> Observations:
    """Read the carbon facts of a pool."""
    answer = session.read(f"/carbon/v1/pools/{session.pool()}/carbon-facts")
    return {"status": answer.status, "keys": sorted(answer.data) if isinstance(answer.data, dict) else []}


def judge_carbon(seen: Observations) -> str | None:
    """Decide from two keys that differ."""
    if seen["status"] >= 300:
        return f"{seen['status']}"
    sdk, openapi = (name in seen["keys"] for name in ("total_consumed_energy_Wh", "totalConsumedEnergyWh"))
    if sdk and openapi:
        return "both"
    return "as the SDKs" if sdk else "as OpenAPI" if openapi else None


def observe_spelling(session: Session) -> Observations:
    """Read the scheduling type of a pool."""
    return {"schedulingType": session.look("pools", session.pool()).field("schedulingType")}


def judge_spelling(seen: Observations) -> str | None:
    """Return the spelling itself."""
    return seen["schedulingType"] if isinstance(seen["schedulingType"], str) else None


def observe_costs_at_first(session: Session) -> Observations:
    """Read the costs of a pool that has just been created."""
    uuid = session.pool()
    credits = session.read(f"/credits/v1/pools/{uuid}/credits")
    carbon = session.read(f"/carbon/v1/pools/{uuid}/carbon-facts")
    return {"credits": credits.field("credits") if credits.ok else credits.status, "carbon": carbon.status}


def judge_costs_at_first(seen: Observations) -> str | None:
    """Name both responses."""
    if not isinstance(seen["credits"], (int, float)):
        return None
    return f"credits {seen['credits']:g}, carbon facts {seen['carbon']}"


def observe_credits_of_deleted(session: Session) -> Observations:
    """Read the costs of a pool before and after its deletion."""
    uuid = session.pool()
    before = session.read(f"/credits/v1/pools/{uuid}/credits")
    deleted = session.send("DELETE", f"/pools/{uuid}")
    if not deleted.ok:
        raise Undecided(f"the deletion was refused: {deleted}")
    while session.look("pools", uuid).ok:
        session.wait()
    return {"before": before.status, "once deleted": session.read(f"/credits/v1/pools/{uuid}/credits").status}


def judge_credits_of_deleted(seen: Observations) -> str | None:
    """Decide only if the costs were there before."""
    if seen["before"] >= 300:
        return None
    return "reported" if seen["once deleted"] < 300 else "not reported"


def observe_states(session: Session) -> Observations:
    """List the states that all objects of this run were seen in."""
    session.look("pools", session.pool())
    return {"states": sorted(session.states)}


def judge_states(seen: Observations) -> str | None:
    """Name the states that are not documented."""
    unknown = [state for state in seen["states"] if state.lower() not in _KNOWN_STATES]
    return ", ".join(unknown) or "none seen"


EXPERIMENTS = (
    Experiment("in-filter", observe_in_filter, judge_in_filter, assumed=("either", "value", "values")),
    Experiment("search-lag", observe_lag, judge_lag),
    Experiment("page-tokens", observe_page_tokens, judge_page_tokens),
    Experiment("date-header", observe_date, judge_date, assumed=("a close clock",)),
    Experiment("carbon-keys", observe_carbon, judge_carbon, assumed=("both", "as the SDKs", "as OpenAPI")),
    Experiment("scheduling-spelling", observe_spelling, judge_spelling),
    Experiment("costs-at-first", observe_costs_at_first, judge_costs_at_first),
    Experiment(
        "credits-of-deleted", observe_credits_of_deleted, judge_credits_of_deleted, assumed=("reported",)
    ),
)
#: They see the objects of the other experiments.
LAST = (
    Experiment("search-cap", observe_cap, judge_cap),
    Experiment("other-states", observe_states, judge_states, assumed=("none seen",)),
)
