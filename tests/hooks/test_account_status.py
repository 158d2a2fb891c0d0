"""The Test button of the connection form: one sentence that says what is wrong, or who one is and what is left."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.errors import QarnotError
from airflow_qarnot_pool.api.models import Account
from airflow_qarnot_pool.hooks.account_status import account_status
from airflow_qarnot_pool.hooks.connection_settings import ConnectionSettings, _warn_once
from airflow_qarnot_pool.hooks.qarnot import QarnotHook
from airflow_qarnot_pool.local import LocalQarnot

TOKEN = "a-token-that-nobody-may-see"


def pressed(monkeypatch: pytest.MonkeyPatch, host: str, token: str = TOKEN, **extra: Any) -> tuple[bool, str]:
    """What the button says of a connection."""
    connection = {"conn_type": "qarnot", "host": host, "password": token, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_QARNOT_DEFAULT", json.dumps(connection))
    worked, sentence = QarnotHook().test_connection()
    assert token not in sentence
    return worked, sentence


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"<html>Welcome to nginx</html>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None: ...


@contextmanager
def website(context: ssl.SSLContext | None = None) -> Iterator[int]:
    """A web server that is no Qarnot; gives its port."""
    server = HTTPServer(("127.0.0.1", 0), _Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def own_certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key and certificate for 127.0.0.1, signed by itself."""
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "own.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path


def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def test_it_says_who_one_is_and_what_is_left(qarnot: LocalQarnot, monkeypatch: pytest.MonkeyPatch) -> None:
    worked, sentence = pressed(monkeypatch, qarnot.url, qarnot.token)
    assert worked
    assert sentence.startswith(f"Connected as {qarnot.email}. ")
    for part in ("of 1000 pools used", "of 100000 Qarnot tasks used", "EUR of credits left"):
        assert part in sentence


def test_a_wrong_token(qarnot: LocalQarnot, monkeypatch: pytest.MonkeyPatch) -> None:
    worked, sentence = pressed(monkeypatch, qarnot.url)
    assert not worked
    assert "did not accept the API token" in sentence
    assert "password field" in sentence


def test_a_port_where_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        worked, sentence = pressed(monkeypatch, f"http://127.0.0.1:{taken.getsockname()[1]}")
    assert not worked
    assert "cannot be reached: connection refused" in sentence


