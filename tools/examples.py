"""An example and the unit of each parameter, for the reference. ``tests/docs/test_reference.py`` tries each example.

A key is the name of a parameter or field, or ``Class.name`` where the same name means something else. An example is
Python as in a DAG file. Each differs from the default.
"""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from types import SimpleNamespace
from typing import Any

from tools.docstrings import Undocumented

_WEEKLY = 'WeeklyPeriod(name="days", days=["monday"], start_time_utc="08:00", end_time_utc="18:00")'

#: Parameters of operators, sensors, the group, the decorator and environments.
PARAMETERS: dict[str, str] = {
    "accept_passed": "False",
    "allowed_lateness": "timedelta(hours=6)",
    "boot_time": "timedelta(seconds=90)",
    "bucket": '"scenes"',
    "cancel_on_kill": "False",
    "chunk_size": "50",
    "command": "\"sh -c 'sort *.txt > all.txt'\"",
    "commands": '["echo a", "echo b"]',
    "constants": '{"QUALITY": "high"}',
    "dag": "dag",
    "dag_id": '"nightly.warm"',
    "default_args": '{"retries": 2}',
    "defer_after": "timedelta(seconds=5)",
    "deferrable": "False",
    "delete_environments_after": "timedelta(days=7)",
    "delete_finished_after": "timedelta(days=2)",
    "elastic": '{"max_total_slots": 8}',
    "environment": '{"requirements": ["numpy==2.1.3"]}',
    "environment_bucket": '"environments"',
    "estimated_cost": "3.5",
    "existing": "True",
    "QarnotPoolIdleWatcher.existing": "False",
    "grace_period": "timedelta(minutes=5)",
    "group_by": '["tag"]',
    "group_id": '"nodes"',
    "idle_for": "timedelta(minutes=30)",
    "idle_timeout": "timedelta(minutes=30)",
    "image": '"alpine:3.22"',
    "instance_count": "4",
    "keep_warm": "timedelta(minutes=4)",
    "lead": "timedelta(minutes=10)",
    "linger": "0.05",
    "log_output": '"live"',
    "max_cost": "4.0",
    "max_in_flight": "64",
    "max_items": "500",
    "max_rows": "50",
    "max_run_cost": "20.0",
    "multiple_outputs": "True",
    "payload_bucket": '"payloads"',
    "period": "timedelta(days=7)",
    "poll_interval": "timedelta(minutes=5)",
    "pool_spec": '{"image": "alpine:3.22"}',
    "prefix": '"in/"',
    "python_callable": "my_function",
    "qarnot_conn_id": '"qarnot_research"',
    "qarnot_pool": "nodes.pool",
    "qarnot_task": "archive.output",
    "ready_slots": "2",
    "ready_when": '"PartiallyExecuting"',
    "registry_conn_id": '"my_registry"',
    "report_cost": "True",
    "report_only": "True",
    "resource_buckets": '["inputs"]',
    "result_bucket": '"outputs"',
    "scaling": '{"policies": [{"type": "Fixed", "slotsCount": 4}]}',
    "serializer": '"pickle"',
    "setup_retries": "1",
    "shared": '"nightly"',
    "since": '"2026-01-01"',
    "slots_per_node": "2",
    "states": '"Failure"',
    "sync_resources": "True",
    "tag": '"nightly"',
    "tags": '["nightly"]',
    "target_states": '"Closed"',
    "qarnot_task.image": '"python:3.13-slim"',
    "QarnotTaskSensor.target_states": '"FullyExecuting"',
    "task_spec": '{"tags": ["nightly"]}',
    "timeout": "timedelta(minutes=10)",
    "until": '"2026-01-02"',
    "value": "counts",
    "wait_for_completion": "False",
    "QarnotClosePoolOperator.wait_for_completion": "True",
    "wait_for_quota": "timedelta(minutes=30)",
    "wait_timeout": "timedelta(hours=2)",
    "warm_up": "False",
    "whitelist": 'r"\\.blend$"',
    "QarnotEnvironment.bucket": '"environments"',
    "QarnotEnvironment.modules": '["my_lib", "helpers.py"]',
    "QarnotEnvironment.python": '"3.13"',
    "QarnotEnvironment.requirements": '["pandas==2.2.3"]',
}

