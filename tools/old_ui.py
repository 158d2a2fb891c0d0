"""``make test-ui AIRFLOW=3.1.8``, ``make test-airflow AIRFLOW=3.1.8``: tests with an older Airflow.

They run in an environment as of that release's first days with the built wheel, and in a copy of the repository without
the package, because the tests must use the wheel. Chromium and PostgreSQL are this machine's. ``--place`` keeps
the environment for the next time; only the wheel in it is made new.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tools import matrix
from tools.check_install import RELEASES, ROOT, run

#: As old as the release, and for the tests only: what Airflow has brought along stays as it is.
DRIVERS = ("selenium", "psycopg2-binary", "asyncpg")


def environment(release: str, wheel: Path, place: Path) -> str:
    """Return the interpreter of an environment with this Airflow, this wheel and the requirements of the tests."""
    python = place / "venv" / "bin" / "python"
    if python.exists():
        run(*matrix.UV, "pip", "install", "--python", str(python), "--no-deps", "--reinstall", str(wheel))
        return str(python)
    day = RELEASES[release]
    matrix.install(release, day, sys.executable, wheel, place)
    dated = ("pip", "install", "--python", str(python), "--exclude-newer", day)
    run(*matrix.UV, *dated, "-c", str(place / "frozen.txt"), *DRIVERS)
    return str(python)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("release", choices=list(RELEASES))
    parser.add_argument("pytest", nargs="*", default=["tests/ui"], help="what pytest gets; default: tests/ui")
    parser.add_argument("--mark", default="airflow_ui", help="the mark of the tests; default: airflow_ui")
    parser.add_argument("--place", type=Path, help="keep the environment in this folder")
    parser.add_argument("--prepare", action="store_true", help="make the environment, and run nothing")
    given = parser.parse_intermixed_args()
    wheel = max((ROOT / "dist").glob("*.whl"), key=lambda one: one.stat().st_mtime).resolve()
    with ExitStack() as ends:
        place = given.place or Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="old-ui-")))
        place.mkdir(parents=True, exist_ok=True)
        python = environment(given.release, wheel, place.resolve())
        if given.prepare:
            return 0
        where = place / "repository"
        shutil.rmtree(where, ignore_errors=True)
        matrix.copy(ROOT, where)
        command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", given.mark, *given.pytest]
        # Schedulers of tests import modules beside the tests.
        return subprocess.run(
            command, cwd=where, env={**os.environ, "PYTHONPATH": str(where)}, check=False
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
