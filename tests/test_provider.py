"""What Airflow is told about the provider, and how its connection is read."""

from __future__ import annotations

import inspect
import json
import pkgutil
import re
from collections.abc import Iterator
from importlib.metadata import entry_points
from importlib.resources import files
from typing import Any

import pytest
from airflow.plugins_manager import AirflowPlugin
from airflow.sdk import BaseOperator, BaseSensorOperator, Connection

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.get_provider_info import get_provider_info
from airflow_qarnot_pool.hooks import connection_form
from airflow_qarnot_pool.hooks.connection_settings import ConnectionSettings
from airflow_qarnot_pool.operators.cost_report import QarnotCostReportOperator
from airflow_qarnot_pool.operators.pool import (
    QarnotClosePoolOperator,
    QarnotCreatePoolOperator,
    QarnotDeletePoolOperator,
    QarnotUpdatePoolOperator,
)
from airflow_qarnot_pool.operators.reap import QarnotReapOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.sensors.pool import QarnotPoolSensor
from airflow_qarnot_pool.sensors.task import QarnotTaskSensor
from tests.conftest import ROOT

OPERATORS = [
    QarnotCreatePoolOperator,
    QarnotUpdatePoolOperator,
    QarnotClosePoolOperator,
    QarnotDeletePoolOperator,
    QarnotRunTaskOperator,
    QarnotReapOperator,
    QarnotCostReportOperator,
]
SENSORS = [QarnotPoolSensor, QarnotTaskSensor]


def test_provider_info_is_what_airflow_expects() -> None:
    import jsonschema

    schema = json.loads(files("airflow").joinpath("provider_info.schema.json").read_text())
    jsonschema.validate(get_provider_info(), schema)
    assert get_provider_info()["package-name"] == "airflow-qarnot-pool"


def _paths(info: Any) -> Iterator[str]:
    """Every module, class and function of ours in the provider info."""
    if isinstance(info, dict):
        info = list(info.values())
    if isinstance(info, list):
        for one in info:
            yield from _paths(one)
    elif isinstance(info, str) and re.fullmatch(r"airflow_qarnot_pool(\.\w+)+", info):
        yield info


PATHS = sorted(set(_paths(get_provider_info())))


@pytest.mark.parametrize("path", PATHS)
def test_everything_that_is_listed_exists(path: str) -> None:
    found = pkgutil.resolve_name(path)
    assert inspect.ismodule(found) or callable(found)


def test_what_is_listed_is_more_than_modules() -> None:
    assert {one.rpartition(".")[2] for one in PATHS} >= {
        "QarnotHook",
        "QarnotPoolsPlugin",
        "qarnot_task",
        "pool",
    }


def test_the_listed_plugin_is_that_of_the_entry_point() -> None:
    (listed,) = get_provider_info()["plugins"]
    (installed,) = entry_points(group="airflow.plugins", name=listed["name"])
    plugin = installed.load()
    assert listed["plugin-class"] == f"{plugin.__module__}.{plugin.__qualname__}"
    assert listed["name"] == plugin.name
    assert issubclass(plugin, AirflowPlugin)


def test_the_listed_guides_and_the_logo_exist() -> None:
    (integration,) = get_provider_info()["integrations"]
    pages = [*integration["how-to-guide"], integration["logo"]]
    assert [page for page in pages if not (ROOT / page.removeprefix("/")).is_file()] == []
    assert {page[:6] for page in pages} == {"/docs/"}


@pytest.mark.parametrize("operator", [*OPERATORS, *SENSORS], ids=lambda one: one.__name__)
def test_no_parameter_hides_one_of_airflows(operator: type) -> None:
    """``pool``, ``queue`` or ``retries`` of ours would take the place of Airflow's own."""
    base = BaseSensorOperator if operator in SENSORS else BaseOperator
    airflows = set(inspect.signature(base.__init__).parameters) | {
        name for name in dir(base) if not name.startswith("__")
    }
    ours: set[str] = set()
    for cls in operator.__mro__[: operator.__mro__.index(base)]:
        if "__init__" in vars(cls):
            ours |= set(inspect.signature(vars(cls)["__init__"]).parameters)
    assert not (ours - {"self", "kwargs"}) & airflows


