"""Whatever comes from outside is parsed in bounded time and memory, and ends in a value or a QarnotError."""

from __future__ import annotations

import json
import pickle
import time
import tracemalloc
import zlib

import pytest

from airflow_qarnot_pool.api import _http, errors
from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.errors import (
    MAX_MESSAGE,
    QarnotError,
    QarnotProtocolError,
    QarnotRefusedError,
    QarnotUnavailableError,
    end_of,
    shortened,
    start_of,
)
from airflow_qarnot_pool.api.limits import (
    decompress,
    parse_json,
    parse_number,
    parsing_stored_state,
)
from airflow_qarnot_pool.api.models import Pool, Task
from airflow_qarnot_pool.api.ranges import parse_ranges
from airflow_qarnot_pool.api.responses import retry_after, server_message
from airflow_qarnot_pool.api.transport import strip_login
from tests.api.conftest import TOKEN
from tests.api.stub import Reply

DEEP = 200_000


def seconds(call):
    begun = time.process_time()
    call()
    return time.process_time() - begun


# --- text in messages


@pytest.mark.parametrize("limit", [100, 1000, MAX_MESSAGE])
def test_a_long_message_keeps_its_end_and_some_of_its_beginning(limit):
    text = "begin " + "word " * limit + "end"
    short = shortened(text, limit)
    assert len(short) <= limit
    assert short.startswith("begin ")
    assert short.endswith(" end")
    assert f"of {len(text):,} characters the middle is left out" in short
    assert shortened("x" * limit, limit) == "x" * limit
    assert len(shortened("x" * 10 * limit, limit)) == limit


@pytest.mark.parametrize("shift", range(40))
def test_a_cut_leaves_no_part_of_a_word_which_may_be_a_secret(shift):
    secret = "hush-hush-hush"
    text = f"{'a ' * 500}{'b' * shift} {secret} {'c ' * 500}"
    for cut in (end_of(text, 1020), start_of(text, 1040), shortened(text, 700)):
        assert "hush" not in cut.replace(secret, "")


@pytest.mark.parametrize(
    "error",
    [
        QarnotError("x" * 3_000_000),
        QarnotRefusedError(status=400, server_message="y" * 3_000_000, ref="z" * 3_000_000, kind="pool"),
        QarnotError(path="/" + "p" * 3_000_000, method="GET", remedy="r" * 3_000_000),
        errors.QarnotUnknownStateError(state="s" * 3_000_000),
    ],
    ids=["message", "the server's words", "request", "state"],
)
def test_no_error_has_a_message_without_bounds(error):
    assert len(str(error)) <= MAX_MESSAGE
    assert len(error.message) <= MAX_MESSAGE
    assert len(pickle.dumps(error)) < 5 * MAX_MESSAGE


def test_names_errors_and_states_of_remote_objects_are_bounded():
    long = "n" * 3_000_000
    pool = Pool.from_json(
        {"uuid": "u", "name": long, "state": long, "errors": [{"code": long, "message": long}] * 100}
    )
    for text in (pool.name, pool.state, pool.error_text):
        assert len(text or "") <= 10_000


# --- what a server answers


def test_an_error_page_is_read_in_linear_time():
    for piece in ("<title", "<h1 ", "<title>", "<title><h1>", "</title", "<"):
        page = "<html>" + piece * (65_536 // len(piece))
        assert seconds(lambda page=page: server_message(page, "text/html")) < 0.5
    assert server_message("<TITLE class='x'>Bad\n gateway</TITLE>") == "Bad gateway"
    assert server_message("<html><h1>Down</h1><title>") == "Down"


def test_a_secret_is_removed_before_the_message_is_cut(stub):
    secret = "Hush1Hush2Hush3"
    for before in range(975, 1000):
        message = "x" * before + secret
        assert "Hush" not in server_message(message, redact=lambda text: text.replace(secret, "***"))
    # As JSON writes it, it does not look like the secret.
    token = TOKEN
    stub.default = Reply(400, {"message": f"no \u00e9 {token}"})
    with QarnotClient(stub.url, token, retries=0) as client, pytest.raises(QarnotRefusedError) as caught:
        client.pools.get("p")
    assert token not in str(caught.value)


NASTY = {
    "deep lists": b"[" * DEEP + b"]" * DEEP,
    "deep lists that are cut off": b"[" * DEEP,
    "deep objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "less deep": b'{"uuid":' + b"[" * 500 + b"]" * 500 + b"}",
    "a number of a million digits": b'{"uuid": ' + b"9" * 1_000_000 + b"}",
    "half a character": b'{"uuid": "\xff"}',
    "nothing": b"",
}


