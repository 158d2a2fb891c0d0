from __future__ import annotations

from datetime import UTC, datetime

import pytest

from airflow_qarnot_pool.api import errors
from airflow_qarnot_pool.api.responses import error_from_response, retry_after, server_message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"message": "No such pool"}', "No such pool"),
        ('{"Message": "No such pool"}', "No such pool"),
        (
            '{"error": {"message": "Bad authentication token", "code": 401}, "data": {}}',
            "Bad authentication token",
        ),
        ('{"error": "Secret the_key doesn\'t exist"}', "Secret the_key doesn't exist"),
        (
            '{"title": "Bad Request", "status": 400, "errors": {"policies[0]": ["The input was not valid."]}}',
            "Bad Request; policies[0]: The input was not valid.",
        ),
        ('[{"statusCode": 400, "message": "a"}, {"message": "b"}, {"message": "a"}]', "a; b"),
        ('"plain"', "plain"),
        ("null", ""),
        ("", ""),
        ("{}", ""),
        ('{"message": null, "error": "x"}', "x"),
        ("not json\n at all", "not json at all"),
        ("<html><head><title>502 Bad Gateway</title></head><body>long</body></html>", "502 Bad Gateway"),
        ("<html><body>nothing</body></html>", "an HTML page"),
    ],
)
def test_the_message_is_found_in_every_shape(body, message):
    assert server_message(body) == message


def test_long_messages_are_cut():
    assert len(server_message("x" * 100_000)) == 1000


NOW = datetime(2025, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("3", 3.0),
        ("0.5", 0.5),
        ("-1", 0.0),
        ("Wed, 01 Jan 2025 00:00:30 GMT", 30.0),
        ("Tue, 31 Dec 2024 00:00:00 GMT", 0.0),
        ("soon", None),
        ("nan", None),
    ],
)
def test_retry_after(header, seconds):
    assert retry_after(header, NOW) == seconds


@pytest.mark.parametrize(
    ("status", "message", "creating", "expected"),
    [
        (400, "Invalid task file. Invalid fields: name", True, errors.QarnotRefusedError),
        (
            400,
            "Invalid task file. Invalid fields: shortname-uniqueness, range-length",
            True,
            errors.QarnotNameTakenError,
        ),
        (400, "A pool with this shortname already exists", True, errors.QarnotNameTakenError),
        (403, "shortname already taken", True, errors.QarnotNameTakenError),
        (409, "conflict", True, errors.QarnotNameTakenError),
        (422, "Another pool already has the shortname p", True, errors.QarnotNameTakenError),
        (400, "shortname is not valid", True, errors.QarnotRefusedError),
        (409, "conflict", False, errors.QarnotRefusedError),
        (401, "", False, errors.QarnotCredentialsError),
        (402, "Not enough credits", True, errors.QarnotCreditsError),
        (402, "No node fits the hardware constraints", True, errors.QarnotRefusedError),
        (403, "Maximum number of pools reached", True, errors.QarnotQuotaError),
        (400, "Maximum number of tasks reached: 4", True, errors.QarnotQuotaError),
        (403, "You have exceeded your quota", True, errors.QarnotQuotaError),
        (403, "cannot close", False, errors.QarnotRefusedError),
        (404, "No such bucket: b", True, errors.QarnotBucketNotFoundError),
        (404, "No such pool", True, errors.QarnotNotFoundError),
        (404, "No such bucket", False, errors.QarnotNotFoundError),
        (301, "", False, errors.QarnotProtocolError),
        (405, "", False, errors.QarnotRefusedError),
        (429, "", False, errors.QarnotUnavailableError),
        (500, "", False, errors.QarnotUnavailableError),
        (501, "", False, errors.QarnotUnavailableError),
        (503, "", False, errors.QarnotUnavailableError),
    ],
)
def test_each_refusal_has_its_error(status, message, creating, expected):
    error = error_from_response(status, message, creating=creating, kind="pool", ref="p")
    assert type(error) is expected
    assert error.status == status
    assert error.server_message == (message or None)
    assert (error.kind, error.ref) == ("pool", "p")


@pytest.mark.parametrize(
    ("message", "quota"),
    [
        ("Maximum number of pools reached", "pools"),
        ("maximum number of tasks reached (100)", "tasks"),
        ("Maximum number of running pools reached", "pools"),
        ("quota exceeded", None),
    ],
)
def test_a_reached_quota_says_which(message, quota):
    error = error_from_response(403, message, creating=True)
    assert isinstance(error, errors.QarnotQuotaError)
    assert error.quota == quota
