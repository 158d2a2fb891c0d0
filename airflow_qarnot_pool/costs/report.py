"""Report the costs of a period by DAG, Airflow task and tag, as data and as a small table."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING, Any, Literal

from airflow_qarnot_pool.api.errors import shortened
from airflow_qarnot_pool.costs.model import (
    Cost,
    PoolCost,
    TaskUsage,
    format_euros,
    format_grams,
    format_watt_hours,
    sum_costs,
)
from airflow_qarnot_pool.costs.queries import (
    cost_of_pool,
    cost_of_standalone_task,
    list_created,
    suppress_deleted,
)
from airflow_qarnot_pool.ownership.identity import RunKey, instance_of

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.client import QarnotClient

GroupBy = Literal["dag", "task", "tag"]
GROUP_NAMES: dict[GroupBy, str] = {"dag": "DAG", "task": "Airflow task", "tag": "Tag"}
#: Maximum characters of a name in a table. Airflow's ids have up to 250 each.
_MAX_NAME = 510
NO_DAG = "(no DAG)"
NO_WORK = "(opened, and nothing ran on it)"
NO_TAG = "(no tag)"
NOTHING = "Nothing was opened in this period."
#: Characters that are markup in Markdown. An underscore within a word is not.
_MARKUP = re.compile(r"[\\`*{}\[\]<>&|~$]|(?<![^\W_])_|_(?![^\W_])")
#: Characters that some renderers do not unescape after a backslash.
_ESCAPED = {"\\": "&#92;", "<": "&lt;", ">": "&gt;", "&": "&amp;", "~": "&#126;", "$": "&#36;"}
#: Explanation of the columns, because the readers of a mail may not know our documentation.
LEGEND = (
    "Idle: the part of what was paid in which nothing ran. "
    "Saved: what the reference data centre would have emitted more, reused heat included."
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line: a name, the number of its DAG runs, and its cost."""

    name: str
    runs: int
    cost: Cost

    def to_json(self) -> dict[str, Any]:
        """Return ``{name, runs, cost}``."""
        return {"name": self.name, "runs": self.runs, "cost": self.cost.to_json()}


@dataclass(frozen=True, kw_only=True)
class Item:
    """The cost of one Qarnot task (or of a pool on which no task ran), and the groups that it belongs to."""

    run: RunKey
    task_id: str
    tags: frozenset[str]
    cost: Cost


@dataclass(frozen=True, kw_only=True)
class CostReport:
    """The costs of the pools and Qarnot tasks that were created from *since* on, and before *until*."""

    since: datetime
    until: datetime
    items: tuple[Item, ...]
    pools: int

    @property
    def total(self) -> Cost:
        """The sum of all costs."""
        return sum_costs(item.cost for item in self.items)

    def rows(self, group_by: GroupBy) -> list[Row]:
        """Return the cost of each DAG, Airflow task or tag, the highest first. An item counts under all its tags."""
        costs: dict[str, Cost] = {}
        runs: dict[str, set[RunKey]] = {}
        for item in self.items:
            for name in _GROUP_KEYS[group_by](item):
                costs[name] = costs.get(name, Cost()) + item.cost
                runs.setdefault(name, set()).add(item.run)
        rows = [Row(name=name, runs=len(runs[name]), cost=cost) for name, cost in costs.items()]
        return sorted(rows, key=lambda row: (-(row.cost.euros or 0.0), row.name))

    def to_json(self, group_by: Sequence[GroupBy], max_rows: int) -> dict[str, Any]:
        """Return the report as JSON, with at most *max_rows* rows for each of *group_by*.

        ``{since, until, pools, total, dag: [row], ...}``.
        """
        return {
            "since": self.since.isoformat(),
            "until": self.until.isoformat(),
            "pools": self.pools,
            "total": self.total.to_json(),
            **{group: [row.to_json() for row in self.rows(group)[:max_rows]] for group in group_by},
        }

    @property
    def headline(self) -> str:
        """A summary in one sentence. If the cost of a part is unknown, the rest is given as a minimum."""
        since, until = (f"{time.astimezone(UTC):%Y-%m-%d %H:%M}" for time in (self.since, self.until))
        known = [item.cost for item in self.items if item.cost.euros is not None]
        unknown = len(self.items) - len(known)
        cost = (
            f"at least {sum_costs(known)} (the cost of {unknown} is not known)"
            if unknown
            else str(self.total)
        )
        return f"{since} to {until} UTC: {cost}, {self.pools} pool{'' if self.pools == 1 else 's'}"

    def markdown(self, group_by: Sequence[GroupBy], max_rows: int) -> str:
        """Return the headline, and a table for each of *group_by*."""
        parts = [self.headline]
        if not self.items:
            return f"{self.headline}\n\n{NOTHING}\n"
        for group, header, rows in self._tables(group_by, max_rows):
            lines = [_markdown_row(header), _markdown_row(["---", *["---:"] * (len(header) - 1)])]
            lines += [_markdown_row(map(_escape_markdown, row)) for row in rows]
            parts.append(f"**By {GROUP_NAMES[group]}**\n\n" + "\n".join(lines))
        parts.append(f"*{LEGEND}*")
        return "\n\n".join(parts) + "\n"

    def html(self, group_by: Sequence[GroupBy], max_rows: int) -> str:
        """Return the same as HTML, with inline styles, because mail programs ignore others."""
        cell = "padding:2px 10px;border-bottom:1px solid #ddd;"
        name, number = (
            f"{cell}text-align:left;word-break:break-word",
            f"{cell}text-align:right;white-space:nowrap",
        )
        parts = [f"<p>{escape(self.headline)}</p>"]
        if not self.items:
            return f"{parts[0]}\n<p>{NOTHING}</p>"
        for group, header, rows in self._tables(group_by, max_rows):
            lines = []
            for tag, row in [("th", header), *(("td", row) for row in rows)]:
                cells = [
                    f'<{tag} style="{number if position else name}">{escape(text)}</{tag}>'
                    for position, text in enumerate(row)
                ]
                lines.append(f"<tr>{''.join(cells)}</tr>")
            table = '<table style="border-collapse:collapse">' + "".join(lines) + "</table>"
            parts.append(f"<h4>By {escape(GROUP_NAMES[group])}</h4>{table}")
        parts.append(f'<p style="color:#666;font-size:smaller">{LEGEND}</p>')
        return "\n".join(parts)

    def _tables(
        self, group_by: Sequence[GroupBy], max_rows: int
    ) -> Iterable[tuple[GroupBy, list[str], list[list[str]]]]:
        for group in group_by:
            rows = self.rows(group)
            cents = any((row.cost.euros or 0.0) >= 1 for row in rows)
            lines = [_cells(row.name, str(row.runs), row.cost, cents) for row in rows[:max_rows]]
            if len(rows) > max_rows:
                rest = sum_costs(row.cost for row in rows[max_rows:])
                lines.append(_cells(f"{len(rows) - max_rows} more", "", rest, cents))
            yield group, [GROUP_NAMES[group], "Runs", "Cost", "Energy", "Carbon", "Saved", "Idle"], lines


