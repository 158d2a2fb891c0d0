from __future__ import annotations

import json
from datetime import time, timedelta
from typing import Any

import pytest

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.api.specs import (
    MAX_TAGS,
    OUR_TAGS,
    AlwaysPeriod,
    Elastic,
    FixedPolicy,
    ForcedConstant,
    HardwareConstraint,
    ManagedTasksQueuePolicy,
    NetworkRule,
    PoolSpec,
    Privileges,
    ResourceBucket,
    RetrySettings,
    Scaling,
    SecretsAccess,
    TaskDependency,
    TaskSpec,
    WeeklyPeriod,
    image_constants,
)

JOB, PROJECT, FIRST, SECOND = (f"{number:08x}-0000-4000-8000-000000000000" for number in range(4))
MANAGED = ManagedTasksQueuePolicy(max_total_slots=4, name="m")


def test_the_smallest_specs():
    assert PoolSpec(name="p").to_json() == {"name": "p", "profile": "docker-batch", "instanceCount": 1}
    assert TaskSpec(name="t").to_json() == {"name": "t", "profile": "docker-batch", "instanceCount": 1}
    assert TaskSpec(name="t", pool="u").to_json() == {"name": "t", "poolUuid": "u", "instanceCount": 1}
    assert TaskSpec(name="t", job=JOB).to_json() == {"name": "t", "jobUuid": JOB, "instanceCount": 1}


FULL_POOL = PoolSpec(
    name="p",
    shortname="a-1",
    profile="docker-batch",
    instance_count=4,
    constants={"A": "1"},
    forced_constants=[ForcedConstant(constant_name="C", forced_value="v", access="readonly")],
    constraints={"site": "x"},
    hardware_constraints=[HardwareConstraint.minimum_cores(4), HardwareConstraint.gpu()],
    resource_buckets=[
        "in",
        ResourceBucket(bucket="b", prefix="x/", strip_prefix="x/", cache_ttl=timedelta(minutes=1)),
    ],
    tags=["a", "b"],
    labels={"k": "v"},
    auto_delete_on_completion=True,
    completion_ttl=timedelta(days=7, seconds=5),
    scheduling_type="reserved",
    targeted_reservation_name="r",
    default_resources_cache_ttl=timedelta(seconds=1.5),
    privileges=Privileges(export_api_and_storage_credentials_in_environment=True),
    max_time_queue=timedelta(minutes=2),
    secrets_access=SecretsAccess(keys=["k"], prefixes=["p/"]),
    forced_network_rules=[NetworkRule(inbound=True, proto="TCP", port="22")],
    project=PROJECT,
    slots_per_node=2,
    preparation_command="echo hi",
    default_retry=RetrySettings(max_total_retries=3),
    task_default_wait_for_pool_resources_synchronization=True,
)


def test_every_field_of_a_pool_has_its_wire_form():
    assert FULL_POOL.to_json() == {
        "name": "p",
        "shortname": "a-1",
        "profile": "docker-batch",
        "instanceCount": 4,
        "constants": [{"key": "A", "value": "1"}],
        "forcedConstants": [{"constantName": "C", "forcedValue": "v", "access": "ReadOnly"}],
        "constraints": [{"key": "site", "value": "x"}],
        "hardwareConstraints": [
            {"discriminator": "MinimumCoreHardwareConstraint", "coreCount": 4},
            {"discriminator": "GpuHardwareConstraint"},
        ],
        "advancedResourceBuckets": [
            {"bucketName": "in"},
            {
                "bucketName": "b",
                "filtering": {"prefixFiltering": {"prefix": "x/"}},
                "resourcesTransformation": {"stripPrefix": {"prefix": "x/"}},
                "cacheTTLSec": 60,
            },
        ],
        "tags": ["a", "b"],
        "labels": {"k": "v"},
        "autoDeleteOnCompletion": True,
        "completionTimeToLive": "7.00:00:05",
        "schedulingType": "Reserved",
        "targetedReservationName": "r",
        "defaultResourcesCacheTTLSec": 2,
        "privileges": {"exportApiAndStorageCredentialsInEnvironment": True},
        "maxTimeQueueSeconds": 120,
        "secretsAccessRights": {"bySecret": [{"key": "k"}], "byPrefix": [{"prefix": "p/"}]},
        "forcedNetworkRules": [{"inbound": True, "proto": "tcp", "port": "22"}],
        "projectUuid": PROJECT,
        "multiSlotsSettings": {"slotsPerNode": 2},
        "preparationTask": {"commandLine": "echo hi"},
        "defaultRetrySettings": {"maxTotalRetries": 3, "maxPerInstanceRetries": None},
        "taskDefaultWaitForPoolResourcesSynchronization": True,
    }


