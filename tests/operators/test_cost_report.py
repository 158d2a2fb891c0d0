"""The report of a period: what is counted, under what, and how it looks."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from typing import Any
from uuid import uuid4
from xml.etree import ElementTree

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.specs import PoolSpec, TaskSpec
from airflow_qarnot_pool.costs.model import Cost
from airflow_qarnot_pool.costs.report import (
    LEGEND,
    NOTHING,
    CostReport,
    Item,
    cost_report,
)
from airflow_qarnot_pool.exceptions import QarnotInvalidSpecError
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.operators.cost_report import QarnotCostReportOperator
from airflow_qarnot_pool.operators.pool import QarnotClosePoolOperator, QarnotCreatePoolOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.ownership.identity import EXECUTOR_LABEL, INSTANCE_TAG, RunKey, namespace_tag
from tests.crash.children import eventually
from tests.harness import FakeTI, run

report = partial(QarnotCostReportOperator, task_id="report")


def item(dag: str, run_id: str, task: str, euros: float, *tags: str) -> Item:
    cost = Cost(
        euros=euros,
        energy_wh=euros * 1000,
        carbon_g=euros * 50,
        saved_g=None,
        node_seconds=euros * 100,
        used_node_seconds=euros * 75,
    )
    return Item(run=RunKey(dag, run_id), task_id=task, tags=frozenset(tags), cost=cost)


REPORT = CostReport(
    since=datetime(2026, 1, 1, tzinfo=UTC),
    until=datetime(2026, 1, 2, tzinfo=UTC),
    pools=3,
    items=(
        item("etl", "r1", "load", 1.0, "sales", "nightly"),
        item("etl", "r2", "load", 2.0, "sales"),
        item("etl", "r2", "sum|up", 0.5, "sales"),
        item("<ml>", "r1", "train", 4.0),
        item("", "", "", 0.25),
        item("etl", "r3", "", 0.125),
    ),
)


def test_rows_by_dag_task_and_tag() -> None:
    def rows(by: Any) -> list[tuple[str, int, float | None]]:
        return [(row.name, row.runs, row.cost.euros) for row in REPORT.rows(by)]

    assert rows("dag") == [("<ml>", 1, 4.0), ("etl", 3, 3.625), ("(no DAG)", 1, 0.25)]
    assert rows("task") == [
        ("<ml>.train", 1, 4.0),
        ("etl.load", 2, 3.0),
        ("etl.sum|up", 1, 0.5),
        ("(no DAG)", 1, 0.25),
        ("etl.(opened, and nothing ran on it)", 1, 0.125),
    ]
    assert rows("tag") == [("(no tag)", 3, 4.375), ("sales", 2, 3.5), ("nightly", 1, 1.0)]
    assert REPORT.total.euros == 7.875


def test_markdown() -> None:
    assert REPORT.markdown(["dag"], 2) == (
        "2026-01-01 00:00 to 2026-01-02 00:00 UTC: 7.88 EUR, 7.88 kWh, 394 g CO2e, 3 pools\n\n"
        "**By DAG**\n\n"
        "| DAG | Runs | Cost | Energy | Carbon | Saved | Idle |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| &lt;ml&gt; | 1 | 4.00 EUR | 4.00 kWh | 200 g CO2e | ? | 25% |\n"
        "| etl | 3 | 3.62 EUR | 3.62 kWh | 181 g CO2e | ? | 25% |\n"
        "| 1 more |  | 0.25 EUR | 250 Wh | 12.5 g CO2e | ? | 25% |\n\n"
        f"*{LEGEND}*\n"
    )
    assert "| etl.sum\\|up | 1 |" in REPORT.markdown(["task"], 20)


HOSTILE = [
    "a\nb",
    "a\r\n\r\n# heading",
    "a\u2028b\x85c\td\x00e",
    "a|b",
    "a\\|b",
    "a\\",
    "\\",
    "![image](https://evil.example/x.png)",
    "[link](javascript:alert(1))",
    "[link]: https://evil.example",
    "<img src=x onerror=alert(1)>",
    "<script>alert(1)</script>",
    "<!-- comment",
    "&lt;b&gt; &amp; &#42;",
    "**bold** *em* __bold__ _em_ ~~gone~~ `code` ``code``",
    "$x$ {: .class} ${y}",
    "my_dag.my_task-1 (100%) #7 a+b 1. x!",
    "<https://evil.example>",
    "日本 é",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_text_in_markdown_whoever_renders_it(name: str) -> None:
    found = replace(REPORT, items=(item(name, "r", "task", 1.0, name), item("other", "r", "task", 0.5)))
    text = found.markdown(["dag", "task", "tag"], 20)
    assert (
        len(text.splitlines())
        == len(replace(REPORT, items=found.items[1:]).markdown(["dag", "task", "tag"], 20).splitlines()) + 3
    )
    plain = " ".join("".join(one if one.isprintable() else " " for one in name).split())
    markdown, markdown_it = pytest.importorskip("markdown"), pytest.importorskip("markdown_it")
    renderers = [
        partial(markdown.markdown, extensions=["tables"]),
        markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"]).render,
    ]
    for render in renderers:
        page = ElementTree.fromstring(f"<body>{render(text)}</body>")
        cells = [["".join(cell.itertext()) for cell in row] for row in page.iter("tr")]
        assert {len(row) for row in cells} == {7}
        assert [row[0] for row in cells if row[0] in (plain, f"{plain}.task")] == [
            plain,
            f"{plain}.task",
            plain,
        ]
        assert {one.tag for row in page.iter("td") for one in row.iter()} == {"td"}


def test_a_name_that_marks_nothing_up_stays_readable() -> None:
    found = replace(REPORT, items=(item("my_dag-1.v2 (nightly): a+b", "r", "task", 1.0),))
    assert "| my_dag-1.v2 (nightly): a+b | 1 |" in found.markdown(["dag"], 20)


def test_unknown_costs_do_not_hide_known_ones() -> None:
    unknown = Item(
        run=RunKey("etl", "r1"), task_id="x", tags=frozenset(), cost=Cost(euros=None, carbon_g=None)
    )
    found = replace(REPORT, items=(*REPORT.items, unknown))
    assert (
        "UTC: at least 7.88 EUR, 7.88 kWh, 394 g CO2e (the cost of 1 is not known), 3 pools" in found.headline
    )
    assert found.to_json(["dag"], 5)["total"]["euros"] is None
    assert "| etl | 3 | ? |" in found.markdown(["dag"], 5)


def test_times_are_told_in_utc() -> None:
    paris = timezone(timedelta(hours=1))
    found = replace(
        REPORT, since=datetime(2026, 1, 1, tzinfo=paris), until=datetime(2026, 1, 2, tzinfo=paris)
    )
    assert found.headline.startswith("2025-12-31 23:00 to 2026-01-01 23:00 UTC: ")


def test_html_is_escaped() -> None:
    html = REPORT.html(["dag", "tag"], 20)
    assert "&lt;ml&gt;" in html
    assert "<ml>" not in html
    assert html.count("<table") == html.count("</table>") == 2


def test_nothing_in_a_period_is_a_report_too() -> None:
    empty = CostReport(since=REPORT.since, until=REPORT.until, items=(), pools=0)
    assert empty.markdown(["dag"], 5).startswith(
        "2026-01-01 00:00 to 2026-01-02 00:00 UTC: 0.0000 EUR, 0 Wh, 0 g CO2e, 0 g CO2e saved, 0 pools"
    )
    assert NOTHING in empty.markdown(["dag"], 5)
    assert NOTHING in empty.html(["dag"], 5)
    assert empty.to_json(["dag"], 5)["dag"] == []


def test_a_period_on_the_local_qarnot_matches_its_account(qarnot: LocalQarnot, client: QarnotClient) -> None:
    def ti(task_id: str, run_id: str) -> FakeTI:
        return FakeTI(task_id=task_id, run_id=run_id, dag_id="reported")

    qarnot.advance_clock(100)
    since = now_at(qarnot)
    qarnot.advance_clock(10)
    create = partial(
        QarnotCreatePoolOperator, task_id="create", instance_count=1, pool_spec={"tags": ["sales"]}
    )
    pools = [run(create, ti("create", run_id)) for run_id in ("one", "two")]
    work = partial(QarnotRunTaskOperator, command="sh -c 'sleep 0.2'", log_output=False)
    run(partial(work, task_id="a", qarnot_pool=pools[0], task_spec={"tags": ["urgent"]}), ti("a", "one"))
    run(partial(work, task_id="b", qarnot_pool=pools[0]), ti("b", "two"))
    run(partial(work, task_id="alone"), ti("alone", "two"))
    for pool in pools:
        close = partial(QarnotClosePoolOperator, task_id="close", qarnot_pool=pool, wait_for_completion=True)
        run(close, ti("close", "one"))
    qarnot.advance_clock(10)
    until = now_at(qarnot)
    run(create, ti("create", "later"))

    found = run(partial(report, since=since.isoformat(), until=until), ti("report", "report"))
    account = qarnot.get_account()["pools"]
    spent = sum(account[pool]["creditsSpent"] for pool in pools)
    tasks = {row["name"]: row["cost"]["euros"] for row in found["task"]}
    assert found["pools"] == 2
    assert tasks.keys() == {
        "reported.a",
        "reported.b",
        "reported.alone",
        "reported.(opened, and nothing ran on it)",
    }
    assert found["total"]["euros"] - tasks["reported.alone"] == pytest.approx(spent, abs=1e-5)
    tags = {row["name"]: row["cost"]["euros"] for row in found["tag"]}
    assert tags["sales"] == pytest.approx(spent, abs=1e-5)
    assert tags["urgent"] == tasks["reported.a"]
    assert tags["(no tag)"] == tasks["reported.alone"]
    (dag,) = found["dag"]
    assert (dag["name"], dag["runs"]) == ("reported", 2)
    assert "| reported |" in found["markdown"]


def test_a_period_has_what_the_executor_ran_in_it_on_an_older_pool(
    qarnot: LocalQarnot, client: QarnotClient
) -> None:
    """Each day has the execution of its tasks, and the first one also the idle time so far."""
    labels = {f"airflow.{name}": value for name, value in (("format", "1"), ("namespace", "days"))}
    tags = [namespace_tag("days")]
    first_day = now_at(qarnot)
    spec = PoolSpec(name="p", instance_count=1, tags=tags, labels={**labels, EXECUTOR_LABEL: "gpu"})
    pool = client.pools.create(spec)

    def execute(dag_id: str) -> float:
        of_run = {"airflow.dag_id": dag_id, "airflow.run_id": "r", "airflow.role": "executor"}
        spec = TaskSpec(name="t", pool=pool, command="sleep 0.3", tags=[*tags, f"{INSTANCE_TAG}{uuid4()}"])
        uuid = client.tasks.create(replace(spec, labels={**labels, **of_run}))
        eventually(lambda: client.tasks.get(uuid).state == "Success", patience=30)
        return client.tasks.get(uuid).executed_seconds or 0.0

    seconds = {"first": execute("first")}
    qarnot.advance_clock(86_400)
    second_day = now_at(qarnot) - timedelta(seconds=1)
    seconds["second"] = execute("second")
    end = now_at(qarnot) + timedelta(seconds=1)
    days = [
        cost_report(client, "days", since, until)
        for since, until in ((first_day, second_day), (second_day, end))
    ]
    found = [{row.name: row.cost for row in day.rows("dag")} for day in days]
    assert [set(rows) for rows in found] == [{"first", "(no DAG)"}, {"second"}]
    for day, (dag_id, each) in zip(found, seconds.items(), strict=True):
        assert day[dag_id].euros == pytest.approx(each * 0.0001, rel=0.05)
        assert day[dag_id].idle_node_seconds == 0
    assert found[0]["(no DAG)"].euros == pytest.approx(8.64, rel=0.05)
    client.pools.delete(pool)


def now_at(qarnot: LocalQarnot) -> datetime:
    return datetime.fromtimestamp(int(qarnot.get_clock()["now"]), UTC)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"group_by": "dag"}, "group_by"),
        ({"group_by": []}, "group_by"),
        ({"group_by": ["dag", "colour"]}, "group_by"),
        ({"period": timedelta()}, "period"),
        ({"max_rows": 0}, "max_rows"),
        ({"since": "yesterday"}, "since"),
        ({"until": "tomorrow"}, "until"),
    ],
)
def test_nonsense_is_refused_when_the_dag_is_parsed(given: dict[str, Any], field: str) -> None:
    with pytest.raises(QarnotInvalidSpecError) as refused:
        report(**given)
    assert refused.value.field == field


def test_an_empty_period_is_refused(qarnot: LocalQarnot) -> None:
    with pytest.raises(QarnotInvalidSpecError, match="since is not before the end of the period"):
        run(partial(report, since="2026-01-02", until="2026-01-01"))
