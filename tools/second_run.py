"""Run a command, and once more what fails of it; report at the end what needed the second run.

::

    python -m tools.second_run run make test
    python -m tools.second_run report

Real processes on a shared machine may be late, so a test that fails gets a second run. That would hide the first
failure of a test that then passes, so each failure is recorded in a file, which the report prints and counts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: Where pytest keeps which tests have failed.
LAST_FAILED = Path(".pytest_cache/v/cache/lastfailed")
RECORD = Path("build/second-runs.json")


def failed_tests(folder: Path) -> list[str]:
    """Return the tests that failed in the last run of pytest; none if the command has not run pytest."""
    path = folder / LAST_FAILED
    return sorted(json.loads(path.read_text())) if path.exists() else []


def run(command: Sequence[str], folder: Path = ROOT) -> int:
    """Run *command* in *folder*, twice if it fails the first time; return the exit status of the last run."""
    # Failures of an earlier command would be taken for failures of this one.
    (folder / LAST_FAILED).unlink(missing_ok=True)
    first = subprocess.run(command, cwd=folder, check=False).returncode
    if first == 0:
        return 0
    failed = failed_tests(folder)
    said = " ".join(command)
    print(f"=== {said} failed with status {first}; what failed runs once more", flush=True)
    options = f"{os.environ.get('PYTEST_ADDOPTS', '')} --last-failed".strip()
    second = subprocess.run(command, cwd=folder, env={**os.environ, "PYTEST_ADDOPTS": options}, check=False)
    again = failed_tests(folder) if second.returncode else []
    record = _read(folder)
    # A part that runs no pytest, or fails outside of any test, stands for itself.
    record += [[said, test, "failed again" if test in again else "passed"] for test in failed] or [
        [said, "", "failed again" if second.returncode else "passed"]
    ]
    (folder / RECORD).parent.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).write_text(json.dumps(record, indent=1))
    return second.returncode


def report(folder: Path = ROOT) -> str:
    """Return the list of everything that needed a second run, and forget it."""
    record = _read(folder)
    (folder / RECORD).unlink(missing_ok=True)
    lines = [f"=== {len(record)} needed a second run{':' if record else ''}"]
    lines += [f"  {outcome:12} {test or '(no test)'}  in {command}" for command, test, outcome in record]
    return "\n".join(lines)


def _read(folder: Path) -> list[list[str]]:
    path = folder / RECORD
    return json.loads(path.read_text()) if path.exists() else []


if __name__ == "__main__":
    if sys.argv[1] == "report":
        print(report(), flush=True)
    else:
        sys.exit(run(sys.argv[2:]))