def _cells(name: str, runs: str, cost: Cost, cents: bool) -> list[str]:
    """Return the cells of a row.

    :param cents: round to cents, because more decimals are hard to read in a column of euros.
    """
    idle = "" if not cost.node_seconds else f"{(cost.idle_node_seconds or 0.0) / cost.node_seconds:.0%}"
    energy = "?" if cost.energy_wh is None else format_watt_hours(cost.energy_wh)
    if cost.euros is None:
        paid = "?"
    elif cents:
        paid = "< 0.01 EUR" if 0 < cost.euros < 0.005 else f"{cost.euros:.2f} EUR"
    else:
        paid = format_euros(cost.euros)
    carbon, saved = (
        "?" if amount is None else format_grams(amount) for amount in (cost.carbon_g, cost.saved_g)
    )
    return [shortened(name, _MAX_NAME), runs, paid, energy, carbon, saved, idle]


def _escape_markdown(text: str) -> str:
    """Return *text* for a cell of a Markdown table: on one line, and without markup for any renderer."""
    words = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return _MARKUP.sub(lambda match: _ESCAPED.get(match[0]) or f"\\{match[0]}", words)


def _markdown_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


_GROUP_KEYS: dict[GroupBy, Callable[[Item], Iterable[str]]] = {
    "dag": lambda item: [item.run.dag_id or NO_DAG],
    "task": lambda item: [f"{item.run.dag_id}.{item.task_id or NO_WORK}" if item.run.dag_id else NO_DAG],
    "tag": lambda item: sorted(item.tags) or [NO_TAG],
}


def items_of(pool: PoolCost, uuids: Collection[str] | None = None) -> list[Item]:
    """Return the shares of the Qarnot tasks on *pool*.

    :param uuids: only those of these Qarnot tasks; "" is the rest of the pool. None: all.
    """
    no_task = TaskUsage(uuid="", run=pool.opened_by)
    shares = pool.share_by(lambda task: task, no_task)
    return [
        Item(run=work.run, task_id=work.task_id, tags=frozenset({*work.tags, *pool.tags}), cost=cost)
        for work, cost in shares.items()
        if uuids is None or work.uuid in uuids
    ]


def cost_report(
    client: QarnotClient, namespace: str, since: datetime, until: datetime, reference: str | None = None
) -> CostReport:
    """Return the costs of all objects of *namespace* that were created in a period.

    This takes two listings, three requests for each pool and two for each Qarnot task without a pool. Deleted objects
    are not included. A pool of the executor is open for many periods. Each has the execution of its Qarnot tasks, and
    the one in which the pool was created has the idle time so far.
    """
    pools, tasks = list_created(client, namespace, since, until, slack=False)
    items: list[Item] = []
    counted = 0
    uuids = {task.uuid for task in tasks}
    for pool in pools:
        with suppress_deleted():
            cost = cost_of_pool(client, pool.uuid, reference, pool=pool)
            items += items_of(cost, {*uuids, ""} if cost.is_of_executor else None)
            counted += 1
    older = {task.pool for task in tasks if task.pool and instance_of(task)} - {pool.uuid for pool in pools}
    for uuid in sorted(older):
        with suppress_deleted():
            items += items_of(cost_of_pool(client, uuid, reference), uuids)
            counted += 1
    for task in tasks:
        if not task.pool:
            work = TaskUsage.of(task)
            paid = cost_of_standalone_task(client, task, reference)
            items.append(Item(run=work.run, task_id=work.task_id, tags=frozenset(work.tags), cost=paid))
    return CostReport(since=since, until=until, items=tuple(items), pools=counted)
