"""Which answer follows from which observations. No experiment runs here."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_qarnot_pool.probe.experiments import EXPERIMENTS
from airflow_qarnot_pool.probe.runner import Verdict, conclude

Case = tuple[str, dict[str, Any], str | None]
UNITS = ("300 letters", "600 letters", "300 of 2 bytes", "300 of 4 bytes")

JUDGED: dict[str, Case] = {
    "a secret under both names": (
        "secret-variables",
        {"variables": ["PROBE", "QARNOT_SECRET__PROBE"]},
        "its own name",
    ),
    "a secret that is not shown": ("secret-variables", {"variables": []}, None),
    "a second pool of the name": ("pool-name-taken", {"second pool": 200}, "accepted"),
    "a name that is refused": ("pool-name-taken", {"second pool": 409}, "409"),
    "a name that a Closed pool frees": (
        "name-of-closed-pool",
        {"while open": 400, "once closed": 200},
        "free once closed",
    ),
    "names that are not enforced": (
        "name-of-closed-pool",
        {"while open": 200, "once closed": 200},
        "not enforced",
    ),
    "a name in some paths": ("shortname-in-path", {"GET": 200, "PUT": 404, "close": 200}, "only GET, close"),
    "a refused control": ("shortname-in-pool-uuid", {"uuid": 400, "shortname": 400}, None),
    "a refused name": ("names-as-uuids", {"uuid": 200, "shortname": 400}, "no"),
    "63 characters": ("shortname-length", {"63": 200, "64": 400, "256": 400}, "63"),
    "no length at all": ("shortname-length", {"63": 400, "64": 400, "256": 400}, "less than 63"),
    "UTF-16 units": ("unit-of-limits", dict(zip(UNITS, (200, 400, 200, 400), strict=True)), "UTF-16 units"),
    "characters": ("unit-of-limits", dict(zip(UNITS, (200, 400, 200, 200), strict=True)), "characters"),
    "bytes": ("unit-of-limits", dict(zip(UNITS, (200, 400, 400, 400), strict=True)), "bytes"),
    "no limit": ("unit-of-limits", dict(zip(UNITS, (200, 200, 200, 200), strict=True)), "no limit of 511"),
    "a tag that is refused for another reason": (
        "unit-of-limits",
        dict(zip(UNITS, (400, 400, 400, 400), strict=True)),
        None,
    ),
    "mixed statuses": (
        "unknown-references",
        {"profile": 404, "pool": 400, "job": 400},
        "profile 404, pool 400, job 400",
    ),
    "an accepted unknown": ("unknown-references", {"profile": 200, "pool": 400, "job": 400}, "accepted"),
    "two statuses": ("task-on-closed-pool", {"on close": 403, "once closed": 400}, "403, then 400"),
    "an accepted task": ("task-on-closed-pool", {"on close": 200, "once closed": 400}, "accepted"),
    "a close that differs by state": (
        "close-again",
        {"second close": 200, "third close": 403},
        "200 while Closing, 403 once Closed",
    ),
    "a PUT without effect": ("put-on-closed", {"PUT": 200, "tags": False}, "ignored"),
    "a count of neither": ("put-instance-count", {"PUT": 200, "instanceCount": None}, None),
    "a refused PUT": ("put-absent-keys", {"PUT": 400, "constants": "kept"}, None),
    "labels of neither": ("labels-of-copies", {"labels": {}}, None),
    "merged labels": ("labels-of-copies", {"labels": {"a": "1", "b": "2", "c": "2"}}, "merged"),
    "a clone without its secret": (
        "clone-of-closed",
        {"clone": 200, "has the constant": False},
        "without the secret",
    ),
    "a factor that is refused": (
        "resize-bounds",
        {"resizePeriod 1": 200, "rampResizeFactor 1": 400},
        "not rampResizeFactor 1",
    ),
    "a number that is not shown": ("count-with-elastic", {"creation": 200, "requested": None}, None),
    "a number that counts": ("count-with-elastic", {"creation": 200, "requested": 2}, "counted"),
    "a list under 400": ("bulk-all-fail", {"status": 400, "is a list": True}, "400 list"),
    "a job that goes": ("job-without-tasks", {"job": 404}, "the pool closes, the job goes"),
    "a list that took long": (
        "job-creation",
        {"creation": 200, "listed": 1, "after": 3.0, "long name": 200},
        None,
    ),
    "a job that is listed late": (
        "job-creation",
        {"creation": 200, "listed": 0, "after": 0.1, "long name": 200},
        "it is listed late",
    ),
    "a queued task that stays": (
        "queued-at-close",
        {"running": "cancelled", "queued": "submitted"},
        "queued ones stay",
    ),
    "a running task that may finish": (
        "queued-at-close",
        {"running": "success", "queued": "cancelled"},
        "running: success, queued: cancelled",
    ),
    "a deleted task": ("queued-at-close", {"running": "cancelled", "queued": 404}, "queued: 404"),
    "only value": ("in-filter", {"values": False, "value": True, "both": True}, "value"),
    "neither spelling": ("in-filter", {"values": False, "value": False, "both": True}, None),
    "a cap": ("search-cap", {"status": 200, "found": 50, "total": 70, "twice": True}, "50"),
    "no cap": ("search-cap", {"status": 200, "found": 70, "total": 70, "twice": True}, "none up to 70"),
    "a change between two looks": (
        "search-cap",
        {"status": 200, "found": 69, "total": 70, "twice": False},
        None,
    ),
    "a refused limit": (
        "search-cap",
        {"status": 400, "found": None, "total": 70, "twice": True},
        "10000 is refused",
    ),
    "a lag": (
        "search-lag",
        {"first search after": [0.1, 0.1], "found at once": [True, False], "visible after": [0.0, 4.2]},
        "up to 4.2 s",
    ),
    "a search that was late itself": (
        "search-lag",
        {"first search after": [5.0], "found at once": [True], "visible after": [0.0]},
        None,
    ),
    "a token that has ended": ("page-tokens", {"token": True, "after": 9, "status": 400}, "less than 9 s"),
    "no second page": ("page-tokens", {"token": False, "after": 9, "status": 200}, None),
    "no date": ("date-header", {"date": False, "seconds apart": None}, "no date"),
    "a close date": ("date-header", {"date": True, "seconds apart": 1}, "a close clock"),
    "another clock": ("date-header", {"date": True, "seconds apart": 90}, "another clock"),
    "unknown keys": ("carbon-keys", {"status": 200, "keys": ["x"]}, None),
    "no carbon facts": ("carbon-keys", {"status": 404, "keys": []}, "404"),
    "no scheduling type": ("scheduling-spelling", {"schedulingType": None}, None),
    "costs that never were": ("credits-of-deleted", {"before": 404, "once deleted": 404}, None),
    "a new state": ("other-states", {"states": ["Closed", "Hibernating"]}, "Hibernating"),
    "an end that is not included": (
        "range-end",
        {"totalInstanceCount": 2, "instanceCount": 0},
        "not included",
    ),
    "a range of one": ("range-end", {"totalInstanceCount": 1, "instanceCount": 0}, None),
    "few instances": ("max-instances", {"2048": 400, "2049": 400}, "fewer than 2048"),
    "a search that lags": (
        "instances-in-search",
        {"status": 200, "state": "fullyexecuting", "instances": 2},
        None,
    ),
    "a search without instances": (
        "instances-in-search",
        {"status": 200, "state": "success", "instances": 0},
        "not returned",
    ),
    "a field that is refused": (
        "instances-in-search",
        {"status": 400, "state": "none", "instances": 0},
        "refused",
    ),
    "no output yet": (
        "output-kept",
        {"stdout/0 soon": False, "stdout soon": True, "stdout/0 later": True, "stdout later": True},
        None,
    ),
    "lost output": (
        "output-kept",
        {"stdout/0 soon": True, "stdout soon": True, "stdout/0 later": False, "stdout later": True},
        "lost",
    ),
    "a cursor that GET moves": (
        "output-cursor",
        {"GET": True, "POST": False, "second POST": False},
        "GET moves it",
    ),
    "no line at all": ("output-cursor", {"GET": False, "POST": False, "second POST": False}, None),
    "a default without effect": ("retries-replaced", {"attempts by default": 1, "attempts with 0": 1}, None),
    "a default that counts": (
        "retries-replaced",
        {"attempts by default": 2, "attempts with 0": 2},
        "not replaced",
    ),
    "no code": ("error-codes", {"code": None}, None),
    "progress of a task that failed": ("progress-scale", {"state": "Failure", "progress": 100.0}, None),
    "progress to 1": ("progress-scale", {"state": "Success", "progress": 1.0}, "0 to 1"),
    "an abort that is refused later": (
        "abort-again",
        {"second abort": 200, "third abort": 403},
        "200 at first, 403 once finished",
    ),
    "one slot per node": ("capacity-unit", {"slotsPerNode": 1, "totalSlotCapacity": 2}, None),
    "nodes": ("capacity-unit", {"slotsPerNode": 2, "totalSlotCapacity": 1}, "nodes"),
    "no costs yet": ("credits-of-tasks", {"pool": 0.0, "task": 0.0}, None),
    "costs of its own": ("credits-of-tasks", {"pool": 0.1, "task": 0.05}, "its own"),
    "no credits of tasks": ("credits-of-tasks", {"pool": 0.1, "task": "404"}, "not reported"),
    "time of slots": ("execution-time", {"slots per node": 2, "wall": 20.0, "execution": 40.0}, "of slots"),
    "time between both": ("execution-time", {"slots per node": 2, "wall": 20.0, "execution": 30.0}, None),
    "a control without files": ("results-of-failed", {"success": [], "failure": []}, None),
    "a failure without files": ("results-of-failed", {"success": ["f"], "failure": []}, "no"),
    "a pattern for whole paths": (
        "result-patterns",
        {"control": ["d/a1.txt", "d/b.txt"], "files": []},
        "whole paths, or another dialect",
    ),
    "a pattern without a control": ("result-patterns", {"control": [], "files": []}, None),
    "a file that came too early": (
        "resync-copies",
        {"before": True, "PATCH": 200, "afterwards": True},
        "copied without a re-sync",
    ),
    "a re-sync that is refused": (
        "resync-copies",
        {"before": False, "PATCH": 400, "afterwards": False},
        None,
    ),
    "a write that is shown late": (
        "storage-consistency",
        {"shown at once": 9, "of": 10, "the copy is newer": False},
        "writes are shown late, a copy keeps the date",
    ),
    "first costs without a number": ("costs-at-first", {"credits": None, "carbon": 200}, None),
    "a prefix that is refused": ("empty-prefix", {"creation": 400, "state": None}, "refused"),
    "a prefix with which the task fails": (
        "empty-prefix",
        {"creation": 200, "state": "failure"},
        "the task fails",
    ),
    "a prefix that works": ("empty-prefix", {"creation": 200, "state": "success"}, "yes"),
    "no error": ("elastic-and-scaling", {"creation": 200}, "no"),
    "a refused re-sync": ("resync-without-nodes", {"PATCH": 400}, "400"),
    "first costs": ("costs-at-first", {"credits": 404, "carbon": 200}, "credits 404, carbon facts 200"),
}


@pytest.mark.parametrize("case", JUDGED.values(), ids=JUDGED.keys())
def test_judged(case: Case) -> None:
    row, observations, answer = case
    assert EXPERIMENTS[row].judge(observations) == answer


def test_each_judge_is_in_the_table() -> None:
    assert {row for row, _, _ in JUDGED.values()} == EXPERIMENTS.keys()


@pytest.mark.parametrize(
    ("status", "verdict"), [(400, Verdict.AS_ASSUMED), (404, Verdict.DIFFERS), (200, Verdict.DIFFERS)]
)
def test_an_answer_holds_or_differs(status: int, verdict: Verdict) -> None:
    assert conclude(EXPERIMENTS["pool-name-taken"], {"second pool": status}).verdict is verdict


def test_observations_that_decide_nothing_are_no_answer() -> None:
    finding = conclude(EXPERIMENTS["put-absent-keys"], {"PUT": 400, "constants": None})
    assert (finding.verdict, finding.answer) == (Verdict.NOT_DECIDED, None)
