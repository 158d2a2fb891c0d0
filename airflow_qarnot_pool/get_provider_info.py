"""Metadata of this provider for Airflow."""

from __future__ import annotations

from typing import Any

from airflow_qarnot_pool.hooks import connection_form

#: Pages of the documentation that show how to do something, below ``docs/``.
_GUIDES = (
    "share-a-pool",
    "on-time",
    "python-on-nodes",
    "ten-thousand-calls",
    "fan-out",
    "command-results",
    "trigger-form",
    "files",
    "snapshots",
    "logs",
    "waits",
    "idle-nodes",
    "what-a-run-costs",
    "events",
    "lineage-and-assets",
    "executor",
    "recipes",
    "coming-from",
    "testing",
    "upgrade-airflow",
)


def _option(
    description: str,
    type_: str,
    default: str | None,
    example: str | None = None,
    *,
    sensitive: bool = False,
) -> dict[str, Any]:
    option: dict[str, Any] = {
        "description": description,
        "version_added": "0.1.0",
        "type": type_,
        "example": example,
        "default": default,
    }
    return {**option, "sensitive": True} if sensitive else option


def get_provider_info() -> dict[str, Any]:
    """Return the provider metadata, as defined by ``airflow/provider_info.schema.json``."""
    return {
        "package-name": "airflow-qarnot-pool",
        "name": "Qarnot pool",
        "description": "Warm pools of Qarnot compute nodes, shared by the tasks of a DAG.",
        "integrations": [
            {
                "integration-name": "Qarnot",
                "external-doc-url": "https://qarnot.com/documentation/api",
                "how-to-guide": [f"/docs/{guide}.md" for guide in _GUIDES],
                "logo": "/docs/images/logo.svg",
                "tags": ["service"],
            }
        ],
        "hooks": [
            {
                "integration-name": "Qarnot",
                "python-modules": ["airflow_qarnot_pool.hooks.qarnot", "airflow_qarnot_pool.hooks.storage"],
            }
        ],
        "filesystems": ["airflow_qarnot_pool.fs.qarnot"],
        "asset-uris": [
            {
                "schemes": ["qarnot"],
                "handler": "airflow_qarnot_pool.lineage.assets.sanitize_uri",
                "factory": "airflow_qarnot_pool.lineage.assets.create_asset",
                "to_openlineage_converter": "airflow_qarnot_pool.lineage.assets.convert_asset_to_openlineage",
            }
        ],
        "operators": [
            {
                "integration-name": "Qarnot",
                "python-modules": [
                    "airflow_qarnot_pool.operators.pool",
                    "airflow_qarnot_pool.operators.reap",
                    "airflow_qarnot_pool.operators.cost_report",
                    "airflow_qarnot_pool.operators.array",
                    "airflow_qarnot_pool.operators.task",
                    "airflow_qarnot_pool.operators.tasks",
                ],
            }
        ],
        "sensors": [
            {
                "integration-name": "Qarnot",
                "python-modules": ["airflow_qarnot_pool.sensors.pool", "airflow_qarnot_pool.sensors.task"],
            }
        ],
        "triggers": [
            {
                "integration-name": "Qarnot",
                "python-modules": [
                    "airflow_qarnot_pool.triggers.pool",
                    "airflow_qarnot_pool.triggers.task",
                    "airflow_qarnot_pool.triggers.bucket_watcher",
                    "airflow_qarnot_pool.triggers.task_watcher",
                    "airflow_qarnot_pool.triggers.idle_pool_watcher",
                ],
            }
        ],
        "task-decorators": [
            {"name": "qarnot", "class-name": "airflow_qarnot_pool.decorators.qarnot.qarnot_task"}
        ],
        # Airflow loads a plugin from here only with lazy_discover_providers = False, and otherwise by its entry point.
        "plugins": [
            {
                "name": "qarnot_pools",
                "plugin-class": "airflow_qarnot_pool.plugins.pools_page.QarnotPoolsPlugin",
            }
        ],
        # From Airflow 3.3 on. Before, `logging_config_class` names the same.
        "remote-logging": [
            {
                "scheme": "qarnot",
                "classpath": "airflow_qarnot_pool.executors.remote_logging.QarnotRemoteLogIO",
            }
        ],
        "executors": ["airflow_qarnot_pool.executors.qarnot_executor.QarnotExecutor"],
        "cli": ["airflow_qarnot_pool.cli.get_cli_commands"],
        "connection-types": [connection_form.metadata()],
        "extra-links": [
            "airflow_qarnot_pool.links.qarnot.QarnotPoolLink",
            "airflow_qarnot_pool.links.qarnot.QarnotPoolPageLink",
            "airflow_qarnot_pool.links.qarnot.QarnotTaskLink",
        ],
        "config": {
            "qarnot": {
                "description": "Defaults of the Qarnot provider.",
                "options": {
                    "namespace": _option(
                        "Default namespace for connections without one. Objects of other namespaces are never changed.",
                        "string",
                        None,
                        "production",
                    ),
                    "poll_interval": _option(
                        "Maximum seconds between polls, from 0.01 up to 86400, for connections without one. An object "
                        "that was submitted or has changed lately is polled more often: at a fiftieth of the time "
                        "since then.",
                        "float",
                        "15",
                    ),
                    "min_poll_interval": _option(
                        "Minimum seconds between polls, from 0.01 up to 86400. The same value as poll_interval makes "
                        "the interval fixed.",
                        "float",
                        "0.75",
                    ),
                    "defer_after": _option(
                        "Maximum seconds that a deferrable operator waits on its worker for what it has just created "
                        "before it defers. A short Qarnot task then needs no second process. 0 defers at once.",
                        "float",
                        "15",
                    ),
                    "cost_warning_threshold": _option(
                        "Share of a cost limit (max_cost, max_run_cost) at which a warning is logged.",
                        "float",
                        "0.8",
                    ),
                    "max_instance_count": _option(
                        'Maximum slots of a pool with instance_count="auto", unless it has another maximum, such as '
                        '"auto:20". Default: the slots of 16 nodes.',
                        "integer",
                        None,
                    ),
                    "console_url": _option(
                        "Web console that links point to.", "string", "https://tasq.qarnot.com"
                    ),
                    "openlineage_parent": _option(
                        "Whether nodes get the ids of the OpenLineage runs of their Airflow task and DAG run, as "
                        "constants OPENLINEAGE_PARENT_ID and OPENLINEAGE_ROOT_PARENT_ID.",
                        "boolean",
                        "False",
                    ),
                    "reference_datacenter": _option(
                        "Data centre that carbon savings are compared with, for connections without one. "
                        "Default: Qarnot's choice.",
                        "string",
                        None,
                    ),
                    "pools_page_connections": _option(
                        "Connections that the Pools page shows, separated by commas.",
                        "string",
                        "qarnot_default",
                        "qarnot_default,qarnot_research",
                    ),
                    "pools_page_refresh": _option(
                        "Polling interval of the Pools page, in seconds, while a user has it open.",
                        "float",
                        "5",
                    ),
                    "pools_page_run_tab": _option(
                        "Whether every DAG run has a tab with its Qarnot pools.", "boolean", "True"
                    ),
                },
            },
            "qarnot_executor": {
                "description": "Options of QarnotExecutor.",
                "options": {
                    "conn_id": _option("Connection of type qarnot.", "string", "qarnot_default"),
                    "pool": _option("Name of the pool that tasks use by default.", "string", "airflow"),
                    "slots": _option(
                        "Maximum number of tasks that run on the pool at the same time.", "integer", "8"
                    ),
                    "slots_per_node": _option("Number of slots that share a node.", "integer", "1"),
                    "parallelism": _option(
                        "Maximum number of tasks that a scheduler has submitted, which [core] parallelism limits, too. "
                        "Default: the slots of all pools. The rest waits in Airflow.",
                        "integer",
                        None,
                        "48",
                    ),
                    "keep_warm": _option(
                        "How long an idle node stays up, as seconds or a duration such as PT10M.",
                        "string",
                        "600",
                    ),
                    "profile": _option(
                        "Profile of the nodes. It needs a network, because tasks report to the api-server.",
                        "string",
                        "docker-network",
                    ),
                    "image": _option(
                        "Image with Airflow, this provider and the packages of the tasks, as "
                        "[registry/]repository[:tag]. `airflow qarnot executor image` prints a Dockerfile. With "
                        "requirements it needs only Python, and python:3.12-slim (of the same Python) is the default.",
                        "string",
                        None,
                        "registry.example/airflow:3.3.2",
                    ),
                    "requirements": _option(
                        "Packages of the nodes besides Airflow, its providers and all that they need, one a line or as "
                        "a JSON list. [] for none besides. Then the image needs only Python. Default: the image has "
                        "Airflow.",
                        "string",
                        None,
                        '["pandas==2.2.3"]',
                    ),
                    "pool_spec": _option(
                        "Further fields of the pool, as JSON: those of PoolSpec.",
                        "string",
                        None,
                        '{"resource_buckets": ["data"]}',
                    ),
                    "max_cost_per_day": _option(
                        "Euros that the pool may cost in a day, in UTC. Further tasks fail with the reason until the "
                        "next day, and those on Qarnot end. Default: no limit.",
                        "float",
                        None,
                        "20",
                    ),
                    "pools": _option(
                        "Further pools by name, as JSON. Each may set slots, slots_per_node, keep_warm, profile, "
                        "image, requirements, pool_spec and max_cost_per_day, and has those of this section otherwise.",
                        "string",
                        None,
                        '{"gpu": {"slots": 2, "profile": "docker-network"}}',
                    ),
                    "execution_api_server_url": _option(
                        "Address of Airflow's execution API as nodes reach it. Default: the one of Airflow's workers.",
                        "string",
                        None,
                        "https://airflow.example/execution/",
                    ),
                    "environment": _option(
                        "Environment variables of all tasks, as JSON.",
                        "string",
                        None,
                        '{"AIRFLOW__LOGGING__LOGGING_LEVEL": "DEBUG"}',
                        sensitive=True,
                    ),
                    "python": _option("Python of the image.", "string", "python"),
                    "boot_seconds": _option(
                        "Seconds in which a node is expected to boot. The scheduler warns if tokens expire sooner.",
                        "float",
                        "300",
                    ),
                },
            },
        },
    }