def test_a_certificate_nobody_trusts(own_certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with website(tls(own_certificate)) as port:
        worked, sentence = pressed(monkeypatch, f"https://127.0.0.1:{port}")
        assert not worked
        assert "TLS certificate cannot be verified" in sentence
        # Named as the CA bundle, or not checked, it is no hindrance: then it is only no Qarnot.
        for extra in ({"ca_bundle": str(own_certificate)}, {"verify": False}):
            worked, sentence = pressed(monkeypatch, f"https://127.0.0.1:{port}", **extra)
            assert not worked
            assert "TLS" not in sentence
            assert "cannot be parsed" in sentence


def test_https_where_the_server_speaks_http(monkeypatch: pytest.MonkeyPatch) -> None:
    with website() as port:
        worked, sentence = pressed(monkeypatch, f"https://127.0.0.1:{port}")
    assert not worked
    assert "TLS" in sentence
    assert "http://" in sentence


def test_a_web_server_that_is_no_qarnot(monkeypatch: pytest.MonkeyPatch) -> None:
    with website() as port:
        worked, sentence = pressed(monkeypatch, f"http://127.0.0.1:{port}")
    assert not worked
    assert "cannot be parsed" in sentence
    assert "host is the Qarnot API" in sentence


def test_a_name_that_does_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    worked, sentence = pressed(monkeypatch, "http://qarnot.invalid")
    assert not worked
    assert "cannot be reached" in sentence


@pytest.mark.parametrize(
    ("host", "extra", "field"),
    [
        ("ftp://x", {}, "host"),
        ("http://127.0.0.1:1", {"timeout": "soon"}, "timeout"),
        ("http://127.0.0.1:1", {"namespace": "a b"}, "namespace"),
    ],
)
def test_a_field_that_is_wrong(
    monkeypatch: pytest.MonkeyPatch, host: str, extra: dict[str, Any], field: str
) -> None:
    worked, sentence = pressed(monkeypatch, host, **extra)
    assert not worked
    assert f"field {field!r}" in sentence


ACCOUNT = {"email": "me@example.org", "maxPool": 50, "poolCount": 3, "maxTask": 100, "taskCount": 7}


@pytest.mark.parametrize(
    ("account", "credits", "usable", "parts"),
    [
        ({}, 12.345, True, ["me@example.org", "3 of 50 pools", "7 of 100 Qarnot tasks", "12.35 EUR"]),
        ({}, None, True, ["3 of 50 pools"]),
        ({"poolCount": 50}, 1.0, False, ["quota is used up", "50 of 50 pools", "delete some"]),
        ({"maxInstances": 4, "runningInstanceCount": 4}, 1.0, False, ["4 of 4 running instances"]),
        ({"maxInstances": 0, "runningInstanceCount": 0}, 1.0, True, ["1.00 EUR"]),
        ({}, 0.0, False, ["no credits are left", "Add credits"]),
        ({}, -2.0, False, ["-2.00 EUR"]),
        ({"email": None}, 1.0, True, ["an account without e-mail"]),
    ],
)
def test_the_report_on_an_account(
    account: dict[str, Any], credits: float | None, usable: bool, parts: list[str]
) -> None:
    said_usable, sentence = account_status(Account.from_json({**ACCOUNT, **account}), credits)
    assert said_usable is usable
    for part in parts:
        assert part in sentence


# --- what is not safe about a connection


def test_the_button_says_that_plain_http_and_a_server_that_is_not_verified_are_no_good(
    qarnot: LocalQarnot, monkeypatch: pytest.MonkeyPatch
) -> None:
    worked, sentence = pressed(monkeypatch, qarnot.url, qarnot.token, verify=False)
    assert worked
    assert "Warning: The API's URL has plain http, so the API token is sent unencrypted." in sentence
    assert "Warning: The server's TLS certificate is not verified (verify is false)." in sentence


@pytest.mark.parametrize(
    ("url", "verify", "words"),
    [
        ("https://h", True, []),
        ("https://h", "/a/bundle.pem", []),
        ("http://h", True, ["plain http"]),
        ("https://h", False, ["not verified"]),
    ],
)
def test_only_what_is_unsafe_is_said(url: str, verify: bool | str, words: list[str]) -> None:
    risks = ConnectionSettings(conn_id="q", url=url, token=TOKEN, verify=verify).risks
    assert len(risks) == len(words)
    for risk, word in zip(risks, words, strict=True):
        assert word in risk


def test_the_log_says_once_for_each_connection_what_is_unsafe(caplog: pytest.LogCaptureFixture) -> None:
    _warn_once.cache_clear()
    for conn_id in ("one", "two"):
        for _ in range(3):
            ConnectionSettings(conn_id=conn_id, url="http://h", token=TOKEN, verify=False).client()
    assert [(message[12:15], "http" in message) for message in caplog.messages] == [
        ("one", True),
        ("one", False),
        ("two", True),
        ("two", False),
    ]


def test_a_login_in_the_url_is_shown_nowhere(monkeypatch: pytest.MonkeyPatch, qarnot: LocalQarnot) -> None:
    login = "somebody:Hidden%40Word"
    host = qarnot.url.replace("://", f"://{login}@")
    connection = {"conn_type": "qarnot", "host": host, "password": qarnot.token}
    monkeypatch.setenv("AIRFLOW_CONN_QARNOT_DEFAULT", json.dumps(connection))
    hook = QarnotHook()
    assert hook.get_conn().pools.list() is not None
    with pytest.raises(QarnotError) as caught:
        QarnotClient(f"https://{login}@127.0.0.1:9", TOKEN, retries=0).account.info()
    shown = [repr(hook.settings), repr(hook.client), repr(hook.client.transport), str(vars(hook.settings))]
    shown += [hook.client.url, str(caught.value), hook.test_connection()[1]]
    for text in shown:
        assert "Hidden" not in text
        assert "somebody" not in text
    assert qarnot.url in repr(hook.settings)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://me:hidden@h",
        "me:hidden@h://x",
        "https://me:hid/den@h",
        "https://me:1/hidden@h",
        "https://me:hid#den@h",
        "https://me:hidden@",
        "https://me:hidden@h:port",
    ],
)
def test_a_login_in_a_url_that_is_refused_is_not_shown(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    worked, sentence = pressed(monkeypatch, url)
    assert not worked
    assert "hid" not in sentence
    with pytest.raises(QarnotError) as caught:
        QarnotClient(url, TOKEN)
    assert "hid" not in str(caught.value)
