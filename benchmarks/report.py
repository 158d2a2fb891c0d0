"""What all programs share: their command line, tables, growth exponents, targets, and figures as flat JSON."""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

Cell = str | float | int | None
#: What the figures of most programs are without.
WITHOUT_AIRFLOW = (
    "Airflow's own time is not in these figures: its scheduler, its database and the start of a task's process. "
    "`dag_makespan` measures it."
)


def exponent(points: Mapping[int, float], start: int = 100) -> float | None:
    """How a figure grows with N, from *start* to the largest N measured: 0 not at all, 1 as N does, 2 as N².

    None without two figures to compare, or if a figure is too close to 0 to have a ratio.
    """
    counts = [n for n in points if n >= start]
    least, most = min(counts, default=0), max(counts, default=0)
    if not least < most or points[least] <= 0 or points[most] <= 0:
        return None
    return math.log(points[most] / points[least]) / math.log(most / least)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that *share* (0..1) of *values* do not exceed; NaN of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def median(values: Sequence[float]) -> float:
    """The median; NaN of nothing."""
    return statistics.median(values) if values else math.nan


def shown(value: Cell) -> str:
    """A figure as people read it: three digits that count."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value else "0"


def _slug(text: str) -> str:
    return re.sub(r"_*\._*", ".", re.sub(r"[^a-z0-9.]+", "_", text.lower())).strip("_.")


class Table:
    """A table that is printed when the program is done."""

    def __init__(self, title: str, columns: Sequence[str], note: str = "") -> None:
        self.title, self.columns, self.note = title, list(columns), note
        self.rows: list[list[str]] = []

    def row(self, *cells: Cell) -> None:
        assert len(cells) == len(self.columns), (cells, self.columns)
        self.rows.append([shown(cell) for cell in cells])

    def __str__(self) -> str:
        widths = [max(len(line[i]) for line in [self.columns, *self.rows]) for i in range(len(self.columns))]

        def line(cells: Sequence[str]) -> str:
            first, *rest = (
                cell.ljust(w) if i == 0 else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
            )
            return "| " + " | ".join([first, *rest]) + " |"

        rule = (
            "|"
            + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths))
            + "|"
        )
        text = "\n".join([f"### {self.title}", "", line(self.columns), rule, *map(line, self.rows)])
        return f"{text}\n\n{self.note}" if self.note else text


class Report:
    """Tables, figures and targets of one program."""

    def __init__(
        self, name: str, waiters: int, quick: bool, options: Mapping[str, str] | None = None
    ) -> None:
        self.name, self.waiters, self.quick = name, waiters, quick
        #: Values of the program's own options, by their names.
        self.options = options or {}
        self.tables: list[Table] = []
        self.figures: dict[str, float] = {}
        self.targets: list[tuple[str, str, bool]] = []
        self._began = time.monotonic()

    def table(self, title: str, columns: Sequence[str], note: str = "") -> Table:
        self.tables.append(Table(title, columns, note))
        return self.tables[-1]

    def figure(self, key: str, value: float | None) -> None:
        """A figure for the JSON, under the program's name and *key* (lower case, no spaces)."""
        if value is not None and not math.isnan(value):
            self.figures[f"{self.name}.{_slug(key)}"] = round(value, 6)

    def target(
        self, what: str, measured: float | None, limit: float, *, least: bool = False, unit: str = ""
    ) -> None:
        """Compare a figure with its target: at most *limit*, or at least."""
        if measured is None or math.isnan(measured):
            return
        met = measured >= limit if least else measured <= limit
        bound = f"{'at least' if least else 'at most'} {shown(limit)}{unit}"
        self.targets.append((what, f"{shown(float(measured))}{unit} ({bound})", met))
        self.figures[f"{self.name}.target.{_slug(what)}"] = float(met)

    def say(self, text: str) -> None:
        """Progress, on standard error."""
        print(f"[{self.name} {time.monotonic() - self._began:5.0f} s] {text}", file=sys.stderr, flush=True)

    def __str__(self) -> str:
        parts = [str(table) for table in self.tables]
        if self.targets:
            goals = Table("Targets", ["target", "measured", ""])
            for what, measured, met in self.targets:
                goals.row(what, measured, "met" if met else "**missed**")
            parts.append(str(goals))
        return "\n\n".join(parts)


def main(
    name: str,
    text: str | None,
    measure: Callable[[Report], None],
    *,
    waiters: int,
    meaning: str,
    with_airflow: bool = False,
    options: Mapping[str, tuple[str, str]] | None = None,
) -> None:
    """Run one program.

    :param waiters: default of ``--waiters``; *meaning* describes it in the help.
    :param options: further options by their names: the default and the help.
    :param with_airflow: the figures include Airflow's own time. The output of other programs says that they do not.
    """
    from benchmarks import environment

    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=text)
    parser.add_argument(
        "--waiters", type=int, default=waiters, metavar="N", help=f"{meaning} (default {waiters:,})"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there, too")
    parser.add_argument(
        "--quick", action="store_true", help="a few seconds, to see that it works; the figures mean nothing"
    )
    parser.add_argument("--page", type=Path, metavar="PATH", help="write the tables there, too, as Markdown")
    for option, (default, description) in (options or {}).items():
        parser.add_argument(f"--{option}", default=default, help=f"{description} (default {default})")
    given = parser.parse_args()
    if given.waiters < 1:
        parser.error("--waiters must be at least 1")
    own = {option: getattr(given, option) for option in options or {}}
    report = Report(name, given.waiters, given.quick, own)
    with environment.prepared():
        measure(report)
    found = str(report) if with_airflow else f"{WITHOUT_AIRFLOW}\n\n{report}"
    print(found)
    if given.page:
        given.page.write_text(f"{(text or '').strip()}\n\n{found}\n".replace("``", "`"))
    if given.json:
        given.json.write_text(json.dumps(report.figures, indent=2) + "\n")
    report.say("done")
