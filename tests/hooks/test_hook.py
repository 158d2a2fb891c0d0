"""``QarnotHook`` and its Test button, against the local Qarnot."""

from __future__ import annotations

import os

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.exceptions import QarnotInvalidSpecError, QarnotNotFoundError
from airflow_qarnot_pool.hooks.qarnot import QarnotHook
from airflow_qarnot_pool.local import LocalQarnot


def changed(monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    connection = os.environ["AIRFLOW_CONN_QARNOT_DEFAULT"]
    assert old in connection
    monkeypatch.setenv("AIRFLOW_CONN_QARNOT_DEFAULT", connection.replace(old, new))


def test_the_hook_is_a_client(qarnot: LocalQarnot) -> None:
    hook = QarnotHook()
    client = hook.get_conn()
    assert isinstance(client, QarnotClient)
    assert client is hook.client
    assert client.account.info().email == qarnot.email
    assert hook.settings.namespace == "test"


def test_a_connection_that_has_changed_is_read_again(
    qarnot: LocalQarnot, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = QarnotHook()
    client = hook.client
    hook.reconnect()
    assert hook.client is client  # nothing has changed
    changed(monkeypatch, qarnot.token, "another-token")
    hook.reconnect()
    assert hook.client is not client
    assert hook.settings.token == "another-token"


def test_a_connection_that_cannot_be_read_again_serves_as_it_was(
    qarnot: LocalQarnot, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = QarnotHook()
    client = hook.client
    monkeypatch.delenv("AIRFLOW_CONN_QARNOT_DEFAULT")
    hook.reconnect()
    assert hook.client is client
    changed_to_nothing = '{"conn_type": "qarnot"}'
    monkeypatch.setenv("AIRFLOW_CONN_QARNOT_DEFAULT", changed_to_nothing)
    hook.reconnect()
    assert hook.client is client


def test_the_test_button_says_who_one_is_and_what_is_left(qarnot: LocalQarnot) -> None:
    worked, sentence = QarnotHook().test_connection()
    assert worked
    assert qarnot.email in sentence
    assert "pools" in sentence
    assert "EUR" in sentence


def test_the_test_button_names_a_wrong_token(qarnot: LocalQarnot, monkeypatch: pytest.MonkeyPatch) -> None:
    changed(monkeypatch, qarnot.token, "not-the-token")
    worked, sentence = QarnotHook().test_connection()
    assert not worked
    assert "token" in sentence
    assert "not-the-token" not in sentence


def test_the_test_button_names_an_unreachable_host(
    qarnot: LocalQarnot, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed(monkeypatch, qarnot.url, "http://user:pass@127.0.0.1:9")
    worked, sentence = QarnotHook().test_connection()
    assert not worked
    assert "Qarnot at http://127.0.0.1:9 cannot be reached" in sentence
    assert "pass" not in sentence


def test_the_test_button_names_a_host_that_goes_down(
    qarnot: LocalQarnot, monkeypatch: pytest.MonkeyPatch
) -> None:
    qarnot.faults([{"path": "/info", "times": 9, "kind": "status", "status": 503}])
    worked, sentence = QarnotHook().test_connection()
    assert not worked
    assert f"Qarnot at {qarnot.url} is not available" in sentence


def test_a_wrong_path_in_the_host_does_not_look_like_a_missing_object(
    qarnot: LocalQarnot, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed(monkeypatch, qarnot.url, f"{qarnot.url}/wrong")
    worked, sentence = QarnotHook().test_connection()
    assert not worked
    assert f"the API is not at {qarnot.url}/wrong: then check the host field" in sentence
    with pytest.raises(QarnotNotFoundError, match="host field of the Airflow connection"):
        QarnotHook().client.pools.get("p")


def test_a_missing_object_says_nothing_of_the_host(qarnot: LocalQarnot) -> None:
    with pytest.raises(QarnotNotFoundError) as caught:
        QarnotHook().client.pools.get("p")
    assert "host" not in str(caught.value)


def test_the_test_button_names_a_field_that_is_wrong(
    qarnot: LocalQarnot, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed(monkeypatch, qarnot.url, "ftp://example")
    worked, sentence = QarnotHook().test_connection()
    assert not worked
    assert "host" in sentence


def test_a_wrong_field_is_refused_before_any_request(
    qarnot: LocalQarnot, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed(monkeypatch, qarnot.url, "ftp://example")
    with pytest.raises(QarnotInvalidSpecError, match="host"):
        QarnotHook().get_conn()
    assert qarnot.requests() == []
