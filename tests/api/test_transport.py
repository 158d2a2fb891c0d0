"""The transport against a server that behaves badly in every way; every claim is checked in its request log."""

from __future__ import annotations

import logging
import pickle
import ssl
import subprocess
import sys
import threading
import time
import types
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import ip_address

import certifi
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from airflow_qarnot_pool.api.errors import (
    QarnotCredentialsError,
    QarnotInvalidSpecError,
    QarnotNotFoundError,
    QarnotProtocolError,
    QarnotRefusedError,
    QarnotUnavailableError,
)
from airflow_qarnot_pool.api.transport import MAX_WAIT, Transport, backoff
from tests.api.conftest import TOKEN
from tests.api.stub import Reply, Tunnel, drip, drip_body, hang, reset, serve

GARBAGE = Reply(200, b"<html>hello</html>")
CUT = Reply(200, b'{"uuid":', {"Content-Length": "500", "Connection": "close"})
NOT_AN_OBJECT = Reply(200, ["a list"])


def get(transport: Transport, path: str = "/pools/p", **options):
    return transport.request("GET", path, idempotent=True, kind="pool", ref="p", shape=dict, **options)


def post(transport: Transport, **options):
    return transport.request("POST", "/pools", json={}, idempotent=False, kind="pool", shape=dict, **options)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_reads_are_sent_again_after_a_bad_status(stub, transport, waits, status):
    stub.will(Reply(status), Reply(status), Reply(200, {"uuid": "u"}))
    assert get(transport()) == {"uuid": "u"}
    assert stub.log == ["GET /pools/p"] * 3
    assert len(waits) == 2


@pytest.mark.parametrize(
    "failure", [reset, GARBAGE, CUT, NOT_AN_OBJECT], ids=["reset", "garbage", "cut", "odd"]
)
@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/pools/p"), ("PUT", "/pools/p"), ("POST", "/pools/search")]
)
def test_reads_and_idempotent_requests_are_sent_again_after_a_broken_answer(
    stub, transport, failure, method, path
):
    stub.will(failure, Reply(200, {"uuid": "u"}))
    assert transport().request(method, path, idempotent=True, shape=dict) == {"uuid": "u"}
    assert stub.log == [f"{method} {path}"] * 2


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 409, 301])
def test_a_refusal_is_final(stub, transport, waits, status):
    stub.default = Reply(status, {"message": "no"}, {"Location": "/elsewhere"})
    with pytest.raises(
        (QarnotRefusedError, QarnotCredentialsError, QarnotNotFoundError, Exception)
    ) as caught:
        get(transport())
    assert caught.value.status == status
    assert len(stub.log) == 1
    assert waits == []


def test_retries_come_to_an_end(stub, transport, waits):
    stub.default = Reply(503, {"message": "busy"})
    with pytest.raises(QarnotUnavailableError, match="GET /pools/p answered 503: busy") as caught:
        get(transport(retries=4))
    assert len(stub.log) == 5
    assert len(waits) == 4
    assert not caught.value.ambiguous


@pytest.mark.parametrize("status", [500, 502, 503, 504, 408])
def test_a_create_that_may_have_taken_effect_is_not_sent_again(stub, transport, status):
    stub.default = Reply(status)
    with pytest.raises(QarnotUnavailableError, match="Check before you send it again") as caught:
        post(transport())
    assert caught.value.ambiguous
    assert len(stub.log) == 1


@pytest.mark.parametrize("failure", [reset, GARBAGE, CUT], ids=["reset", "garbage", "cut"])
def test_nor_is_one_whose_answer_was_lost(stub, transport, failure):
    stub.will(failure)
    with pytest.raises(QarnotUnavailableError) as caught:
        post(transport())
    assert caught.value.ambiguous
    assert len(stub.log) == 1


def test_a_create_that_was_turned_away_is_sent_again(stub, transport):
    stub.will(Reply(429), Reply(429), Reply(200, {"uuid": "u"}))
    assert post(transport()) == {"uuid": "u"}
    assert len(stub.log) == 3