@pytest.mark.parametrize("body", NASTY.values(), ids=NASTY.keys())
@pytest.mark.parametrize("status", [200, 400])
def test_json_that_nobody_should_send_is_a_qarnot_error(stub, body, status):
    stub.default = Reply(status, body, {"Content-Type": "application/json"})
    with QarnotClient(stub.url, TOKEN, retries=0) as client, pytest.raises(QarnotError) as caught:
        client.pools.get("p")
    assert len(str(caught.value)) < 3000


def test_json_of_usual_depth_is_read():
    assert parse_json(b'{"a": [{"b": [1, 2.5, null]}]}') == {"a": [{"b": [1, 2.5, None]}]}
    assert parse_json("[" * 100 + "]" * 100)
    with pytest.raises(ValueError, match="deep"):
        parse_json("[" * 101 + "]" * 101)


def test_an_answer_without_end_is_refused_once_and_takes_little_memory(stub, monkeypatch):
    monkeypatch.setattr(_http, "MAX_JSON", 1_000_000)
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join(packer.compress(b" " * 1_000_000) for _ in range(200)) + packer.flush()
    assert len(bomb) < 250_000
    stub.default = Reply(200, bomb, {"Content-Encoding": "gzip"})
    with QarnotClient(stub.url, TOKEN) as client:
        tracemalloc.start()
        try:
            with pytest.raises(QarnotProtocolError, match="too large: more than 1,000,000 bytes") as caught:
                client.pools.list()
            assert tracemalloc.get_traced_memory()[1] < 20_000_000
        finally:
            tracemalloc.stop()
    assert "fewer" in str(caught.value)
    assert len(stub.log) == 1


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "identity", None])
def test_an_answer_is_decoded_as_the_server_has_encoded_it(stub, encoding):
    body = json.dumps({"uuid": "u", "name": "n" * 300_000}).encode()
    packers = {"gzip": zlib.compressobj(wbits=31), "deflate": zlib.compressobj()}
    if encoding in packers:
        packer = packers[encoding]
        body = packer.compress(body) + packer.flush()
    stub.default = Reply(200, body, {"Content-Encoding": encoding} if encoding else {})
    with QarnotClient(stub.url, TOKEN, retries=0) as client:
        assert client.pools.get("u").uuid == "u"
        assert "Accept-Encoding" in stub.requests[0].headers


@pytest.mark.parametrize(
    ("body", "encoding"),
    [(b"\x1f\x8bgarbage", "gzip"), (b"x", "br"), (zlib.compress(b"{}" * 9)[:-6], "deflate")],
)
def test_an_answer_that_cannot_be_decoded_is_a_qarnot_error(stub, body, encoding):
    stub.default = Reply(200, body, {"Content-Encoding": encoding})
    with QarnotClient(stub.url, TOKEN, retries=0) as client, pytest.raises(QarnotError, match="decoded"):
        client.pools.get("u")