#: Fields of the specifications, beside those that are parameters.
FIELDS: dict[str, str] = {
    "auto_delete_on_completion": "True",
    "completion_ttl": "timedelta(days=2)",
    "constraints": '{"region": "eu"}',
    "default_resources_cache_ttl": "timedelta(hours=1)",
    "default_retry": "1",
    "dependencies": '["6ba7b810-9dad-41d1-80b4-00c04fd430c8"]',
    "forced_constants": '[{"constant_name": "DOCKER_USER", "forced_value": "1000"}]',
    "forced_network_rules": '[NetworkRule(inbound=True, proto="tcp", port="8888")]',
    "hardware_constraints": "[HardwareConstraint.minimum_ram(64_000)]",
    "ladder": '("Flex", "Flex", "OnDemand")',
    "job": '"6ba7b811-9dad-41d1-80b4-00c04fd430c8"',
    "labels": '{"team": "research"}',
    "max_retries_per_instance": "1",
    "max_time_queue": "timedelta(hours=6)",
    "name": '"render {{ ds }}"',
    "pool": '"6ba7b812-9dad-41d1-80b4-00c04fd430c8"',
    "preparation_command": '"mkdir -p cache"',
    "privileges": "Privileges(export_api_and_storage_credentials_in_environment=True)",
    "profile": '"docker-network"',
    "project": '"6ba7b813-9dad-41d1-80b4-00c04fd430c8"',
    "ranges": '"0-2,5"',
    "resource_buckets": '[ResourceBucket(bucket="inputs", prefix="today/")]',
    "results_blacklist": r'r"\.tmp$"',
    "results_cache_ttl": "timedelta(hours=1)",
    "results_prefix": '"{{ ds }}/"',
    "results_whitelist": r'r"\.png$"',
    "retry": "2",
    "return_file": "True",
    "scaling": "Scaling(policies=[ManagedTasksQueuePolicy(max_total_slots=8)])",
    "scheduling_type": '"OnDemand"',
    "secrets_access": 'SecretsAccess(keys=["vault/password"])',
    "shortname": '"render-nightly"',
    "skip_on_exit_code": "99",
    "snapshot_blacklist": r'r"\.log$"',
    "snapshot_bucket": '"snapshots"',
    "snapshot_every": "timedelta(minutes=10)",
    "snapshot_prefix": '"render/"',
    "snapshot_whitelist": r'r"\.blend$"',
    "targeted_reservation_name": '"spring"',
    "targeted_reserved_machine_key": '"8c-32g-amd-rz3700x"',
    "task_default_wait_for_pool_resources_synchronization": "True",
    "upload_results_on_cancellation": "True",
    "wait_for_pool_resources_synchronization": "True",
    "AlwaysPeriod.name": '"all day"',
    "Elastic.max_total_slots": "8",
    "Elastic.min_idle_slots": "1",
    "Elastic.min_idle_time": "timedelta(minutes=5)",
    "Elastic.min_total_slots": "1",
    "Elastic.ramp_resize_factor": "0.9",
    "Elastic.resize_period": "timedelta(minutes=2)",
    "FixedPolicy.enabled_periods": f"[{_WEEKLY}]",
    "FixedPolicy.name": '"four nodes"',
    "FixedPolicy.slots_count": "4",
    "ForcedConstant.access": '"ReadOnly"',
    "ForcedConstant.constant_name": '"DOCKER_USER"',
    "ForcedConstant.force_export_in_environment": "True",
    "ForcedConstant.forced_value": '"1000"',
    "HardwareConstraint.discriminator": '"MinimumCoreHardwareConstraint"',
    "HardwareConstraint.value": "16",
    "ManagedTasksQueuePolicy.enabled_periods": f"[{_WEEKLY}]",
    "ManagedTasksQueuePolicy.max_total_slots": "8",
    "ManagedTasksQueuePolicy.min_idle_slots": "1",
    "ManagedTasksQueuePolicy.min_idle_time": "timedelta(minutes=5)",
    "ManagedTasksQueuePolicy.min_total_slots": "1",
    "ManagedTasksQueuePolicy.name": '"follow the queue"',
    "ManagedTasksQueuePolicy.scaling_factor": "0.5",
    "NetworkRule.application_type": '"https"',
    "NetworkRule.description": '"the notebook"',
    "NetworkRule.forwarder": '"proxy"',
    "NetworkRule.inbound": "True",
    "NetworkRule.name": '"notebook"',
    "NetworkRule.port": '"8888"',
    "NetworkRule.priority": '"100"',
    "NetworkRule.proto": '"tcp"',
    "NetworkRule.public_host": '"example.com"',
    "NetworkRule.public_port": '"443"',
    "NetworkRule.to": '"192.0.2.1"',
    "NetworkRule.to_payload": "True",
    "NetworkRule.to_q_box": "False",
    "Privileges.export_api_and_storage_credentials_in_environment": "True",
    "ResourceBucket.bucket": '"inputs"',
    "ResourceBucket.cache_ttl": "timedelta(hours=1)",
    "ResourceBucket.prefix": '"today/"',
    "ResourceBucket.strip_prefix": '"today/"',
    "RetrySettings.max_per_instance_retries": "2",
    "RetrySettings.max_total_retries": "10",
    "Scaling.active_policy_name": '"nights"',
    "Scaling.policies": "[FixedPolicy(slots_count=4)]",
    "SecretsAccess.keys": '["vault/password"]',
    "SecretsAccess.prefixes": '["vault/"]',
    "TaskDependency.conditions": '["success"]',
    "TaskDependency.task": '"6ba7b810-9dad-41d1-80b4-00c04fd430c8"',
    "WeeklyPeriod.days": '["monday", "tuesday"]',
    "WeeklyPeriod.end_time_utc": "time(18)",
    "WeeklyPeriod.name": '"office hours"',
    "WeeklyPeriod.start_time_utc": '"08:00"',
}

