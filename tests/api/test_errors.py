from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from airflow_qarnot_pool.api import errors

CASES = [
    (
        errors.QarnotNotFoundError(
            status=404, server_message="No such pool", kind="pool", ref="p", method="GET", path="/pools/p"
        ),
        [
            "There is no pool 'p' on this account",
            "GET /pools/p answered 404: No such pool",
            "uuid or shortname",
        ],
    ),
    (
        errors.QarnotNameTakenError(status=400, kind="task", ref="t-1", method="POST", path="/tasks"),
        ["Another task already has the shortname 't-1'", "POST /tasks answered 400"],
    ),
    (
        errors.QarnotQuotaError(quota="pools", status=403, kind="pool", method="POST", path="/pools"),
        ["The account's quota of pools is reached", "Finished objects count too"],
    ),
    (errors.QarnotCreditsError(status=402), ["does not have enough credits", "Nothing was started"]),
    (errors.QarnotCredentialsError(status=401), ["did not accept the API token", "Airflow connection"]),
    (
        errors.QarnotUnavailableError(ambiguous=True, retry_after=3.0, kind="pool", ref="p"),
        ["Check before you send it again"],
    ),
    (errors.QarnotUnavailableError(ambiguous=False), ["Qarnot is not available"]),
    (errors.QarnotDeletedError(kind="task", ref="t"), ["The task 't' was deleted before its end was seen"]),
    (
        errors.QarnotBucketNotFoundError(kind="pool", status=404),
        ["A bucket of the new pool does not exist"],
    ),
    (
        errors.QarnotUnknownStateError(state="Odd", kind="pool", ref="p"),
        ["The pool 'p' is in the unknown state 'Odd'"],
    ),
    (
        errors.QarnotInvalidSpecError("PoolSpec.x is 3", field="x", remedy="Give 4."),
        ["PoolSpec.x is 3. Give 4."],
    ),
    (
        errors.QarnotRefusedError(status=400, server_message="no."),
        ["Qarnot refused the request (Qarnot answered 400: no)."],
    ),
    (errors.QarnotProtocolError("It is odd"), ["It is odd. Check that"]),
    (errors.QarnotError(), ["The request to Qarnot failed."]),
]


@pytest.mark.parametrize(("error", "parts"), CASES, ids=lambda case: type(case).__name__)
def test_it_says_what_happened_to_what_and_what_to_do(error, parts):
    for part in parts:
        assert part in str(error)
    assert ".." not in str(error)
    assert "None" not in str(error)


def test_every_error_is_covered_here():
    declared = {
        cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, errors.QarnotError)
    }
    assert declared == {type(error) for error, _ in CASES}


@pytest.mark.parametrize("error", [error for error, _ in CASES], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("way", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy])
def test_it_survives_pickling_and_copying(error, way):
    twin = way(error)
    assert type(twin) is type(error)
    assert str(twin) == str(error)
    assert twin.__dict__ == error.__dict__
    assert twin.args == error.args


def test_invalid_specs_are_value_errors_and_gone_objects_are_not_found():
    assert issubclass(errors.QarnotInvalidSpecError, ValueError)
    assert issubclass(errors.QarnotDeletedError, errors.QarnotNotFoundError)
    assert issubclass(errors.QarnotQuotaError, errors.QarnotRefusedError)
