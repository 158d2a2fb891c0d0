"""``[operators] default_deferrable``: followed where somebody has set it, else waits are deferred."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from airflow import configuration
from airflow.configuration import conf
from airflow.sdk import DAG

from airflow_qarnot_pool.parameters.validation import default_deferrable
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup
from tests.parameters.test_validation import NEEDS, _operators, make

WAITING = [one for one in _operators() if hasattr(make(one, **NEEDS.get(one.__name__, {})), "deferrable")]
VARIABLE = "AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE"


def made(operator: Any, **given: Any) -> Any:
    with DAG("d", schedule=None):
        return make(operator, **NEEDS.get(operator.__name__, {}), **given)


@pytest.mark.parametrize("operator", WAITING, ids=lambda one: one.__name__)
def test_every_operator_and_sensor_follows_what_is_set(
    operator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert made(operator).deferrable is True, "nobody has set it"
    for said in ("False", "True"):
        monkeypatch.setenv(VARIABLE, said)
        assert made(operator).deferrable is (said == "True")
        assert made(operator, deferrable=True).deferrable is True
        assert made(operator, deferrable=False).deferrable is False


def test_setup_and_teardown_of_a_group_follow_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "false")
    with DAG("d", schedule=None), QarnotPoolGroup("g") as group:
        pass
    with DAG("d", schedule=None, default_args={"deferrable": True}), QarnotPoolGroup("g") as other:
        pass
    assert [one.deferrable for one in (group.open_pool, group.close_pool)] == [False, False]  # type: ignore[union-attr]
    assert [one.deferrable for one in (other.open_pool, other.close_pool)] == [True, True]  # type: ignore[union-attr]


def _decided(home: Path) -> bool:
    """What is decided once Airflow has read the ``airflow.cfg`` of *home*, as it does when it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(configuration, "AIRFLOW_CONFIG", str(home / "airflow.cfg"))
        patch.setattr(configuration, "conf", configuration.initialize_config())
        return default_deferrable()


@pytest.mark.parametrize(("said", "wanted"), [("false", False), ("true", True), (None, True)])
def test_a_written_file_is_followed(said: str | None, wanted: bool, tmp_path: Path) -> None:
    line = "" if said is None else f"default_deferrable = {said}\n"
    (tmp_path / "airflow.cfg").write_text(f"[operators]\ndefault_owner = me\n{line}")
    assert _decided(tmp_path) is wanted


def test_a_process_follows_its_file(tmp_path: Path) -> None:
    (tmp_path / "airflow.cfg").write_text("[operators]\ndefault_owner = me\ndefault_deferrable = false\n")
    env = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW_")}
    code = (
        "from airflow_qarnot_pool.parameters.validation import default_deferrable as d; print('it is', d())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**env, "AIRFLOW_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip().endswith("it is False")


def test_airflows_default_in_the_file_that_airflow_generates_is_no_decision(tmp_path: Path) -> None:
    with (tmp_path / "airflow.cfg").open("w") as file:
        conf.write(file, include_sources=False, only_defaults=True, show_values=True)
    written = (tmp_path / "airflow.cfg").read_text()
    assert "\ndefault_deferrable = false\n" in written, "else the rule for such a file can go"
    assert _decided(tmp_path) is True
    (tmp_path / "airflow.cfg").write_text(written.replace("\ndefault_owner = airflow\n", "\n"))
    assert _decided(tmp_path) is False


def test_a_setting_of_the_process_counts() -> None:
    conf.add_section("operators")
    try:
        conf.set("operators", "default_deferrable", "False")
        assert default_deferrable() is False
    finally:
        conf.remove_section("operators")