#: Options of ``[qarnot]`` and ``[qarnot_executor]``, and fields of a connection.
SETTINGS: dict[str, str] = {
    "boot_seconds": "600",
    "ca_bundle": "/etc/ssl/certs/company.pem",
    "console_url": "https://console.example",
    "conn_id": "qarnot_research",
    "cost_warning_threshold": "0.5",
    "defer_after": "0",
    "keep_warm": "PT30M",
    "max_instance_count": "32",
    "min_poll_interval": "5",
    "namespace": "production",
    "openlineage_parent": "True",
    "poll_interval": "30",
    "pool": "small",
    "pools_page_connections": "qarnot_default,qarnot_research",
    "pools_page_refresh": "10",
    "pools_page_run_tab": "False",
    "profile": "docker-network-ssh",
    "proxy": "http://proxy.example:3128",
    "python": "/opt/venv/bin/python",
    "reference_datacenter": "AWS Frankfurt",
    "retries": "3",
    "slots": "64",
    "slots_per_node": "8",
    "storage_url": "https://storage.qarnot.com",
    "timeout": "10",
    "verify": "false",
}

#: Units of numbers. Durations are seconds or timedeltas anyway.
UNITS: dict[str, str] = {
    "chunk_size": "items",
    "estimated_cost": "euros",
    "instance_count": "instances",
    "QarnotCreatePoolOperator.instance_count": "slots",
    "QarnotPoolGroup.instance_count": "slots",
    "PoolSpec.instance_count": "slots",
    "HardwareConstraint.value": "cores, MB or GB",
    "linger": "euros",
    "max_cost": "euros",
    "max_in_flight": "Qarnot tasks",
    "max_run_cost": "euros",
    "max_rows": "rows",
    "max_per_instance_retries": "retries",
    "max_retries_per_instance": "retries",
    "max_total_retries": "retries",
    "max_total_slots": "slots",
    "min_idle_slots": "slots",
    "min_total_slots": "slots",
    "ramp_resize_factor": "share",
    "ready_slots": "slots",
    "scaling_factor": "share",
    "setup_retries": "retries",
    "slots_count": "slots",
    "slots_per_node": "slots",
}


def find(table: dict[str, str], owner: str, name: str) -> str | None:
    """Return the entry of *table* for a parameter of a class, or for the name alone."""
    return table.get(f"{owner}.{name}", table.get(name))


def example(owner: str, name: str) -> str | None:
    """Return the example of a parameter of an operator or the like."""
    return find(PARAMETERS, owner, name)


def example_of_field(owner: str, name: str) -> str | None:
    """Return the example of a field of a specification. Most names are also those of parameters."""
    return find({**PARAMETERS, **FIELDS}, owner, name)


def setting(name: str) -> str:
    """Return the example of an option or of a field of a connection."""
    if name not in SETTINGS:
        raise Undocumented(f"The setting {name} has no example in tools/examples.py")
    return SETTINGS[name]


def evaluate(text: str) -> Any:
    """Return the value of an example."""
    from airflow_qarnot_pool.api import specs

    task = SimpleNamespace(output="nightly", pool="nightly")
    names = {
        "nodes": task,
        "archive": task,
        "timedelta": timedelta,
        "time": time,
        "datetime": datetime,
        "UTC": UTC,
    }
    return eval(text, {**vars(specs), **names})
