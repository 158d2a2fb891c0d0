"""An experiment: how one row is asked, and how its answer follows from the observations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from airflow_qarnot_pool.probe.session import Session

#: Simple values by name, in the order in which they are shown.
Observations = dict[str, Any]
Observe = Callable[[Session], Observations]
Judge = Callable[[Observations], str | None]


@dataclass(frozen=True, slots=True)
class Experiment:
    """One row of docs/assumptions.md as an experiment.

    :param row: id of the row.
    :param observe: sends the requests. Raises Undecided.
    :param judge: returns the answer, or None if the observations do not decide. Pure.
    :param assumed: the answers under which the assumption holds. None: under any.
    :param node_seconds: the cost bound, in seconds of one node, beside the boot of the shared pool.
    :param seconds: the time bound, without that boot.
    """

    row: str
    observe: Observe
    judge: Judge
    assumed: tuple[str, ...] | None = None
    needs_node: bool = False
    node_seconds: float = 0.0
    seconds: float = 180.0


def accepted_or_status(key: str, accepted: str = "accepted") -> Judge:
    """Return a judge of one status: the word for a success, else the status."""
    return lambda seen: accepted if seen[key] < 300 else str(seen[key])


def yes_or_no(key: str) -> Judge:
    """Return a judge of one status: yes for a success."""
    return lambda seen: "yes" if seen[key] < 300 else "no"