FULL_TASK = TaskSpec(
    name="t",
    job=JOB,
    ranges="0-2,5",
    command="echo ${INSTANCE_ID}",
    image="ghcr.io/org/app:1.2",
    retry=RetrySettings(max_per_instance_retries=2),
    result_bucket="out",
    results_prefix="run/",
    results_whitelist=".*txt",
    results_blacklist="tmp",
    results_cache_ttl=timedelta(hours=1),
    snapshot_bucket="snap",
    snapshot_prefix="s/",
    snapshot_whitelist="a",
    snapshot_blacklist="b",
    upload_results_on_cancellation=False,
    wait_for_pool_resources_synchronization=True,
    dependencies=[FIRST, TaskDependency(task=SECOND, conditions=["Success"])],
)


def test_every_field_of_a_task_has_its_wire_form():
    assert FULL_TASK.to_json() == {
        "name": "t",
        "jobUuid": JOB,
        "advancedRanges": "0-2,5",
        "constants": [
            {"key": "DOCKER_REPO", "value": "org/app"},
            {"key": "DOCKER_TAG", "value": "1.2"},
            {"key": "DOCKER_SRV", "value": "https://ghcr.io"},
            {"key": "DOCKER_CMD", "value": "echo ${INSTANCE_ID}"},
        ],
        "retrySettings": {"maxTotalRetries": None, "maxPerInstanceRetries": 2},
        "resultBucket": "out",
        "resultsBucketPrefix": "run/",
        "resultsWhitelist": ".*txt",
        "resultsBlacklist": "tmp",
        "resultsCacheTTLSec": 3600,
        "snapshotBucket": "snap",
        "snapshotBucketPrefix": "s/",
        "snapshotWhitelist": "a",
        "snapshotBlacklist": "b",
        "uploadResultsOnCancellation": False,
        "waitForPoolResourcesSynchronization": True,
        "dependencies": {
            "advancedDependsOn": [
                {"taskUuid": FIRST, "taskFinalStateCondition": None},
                {"taskUuid": SECOND, "taskFinalStateCondition": ["success"]},
            ]
        },
    }
    assert FULL_TASK.instance_ids() == {0, 1, 2, 5}


def test_plain_dependencies_take_the_plain_form():
    assert TaskSpec(name="t", job=JOB, dependencies=[FIRST]).to_json()["dependencies"] == {
        "dependsOn": [FIRST]
    }


@pytest.mark.parametrize("spec", [FULL_POOL, FULL_TASK], ids=["pool", "task"])
def test_the_wire_form_can_be_read_back(spec):
    wire = spec.to_json()
    again = type(spec).from_mapping(wire)
    assert again.to_json() == wire
    pascal = {key[0].upper() + key[1:]: value for key, value in wire.items()}
    assert type(spec).from_mapping(pascal).to_json() == wire
    as_text = {
        key: json.dumps(value) if isinstance(value, (dict, list)) else value for key, value in wire.items()
    }
    assert type(spec).from_mapping(as_text).to_json() == wire


def test_elastic_and_scaling():
    elastic = PoolSpec(name="p", elastic=Elastic(max_total_slots=5, resize_period=timedelta(seconds=90)))
    assert elastic.to_json()["elasticProperty"] == {
        "isElastic": True,
        "minTotalSlots": 0,
        "maxTotalSlots": 5,
        "minIdleSlots": 0,
        "resizePeriod": 90,
        "rampResizeFactor": 0.4,
        "minIdleTimeSeconds": 90,
    }
    assert "instanceCount" not in elastic.to_json()
    weekly = WeeklyPeriod(name="days", days=["Monday", 2], start_time_utc="08:00", end_time_utc=time(18, 30))
    scaled = PoolSpec(
        name="p",
        scaling=Scaling(policies=[FixedPolicy(slots_count=2, name="day", enabled_periods=[weekly]), MANAGED]),
    )
    assert scaled.to_json()["scaling"] == {
        "policies": [
            {
                "type": "Fixed",
                "slotsCount": 2,
                "name": "day",
                "enabledPeriods": [
                    {
                        "type": "Weekly",
                        "days": ["monday", "tuesday"],
                        "startTimeUtc": "08:00:00",
                        "endTimeUtc": "18:30:00",
                        "name": "days",
                    }
                ],
            },
            {
                "type": "ManagedTasksQueue",
                "minTotalSlots": 0,
                "maxTotalSlots": 4,
                "minIdleSlots": 0,
                "minIdleTimeSeconds": 90,
                "scalingFactor": 0.2,
                "name": "m",
                "enabledPeriods": [{"type": "Always", "name": "always"}],
            },
        ]
    }
    assert Scaling.of(json.dumps(scaled.to_json()["scaling"])) == scaled.scaling
    assert Scaling.of(MANAGED).policies == (MANAGED,)
    assert Scaling.of([MANAGED]).policies == (MANAGED,)


