"""``make matrix``: every supported Airflow on every supported Python that is on this machine.

A cell is an environment, resolved as of the Airflow release's first days, with the built wheel in it. In each: the
unit tests, the example DAGs through ``dag.test()``, and on a real scheduler the README's DAG and the DAG runs that
events of watchers start. The tests run in a copy of the repository without the package, because they must use the
wheel. The last lines are a table; ``--report docs/contributing/evidence/versions.md`` writes it into that page.
``--results PATH`` keeps the finished cells, which allows to run a matrix in parts.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tools import doc_block, new_user
from tools.check_install import RELEASES, ROOT, UV

PYTHONS = ("3.11", "3.12", "3.13")
#: What depends on Airflow, in the least time: the client and the rest of the operators are left to ``make test``.
UNIT = (
    "tests/executors",
    "tests/hooks",
    "tests/lineage",
    "tests/logs",
    "tests/ownership",
    "tests/parameters",
    "tests/test_metrics_sent.py",
    "tests/test_provider.py",
    "tests/waiting",
    "tests/triggers",
    "tests/task_groups/test_wiring.py",
    "tests/operators/test_lives.py",
    "tests/operators/test_task_operators.py",
    "tests/operators/test_secrets.py",
)
DAGS = ("tests/dags",)
EVENTS = ("tests/dags/test_event_runs.py",)
CHECKS = ("unit and operators", "dag.test()", "README on a scheduler", "runs for events")
#: Installed with Airflow, of the same day.
PROVIDERS = ("apache-airflow-providers-openlineage",)
#: Beside the wheel and its extras. An environment of uv lacks pip, which installs those of functions.
TEST_REQUIREMENTS = ("pip", "pytest>=8", "pytest-xdist>=3", "qarnot==2.23.0", "statsd>=4")
#: As ``make test`` does: most of their time tests wait for processes.
AT_ONCE = ("-n", "4", "--dist", "loadfile")
#: What tests read.
COPIED = ("tests", "tools", "benchmarks", "example_dags", "docs", "pyproject.toml", "README.md")
NOT_REAL = "not airflow_stack and not airflow_ui and not airflow_distributed"


class Outcome(NamedTuple):
    """One check of one cell. ``text`` is for the table."""

    good: bool
    text: str


def interpreter(version: str) -> str | None:
    """A Python of this version, in the PATH or among those that uv knows."""
    for command in ([f"python{version}"], [*UV, "python", "find", "--no-python-downloads", version]):
        if command[0].startswith("python"):
            command = [shutil.which(command[0]) or "", "-c", "import sys; print(sys.executable)"]
        if command[0]:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0 and done.stdout.strip():
                return done.stdout.strip()
    return None


def install(release: str, day: str, python: str, wheel: Path, place: Path) -> str:
    """Make the environment; returns its interpreter."""
    ours = str(place / "venv" / "bin" / "python")
    frozen = place / "frozen.txt"

    def uv(*words: str) -> str:
        done = subprocess.run([*UV, *words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr[-1500:])
        return done.stdout

    uv("venv", "--python", python, str(place / "venv"))
    uv("pip", "install", "--python", ours, "--exclude-newer", day, f"apache-airflow=={release}", *PROVIDERS)
    frozen.write_text(uv("pip", "freeze", "--python", ours))
    extras = f"airflow-qarnot-pool[local,storage] @ {wheel.as_uri()}"
    uv("pip", "install", "--python", ours, "-c", str(frozen), extras, *TEST_REQUIREMENTS)
    return ours


def copy(source: Path, place: Path) -> Path:
    """Copy the repository without the package, to run the tests there."""
    place.mkdir()
    for name in COPIED:
        if (source / name).is_dir():
            shutil.copytree(source / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source / name, place)
    return place


def snapshot(place: Path) -> tuple[Path, Path]:
    """The newest wheel and the repository as they are now: all cells have the same, whatever is edited meanwhile."""
    newest = max((ROOT / "dist").glob("*.whl"), key=lambda one: one.stat().st_mtime)
    return Path(shutil.copy(newest, place)), copy(ROOT, place / "repository")


def tests(python: str, paths: tuple[str, ...], where: Path, log: Path, marks: str) -> Outcome:
    """Run tests of the repository with another interpreter; what failed once more, as real processes may be late."""
    command = [python, "-m", "pytest", "-q", "--durations=25", "-m", marks, *paths]
    good, counts = _run([*command, *AT_ONCE], where, log)
    if good:
        return Outcome(True, counts)
    good, again = _run([*command, "--last-failed"], where, log.with_suffix(".again.log"))
    return Outcome(True, f"{counts}, which pass when run again") if good else Outcome(False, f"**{again}**")


def _run(command: list[str], where: Path, log: Path) -> tuple[bool, str]:
    with log.open("w") as out:
        status = subprocess.run(
            command, cwd=where, stdout=out, stderr=subprocess.STDOUT, env={**os.environ}, check=False
        ).returncode
    last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["nothing was printed"]
    return status == 0, re.sub(r" in [\d.]+s.*| *=+ *|, \d+ (warnings?|deselected)", "", last[0])


def readme(python: str, log: Path) -> Outcome:
    """Run the README's DAG on a real scheduler, and again if that fails, because SQLite may be locked."""
    wrong = new_user.problems(python)
    text = "works as printed"
    if wrong:
        log.with_suffix(".first.log").write_text("\n".join(wrong))
        wrong, text = new_user.problems(python), f"{text}, at the second attempt"
    log.write_text("\n".join(wrong))
    return Outcome(False, "**does not work**") if wrong else Outcome(True, text)


