"""``make next``: the newest Airflow on the index, pre-releases included, with the newest of all that it needs.

If the index has none beyond the supported ones, this says so, and checks the newest of those with the newest of its
requirements. In an environment without our constraints, with the built wheel: the unit and operator tests, the DAGs
through ``dag.test()``, and on a real scheduler the README's DAG and DAG runs for events. In all of them a deprecated
call of the package is an error, as in ``make test``. ``--report docs/contributing/evidence/versions.md`` writes the
result into that page.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.version import Version

from tools import doc_block, matrix
from tools.check_install import RELEASES, UV


def newest() -> str:
    """Return the newest version of Airflow on the index."""
    command = [
        *UV,
        "pip",
        "compile",
        "--no-deps",
        "--no-header",
        "--no-annotate",
        "--prerelease",
        "allow",
        "-",
    ]
    done = subprocess.run(
        [*command, "--python", sys.executable],
        input="apache-airflow\n",
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"The index does not say which Airflow is the newest:\n{done.stderr[-1500:]}")
    return done.stdout.strip().partition("==")[2]


def is_beyond(version: str) -> bool:
    """Return whether *version* is newer than all that are supported."""
    return Version(version) > max(map(Version, RELEASES))


def requirements(version: str) -> list[str]:
    """Return what to install for this Airflow. Pre-releases of other packages are none of our business."""
    if not Version(version).is_prerelease:
        return [f"apache-airflow=={version}"]
    # uv takes a pre-release only of a package that is named with one.
    core = f"apache-airflow-core=={version}"
    return [f"apache-airflow=={version}", core, "apache-airflow-task-sdk>=1.0.0a0"]


def environment(version: str, wheel: Path, place: Path) -> str:
    """Make an environment with this Airflow and the wheel; returns its interpreter."""
    python = str(place / "venv" / "bin" / "python")
    ours = f"airflow-qarnot-pool[local,storage] @ {wheel.as_uri()}"
    for command in (
        ["venv", "--python", sys.executable, str(place / "venv")],
        [
            *("pip", "install", "--python", python, *requirements(version), ours),
            *(*matrix.PROVIDERS, *matrix.TEST_REQUIREMENTS),
        ],
    ):
        done = subprocess.run([*UV, *command], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr[-3000:])
    return python


def table(version: str, outcomes: list[matrix.Outcome]) -> str:
    """Return the result as Markdown."""
    python = ".".join(map(str, sys.version_info[:2]))
    return "\n".join(
        [
            "| Airflow | Python | " + " | ".join(matrix.CHECKS) + " |",
            "|---|---|" + "---|" * len(matrix.CHECKS),
            f"| {version} | {python} | {' | '.join(one.text for one in outcomes)} |",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--airflow", help="this version in place of the newest")
    parser.add_argument("--logs", type=Path, help="folder of the logs (default: a new temporary one)")
    parser.add_argument("--report", type=Path, help="write the table there")
    given = parser.parse_args()
    version = given.airflow or newest()
    supported = max(RELEASES, key=Version)
    print(
        f"Airflow {version} is beyond the supported ones (up to {supported})"
        if is_beyond(version)
        else f"The index has no Airflow beyond the supported ones: {version}, with the newest of what it needs",
        flush=True,
    )
    logs = given.logs or Path(tempfile.mkdtemp(prefix="next-logs-"))
    logs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="next-") as place:
        wheel, repository = matrix.snapshot(Path(place))
        try:
            python = environment(version, wheel, Path(place))
        except RuntimeError as error:
            sys.exit(f"It does not install together with the wheel:\n{error}")
        outcomes = matrix.checks(python, repository, logs)
    print(text := table(version, outcomes))
    if given.report:
        doc_block.write(given.report, "next", text)
    if not all(one.good for one in outcomes):
        print(f"Logs: {logs}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
