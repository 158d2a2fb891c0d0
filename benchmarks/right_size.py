"""Whether a replay tells what another size would have taken and cost, on random DAG shapes.

Each shape runs once, and its record is replayed at other sizes. Then the same DAG runs again at each size, on the
engines of the local Qarnot and its virtual clock. ``auto`` chooses a size from the record of the first guess, and its
run is compared with the best fixed size in hindsight: the cheapest of those that were within the tolerance of the
fastest.

Records have whole seconds. Two runs of one DAG differ, too: by a second, a node that is idle goes or gets work. So each
shape runs twice at each size, first with the lags of the record, then with other ones.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from airflow_qarnot_pool.sizing import curve
from airflow_qarnot_pool.sizing.curve import TOLERANCE, PastRun, SizePoint, choose, points_of
from airflow_qarnot_pool.sizing.demand import upstreams_of
from benchmarks.report import Report, main
from benchmarks.virtual_qarnot import Lags, Outcome, Shape, Step, run

SHAPES = 50
FIRST_GUESS = 4
LARGEST = 16
#: Maximum seconds by which each lag of Airflow differs in the second run.
NOISE = 0.5


def random_shape(seed: int) -> Shape:
    """Return a DAG of a random kind: stages, chains side by side, an array in the middle, or any graph."""
    random_ = random.Random(seed)
    make = random_.choice((_stages, _branches, _array, _graph))
    return Shape(
        steps=tuple(make(random_)),
        kind=random_.choice(("fixed", "keep_warm", "keep_warm", "policy", "elastic")),
        slots_per_node=random_.choice((1, 1, 2, 4)),
        keep_warm=random_.choice((60.0, 120.0, 600.0)),
        boot=random_.uniform(15, 90),
        ready_first=random_.random() < 0.3,
        warm_up=random_.random() < 0.7,
    )


def _seconds(random_: random.Random) -> float:
    return min(900.0, max(5.0, random_.lognormvariate(4.2, 0.8)))


def _local(random_: random.Random) -> float:
    return random_.uniform(5, 60) if random_.random() < 0.2 else 0.0


def _stages(random_: random.Random) -> list[Step]:
    steps: list[Step] = []
    before: tuple[str, ...] = ()
    for stage in range(random_.randint(1, 5)):
        width = random_.choice((1, 2, 4, 8, 16, 24))
        usual = _seconds(random_)
        now = [
            Step(
                task_id=f"s{stage}_{number}",
                upstream=before,
                seconds=(usual * random_.uniform(0.6, 1.6),),
                local=_local(random_),
            )
            for number in range(width)
        ]
        steps += now
        before = tuple(step.task_id for step in now)
    return steps


def _branches(random_: random.Random) -> list[Step]:
    steps: list[Step] = []
    ends = []
    for branch in range(random_.randint(2, 8)):
        before: tuple[str, ...] = ()
        for place in range(random_.randint(1, 5)):
            task_id = f"b{branch}_{place}"
            steps.append(
                Step(task_id=task_id, upstream=before, seconds=(_seconds(random_),), local=_local(random_))
            )
            before = (task_id,)
        ends += before
    return [*steps, Step(task_id="join", upstream=tuple(ends), seconds=(_seconds(random_),))]


def _array(random_: random.Random) -> list[Step]:
    usual = _seconds(random_)
    many = tuple(usual * random_.uniform(0.5, 2) for _ in range(random_.randint(5, 80)))
    return [
        Step(task_id="split", seconds=(_seconds(random_),)),
        Step(task_id="each", upstream=("split",), seconds=many, local=_local(random_)),
        Step(task_id="merge", upstream=("each",), seconds=(_seconds(random_),)),
    ]


def _graph(random_: random.Random) -> list[Step]:
    steps: list[Step] = []
    for number in range(random_.randint(4, 30)):
        above = random_.sample(steps, k=min(len(steps), random_.randint(0, 3)))
        steps.append(
            Step(
                task_id=f"g{number}",
                upstream=tuple(step.task_id for step in above),
                seconds=tuple(_seconds(random_) for _ in range(random_.choice((1, 1, 1, 2, 6)))),
                local=_local(random_),
            )
        )
    return steps


def record_of(shape: Shape, outcome: Outcome, *, knows_dag: bool = True) -> PastRun:
    """Return the record of a run.

    :param knows_dag: whether the tasks upstream of each task are known.
    """
    followers: dict[str, list[str]] = {step.task_id: [] for step in shape.steps}
    for step in shape.steps:
        for above in step.upstream:
            followers[above].append(step.task_id)
    upstreams = upstreams_of("dag", followers) if knows_dag else None
    record = curve.record_of(outcome.pool, outcome.cost, upstreams, datetime.now(UTC))
    assert record is not None
    return record


@dataclass(frozen=True)
class Errors:
    """Differences of predictions from runs, as shares. ``dearer``: of ``auto`` from the best size in hindsight."""

    seconds: float
    node_seconds: float
    other_seconds: float
    other_node_seconds: float
    rerun_seconds: float
    rerun_node_seconds: float
    blind_seconds: float
    blind_node_seconds: float
    dearer: float
    slower: float
    guess_dearer: float
    chosen: int
    best: int


def measure_shape(seed: int) -> Errors:
    """Compare the predictions for one shape with its runs at all sizes."""
    shape = random_shape(seed)
    per_node = shape.slots_per_node
    guess = FIRST_GUESS * per_node
    first = run(shape, guess, Lags(seed, 0, 0.0))
    points = _points(record_of(shape, first), per_node)
    blind = _points(record_of(shape, first, knows_dag=False), per_node)
    runs = {size: run(shape, size, Lags(seed, size, 0.0)) for size in points}
    others = {size: run(shape, size, Lags(seed, size, NOISE)) for size in points}
    chosen = choose(list(points.values())).size
    fastest = min(each.seconds for each in runs.values())
    best = min(
        (size for size, each in runs.items() if each.seconds <= fastest * (1 + TOLERANCE)),
        key=lambda size: runs[size].euros,
    )
    return Errors(
        *_worst(points, runs),
        *_worst(points, others),
        *_worst(runs, others),
        *_worst(blind, runs),
        dearer=runs[chosen].euros / runs[best].euros - 1,
        slower=runs[chosen].seconds / fastest - 1,
        guess_dearer=first.euros / runs[best].euros - 1,
        chosen=chosen,
        best=best,
    )


def _points(record: PastRun, per_node: int) -> dict[int, SizePoint]:
    return {point.size: point for point in points_of([record], LARGEST * per_node)}


def _worst(predicted: Mapping[int, SizePoint | Outcome], runs: Mapping[int, Outcome]) -> tuple[float, float]:
    """Return the largest differences of the makespan and of the node-seconds, over all sizes."""
    return (
        max(abs(predicted[size].seconds / each.seconds - 1) for size, each in runs.items()),
        max(abs(predicted[size].node_seconds / each.node_seconds - 1) for size, each in runs.items()),
    )


def measure(report: Report) -> None:
    """Measure all shapes."""
    errors = [measure_shape(seed) for seed in range(4 if report.quick else report.waiters)]
    table = report.table(
        f"{len(errors)} random DAG shapes, recorded at {FIRST_GUESS} nodes and run again at all sizes to {LARGEST}",
        ["figure", "worst", "mean"],
    )
    for name, values, limit in (
        ("error of the makespan", [e.seconds for e in errors], 0.10),
        ("error of the node-seconds", [e.node_seconds for e in errors], 0.05),
        ("auto dearer than the best size in hindsight", [e.dearer for e in errors], 0.10),
        ("error of the makespan, other lags", [e.other_seconds for e in errors], None),
        ("error of the node-seconds, other lags", [e.other_node_seconds for e in errors], None),
        ("makespan of two runs", [e.rerun_seconds for e in errors], None),
        ("node-seconds of two runs", [e.rerun_node_seconds for e in errors], None),
        ("error of the makespan without the DAG", [e.blind_seconds for e in errors], None),
        ("error of the node-seconds without the DAG", [e.blind_node_seconds for e in errors], None),
        ("auto slower than the fastest size", [e.slower for e in errors], None),
        ("first guess dearer than the best size", [e.guess_dearer for e in errors], None),
    ):
        table.row(name, f"{max(values):.1%}", f"{sum(values) / len(values):.1%}")
        report.figure(name, max(values))
        if limit is not None:
            report.target(name, max(values), limit)


if __name__ == "__main__":
    main("right_size", __doc__, measure, waiters=SHAPES, meaning="number of shapes")
