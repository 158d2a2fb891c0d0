"""Every other reading of the local Qarnot is found by its experiment, and follows from the answers of a probe."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.local.backend.readings import (
    NOT_SIMULATED,
    Readings,
    read_answers,
    search_limits,
    token_limit,
)
from airflow_qarnot_pool.local.local_qarnot import LIKE_VARIABLE
from airflow_qarnot_pool.probe.experiments import EXPERIMENTS
from airflow_qarnot_pool.probe.runner import Verdict, run
from airflow_qarnot_pool.probe.session import Session
from tests.probe.conftest import OPTIONS, MakeSession
from tests.probe.test_experiments import ANSWERS

READINGS = Readings()
OTHERS = [(name, answer) for name, answers in Readings.choices().items() for answer in answers[1:]]


@pytest.fixture(scope="module")
def session(new_session: MakeSession) -> Session:
    """One session, whose experiments share a pool with a node."""
    return new_session()


@pytest.fixture
def readings(asked: LocalQarnot) -> Iterator[LocalQarnot]:
    yield asked
    asked.set_readings(**{name: getattr(READINGS, name) for name in Readings.choices()})


@pytest.mark.parametrize(("name", "answer"), OTHERS)
def test_another_reading_is_found(readings: LocalQarnot, session: Session, name: str, answer: str) -> None:
    readings.set_readings(**{name: answer})
    experiment = EXPERIMENTS[name.replace("_", "-")]
    (finding,) = run(session, [experiment])
    assert finding.answer == answer, finding
    holds = experiment.assumed is None or answer in experiment.assumed
    assert finding.verdict is (Verdict.AS_ASSUMED if holds else Verdict.DIFFERS)


def test_the_local_qarnot_answers_the_same_questions() -> None:
    simulated = {name.replace("_", "-") for name in Readings.choices()}
    assert simulated | NOT_SIMULATED == EXPERIMENTS.keys()
    assert simulated == {name.replace("_", "-") for name, _ in OTHERS}, "each row has another answer"
    assert not simulated & NOT_SIMULATED
    assert {row: answer for row, answer in ANSWERS.items() if row not in NOT_SIMULATED} == {
        name.replace("_", "-"): getattr(READINGS, name) for name in Readings.choices()
    }


def _document(**answers: str) -> str:
    return json.dumps(
        {"rows": {row.replace("_", "-"): {"answer": answer} for row, answer in answers.items()}}
    )


def test_answers_become_readings_as_far_as_they_are_simulated() -> None:
    answers = read_answers(_document(close_again="200", put_on_closed="a new answer", search_cap="50"))
    assert search_limits(answers) == (50, 0.0)
    readings, unknown = READINGS.with_answers(answers)
    assert readings.close_again == "200"
    assert readings.put_on_closed == READINGS.put_on_closed
    (sentence,) = unknown
    assert sentence.startswith("put-on-closed: 'a new answer' is not simulated, but 'refused' or ")


def test_a_lag_becomes_a_setting() -> None:
    assert search_limits({"search-lag": "up to 4.25 s", "search-cap": "none up to 7"}) == (None, 4.25)


@pytest.mark.parametrize(
    ("answer", "seconds"),
    [("less than 9 s", 9.0), ("at least 9 s", None), ("less than x s", None), ("", None)],
)
def test_an_end_of_page_tokens_becomes_a_setting(answer: str, seconds: float | None) -> None:
    answers = {"page-tokens": answer}
    assert token_limit(answers) == seconds
    assert answers == {}


@pytest.mark.parametrize(
    "answer",
    [{"search-lag": "up to 1.2.3 s"}, {"search-lag": f"up to {'9' * 400} s"}, {"search-cap": "9" * 5000}],
    ids=["no number", "a huge lag", "a huge cap"],
)
def test_an_odd_lag_or_cap_becomes_no_setting(answer: dict[str, str]) -> None:
    assert search_limits(answer) == (None, 0.0)


@pytest.mark.parametrize("text", ["", "[]", '{"rows": []}', '{"rows": {"close-again": 1}}'])
def test_a_file_without_answers_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        read_answers(text)


def test_a_file_of_answers_is_followed_and_options_count_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "answers.json"
    path.write_text(
        _document(
            close_again="200",
            name_of_closed_pool="not enforced",
            queued_at_close="queued ones stay",
            search_cap="3",
        )
    )
    assert f"--like={path}" in LocalQarnot(like=path)._arguments
    monkeypatch.setenv(LIKE_VARIABLE, str(path))
    with LocalQarnot(**OPTIONS, queued="cancel") as like:
        shown = like.call("GET", "/_local/readings")
        assert like.call("GET", "/_local/searches")["cap"] == 3
        with QarnotClient(like.url, like.token) as client:
            pool = client.transport.request(
                "POST", "/pools", json={"name": "p", "profile": "docker-batch"}, idempotent=False, shape=dict
            )
            client.pools.close(pool["uuid"])
            client.pools.close(pool["uuid"])
    changed = {name: answer for name, answer in shown.items() if answer != getattr(READINGS, name)}
    assert changed == {"close_again": "200", "name_of_closed_pool": "not enforced"}
