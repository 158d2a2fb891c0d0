"""Run benchmark programs as forks of one process, so that Airflow is imported once.

``python -m tests.benchmarks.forks FOLDER WAITERS NAME...`` leaves ``NAME.json``, ``NAME.out`` and ``NAME.err`` in the
folder, and ``NAME.status``, the exit status.
"""

from __future__ import annotations

import gc
import importlib
import os
import runpy
import sys
import traceback
from pathlib import Path

from benchmarks import environment

#: What most programs import.
MODULES = (
    "airflow.sdk",
    "airflow_qarnot_pool.api.client",
    "airflow_qarnot_pool.decorators.qarnot",
    "airflow_qarnot_pool.operators.pool",
    "airflow_qarnot_pool.operators.tasks",
    "airflow_qarnot_pool.triggers.poller",
    "tests.harness",
    "qarnot",
)
AT_ONCE = 2


def main(folder: Path, waiters: str, names: list[str]) -> None:
    with environment.prepared():
        for module in MODULES:
            importlib.import_module(module)
        gc.freeze()
        running: dict[int, str] = {}
        while names or running:
            while names and len(running) < AT_ONCE:
                name = names.pop(0)
                running[_fork(name, waiters, folder / name)] = name
            pid, status = os.wait()
            code = os.waitstatus_to_exitcode(status)
            (folder / f"{running.pop(pid)}.status").write_text(str(code))


def _fork(name: str, waiters: str, path: Path) -> int:
    if pid := os.fork():
        return pid
    try:
        for number, suffix in ((1, ".out"), (2, ".err")):
            os.dup2(os.open(path.with_suffix(suffix), os.O_WRONLY | os.O_CREAT), number)
        sys.argv = [name, "--quick", f"--waiters={waiters}", f"--json={path.with_suffix('.json')}"]
        runpy.run_module(f"benchmarks.{name}", run_name="__main__", alter_sys=True)
        sys.stdout.flush()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
