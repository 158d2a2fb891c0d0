"""The README as a new user follows it: the wheel in a fresh Airflow, its connection, its DAG, on a real scheduler.

The connection and the DAG are taken from ``README.md``; only the token is another, and ``host`` is added, which
leads to a local Qarnot. Airflow runs with its defaults for one machine, LocalExecutor on SQLite, but retries sooner:
Airflow 3.1 takes a deferred task whose trigger fires within seconds for one that was lost, which costs it a try.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.local import LocalQarnot
from tools.airflow_stack import AirflowStack, StackError

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
VARIABLE = "AIRFLOW_CONN_QARNOT_DEFAULT"


def connection(readme: str, qarnot: LocalQarnot) -> str:
    """The connection that the README has people export, to *qarnot*."""
    found = re.search(rf"export {VARIABLE}='(.*)'", readme)
    if found is None:
        raise ValueError(f"README.md does not say how to set {VARIABLE}")
    said: dict[str, Any] = json.loads(found[1])
    return json.dumps({**said, "host": qarnot.url, "password": qarnot.token})


def dag(readme: str) -> tuple[str, str]:
    """The id and the source of the README's DAG."""
    for source in re.findall(r"```python\n(.*?)```", readme, re.DOTALL):
        if found := re.search(r'\bDAG\("([^"]+)"', source):
            return found[1], source
    raise ValueError("README.md shows no DAG")


def problems(python: Path | str, *, timeout: float = 420.0) -> list[str]:
    """Return the problems of the README's DAG as printed, with the Airflow and the wheel of *python*."""
    readme = README.read_text()
    dag_id, source = dag(readme)
    with tempfile.TemporaryDirectory(prefix="new-user-") as place, LocalQarnot(boot_seconds=1) as qarnot:
        home, dags = Path(place) / "home", Path(place) / "dags"
        home.mkdir()
        dags.mkdir()
        (dags / "frames.py").write_text(source)
        env = {VARIABLE: connection(readme, qarnot), "AIRFLOW__CORE__DEFAULT_TASK_RETRY_DELAY": "5"}
        try:
            with AirflowStack(home, dags, python=str(python), env=env, start_timeout=timeout) as airflow:
                run_id = airflow.trigger(dag_id)
                state = airflow.wait_run(dag_id, run_id, timeout)
                states = airflow.task_states(dag_id, run_id)
        except StackError as error:
            return [str(error)]
        found = [] if state == "success" else [f"the DAG run ended as {state}: {states}"]
        return found + left_over(qarnot, work=len(states) - 2)


def left_over(qarnot: LocalQarnot, work: int) -> list[str]:
    """What Qarnot has that it should not have: one pool, closed, and a success for each Airflow task of *work*."""
    with QarnotClient(qarnot.url, qarnot.token) as client:
        ends = time.monotonic() + 30
        while any(pool.state == "Closing" for pool in client.pools.list()) and time.monotonic() < ends:
            time.sleep(0.1)
        pools = [str(pool.state) for pool in client.pools.list()]
        # All but the warm-up.
        done = Counter(
            task.state for task in client.tasks.list() if not (task.labels or {}).get("airflow.role")
        )
    found = [] if pools == ["Closed"] else [f"its pools are {pools}, not one that is closed"]
    return (
        found
        if dict(done) == {"Success": work}
        else [*found, f"its Qarnot tasks: {dict(done)}, not {work} successes"]
    )
