"""How long importing operator modules takes over ``airflow.sdk``, which every DAG file imports.

Each import in a fresh interpreter, with bytecode compiled beforehand, the programs taking turns. CPU time is
compared, because unlike the wall clock it does not depend on other load. A provider that is not installed is left out.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

from benchmarks.report import Report, main

BASE = "airflow.sdk"
#: Imports of any DAG file with an operator and a connection, whatever the provider.
BARE = "from airflow.sdk import DAG, BaseHook, BaseOperator, BaseSensorOperator, TaskGroup"
OURS = "this provider"
MODULES = {
    OURS: [
        "airflow_qarnot_pool.operators.pool",
        "airflow_qarnot_pool.operators.task",
        "airflow_qarnot_pool.operators.tasks",
        "airflow_qarnot_pool.sensors.pool",
        "airflow_qarnot_pool.sensors.task",
        "airflow_qarnot_pool.task_groups.pool",
    ],
    "Databricks": ["airflow.providers.databricks.operators.databricks"],
    "Docker": ["airflow.providers.docker.operators.docker"],
    "KubernetesPod": ["airflow.providers.cncf.kubernetes.operators.pod"],
    "AWS Batch": ["airflow.providers.amazon.aws.operators.batch"],
}
MEASURE = """
import sys, time
begun = time.process_time()
{bare}
before, loaded = time.process_time(), set(sys.modules)
{imports}
added = time.process_time() - before
print(before - begun, added, *sorted(set(sys.modules) - loaded))
"""


def installed(module: str) -> bool:
    """Return whether the distribution of *module* is installed, without importing it."""
    parts = module.split(".")
    for n in range(1, len(parts) + 1):
        try:
            if importlib.util.find_spec(".".join(parts[:n])) is None:
                return False
        except ModuleNotFoundError:
            return False
    return True


def once(modules: list[str], compiled: bool = True) -> tuple[float, float, list[str]]:
    """Return the CPU seconds for ``airflow.sdk`` and for *modules* after it, and the loaded modules."""
    program = MEASURE.format(bare=BARE, imports="\n".join(f"import {one}" for one in modules))
    # An installation without bytecode, or an environment that forbids it, must not be measured.
    own = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": f"{os.environ['AIRFLOW_HOME']}/bytecode"}
    env = {**os.environ, **(own if compiled else {})}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=env
    )
    base, added, *loaded = done.stdout.splitlines()[-1].split()
    return float(base), float(added), loaded


def measure(report: Report) -> None:
    absent = [name for name, modules in MODULES.items() if not all(map(installed, modules))]
    programs = {name: modules for name, modules in MODULES.items() if name not in absent}
    if report.quick:
        programs = {OURS: programs[OURS]}
    seen: dict[str, list[tuple[float, float, list[str]]]] = {name: [] for name in programs}
    for turn in range(1 if report.quick else report.waiters + 1):
        for name, modules in programs.items():
            found = once(modules, compiled=not report.quick)
            if turn or report.quick:  # the first turn compiles
                seen[name].append(found)
        report.say(f"turn {turn}")
    base = min(run[0] for runs in seen.values() for run in runs)
    table = report.table(
        "Importing operator modules",
        ("", "CPU [s]", f"of {BASE} [%]", "modules loaded", "times ours"),
        f"The least of {len(seen[OURS])} turns, over {BASE}, which takes {base:.2f} s: what disturbs can only add."
        + (f" Not installed: {', '.join(absent)}." if absent else ""),
    )
    added = {name: min(run[1] for run in runs) for name, runs in seen.items()}
    for name, seconds in added.items():
        loaded = seen[name][0][2]
        table.row(name, seconds, 100 * seconds / base, len(loaded), seconds / added[OURS])
        report.figure(f"{name}.cpu_seconds", seconds)
        report.figure(f"{name}.percent_of_airflow_sdk", 100 * seconds / base)
        report.figure(f"{name}.modules", len(loaded))
        report.figure(
            f"{name}.foreign_modules",
            sum(not one.startswith(("airflow_qarnot_pool", "airflow.sdk")) for one in loaded),
        )
    report.target(f"of {BASE}", 100 * added[OURS] / base, 3, unit=" %")
    for name in [name for name in added if name != OURS]:
        report.target(f"our share of what {name} adds", added[OURS] / added[name], 1)


if __name__ == "__main__":
    main("import_time", __doc__, measure, waiters=5, meaning="how many turns")