def test_an_inert_elastic_block_is_never_sent():
    spec = PoolSpec.from_mapping(
        {"name": "p", "elasticProperty": {"isElastic": False, "maxTotalSlots": 1}, "scaling": MANAGED}
    )
    assert spec.elastic is None
    assert "elasticProperty" not in spec.to_json()
    on = PoolSpec.from_mapping({"name": "p", "elasticProperty": {"IsElastic": "true", "MaxTotalSlots": "3"}})
    assert on.elastic is not None
    assert on.elastic.max_total_slots == 3


def test_rendered_templates_are_as_good_as_real_types():
    spec = PoolSpec.from_mapping(
        {
            "name": "p",
            "instance_count": "4",
            "slots_per_node": "2",
            "auto_delete_on_completion": "True",
            "completion_ttl": "P7D",
            "max_time_queue": "00:10:00",
            "default_resources_cache_ttl": "90",
            "constants": "{'N': 4, 'ON': True, 'F': 0.5}",
            "tags": '["a", "b"]',
            "default_retry": '{"max_total_retries": "1"}',
            "labels": None,
        }
    )
    assert spec == PoolSpec(
        name="p",
        instance_count=4,
        slots_per_node=2,
        auto_delete_on_completion=True,
        completion_ttl=timedelta(days=7),
        max_time_queue=timedelta(minutes=10),
        default_resources_cache_ttl=timedelta(seconds=90),
        constants={"N": "4", "ON": "true", "F": "0.5"},
        tags=("a", "b"),
        default_retry=RetrySettings(max_total_retries=1),
    )


@pytest.mark.parametrize(
    ("image", "constants"),
    [
        ("ubuntu", {"DOCKER_REPO": "library/ubuntu"}),
        ("ubuntu:22.04", {"DOCKER_REPO": "library/ubuntu", "DOCKER_TAG": "22.04"}),
        ("org/app:1", {"DOCKER_REPO": "org/app", "DOCKER_TAG": "1"}),
        ("ghcr.io/org/app", {"DOCKER_REPO": "org/app", "DOCKER_SRV": "https://ghcr.io"}),
        (
            "localhost:5000/a/b:c",
            {"DOCKER_REPO": "a/b", "DOCKER_TAG": "c", "DOCKER_SRV": "https://localhost:5000"},
        ),
        ("docker.io/alpine", {"DOCKER_REPO": "library/alpine", "DOCKER_SRV": "https://registry-1.docker.io"}),
    ],
)
def test_images(image, constants):
    assert image_constants(image) == constants
    sent = {pair["key"]: pair["value"] for pair in PoolSpec(name="p", image=image).to_json()["constants"]}
    assert sent == {"DOCKER_TAG": "latest", **constants}


def test_a_tag_or_registry_the_image_does_not_name_may_be_a_constant():
    spec = TaskSpec(name="t", image="ubuntu", constants={"DOCKER_TAG": "24.04", "DOCKER_SRV": "https://my"})
    assert spec.all_constants() == {
        "DOCKER_TAG": "24.04",
        "DOCKER_SRV": "https://my",
        "DOCKER_REPO": "library/ubuntu",
    }


