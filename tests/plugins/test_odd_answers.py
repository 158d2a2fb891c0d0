"""One odd pool or Qarnot task never blanks the Pools page; figures that cannot be read cost nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from airflow_qarnot_pool.api.models import CarbonFacts, Pool, Task
from airflow_qarnot_pool.plugins import details, history, pictures, queries
from airflow_qarnot_pool.plugins import rows as rows_module
from airflow_qarnot_pool.plugins.actions import describe_close
from airflow_qarnot_pool.plugins.cache import LIST
from airflow_qarnot_pool.plugins.phases import group_of
from airflow_qarnot_pool.plugins.resizing import obstacle_of, resized
from tests.plugins.conftest import Maker, identity, until

if TYPE_CHECKING:
    from airflow_qarnot_pool.local import LocalQarnot

GARBAGE = {"method": "GET", "kind": "garbage"}


@pytest.fixture
def fetcher(
    airflow_app: Any, server: LocalQarnot, monkeypatch: pytest.MonkeyPatch
) -> Iterator[queries.Fetcher]:
    """One that is told everything at once, and asks for figures in every round."""
    monkeypatch.setattr(queries, "FIGURES_MAX_AGE", 0.0)
    yield queries.Fetcher("qarnot_default")
    server.faults([])


def rows_of(fetcher: queries.Fetcher) -> dict[str, dict[str, Any]]:
    return {uuid: entry.row for uuid, entry in fetcher(LIST).entries.items()}


@pytest.mark.parametrize(
    ("path", "fault", "unknown"),
    [
        ("/credits/v1/pools/{}/credits", GARBAGE, "euros"),
        ("/credits/v1/pools/{}/credits", {"kind": "status", "status": 402}, "euros"),
        ("/credits/v1/pools/{}/credits", {"kind": "status", "status": 404}, "euros"),
        ("/carbon/v1/pools/{}/carbon-facts", GARBAGE, "carbon_g"),
        ("/pools/{}/tasks", GARBAGE, None),
    ],
)
def test_figures_that_cannot_be_read_are_not_known_and_asked_for_again(
    make: Maker,
    fetcher: queries.Fetcher,
    server: LocalQarnot,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    fault: dict[str, Any],
    unknown: str | None,
) -> None:
    odd, fine = make.pool("odd", labels={"airflow.shared": "nightly"}), make.pool("fine")
    make.task(odd, owner=identity("frames", "two", "work"))
    server.faults([{**fault, "path": path.format(odd)}])
    rows = rows_of(fetcher)
    assert {odd, fine} <= rows.keys()
    assert None not in (rows[fine]["figures"]["euros"], rows[fine]["figures"]["carbon_g"])
    not_known = {name for name in ("euros", "carbon_g") if rows[odd]["figures"][name] is None}
    assert not_known == {unknown} - {None}
    # What happens meanwhile is seen, and what is over is asked about until there is an answer.
    monkeypatch.setattr(queries, "COST_FINAL_AFTER", timedelta(-1))
    make.client.pools.close(odd)
    until(lambda: rows_of(fetcher)[odd]["phase"] == "closed", "its end")
    server.faults([])
    figures = rows_of(fetcher)[odd]["figures"]
    assert None not in (figures["euros"], figures["carbon_g"])


def test_a_pool_whose_figures_fail_does_not_keep_others_from_theirs(
    make: Maker, fetcher: queries.Fetcher, server: LocalQarnot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "FIGURES_PER_ROUND", 1)
    monkeypatch.setitem(queries.REQUEST_LIMITS, "retries", 0)
    server.set_account(maxPool=None, maxInstances=None, maxRunningPool=None)
    odd, fine = make.pool("odd"), make.pool("fine")
    server.faults([{"kind": "status", "status": 500, "path": f"/pools/{odd}/credits"}])
    for _ in range(len(rows_of(fetcher)) + 1):
        rows = rows_of(fetcher)
    assert rows[fine]["figures"]["euros"] is not None
    assert rows[odd]["figures"] is None
    assert fetcher(odd).entry.row["uuid"] == odd  # and in full it is shown, too


AT = "2026-01-01T00:00:00Z"
LABELS = ("format", "namespace", "dag_id", "run_id", "task_id", "map_index", "role", "shared")
NODE = {"instanceId": 1, "phase": "execution", "executionTimeSec": 3, "cpuUsage": 1.0, "currentMemoryMB": 2.0}
PLAIN: dict[str, Any] = {
    "uuid": "u",
    "poolUuid": "u",
    "name": "name",
    "shortname": "short",
    "state": "FullyExecuting",
    "previousState": "PartiallyExecuting",
    **dict.fromkeys(("creationDate", "endDate", "stateTransitionTime", "previousStateTransitionTime"), AT),
    "errors": [{"code": "code", "message": "message"}],
    "labels": {f"airflow.{name}": "1" for name in LABELS},
    "instanceCount": 2,
    "runningInstanceCount": 1,
    "targetRunningInstanceCount": 2,
    "queuedOrRunningTaskInstancesCount": 0,
    "elasticProperty": {"isElastic": True, "minIdleTimeSeconds": 5},
    "multiSlotsSettings": {"slotsPerNode": 2},
    "executionTime": "00:00:01",
    "status": {"executionTimeSec": 3.0, "runningInstancesInfo": {"perRunningInstanceInfo": [NODE]}},
    "completedInstances": [{"instanceId": 1, "state": "Failure", "error": {"code": "code"}}],
}
FACTS = {
    "total_consumed_energy_Wh": 1.0,
    "qarnot_carbon_footprint": 1.0,
    "saved_carbon_footprint_compute_heat": 1.0,
    "saved_carbon_footprint_percent": 1.0,
}
HALF = "\ud83d"
ODD = [None, True, -1, 1e300, float("nan"), float("inf"), "", "NaN", "²", HALF, [], [None], {}, {"a": [1]}]
ODD += ["9999-12-31T23:59:59-14:00", "99999999.00:00:00"]


def with_one_odd(what: Any) -> Iterator[Any]:
    """Copies of some JSON, each with something odd in one place."""
    for key in what if isinstance(what, dict) else range(len(what)):
        copy = json.loads(json.dumps(what))
        for inner in ODD if key not in ("uuid", "poolUuid") else ():
            yield {**copy, key: inner} if isinstance(copy, dict) else [inner]
        if isinstance(what[key], (dict, list)):
            for inner in with_one_odd(what[key]):
                yield {**copy, key: inner} if isinstance(copy, dict) else [inner]


def shown(pool: Pool, task: Task, facts: CarbonFacts) -> None:
    """Make all that the page shows, as far as bytes."""
    from fastapi.responses import JSONResponse

    now, run = datetime.now(UTC), ("1", "1")
    observed = history.updated_history(history.updated_history(None, pool, now), pool, now)
    figures = rows_module.PoolFigures(
        euros=1.0,
        carbon=facts,
        shares=rows_module.shares_of(pool, [task]),
        slot_hour=rows_module.slot_hour_of(pool, 1.0),
    )
    names = (task.labels.get(f"airflow.{name}") for name in ("dag_id", "run_id", "task_id"))
    notes = [rows_module.TaskRow("u", group_of(task.state), task.state_transition_time, *names)]
    [entry] = rows_module.build_rows(
        rows_module.PageData(
            now=now,
            connection="q",
            pools=[pool],
            tasks={"u": notes},
            histories={"u": observed},
            figures={"u": figures},
            console_url="https://console",
        )
    )
    starts: pictures.Starts = {}
    tasks = [task, Task.from_json(PLAIN)]
    for remote in (pool, *tasks):
        pictures.observe_starts(starts, remote)
    whole = details.build_detail(entry, pool, tasks, observed, starts)
    JSONResponse([entry.row, rows_module.row_of_run(entry, run)])
    JSONResponse([details.full_detail(whole), details.detail_of_run(whole, run)])
    account = pictures.AccountHistory().updated([pool], {"u": 1.0}, now)
    JSONResponse(pictures.account_history(account, [pool], now))
    JSONResponse(describe_close(pool, [task], [], {}))
    if obstacle_of(pool) is None:
        resized(pool, 2, timedelta(minutes=5))


def test_whatever_one_field_of_an_answer_holds_the_page_can_be_shown() -> None:
    for odd in with_one_odd(PLAIN):
        try:
            shown(Pool.from_json(odd), Task.from_json(odd), CarbonFacts())
        except Exception as error:
            different = {key: value for key, value in odd.items() if value != PLAIN[key]}
            pytest.fail(f"{error!r} for {different}")
    for odd in with_one_odd(FACTS):
        shown(Pool.from_json(PLAIN), Task.from_json(PLAIN), CarbonFacts.from_json(odd))
