"""Look-ups of Qarnot tasks by the names of attempts: one that is wrong about an attempt makes a second task of it."""

from __future__ import annotations

import uuid

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.specs import TaskSpec
from airflow_qarnot_pool.executors.lookups import find_by_name
from airflow_qarnot_pool.executors.running import Attempt, name_of
from airflow_qarnot_pool.local import LocalQarnot

NO_SEARCH = {"method": "POST", "path": "/tasks/search", "kind": "status", "status": 403}


def attempt(*, by_tag: bool = False) -> Attempt:
    instance_id = uuid.uuid4().hex
    name = name_of(uuid.uuid4().hex, instance_id)
    return Attempt(name=name, key=("dag", "task"), instance_id=instance_id, by_tag=by_tag)


def create(client: QarnotClient, of: Attempt) -> str:
    """Create the Qarnot task of an attempt, under another name if that of the attempt is not known."""
    shortname = f"other-{of.name}" if of.by_tag else of.name
    spec = TaskSpec(name="dag.task", shortname=shortname, command="true", tags=(of.tag,))
    return client.tasks.create(spec)


@pytest.mark.parametrize(
    "faults",
    [
        [],
        [NO_SEARCH],
        # A single 404 of a replica that lags, about a name that the first search does not show yet.
        [
            {**NO_SEARCH, "times": 1},
            {"method": "GET", "path": "/tasks/airflow-", "kind": "status", "status": 404},
        ],
    ],
    ids=["shown by a search", "shown by no search", "shown by the second search"],
)
def test_what_exists_is_found_and_what_does_not_is_said(
    qarnot: LocalQarnot, client: QarnotClient, faults: list[dict[str, object]]
) -> None:
    there, absent = attempt(), attempt()
    created = create(client, there)
    qarnot.faults(faults)
    assert find_by_name(client, [there, absent]) == ({there.name: created, absent.name: None}, None)


def test_an_attempt_whose_look_up_is_refused_is_left_out_and_the_others_are_found(
    qarnot: LocalQarnot, client: QarnotClient
) -> None:
    refused, there, tagged = attempt(), attempt(), attempt(by_tag=True)
    for each in (refused, there, tagged):
        create(client, each)
    qarnot.faults(
        [{**NO_SEARCH, "times": 1}, {"method": "GET", "path": refused.name, "kind": "status", "status": 403}]
    )
    found, error = find_by_name(client, [refused, there, tagged])
    assert found.keys() == {there.name, tagged.name}
    assert None not in found.values()
    assert error is not None
