"""Responses, costs, the table and the file, without a server."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_qarnot_pool.api.errors import QarnotCredentialsError
from airflow_qarnot_pool.probe.buckets import Buckets
from airflow_qarnot_pool.probe.budget import LimitReached, NodeMeter, RunBudget
from airflow_qarnot_pool.probe.ledger import TAG, clean_up
from airflow_qarnot_pool.probe.report import summary, table, write_answers
from airflow_qarnot_pool.probe.rows import Assumption
from airflow_qarnot_pool.probe.runner import Finding, Verdict
from airflow_qarnot_pool.probe.sender import Answer, Disturbed, Undecided, read_answer
from airflow_qarnot_pool.probe.session import Session

JSON, HTML, TEXT = "application/json", "text/html", "text/plain"

ANSWERS: dict[str, tuple[int, str, str, bool, Answer | type[Exception]]] = {
    "an object": (200, JSON, '{"uuid": "u"}', False, Answer(200, {"uuid": "u"})),
    "nothing": (200, "", "", False, Answer(200)),
    "a refusal": (400, JSON, '{"message": "no"}', False, Answer(400, {"message": "no"}, "no")),
    "an empty refusal": (404, "", "", False, Answer(404)),
    "a bulk": (207, JSON, "[]", False, Answer(207, [])),
    "an output": (200, TEXT, "<b>", True, Answer(200, "<b>")),
    "a page in place of an object": (200, HTML, "<html>", False, Disturbed),
    "a page in place of an output": (200, HTML, "<html>", True, Disturbed),
    "a page with a status of the service": (404, TEXT, "no such host", False, Disturbed),
    "half an object": (200, JSON, '{"uuid', False, Disturbed),
    "a redirect": (302, "", "", False, Disturbed),
    "a failure": (503, JSON, '{"message": "later"}', False, Disturbed),
    "a rate limit": (429, JSON, "{}", False, Disturbed),
    "a full account": (403, JSON, '{"message": "Maximum number of pools reached: 1"}', False, Undecided),
    "no credits": (402, JSON, '{"message": "Not enough credits"}', False, Undecided),
    "a bad token": (401, JSON, "{}", False, QarnotCredentialsError),
}


@pytest.mark.parametrize("case", ANSWERS.values(), ids=ANSWERS.keys())
def test_a_response_is_read(case: tuple[int, str, str, bool, Any]) -> None:
    status, content_type, body, is_text, expected = case
    if isinstance(expected, Answer):
        assert read_answer(status, content_type, body, is_text=is_text) == expected
        return
    with pytest.raises(expected) as caught:
        read_answer(status, content_type, body, is_text=is_text)
    assert caught.type is expected


def test_node_seconds_are_never_estimated_too_low() -> None:
    meter = NodeMeter(nodes=2, seen_at=100.0)
    meter.see(False, 110.0)
    assert meter.total(120.0) == 0.0
    meter.see(True, 120.0)  # it may have come up right after the look before
    assert meter.total(130.0) == 2 * 20.0
    meter.see(False, 140.0)
    assert meter.total(1000.0) == 2 * 30.0


def test_late_costs_do_not_hide_the_limit() -> None:
    budget = RunBudget(euros=0.1, euros_per_node_hour=3.6, ends_at=500.0)
    budget.meters["p"] = NodeMeter(1, seen_at=0.0, is_up=True)
    budget.check(99.0)
    with pytest.raises(LimitReached, match=r"up to 0\.1040 EUR"):
        budget.check(99.0, node_seconds=5.0)
    budget.reported["p"] = 0.2
    with pytest.raises(LimitReached):
        budget.check(1.0)


def _session(answer: Any) -> Session:
    """A session whose clock stands still, and whose requests get one response."""
    client: Any = SimpleNamespace(transport=None)
    session = Session(client, RunBudget(1.0, 3.6, ends_at=100.0), "token", clock=lambda: 0.0)
    setattr(session.wire, "send", answer)  # noqa: B010
    return session


@pytest.mark.parametrize("euros", [float("nan"), 10**999, "1"], ids=["NaN", "huge", "text"])
def test_a_cost_that_is_no_number_does_not_hide_the_limit(euros: Any) -> None:
    session = _session(lambda *request: Answer(200, {"credits": euros}))
    session.budget.meters["p"] = NodeMeter(1, seen_at=0.0, is_up=True, counted=2000.0)
    session.report_costs()
    with pytest.raises(LimitReached):
        session.check()


def test_a_pool_whose_creation_is_lost_counts_until_it_is_found() -> None:
    shown = [{"uuid": "earlier"}]  # it is being deleted

    def answer(method: str, *request: Any, **options: Any) -> Answer:
        if method == "POST":
            raise Disturbed("the response is lost")
        return Answer(200, shown)

    session = _session(answer)
    session.budget.meters["earlier"] = NodeMeter(1, seen_at=0.0)
    for expected in (60.0, 60.0):
        with pytest.raises(Disturbed):
            session.create("pools", instanceCount=1)
        assert session.budget.node_seconds(60.0) == expected
        shown.append({"uuid": "late"})
    assert session.ledger.objects == set()  # it was found, and deleted
    assert session.lost == 2


@pytest.mark.parametrize(("looks", "is_deleted"), [(1, False), (3, True)])
def test_a_clean_up_may_look_again_for_an_object_that_is_listed_late(looks: int, is_deleted: bool) -> None:
    lists = iter([[], [], [{"uuid": "late"}]])
    deleted: list[str] = []

    def request(method: str, path: str, **options: Any) -> Any:
        if method == "DELETE":
            return deleted.append(path)
        return next(lists, []) if path == "/pools" else []

    transport: Any = SimpleNamespace(request=request)
    assert clean_up(transport, TAG, looks=looks, sleep=lambda seconds: None) == []
    assert deleted == (["/pools/late"] if is_deleted else [])


def test_only_buckets_of_runs_are_deleted() -> None:
    names = ["airflow-qarnot-probe-0123abcd-1", "airflow-qarnot-probe-results", "airflow-qarnot-probe"]
    deleted: list[str] = []
    s3 = SimpleNamespace(
        list_buckets=lambda: {"Buckets": [{"Name": name} for name in names]},
        list_objects_v2=lambda Bucket: {},
        delete_bucket=lambda Bucket: deleted.append(Bucket),
    )
    for prefix in (TAG, f"{TAG}-0123abcd", f"{TAG}-4567abcd"):
        buckets = Buckets(SimpleNamespace(), "token", prefix)  # type: ignore[arg-type]
        buckets._s3 = s3
        assert buckets.clean_up() == []
    assert deleted == names[:1] * 2


def test_the_time_of_a_run_is_limited() -> None:
    with pytest.raises(LimitReached, match="time"):
        RunBudget(1.0, 1.0, ends_at=10.0).check(11.0)


ROWS = {
    name: Assumption(name, f"Why {name}?", "Because.", f"Then {name}.") for name in ("one", "two", "three")
}
FINDINGS = [
    Finding("one", Verdict.AS_ASSUMED, "400", seen={"status": 400}),
    Finding("two", Verdict.DIFFERS, "404", seen={"keys": ["k" * 10] * 100}),
    Finding("three", Verdict.NOT_DECIDED, reason="it was disturbed"),
]


def test_the_table_says_whether_it_matters() -> None:
    text = table(FINDINGS, ROWS, 120)
    assert max(map(len, text.splitlines())) <= 120
    one, two, three = (
        text.split("one: ")[1].partition("two: ")[0],
        text.split("two: ")[1],
        text.split("three: ")[1],
    )
    assert "400 (status 400)" in one
    assert "as assumed" in one
    assert "Then two." in two
    assert "Then three." not in three
    assert "disturbed" in three
    assert summary(FINDINGS) == "1 as assumed, 1 differs, 1 not decided"


def test_the_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "answers.json"
    write_answers(path, {"rows": {"one": FINDINGS[0].to_json()}})
    before = path.read_text()
    write_answers(path, {"text": "é\ud800"})  # what a service may send
    assert json.loads(path.read_bytes()) == {"text": "é\ud800"}
    write_answers(path, json.loads(before))
    assert json.loads(before)["rows"]["one"]["answer"] == "400"
    with pytest.raises(TypeError):
        write_answers(path, {"rows": object()})
    assert path.read_text() == before
    assert [file.name for file in tmp_path.iterdir()] == ["answers.json"]