# Each refusal names its field and says what to do.
POOL_REFUSALS: list[tuple[dict[str, Any], str, str]] = [
    ({"name": ""}, "name", "is empty"),
    ({"name": ["x"]}, "name", "not text"),
    ({"name": "x" * 2048}, "name", "under 2048"),
    ({"shortname": "a_b"}, "shortname", "letters, digits and hyphens"),
    ({"shortname": "-a"}, "shortname", "start and end"),
    ({"shortname": "a-"}, "shortname", "start and end"),
    ({"shortname": ""}, "shortname", "start and end"),
    ({"instance_count": -1}, "instance_count", "is -1"),
    ({"instance_count": 0}, "instance_count", "1 or more"),
    ({"instance_count": "None"}, "instance_count", "not a whole number"),
    ({"instance_count": ""}, "instance_count", "not a whole number"),
    ({"instance_count": "{{ params.n }}"}, "instance_count", "not a whole number"),
    ({"instance_count": True}, "instance_count", "not a whole number"),
    ({"instance_count": 1.5}, "instance_count", "not a whole number"),
    ({"slots_per_node": 0}, "slots_per_node", "1 or more"),
    ({"profile": " "}, "profile", "is empty"),
    ({"tags": ["x"] * 11}, "tags", "Give at most 7"),
    ({"tags": ["x" * 512]}, "tags", "under 512"),
    ({"tags": [""]}, "tags", "is empty"),
    ({"tags": "a,b"}, "tags", "not a list"),
    ({"constants": {"A B": "1"}}, "constants", "Keys take"),
    ({"constants": {"A": None}}, "constants", "not text"),
    ({"constants": {"A": "x" * 2049}}, "constants", "Qarnot takes 2048"),
    ({"constants": {f"C{i}": "1" for i in range(51)}}, "constants", "A pool takes 50"),
    ({"constants": "nonsense"}, "constants", "not a mapping"),
    ({"constants": {"DOCKER_REPO": "a"}, "image": "b"}, "constants", "image= sets too"),
    ({"image": "Not An Image"}, "image", "[registry/]repository[:tag]"),
    ({"image": "a@sha256:00"}, "image", "takes a tag"),
    ({"resource_buckets": ["b"] * 101}, "resource_buckets", "at most 100"),
    ({"resource_buckets": "bucket"}, "resource_buckets", "not a list"),
    ({"resource_buckets": [{"prefix": "x"}]}, "resource_buckets[0].bucket", "is missing"),
    (
        {"resourceBuckets": ["a"], "advancedResourceBuckets": [{"bucketName": "a"}]},
        "resource_buckets",
        "given twice",
    ),
    ({"completion_ttl": "soon"}, "completion_ttl", "not a duration"),
    ({"completion_ttl": timedelta(seconds=-1)}, "completion_ttl", "negative"),
    ({"scheduling_type": "spot"}, "scheduling_type", "Flex, OnDemand, Reserved"),
    ({"targeted_reservation_name": "r"}, "targeted_reservation_name", "scheduling_type='Reserved'"),
    (
        {
            "targeted_reservation_name": "r",
            "targeted_reserved_machine_key": "k",
            "scheduling_type": "Reserved",
        },
        "targeted_reserved_machine_key",
        "Keep targeted_reservation_name",
    ),
    ({"auto_delete_on_completion": "perhaps"}, "auto_delete_on_completion", "neither true nor false"),
    ({"elastic": Elastic(max_total_slots=2), "scaling": MANAGED}, "elastic", "Keep scaling"),
    ({"elastic": Elastic(max_total_slots=2), "instance_count": 2}, "instance_count", "ignores it"),
    ({"scaling": MANAGED, "instance_count": 2}, "instance_count", "ignores it"),
    (
        {"elastic": {"min_total_slots": 3, "max_total_slots": 2}},
        "elastic.min_total_slots",
        "more than max_total_slots",
    ),
    (
        {"elastic": {"min_idle_slots": 3, "max_total_slots": 2}},
        "elastic.min_idle_slots",
        "more than max_total_slots",
    ),
    (
        {"elastic": {"max_total_slots": 2, "ramp_resize_factor": 1.5}},
        "elastic.ramp_resize_factor",
        "from 0 up to 1",
    ),
    ({"elastic": {"max_total_slots": 2, "resize_period": 0}}, "elastic.resize_period", "is zero"),
    ({"elastic": {}}, "elastic.max_total_slots", "is missing"),
    ({"elastic": "yes"}, "elastic", "mapping of its fields"),
    ({"scaling": {"policies": []}}, "scaling.policies", "is empty"),
    ({"scaling": [MANAGED, MANAGED]}, "scaling.policies", "'m' twice"),
    ({"scaling": [{"type": "Magic"}]}, "scaling.policies", "ManagedTasksQueue, Fixed"),
    (
        {"scaling": [{"type": "ManagedTasksQueue", "maxTotalSlots": 2, "scalingFactor": 0}]},
        "scaling.policies[0].scaling_factor",
        "above 0 up to 1",
    ),
    (
        {"scaling": [{"type": "ManagedTasksQueue", "maxTotalSlots": 2, "minTotalSlots": 3}]},
        "scaling.policies[0].min_total_slots",
        "more than max_total_slots",
    ),
    ({"scaling": [{"type": "Fixed", "slotsCount": -1}]}, "scaling.policies[0].slots_count", "0 or more"),
    (
        {"hardware_constraints": [{"discriminator": "Magic"}]},
        "hardware_constraints[0].discriminator",
        "Known are",
    ),
    (
        {"hardware_constraints": [{"discriminator": "MinimumCoreHardwareConstraint"}]},
        "hardware_constraints[0].value",
        "needs coreCount",
    ),
    (
        {"hardware_constraints": [{"discriminator": "GpuHardwareConstraint", "value": 3}]},
        "hardware_constraints[0].value",
        "takes no value",
    ),
    (
        {"forced_network_rules": [{"inbound": True, "proto": "icmp"}]},
        "forced_network_rules[0].proto",
        "tcp, udp",
    ),
    ({"privileges": "{}x"}, "privileges", "mapping of its fields"),
    ({"result_bucket": "out"}, "result_bucket", "give result_bucket to the task"),
    ({"resultBucket": "out"}, "resultBucket", "give result_bucket to the task"),
    ({"command": "echo"}, "command", "give it to a task"),
    ({"ranges": "0-2"}, "ranges", "a pool has instance_count"),
    ({"instance_cuont": 2}, "instance_cuont", "Did you mean 'instance_count'?"),
    ({"zzzzz": 2}, "zzzzz", "It has "),
]

