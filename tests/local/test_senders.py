"""Refuse requests of web pages of other sites, and of clients without the token or the key of the account."""

from __future__ import annotations

import functools
import json
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
import qarnot
import requests
from botocore.config import Config
from botocore.exceptions import ClientError

from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.local.schemas.addresses import DISCARDED_BYTES, Addresses

from .conftest import Http

Private = Callable[..., LocalQarnot]
BUCKET, KEY = "of-the-developer", "a folder/script ü+1.sh"


def s3_client(server: LocalQarnot, version: str = "s3v4", **changes: str) -> Any:
    keys = {"aws_access_key_id": server.email, "aws_secret_access_key": server.token, **changes}
    config = Config(signature_version=version, s3={"addressing_style": "path"})
    return boto3.client("s3", endpoint_url=server.storage_url, region_name="us-east-1", config=config, **keys)


@pytest.fixture(scope="module")
def s3(server: LocalQarnot) -> Any:
    client = s3_client(server)
    client.create_bucket(Bucket=BUCKET)
    return client


@pytest.fixture(autouse=True)
def script(s3: Any) -> Iterator[None]:
    """An object that a refused request has not changed."""
    s3.put_object(Bucket=BUCKET, Key=KEY, Body=b"echo mine")
    yield
    assert s3.get_object(Bucket=BUCKET, Key=KEY)["Body"].read() == b"echo mine"


def presigned(server: LocalQarnot, method: str, version: str = "s3") -> str:
    """A URL that anybody may use who has it. Version 2 does not sign the host."""
    client = s3_client(server, version)
    return str(client.generate_presigned_url(method, Params={"Bucket": BUCKET, "Key": KEY}))


def ask(url: str, method: str, headers: dict[str, str]) -> tuple[int, str, dict[str, str]]:
    """One request with exactly these headers."""
    parts = urlsplit(url)
    assert parts.hostname
    connection = HTTPConnection(parts.hostname, parts.port or 0, timeout=20)
    try:
        connection.putrequest(
            method, f"{parts.path}?{parts.query}", skip_host=True, skip_accept_encoding=True
        )
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        answer: HTTPResponse = connection.getresponse()
        return (
            answer.status,
            answer.read().decode(),
            {name.lower(): value for name, value in answer.getheaders()},
        )
    finally:
        connection.close()


Ask = Callable[[str, dict[str, str]], tuple[int, str, dict[str, str]]]


@pytest.fixture(params=["api", "storage"])
def valid(request: pytest.FixtureRequest, server: LocalQarnot) -> Ask:
    """Sends a request with the token, or with a signature, and with other headers."""

    def send(host: str, more: dict[str, str]) -> tuple[int, str, dict[str, str]]:
        if request.param == "api":
            url, more = f"{server.url}/pools", {"Authorization": server.token, **more}
        else:
            url = presigned(server, "get_object")
        return ask(url, "GET", {"Host": host.format(port=urlsplit(url).port), **more})

    return send


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "localhost:{port}", "LOCALHOST:{port}", "[::1]:{port}"])
def test_a_loopback_name_with_the_port_is_a_host_of_the_server(valid: Ask, host: str) -> None:
    assert valid(host, {})[0] == 200


@pytest.mark.parametrize(
    "host", ["rebound.example:{port}", "127.0.0.1.example:{port}", "localhost", "127.0.0.1:1", ""]
)
def test_another_host_is_refused_as_after_a_dns_rebinding(valid: Ask, host: str) -> None:
    status, text, _ = valid(host, {})
    assert status == 403
    assert "The Host header must be a loopback name with port" in text
    assert "--allow-host" in text


@pytest.mark.parametrize("origin", ["http://evil.example", "https://127.0.0.1", "http://localhost:1", "null"])
def test_a_page_of_another_site_is_refused_even_with_the_key(valid: Ask, origin: str) -> None:
    status, text, headers = valid("127.0.0.1:{port}", {"Origin": origin})
    assert status == 403
    assert f"Requests from pages of {origin} are refused" in text
    assert not [name for name in headers if name.startswith("access-control-")]


