"""The way out to the storage is that to the API."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from airflow_qarnot_pool.hooks.connection_settings import ConnectionSettings
from airflow_qarnot_pool.hooks.storage import s3_client
from tests.api.stub import Reply, Request, Stub, serve

pytest.importorskip("boto3")


@pytest.fixture
def proxy() -> Iterator[Stub]:
    """A proxy that answers in the place of both."""

    def answer(request: Request) -> Reply:
        if request.path.endswith("/info"):
            return Reply(200, {"email": "me@qarnot.invalid"})
        return Reply(200, b"<ListAllMyBucketsResult><Buckets/></ListAllMyBucketsResult>")

    with serve() as one:
        one.default = answer
        yield one


@pytest.mark.parametrize("where", ["connection", "environment", "both"])
def test_storage_and_api_are_reached_by_the_same_proxy(
    proxy: Stub, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    if where != "connection":
        url = proxy.url if where == "environment" else "http://127.0.0.1:1"
        monkeypatch.setenv("http_proxy", url)
        monkeypatch.setenv("HTTP_PROXY", url)
    settings = ConnectionSettings(
        conn_id="q",
        url="http://qarnot.invalid",
        storage_url="http://storage.invalid",
        token="t0ken",
        proxy=None if where == "environment" else proxy.url,
        timeout=5,
        retries=0,
    )
    assert s3_client(settings).list_buckets()["Buckets"] == []
    assert [one.path.split("?")[0] for one in proxy.requests] == [
        "http://qarnot.invalid/info",
        "http://storage.invalid/",
    ]
