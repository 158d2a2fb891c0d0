"""Every documented metric reaches a real StatsD listener, and none that is not documented."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from airflow_qarnot_pool import metrics, version_compat
from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.specs import PoolSpec
from airflow_qarnot_pool.exceptions import QarnotCostLimitError
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.maintenance.reaper import reap
from airflow_qarnot_pool.operators.pool import QarnotClosePoolOperator, QarnotCreatePoolOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from tests.conftest import ROOT
from tests.crash.children import eventually
from tests.harness import FakeTI, defer, life_of, run
from tests.statsd import Statsd

DOCS = Path(ROOT, "docs", "metrics.md")
task = partial(QarnotRunTaskOperator, task_id="work", retries=1, log_output=False)
create = partial(QarnotCreatePoolOperator, task_id="create", instance_count=2)


@pytest.fixture
def statsd(monkeypatch: pytest.MonkeyPatch) -> Iterator[Statsd]:
    with Statsd() as listener:
        for name, value in listener.settings().items():
            monkeypatch.setenv(name, value)
        forget_stats(monkeypatch)
        yield listener
        forget_stats(monkeypatch)


def forget_stats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have Airflow's stats as a process has them that nobody has set up."""
    monkeypatch.setattr(version_compat, "_stats_checked_in", 0)
    if version_compat.AIRFLOW_VERSION < (3, 2):
        from airflow.stats import Stats

        # It reads the settings when it is made.
        if hasattr(type(Stats), "factory"):
            del type(Stats).factory
        Stats.instance = None
        type(Stats).__init__(Stats)
        return
    from airflow.sdk.observability.stats import Stats

    module = sys.modules[Stats.__module__]
    if hasattr(module, "_factory"):
        module._factory = module._backend = None
    else:
        # As after a metric that was sent before anybody had set it up.
        Stats.instance = Stats.factory = None
        Stats.incr("early")


def documented() -> dict[str, str]:
    """Name and kind of each metric in docs/metrics.md."""
    kinds = {"counter": "c", "gauge": "g", "timer, ms": "ms"}
    rows = re.findall(r"^\| `(qarnot\.[a-z_.]+)` \| ([a-z, ]+) \|", DOCS.read_text(), re.MULTILINE)
    return {name: kinds[kind] for name, kind in rows}


def ti(task_id: str, **fields: Any) -> FakeTI:
    return FakeTI(run_id="metrics", task_id=task_id, **{"max_tries": 1, **fields})


