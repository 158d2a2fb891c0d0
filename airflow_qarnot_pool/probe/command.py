"""The command of the probe: run, print, write, and clean up whatever happens."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.errors import QarnotError
from airflow_qarnot_pool.probe.buckets import Buckets
from airflow_qarnot_pool.probe.budget import RunBudget
from airflow_qarnot_pool.probe.experiment import Experiment
from airflow_qarnot_pool.probe.experiments import EXPERIMENTS, NOT_ASKED
from airflow_qarnot_pool.probe.ledger import TAG, clean_up
from airflow_qarnot_pool.probe.options import OPTIONS
from airflow_qarnot_pool.probe.report import summary, table, write_answers
from airflow_qarnot_pool.probe.rows import read_rows
from airflow_qarnot_pool.probe.runner import Finding, Verdict, run
from airflow_qarnot_pool.probe.session import Session

#: Seconds between two polls.
PAUSE = 3.0
#: Times to look for objects at the end, if the response to a creation may be lost.
LOOKS = 5
DEFAULT_URL = "https://api.qarnot.com"
#: Exit code after a signal, as of a shell after SIGINT.
STOPPED = 130


class Stopped(BaseException):
    """A signal has arrived."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``python -m airflow_qarnot_pool.probe``. Return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m airflow_qarnot_pool.probe",
        description="Ask a Qarnot service the open questions of docs/assumptions.md, by small experiments.",
    )
    parser.add_argument(
        "--url", default=os.environ.get("QARNOT_CLUSTER_URL") or DEFAULT_URL, help="URL of the API"
    )
    parser.add_argument(
        "--token",
        default=os.environ.get("QARNOT_CLIENT_TOKEN", ""),
        help="API token. Other users of the machine see it here, so better set QARNOT_CLIENT_TOKEN",
    )
    for flags, about in OPTIONS.items():
        parser.add_argument(*flags, **about)
    options = parser.parse_args(arguments)
    try:
        with QarnotClient(options.url, options.token) as client:
            return probe(client, options.token, options)
    except QarnotError as error:
        print(error, file=sys.stderr)
        return 2


def probe(client: QarnotClient, token: str, options: Any) -> int:
    """Run the probe, or clean up. Return 1 if something may be left, and 130 after a signal.

    :param token: the API token of the client, for the storage.
    :param options: the values of ``OPTIONS``.
    """
    rows = read_rows()
    chosen = _check(options)
    client.account.check()
    if options.clean_up:
        objects = clean_up(client.transport, TAG, pause=PAUSE)
        return _report_left([*objects, *Buckets(client, token, TAG).clean_up()])
    ends_at = time.monotonic() + options.max_minutes * 60
    budget = RunBudget(options.max_cost, options.euros_per_node_hour, ends_at)
    session = Session(client, budget, token, profile=options.profile, image=options.image, pause=PAUSE)
    print(f"The tag of everything that this run creates is {session.ledger.tag}", flush=True)
    findings: list[Finding] = []
    started = datetime.now(UTC)
    was_stopped = False
    with _Signals() as signals:
        try:
            try:
                run(session, chosen, lambda finding: _note(findings, finding))
            finally:
                signals.are_ignored = True
        except Stopped:
            was_stopped = True
            print("Stopped. Deleting everything that was created ...", flush=True)
        finally:
            with suppress(Exception):  # nothing may stop the clean-up
                session.report_costs()
            ledger, looks = session.ledger, LOOKS if was_stopped or session.lost else 1
            left = clean_up(client.transport, ledger.tag, ledger.objects, looks=looks, pause=PAUSE)
            left += session.storage.clean_up()
            code = _report_left(left)
    if not options.only:
        findings += [Finding(row, Verdict.NOT_ASKED, reason=reason) for row, reason in NOT_ASKED.items()]
    order = list(rows)
    findings.sort(key=lambda finding: order.index(finding.row))
    spent = budget.spent(session.clock())
    write_answers(Path(options.answers), _document(client.url, started, session, findings, spent))
    print(table(findings, rows, shutil.get_terminal_size((160, 24)).columns))
    print(f"\n{summary(findings)}. Cost: at most {spent:.4f} EUR of {options.max_cost:g}.")
    if session.wire.limited:
        print(f"Qarnot answered 429 to {session.wire.limited} requests.")
    print(f"The answers are in {options.answers}.")
    return code or (STOPPED if was_stopped else 0)


def _check(options: Any) -> list[Experiment]:
    """Return the experiments of the options. Raises SystemExit for options that cannot be used."""
    for name in ("max_cost", "max_minutes", "euros_per_node_hour"):
        if not 0 < (value := getattr(options, name)) < float("inf"):
            raise SystemExit(f"--{name.replace('_', '-')} is not a positive number, got {value:g}. Give one.")
    answers = Path(options.answers).absolute()
    if not answers.parent.is_dir():
        raise SystemExit(
            f"--answers is not in a folder that exists, got {options.answers}. Create the folder."
        )
    if answers.is_dir() or not os.access(answers.parent, os.W_OK):
        raise SystemExit(
            f"--answers is not a file that can be written, got {options.answers}. Choose another."
        )
    return _experiments(options.only)


def _experiments(ids: str) -> list[Experiment]:
    """Return the experiments with these ids, which commas separate; all for none.

    :raises SystemExit: an id has no experiment.
    """
    only = [name for name in ids.split(",") if name]
    if unknown := [name for name in only if name not in EXPERIMENTS]:
        reasons = [f"{name} is not asked: {NOT_ASKED[name]}." for name in unknown if name in NOT_ASKED]
        remedy = " ".join(reasons) or f"Give some of {', '.join(EXPERIMENTS)}."
        raise SystemExit(f"--only has ids without an experiment, got {', '.join(unknown)}. {remedy}")
    return [experiment for row, experiment in EXPERIMENTS.items() if not only or row in only]


def _note(findings: list[Finding], finding: Finding) -> None:
    findings.append(finding)
    print(f"{finding.row}: {finding.answer or finding.reason}", flush=True)


def _document(
    url: str, started: datetime, session: Session, findings: Sequence[Finding], spent: float
) -> dict[str, Any]:
    return {
        "url": url,
        "started": started.isoformat(timespec="seconds"),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "boot seconds": session.booted_after,
        "cost": {
            "at most euros": round(spent, 6),
            "reported euros": round(sum(session.budget.reported.values()), 6),
            "node-seconds": round(session.budget.node_seconds(session.clock()), 1),
        },
        "rows": {finding.row: finding.to_json() for finding in findings},
    }


def _report_left(left: Sequence[str]) -> int:
    if not left:
        print("Everything that the probe created is deleted.")
        return 0
    print("\n".join(left), file=sys.stderr)
    print("Something may be left. Run the same command with --clean-up.", file=sys.stderr)
    return 1


class _Signals:
    """Raise Stopped on the first SIGINT, SIGTERM or SIGHUP. Ignore later ones, because the clean-up must finish."""

    def __init__(self) -> None:
        self.are_ignored = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        with suppress(ValueError):  # not the main thread, which alone gets signals
            numbers = [signal.SIGINT, signal.SIGTERM]
            if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as after nohup
                numbers.append(signal.SIGHUP)
            for number in numbers:
                self._before[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: Any) -> None:
        if not self.are_ignored:
            self.are_ignored = True
            raise Stopped
