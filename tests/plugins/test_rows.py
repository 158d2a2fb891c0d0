"""What the Pools page makes of pools, Qarnot tasks and runs: tables, no server."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from airflow_qarnot_pool.api.models import CarbonFacts, Pool, Task
from airflow_qarnot_pool.costs.model import TaskUsage
from airflow_qarnot_pool.plugins import details, history, rows, texts
from airflow_qarnot_pool.plugins.actions import describe_close
from airflow_qarnot_pool.plugins.listing import RowEntry
from airflow_qarnot_pool.plugins.queries import FIGURES_PER_ROUND, figures_due, task_row

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
LABELS = {"airflow.dag_id": "frames", "airflow.run_id": "run+1", "airflow.task_id": "open"}
POLICY = {
    "policies": [
        {
            "type": "ManagedTasksQueue",
            "name": "keep-warm",
            "minTotalSlots": 0,
            "maxTotalSlots": 4,
            "minIdleSlots": 0,
            "minIdleTimeSeconds": 600,
            "scalingFactor": 1,
        }
    ]
}
FIXED = {"policies": [{"type": "Fixed", "name": "f", "slotsCount": 2}]}


def ago(**span: float) -> str:
    return (NOW - timedelta(**span)).strftime("%Y-%m-%dT%H:%M:%SZ")


def pool(state: str = "FullyExecuting", age: float = 60, **fields: Any) -> Pool:
    """A pool of two slots, an hour old, busy."""
    values = {
        "uuid": "u",
        "name": "warm",
        "state": state,
        "creationDate": ago(minutes=age),
        "stateTransitionTime": ago(minutes=age - 1),
        "previousState": "FullyDispatched",
        "previousStateTransitionTime": ago(minutes=age),
        "labels": LABELS,
        "instanceCount": 2,
        "runningInstanceCount": 2,
        "targetRunningInstanceCount": 2,
        "queuedOrRunningTaskInstancesCount": 1,
    }
    return Pool.from_json({**values, **fields})


def entry(
    found: Pool, *, run: str | None = "running", notes: Any = (), observed: Any = None, **more: Any
) -> RowEntry:
    page: dict[str, Any] = {
        "now": NOW,
        "connection": "q",
        "pools": [found],
        "tasks": {"u": notes},
        "runs": {("frames", "run+1"): rows.RunFacts(run, NOW - timedelta(minutes=3))} if run else {},
        "histories": {"u": observed} if observed else {},
        "console_url": "https://console",
    }
    [made] = rows.build_rows(rows.PageData(**{**page, **more}))
    return made


def row(*args: Any, **kwargs: Any) -> dict[str, Any]:
    return entry(*args, **kwargs).row


def kinds(*args: Any, **kwargs: Any) -> list[str]:
    return [one["kind"] for one in row(*args, **kwargs)["warnings"]]


def note(group: str, minutes: float = 30) -> rows.TaskRow:
    return rows.TaskRow("u", group, NOW - timedelta(minutes=minutes), "frames", "run+1")


IDLE = {"queuedOrRunningTaskInstancesCount": 0}


@pytest.mark.parametrize(
    ("found", "run", "notes", "expected"),
    [
        (pool(), "running", [note("running")], []),
        # idle
        (pool(**IDLE), "running", [], ["idle"]),
        (pool(**IDLE, age=4), "running", [], []),
        (pool(**IDLE), "running", [note("succeeded", 6)], ["idle"]),
        (pool(**IDLE), "running", [note("succeeded", 4)], []),
        (pool(**IDLE), "running", [note("queued")], []),
        (pool(**IDLE, runningInstanceCount=0), "running", [], []),
        (pool(**IDLE, scaling=POLICY), "running", [note("succeeded", 9)], []),
        (pool(**IDLE, scaling=POLICY), "running", [note("succeeded", 11)], ["idle"]),
        (pool("Closed", **IDLE), "success", [], []),
        # the owner
        (pool(), "failed", [note("running")], ["owner"]),
        (pool(), "success", [note("running")], ["owner"]),
        (pool(), None, [note("running")], ["owner"]),
        (pool(age=1), "failed", [note("running")], []),
        (pool("Closing"), "failed", [], []),
        (pool(labels={**LABELS, "airflow.shared": "n"}), "failed", [note("running")], []),
        # boots that do not end
        (pool("Submitted", age=16, runningInstanceCount=0), "running", [], ["boot"]),
        (pool("Submitted", age=14, runningInstanceCount=0), "running", [], []),
        (pool("Submitted", age=60, runningInstanceCount=0, scaling=POLICY), "running", [], []),
        (pool("Submitted", age=60, runningInstanceCount=0, scaling=FIXED), "running", [], ["boot"]),
        # what Qarnot says
        (pool(errors=[{"code": "X", "message": "no nodes"}]), "running", [note("running")], ["errors"]),
        (pool("Molten"), "running", [note("running")], ["state"]),
        # failures, as long as they are news
        (pool("Failure", stateTransitionTime=ago(hours=1)), "running", [], ["failed"]),
        (pool("Failure", stateTransitionTime=ago(hours=25)), "running", [], []),
        (pool(), "running", [note("failed"), note("running")], ["tasks"]),
        (pool(), "running", [note("failed", 25 * 60), note("running")], []),
        (
            pool("Closed", stateTransitionTime=ago(hours=25), errors=[{"code": "X", "message": "no nodes"}]),
            "running",
            [],
            [],
        ),
        # several: the most urgent first
        (
            pool(**IDLE, errors=[{"code": "X"}]),
            "failed",
            [note("failed")],
            ["idle", "owner", "errors", "tasks"],
        ),
    ],
)
def test_warnings(found: Pool, run: str | None, notes: Any, expected: list[str]) -> None:
    assert kinds(found, run=run, notes=notes) == expected


def test_a_lost_node_is_told_of_also_after_another_took_its_place() -> None:
    observed = None
    for second, ready in enumerate((2, 1, 2)):
        now = NOW + timedelta(seconds=second)
        observed = history.updated_history(observed, pool(runningInstanceCount=ready), now)
    [warning] = row(pool(), notes=[note("running")], observed=observed)["warnings"]
    assert (warning["kind"], warning["text"]) == ("nodes", "1 slot was lost; 2 of 2 run")
    assert [event["text"] for event in history.events_of(pool(), observed)][:2] == [
        "1 slot up; 2 of 2 run",
        "1 slot lost; 1 of 2 run",
    ]
    later = history.updated_history(observed, pool(), NOW + timedelta(minutes=11))
    assert later.lost_at == observed.lost_at  # type: ignore[union-attr]


def test_a_lost_node_is_seen_at_the_first_look() -> None:
    hurt = pool("PartiallyExecuting", previousState="FullyExecuting", runningInstanceCount=1)
    assert history.updated_history(None, hurt, NOW).lost == 1
    booting = pool("PartiallyExecuting", previousState="FullyDispatched", runningInstanceCount=1)
    assert history.updated_history(None, booting, NOW).lost == 0


def test_a_node_lost_and_replaced_between_two_looks_is_told_of() -> None:
    observed = history.updated_history(None, pool(), NOW)
    dipped = pool(
        previousState="PartiallyExecuting",
        previousStateTransitionTime=ago(seconds=3),
        stateTransitionTime=ago(seconds=2),
    )
    observed = history.updated_history(observed, dipped, NOW)
    assert observed.lost == 1
    assert history.updated_history(observed, dipped, NOW).lost == 1
    states = ["Submitted", "FullyExecuting", "PartiallyExecuting", "FullyExecuting"]
    assert [step["state"] for step in history.timeline(dipped, observed)] == states


@pytest.mark.parametrize(
    "then",
    [
        pool(runningInstanceCount=0, targetRunningInstanceCount=0),  # asked for fewer
        pool("Closing", runningInstanceCount=0),
        pool(runningInstanceCount=1, scaling=POLICY),  # follows its load
    ],
)
def test_nodes_that_were_given_back_are_not_lost(then: Pool) -> None:
    observed = history.updated_history(None, pool(scaling=POLICY if then.scaling else None), NOW)
    assert history.updated_history(observed, then, NOW).lost == 0


def test_nodes_that_leave_after_a_shrink_are_not_lost_and_others_are() -> None:
    observed, losses = None, []
    for target, ready in ((4, 4), (2, 4), (2, 3), (2, 2), (2, 1), (2, 0)):
        found = pool(runningInstanceCount=ready, targetRunningInstanceCount=target)
        observed = history.updated_history(observed, found, NOW)
        losses.append(observed.lost)
    assert losses == [0, 0, 0, 0, 1, 2]


@pytest.mark.parametrize("state", ["FullyExecuting", "Closing", "Closed"])
def test_a_pool_that_qarnot_did_not_close_is_closed_by_nobody(state: str) -> None:
    """The audit log has the entry also if Qarnot refuses the request."""
    made = row(pool(state), closings=rows.Closings({"u": ("anna", NOW)}, {}))
    assert (made["closed_by"] is None) is (state == "FullyExecuting")


@pytest.mark.parametrize(("name", "is_wanted"), [("close-when-idle-u", True), ("close-when-idle-v", False)])
def test_who_wants_a_pool_closed_when_it_is_idle(name: str, is_wanted: bool) -> None:
    """A clone has the policy of its original, which names that one."""
    scaling = {"policies": [{**POLICY["policies"][0], "name": name}]}
    made = row(pool(scaling=scaling), closings=rows.Closings({}, {"u": ("anna", NOW)}))
    assert made["closes_when_idle"] is is_wanted
    assert (made["idle_close_by"] or {}).get("user") == ("anna" if is_wanted else None)


@pytest.mark.parametrize(
    ("role", "is_warm_up"),
    [
        ("warm-up", True),
        ("warm-up of u to all", True),
        ("warm-up of", False),
        ("warm-upper", False),
        ("work", False),
        (None, False),
    ],
)
def test_a_warm_up_is_no_work(role: str | None, is_warm_up: bool) -> None:
    """Nor that of a shared pool, whose role names the pool and the condition."""
    labels = {**LABELS, **({"airflow.role": role} if role else {})}
    task = Task.from_json({"uuid": "t", "state": "FullyExecuting", "labels": labels})
    assert (task_row("u", task) is None) is is_warm_up
    assert details.TaskFacts.of(task).is_warm_up is is_warm_up
    assert TaskUsage.of(task).is_warm_up is is_warm_up
    preview = describe_close(pool(), [task], [], {})
    assert (preview["text"] == "Nothing runs on it.") is is_warm_up


def test_the_timeline_has_what_the_api_tells_and_what_was_seen() -> None:
    observed = history.ObservedHistory()
    for state in ("FullyDispatched", "PartiallyExecuting"):
        observed = history.updated_history(observed, pool(state, stateTransitionTime=ago(minutes=58)), NOW)
    now = pool(
        previousState="PartiallyExecuting",
        previousStateTransitionTime=ago(minutes=58),
        stateTransitionTime=ago(minutes=50),
    )
    steps = history.timeline(now, observed)
    states = ["Submitted", "FullyDispatched", "PartiallyExecuting", "FullyExecuting"]
    assert [step["state"] for step in steps] == states
    times = [step["at"] for step in steps]
    assert times == sorted(times)


def test_links_name_run_and_map_index() -> None:
    assert texts.run_link("a/b", "manual__2026-01-01T00:00:00+00:00") == (
        "dags/a%2Fb/runs/manual__2026-01-01T00%3A00%3A00%2B00%3A00"
    )
    assert texts.task_link("d", "r", "t.x", "3") == "dags/d/runs/r/tasks/t.x/mapped/3"
    assert texts.task_link("d", "r", "t", "-1") == "dags/d/runs/r/tasks/t"
    assert texts.task_link(None, None, None, None) is None
    # Nothing that a label says can make a link lead elsewhere.
    assert texts.run_link("javascript:alert(1)", "//evil") == "dags/javascript%3Aalert%281%29/runs/%2F%2Fevil"


def test_tasks_that_have_not_been_read_are_not_none() -> None:
    made = row(pool(**IDLE), tasks=None)
    assert made["tasks"] is None
    assert "idle" not in [one["kind"] for one in made["warnings"]]


def test_the_most_urgent_come_first_then_the_open_then_the_young() -> None:
    pools = [
        pool("Closed", age=1, uuid="closed"),
        pool(age=30, uuid="old"),
        pool("Submitted", age=2, uuid="young"),
        pool(age=90, uuid="idle", **IDLE),
        pool("Failure", age=100, uuid="failed"),
    ]
    runs = {("frames", "run+1"): rows.RunFacts("running")}
    made = rows.build_rows(rows.PageData(now=NOW, connection="q", pools=pools, runs=runs))
    assert [one.row["uuid"] for one in made] == ["failed", "idle", "young", "old", "closed"]


@pytest.mark.parametrize(
    ("found", "notes", "word", "load"),
    [
        (pool("Submitted", runningInstanceCount=0), [], "booting", (0, 1)),
        (pool(**IDLE), [], "ready", (0, 0)),
        (pool(**IDLE), [note("succeeded")], "idle", (0, 0)),
        (pool(queuedOrRunningTaskInstancesCount=5), [note("running")], "busy", (2, 3)),
        (pool(**IDLE, runningInstanceCount=0), [note("succeeded")], "empty", (0, 0)),
        (pool("Closing"), [], "closing", (1, 0)),
        (pool("Closed"), [], "closed", (0, 0)),
        (pool("Failure"), [], "failed", (0, 0)),
        (pool("Molten"), [], "unknown", (1, 0)),
    ],
)
def test_plain_words_for_states(found: Pool, notes: Any, word: str, load: tuple[int, int]) -> None:
    made = row(found, notes=notes)
    assert (made["word"], (made["busy"], made["queued"])) == (word, load)
    assert made["closable"] is (word in ("booting", "ready", "idle", "busy", "empty", "unknown"))


def test_a_row_is_the_same_while_nothing_changes_but_the_time() -> None:
    notes = [note("succeeded", 20), note("failed", 25)]
    found = pool(**IDLE, errors=[{"code": "X"}])
    figures = {"u": rows.PoolFigures(euros=1.0, slot_hour=0.36)}
    first, later = (
        entry(found, run="failed", notes=notes, figures=figures, now=NOW + timedelta(minutes=minutes))
        for minutes in (0, 30)
    )
    assert first == later
    assert {one["kind"] for one in first.row["warnings"]} == {"idle", "owner", "errors", "tasks"}
    assert first.row["idle_since"] == "2026-11-24T11:40:00+00:00"
    assert first.row["figures"]["per_hour"] == 0.72


LIMITED = {**LABELS, "airflow.max_cost": "10.0", "airflow.max_run_cost": "15"}


@pytest.mark.parametrize(
    ("euros", "other_pool", "texts"),
    [
        (None, 0.0, []),
        (7.0, 0.0, []),
        (8.0, 0.0, ["It is near its max_cost of 10.00 EUR"]),
        (10.0, 0.0, ["It has reached its max_cost of 10.00 EUR"]),
        (5.0, 8.0, ["Its DAG run is near its max_run_cost of 15.00 EUR"]),
        (
            11.0,
            8.0,
            [
                "It has reached its max_cost of 10.00 EUR",
                "Its DAG run has reached its max_run_cost of 15.00 EUR",
            ],
        ),
    ],
)
def test_limits_of_the_cost(euros: float | None, other_pool: float, texts: list[str]) -> None:
    """The limit of a run counts all pools that it has for itself."""
    pools = [pool(labels=LIMITED), pool(uuid="v"), pool(uuid="s", labels={**LABELS, "airflow.shared": "n"})]
    figures = {"u": euros, "v": other_pool, "s": 99.0}
    page = rows.PageData(
        now=NOW,
        connection="q",
        pools=pools,
        runs={("frames", "run+1"): rows.RunFacts("running")},
        figures={uuid: rows.PoolFigures(euros=cost) for uuid, cost in figures.items()},
    )
    found = next(one.row for one in rows.build_rows(page) if one.row["uuid"] == "u")
    assert [one["text"] for one in found["warnings"] if one["kind"] == "budget"] == texts


def test_a_row_names_its_runs_those_with_work_first_and_bounded() -> None:
    notes = [rows.TaskRow("u", "succeeded", NOW, "d", f"{n:02}", "work") for n in range(12)]
    notes += [
        rows.TaskRow("u", "queued", NOW, "d", "11", "more"),
        rows.TaskRow("u", "queued", NOW, None, None),
    ]
    made = row(pool(), notes=notes)
    assert (made["user_count"], len(made["users"])) == (12, rows.MAX_USERS)
    assert made["users"][0] == {"dag_id": "d", "run_id": "11", "link": "dags/d/runs/11", "unfinished": 1}
    assert made["task_ids"] == ["more", "work"]
    assert made["dag_ids"] == ["d", "frames"]


def test_the_search_knows_what_a_row_leaves_out() -> None:
    notes = [rows.TaskRow("u", "succeeded", NOW, "d", f"Run{n:02}", f"task{n:02}") for n in range(40)]
    notes += [rows.TaskRow("u", "failed", NOW, "d", "Run00", "task00", f"E{letter}") for letter in "abcdef"]
    found = entry(pool(tags=[f"Tag{n:02}" for n in range(25)], **SHARED), notes=notes)
    assert (len(found.row["task_ids"]), found.row["has_more"]) == (rows.MAX_TASK_IDS, True)
    shown = json.dumps(found.row).lower()
    for word in (f"{kind}{n:02}" for kind in ("run", "task") for n in range(40)):
        assert word in shown or word in found.left_out
    for word in ("tag24", "ea", "ef"):
        assert word in shown or word in found.left_out
    # The tab of a run finds what is its own.
    part = rows.row_of_run(found, ("d", "Run00"))
    assert part is not None
    assert (part["has_more"], found.runs["d", "Run00"]["left_out"]) == (True, "ed\nee\nef")
    assert not entry(pool(), notes=notes[:5]).row["has_more"]


def failed(error: str, run: str = "run+1") -> rows.TaskRow:
    return rows.TaskRow("u", "failed", NOW, "frames", run, "work", error)


def test_a_row_has_its_most_frequent_errors_and_a_run_those_of_its_own_tasks() -> None:
    notes = [failed(f"E1: exit {n} on node {n}") for n in range(3)] + [
        failed("E2: no space"),
        note("succeeded"),
    ]
    notes += [failed(f"E{letter}", "other") for letter in "ABCD"]
    found = entry(pool(errors=[{"code": "X"}], **SHARED), notes=notes)
    assert found.row["errors"] == [
        {"text": "E1: exit 0 on node 0", "count": 3},
        {"text": "E2: no space", "count": 1},
        {"text": "EA", "count": 1},
    ]
    own = rows.row_of_run(found, OPENER)
    assert own is not None
    assert own["errors"] == [
        {"text": "E1: exit 0 on node 0", "count": 3},
        {"text": "E2: no space", "count": 1},
    ]
    assert [one["text"] for one in own["warnings"]] == ["Qarnot reports: X", "4 Qarnot tasks failed"]
    others = rows.row_of_run(entry(pool(**SHARED), notes=[failed("E", "other"), note("running")]), OPENER)
    assert others is not None
    assert (others["warnings"], others["rank"], others["errors"]) == ([], 99, [])


def test_harmful_characters_in_names_break_nothing() -> None:
    odd = "a\x00b\u202ec\ud800\r\nd" + "e" * 400
    labels = {f"airflow.{name}": odd for name in ("dag_id", "run_id", "task_id")}
    found = pool(name=odd, shortname=odd, labels=labels, tags=[odd, "airflow-namespace:x"])
    made = row(found, notes=[rows.TaskRow("u", "running", NOW, odd, odd, odd)])
    shown = "a\ufffdb\ufffdc"
    for text in (made["name"], made["owner"]["dag_id"], made["tags"][0], made["task_ids"][0]):
        assert text.startswith(shown)
        assert len(text) == texts.MAX_NAME
        assert not set(text) & set("\x00\u202e\ud800\r\n")
    json.dumps(made).encode()
    coloured = "a\tb\r\nc\x1b[1md\x1b[0m \x1b]0;title\x07e\x1b(Bf 10%\r20%\r\r\ng\x1b"
    assert texts.clean_block(coloured) == "a\tb\ncd ef 10%\n20%\ng\ufffd"


def test_unknown_states_and_missing_fields_make_a_row_all_the_same() -> None:
    made = row(Pool.from_json({"uuid": "u"}))
    assert (made["name"], made["phase"], made["owner"]["kind"]) == ("u", "unknown", "unknown")
    full = whole_detail(entry(Pool.from_json({"uuid": "u"})), Pool.from_json({"uuid": "u"}), [{"uuid": "t"}])
    assert full["tasks"][0]["link"] is None


def detail(made: RowEntry, found: Pool, tasks: Any) -> details.PoolDetail:
    models = [each if isinstance(each, Task) else Task.from_json(each) for each in tasks]
    return details.build_detail(made, found, models, history.ObservedHistory())


def whole_detail(made: RowEntry, found: Pool, tasks: Any) -> dict[str, Any]:
    return details.full_detail(detail(made, found, tasks))


SHARED = {"labels": {**LABELS, "airflow.shared": "nightly"}}
OPENER, OTHER = ("frames", "run+1"), ("report", "run+1")


def other(group: str = "succeeded") -> rows.TaskRow:
    return rows.TaskRow("u", group, NOW, *OTHER)


@pytest.mark.parametrize(
    ("fields", "notes", "shares", "run", "whole", "part"),
    [
        # the run has all of it
        ({}, [note("running")], None, OPENER, True, None),
        ({}, [], None, OPENER, True, None),
        # it shares it
        (SHARED, [note("running")], {OPENER: 1.0}, OPENER, False, 8.0),
        (SHARED, [note("running"), other()], {OPENER: 0.25, OTHER: 0.75}, OTHER, False, 6.0),
        ({}, [note("running"), other()], {OPENER: 0.25, OTHER: 0.75}, OPENER, False, 2.0),
        # whoever opened it and runs nothing on it has no part; all of it, while nobody does
        (SHARED, [other()], {OTHER: 1.0}, OPENER, False, 0.0),
        (SHARED, [], {OPENER: 1.0}, OPENER, False, 8.0),
        # not known yet: nobody has asked, or the run has come since
        (SHARED, [other()], None, OTHER, False, None),
        (SHARED, [note("running"), other()], {OPENER: 1.0}, OTHER, False, None),
    ],
)
def test_the_part_of_a_run(
    fields: Any, notes: Any, shares: Any, run: tuple[str, str], whole: bool, part: float | None
) -> None:
    figures = rows.PoolFigures(euros=8.0, shares=shares)
    made = entry(pool(**fields), notes=notes, figures={"u": figures})
    seen = rows.row_of_run(made, run)
    assert seen is not None
    assert seen["figures"]["euros"] == 8.0
    assert (seen["mine"] is None) is whole
    if seen["mine"] is not None:
        assert (seen["mine"]["figures"] and seen["mine"]["figures"]["euros"]) == part
    assert rows.row_of_run(made, ("frames", "another")) is None
    assert (seen["users"], seen["closed_by"]) == ([], None)


EXECUTOR = {
    "labels": {
        "airflow.shared": "gpu-0123",
        "airflow.executor": "gpu",
        "airflow.namespace": "production",
        "airflow.dag_id": "",
        "airflow.run_id": "",
    },
    "scaling": POLICY,
}


@pytest.mark.parametrize(
    ("fields", "notes", "word", "expected"),
    [
        ({}, [note("running")], "busy", []),
        # It scales to zero when it is idle, which is no alarm. Its nodes stay for a while.
        (
            {**IDLE, "runningInstanceCount": 0, "targetRunningInstanceCount": 0},
            [note("succeeded")],
            "empty",
            [],
        ),
        ({**IDLE}, [note("succeeded", 9)], "idle", []),
        ({**IDLE}, [note("succeeded", 11)], "idle", ["idle"]),
        ({}, [note("running"), note("failed")], "busy", ["tasks"]),
    ],
)
def test_a_pool_of_the_executor_belongs_to_its_schedulers(
    fields: Any, notes: Any, word: str, expected: list[str]
) -> None:
    found = pool(**EXECUTOR, **fields)
    made = entry(found, run=None, notes=notes)
    seen = made.row
    assert [one["kind"] for one in seen["warnings"]] == expected
    owner = seen["owner"]
    assert (owner["kind"], owner["executor"], owner["namespace"]) == ("executor", "gpu", "production")
    assert (owner["over"], owner["link"], seen["word"], seen["dag_ids"]) == (False, None, word, ["frames"])
    of_run = rows.row_of_run(made, OPENER)
    assert of_run is not None
    assert (of_run["owner"]["kind"], of_run["mine"] is None) == ("executor", False)


def executor_task(n: int, state: str, instance: str = "", *, index: str = "-1") -> Task:
    labels = {**LABELS, "airflow.task_id": "fit", "airflow.map_index": index, "airflow.role": "executor"}
    tags = [f"airflow-executor:{instance}"]
    body = {"uuid": str(n), "state": state, "labels": labels, "tags": tags, "creationDate": ago(minutes=n)}
    return Task.from_json(body)


def test_a_close_names_the_airflow_tasks_and_that_the_executor_opens_another() -> None:
    tasks = [executor_task(n, "FullyExecuting", index=str(n)) for n in range(7)]
    preview = describe_close(pool(**EXECUTOR), tasks, [], {})
    [user] = preview["users"]
    assert (user["dag_id"], user["unfinished"]) == ("frames", 7)
    assert user["tasks"] == [f"fit [{n}]" for n in range(5)]
    assert preview["text"] == (
        "7 Airflow tasks of 1 DAG run are cancelled. Those that run fail, or are retried. Those that wait are queued "
        "again. QarnotExecutor opens another pool for its next task."
    )
    idle = describe_close(pool(**EXECUTOR), [], [], {})
    assert idle["text"] == "Nothing runs on it. QarnotExecutor opens another pool for its next task."


def test_a_task_of_the_executor_has_the_state_of_its_airflow_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which may have failed though the Qarnot task has not."""
    ids = [UUID(int=n) for n in range(3)]
    tasks = [executor_task(n, "Success", str(one)) for n, one in enumerate(ids)]
    tasks += [executor_task(8, "Success", "no id"), Task.from_json({"uuid": "9", "state": "Success"})]
    found = pool(**EXECUTOR)
    states = {ids[0]: "failed", ids[1]: "success"}
    shown = details.full_detail(
        details.build_detail(entry(found), found, tasks, history.ObservedHistory(), airflow_states=states)
    )
    assert {task["uuid"]: task["airflow_state"] for task in shown["tasks"]} == {
        "0": "failed",
        "1": "success",
        "2": None,
        "8": None,
        "9": None,
    }
    # The pictures start with the oldest of them that is not deleted.
    assert shown["pictures"]["from"] == (NOW - timedelta(minutes=2)).timestamp()
    monkeypatch.setattr(details, "MAX_INSTANCES", 2)
    assert details.newest_instances(reversed(tasks)) == ids[:2]