def test_a_create_that_found_nobody_is_sent_again(transport, waits):
    with pytest.raises(QarnotUnavailableError, match="connection refused") as caught:
        post(transport(url="http://127.0.0.1:1", retries=3))
    assert not caught.value.ambiguous
    assert len(waits) == 3


def test_a_429_after_a_lost_answer_stays_ambiguous(stub, transport):
    stub.will(reset, Reply(429))
    with pytest.raises(QarnotUnavailableError) as caught:
        post(transport(retries=1), recover=lambda left: None)
    assert caught.value.ambiguous


def test_recover_says_what_became_of_a_lost_create(stub, transport):
    stub.will(reset)
    assert post(transport(), recover=lambda left: {"uuid": "found"}) == {"uuid": "found"}
    assert len(stub.log) == 1


def test_a_create_that_left_nothing_is_sent_again(stub, transport):
    stub.will(reset, Reply(503), Reply(200, {"uuid": "u"}))
    asked = []
    assert post(transport(), recover=lambda left: asked.append(left)) == {"uuid": "u"}
    assert len(stub.log) == 3
    assert len(asked) == 2
    assert all(0 < left <= 120 for left in asked)


@pytest.mark.parametrize("first", [reset, Reply(503), Reply(504)], ids=["reset", "503", "504"])
def test_deleting_what_an_earlier_attempt_deleted_is_done(stub, transport, first):
    stub.will(first, Reply(404, {"message": "No such pool"}))
    assert transport().request("DELETE", "/pools/p", idempotent=True, kind="pool", ref="p") is None
    assert len(stub.log) == 2


def test_deleting_what_never_was_is_not_found(stub, transport):
    stub.will(Reply(429), Reply(404, {"message": "No such pool"}))
    with pytest.raises(QarnotNotFoundError):
        transport().request("DELETE", "/pools/p", idempotent=True, kind="pool", ref="p")


def test_closing_what_is_gone_is_not_found_even_after_a_lost_answer(stub, transport):
    stub.will(reset, Reply(404))
    with pytest.raises(QarnotNotFoundError):
        transport().request("POST", "/pools/p/close", idempotent=True)


def test_retry_after_in_seconds_is_honoured(stub, transport, waits):
    stub.will(Reply(429, headers={"Retry-After": "7"}), Reply(503, headers={"Retry-After": "2.5"}), Reply())
    get(transport())
    assert waits == [7.0, 2.5]


def test_retry_after_as_a_date_is_honoured(stub, transport, waits):
    when = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    stub.will(Reply(503, headers={"Retry-After": when}), Reply())
    get(transport())
    assert 20 < waits[0] <= 30


def test_a_retry_after_beyond_the_deadline_ends_the_matter(stub, transport, waits):
    stub.default = Reply(429, headers={"Retry-After": "3600"})
    with pytest.raises(QarnotUnavailableError) as caught:
        get(transport(deadline=60))
    assert caught.value.retry_after == 3600
    assert not caught.value.ambiguous
    assert waits == []
    assert len(stub.log) == 1


@pytest.mark.parametrize("slow", [hang, drip, drip_body])
def test_a_slow_answer_is_cut_off_by_the_deadline(stub, transport, slow):
    stub.default = slow
    started = time.monotonic()
    with pytest.raises(QarnotUnavailableError, match="no complete response within") as caught:
        get(transport(timeout=30, deadline=0.5))
    # Bounded at all is the claim; a server that drips would hold a plain socket time-out for ever.
    assert time.monotonic() - started < 20
    assert not caught.value.ambiguous


@pytest.mark.parametrize("slow", [hang, drip, drip_body])
def test_an_attempt_is_cut_off_by_its_timeout_and_made_again(stub, transport, slow):
    stub.will(slow, Reply(200, {"uuid": "u"}))
    assert get(transport(timeout=0.5, deadline=60)) == {"uuid": "u"}
    assert len(stub.log) == 2


