"""Sets of readings: other services that Qarnot could be, each of which gives several answers at once.

docs/assumptions.md claims for each question that the provider is right under every answer, and answers may be right one
by one and wrong together. So the core suites run under each set: ``make readings``, or ``READINGS=strict`` in the
environment of any command that runs tests or chaos. ``random-7`` is a set that the seed 7 chooses.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_qarnot_pool.local.backend.readings import (
    DEFAULT_READINGS,
    NOT_SIMULATED,
    Readings,
    search_limits,
    token_limit,
)
from airflow_qarnot_pool.local.local_qarnot import LIKE_VARIABLE

if TYPE_CHECKING:
    from airflow_qarnot_pool.local import LocalQarnot

VARIABLE = "READINGS"
"""Names the set under which tests and chaos run."""
SKIPPED = "a default reading"
"""Why a test is left out under a set. Without a set none is."""

#: Every answer that the local Qarnot can simulate besides its defaults is in one of the sets.
SETS: Mapping[str, Mapping[str, str]] = {
    # Refuses whatever a service may refuse.
    "strict": {
        "task-on-closed-pool": "403",
        "pool-name-taken": "403",
        "shortname-in-path": "no",
        "shortname-length": "63",
        "unknown-references": "404",
        "unit-of-limits": "bytes",
        "max-instances": "fewer than 2048",
        "instances-in-search": "refused",
        "results-of-failed": "no",
        "result-patterns": "whole paths, or another dialect",
        "empty-prefix": "the task fails",
        "in-filter": "values",
        "carbon-keys": "as OpenAPI",
        "abort-again": "403",
        "put-instance-count": "refused",
        "resize-bounds": "not resizePeriod 1",
        "count-with-elastic": "refused",
        "resync-without-nodes": "400",
        "bulk-all-fail": "400 message",
        "job-creation": "it needs a pool",
        "clone-of-closed": "no",
        "costs-at-first": "credits 404, carbon facts 404",
        "credits-of-deleted": "not reported",
        "credits-of-tasks": "not reported",
        "search-cap": "3",
    },
    # Accepts whatever a service may accept.
    "lenient": {
        "queued-at-close": "queued ones stay",
        "pool-name-taken": "accepted",
        "name-of-closed-pool": "not enforced",
        "shortname-in-pool-uuid": "yes",
        "names-as-uuids": "yes",
        "shortname-length": "64 to 255",
        "unit-of-limits": "no limit of 511",
        "max-instances": "more than 2048",
        "result-patterns": "ignored",
        "close-again": "200",
        "put-on-closed": "changed",
        "put-instance-count": "applied",
        "elastic-and-scaling": "no",
        "bulk-all-fail": "400 list",
        "labels-of-copies": "merged",
        "credits-of-tasks": "its own",
    },
    # Shows everything later, and in small pages.
    "late": {
        "queued-at-close": "queued ones stay",
        "pool-name-taken": "409",
        "name-of-closed-pool": "free once closed",
        "in-filter": "value",
        "carbon-keys": "as the SDKs",
        "close-again": "200",
        "output-cursor": "POST repeats",
        "resync-without-nodes": "400",
        "date-header": "another clock",
        "costs-at-first": "credits 404, carbon facts 404",
        "page-tokens": "less than 20 s",
        "search-cap": "2",
        "search-lag": "up to 0.4 s",
    },
    # Keeps nothing that a service need not keep.
    "forgetful": {
        "name-of-closed-pool": "not enforced",
        "shortname-in-path": "no",
        "unknown-references": "404",
        "instances-in-search": "not returned",
        "output-kept": "lost",
        "results-of-failed": "no",
        "storage-consistency": "writes are shown at once, a copy keeps the date",
        "resync-copies": "not copied",
        "retries-replaced": "not replaced",
        "put-on-closed": "ignored",
        "put-absent-keys": "reset",
        "output-cursor": "GET moves it",
        "job-without-tasks": "the pool closes, the job goes",
        "labels-of-copies": "kept",
        "date-header": "no date",
        "credits-of-deleted": "not reported",
        "search-cap": "1",
    },
    # Counts and spells otherwise.
    "otherwise": {
        "queued-at-close": "queued ones stay",
        "task-on-closed-pool": "403",
        "pool-name-taken": "422",
        "shortname-in-path": "no",
        "shortname-length": "63",
        "unit-of-limits": "characters",
        "range-end": "not included",
        "max-instances": "fewer than 2048",
        "progress-scale": "0 to 1",
        "scheduling-spelling": "Flex",
        "in-filter": "values",
        "carbon-keys": "as the SDKs",
        "abort-again": "403",
        "capacity-unit": "nodes",
        "bulk-all-fail": "400 list",
        "date-header": "another clock",
        "execution-time": "of slots",
        "credits-of-tasks": "its own",
        "secret-variables": "without the prefix",
        "error-codes": "GHX0001E",
    },
}
#: Answers that are in no set, with the reason.
LEFT_OUT: Mapping[str, str] = {
    "other-states": "An unknown state is an error that names it, whatever the process wanted to do.",
}


def answers_of(name: str) -> dict[str, str]:
    """Return the answers of a set, by the id of the row. Other rows have the default answer.

    :raises ValueError: there is no such set.
    """
    if seed := re.fullmatch(r"random-(\d+)", name):
        return _random_answers(random.Random(seed[1]))
    if name and name not in SETS:
        raise ValueError(f"{VARIABLE} must be {', '.join(SETS)} or random-SEED, got {name!r}")
    return dict(SETS.get(name, {}))


def _random_answers(chance: random.Random) -> dict[str, str]:
    """Give each question any of its answers."""
    answers = {row.replace("_", "-"): chance.choice(known) for row, known in Readings.choices().items()}
    for row in LEFT_OUT:
        del answers[row]
    answers["search-cap"] = str(chance.randint(1, 4))
    if chance.random() < 0.5:
        # With this, the name must show an object: it is taken, or a path takes it. Otherwise nothing shows whether the
        # last request of a killed process took effect.
        answers |= {"search-lag": "up to 0.2 s", "shortname-in-path": "yes"}
    return answers


def write(name: str, folder: Path) -> Path:
    """Write a set as the answers of a probe, for ``--like``."""
    path = folder / f"readings-{name}.json"
    path.write_text(
        json.dumps({"rows": {row: {"answer": answer} for row, answer in answers_of(name).items()}})
    )
    return path


def follow(name: str, folder: Path) -> None:
    """Let each local Qarnot that starts from now on follow a set. It ends with the process."""
    os.environ[VARIABLE] = name
    if name:
        os.environ[LIKE_VARIABLE] = str(write(name, folder))


def current() -> str:
    """Return the set of this process, or "" for the default readings."""
    return os.environ.get(VARIABLE, "")


def differs(row: str) -> bool:
    """Return whether this process runs under another answer to the question of *row*."""
    answers = answers_of(current())
    if row in NOT_SIMULATED:
        return row in answers
    return answers.get(row, default := getattr(DEFAULT_READINGS, row.replace("-", "_"))) != default


def are_others(*rows: str) -> bool:
    """Return whether this process runs under another answer to any of *rows*, or under a set if there are none."""
    return any(map(differs, rows)) if rows else bool(current())


def search_lag() -> float:
    """Return the seconds by which searches may be late in this process."""
    return search_limits(answers_of(current()))[1]


@contextmanager
def answering(qarnot: LocalQarnot, **answers: str) -> Iterator[None]:
    """Give a running local Qarnot other answers for a while, by the id of the row with underscores."""
    before = qarnot.call("GET", "/_local/readings")
    qarnot.set_readings(**answers)
    try:
        yield
    finally:
        qarnot.set_readings(**{row: before[row] for row in answers})


def change(qarnot: LocalQarnot, name: str) -> None:
    """Give a running local Qarnot the readings of a set, or the default ones if *name* is empty."""
    answers = answers_of(name)
    (cap, lag), tokens = search_limits(answers), token_limit(answers)
    given = {row.replace("-", "_"): answer for row, answer in answers.items()}
    qarnot.set_readings(**dataclasses.asdict(DEFAULT_READINGS) | given)
    qarnot.cap_searches(cap)
    qarnot.lag_searches(lag)
    qarnot.expire_page_tokens(tokens)