def job(name: str, run: tuple[str, str] | None) -> Task:
    """A Qarnot task that has failed; most are called the same."""
    labels = {"airflow.dag_id": run[0], "airflow.run_id": run[1]} if run else {}
    errors = [{"code": "E", "message": f"of {run[0] if run else 'nobody'}"}]
    return Task.from_json({"uuid": f"{name}-{run}", "name": name, "labels": labels, "errors": errors})


JOBS = [job("work", OPENER), job("work", OTHER), job("pool", OTHER), job("by hand", None)]
ALL = {"frames", "report", "nobody", "pool"}


@pytest.mark.parametrize(
    ("fields", "notes", "run", "seen"),
    [
        (SHARED, [note("failed"), other()], OPENER, {"frames", "pool"}),
        (SHARED, [note("failed"), other()], OTHER, {"report", "pool"}),
        ({}, [note("failed"), other()], OTHER, {"report", "pool"}),
        # its own pool, but another has come since its row was made
        ({}, [note("failed")], OPENER, {"frames", "nobody", "pool"}),
        # the run has come since
        (SHARED, [note("failed")], OTHER, None),
        ({}, [], OTHER, None),
    ],
)
def test_a_run_sees_no_qarnot_tasks_of_other_runs(
    fields: Any, notes: Any, run: tuple[str, str], seen: set[str] | None
) -> None:
    """Whatever they are called, and however old what is known of the pool."""
    found = pool(**fields, errors=[{"code": "E", "message": "of pool"}])
    whole = detail(entry(found, notes=notes), found, JOBS)
    assert {error["text"] for error in details.full_detail(whole)["errors"]} == {
        f"E: of {one}" for one in ALL
    }
    shown = details.detail_of_run(whole, run)
    if seen is None:
        assert shown is None
        return
    assert shown is not None
    assert {error["text"] for error in shown["errors"]} == {f"E: of {one}" for one in seen}
    assert {task["dag_id"] or "nobody" for task in shown["tasks"]} == seen - {"pool"}
    assert shown["task_count"] == len(shown["tasks"])
    if fields and run == OTHER:
        assert "frames" not in str(shown)


