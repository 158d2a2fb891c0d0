"""Virtual time, without waiting for any."""

from __future__ import annotations

from airflow_qarnot_pool.local.backend.clock import Clock

WEEK = 7 * 86_400


class Stopwatch:
    """Real time, in the test's hands."""

    now = 50.0

    def __call__(self) -> float:
        return self.now


def test_it_follows_real_time_at_its_speed() -> None:
    real = Stopwatch()
    clock = Clock(1000.0, real)
    real.now += 3
    assert clock.read() == 1003.0
    clock.set_speed(60)
    real.now += 2
    assert clock.read() == 1123.0
    clock.set_speed(0)
    real.now += 100
    assert clock.read() == 1123.0
    assert clock.now == 1123.0


def test_events_see_the_moment_they_were_due_and_may_make_more_of_them() -> None:
    clock = Clock(0.0, Stopwatch())
    seen: list[float] = []

    def tick() -> None:
        seen.append(clock.now)
        clock.after(90.0, tick)

    clock.at(90.0, tick)
    clock.advance(WEEK)
    assert seen == [90.0 * n for n in range(1, WEEK // 90 + 1)]
    assert clock.now == WEEK


def test_events_run_in_the_order_of_their_times_then_of_their_making() -> None:
    clock = Clock(0.0, Stopwatch())
    seen: list[str] = []
    for when, name in ((5, "c"), (3, "a"), (3, "b"), (9, "late")):
        clock.at(when, lambda name=name: seen.append(name))  # type: ignore[misc]
    clock.advance(5)
    assert seen == ["a", "b", "c"]


def test_a_cancelled_event_does_not_happen() -> None:
    clock = Clock(0.0, Stopwatch())
    seen: list[str] = []
    doomed = clock.at(2, lambda: seen.append("doomed"))
    clock.at(1, doomed.cancel)
    clock.advance(5)
    assert seen == []


def test_an_event_in_the_past_happens_now() -> None:
    clock = Clock(100.0, Stopwatch())
    seen: list[float] = []
    clock.at(1.0, lambda: seen.append(clock.now))
    clock.catch_up()
    assert seen == [100.0]


def test_the_next_alarm_in_real_seconds() -> None:
    clock = Clock(0.0, Stopwatch())
    assert clock.real_delay() is None
    first = clock.at(60, lambda: None)
    clock.at(120, lambda: None)
    assert clock.real_delay() == 60
    clock.set_speed(10)
    assert clock.real_delay() == 6
    first.cancel()
    assert clock.real_delay() == 12
    clock.set_speed(0)
    assert clock.real_delay() is None
