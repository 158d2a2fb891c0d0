"""Run the experiments one after the other, and judge their observations."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from airflow_qarnot_pool.api.errors import QarnotCredentialsError
from airflow_qarnot_pool.probe.experiment import Experiment, Observations
from airflow_qarnot_pool.probe.sender import Disturbed, Undecided
from airflow_qarnot_pool.probe.session import Session

#: Attempts of an experiment that was disturbed, each with new objects.
ATTEMPTS = 3


class Verdict(StrEnum):
    """Whether a row holds."""

    AS_ASSUMED = "as assumed"
    DIFFERS = "differs"
    NOT_DECIDED = "not decided"
    NOT_ASKED = "not asked"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one row.

    :param answer: the answer of the service in a few words, if it is decided.
    :param reason: why it is not decided or not asked.
    """

    row: str
    verdict: Verdict
    answer: str | None = None
    reason: str | None = None
    seen: Observations = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the finding for answers.json."""
        return asdict(self)


def run(
    session: Session,
    experiments: Iterable[Experiment],
    report: Callable[[Finding], None] = lambda finding: None,
) -> list[Finding]:
    """Run experiments in their order. Once a limit is reached, the others are not decided.

    :raises QarnotCredentialsError: the token is not valid.
    """
    findings: list[Finding] = []
    for experiment in experiments:
        finding = _run_one(session, experiment)
        session.report_costs()
        report(finding)
        findings.append(finding)
    return findings


def _run_one(session: Session, experiment: Experiment) -> Finding:
    """Run an experiment, and again with new objects if it was disturbed."""
    reason = ""
    for _ in range(ATTEMPTS):
        try:
            session.budget.check(session.clock(), experiment.node_seconds)
            if experiment.needs_node:
                session.pool_with_node()
            with session.experiment(experiment.seconds):
                seen = experiment.observe(session)
            return conclude(experiment, seen)
        except Disturbed as disturbance:
            reason = f"it was disturbed: {disturbance}"
            session.sleep(disturbance.retry_after)
        except Undecided as undecided:
            reason = str(undecided)
            break
        except QarnotCredentialsError:
            raise
        except Exception as error:
            # A response in another form than this experiment knows must not stop the others.
            reason = f"a response could not be understood: {type(error).__name__}"
            break
    return Finding(experiment.row, Verdict.NOT_DECIDED, reason=reason)


def conclude(experiment: Experiment, seen: Observations) -> Finding:
    """Judge observations. Pure."""
    answer = experiment.judge(seen)
    if answer is None:
        return Finding(
            experiment.row, Verdict.NOT_DECIDED, reason="the observations do not decide", seen=seen
        )
    holds = experiment.assumed is None or answer in experiment.assumed
    return Finding(experiment.row, Verdict.AS_ASSUMED if holds else Verdict.DIFFERS, answer, seen=seen)