def test_a_create_whose_answer_took_too_long_is_ambiguous(stub, transport):
    stub.default = hang
    with pytest.raises(QarnotUnavailableError) as caught:
        post(transport(timeout=0.3))
    assert caught.value.ambiguous
    assert len(stub.log) == 1


def test_all_attempts_share_the_deadline(stub, transport):
    # A clock that the waits move: no attempt may begin after the deadline.
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    stub.default = Reply(503)
    with pytest.raises(QarnotUnavailableError):
        get(transport(deadline=10, retries=100, clock=lambda: now[0], sleep=sleep, wait=lambda attempt: 3.0))
    assert len(stub.log) == 4  # at 0, 3, 6 and 9 s
    assert now[0] < 10


def test_waits_grow_with_jitter_up_to_a_bound():
    for attempt, longest in [(1, 0.5), (2, 1), (3, 2), (4, 4), (6, 16), (7, MAX_WAIT), (500, MAX_WAIT)]:
        drawn = [backoff(attempt) for _ in range(50)]
        assert all(longest / 2 <= one <= longest for one in drawn)
        assert len(set(drawn)) > 1


def test_the_token_is_sent_as_it_is_and_shown_nowhere(stub, transport, caplog, monkeypatch, tmp_path):
    # A .netrc entry for the host must not take the token's place.
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(netrc))
    stub.will(
        Reply(503, {"message": f"token {TOKEN} is odd"}),
        Reply(500, f"token {TOKEN}".encode()),
        reset,
        Reply(200, f"token {TOKEN}".encode()),
        Reply(401, {"message": f"token {TOKEN} is bad"}),
    )
    one = transport()
    with caplog.at_level(logging.DEBUG), pytest.raises(QarnotCredentialsError) as caught:
        get(one)
    assert len(stub.requests) == 5
    assert {request.headers["Authorization"] for request in stub.requests} == {TOKEN}
    assert all(request.headers["User-Agent"].startswith("airflow-qarnot-pool/") for request in stub.requests)
    shown = [caplog.text, str(caught.value), repr(caught.value), str(caught.value.__dict__), repr(one)]
    assert all(TOKEN not in text for text in shown)
    assert "token *** is bad" in str(caught.value)
    assert caught.value.__cause__ is None
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(one)


def test_secret_constants_that_the_server_repeats_are_not_shown(stub, transport):
    stub.will(Reply(400, {"message": "constant DOCKER_REGISTRY_PASSWORD=hunter2 is odd"}))
    constants = [{"key": "DOCKER_REGISTRY_PASSWORD", "value": "hunter2"}]
    with pytest.raises(QarnotRefusedError, match=r"DOCKER_REGISTRY_PASSWORD=\*\*\* is odd"):
        transport().request("POST", "/pools", json={"constants": constants}, idempotent=False)


def test_each_retry_is_logged_with_what_and_why(stub, transport, caplog):
    stub.will(Reply(503, {"message": "busy"}), reset, Reply())
    with caplog.at_level(logging.WARNING, logger="airflow_qarnot_pool.api.transport"):
        get(transport())
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert "GET /pools/p failed (busy); attempt 1" in caplog.messages[0]
    assert f"GET /pools/p failed (Qarnot at {stub.url} cannot be reached" in caplog.messages[1]


def test_redirects_are_not_followed(stub, transport):
    stub.will(Reply(302, headers={"Location": f"{stub.url}/elsewhere"}))
    with pytest.raises(QarnotProtocolError, match="redirect"):
        get(transport())
    assert stub.log == ["GET /pools/p"]


@pytest.mark.parametrize("url", ["", "qarnot.com", "ftp://x", "https://", None])
def test_an_invalid_url_is_refused_at_once(url):
    with pytest.raises(QarnotInvalidSpecError) as caught:
        Transport(url, TOKEN)
    assert caught.value.field == "url"


@pytest.mark.parametrize("token", ["", None, "a\nb", "clé", " "])
def test_an_invalid_token_is_refused_and_not_shown(token):
    with pytest.raises(QarnotInvalidSpecError) as caught:
        Transport("https://api.qarnot.com", token)
    assert caught.value.field == "token"
    assert "clé" not in str(caught.value)


