"""The experiments, and the reasons of the rows without one."""

from __future__ import annotations

from airflow_qarnot_pool.probe.experiment import Experiment
from airflow_qarnot_pool.probe.experiments import files, lives, names, searches, work

#: In the order in which they run: those without a node first, because they cost nothing.
EXPERIMENTS: dict[str, Experiment] = {
    experiment.row: experiment
    for experiment in sorted(
        (
            *names.EXPERIMENTS,
            *lives.EXPERIMENTS,
            *searches.EXPERIMENTS,
            *work.EXPERIMENTS,
            *files.EXPERIMENTS,
        ),
        key=lambda experiment: (experiment.needs_node, experiment.node_seconds),
    )
} | {experiment.row: experiment for experiment in searches.LAST}

_FULL = "the account would have to be full, which stops its other work"
#: Why a row is not asked.
NOT_ASKED: dict[str, str] = {
    "snapshot-place": "it would run a node for as long as Qarnot takes for a snapshot, which is not known",
    "resources-again": "nothing from outside loses a node",
    "wait-for-resync": "a copy that is fast cannot be told from one that a task waits for",
    "bucket-names": "a bucket with an odd name might not be deletable",
    "profile-networks": "it would boot a node for each profile",
    "rate-limits": "a burst of requests could block the account; a 429 that is met is counted",
    "effect-of-5xx": "nothing provokes such a failure of the service",
    "body-sizes": "the limit can only be found with requests that burden the service",
    "downloading-results": "a state that is not seen may still exist",
    "failure-recovers": "nothing shows within minutes that a pool never recovers",
    "credential-variables": "it would bring the token of the account to a node",
    "place-of-deleted": _FULL,
    "bulk-beyond-quota": _FULL,
    "bucket-owners": "it needs a second account",
    "registry-login": "it needs a private registry and its login",
}