def test_failed_tasks_are_listed_first_then_the_unfinished_then_the_young(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(details, "MAX_TASKS", 5)
    states = ["Success", "Failure", "Submitted", "FullyExecuting", "Success", "Cancelled", "Success"]
    tasks = [
        {"uuid": str(n), "state": state, "creationDate": ago(minutes=n)} for n, state in enumerate(states)
    ]
    full = whole_detail(entry(pool()), pool(), tasks)
    assert [one["uuid"] for one in full["tasks"]] == ["1", "3", "2", "0", "4"]
    assert full["task_count"] == 7


def test_younger_tasks_of_another_run_do_not_hide_those_of_a_run() -> None:
    """The limits of a run's tab apply to its own tasks, errors and bars."""

    def failed(number: int, run: tuple[str, str], age: int) -> dict[str, Any]:
        labels = {"airflow.dag_id": run[0], "airflow.run_id": run[1], "airflow.task_id": "work"}
        times = {
            "creationDate": ago(minutes=age),
            "endDate": ago(minutes=age - 1),
            "executionTime": "00:00:30",
        }
        message = f"{run[0]} broke in {'abcdefghijklmnopqrstuvwxyz'[number % 26]}"
        error = {"code": "E", "message": message}
        return {"uuid": f"{run[0]}{number}", "state": "Failure", "labels": labels, "errors": [error], **times}

    tasks = [failed(n, OTHER, 5) for n in range(250)] + [failed(n, OPENER, 50) for n in range(3)]
    found = pool(**SHARED)
    whole = detail(entry(found, notes=[note("failed"), other()]), found, tasks)
    assert details.full_detail(whole)["task_count"] == 253
    shown = details.detail_of_run(whole, OPENER)
    assert shown is not None
    assert (len(shown["tasks"]), shown["task_count"]) == (3, 3)
    assert {error["text"] for error in shown["errors"]} == {
        f"E: frames broke in {letter}" for letter in "abc"
    }
    assert len(shown["pictures"]["gantt"]["bars"]) == 3
    assert "report" not in str(shown)


def test_errors_that_differ_in_numbers_are_one_with_the_newest_first() -> None:
    def failed(number: int, text: str) -> dict[str, Any]:
        labels = {**LABELS, "airflow.map_index": str(number), "airflow.try_number": "2"}
        times = {"creationDate": ago(minutes=30), "endDate": ago(minutes=number)}
        return {
            "uuid": f"t{number}",
            "name": "work",
            "state": "Failure",
            "labels": labels,
            "errors": [{"code": "E1", "message": text}],
            **times,
        }

    tasks = [
        failed(n, f"Exit {n} on node-00000{n} of 11111111-1111-4111-8111-11111111111{n}") for n in range(1, 9)
    ]
    tasks.append(failed(9, "No space left\x00"))
    found = pool(errors=[{"code": "X", "message": "no nodes"}])
    errors = whole_detail(entry(found), found, tasks)["errors"]
    assert [(one["of"], one["count"], len(one["tasks"])) for one in errors] == [
        ("pool", 1, 0),
        ("task", 8, details.MAX_ERROR_TASKS),
        ("task", 1, 1),
    ]
    assert errors[1]["text"].startswith("E1: Exit 1 on")
    assert (errors[1]["first"], errors[1]["last"]) == (
        "2026-11-24T11:52:00+00:00",
        "2026-11-24T11:59:00+00:00",
    )
    assert errors[1]["tasks"][0]["log"] == "dags/frames/runs/run%2B1/tasks/open/mapped/1?try_number=2"
    assert errors[2]["text"] == "E1: No space left\ufffd"


def test_figures_of_what_may_not_be_seen_are_unknown_not_zero() -> None:
    assert rows.figures_of(None) is None
    shown = rows.figures_of(rows.PoolFigures(euros=None, carbon=None))
    assert shown is not None
    assert (shown["euros"], shown["carbon_g"]) == (None, None)
    facts = CarbonFacts.from_json(
        {"qarnot_carbon_footprint": 2.0, "saved_carbon_footprint_compute_heat": 3.0}
    )
    shown = rows.figures_of(rows.PoolFigures(euros=1.0, carbon=facts))
    assert shown is not None
    assert (shown["euros"], shown["carbon_g"], shown["saved_g"]) == (1.0, 2.0, 3.0)


def test_costs_are_asked_for_a_few_pools_at_a_time_those_in_sight_first() -> None:
    pools = {str(n): pool(uuid=str(n)) for n in range(20)}
    pools["closed"] = pool("Closed", uuid="closed")
    first = figures_due(pools, {}, {}, {"7": 1000.0}, 1000.0)
    assert first[0] == "7"
    assert len(first) == FIGURES_PER_ROUND
    assert "closed" not in first
    asked = dict.fromkeys(first, 1000.0)
    assert not set(first) & set(figures_due(pools, {}, asked, {}, 1010.0))
    assert figures_due({"0": pools["0"]}, {}, {"0": 1000.0}, {}, 1031.0) == ["0"]
    settled = {"closed": rows.PoolFigures(euros=1.0, final=True)}
    assert figures_due({"closed": pools["closed"]}, settled, {}, {}, 9e9) == []


def test_the_mark_of_the_page_survives_wrong_clocks() -> None:
    from airflow_qarnot_pool.plugins.queries import next_mark

    now = datetime(2026, 1, 1, 12, tzinfo=UTC)
    before, soon, later = (now + timedelta(seconds=seconds) for seconds in (-60, 2, 3600))
    dated = (now, 0.0)
    assert next_mark(None, [], dated) is None
    assert next_mark(before, [None, now, soon], dated) == soon
    assert next_mark(before, [later], dated) == before  # one with a time in the future hides no change
    assert next_mark(later, [now], dated) is None  # set back: all are read again
    assert next_mark(before, [later], None) == later  # a server that does not date its responses
