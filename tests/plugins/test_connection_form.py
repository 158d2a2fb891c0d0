"""The connection form as Airflow's UI is told of it: by metadata from 3.2 on, by methods of the hook on 3.1."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from airflow_qarnot_pool.hooks import connection_form

if TYPE_CHECKING:
    from starlette.testclient import TestClient


def test_the_ui_is_told_every_field_with_label_and_placeholder(
    as_role: Callable[[str | None], TestClient],
) -> None:
    answer = as_role("admin").get("/ui/connections/hook_meta")
    assert answer.status_code == 200, answer.text
    [told] = [one for one in answer.json() if one["connection_type"] == "qarnot"]
    assert told["hook_name"] == "Qarnot"
    standard = told["standard_fields"]
    assert standard["host"]["title"] == "API URL"
    assert standard["host"]["placeholder"] == connection_form.DEFAULT_API_URL
    assert standard["password"]["title"] == "API token"
    for hidden in ("login", "url_schema"):
        assert standard[hidden]["hidden"] is True
    # Airflow 3.3.2 tests no saved connection without one.
    assert standard["port"]["hidden"] is False
    extra = told["extra_fields"]
    assert set(extra) == {field.name for field in connection_form.FIELDS}
    for field in connection_form.FIELDS:
        assert extra[field.name]["schema"]["title"] == field.label
        assert extra[field.name]["description"] == field.description
        kinds = extra[field.name]["schema"]["type"]
        kinds = [kinds] if isinstance(kinds, str) else kinds
        assert field.type in kinds or (field.type == "number" and "string" in kinds)  # 3.1 knows no numbers


def test_the_api_never_shows_the_token(as_role: Callable[[str | None], TestClient]) -> None:
    client = as_role("admin")
    body = {
        "connection_id": "masked",
        "conn_type": "qarnot",
        "password": "a-token-to-mask",
        "extra": '{"namespace": "x"}',
    }
    assert client.post("/api/v2/connections", json=body).status_code == 201
    try:
        shown = client.get("/api/v2/connections/masked")
        assert "a-token-to-mask" not in shown.text
        assert shown.json()["password"] == "***"
        assert "namespace" in shown.json()["extra"]
    finally:
        client.delete("/api/v2/connections/masked")