def test_an_output_in_pieces_takes_little_memory_whatever_its_size(stub):
    packer = zlib.compressobj(9, wbits=31)
    line = "0> größer\n" * 100_000
    body = b"".join(packer.compress(line.encode()) for _ in range(100)) + packer.flush()
    stub.default = Reply(200, body, {"Content-Encoding": "gzip"})
    with QarnotClient(stub.url, TOKEN) as client:
        tracemalloc.start()
        try:
            size = sum(len(piece) for piece in client.tasks.stream_output("u", "stdout"))
            assert tracemalloc.get_traced_memory()[1] < 10_000_000
        finally:
            tracemalloc.stop()
    assert size == 100 * len(line)


def test_an_output_that_breaks_off_in_the_middle_is_an_error_and_not_an_end(stub):
    stub.default = Reply(200, b"0> a\n" * 100_000, {"Content-Length": "600000", "Connection": "close"})
    with (
        QarnotClient(stub.url, TOKEN) as client,
        pytest.raises(QarnotUnavailableError, match="was interrupted"),
    ):
        list(client.tasks.stream_output("u", "stdout"))


@pytest.mark.parametrize(
    "header",
    [
        "9" * 60_000,
        "Wed, 01 Jan 99999999999999999999 00:00:30 GMT",
        "Wed, 99 Jan 2025 00:00:30 GMT",
        "Wed, 01 Jan 2025 00:00:30 +99999999999999",
        "1e400",
        "-inf",
        ", , ,",
    ],
)
def test_a_retry_after_that_means_nothing_is_none(header):
    assert retry_after(header) is None


def test_a_retry_after_is_no_longer_than_a_date_can_hold():
    assert retry_after("1e300") == 365 * 86400


@pytest.mark.parametrize("value", ["9" * 5000, "1e999", -1e308, 10**300, "²", "-", {}, []])
def test_figures_and_dates_that_mean_nothing_are_left_out(value):
    names = ("creationDate", "endDate", "wallTime", "executionTime", "instanceCount", "progress", "status")
    task = Task.from_json({"uuid": "u", "completedInstances": [{"instanceId": value, "wallTimeSec": value}]})
    for name in names:
        Task.from_json({"uuid": "u", name: value, "status": {"runningInstancesInfo": {name: value}}})
    assert task.uuid == "u"


def test_ranges_name_no_more_instances_than_fit_into_memory():
    with pytest.raises(ValueError, match="more than"):
        parse_ranges(",".join(f"{n}000000-{n}999999" for n in range(1, 100)))
    with pytest.raises(ValueError) as caught:
        parse_ranges("x" * 1_000_000)
    assert len(str(caught.value)) < 200


# --- what was stored


@pytest.mark.parametrize(
    ("text", "number"), [("12", 12), ("²", None), ("", None), ("9" * 5000, None), (None, None)]
)
def test_a_number_in_a_label_is_read_or_left_out(text, number):
    assert parse_number(text) == number


def test_compressed_data_is_no_larger_than_its_limit():
    packer = zlib.compressobj(9)
    bomb = b"".join(packer.compress(b"\0" * 1_000_000) for _ in range(100)) + packer.flush()
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="more than 100,000 bytes"):
            decompress(bomb, 100_000)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert decompress(zlib.compress(b"a" * 1000), 1000) == b"a" * 1000
    for damaged in (b"", b"x", zlib.compress(b"abc")[:-1]):
        with pytest.raises(ValueError, match="it"):
            decompress(damaged, 1000)


@pytest.mark.parametrize(
    "error", [KeyError("x"), TypeError("x"), ValueError("x" * 10_000), OverflowError(), RecursionError()]
)
def test_state_that_cannot_be_read_back_is_a_qarnot_error_that_names_it(error):
    with (
        pytest.raises(QarnotProtocolError, match="The event of a trigger cannot be read") as caught,
        parsing_stored_state("The event of a trigger"),
    ):
        raise error
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:pw@h:1/x", "https://h:1/x"),
        ("https://m@e:p@w@h", "https://h"),
        ("https://h/x", "https://h/x"),
        ("", ""),
    ],
)
def test_a_login_is_taken_out_of_a_url(url, shown):
    assert strip_login(url) == shown