def test_every_documented_metric_and_no_other_reaches_a_listener(
    qarnot: LocalQarnot, client: QarnotClient, statsd: Statsd, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A retry takes over what runs, another one what succeeded.
    pool = run(create, ti("create"))
    work = partial(task, qarnot_pool=pool, command="sh -c 'sleep 0.5'")
    defer(work, ti("work"))
    run(work, ti("work", try_number=2))
    run(work, ti("work", try_number=2))
    # A request that has to be sent again.
    qarnot.faults(
        [{"method": "POST", "path": f"/pools/{pool}/close$", "times": 1, "kind": "status", "status": 503}]
    )
    run(
        partial(QarnotClosePoolOperator, task_id="close", qarnot_pool=pool, wait_for_completion=True),
        ti("close"),
    )
    # A limit, first of which a share is reached.
    dear = run(create, ti("dear"))
    qarnot.advance_clock(3600)
    held = partial(task, task_id="held", qarnot_pool=dear, command="sleep 60")
    with pytest.raises(QarnotCostLimitError):
        run(partial(held, max_cost=0.5), ti("held"))
    warned = run(create, ti("warned"))
    qarnot.advance_clock(3600)
    result = run(partial(work, qarnot_pool=warned, max_cost=0.9), ti("work", map_index=1))
    assert result["state"] == "Success"
    # A pool that was left behind.
    reap(client, "test", lambda dag_id, run_id: "failed", now=lambda: far_ahead(qarnot))
    doubles(monkeypatch)

    # Those of the executor: tests/executors/test_metrics.py.
    expected = {name: kind for name, kind in documented().items() if ".executor." not in name}
    assert len(expected) > 20
    eventually(lambda: expected.keys() <= statsd.seen().keys(), patience=5, say=missing(statsd, expected))
    seen = statsd.seen()
    assert {name: kind for name, (kind, _) in seen.items()} == expected
    assert seen["qarnot.claims.adopted"][1] == 1
    assert seen["qarnot.claims.already_succeeded"][1] == 1
    assert seen["qarnot.duplicates_avoided"][1] == 2
    assert seen["qarnot.retries"][1] >= 1
    assert seen["qarnot.cost_limit.exceeded"][1] == 1
    assert seen["qarnot.cost_limit.warnings"][1] == 1
    assert seen["qarnot.pools.reaped"][1] >= 1
    spent = qarnot.get_account()["pools"][pool]["creditsSpent"]
    assert seen["qarnot.cost.microeuros"][1] == pytest.approx(spent * 1e6, rel=0.01)


@pytest.mark.parametrize("shared", [True, False])
def test_each_pool_is_counted_once_by_the_teardown_that_closes_it(
    qarnot: LocalQarnot, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    """Not by runs that leave it to others, nor by the next try; and each DAG that works on it has its share."""
    monkeypatch.setattr("airflow_qarnot_pool.ownership.liveness.dag_run_state", lambda *_: "running")
    dags = [f"first-{shared}", f"last-{shared}"]
    options: dict[str, Any] = {"shared": "counted"} if shared else {}

    def ti_of(dag_id: str, task_id: str) -> FakeTI:
        return FakeTI(dag_id=dag_id, run_id="counted", task_id=task_id, max_tries=1)

    for dag_id in dags[: 1 + shared]:
        pool = run(partial(create, warm_up=False, **options), ti_of(dag_id, "create"))
    for dag_id in dags:
        run(partial(task, qarnot_pool=pool, command="sh -c 'sleep 0.1'"), ti_of(dag_id, "work"))
    close = partial(
        QarnotClosePoolOperator, task_id="close", qarnot_pool=pool, wait_for_completion=True, **options
    )
    sent: list[tuple[str, float]] = []

    def incr(name: str, count: float = 1, **tags: Any) -> None:
        if name == "cost.microeuros":
            sent.append((tags["dag_id"], count))

    monkeypatch.setattr(metrics, "incr", incr)
    for dag_id in (*dags, dags[-1]):
        run(close, ti_of(dag_id, "close"))
    spent = qarnot.get_account()["pools"][pool]["creditsSpent"] * 1e6
    assert sum(count for _, count in sent) == pytest.approx(spent, rel=0.01)
    assert sorted(dag_id for dag_id, _ in sent) == dags


def missing(statsd: Statsd, expected: dict[str, str]) -> str:
    return f"{sorted(expected.keys() - statsd.seen().keys())} to be seen"


def far_ahead(qarnot: LocalQarnot) -> datetime:
    return datetime.fromtimestamp(qarnot.get_clock()["now"], UTC) + timedelta(hours=5)


def doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer to a create is lost, and what it made shows only after the next one: one of both ends."""
    from airflow_qarnot_pool.ownership import claim as claims

    identity = life_of(run_id="doubles")
    look, looks = claims._lookup, iter([True])
    monkeypatch.setattr(claims, "_lookup", lambda *args: {} if next(looks, False) else look(*args))
    with (
        LocalQarnot(boot_seconds=0.05, shortnames="free") as free,
        QarnotClient(free.url, free.token) as client,
    ):
        free.faults([{"method": "POST", "path": "^/pools$", "times": 1, "kind": "lost"}])
        claims.claim(
            claims.ClaimRequest(
                resource=client.pools,
                spec=PoolSpec(name="twice", instance_count=1),
                identity=identity,
                pause=lambda _: None,
            )
        )
        assert sorted(one.state in ("Closing", "Closed") for one in client.pools.list()) == [False, True]


def test_each_decision_is_a_named_event_in_log_and_trace(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("a task process")
    work = partial(task, qarnot_pool=pool, command="sh -c 'sleep 0.3'")

    def life_of(try_number: int) -> FakeTI:
        return FakeTI(run_id="decisions", task_id="work", max_tries=2, try_number=try_number)

    with tracer.start_as_current_span("worker.work"):
        deferred, _ = defer(work, life_of(1))  # and its worker dies
    uuid = deferred.trigger.uuid
    with tracer.start_as_current_span("worker.work"):
        run(work, life_of(2))
    with tracer.start_as_current_span("worker.work"):
        run(work, life_of(3))
    # Without a span there is nothing to tell.
    run(work, life_of(3))

    told = [
        (event.name, dict(event.attributes or {}))
        for span in exporter.get_finished_spans()
        for event in span.events
        if event.name.startswith("qarnot.")
    ]
    names = ["qarnot.fresh_submit", "qarnot.adopted", "qarnot.already_succeeded"]
    attributes = {"qarnot.kind": "task", "qarnot.uuid": uuid, "qarnot.generation": 1}
    assert told == [(name, attributes) for name in names]
    said = capsys.readouterr().out
    for name, times in zip(names, (1, 1, 2), strict=True):
        assert said.count(f"{name}: task {uuid}, generation 1") == times


def test_metrics_that_cannot_be_sent_spoil_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise RuntimeError("no stats")

    monkeypatch.setattr(version_compat, "stats", broken)
    metrics.incr("requests")
    metrics.gauge("pools.open", 1)
    metrics.timing("poll.duration", 1)


def test_the_stats_backend_of_airflow_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a task process Airflow has set up its stats before any operator runs."""
    stats = pytest.importorskip("airflow.sdk.observability.stats")
    forget_stats(monkeypatch)
    told: list[tuple[Any, ...]] = []

    class Backend:
        def incr(self, name: str, count: int = 1, **_: Any) -> None:
            told.append((name, count))

    if hasattr(stats, "initialize"):
        stats.initialize(factory=Backend, export_legacy_names=False)
    else:  # 3.2
        stats.Stats.initialize(factory=Backend)
    metrics.incr("requests", 3)
    assert told == [("qarnot.requests", 3)]
    forget_stats(monkeypatch)