def test_a_page_of_the_server_may_ask(server: LocalQarnot) -> None:
    headers = {"Host": urlsplit(server.url).netloc, "Origin": server.url, "Authorization": server.token}
    assert ask(f"{server.url}/pools", "GET", headers)[0] == 200


def test_the_storage_gives_no_page_a_permission(server: LocalQarnot) -> None:
    own = {"Host": urlsplit(server.storage_url).netloc, "Origin": server.storage_url}
    status, _, headers = ask(presigned(server, "get_object"), "GET", own)
    assert status == 200
    assert not [name for name in headers if name.startswith("access-control-")]
    preflight = {**own, "Access-Control-Request-Method": "PUT"}
    assert ask(f"{server.storage_url}/{BUCKET}", "OPTIONS", preflight)[0] == 403


def test_other_names_are_an_option(private: Private) -> None:
    server = private(allowed_hosts=["qarnot.test", "tunnel.test:9000"])
    port = urlsplit(server.url).port
    for host, status in ((f"qarnot.test:{port}", 200), ("tunnel.test:9000", 200), ("tunnel.test:9", 403)):
        assert ask(f"{server.url}/pools", "GET", {"Host": host, "Authorization": server.token})[0] == status


def test_clients_leave_out_the_default_port() -> None:
    assert Addresses(80).refusal(["localhost"], ["http://localhost"]) is None
    assert Addresses(80).refusal(["localhost:80"], []) is None
    assert Addresses(81).refusal(["localhost"], []) is not None


def test_two_hosts_are_none() -> None:
    ours = Addresses(80)
    assert ours.refusal(["localhost:80"], []) is None
    assert ours.refusal(["localhost:80", "localhost:80"], []) is not None
    assert ours.refusal(["localhost:80"], ["http://localhost:80", "http://evil.example"]) is not None


# ---- signatures ----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["s3", "s3v4"])
def test_a_signature_is_checked(server: LocalQarnot, version: str) -> None:
    url = presigned(server, "get_object", version)
    assert requests.get(url, timeout=20).text == "echo mine"
    assert requests.put(url, b"echo evil", timeout=20).status_code == 403
    assert requests.get(url.replace(".sh", ".py"), timeout=20).status_code == 403
    other = s3_client(server, version, aws_secret_access_key="guessed")
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        other.get_object(Bucket=BUCKET, Key=KEY)
    with pytest.raises(ClientError, match="InvalidAccessKeyId"):
        s3_client(server, version, aws_access_key_id="someone@else").list_buckets()


@pytest.mark.parametrize("version", ["s3", "s3v4"])
@pytest.mark.parametrize("key", ["plain", "a b/ü+=&?#%41~*'()!", "/lead//double/", "日本/語"])
def test_every_request_of_boto_is_signed_well(server: LocalQarnot, version: str, key: str) -> None:
    client = s3_client(server, version)
    client.put_object(Bucket=BUCKET, Key=key, Body=b"x" * 100, Metadata={"a": "two  spaces"})
    assert client.get_object(Bucket=BUCKET, Key=key)["ContentLength"] == 100
    listed = client.list_objects_v2(Bucket=BUCKET, Prefix=key[:3], Delimiter="|")
    assert key in [entry["Key"] for entry in listed["Contents"]]
    client.copy_object(Bucket=BUCKET, Key=f"{key}.copy", CopySource={"Bucket": BUCKET, "Key": key})
    upload = client.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]
    client.upload_part(Bucket=BUCKET, Key=key, UploadId=upload, PartNumber=1, Body=b"part")
    client.abort_multipart_upload(Bucket=BUCKET, Key=key, UploadId=upload)
    objects = [{"Key": key}, {"Key": f"{key}.copy"}]
    assert len(client.delete_objects(Bucket=BUCKET, Delete={"Objects": objects})["Deleted"]) == 2