def cell(
    release: str,
    day: str,
    python: str,
    wheel: Path,
    repository: Path,
    logs: Path,
    known: Sequence[Outcome | None] = (None,) * len(CHECKS),
) -> list[Outcome]:
    """All checks of one cell; those that are *known* are not run."""
    with tempfile.TemporaryDirectory(prefix="matrix-") as place:
        try:
            ours = install(release, day, python, wheel, Path(place))
        except RuntimeError as error:
            (logs / "install.log").write_text(str(error))
            return [Outcome(False, "**does not install**")] * len(CHECKS)
        return checks(ours, copy(repository, Path(place) / "repository"), logs, known)


def checks(
    ours: str, where: Path, logs: Path, known: Sequence[Outcome | None] = (None,) * len(CHECKS)
) -> list[Outcome]:
    """All checks with an interpreter that has the wheel, and tests in *where*; those that are *known* are not run."""
    unit, dags, on_a_scheduler, events = known
    return [
        unit or tests(ours, UNIT, where, logs / "unit.log", NOT_REAL),
        dags or tests(ours, DAGS, where, logs / "dags.log", NOT_REAL),
        on_a_scheduler or readme(ours, logs / "readme.log"),
        events or tests(ours, EVENTS, where, logs / "events.log", "airflow_stack"),
    ]


def run(
    releases: Sequence[str],
    pythons: Sequence[str],
    wheel: Path,
    repository: Path,
    logs: Path,
    results: dict[str, list[Outcome]],
    keep: Path | None,
    failed: bool,
) -> dict[str, str]:
    """Run the cells of these releases and Pythons, into *results*; returns why others were skipped, by Python.

    :param failed: run only cells that failed or are not in *results*.
    """
    skipped: dict[str, str] = {}
    for version in pythons:
        python = interpreter(version)
        if python is None:
            print(f"SKIPPED: Python {version} is not on this machine", flush=True)
            skipped[version] = "no such Python here"
            continue
        for release in releases:
            begun, folder = time.monotonic(), logs / f"{release}-{version}"
            known = [one if one.good and failed else None for one in results.get(f"{release} {version}", ())]
            if known and all(known):
                continue
            folder.mkdir(parents=True, exist_ok=True)
            found = cell(
                release, RELEASES[release], python, wheel, repository, folder, known or [None] * len(CHECKS)
            )
            results[f"{release} {version}"] = found
            told = "; ".join(f"{name}: {one.text}" for name, one in zip(CHECKS, found, strict=True))
            print(
                f"Airflow {release}, Python {version}: {told} ({time.monotonic() - begun:.0f} s)", flush=True
            )
            if keep:
                keep.write_text(json.dumps(results, indent=1))
    return skipped


def table(results: dict[str, list[Outcome]], skipped: dict[str, str]) -> str:
    """The matrix as Markdown."""
    lines = ["| Airflow | Python | " + " | ".join(CHECKS) + " |", "|---|---|" + "---|" * len(CHECKS)]
    for release in RELEASES:
        for version in PYTHONS:
            key = f"{release} {version}"
            cells = (
                [one.text for one in results[key]]
                if key in results
                else [skipped.get(version, "not run")] * len(CHECKS)
            )
            lines.append(f"| {release} | {version} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--airflow", nargs="+", choices=list(RELEASES), default=list(RELEASES))
    parser.add_argument("--python", nargs="+", choices=PYTHONS, default=list(PYTHONS))
    parser.add_argument("--report", type=Path, help="write the table there")
    parser.add_argument("--results", type=Path, help="JSON of what is done already; read and written")
    parser.add_argument("--failed", action="store_true", help="only what --results has not, or as failed")
    parser.add_argument("--logs", type=Path, help="folder of the logs (default: a new temporary one)")
    given = parser.parse_args()
    logs = given.logs or Path(tempfile.mkdtemp(prefix="matrix-logs-"))
    kept = given.results and given.results.exists()
    results = {
        key: [Outcome(*one) for one in found]
        for key, found in (json.loads(given.results.read_text()) if kept else {}).items()
    }
    with tempfile.TemporaryDirectory(prefix="matrix-") as place:
        wheel, repository = snapshot(Path(place))
        skipped = run(
            given.airflow, given.python, wheel, repository, logs, results, given.results, given.failed
        )
    print(text := table(results, skipped))
    if given.report:
        doc_block.write(given.report, "matrix", text)
    good = all(one.good for found in results.values() for one in found)
    if not good:
        print(f"Logs: {logs}")
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
