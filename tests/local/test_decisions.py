"""The pure decisions: states, retries, sizes, policies, money. Tables, no server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from airflow_qarnot_pool.local.backend import states
from airflow_qarnot_pool.local.backend.billing import (
    EUROS_PER_NODE_SECOND,
    AccountState,
    BillingMeter,
    carbon_facts,
)
from airflow_qarnot_pool.local.backend.scaling import (
    DemandView,
    IdleNode,
    Period,
    Policy,
    ScalingRule,
    active,
    elastic_rule,
    next_edge,
    plan,
    share,
    target,
)
from airflow_qarnot_pool.local.schemas import formats
from airflow_qarnot_pool.local.schemas.scaling import read_elastic, read_scaling

# ---- states --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "placed", "up", "settled", "state"),
    [
        (4, 0, 0, False, "Submitted"),
        (4, 1, 0, False, "PartiallyDispatched"),
        (4, 4, 0, False, "FullyDispatched"),
        (4, 4, 1, False, "PartiallyExecuting"),
        (4, 4, 4, False, "FullyExecuting"),
        (1, 1, 1, False, "FullyExecuting"),
        (0, 0, 0, False, "Submitted"),
        (0, 0, 0, True, "FullyExecuting"),
        (5, 0, 0, True, "PartiallyExecuting"),  # grows again: never back to a dispatch state
        (4, 3, 3, True, "PartiallyExecuting"),
        (2, 3, 3, True, "FullyExecuting"),
    ],
)
def test_pool_state(wanted: int, placed: int, up: int, settled: bool, state: str) -> None:
    assert states.pool_state(wanted=wanted, placed=placed, up=up, settled=settled) == state


@pytest.mark.parametrize(
    ("waiting", "placed", "running", "uploading", "executed", "state"),
    [
        (4, 0, 0, 0, False, "Submitted"),
        (3, 1, 0, 0, False, "PartiallyDispatched"),
        (0, 4, 0, 0, False, "FullyDispatched"),
        (3, 0, 1, 0, True, "PartiallyExecuting"),
        (0, 1, 3, 0, True, "PartiallyExecuting"),
        (0, 0, 4, 0, True, "FullyExecuting"),
        (2, 0, 0, 0, True, "PartiallyExecuting"),  # between two instances
        (1, 0, 0, 1, True, "PartiallyExecuting"),
        (0, 0, 0, 2, True, "UploadingResults"),
        (0, 0, 0, 0, True, None),
    ],
)
def test_task_state(
    waiting: int, placed: int, running: int, uploading: int, executed: bool, state: str | None
) -> None:
    found = states.task_state(
        waiting=waiting, placed=placed, running=running, uploading=uploading, executed=executed
    )
    assert found == state


@pytest.mark.parametrize(
    ("per_instance", "total", "attempts", "retried", "may"),
    [
        (None, None, 1, 0, False),
        (0, 0, 1, 0, False),
        (2, None, 1, 0, True),
        (2, None, 2, 1, True),
        (2, None, 3, 2, False),
        (None, 2, 3, 1, True),
        (None, 2, 1, 2, False),
        (5, 1, 1, 1, False),  # both: the stricter one
        (1, 5, 2, 1, False),
        (0, 5, 1, 0, False),
        (5, 0, 1, 0, False),
    ],
)
def test_may_retry(
    per_instance: int | None, total: int | None, attempts: int, retried: int, may: bool
) -> None:
    assert states.may_retry(per_instance=per_instance, total=total, attempts=attempts, retried=retried) is may


@pytest.mark.parametrize(
    ("cancelled", "failed", "state"),
    [(False, 0, "Success"), (False, 1, "Failure"), (True, 0, "Cancelled"), (True, 2, "Cancelled")],
)
def test_final_state(cancelled: bool, failed: int, state: str) -> None:
    assert states.final_state(cancelled=cancelled, failed=failed) == state


# ---- sizes ---------------------------------------------------------------------------------------

QUEUE = ScalingRule(min_total=0, max_total=10, idle_seconds=60, step=10)
SLOW = ScalingRule(min_total=2, max_total=10, idle_seconds=60, step=2)
ELASTIC = ScalingRule(min_total=0, max_total=5, idle_seconds=0, step=5, period=90, ticks=True)


@pytest.mark.parametrize(
    ("rule", "demand", "wanted"),
    [
        (ScalingRule(fixed=4), 0, 4),
        (ScalingRule(fixed=4), 100, 4),
        (QUEUE, 0, 0),
        (QUEUE, 3, 3),
        (QUEUE, 50, 10),
        (SLOW, 0, 2),
        (ScalingRule(max_total=10, min_idle=2, min_total=2), 0, 2),
        (ScalingRule(max_total=10, min_idle=2, min_total=2), 3, 5),
        (ScalingRule(max_total=10, min_idle=2, min_total=2), 9, 10),
    ],
)
def test_target(rule: ScalingRule, demand: int, wanted: int) -> None:
    assert target(rule, demand) == wanted


def idle(*since: float, slots: int = 1) -> list[IdleNode]:
    return [IdleNode(number, slots, when) for number, when in enumerate(since)]


@pytest.mark.parametrize(
    ("case", "rule", "view", "grow", "release", "next_decision"),
    [
        ("a fixed pool boots at once", ScalingRule(fixed=4), DemandView(100, 0, 0), 4, (), None),
        ("and is left alone", ScalingRule(fixed=4), DemandView(100, 4, 9), 0, (), None),
        ("a lost node is replaced", ScalingRule(fixed=4), DemandView(100, 3, 0), 1, (), None),
        (
            "a smaller fixed size lets idle nodes go",
            ScalingRule(fixed=1),
            DemandView(100, 3, 1, idle(99, 98)),
            0,
            (1, 0),
            None,
        ),
        ("busy ones stay", ScalingRule(fixed=0), DemandView(100, 2, 2), 0, (), None),
        ("all wanted slots in one step", QUEUE, DemandView(100, 0, 7), 7, (), None),
        ("a share per step", SLOW, DemandView(100, 2, 7), 2, (), 190),
        ("not before the period is over", SLOW, DemandView(150, 4, 7, grow_after=190), 0, (), 190),
        ("then the next share", SLOW, DemandView(190, 4, 7, grow_after=190), 2, (), 280),
        ("the last one needs no other look", SLOW, DemandView(280, 6, 7, grow_after=280), 1, (), None),
        ("the minimum is there at once", SLOW, DemandView(100, 0, 0), 2, (), None),
        (
            "new demand after a finished ramp at once",
            QUEUE,
            DemandView(101, 3, 5, grow_after=100),
            2,
            (),
            None,
        ),
        ("idle long enough", QUEUE, DemandView(160, 2, 0, idle(100, 99)), 0, (1, 0), None),
        ("idle not long enough", QUEUE, DemandView(159, 2, 0, idle(100, 100)), 0, (), 160),
        ("some are", QUEUE, DemandView(160, 3, 0, idle(100, 120, 130)), 0, (0,), 180),
        ("down to the minimum", SLOW, DemandView(500, 4, 0, idle(1, 2, 3, 4)), 0, (0, 1), None),
        ("a node with a busy slot stays", QUEUE, DemandView(500, 8, 1, [IdleNode(1, 4, 1)]), 0, (1,), None),
        ("no node whose slots are still wanted", QUEUE, DemandView(500, 4, 1, idle(1, slots=4)), 0, (), None),
        ("elastic: at the next tick only", ELASTIC, DemandView(100, 5, 0, idle(95), origin=0), 0, (), 180),
        ("elastic: on the tick", ELASTIC, DemandView(180, 2, 0, idle(50, 100), origin=0), 0, (0, 1), None),
        (
            "elastic: a share per tick",
            ScalingRule(max_total=4, step=1, period=90, ticks=True),
            DemandView(180, 3, 0, idle(10, 20, 30)),
            0,
            (0,),
            270,
        ),
        (
            "elastic: once per tick",
            ScalingRule(max_total=4, step=1, period=90, ticks=True),
            DemandView(181, 2, 0, idle(20, 30), last_tick=180),
            0,
            (),
            270,
        ),
        (
            "elastic: a node larger than the share still goes",
            ScalingRule(max_total=8, step=1, period=90, ticks=True),
            DemandView(180, 4, 0, idle(10, slots=4)),
            0,
            (0,),
            None,
        ),
    ],
)
def test_plan(
    case: str,
    rule: ScalingRule,
    view: DemandView,
    grow: int,
    release: tuple[int, ...],
    next_decision: float | None,
) -> None:
    found = plan(rule, view)
    assert (found.grow, found.release, found.next_decision) == (grow, release, next_decision), case


def test_demand_after_a_ramp_is_over_starts_a_new_one() -> None:
    ramping = plan(SLOW, DemandView(100, 2, 7))
    assert ramping.grow_after == 190
    over = plan(SLOW, DemandView(110, 4, 4, grow_after=ramping.grow_after))
    assert plan(SLOW, DemandView(120, 4, 7, grow_after=over.grow_after)).grow == 2


@pytest.mark.parametrize(
    ("total", "factor", "slots"),
    [(10, 0.2, 2), (10, 1, 10), (10, 0, 1), (4, 0.3, 2), (10, 0.1, 1), (30, 0.1, 3)],
)
def test_share(total: int, factor: float, slots: int) -> None:
    assert share(total, factor) == slots


def test_elastic_block_of_the_documentation_becomes_a_rule() -> None:
    block = read_elastic({"isElastic": True, "minTotalSlots": 0, "maxTotalSlots": 5, "resizePeriod": 90})
    assert block is not None
    assert elastic_rule(block) == ELASTIC


# ---- policies and periods ------------------------------------------------------------------------

MONDAY = datetime(2025, 1, 6, tzinfo=UTC)  # a Monday


def at(day: int, clock: str) -> float:
    """Epoch seconds of a day after MONDAY at a time of day."""
    hours, minutes = clock.split(":")
    return (MONDAY + timedelta(days=day, hours=int(hours), minutes=int(minutes))).timestamp()


def weekly(days: str, start: str, end: str) -> Period:
    def clock(text: str) -> float:
        return int(text[:2]) * 3600 + int(text[3:]) * 60

    return Period("p", tuple(int(day) for day in days), clock(start), clock(end))


@pytest.mark.parametrize(
    ("period", "moment", "matches"),
    [
        (Period("p"), at(3, "03:00"), True),
        (weekly("01234", "08:00", "18:00"), at(0, "08:00"), True),
        (weekly("01234", "08:00", "18:00"), at(0, "07:59"), False),
        (weekly("01234", "08:00", "18:00"), at(0, "18:00"), False),  # the end is excluded
        (weekly("01234", "08:00", "18:00"), at(4, "17:59"), True),
        (weekly("01234", "08:00", "18:00"), at(5, "12:00"), False),
        (weekly("0", "22:00", "02:00"), at(0, "23:00"), True),  # over midnight
        (weekly("0", "22:00", "02:00"), at(1, "01:59"), True),
        (weekly("0", "22:00", "02:00"), at(1, "02:00"), False),
        (weekly("0", "22:00", "02:00"), at(0, "01:00"), False),  # Sunday night is not its
        (weekly("6", "22:00", "02:00"), at(7, "01:00"), True),  # over the end of the week
        (weekly("6", "22:00", "02:00"), at(6, "21:59"), False),
        (weekly("0", "00:00", "00:00"), at(0, "13:00"), True),  # a whole day
        (weekly("0", "00:00", "00:00"), at(1, "00:00"), False),
        (weekly("0123456", "00:00", "00:00"), at(9, "23:59"), True),
    ],
)
def test_period_matches(period: Period, moment: float, matches: bool) -> None:
    assert period.matches(moment) is matches


@pytest.mark.parametrize(
    ("period", "moment", "edge"),
    [
        (Period("p"), at(0, "00:00"), None),
        (weekly("01234", "08:00", "18:00"), at(0, "00:00"), at(0, "08:00")),
        (weekly("01234", "08:00", "18:00"), at(0, "08:00"), at(0, "18:00")),
        (weekly("01234", "08:00", "18:00"), at(4, "18:00"), at(7, "08:00")),
        (weekly("0", "22:00", "02:00"), at(0, "22:00"), at(1, "02:00")),
        (weekly("0", "22:00", "02:00"), at(1, "02:00"), at(7, "22:00")),
        (weekly("6", "22:00", "02:00"), at(6, "23:00"), at(7, "02:00")),
    ],
)
def test_next_edge(period: Period, moment: float, edge: float | None) -> None:
    assert period.next_edge(moment) == edge


def test_first_policy_with_a_matching_period_is_active() -> None:
    office = Policy("office", ScalingRule(fixed=5), (weekly("01234", "08:00", "18:00"),), {})
    lunch = Policy("lunch", ScalingRule(fixed=1), (weekly("0123456", "12:00", "13:00"),), {})
    always = Policy("rest", ScalingRule(fixed=0), (Period("always"),), {})
    policies = [lunch, office, always]
    moments = [(0, "07:00"), (0, "09:00"), (0, "12:30"), (5, "12:30"), (5, "14:00")]
    names = [policy.name if (policy := active(policies, at(*moment))) else None for moment in moments]
    assert names == ["rest", "office", "lunch", "lunch", "rest"]
    assert active([office], at(5, "12:00")) is None
    assert next_edge(policies, at(0, "09:00")) == at(0, "12:00")
    assert next_edge([always], at(0, "09:00")) is None


def policy(**changes: Any) -> dict[str, Any]:
    base = {
        "type": "ManagedTasksQueue",
        "minTotalSlots": 0,
        "maxTotalSlots": 4,
        "minIdleSlots": 0,
        "minIdleTimeSeconds": 60,
        "scalingFactor": 1,
        "name": "queue",
        "enabledPeriods": [{"type": "Always", "name": "always"}],
    }
    return {**base, **changes}


def test_scaling_is_given_back_with_qarnots_keys_in_qarnots_order() -> None:
    week = {
        "type": "Weekly",
        "days": ["monday", "sunday"],
        "startTimeUtc": "22:00:00",
        "endTimeUtc": "02:00:00.5",
        "name": "nights",
    }
    fixed = {"type": "Fixed", "slotsCount": 3, "name": "fixed", "enabledPeriods": [week]}
    policies, problems = read_scaling({"Policies": [fixed, policy()]})
    assert problems == {}
    assert [list(p.source.items()) for p in policies] == [list(fixed.items()), list(policy().items())]


def test_days_may_be_numbers_of_dotnet_or_names_in_any_case() -> None:
    period = {
        "type": "Weekly",
        "days": [0, "MONDAY"],
        "startTimeUtc": "00:00:00",
        "endTimeUtc": "01:00:00",
        "name": "w",
    }
    policies, problems = read_scaling({"policies": [policy(enabledPeriods=[period])]})
    assert problems == {}
    assert policies[0].source["enabledPeriods"][0]["days"] == ["sunday", "monday"]


@pytest.mark.parametrize(
    "bad",
    [
        policy(type="Unknown"),
        policy(maxTotalSlots=None),
        policy(minTotalSlots=5),
        policy(minIdleSlots=5),
        policy(minTotalSlots=-1),
        policy(scalingFactor=0),
        policy(scalingFactor=1.5),
        policy(enabledPeriods=["always"]),
        policy(enabledPeriods=[{"type": "Weekly", "name": "w", "days": ["someday"]}]),
        policy(enabledPeriods=[{"type": "Weekly", "name": "w", "days": [], "startTimeUtc": "1:00:00"}]),
        policy(
            enabledPeriods=[
                {
                    "type": "Weekly",
                    "name": "w",
                    "days": ["monday"],
                    "startTimeUtc": "25:00:00",
                    "endTimeUtc": "1:00:00",
                }
            ]
        ),
        {"type": "Fixed", "name": "f", "enabledPeriods": [{"type": "Always", "name": "a"}]},
        "text",
    ],
)
def test_bad_policies_are_pointed_at(bad: Any) -> None:
    _, problems = read_scaling({"policies": [policy(name="good"), bad]})
    assert problems == {"policies[1]": ["The input was not valid."]}


def test_names_and_periods_may_be_left_out() -> None:
    policies, problems = read_scaling(
        {"policies": [policy(name=None, enabledPeriods=None), policy(name=None, enabledPeriods=[])]}
    )
    assert problems == {}
    assert [p.periods[0].always for p in policies] == [True, True]
    assert policies[0].source["enabledPeriods"] == []


def test_policy_names_are_unique() -> None:
    _, problems = read_scaling({"policies": [policy(), policy()]})
    assert list(problems) == ["policies"]


# ---- money ---------------------------------------------------------------------------------------


def test_meter_counts_node_seconds_busy_and_idle() -> None:
    meter = BillingMeter(since=1000.0)
    meter.change(1000.0, up=2)
    meter.change(1010.0, busy=1, busy_slots=1)
    meter.change(1015.0, busy_slots=1)  # a second slot of the same node
    meter.change(1020.0, busy=-1, busy_slots=-2)
    meter.change(1030.0, up=-2)
    summary = meter.summary(5000.0)
    assert summary["nodeSeconds"] == 60
    assert summary["busyNodeSeconds"] == 10
    assert summary["idleNodeSeconds"] == 50
    assert summary["busySlotSeconds"] == 15
    assert summary["creditsSpent"] == pytest.approx(60 * EUROS_PER_NODE_SECOND)


def test_new_credit_counts_from_when_it_is_set() -> None:
    account = AccountState("someone@example.org")
    account.set_credits(10.0, spent=4.0)
    assert account.credits_left(4.0) == 10.0
    assert account.credits_left(7.5) == 6.5


def test_carbon_facts_follow_node_seconds_and_speak_both_dialects() -> None:
    none, hour = carbon_facts(0, None), carbon_facts(3600, "Elsewhere")
    assert none["total_energy_it_Wh"] == 0
    assert hour["total_energy_it_Wh"] == hour["totalEnergyITWh"] == 100
    assert hour["equivalent_datacenter_name"] == hour["comparisonDataCenterName"] == "Elsewhere"


# ---- wire ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("00:00:00", 0),
        ("01:02:03", 3723),
        ("7.00:00:00", 604800),
        ("00:00:01.5000000", 1.5),
        ("-00:01:00", -60),
    ],
)
def test_spans(text: str, seconds: float) -> None:
    assert formats.parse_span(text) == seconds


@pytest.mark.parametrize("bad", ["", "1", "24:00:00", "00:60:00", "1d", "00:00"])
def test_bad_spans(bad: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        formats.parse_span(bad)


@pytest.mark.parametrize(("seconds", "text"), [(0, "00:00:00"), (3723.9, "01:02:03"), (604801, "7.00:00:01")])
def test_span_text(seconds: float, text: str) -> None:
    assert formats.span(seconds) == text


@pytest.mark.parametrize(
    ("text", "ids"), [("0-2,4-5,17", [0, 1, 2, 4, 5, 17]), ("3", [3]), (" 1 , 0 ", [0, 1]), ("2-2", [2])]
)
def test_ranges(text: str, ids: list[int]) -> None:
    assert formats.parse_ranges(text) == ids
    assert formats.parse_ranges(formats.ranges(ids)) == ids


@pytest.mark.parametrize("bad", ["", "a", "3-1", "1,,2", "0-2,2", "-1", "0-9999999"])
def test_bad_ranges(bad: str) -> None:
    with pytest.raises(ValueError):
        formats.parse_ranges(bad)


def test_range_text() -> None:
    assert formats.ranges([]) == ""
    assert formats.ranges([5, 0, 1, 2, 9, 10]) == "0-2,5,9-10"


def test_stamps() -> None:
    assert formats.stamp(None) == "0001-01-01T00:00:00Z"
    assert formats.stamp(1735689600.9) == "2025-01-01T00:00:00Z"
    for text in (
        "2025-01-01T00:00:00Z",
        "2025-01-01T00:00:00.0000000Z",
        "2025-01-01T01:00:00+01:00",
        "2025-01-01",
    ):
        assert formats.parse_stamp(text) == 1735689600