TASK_REFUSALS: list[tuple[dict[str, Any], str, str]] = [
    ({"instance_count": 0}, "instance_count", "1 or more"),
    ({"instance_count": 2, "ranges": "0-2"}, "ranges", "Keep one"),
    ({"ranges": "2-0"}, "ranges", "ends before it starts"),
    ({"ranges": ""}, "ranges", "names no instance"),
    ({"ranges": "a"}, "ranges", "'0-2,4,7-9'"),
    ({"pool": "p", "job": JOB}, "pool", "Keep job"),
    ({"pool": ""}, "pool", "is empty"),
    ({"pool": "p", "profile": "docker-batch"}, "profile", "the pool's profile is used"),
    (
        {"pool": "p", "hardware_constraints": [HardwareConstraint.ssd()]},
        "hardware_constraints",
        "Give them to the pool",
    ),
    ({"pool": "p", "secrets_access": SecretsAccess(keys=["a"])}, "secrets_access", "Give it to the pool"),
    ({"pool": "p", "project": PROJECT}, "project", "pool's project"),
    ({"dependencies": [FIRST]}, "dependencies", "Put the task in a job"),
    (
        {"job": JOB, "dependencies": [{"task": FIRST, "conditions": ["maybe"]}]},
        "dependencies[0].conditions",
        "success, failure, cancelled",
    ),
    ({"max_retries_per_instance": 1, "retry": {}}, "max_retries_per_instance", "Keep retry"),
    ({"max_retries_per_instance": -1}, "max_retries_per_instance", "0 or more"),
    ({"retry": {"max_total_retries": -1}}, "retry.max_total_retries", "0 or more"),
    ({"command": "a", "constants": {"DOCKER_CMD": "b"}}, "constants", "command= sets too"),
    ({"command": "x" * 2049}, "command", "put a script in a resource bucket"),
    ({"constants": {f"C{i}": "1" for i in range(151)}}, "constants", "A task takes 150"),
    ({"constants": {f"C{i}": "1" for i in range(150)}, "command": "a"}, "constants", "A task takes 150"),
    ({"results_whitelist": "x" * 2048}, "results_whitelist", "under 2048"),
    ({"result_bucket": ""}, "result_bucket", "is empty"),
    ({"scaling": MANAGED}, "scaling", "belongs to the pool"),
    ({"qarnot_pool": "p"}, "qarnot_pool", "'pool'"),
    ({"slots_per_node": 2}, "slots_per_node", "belong to the pool"),
]


def _refusals():
    for spec, cases in ((PoolSpec, POOL_REFUSALS), (TaskSpec, TASK_REFUSALS)):
        for values, field, says in cases:
            yield pytest.param(spec, values, field, says, id=f"{spec.kind}-{field}-{says[:20]}")


@pytest.mark.parametrize(("spec", "values", "field", "says"), _refusals())
def test_a_refusal_names_the_field_and_the_remedy(spec, values, field, says):
    with pytest.raises(QarnotInvalidSpecError) as caught:
        spec.from_mapping({"name": "x", **values})
    assert caught.value.field == field
    assert says in str(caught.value)
    assert caught.value.remedy
    assert len(str(caught.value)) < 1000