@pytest.mark.parametrize("limits", [{"timeout": 0}, {"deadline": -1}, {"timeout": float("nan")}])
def test_limits_are_positive(limits):
    with pytest.raises(QarnotInvalidSpecError):
        Transport("https://api.qarnot.com", TOKEN, **limits)


def test_text_is_utf8_whatever_the_headers_say(stub, transport):
    stub.will(Reply(200, "é\n".encode(), {"Content-Type": "text/plain"}), Reply(200, b"\xff{", {}))
    one = transport()
    assert one.request("GET", "/x", idempotent=True, text=True) == "é\n"
    assert one.request("GET", "/x", idempotent=True, text=True) == "\ufffd{"


def test_an_answer_nobody_reads_may_be_anything(stub, transport):
    stub.will(Reply(200, b""), GARBAGE, Reply(204, b""))
    one = transport()
    assert [one.request("POST", "/pools/p/close", idempotent=True) for _ in range(3)] == [None] * 3
    assert len(stub.log) == 3


def test_connections_are_kept_and_threads_have_their_own(stub, transport):
    ports = []
    lock = threading.Lock()

    class Seen(Reply):
        def __call__(self, handler):
            with lock:
                ports.append(handler.client_address[1])
            super().__call__(handler)

    stub.default = Seen(200, {"uuid": "u"})
    one = transport()
    for _ in range(3):
        get(one)
    assert len(set(ports)) == 1
    thread = threading.Thread(target=get, args=(one,))
    thread.start()
    thread.join()
    assert len(set(ports)) == 2


def test_limited_shares_connections_and_changes_limits(stub, transport):
    one = transport(deadline=60, retries=5)
    other = one.limited(deadline=4, retries=0)
    assert (other.deadline, other.retries, other.timeout) == (4, 0, one.timeout)
    assert (one.deadline, one.retries) == (60, 5)
    assert one._session() is other._session()
    stub.default = Reply(503)
    with pytest.raises(QarnotUnavailableError):
        get(other)
    assert len(stub.log) == 1


def test_tls_is_verified_against_a_bundle_or_not_at_all(transport, waits, tmp_path):
    certificate, key = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with serve(context) as server:
        server.default = Reply(200, {"uuid": "u"})
        with pytest.raises(
            QarnotUnavailableError, match=r"certificate cannot be verified.*CA bundle"
        ) as caught:
            get(transport(url=server.url))
        assert not caught.value.ambiguous
        assert waits == []  # no use trying again
        assert server.log == []
        assert get(transport(url=server.url, verify=certificate)) == {"uuid": "u"}
        assert get(transport(url=server.url, verify=False)) == {"uuid": "u"}


