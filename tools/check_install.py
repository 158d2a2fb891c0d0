"""Install the wheel into Airflow environments as they were on release day, and see that nothing else changes.

Airflow's constraint files belong to a release and its date; resolving with ``uv --exclude-newer`` gives an
environment of that day. In each: the wheel installs without adding, changing or removing any other package,
``airflow providers list`` shows it, its modules import, the Pools page is whole, its example DAGs parse, and the
edges of pool groups are those of ``tests/task_groups/test_wiring.py``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tools import new_user

ROOT = Path(__file__).resolve().parent.parent
#: Airflow release and the first day on which it could be installed.
RELEASES = {"3.1.8": "2026-03-11", "3.2.2": "2026-05-30", "3.3.2": "2026-09-17"}
AT_ONCE = 2
UV = [str(Path(sys.executable).parent / "uv"), "--quiet"]


def run(*command: str, cwd: Path | None = None, **environment: str) -> str:
    """Run a command and return its output. Its errors end this program."""
    # Not from here: the source tree would be imported in place of the wheel.
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=cwd or tempfile.gettempdir(),
        env={**os.environ, **environment},
        check=False,
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


def packages(python: str) -> set[str]:
    """``name==version`` of everything installed."""
    lines = run(*UV, "pip", "freeze", "--python", python).split()
    return {line for line in lines if "==" in line}


def check(release: str, day: str, wheel: Path, place: Path, *, quick: bool) -> list[str]:
    """Return the problems of the wheel on this release."""
    home, python = place / "home", str(place / "venv" / "bin" / "python")
    run(*UV, "venv", "--python", sys.executable, str(place / "venv"))
    dated = (*UV, "pip", "install", "--python", python, "--exclude-newer", day)
    run(*dated, f"apache-airflow=={release}")
    before = packages(python)
    run(*dated, str(wheel))
    problems = []
    changed = {one for one in packages(python) ^ before if not one.startswith("airflow-qarnot-pool")}
    if changed:
        problems.append(f"other packages changed: {sorted(changed)}")
    airflow = (python, "-m", "airflow")
    settings = {"AIRFLOW_HOME": str(home), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    if "airflow-qarnot-pool" not in run(*airflow, "providers", "list", "--output", "plain", **settings):
        problems.append("`airflow providers list` does not show it")
    parse = (
        "import glob, importlib, pkgutil, runpy, warnings, airflow, airflow_qarnot_pool as p\n"
        "from pathlib import Path\n"
        # No deprecated name of this Airflow, neither in the package nor in its DAG files.
        "for kind in (DeprecationWarning, FutureWarning):\n"
        "    warnings.filterwarnings('error', category=kind, module='airflow_qarnot_pool|<run_path>')\n"
        "here = Path(p.__file__).parent\n"
        # The local Qarnot needs its extra, and OpenLineage its provider.
        "skip = ('local', 'example_dags')\n"
        "optional = ('airflow_qarnot_pool.lineage.openlineage',)\n"
        "names = [m.name for m in pkgutil.walk_packages(p.__path__, 'airflow_qarnot_pool.')]\n"
        "[importlib.import_module(n) for n in names if n.split('.')[1] not in skip and n not in optional]\n"
        "dags = glob.glob(str(here / 'example_dags' / '*.py'))\n"
        "[runpy.run_path(d) for d in dags]\n"
        "from airflow_qarnot_pool.plugins import routes\n"
        "assert routes.make_app().routes and all(routes._file(n) for n in ('pools.js', 'index.html'))\n"
        "assert {'pools.js', 'pools.css'} <= {*routes._static_files()}\n"
        "from importlib.metadata import entry_points\n"
        "assert [one.load().name for one in entry_points(group='airflow.plugins', name='qarnot_pools')]\n"
        "print(len(dags))\n"
    )
    parsed = run(python, "-W", "ignore", "-c", parse, **settings).split()
    if not parsed or int(parsed[-1]) < 5:
        problems.append("the example DAGs are not in the wheel")
    if not quick:
        problems += new_user.problems(python)
    return problems + wiring(python, dated, place)


def wiring(python: str, dated: tuple[str, ...], place: Path) -> list[str]:
    """Run the tests of wiring and metrics against the wheel in this environment. Return the problems."""
    run(*dated, "pytest", "statsd")
    tests = place / "tests"
    which = ("task_groups/test_wiring.py", "test_metrics_sent.py")
    for name in (
        "__init__.py",
        "conftest.py",
        "execution_api.py",
        "readings.py",
        "statsd.py",
        *(f"{Path(one).parent}/__init__.py" for one in which),
        *which,
    ):
        (tests / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "tests" / name, tests / name)
    paths = [f"tests/{one}" for one in which]
    said = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *paths, cwd=place)
    return [] if " passed" in said else [f"the wiring tests did not run: {said[-300:]}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path, nargs="?", help="default: the newest in dist/")
    parser.add_argument("--release", choices=RELEASES, help="only this one")
    parser.add_argument("--quick", action="store_true", help="do not start Airflow")
    arguments = parser.parse_args()
    wheel = arguments.wheel or max((ROOT / "dist").glob("*.whl"), key=lambda one: one.stat().st_mtime)
    fine = "installs, changes no other package, is listed, its DAGs parse, groups are wired right, metrics are sent"
    fine += "" if arguments.quick else ", the README works as printed"

    def is_fine(release: str) -> bool:
        begun = time.monotonic()
        with tempfile.TemporaryDirectory() as place:
            problems = check(release, RELEASES[release], wheel.resolve(), Path(place), quick=arguments.quick)
        verdict = "; ".join(problems) or fine
        seconds = time.monotonic() - begun
        print(f"Airflow {release} as of {RELEASES[release]}: {verdict} ({seconds:.0f} s)", flush=True)
        return not problems

    releases = [one for one in RELEASES if arguments.release in (None, one)]
    # An Airflow that starts, and a run that waits for its scheduler, leave a core to another one.
    with ThreadPoolExecutor(AT_ONCE) as threads:
        sys.exit(0 if all(list(threads.map(is_fine, releases))) else 1)


if __name__ == "__main__":
    main()