def test_a_missing_name_is_refused():
    with pytest.raises(QarnotInvalidSpecError, match="name is missing"):
        PoolSpec.from_mapping({})


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"days": ["noday"]}, "English names"),
        ({"days": [7]}, "English names"),
        ({"days": []}, "at least one day"),
        ({"start_time_utc": "25:00"}, "not a time of day"),
        ({"start_time_utc": "08:00+02:00"}, "in UTC"),
        ({"end_time_utc": "08:00"}, "two different times"),
    ],
)
def test_weekly_periods_are_checked(values, says):
    good = {"name": "w", "days": ["monday"], "start_time_utc": "08:00", "end_time_utc": "18:00"}
    with pytest.raises(QarnotInvalidSpecError, match=says):
        WeeklyPeriod.from_mapping({**good, **values})


def test_periods_of_a_policy_have_their_own_names():
    with pytest.raises(QarnotInvalidSpecError, match="'always' twice"):
        FixedPolicy(slots_count=1, enabled_periods=[AlwaysPeriod(), AlwaysPeriod()])


def test_operators_keep_room_for_their_own_tags():
    assert (MAX_TAGS, OUR_TAGS) == (10, 3)


SECRETS = {"QARNOT_SECRET__KEY": "hunter2-a", "DOCKER_REGISTRY_PASSWORD": "hunter2-b", "OPEN": "seen"}


def test_secrets_are_sent_and_never_shown():
    spec = TaskSpec(name="t", constants=SECRETS)
    assert "hunter2" not in repr(spec)
    assert "seen" in repr(spec)
    assert {pair["value"] for pair in spec.to_json()["constants"]} == set(SECRETS.values())
    with pytest.raises(QarnotInvalidSpecError) as caught:
        TaskSpec(name="t", constants={"QARNOT_SECRET__KEY": "hunter2" * 400})
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(ForcedConstant(constant_name="P", forced_value="hunter2"))


def test_fingerprints_tell_what_is_asked_for_and_not_how_it_is_called():
    spec = PoolSpec(name="p", instance_count=2, constants={"A": "1", "B": "2"})
    same = PoolSpec(
        name="other",
        shortname="x",
        tags=["t"],
        labels={"l": "1"},
        instance_count=2,
        constants={"B": "2", "A": "1"},
    )
    assert spec.fingerprint() == same.fingerprint()
    other = PoolSpec(name="p", instance_count=3, constants={"A": "2", "B": "2"}, slots_per_node=2)
    assert spec.fingerprint() != other.fingerprint()
    assert spec.fingerprint(exclude=["constants", "instance_count", "slots_per_node"]) == other.fingerprint(
        exclude=["constants", "instance_count", "slots_per_node"]
    )


def test_the_fingerprint_is_the_same_in_every_process_and_release():
    # Labels of running pools carry it: a change here makes every shared pool look like another one.
    assert PoolSpec(name="p", instance_count=2, constants={"A": "1"}).fingerprint() == "3059bd95d127e342"


def test_a_rotated_password_changes_no_fingerprint():
    one, two = (TaskSpec(name="t", constants={"DOCKER_REGISTRY_PASSWORD": word}) for word in ("a", "b"))
    assert one.fingerprint() == two.fingerprint()
    assert one.fingerprint() != TaskSpec(name="t").fingerprint()


def test_the_ids_of_the_openlineage_runs_of_a_try_change_no_fingerprint():
    ids = [
        {"OPENLINEAGE_PARENT_ID": f"n/j/{number}", "OPENLINEAGE_ROOT_PARENT_ID": "n/d/1"} for number in (1, 2)
    ]
    plain = TaskSpec(name="t", constants={"A": "1"}).fingerprint()
    assert [TaskSpec(name="t", constants={"A": "1", **one}).fingerprint() for one in ids] == [plain, plain]
    assert TaskSpec(name="t", constants=ids[0]).fingerprint() == TaskSpec(name="t").fingerprint()


def test_single_fields_for_updates_and_clones():
    assert PoolSpec.encode_fields({"tags": ["a"], "constants": {"A": 1}, "instanceCount": "2"}) == {
        "tags": ["a"],
        "constants": [{"key": "A", "value": "1"}],
        "instanceCount": 2,
    }
    with pytest.raises(QarnotInvalidSpecError, match="Use the constants"):
        TaskSpec.encode_fields({"command": "x"})
    with pytest.raises(QarnotInvalidSpecError, match="Did you mean 'tags'"):
        PoolSpec.encode_fields({"tag": ["x"]})


def test_specs_are_frozen():
    spec = PoolSpec(name="p")
    with pytest.raises(AttributeError):
        spec.name = "q"  # type: ignore[misc]


