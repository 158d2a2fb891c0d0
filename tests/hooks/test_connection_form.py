"""Every form of a connection that people write: URI, JSON and form, through ``get_uri()`` and back."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from airflow.models.connection import Connection as CoreConnection
from airflow.sdk import Connection

from airflow_qarnot_pool.exceptions import QarnotInvalidSpecError
from airflow_qarnot_pool.hooks.connection_settings import ConnectionSettings


def settings(**fields: Any) -> ConnectionSettings:
    extra = fields.pop("extra", None)
    if extra is not None and not isinstance(extra, str):
        extra = json.dumps(extra)
    values = {"conn_id": "q", "conn_type": "qarnot", "password": "secret-token", **fields}
    return ConnectionSettings.of(Connection(**values, extra=extra))


def of_uri(uri: str) -> ConnectionSettings:
    return ConnectionSettings.of(Connection.from_uri(uri, conn_id="q"))


@pytest.mark.parametrize(
    ("fields", "url"),
    [
        ({}, "https://api.qarnot.com"),
        ({"host": ""}, "https://api.qarnot.com"),
        ({"port": 443}, "https://api.qarnot.com:443"),
        ({"host": "h"}, "https://h"),
        ({"host": "h", "port": 0}, "https://h"),
        ({"host": "h", "port": 8600}, "https://h:8600"),
        ({"host": "http://h", "port": 8600}, "http://h:8600"),
        ({"host": "http://t", "port": 8600}, "http://t:8600"),
        ({"host": "http://h:8600", "port": 8600}, "http://h:8600"),
        ({"host": "http://h:8600/"}, "http://h:8600"),
        ({"host": "HTTPS://API.Qarnot.com"}, "https://api.qarnot.com"),
        ({"host": "Http://H/Some/Path//", "port": 1}, "http://h:1/Some/Path"),
        ({"host": "h:8600"}, "https://h:8600"),
        ({"host": "h", "schema": "http"}, "http://h"),
        ({"host": "h", "schema": "HTTP", "port": 80}, "http://h:80"),
        ({"host": "h", "schema": "https://"}, "https://h"),
        ({"host": "h", "schema": "http:", "port": 80}, "http://h:80"),
        ({"host": "https://h", "schema": "https"}, "https://h"),
        ({"host": "h", "schema": "api/v1"}, "https://h/api/v1"),
        ({"host": "http://h", "schema": "/api/", "port": 5}, "http://h:5/api"),
        ({"host": "h/api", "port": 5}, "https://h:5/api"),
        ({"host": "::1"}, "https://[::1]"),
        ({"host": "::1", "port": 8600}, "https://[::1]:8600"),
        ({"host": "[::1]:8600"}, "https://[::1]:8600"),
        ({"host": "http://[2001:DB8::1]/api", "port": 8600}, "http://[2001:db8::1]:8600/api"),
        ({"host": " https://h "}, "https://h"),
        ({"host": "http://127.0.0.1:8600"}, "http://127.0.0.1:8600"),
    ],
)
def test_host_port_and_schema_make_one_url(fields: dict[str, Any], url: str) -> None:
    assert settings(**fields).url == url


@pytest.mark.parametrize(
    ("uri", "url"),
    [
        ("qarnot://:t@", "https://api.qarnot.com"),
        ("qarnot://:t@api.qarnot.com", "https://api.qarnot.com"),
        ("qarnot://:t@h:8600/http", "http://h:8600"),
        ("qarnot://:t@h:8600/api", "https://h:8600/api"),
        ("qarnot://http://:t@h:8600/api", "http://h:8600/api"),
        ("qarnot://HTTPS://:t@H:8600", "https://h:8600"),
        ("qarnot://:t@http%3A%2F%2Fh%3A8600", "http://h:8600"),
        ("qarnot://:t@http%3A%2F%2Fh%2Fapi:8600", "http://h:8600/api"),
        ("qarnot://:t@[::1]:8600", "https://[::1]:8600"),
        ("qarnot://http://:t@[::1]:8600/api/", "http://[::1]:8600/api"),
        ("qarnot://:t@h/?verify=false&retries=2&timeout=5&namespace=n", "https://h"),
    ],
)
def test_a_uri_makes_the_same_url(uri: str, url: str) -> None:
    assert of_uri(uri).url == url


def test_the_values_of_a_uri_are_text_and_mean_the_same() -> None:
    made = of_uri("qarnot://:t@h/?verify=False&retries=2&timeout=2.5&namespace=2026")
    assert (made.verify, made.retries, made.timeout, made.namespace) == (False, 2, 2.5, "2026")


HOSTS = [
    None,
    "h",
    "h:1",
    "http://h",
    "HTTP://Host/Path/",
    "https://h:2/a/b",
    "::1",
    "[::1]:2",
    "http://[::1]/a",
    "ftp://h",
    "a b",
    "http://",
    "h:x",
    "[h]",
]
EXTRAS = [
    None,
    {"namespace": "n"},
    {"retries": "2", "verify": "false"},
    {"retries": 2, "verify": False, "timeout": 1.5},
    {"proxy": "http://u:P%40w@proxy:3128", "storage_url": "https://s:9000/x", "console_url": "http://c/#/"},
]
FORMS = list(itertools.product(HOSTS, [None, 1, 8600], [None, "http", "HTTPS", "a/b", "Päth"], EXTRAS))


def test_every_form_comes_back_from_its_uri_or_is_refused_by_name() -> None:
    accepted, refused = 0, set()
    for host, port, schema, extra in FORMS:
        text = json.dumps(extra) if extra else None
        fields = {"host": host, "port": port, "schema": schema, "extra": text, "password": "p/@:?#%"}
        written = Connection(conn_id="q", conn_type="qarnot", **fields)
        core = CoreConnection(conn_id="q", conn_type="qarnot", **fields)
        try:
            made = ConnectionSettings.of(written)
        except QarnotInvalidSpecError as error:
            refused.add(error.field)
            continue
        accepted += 1
        assert ConnectionSettings.of(Connection.from_uri(written.get_uri(), conn_id="q")) == made, fields
        assert ConnectionSettings.of(CoreConnection(conn_id="q", uri=core.get_uri())) == made, fields
        assert ConnectionSettings.of(Connection.from_json(written.as_json(), conn_id="q")) == made, fields
    assert accepted > len(FORMS) / 3
    assert refused == {"host", "port", "schema"}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"host": "ftp://x"}, "host"),
        ({"host": "javascript:alert(1)"}, "host"),
        ({"host": "http://"}, "host"),
        ({"host": "https:///path"}, "host"),
        ({"host": "http://h h"}, "host"),
        ({"host": "http://h?x=1"}, "host"),
        ({"host": "http://h#x"}, "host"),
        ({"host": "http://h\\x"}, "host"),
        ({"host": "http://h:port"}, "host"),
        ({"host": "http://h:99999"}, "host"),
        ({"host": "http://[::1"}, "host"),
        ({"host": "http://[::g]"}, "host"),
        ({"host": "http://1:2:3"}, "host"),
        ({"host": "http:/h"}, "host"),
        ({"host": "https:/h/api"}, "host"),
        ({"host": "h:1_0"}, "host"),
        ({"host": "h:８６００"}, "host"),
        ({"host": "h", "port": 99999}, "port"),
        ({"host": "h", "port": -1}, "port"),
        ({"host": "h:1", "port": 2}, "port"),
        ({"host": "http://h", "schema": "https"}, "schema"),
        ({"host": "http://h/a", "schema": "b"}, "schema"),
        ({"host": "http://h", "schema": "a b"}, "schema"),
        ({"host": "h", "schema": "http://other"}, "schema"),
        ({"host": "h", "schema": "ftp://"}, "schema"),
        ({"password": " \n"}, "password"),
        ({"extra": "[1]"}, "extra"),
        ({"extra": '"text"'}, "extra"),
        ({"extra": "3"}, "extra"),
        ({"extra": "namespace=x"}, "extra"),
        ({"extra": "[" * 100_000}, "extra"),
        ({"extra": {"namespce": "x"}}, "extra"),
        ({"extra": {"extra__qarnot__namespace": "x"}}, "extra"),
        ({"extra": {"retries": "inf"}}, "retries"),
        ({"extra": {"retries": float("inf")}}, "retries"),
        ({"extra": {"retries": 1.5}}, "retries"),
        ({"extra": {"retries": True}}, "retries"),
        ({"extra": {"retries": [1]}}, "retries"),
        ({"extra": {"timeout": "inf"}}, "timeout"),
        ({"extra": {"timeout": "nan"}}, "timeout"),
        ({"extra": {"timeout": 1e30}}, "timeout"),
        ({"extra": {"timeout": True}}, "timeout"),
        ({"extra": {"timeout": {}}}, "timeout"),
        ({"extra": {"verify": "maybe"}}, "verify"),
        ({"extra": {"verify": 2}}, "verify"),
        ({"extra": {"ca_bundle": True}}, "ca_bundle"),
        ({"extra": {"namespace": ["x"]}}, "namespace"),
        ({"extra": {"namespace": True}}, "namespace"),
        ({"extra": {"reference_datacenter": {"x": 1}}}, "reference_datacenter"),
        ({"extra": {"reference_datacenter": " "}}, "reference_datacenter"),
        ({"extra": {"poll_interval": 0}}, "poll_interval"),
        ({"extra": {"poll_interval": "often"}}, "poll_interval"),
        ({"extra": {"storage_url": "ftp://s"}}, "storage_url"),
        ({"extra": {"storage_url": "https://me:pw@s"}}, "storage_url"),
        ({"extra": {"storage_url": 1.5}}, "storage_url"),
        ({"extra": {"proxy": "gopher://p"}}, "proxy"),
        ({"extra": {"proxy": "http://p:port"}}, "proxy"),
        ({"extra": {"console_url": "javascript:alert(1)"}}, "console_url"),
        ({"extra": {"console_url": "JavaScript://x/%0aalert(1)"}}, "console_url"),
        ({"extra": {"console_url": "data:text/html,x"}}, "console_url"),
        ({"extra": {"console_url": 'https://x/"onclick="y'}}, "console_url"),
        ({"extra": {"console_url": "https://me:pw@console"}}, "console_url"),
    ],
)
def test_an_invalid_value_is_refused_by_the_name_of_its_field(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(QarnotInvalidSpecError, match=f"'q', field '{field}'") as caught:
        settings(**fields)
    assert caught.value.field == field


def test_no_refusal_shows_a_login() -> None:
    for fields in (
        {"host": "ftp://me:hidden@h"},
        {"host": "http://me:hidden@h h"},
        {"extra": {"proxy": "x://me:hidden@p"}},
        {"extra": {"storage_url": "https://me:hid@den@s"}},
    ):
        with pytest.raises(QarnotInvalidSpecError) as caught:
            settings(**fields)
        assert "hid" not in str(caught.value)


def test_a_token_in_the_place_of_the_login_is_told_where_it_belongs() -> None:
    with pytest.raises(QarnotInvalidSpecError, match=r"qarnot://:TOKEN@host") as caught:
        of_uri("qarnot://a-token@api.qarnot.com")
    assert "a-token" not in str(caught.value)


@pytest.mark.parametrize(("option", "value"), [("console_url", "javascript:alert(1)"), ("namespace", "a b")])
def test_an_option_of_the_configuration_is_refused_as_such(
    monkeypatch: pytest.MonkeyPatch, option: str, value: str
) -> None:
    monkeypatch.setenv(f"AIRFLOW__QARNOT__{option.upper()}", value)
    with pytest.raises(QarnotInvalidSpecError, match=rf"^\[qarnot\] {option} in the configuration"):
        settings()


def test_a_ca_bundle_that_is_not_there_is_named_before_any_request(tmp_path: Path) -> None:
    made = settings(extra={"ca_bundle": str(tmp_path / "none.pem")})
    with pytest.raises(QarnotInvalidSpecError, match=r"'ca_bundle': there is no .*none\.pem"):
        made.client()
    (tmp_path / "none.pem").touch()
    made.client().close()


def test_the_token_is_stripped_for_the_storage_as_for_the_api() -> None:
    assert settings(password=" secret-token\n").token == "secret-token"


@pytest.mark.parametrize(
    ("proxy", "made"),
    [
        ("proxy:3128", "http://proxy:3128"),
        ("HTTP://me:PassWord@Proxy:3128/", "http://me:PassWord@proxy:3128"),
        ("socks5h://[::1]:1080", "socks5h://[::1]:1080"),
    ],
)
def test_a_proxy_may_have_a_login_and_no_scheme(proxy: str, made: str) -> None:
    assert settings(extra={"proxy": proxy}).proxy == made
