"""The boots that Qarnot's record of pools and warm-ups shows, and the boot to expect."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from airflow_qarnot_pool.api.models import Pool, Task
from airflow_qarnot_pool.sizing.boots import FIRST_GUESS, MAX_BOOTS, boots_of, expected_boot

OPENED = datetime(2026, 1, 1, 2, 58, tzinfo=UTC)


def at(seconds: float) -> str:
    return (OPENED + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def pool(uuid: str = "p", **fields: Any) -> Pool:
    return Pool.from_json({"uuid": uuid, "creationDate": at(0), **fields})


def warm_up(pool: str = "p", created: float = 1, ended: float | None = 61, **fields: Any) -> Task:
    values = {
        "uuid": f"w-{pool}",
        "poolUuid": pool,
        "state": "Cancelled",
        "creationDate": at(created),
        "endDate": "0001-01-01T00:00:00Z" if ended is None else at(ended),
        "status": {"startedOnceRange": "0-1", "executionTimeSec": 8.0},
    }
    return Task.from_json({**values, **fields})


NEVER_RAN = {"status": {"startedOnceRange": "", "executionTimeSec": 0.0}}
#: By the case: warm-ups of the pool ``p``, and the seconds of the boots.
CASES: dict[str, tuple[list[Task], list[float]]] = {
    "no warm-up": ([], []),
    "aborted when the pool was ready": ([warm_up()], [61]),
    "still running": ([warm_up(ended=None, state="FullyExecuting")], []),
    "ended by itself, long after the boot": ([warm_up(ended=1861, state="Success")], []),
    "failed": ([warm_up(state="Failure")], []),
    "aborted with its pool before a node was up": ([warm_up(**NEVER_RAN)], []),
    "of a user who found nodes up": ([warm_up(created=600, ended=605)], []),
    "of a pool that is deleted": ([warm_up("gone")], []),
    "two for one pool, of which the later one found nodes up": (
        [warm_up(), warm_up(created=90, ended=91)],
        [61],
    ),
    "ended before its pool began, by another clock": ([warm_up(ended=-5)], []),
}


@pytest.mark.parametrize(("warm_ups", "seconds"), CASES.values(), ids=CASES)
def test_a_warm_up_shows_a_boot(warm_ups: list[Task], seconds: list[float]) -> None:
    assert [boot.duration.total_seconds() for boot in boots_of([pool()], warm_ups)] == seconds


def test_a_boot_costs_the_node_seconds_of_its_warm_up() -> None:
    (boot,) = boots_of([pool(multiSlotsSettings={"slotsPerNode": 4})], [warm_up()])
    assert boot.node_seconds == 2.0


def test_the_latest_boots_count() -> None:
    pools = [pool(str(n), creationDate=at(1000 * n)) for n in range(MAX_BOOTS + 5)]
    warm_ups = [warm_up(str(n), 1000 * n, 1000 * n + n + 1) for n in range(MAX_BOOTS + 5)]
    boots = boots_of(pools, warm_ups)
    assert [boot.duration.total_seconds() for boot in boots] == [*range(MAX_BOOTS + 5, 5, -1)]


#: Seconds of earlier boots, and the expected seconds.
EXPECTED: dict[str, tuple[list[float], float]] = {
    "no record": ([], FIRST_GUESS.total_seconds()),
    "one": ([50], 50),
    "the longest of nine": ([10, 20, 30, 40, 50, 60, 70, 80, 90], 90),
    "all but the longest of ten": ([100, 90, 80, 70, 60, 50, 40, 30, 20, 10], 90),
    "one of twenty is an outlier": ([*range(1, 20), 500], 18),
    "longer than the lead": ([9000], 1800),
}


@pytest.mark.parametrize(("seconds", "expected"), EXPECTED.values(), ids=EXPECTED)
def test_the_expected_boot_is_the_90th_percentile(seconds: list[float], expected: float) -> None:
    boots = [timedelta(seconds=one) for one in seconds]
    assert expected_boot(boots, timedelta(minutes=30)).total_seconds() == expected