def test_hardware_constraints_by_name():
    made = [
        HardwareConstraint.minimum_cores(1),
        HardwareConstraint.maximum_cores(2),
        HardwareConstraint.minimum_ram(1024),
        HardwareConstraint.maximum_ram(2048),
        HardwareConstraint.minimum_ram_per_core(0.5),
        HardwareConstraint.maximum_ram_per_core(4),
        HardwareConstraint.specification("8c-32g-amd-rz3700x"),
        HardwareConstraint.cpu_model("AMD"),
        HardwareConstraint.gpu(),
        HardwareConstraint.no_gpu(),
        HardwareConstraint.ssd(),
        HardwareConstraint.no_ssd(),
    ]
    for one in made:
        assert HardwareConstraint.from_mapping(one.to_json()) == one
    assert [one.to_json().get("minimumMemoryGBCoreRatio") for one in made if one.value == 0.5] == [0.5]
    unknown = {"discriminator": "QuantumHardwareConstraint", "qubits": 3}
    assert HardwareConstraint.from_json(unknown).to_json() == unknown


# --- what only the service, or the end of the work, would refuse


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("b/out", "Write 'b' and the field results_prefix='out/'"),
        ("b/out/day/", "Write 'b' and the field results_prefix='out/day/'"),
        ("b/", "Write 'b'."),
        ("qarnot://conn@b/", "Write 'b'."),
        ("qarnot://b/out", "Write 'b' and the field results_prefix='out/'"),
        ("S3://b/out", "Write 'b' and the field results_prefix='out/'"),
        ("https://storage.qarnot.com/b/out", "Write 'storage.qarnot.com' and"),
        ("/b", "Use at most 63 letters"),
        ("a b", "Use at most 63 letters"),
        (" b", "Use at most 63 letters"),
        ("b\n", "Use at most 63 letters"),
        ("b" * 64, "Use at most 63 letters"),
        ("-b", "Use at most 63 letters"),
        ("été", "Use at most 63 letters"),
        ("b?", "Use at most 63 letters"),
    ],
)
def test_a_bucket_is_no_path_and_no_url(name: str, remedy: str) -> None:
    for field, other in (("result_bucket", "results_prefix"), ("snapshot_bucket", "snapshot_prefix")):
        with pytest.raises(QarnotInvalidSpecError) as caught:
            TaskSpec(name="t", **{field: name})
        assert caught.value.field == field
        assert remedy.replace("results_prefix", other) in str(caught.value)
    for spec in (TaskSpec, PoolSpec):
        for given in (name, {"bucket": name}, {"bucketName": name}):
            with pytest.raises(QarnotInvalidSpecError) as caught:
                spec(name="t", resource_buckets=[given])
            assert caught.value.field == "resource_buckets[0].bucket"
            if "results_prefix" in remedy:
                assert "'prefix': 'out" in str(caught.value)
    with pytest.raises(QarnotInvalidSpecError):
        TaskSpec.encode_fields({"result_bucket": name})


@pytest.mark.parametrize("name", ["b", "my-bucket.2", "0b", "My_Bucket", "b" * 63, 20260101, {"bucket": "b"}])
def test_names_of_buckets_that_storage_may_take_pass(name: Any) -> None:
    assert TaskSpec(name="t", result_bucket=name).result_bucket in (name, str(name), "b")


@pytest.mark.parametrize(
    "field",
    [
        "results_prefix",
        "results_whitelist",
        "results_blacklist",
        "snapshot_prefix",
        "snapshot_whitelist",
        "snapshot_blacklist",
    ],
)
def test_where_and_which_files_means_nothing_without_a_bucket(field: str) -> None:
    bucket = f"{field.split('_')[0].replace('results', 'result')}_bucket"
    with pytest.raises(QarnotInvalidSpecError, match=f"{field} is given without {bucket}") as caught:
        TaskSpec(name="t", **{field: "x"})
    assert caught.value.field == field
    TaskSpec(name="t", **{field: "x", bucket: "b"})
    TaskSpec(name="t", **{field: "x", "result_bucket": "b"})


def test_other_options_of_results_mean_nothing_without_a_bucket() -> None:
    for given in ({"results_cache_ttl": 60}, {"upload_results_on_cancellation": True}):
        with pytest.raises(QarnotInvalidSpecError, match="without result_bucket"):
            TaskSpec(name="t", **given)
    TaskSpec(name="t", upload_results_on_cancellation=False)


PATTERNS = ("results_whitelist", "results_blacklist", "snapshot_whitelist", "snapshot_blacklist")


