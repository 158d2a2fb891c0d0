"""The experiments against the local Qarnot: with its own answers, and while requests fail."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.probe.experiments import EXPERIMENTS
from airflow_qarnot_pool.probe.runner import Finding, Verdict, run
from airflow_qarnot_pool.probe.session import Session
from tests.probe.conftest import MakeSession

#: The answers of the local Qarnot. One that is measured is given by its start, with a blank.
ANSWERS = {
    "queued-at-close": "cancelled",
    "task-on-closed-pool": "400",
    "pool-name-taken": "400",
    "name-of-closed-pool": "taken until deleted",
    "shortname-in-path": "yes",
    "shortname-in-pool-uuid": "no",
    "names-as-uuids": "no",
    "shortname-length": "256 or more",
    "unknown-references": "400",
    "unit-of-limits": "UTF-16 units",
    "range-end": "included",
    "max-instances": "2048",
    "instances-in-search": "returned",
    "output-kept": "kept",
    "empty-prefix": "yes",
    "results-of-failed": "yes",
    "result-patterns": "expressions, searched in the path",
    "resync-copies": "copied",
    "storage-consistency": "writes are shown at once, a copy renews the date",
    "retries-replaced": "replaced",
    "progress-scale": "0 to 100",
    "scheduling-spelling": "flex",
    "in-filter": "either",
    "carbon-keys": "both",
    "close-again": "403",
    "abort-again": "200",
    "put-on-closed": "refused",
    "put-instance-count": "ignored",
    "put-absent-keys": "unchanged",
    "output-cursor": "GET does not move it",
    "capacity-unit": "slots",
    "elastic-and-scaling": "an error",
    "resize-bounds": "both accepted",
    "count-with-elastic": "ignored",
    "resync-without-nodes": "200",
    "bulk-all-fail": "207 list",
    "job-without-tasks": "the pool closes, the job stays",
    "job-creation": "no pool, listed at once",
    "labels-of-copies": "replaced",
    "clone-of-closed": "yes",
    "date-header": "a close clock",
    "execution-time": "of nodes",
    "credits-of-deleted": "reported",
    "credits-of-tasks": "0",
    "search-cap": "none up to ",
    "search-lag": "at once",
    "page-tokens": "at least ",
    "costs-at-first": "credits 0, carbon facts 200",
    "other-states": "none seen",
    "secret-variables": "its own name",
    "error-codes": "LOCAL_EXIT_CODE",
}


def _is_right(finding: Finding) -> bool:
    answer, expected = finding.answer or "", ANSWERS[finding.row]
    return answer.startswith(expected) if expected.endswith(" ") else answer == expected


@pytest.fixture(scope="module")
def session(new_session: MakeSession) -> Session:
    """One session for single experiments, which share its pool with a node."""
    return new_session()


def test_every_row_is_decided(new_session: MakeSession) -> None:
    session = new_session()
    findings = run(session, EXPERIMENTS.values())
    assert [finding for finding in findings if not _is_right(finding)] == []
    differing = {finding.row for finding in findings if finding.verdict is Verdict.DIFFERS}
    assert differing == set(), "the local Qarnot makes the same assumptions"
    spent = session.budget.spent(session.clock())
    assert 0 < sum(session.budget.reported.values()) <= spent < 1.0


@pytest.fixture
def searches(asked: LocalQarnot) -> Iterator[LocalQarnot]:
    yield asked
    asked.cap_searches(None)
    asked.lag_searches(0)
    asked.expire_page_tokens(None)


def test_a_cap_of_searches_is_found(searches: LocalQarnot, session: Session) -> None:
    searches.cap_searches(2)
    (finding,) = run(session, [EXPERIMENTS["search-cap"]])
    assert finding.answer == "2", finding
    searches.cap_searches(2, refuses=True)
    (finding,) = run(session, [EXPERIMENTS["search-cap"]])
    assert finding.answer == "10000 is refused", finding


def test_a_lag_of_searches_is_found(searches: LocalQarnot, session: Session) -> None:
    searches.lag_searches(20)  # half a second
    (finding,) = run(session, [EXPERIMENTS["search-lag"]])
    assert (finding.answer or "").startswith("up to "), finding


def test_a_life_of_page_tokens_is_found(searches: LocalQarnot, session: Session) -> None:
    searches.expire_page_tokens(0)
    (finding,) = run(session, [EXPERIMENTS["page-tokens"]])
    assert (finding.answer or "").startswith("less than "), finding


def test_faults_make_no_answer_wrong(asked: LocalQarnot, new_session: MakeSession) -> None:
    session = new_session()
    kinds = ("status", "proxy", "reset", "lost", "garbage")
    rules = [{"kind": kind, "probability": 0.05} for kind in kinds]
    asked.clear_requests()
    asked.faults(rules, seed=18)
    try:
        findings = run(session, EXPERIMENTS.values())
    finally:
        asked.faults([])
    disturbed = [request for request in asked.requests() if request.get("fault")]
    assert len(disturbed) > 0.15 * len(asked.requests())
    decided = [finding for finding in findings if finding.answer is not None]
    assert [finding for finding in decided if not _is_right(finding)] == []
    assert len(decided) > len(EXPERIMENTS) / 2
    assert all("disturbed" in (finding.reason or "") for finding in findings if finding.answer is None)


def test_the_limit_of_costs_stops_what_needs_a_node(new_session: MakeSession) -> None:
    session = new_session(euros=1e-9)
    free, costly = EXPERIMENTS["put-on-closed"], EXPERIMENTS["progress-scale"]
    findings = run(session, [free, costly])
    assert [finding.answer for finding in findings] == ["refused", None]
    assert "over the limit" in (findings[1].reason or "")
    assert session.budget.node_seconds(session.clock()) == 0


def test_a_response_of_another_form_stops_only_its_experiment(session: Session) -> None:
    experiment = EXPERIMENTS["put-on-closed"]

    def observe(session: Session) -> dict[str, object]:
        raise KeyError("state")

    findings = run(session, [replace(experiment, observe=observe), experiment])
    assert findings[0].reason == "a response could not be understood: KeyError"
    assert findings[1].answer == "refused"
