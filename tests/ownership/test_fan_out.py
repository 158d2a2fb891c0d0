"""Where the items of a fan-out stand, and what to submit next: pure decisions."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_qarnot_pool.ownership.decisions import RemoteSnapshot, Usability
from airflow_qarnot_pool.ownership.fan_out import (
    MAX_UNCLEAR_ROUNDS,
    FanOutProgress,
    FanOutState,
    NextStep,
    Round,
    fan_out_state,
    low_water_mark,
    next_step,
)
from tests.ownership.test_identity import LIFE

SPECS = ["a", "b", "c", "d"]


def snapshot(item: int | None, usability: Usability = Usability.LIVE, **fields: Any) -> RemoteSnapshot:
    values = {
        "uuid": f"u{item}",
        "usability": usability,
        "lineage": LIFE.lineage,
        "generation": 1,
        "fingerprint": SPECS[item] if item is not None and item < len(SPECS) else "",
        "retries": LIFE.retries,
        "created": "",
        "try_number": LIFE.try_number,
        "index": item,
    }
    return RemoteSnapshot(**{**values, **fields})


def waiting(now: FanOutState) -> list[tuple[int, int]]:
    return [(one.index, one.generation) for one in now.waiting]


def test_nothing_is_submitted_yet() -> None:
    now = fan_out_state(LIFE, SPECS, [])
    assert waiting(now) == [(0, 1), (1, 1), (2, 1), (3, 1)]
    assert not now.is_finished


def test_every_item_stands_for_itself() -> None:
    now = fan_out_state(
        LIFE,
        SPECS,
        [
            snapshot(0, Usability.SUCCEEDED),
            snapshot(1),
            snapshot(2, Usability.DEAD),
            snapshot(None, uuid="stray"),
        ],
    )
    assert (now.succeeded, now.running, now.failed) == ({0: "u0"}, {1: "u1"}, {2: "u2"})
    assert waiting(now) == [(3, 1)]
    assert now.end == ("stray",)


def test_an_item_that_failed_in_an_earlier_try_runs_again() -> None:
    now = fan_out_state(LIFE, SPECS, [snapshot(0, Usability.DEAD, try_number=LIFE.try_number - 1)])
    assert waiting(now)[0] == (0, 2)
    assert not now.failed


def test_an_item_that_failed_again_in_this_try_is_failed() -> None:
    earlier = snapshot(0, Usability.DEAD, try_number=LIFE.try_number - 1)
    now = fan_out_state(LIFE, SPECS, [earlier, snapshot(0, Usability.DEAD, uuid="again", generation=2)])
    assert now.failed == {0: "again"}


def test_an_earlier_life_ends_and_counts_for_nothing() -> None:
    now = fan_out_state(
        LIFE, SPECS, [snapshot(0, lineage="old"), snapshot(1, Usability.SUCCEEDED, lineage="old")]
    )
    assert now.end == ("u0",)
    assert waiting(now) == [(0, 1), (1, 1), (2, 1), (3, 1)]


def test_items_that_are_no_more_asked_for_end() -> None:
    assert fan_out_state(LIFE, SPECS, [snapshot(9)]).end == ("u9",)


def test_over_when_all_have_ended() -> None:
    usabilities = [Usability.SUCCEEDED, Usability.DEAD, Usability.SUCCEEDED, Usability.SUCCEEDED]
    now = fan_out_state(
        LIFE, SPECS, [snapshot(item, usability) for item, usability in enumerate(usabilities)]
    )
    assert now.is_finished
    assert list(now.failed) == [1]


def test_an_empty_fan_out_is_over() -> None:
    assert fan_out_state(LIFE, [], []).is_finished


def test_no_more_are_in_flight_than_the_limit() -> None:
    now = fan_out_state(LIFE, SPECS, [snapshot(0)])
    assert [one.index for one in now.next(3)] == [1, 2]
    assert now.next(1) == ()


def test_a_deleted_item_that_was_seen_is_remembered() -> None:
    memory = FanOutProgress(pending={(0, 1), (1, 2), (3, 1)})
    memory.ended((0, 1), success=True)
    memory.ended((1, 2), success=False)
    memory.ended((2, 1), success=True)  # not pending: of another spec, say
    memory = FanOutProgress.from_resume_state(memory.to_resume_state())
    assert memory == FanOutProgress(pending={(3, 1)}, succeeded={0}, failed={1})
    now = fan_out_state(LIFE, SPECS, [snapshot(3)], memory)
    assert (now.succeeded, now.failed, now.running) == ({0: None}, {1: None}, {3: "u3"})
    assert waiting(now) == [(2, 1)]
    memory.note(fan_out_state(LIFE, SPECS, [snapshot(3, Usability.SUCCEEDED)], memory))
    assert memory == FanOutProgress(succeeded={0, 3}, failed={1})


AGAIN = {"generation": 2, "uuid": "again"}
#: Qarnot tasks of an adopted item, those pending before a lookup, those pending after it, and what is submitted.
LOOKUPS: dict[str, tuple[list[RemoteSnapshot], set[tuple[int, int]], set[tuple[int, int]], list[Any]]] = {
    "an adopted one, at first": ([snapshot(0)], set(), {(0, 1)}, []),
    "one that still runs": ([snapshot(0)], {(0, 1)}, {(0, 1)}, []),
    "one that another process has cancelled": (
        [snapshot(0, Usability.DEAD, cancelled=True, try_number=0)],
        {(0, 1)},
        set(),
        [(0, 2)],
    ),
    "one that was submitted again": (
        [snapshot(0, Usability.DEAD, cancelled=True, try_number=0), snapshot(0, **AGAIN)],
        {(0, 1), (0, 2)},
        {(0, 2)},
        [],
    ),
    "one that has succeeded since the wait": ([snapshot(0, Usability.SUCCEEDED)], {(0, 1)}, set(), []),
    "one that has failed since the wait": ([snapshot(0, Usability.DEAD)], {(0, 1)}, set(), []),
    "one of another spec": ([snapshot(0, fingerprint="other")], {(0, 1)}, set(), [(0, 2)]),
}


@pytest.mark.parametrize(("snapshots", "before", "after", "submitted"), LOOKUPS.values(), ids=LOOKUPS)
def test_only_live_qarnot_tasks_are_pending_after_a_lookup(
    snapshots: list[RemoteSnapshot],
    before: set[tuple[int, int]],
    after: set[tuple[int, int]],
    submitted: list[Any],
) -> None:
    progress = FanOutProgress(pending=before)
    now = fan_out_state(LIFE, SPECS[:1], snapshots, progress)
    progress.note(now)
    assert progress.pending == after
    assert waiting(now) == submitted


@pytest.mark.parametrize(
    ("fields", "waits", "step"),
    [
        ({"accepted": 2, "pending": 2}, True, NextStep.WAIT),
        ({"accepted": 2, "pending": 2}, False, NextStep.RETURN),
        ({"accepted": 2, "pending": 2, "remaining": 1}, False, NextStep.WAIT),
        ({"accepted": 2, "pending": 2, "has_made_room": True}, True, NextStep.LOOK_UP),
        ({"pending": 2, "has_made_room": True}, True, NextStep.WAIT),
        ({"remaining": 3, "is_quota_full": True}, True, NextStep.WAIT_FOR_ROOM),
        ({"remaining": 3, "pending": 1, "is_quota_full": True}, True, NextStep.WAIT),
        ({"remaining": 3, "unclear": 1, "is_quota_full": True}, True, NextStep.LOOK_UP),
        ({"unclear": 1, "pending": 2}, False, NextStep.LOOK_UP),
        ({"unclear": MAX_UNCLEAR_ROUNDS}, True, NextStep.LOOK_UP),
        ({"unclear": MAX_UNCLEAR_ROUNDS + 1}, True, NextStep.GIVE_UP),
    ],
)
def test_the_step_after_a_round(fields: dict[str, Any], waits: bool, step: NextStep) -> None:
    values = {"accepted": 0, "remaining": 0, "pending": 0}
    assert next_step(Round(**{**values, **fields}), waits=waits) is step


@pytest.mark.parametrize(
    ("remaining", "pending", "limit", "mark"), [(0, 100, 50, 0), (9, 100, 50, 25), (9, 7, 50, 3)]
)
def test_half_of_the_tasks_end_before_more_are_submitted(
    remaining: int, pending: int, limit: int, mark: int
) -> None:
    assert low_water_mark(Round(accepted=1, remaining=remaining, pending=pending), limit) == mark