@pytest.mark.parametrize(
    ("glob", "expression"),
    [
        ("*.png", r"\.png$"),
        ("out/*.png", r"out/[^/]*\.png$"),
        ("frame_*.exr", r"frame_[^/]*\.exr$"),
        ("**/*.csv", r"\.csv$"),
        ("out/**", "out/.*$"),
        ("*", ".*"),
        ("?.png", r"[^/]\.png$"),
        ("frame?.png", r"frame[^/]\.png$"),
        ("frame??.png", r"frame[^/][^/]\.png$"),
        ("frame_*_left.png", r"frame_[^/]*_left\.png$"),
        ("out/*/last.csv", r"out/[^/]*/last\.csv$"),
    ],
)
def test_a_glob_is_refused_with_the_expression_it_stands_for(glob: str, expression: str) -> None:
    for field in PATTERNS:
        with pytest.raises(QarnotInvalidSpecError, match="regular expression") as caught:
            TaskSpec(name="t", result_bucket="b", **{field: glob})
        assert caught.value.field == field
        assert repr(expression) in str(caught.value)
    TaskSpec(name="t", result_bucket="b", results_whitelist=expression)


@pytest.mark.parametrize("expression", ["(", "[a", ")", "a{2,1}", "x**", "+", "a{99999999999999}"])
def test_an_invalid_regular_expression_is_refused(expression: str) -> None:
    with pytest.raises(QarnotInvalidSpecError, match="regular expression"):
        TaskSpec(name="t", result_bucket="b", results_whitelist=expression)


@pytest.mark.parametrize(
    "expression",
    [".*", r"\.png$", r"^out/.*\.exr$", r"\d*.png", "[0-9]*.png", r"frame_.*\.exr", "a|b", "x+", "jpe?g$", "(ab)*.txt",
     "out/*", "a*b", r"\p{L}", "(?<name>x)", "(?i-s:x)", "${NAME}*.png", "${NAME}("],
)  # fmt: skip
def test_regular_expressions_of_any_dialect_pass(expression: str) -> None:
    for field in PATTERNS:
        spec = TaskSpec(name="t", result_bucket="b", **{field: expression})
        assert getattr(spec, field) == expression


@pytest.mark.parametrize("prefix", ["/", "/out/", "a//b", "a/../b", "./a", "..", "a\nb"])
def test_a_prefix_begins_keys_that_come_back(prefix: str) -> None:
    for given in (
        {"results_prefix": prefix},
        {"snapshot_prefix": prefix},
        {"resource_buckets": [{"bucket": "b", "prefix": prefix}]},
        {"resource_buckets": [{"bucket": "b", "strip_prefix": prefix}]},
    ):
        with pytest.raises(QarnotInvalidSpecError, match="prefix"):
            TaskSpec(name="t", result_bucket="b", **given)


def test_prefixes_that_keys_have_pass() -> None:
    for prefix in ("", "day", "day/", "a/b/frame-", " a", "..a", "${DAY}/"):
        TaskSpec(name="t", result_bucket="b", results_prefix=prefix)
    ResourceBucket(bucket="b", prefix="in/a/", strip_prefix="in/")
    ResourceBucket(bucket="b", strip_prefix="in/")
    with pytest.raises(QarnotInvalidSpecError, match="strip_prefix is 'out/'"):
        ResourceBucket(bucket="b", prefix="in/", strip_prefix="out/")


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"job": "nightly"}, "job"),
        ({"project": "films"}, "project"),
        ({"job": JOB, "dependencies": ["render"]}, "dependencies[0].task"),
        ({"job": JOB, "dependencies": [{"task": "render"}]}, "dependencies[0].task"),
    ],
)
def test_a_name_in_the_place_of_a_uuid_is_refused(given: dict[str, Any], field: str) -> None:
    with pytest.raises(QarnotInvalidSpecError, match="not a uuid") as caught:
        TaskSpec(name="t", **given)
    assert caught.value.field == field


def test_ranges_name_as_many_instances_as_a_task_may_have() -> None:
    assert len(TaskSpec(name="t", ranges="0-2047").instance_ids()) == 2048
    with pytest.raises(QarnotInvalidSpecError, match="2049 instances"):
        TaskSpec(name="t", ranges="0-2048")


def test_a_bucket_in_a_response_is_not_validated() -> None:
    for data in ({"bucketName": "b/out"}, "b/out"):
        assert ResourceBucket.from_json(data).bucket == "b/out"
    assert ResourceBucket.from_json({"bucketName": "b"}) == ResourceBucket(bucket="b")
