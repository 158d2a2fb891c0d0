"""Run all programs, or those that are named, and renew ``docs/contributing/evidence/benchmarks.md``.

Programs that do not run keep their part of the page.
"""

from __future__ import annotations

import argparse
import platform
import re
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

NAMES = (
    "poll_cost",
    "triggerer_load",
    "detection_latency",
    "request_cost",
    "import_time",
    "fan_out",
    "array",
    "environments",
    "warm_vs_cold",
    "ladder",
    "local_qarnot",
    "right_size",
    "dag_makespan:stages",
    "dag_makespan:chain",
    "dag_makespan:minute",
    "dag_makespan:wide",
    "on_time",
    "executor",
)
PAGE = Path(__file__).resolve().parent.parent / "docs" / "contributing" / "evidence" / "benchmarks.md"
HEAD = """# Benchmarks

`make bench` writes this page. It runs the programs in `benchmarks/` one after the other; `make bench BENCH=fan_out`
runs one and renews its part. Peers are measured in the same run, on the same local Qarnot. Only ratios are meaningful,
because times are those of one small, shared machine. A peer that is not installed is left out; `pip install -e
'.[bench]'` installs them. Each program also writes its figures as flat JSON (`--json PATH`).
"""


def section(name: str, folder: Path, options: list[str]) -> str:
    """Run one program, or one shape of it (``program:shape``), and return its part of the page."""
    program, _, shape = name.partition(":")
    options = [*options, f"--shape={shape}"] if shape else options
    page = folder / f"{program}.md"
    subprocess.run([sys.executable, "-m", f"benchmarks.{program}", *options, "--page", page], check=True)
    command = " ".join([f"python -m benchmarks.{program}", *options])
    made = (
        f"`{command}`, {datetime.now(UTC):%Y-%m-%d}, Airflow {version('apache-airflow-core')}, "
        f"Python {platform.python_version()}"
    )
    return f"## {name}\n\n{made}.\n\n{page.read_text().strip()}\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(NAMES)}")
    parser.add_argument("--waiters", type=int, metavar="N", help="another size than the programs' own")
    given = parser.parse_args()
    names = [one for name in given.names for one in NAMES if name in (one, one.partition(":")[0])] or NAMES
    options = [f"--waiters={given.waiters}"] if given.waiters else []
    if unknown := set(given.names) - {*NAMES, *(one.partition(":")[0] for one in NAMES)}:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            new = section(name, Path(folder), options)
        text = PAGE.read_text() if PAGE.exists() else HEAD
        parts = {part.split("\n", 1)[0]: f"## {part}" for part in re.split(r"^## ", text, flags=re.M)[1:]}
        parts[name] = new
        PAGE.write_text("\n".join([HEAD, *(parts[one].strip() + "\n" for one in NAMES if one in parts)]))


if __name__ == "__main__":
    main()
