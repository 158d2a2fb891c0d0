"""Waits of tests count the time in which the machine was theirs."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tools.airflow_stack import AirflowStack, StackError
from tools.patience import Patience


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.patience.EVERY", 0.2)


BUSY = "import sys; print(flush=True)\nwhile True: pass"


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="only Linux tells how long a process has queued"
)
def test_processes_that_share_a_core_have_as_much_more_time() -> None:
    (core, *_) = sorted(os.sched_getaffinity(0))
    busy = [subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE) for _ in range(5)]
    try:
        for process in busy:
            os.sched_setaffinity(process.pid, {core})
            assert process.stdout is not None
            process.stdout.readline()
        patience, began = Patience(lambda: [process.pid for process in busy]), time.monotonic()
        while (patience.count()) == 0.0 or time.monotonic() - began < 2.0:
            time.sleep(0.1)
        # Each has a fifth of a core at most.
        assert 0.0 < patience.count() < 0.35 * (time.monotonic() - began)
    finally:
        for process in busy:
            process.kill()
            process.communicate()


def test_the_time_of_processes_that_sleep_counts_in_full() -> None:
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        patience, began = Patience(lambda: [sleeper.pid]), time.monotonic()
        patience._threads = {
            name: times for name, times in patience._look().items() if f"/{sleeper.pid}/" in name
        }
        patience._look = lambda: dict(patience._threads)  # type: ignore[method-assign]
        time.sleep(1.0)
        assert patience.count() >= 0.99 * 1.0
        assert patience.count() <= time.monotonic() - began
        patience.begin_again()
        assert patience.count() < 0.5
    finally:
        sleeper.kill()
        sleeper.wait()


def test_a_wait_ends_when_nothing_gets_on_and_not_before(tmp_path: Path) -> None:
    stack = AirflowStack(tmp_path / "home", tmp_path)
    looks = 0

    def look() -> bool:
        nonlocal looks
        looks += 1
        return False

    steps = iter(range(4))
    with pytest.raises(StackError, match="for the moon, in vain"):
        stack.wait_for(look, timeout=0.001, what="the moon", interval=0.05, progress=lambda: next(steps, 3))
    # The time has begun again for each of the four values, and each time there was a look.
    assert looks >= 5
    assert stack.wait_for(lambda: "here", progress=lambda: 1) == "here"


def test_a_wait_ends_when_progress_goes_in_circles(tmp_path: Path) -> None:
    """A task that defers, resumes and defers again changes its state for ever."""
    stack, circle = AirflowStack(tmp_path / "home", tmp_path), itertools.cycle(("deferred", "running"))
    laps = itertools.chain(itertools.islice(circle, 20), iter(lambda: pytest.fail("the wait goes on"), None))
    with pytest.raises(StackError, match="for the moon, in vain"):
        stack.wait_for(
            lambda: False, timeout=0.001, what="the moon", interval=0.01, progress=lambda: next(laps)
        )
