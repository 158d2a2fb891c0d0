"""``make readings``: the core suites under other services that Qarnot could be, one set of readings after the other.

The sets are in ``tests/readings.py``. Under each run the lives of remote objects (``tests/operators/test_lives.py``),
the crash matrix (``tests/crash/test_crash_matrix_*.py``) and chaos, with a seed of its own. The table at the end says
for each set what passed, what was left out because it expects a default reading, and what each part took.

``READINGS=strict,random-7`` chooses sets. The exit status is 1 if anything failed.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.readings import SETS, VARIABLE, answers_of

ROOT = Path(__file__).resolve().parent.parent
LIVES = ["tests/operators/test_lives.py"]
CRASH_MATRIX = [f"tests/crash/test_crash_matrix_{step}.py" for step in ("create", "run", "close")]
#: Sets that seeds choose, besides those with a name.
RANDOM = ("random-1", "random-2")
SEED = 18


@dataclass(frozen=True)
class Part:
    """The result of one suite under one set."""

    name: str
    ok: bool
    said: str
    seconds: float


def run(name: str, command: list[str], readings: str) -> Part:
    """Run a suite in processes of its own, and show what it prints."""
    print(f"=== {readings}: {name}", flush=True)
    began = time.monotonic()
    lines: list[str] = []
    with subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, VARIABLE: readings}, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.strip())
    seconds = time.monotonic() - began
    return Part(name, process.returncode == 0, summary(lines), seconds)


def summary(lines: list[str]) -> str:
    """Return the counts in the last line that has some, of pytest or of chaos."""
    counts = r"\d+ (?:passed|failed|skipped|errors?)|(?:kills|runs|duplicates|left on|lost) \d+"
    return next(
        (", ".join(found) for line in reversed(lines) if (found := re.findall(counts, line))), "nothing"
    )


def suites(kills: int, processes: int) -> dict[str, list[str]]:
    """Return the command of each suite."""
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", str(processes)]
    pytest += ["--dist", "loadfile"]
    chaos = [sys.executable, "-m", "tools.chaos", "--seed", str(SEED), "--kills", str(kills)]
    return {"lives": [*pytest, *LIVES], "crash matrix": [*pytest, *CRASH_MATRIX], "chaos": chaos}


def main() -> int:
    parser = argparse.ArgumentParser(prog="make readings", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--sets", default="", help="names of tests/readings.py, separated by commas; default: all"
    )
    parser.add_argument("--suites", default="", help="lives, crash matrix, chaos; default: all")
    parser.add_argument("--kills", type=int, default=100, help="of chaos, for each set")
    parser.add_argument("--processes", type=int, default=3)
    given = parser.parse_args()
    sets = given.sets.split(",") if given.sets else [*SETS, *RANDOM]
    commands = suites(given.kills, given.processes)
    chosen = given.suites.split(",") if given.suites else list(commands)
    try:
        for name in sets:
            answers_of(name)
        for suite in chosen:
            commands[suite]
    except (KeyError, ValueError) as error:
        parser.error(str(error))
    results = {name: [run(suite, commands[suite], name) for suite in chosen] for name in sets}
    print("\n| Set | Suite | Result | Seconds |\n|---|---|---|---|")
    for name, parts in results.items():
        for part in parts:
            print(
                f"| {name} | {part.name} | {'' if part.ok else 'FAILED: '}{part.said} | {part.seconds:.0f} |"
            )
    return 0 if all(part.ok for parts in results.values() for part in parts) else 1


if __name__ == "__main__":
    sys.exit(main())
