"""Events of OpenLineage in a process of its own: the provider forks for each event, and a plugin registers it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_qarnot_pool.local import LocalQarnot
from tests.conftest import ROOT
from tests.lineage.events import check_event
from tests.lineage.test_events import SECRETS, TASKS, Events, configured, facets


@pytest.mark.usefixtures("airflow_db")
def test_a_forked_process_describes_the_run_and_shows_no_secret(qarnot: LocalQarnot, tmp_path: Path) -> None:
    file, environment = configured(qarnot, tmp_path)
    done = subprocess.run(
        [sys.executable, str(file)],
        cwd=ROOT,
        env=os.environ | environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    events = Events(tmp_path / "events.jsonl", qarnot.token)
    for event in events.all:
        check_event(event)
    for mode in ("deferred", "direct"):
        for task in TASKS:
            assert facets(events.end(mode, task), "qarnot_pool")["uuid"]
    assert [name for name, secret in SECRETS.items() if secret in events.text] == []