def test_no_verification_stays_so_when_the_environment_names_a_bundle(transport, tmp_path, monkeypatch):
    certificate, key = self_signed(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", certifi.where())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with serve(context) as server:
        server.default = Reply(200, {"uuid": "u"})
        assert get(transport(url=server.url, verify=False)) == {"uuid": "u"}
        assert get(transport(url=server.url, verify=certificate)) == {"uuid": "u"}


def self_signed(folder):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "cert.pem", folder / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return str(paths[0]), str(paths[1])


def test_a_proxy_password_is_not_shown(transport):
    with pytest.raises(QarnotUnavailableError) as caught:
        get(transport(url="http://qarnot.invalid", proxy="http://me:hunter2@127.0.0.1:1", retries=0))
    assert "hunter2" not in str(caught.value)
    assert "proxy" in str(caught.value)


def test_requests_go_through_the_proxy(stub, transport):
    stub.default = Reply(200, {"uuid": "u"})
    assert get(transport(url="http://qarnot.invalid", proxy=stub.url)) == {"uuid": "u"}
    assert stub.log == ["GET http://qarnot.invalid/pools/p"]


@pytest.mark.parametrize("exempt", ["", "*", "qarnot.invalid"])
def test_the_proxy_it_was_given_wins_over_the_environment(stub, transport, monkeypatch, exempt):
    for name, value in {"http_proxy": "http://127.0.0.1:1", "no_proxy": exempt}.items():
        monkeypatch.setenv(name, value)
        monkeypatch.setenv(name.upper(), value)
    stub.default = Reply(200, {"uuid": "u"})
    assert get(transport(url="http://qarnot.invalid", proxy=stub.url, retries=0)) == {"uuid": "u"}
    assert stub.log == ["GET http://qarnot.invalid/pools/p"]


def test_without_one_that_of_the_environment_is_used(stub, transport, monkeypatch):
    monkeypatch.setenv("http_proxy", stub.url)
    stub.default = Reply(200, {"uuid": "u"})
    assert get(transport(url="http://qarnot.invalid", retries=0)) == {"uuid": "u"}


def test_a_tunnel_that_was_cut_long_after_the_last_request_is_dug_anew(
    stub, transport, tmp_path, monkeypatch
):
    later = 0.0
    clock = types.SimpleNamespace(monotonic=lambda: time.monotonic() + later)
    monkeypatch.setattr("airflow_qarnot_pool.api._http.time", clock)
    tunnel = Tunnel()
    stub.default = lambda request: tunnel
    certificate, key = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with serve(context) as server:
        server.default = Reply(200, {"uuid": "u"})
        one = transport(url=server.url, verify=certificate, proxy=stub.url, retries=0)
        assert get(one) == {"uuid": "u"}
        assert get(one) == {"uuid": "u"}
        assert len(stub.log) == 1  # one tunnel for both
        tunnel.cut()
        later = 3600
        assert post(one) == {"uuid": "u"}
        assert len(stub.log) == 2


@pytest.mark.parametrize("answer", [Reply(407), reset, drip, hang], ids=["refusal", "reset", "drip", "hang"])
def test_without_a_tunnel_nothing_was_sent(stub, transport, waits, answer):
    stub.default = answer
    with pytest.raises(QarnotUnavailableError) as caught:
        post(transport(url="https://qarnot.invalid", proxy=stub.url, timeout=0.3, retries=1))
    assert not caught.value.ambiguous
    assert len(waits) == 1  # so that it is safe to try again


def test_an_unknown_host_is_named_as_the_cause(transport):
    with pytest.raises(QarnotUnavailableError, match="host name cannot be resolved") as caught:
        post(transport(url="http://qarnot.invalid", retries=0))
    assert not caught.value.ambiguous


def test_importing_the_client_imports_no_http_library():
    code = (
        "import sys, airflow_qarnot_pool.api.client, airflow_qarnot_pool.api.specs;"
        "print([name for name in ('requests', 'tenacity', 'urllib3', 'boto3', 'airflow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_parsing_a_dag_imports_nothing_that_only_a_task_needs():
    modules = (
        *("operators.array", "operators.pool", "operators.task", "operators.tasks", "sensors.task"),
        "task_groups.pool",
    )
    late = (
        *(
            "api.client",
            "api.models",
            "api.specs",
            "api.transport",
            "costs.limits",
            "costs.model",
            "costs.report",
        ),
        *("costs.spending", "environments.storage", "logs.cursor", "logs.writer", "ownership.claim"),
        *("ownership.decisions", "ownership.fan_out", "ownership.quota", "ownership.records"),
        *("ownership.shared_pool", "ownership.termination", "triggers"),
        *("lineage", "operators.bases.lineage", "operators.bases.outlets"),
    )
    code = (
        f"import sys; {'; '.join(f'import airflow_qarnot_pool.{one}' for one in modules)};"
        f"print([one for one in {late!r} if 'airflow_qarnot_pool.' + one in sys.modules], 'openlineage' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] False"


def test_a_web_page_that_says_404_may_not_be_the_api(stub, transport):
    stub.default = Reply(404, b"<html><title>Nothing here</title></html>")
    with pytest.raises(QarnotNotFoundError, match="Or the API is not at http"):
        get(transport())