# ---- bodies --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("port", "status"), [("api", b"401"), ("storage", b"403")])
def test_the_body_of_a_stranger_is_not_read_whole(server: LocalQarnot, port: str, status: bytes) -> None:
    parts = urlsplit(server.url if port == "api" else server.storage_url)
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as connection:
        length = 1 << 34
        head = f"POST /tasks HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Length: {length}\r\n\r\n"
        connection.sendall(head.encode() + b"x" * DISCARDED_BYTES)
        assert status in connection.recv(1 << 16).partition(b"\r\n")[0]
        left = b"more"
        while left:  # to the end of the connection
            left = connection.recv(1 << 16)


def test_a_fault_does_not_read_the_body_of_a_stranger(private: Private) -> None:
    server = private()
    server.faults([{"kind": "status", "status": 503}])
    parts = urlsplit(server.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as connection:
        head = f"POST /tasks HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Length: {1 << 34}\r\n\r\n"
        connection.sendall(head.encode() + b"x" * DISCARDED_BYTES)
        assert b"503" in connection.recv(1 << 16).partition(b"\r\n")[0]


UPLOADS = {
    "a stranger at the API": ("api", "POST /tasks", "", b"401"),
    "another host at the API": ("api", "POST /tasks", "Host: evil.example\r\n", b"403"),
    "a page at the API": ("api", "POST /tasks", "Origin: http://evil.example\r\n", b"403"),
    "a stranger at the storage": ("storage", f"PUT /{BUCKET}/file", "", b"403"),
    "a page at the storage": ("storage", f"PUT /{BUCKET}/file", "Origin: http://evil.example\r\n", b"403"),
}


def upload(url: str, request: str, headers: str) -> tuple[bytes, bytes]:
    """Announce a body, and return the status of the first response and all that follows until the connection ends."""
    parts = urlsplit(url)
    host = "" if "Host:" in headers else f"Host: {parts.netloc}\r\n"
    head = f"{request} HTTP/1.1\r\n{host}{headers}Content-Length: {1 << 34}\r\nExpect: 100-continue\r\n\r\n"
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as connection:
        connection.sendall(head.encode())
        received = b""
        while data := connection.recv(1 << 16):
            received += data
    return received.split(b" ", 2)[1], received


@pytest.mark.parametrize("case", UPLOADS)
def test_an_upload_that_is_refused_is_not_asked_for(server: LocalQarnot, case: str) -> None:
    port, request, headers, status = UPLOADS[case]
    url = server.url if port == "api" else server.storage_url
    seen, received = upload(url, request, headers)
    assert seen == status
    assert received.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("rule", [{"kind": "status", "status": 503}, {"kind": "proxy", "status": 502}])
def test_an_upload_that_meets_a_fault_is_not_asked_for(private: Private, rule: dict[str, Any]) -> None:
    server = private()
    server.faults([rule])
    seen, _ = upload(server.url, "POST /tasks", f"Authorization: {server.token}\r\n")
    assert seen == str(rule["status"]).encode()


def test_an_upload_that_is_accepted_is_asked_for_once(server: LocalQarnot, http: Http) -> None:
    for url in (f"{server.url}/tasks/search", presigned(server, "put_object")):
        parts = urlsplit(url)
        method = "PUT" if parts.query else "POST"
        token = "" if parts.query else f"Authorization: {server.token}\r\n"
        head = (
            f"{method} {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\n{token}"
            "Content-Length: 9\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
        )
        with socket.create_connection((parts.hostname, parts.port), timeout=20) as connection:
            connection.sendall(head.encode())
            first = connection.recv(1 << 16)
            assert first == b"HTTP/1.1 100 Continue\r\n\r\n"
            connection.sendall(b"echo mine" if parts.query else b'{"a": {}}')
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")


def test_a_refusal_is_seen_by_a_client_that_sends_a_body(server: LocalQarnot) -> None:
    url = f"{server.storage_url}/{BUCKET}/file"
    assert requests.put(url, b"x" * 100_000, timeout=20).status_code == 403
    body = {"name": "x" * 100_000}
    assert requests.post(f"{server.url}/tasks", json=body, timeout=20).status_code == 401


# ---- a browser -----------------------------------------------------------------------------------

PAGE = """<script>
const [targets, done] = [JSON.parse(`%s`), {}];
async function attempt(name, url, options) {
    try {
        const response = await fetch(url, options);
        done[name] = [response.type, response.status, await response.text()];
    } catch (error) { done[name] = ["refused", 0, ""]; }
}
(async () => {
    for (const mode of ["cors", "no-cors"])
        for (const [name, method, url] of targets)
            await attempt(`${mode} ${name}`, url,
                {mode, method, body: ["PUT", "POST"].includes(method) ? "echo evil" : undefined});
    await fetch("/done", {method: "POST", body: JSON.stringify(done)});
})();
</script>"""


class Site(BaseHTTPRequestHandler):
    """A page of another site, which reports what it has got."""

    def __init__(self, page: bytes, reports: Queue[Any], *arguments: Any) -> None:
        self.page, self.reports = page, reports
        super().__init__(*arguments)

    def log_message(self, *arguments: Any) -> None:
        pass

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self._answer(self.page)

    def do_POST(self) -> None:
        self.reports.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self._answer(b"")


def visit(page: str) -> dict[str, Any]:
    """Open a page in Chromium, and return what it reports."""
    reports: Queue[Any] = Queue()
    site = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Site, page.encode(), reports))
    threading.Thread(target=site.serve_forever, daemon=True).start()
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--no-proxy-server")
    quiet = ("--disable-background-networking", "--disable-component-update", "--disable-sync")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [
                "chromium",
                *flags,
                *quiet,
                f"--user-data-dir={profile}",
                f"http://127.0.0.1:{site.server_port}/",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            report: dict[str, Any] = reports.get(timeout=120)
            return report
        finally:
            process.terminate()
            process.wait(timeout=30)
            site.shutdown()
            site.server_close()


@pytest.mark.airflow_ui
def test_a_page_of_another_site_gets_nothing_in_a_real_browser(
    server: LocalQarnot, http: Http, sdk: qarnot.Connection, s3: Any
) -> None:
    pool = http("POST", "/pools", {"name": "p", "profile": "docker-batch", "instanceCount": 1}).json()["uuid"]
    url = f"{server.storage_url}/{BUCKET}"
    signed = f"AWSAccessKeyId={server.email}&Signature=guessed&Expires=99999999999"
    targets = [
        ("list buckets", "GET", f"{server.storage_url}/?{signed}"),
        ("list", "GET", f"{url}?{signed}"),
        ("read", "GET", f"{url}/{KEY}?{signed}".replace("+", "%2B")),
        ("overwrite", "PUT", f"{url}/{KEY}?{signed}".replace("+", "%2B")),
        ("delete", "DELETE", f"{url}/{KEY}?{signed}".replace("+", "%2B")),
        ("post", "POST", f"{url}?{signed}"),
        ("read, with a stolen URL", "GET", presigned(server, "get_object")),
        ("overwrite, with a stolen URL", "PUT", presigned(server, "put_object")),
        ("delete, with a stolen URL", "DELETE", presigned(server, "delete_object")),
        ("settings", "GET", f"{server.url}/settings"),
        ("pools", "GET", f"{server.url}/pools"),
        ("close", "POST", f"{server.url}/pools/{pool}/close"),
        ("delete the pool", "DELETE", f"{server.url}/pools/{pool}"),
    ]
    report = visit(PAGE % json.dumps(targets).replace("\\", "\\\\"))
    assert len(report) == 2 * len(targets)
    # A page sees nothing of an opaque response: no status and no text.
    seen = {
        name: result
        for name, result in report.items()
        if result not in (["refused", 0, ""], ["opaque", 0, ""])
    }
    assert seen == {}
    # With no-cors, the browser sends no Origin with GET. A request without a key has no effect then, either.
    assert s3.list_objects_v2(Bucket=BUCKET)["KeyCount"] >= 1
    assert http("GET", f"/pools/{pool}").json()["state"] not in ("Closing", "Closed", "PendingDelete")
    http("DELETE", f"/pools/{pool}")
