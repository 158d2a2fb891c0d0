"""Where the items of a fan-out stand, and what to submit next: pure decisions."""

from __future__ import annotations

from typing import Any

from airflow_qarnot_pool.fan_out import Board, Memory, board
from airflow_qarnot_pool.identity import Fate, Relic
from tests.unit.test_identity import LIFE

SPECS = ["a", "b", "c", "d"]


def relic(item: int | None, fate: Fate = Fate.LIVE, **fields: Any) -> Relic:
    values = {
        "uuid": f"u{item}",
        "fate": fate,
        "lineage": LIFE.lineage,
        "generation": 1,
        "fingerprint": SPECS[item] if item is not None and item < len(SPECS) else "",
        "retries": LIFE.retries,
        "created": "",
        "try_number": LIFE.try_number,
        "item": item,
    }
    return Relic(**{**values, **fields})


def waiting(now: Board) -> list[tuple[int, int]]:
    return [(one.item, one.generation) for one in now.waiting]


def test_nothing_is_submitted_yet() -> None:
    now = board(LIFE, SPECS, [])
    assert waiting(now) == [(0, 1), (1, 1), (2, 1), (3, 1)]
    assert not now.over


def test_every_item_stands_for_itself() -> None:
    now = board(
        LIFE, SPECS, [relic(0, Fate.SUCCEEDED), relic(1), relic(2, Fate.DEAD), relic(None, uuid="stray")]
    )
    assert (now.succeeded, now.running, now.failed) == ({0: "u0"}, {1: "u1"}, {2: "u2"})
    assert waiting(now) == [(3, 1)]
    assert now.end == ("stray",)


def test_what_failed_in_an_earlier_try_runs_again() -> None:
    now = board(LIFE, SPECS, [relic(0, Fate.DEAD, try_number=LIFE.try_number - 1)])
    assert waiting(now)[0] == (0, 2)
    assert not now.failed


def test_what_failed_again_in_this_try_is_failed() -> None:
    earlier = relic(0, Fate.DEAD, try_number=LIFE.try_number - 1)
    now = board(LIFE, SPECS, [earlier, relic(0, Fate.DEAD, uuid="again", generation=2)])
    assert now.failed == {0: "again"}


def test_an_earlier_life_ends_and_counts_for_nothing() -> None:
    now = board(LIFE, SPECS, [relic(0, lineage="old"), relic(1, Fate.SUCCEEDED, lineage="old")])
    assert now.end == ("u0",)
    assert waiting(now) == [(0, 1), (1, 1), (2, 1), (3, 1)]


def test_items_that_are_no_more_asked_for_end() -> None:
    assert board(LIFE, SPECS, [relic(9)]).end == ("u9",)


def test_over_when_all_have_ended() -> None:
    fates = [Fate.SUCCEEDED, Fate.DEAD, Fate.SUCCEEDED, Fate.SUCCEEDED]
    now = board(LIFE, SPECS, [relic(item, fate) for item, fate in enumerate(fates)])
    assert now.over
    assert list(now.failed) == [1]


def test_an_empty_fan_out_is_over() -> None:
    assert board(LIFE, [], []).over


def test_no_more_are_in_flight_than_the_limit() -> None:
    now = board(LIFE, SPECS, [relic(0)])
    assert [one.item for one in now.next(3)] == [1, 2]
    assert now.next(1) == ()


def test_what_was_seen_and_is_gone_is_remembered() -> None:
    memory = Memory(pending={(0, 1), (1, 2), (3, 1)})
    memory.ended((0, 1), success=True)
    memory.ended((1, 2), success=False)
    memory.ended((2, 1), success=True)  # not pending: of another spec, say
    memory = Memory.from_carry(memory.to_carry())
    assert memory == Memory(pending={(3, 1)}, succeeded={0}, failed={1})
    now = board(LIFE, SPECS, [relic(3)], memory)
    assert (now.succeeded, now.failed, now.running) == ({0: None}, {1: None}, {3: "u3"})
    assert waiting(now) == [(2, 1)]
    memory.note(board(LIFE, SPECS, [relic(3, Fate.SUCCEEDED)], memory))
    assert memory == Memory(succeeded={0, 3}, failed={1})


def test_a_memory_of_an_earlier_release_is_read() -> None:
    assert Memory.from_carry({"expected": 4, "remembered": "0-2"}) == Memory(succeeded={0, 1, 2})
