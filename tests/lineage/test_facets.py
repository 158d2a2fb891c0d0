"""What an event says, decided from specs and responses."""

from __future__ import annotations

import json
import shlex
from importlib.resources import files
from typing import Any

import jsonschema
import pytest

from airflow_qarnot_pool.api.models import Pool, Task
from airflow_qarnot_pool.api.specs import PoolSpec, TaskSpec
from airflow_qarnot_pool.costs.model import Cost
from airflow_qarnot_pool.lineage import facets
from airflow_qarnot_pool.lineage.places import Place
from airflow_qarnot_pool.operators.array import QarnotRunArrayOperator
from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator

SCHEMAS = {
    name: json.loads(files("airflow_qarnot_pool.lineage").joinpath(f"schemas/{name}.json").read_text())
    for name in (*facets.RUN_FACETS.values(), *facets.JOB_FACETS.values())
}
BASE = {"_producer": "pkg:pypi/p@1", "_schemaURL": "pkg:pypi/p@1#f"}
TASK = Task.from_json(
    {
        "uuid": "t",
        "name": "render",
        "state": "Success",
        "poolUuid": "p",
        "instanceCount": 2,
        "creationDate": "2026-01-01T00:00:00Z",
        "endDate": "0001-01-01T00:00:00Z",
        "status": {"executionTimeSec": 12.5, "succeededRange": "0-1"},
    }
)
POOL = Pool.from_json(
    {"uuid": "p", "name": "pool", "state": "Closing", "multiSlotsSettings": {"slotsPerNode": 2}}
)


def assert_valid(name: str, facet: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(SCHEMAS[name]).validate({**BASE, **facet})


def test_places_are_those_of_the_buckets_and_each_appears_once() -> None:
    specs = [
        TaskSpec(
            name="a",
            command="true",
            resource_buckets=["scenes", {"bucket": "more", "prefix": "in/"}],
            result_bucket="frames",
            results_prefix="out/",
        ),
        TaskSpec(name="b", command="true", resource_buckets=["scenes"], result_bucket="frames"),
        PoolSpec(name="c", resource_buckets=["tools"]),
    ]
    assert facets.inputs_of(specs) == [Place("scenes"), Place("more", "in"), Place("tools")]
    assert facets.outputs_of(specs) == [Place("frames", "out"), Place("frames")]
    assert len(facets.inputs_of(PoolSpec(name="p", resource_buckets=[f"b{n}"]) for n in range(500))) == 100


IMAGES = {
    "as image": ({"image": "ubuntu:24.04"}, "ubuntu:24.04"),
    "as constants": ({"constants": {"DOCKER_REPO": "library/ubuntu", "DOCKER_TAG": "1"}}, "library/ubuntu:1"),
    "without a tag": ({"constants": {"DOCKER_REPO": "library/ubuntu"}}, "library/ubuntu"),
    "that of the pool": ({}, None),
}


@pytest.mark.parametrize(("values", "image"), IMAGES.values(), ids=IMAGES)
def test_the_image_is_named(values: dict[str, Any], image: str | None) -> None:
    spec = TaskSpec(name="a", command="true", **values)
    assert facets.image_of(spec) == image
    facet = facets.container(spec, {"command": facets.command_of(spec)})
    assert facet.get("image") == image
    assert facet["command"] == "true"
    assert_valid("QarnotContainerJobFacet", facet)


def test_facets_have_their_schemas_and_nothing_that_is_unknown() -> None:
    task = facets.task_facet(TASK, "adopted", "")
    assert task["execution_seconds"] == 12.5
    assert (task["decision"], task["instances"], task["succeeded"], task["failed"]) == ("adopted", 2, 2, 0)
    assert not task.keys() & {"ended", "console"}
    assert_valid("QarnotTaskRunFacet", task)
    assert_valid("QarnotPoolRunFacet", facets.pool_facet(POOL, None, "https://c.example/pools/p"))
    cost = Cost(euros=0.5, energy_wh=None, node_seconds=3.0, used_node_seconds=1.0)
    facet = facets.cost_facet(cost.to_json(), "execution")
    assert facet["euros"] == 0.5
    assert facet["idle_node_seconds"] == 2.0
    assert "energy_wh" not in facet
    assert_valid("QarnotCostRunFacet", facet)
    many = facets.tasks_facet({number: f"u{number:03}" for number in range(500)}, {500: None}, 501)
    assert (many["total"], many["succeeded"], many["failed"], len(many["uuids"])) == (501, 500, 1, 100)
    assert_valid("QarnotTaskRunFacet", many)


def test_a_facet_with_another_field_is_not_valid() -> None:
    with pytest.raises(jsonschema.ValidationError):
        assert_valid("QarnotCostRunFacet", {"scope": "pool", "dollars": 1})


def test_secrets_are_masked_everywhere_before_a_text_is_shortened() -> None:
    secret = "s3cret-value"
    mask = facets.masking([secret, "abc"], lambda text: text.replace("known", "***"))
    report = facets.Report(
        inputs=[Place("b", f"x/{secret}")],
        job={"qarnot_container": {"command": f"run {secret} abc known", "items": 3}},
        run={"qarnot_task": {"uuids": [secret], "name": "n" * 3_995 + secret}},
    ).masked(mask)
    text = repr(report)
    assert secret not in text
    assert secret[:5] not in text, "half of a secret is no longer recognized"
    assert report.job["qarnot_container"] == {"command": "run *** abc ***", "items": 3}
    assert report.inputs == [Place("b", "x/***")]
    assert len(report.run["qarnot_task"]["name"]) <= facets.MAX_TEXT


@pytest.mark.parametrize("known_by", ["masking", "redact"])
def test_a_secret_with_an_apostrophe_is_masked_in_a_quoted_command(known_by: str) -> None:
    secret, hide = "it's1234x", known_by == "redact"
    mask = facets.masking(
        [] if hide else [secret], lambda text: text.replace(secret, "***") if hide else text
    )
    assert mask(shlex.join(["login", secret])) == "login '***'"
    assert mask("echo 'it'\"'\"'s another'") == "echo 'it'\"'\"'s another'"


def test_of_thousands_of_commands_the_different_places_are_read() -> None:
    plain: list[Any] = [f"echo {number}" for number in range(5_000)]
    other = {"command": "true", "result_bucket": "others", "resourceBuckets": ["scenes"]}
    operator = QarnotRunTasksOperator(task_id="many", commands=[*plain, other, other], result_bucket="frames")
    specs = operator._given_specs()
    assert len(specs) == 2
    assert facets.outputs_of(specs) == [Place("frames"), Place("others")]
    assert facets.inputs_of(specs) == [Place("scenes")]
    assert operator._describe_work(specs[0]) == {"command": "echo 0", "items": 5_002}


def test_an_array_shows_its_first_command() -> None:
    array = QarnotRunArrayOperator(task_id="array", commands=[{"command": ["echo", "a b"]}, "true"])
    (spec,) = array._given_specs()
    assert array._describe_work(spec) == {"command": "echo 'a b'", "items": 2}