@pytest.mark.parametrize("operator", [*OPERATORS, *SENSORS], ids=lambda one: one.__name__)
def test_template_fields_are_parameters(operator: Any) -> None:
    parameters: set[str] = set()
    for cls in operator.__mro__:
        if "__init__" in vars(cls):
            parameters |= set(inspect.signature(vars(cls)["__init__"]).parameters)
    # A task follows the limit of the operator that creates its pool, which may be a template.
    parameters.add("max_run_cost")
    assert set(operator.template_fields) <= parameters
    assert len(set(operator.template_fields)) == len(operator.template_fields)


def test_one_table_makes_both_forms() -> None:
    metadata = connection_form.metadata()
    assert set(metadata["conn-fields"]) == {field.name for field in connection_form.FIELDS}
    assert metadata["ui-field-behaviour"]["relabeling"] == connection_form.behaviour()["relabeling"]
    assert metadata["ui-field-behaviour"]["placeholders"] == connection_form.behaviour()["placeholders"]
    # Airflow 3.3.2 does not test a saved connection that has no port.
    assert "port" not in metadata["ui-field-behaviour"]["hidden-fields"]


def connection(**fields: Any) -> Connection:
    extra = fields.pop("extra", {})
    values = {"conn_id": "q", "conn_type": "qarnot", "password": "secret-token", **fields}
    return Connection(**values, extra=json.dumps(extra))


def test_settings_of_the_smallest_connection() -> None:
    settings = ConnectionSettings.of(connection())
    assert settings.url == "https://api.qarnot.com"
    assert settings.verify is True
    assert (settings.namespace, settings.namespace_is_explicit) == ("default", False)


def test_settings_of_a_full_connection() -> None:
    settings = ConnectionSettings.of(
        connection(
            host="http://127.0.0.1:8080/",
            extra={
                "namespace": "prod",
                "verify": "false",
                "timeout": "2.5",
                "retries": 3,
                "proxy": "http://proxy:1",
                "storage_url": "http://127.0.0.1:9000",
                "console_url": "http://console/",
            },
        )
    )
    assert settings.url == "http://127.0.0.1:8080"
    assert settings.verify is False
    assert (settings.namespace, settings.namespace_is_explicit) == ("prod", True)
    assert (settings.timeout, settings.retries, settings.proxy) == (2.5, 3, "http://proxy:1")
    assert settings.console_link("pool", "u") == "http://console/pools/u"


@pytest.mark.parametrize("host", ["http://127.0.0.1:8600", "http://localhost:8600", "http://[::1]:8600"])
def test_a_local_qarnot_has_no_console(host: str) -> None:
    settings = ConnectionSettings.of(connection(host=host))
    assert settings.console_link("pool", "u") == ""
    own = ConnectionSettings.of(connection(host=host, extra={"console_url": "https://console.example"}))
    assert own.console_link("pool", "u") == "https://console.example/pools/u"


@pytest.mark.parametrize("host", ["api.qarnot.com", "127.0.0.1.example", "localhost.example", "10.0.0.1"])
def test_another_host_has_the_console_of_qarnot(host: str) -> None:
    settings = ConnectionSettings.of(connection(host=host))
    assert settings.console_link("task", "u") == "https://tasq.qarnot.com/tasks/u"


def test_a_connection_written_as_a_uri() -> None:
    settings = ConnectionSettings.of(connection(host="127.0.0.1", port=8080, schema="http"))
    assert settings.url == "http://127.0.0.1:8080"


def test_a_ca_bundle_is_what_tls_is_checked_with() -> None:
    assert ConnectionSettings.of(connection(extra={"ca_bundle": "/ca.pem"})).verify == "/ca.pem"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"password": None}, "password"),
        ({"host": "ftp://x"}, "host"),
        ({"extra": {"namespace": "a b"}}, "namespace"),
        ({"extra": {"timeout": "soon"}}, "timeout"),
        ({"extra": {"timeout": 0}}, "timeout"),
        ({"extra": {"retries": -1}}, "retries"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(QarnotInvalidSpecError) as caught:
        ConnectionSettings.of(connection(**fields))
    assert caught.value.field == field
    assert "'q'" in str(caught.value)


def test_the_token_is_not_in_the_settings_text() -> None:
    assert "secret-token" not in repr(ConnectionSettings.of(connection()))
