"""Many Qarnot tasks of one Airflow task: where each of them stands, and what to do next. Pure decisions.

The items of a fan-out share owner and lineage, so that one search finds all of them; each has its own
generations, decided as for a single Qarnot task (:func:`airflow_qarnot_pool.identity.decide`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from airflow_qarnot_pool.identity import Fate, Life, Relic, decide


@dataclass(frozen=True, kw_only=True)
class Submission:
    """An item to be submitted, and the generation it will be."""

    item: int
    generation: int


@dataclass(frozen=True, kw_only=True)
class Board:
    """Where every item of a fan-out stands. All lists are in the order of the items."""

    total: int
    #: Item to uuid; None where the Qarnot task was deleted to make room.
    succeeded: Mapping[int, str | None] = field(default_factory=dict)
    failed: Mapping[int, str] = field(default_factory=dict)
    running: Mapping[int, str] = field(default_factory=dict)
    waiting: Sequence[Submission] = ()
    #: Qarnot tasks nobody wants: of earlier lives, of other specs, doubles.
    end: Sequence[str] = ()

    @property
    def done(self) -> int:
        return len(self.succeeded) + len(self.failed)

    @property
    def over(self) -> bool:
        return self.done == self.total

    def next(self, limit: int) -> Sequence[Submission]:
        """What to submit now, so that no more than *limit* are in flight."""
        return self.waiting[: max(0, limit - len(self.running))]

    def __str__(self) -> str:
        return (
            f"{self.done} of {self.total} done ({len(self.failed)} failed), {len(self.running)} in flight, "
            f"{len(self.waiting)} not submitted"
        )


def board(
    life: Life, fingerprints: Sequence[str], relics: Iterable[Relic], remembered: Collection[int] = ()
) -> Board:
    """Sort what was found by the items it belongs to.

    An item that failed in this try of the Airflow task is failed; one that failed in an earlier try runs again.

    :param remembered: items whose success was seen before they were deleted to make room.
    """
    by_item: dict[int, list[Relic]] = {}
    stray: list[str] = []
    for relic in relics:
        if relic.item is not None and relic.item < len(fingerprints):
            by_item.setdefault(relic.item, []).append(relic)
        elif relic.fate is Fate.LIVE:
            stray.append(relic.uuid)
    succeeded: dict[int, str | None] = {}
    failed: dict[int, str] = {}
    running: dict[int, str] = {}
    waiting: list[Submission] = []
    end = stray
    for item, fingerprint in enumerate(fingerprints):
        mine = by_item.get(item, [])
        plan = decide(life, mine, fingerprint)
        end += plan.end
        if plan.use is not None:
            (succeeded if plan.use.fate is Fate.SUCCEEDED else running)[item] = plan.use.uuid
        elif lost := _failed_now(life, mine, fingerprint):
            failed[item] = lost.uuid
        elif item in remembered:
            succeeded[item] = None
        else:
            waiting.append(Submission(item=item, generation=plan.generation))
    return Board(
        total=len(fingerprints),
        succeeded=succeeded,
        failed=failed,
        running=running,
        waiting=tuple(waiting),
        end=tuple(end),
    )


def _failed_now(life: Life, relics: Iterable[Relic], fingerprint: str) -> Relic | None:
    own = [
        relic
        for relic in relics
        if relic.lineage == life.lineage
        and relic.fingerprint == fingerprint
        and relic.try_number == life.try_number
        and relic.fate in (Fate.DEAD, Fate.ENDING)
    ]
    return max(own, key=lambda relic: relic.generation, default=None)
