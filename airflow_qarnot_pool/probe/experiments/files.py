"""Files in buckets, on the nodes of the shared pool and beside them."""

from __future__ import annotations

from typing import Any

from airflow_qarnot_pool.probe.experiment import Experiment, Observations
from airflow_qarnot_pool.probe.sender import Undecided
from airflow_qarnot_pool.probe.session import NO_RETRY, TASK_ENDS, Session, state_of

_ROUNDS = 5
_WRITES = 5
#: Dates of files have whole seconds.
_CLOCK_STEP = 1.1


def _results(session: Session, command: str, **fields: Any) -> list[str]:
    """Run a command, and return the files that it brought to a new bucket."""
    bucket = session.storage.new_bucket()
    session.run(command, resultBucket=bucket, **fields)
    for _ in range(_ROUNDS):
        if keys := session.storage.keys(bucket):
            break
        session.wait()
    return sorted(keys)


def observe_failed(session: Session) -> Observations:
    """Write a file and succeed, and write a file and fail."""
    return {
        "success": _results(session, "echo x > result.txt"),
        "failure": _results(session, "echo x > result.txt; exit 3", retrySettings=NO_RETRY),
    }


def judge_failed(seen: Observations) -> str | None:
    """Decide only if the control brought its file."""
    if not seen["success"]:
        return None
    return "yes" if seen["failure"] else "no"


def observe_patterns(session: Session) -> Observations:
    """Bring the files that match a regular expression, which is in the middle of the path."""
    command = "mkdir d && echo x > d/a1.txt && echo x > d/b.txt"
    return {
        "control": _results(session, command),
        "files": _results(session, command, resultsWhitelist=r"a\d"),
    }


def judge_patterns(seen: Observations) -> str | None:
    """Decide from the files, if the control has both."""
    answers = {
        ("d/a1.txt",): "expressions, searched in the path",
        (): "whole paths, or another dialect",
        ("d/a1.txt", "d/b.txt"): "ignored",
    }
    return answers.get(tuple(seen["files"])) if len(seen["control"]) == 2 else None


def observe_empty_prefix(session: Session) -> Observations:
    """Run a task whose resources have a prefix that no file has."""
    prefix = {"prefixFiltering": {"prefix": "nothing/"}}
    resources = [{"bucketName": session.storage.new_bucket(), "filtering": prefix}]
    fields = session.task_fields("true", session.pool_with_node())
    answer = session.create("tasks", **fields, advancedResourceBuckets=resources, retrySettings=NO_RETRY)
    if not answer.ok:
        return {"creation": answer.status, "state": None, "message": answer.message}
    state = state_of(session.until_state("tasks", str(answer.field("uuid")), TASK_ENDS))
    return {"creation": answer.status, "state": state}


def judge_empty_prefix(seen: Observations) -> str | None:
    """Distinguish a refusal from a task that fails."""
    if seen["creation"] >= 300:
        return "refused"
    return {"success": "yes", "failure": "the task fails"}.get(seen["state"])


def observe_resync(session: Session) -> Observations:
    """Add a file to the resources of the shared pool, re-sync it, and look for the file on its node."""
    pool, bucket = session.pool_with_node(), session.resources
    if bucket is None:
        raise Undecided("the shared pool has no resources")
    name = session.ledger.new_name()
    session.storage.put(bucket, name, b"late")

    def is_there() -> bool:
        return state_of(session.run(f"test -f /job/{name}", retrySettings=NO_RETRY)) == "success"

    before = is_there()
    answer = session.repeat("PATCH", f"/pools/{pool}")
    found = False
    for _ in range(_ROUNDS):
        if found := is_there():
            break
        session.wait()
    return {"before": before, "PATCH": answer.status, "afterwards": found}


def judge_resync(seen: Observations) -> str | None:
    """Decide only if the re-sync was accepted."""
    if seen["before"]:
        return "copied without a re-sync"
    if seen["PATCH"] >= 300:
        return None
    return "copied" if seen["afterwards"] else "not copied"


def observe_storage(session: Session) -> Observations:
    """Write files with one client and read them with another. Copy one onto itself."""
    ours, other, bucket = session.storage.s3, session.storage.connect(), session.storage.new_bucket()
    shown = 0
    for number in range(_WRITES):
        for content in (b"first", b"second"):
            ours.put_object(Bucket=bucket, Key=f"{number}", Body=content)
            listed = other.list_objects_v2(Bucket=bucket).get("Contents", ())
            read = other.get_object(Bucket=bucket, Key=f"{number}")["Body"].read()
            shown += read == content and f"{number}" in {entry["Key"] for entry in listed}
    before = other.head_object(Bucket=bucket, Key="0")["LastModified"]
    session.sleep(_CLOCK_STEP)
    source = {"Bucket": bucket, "Key": "0"}
    ours.copy_object(Bucket=bucket, Key="0", CopySource=source, MetadataDirective="REPLACE", Metadata={})
    after = other.head_object(Bucket=bucket, Key="0")["LastModified"]
    return {"shown at once": shown, "of": 2 * _WRITES, "the copy is newer": after > before}


def judge_storage(seen: Observations) -> str | None:
    """Decide for both questions together."""
    writes = "writes are shown at once" if seen["shown at once"] == seen["of"] else "writes are shown late"
    return f"{writes}, a copy {'renews' if seen['the copy is newer'] else 'keeps'} the date"


EXPERIMENTS = (
    Experiment("results-of-failed", observe_failed, judge_failed, ("yes",), needs_node=True, node_seconds=30),
    Experiment(
        "result-patterns",
        observe_patterns,
        judge_patterns,
        ("expressions, searched in the path",),
        needs_node=True,
        node_seconds=30,
    ),
    Experiment(
        "empty-prefix", observe_empty_prefix, judge_empty_prefix, ("yes",), needs_node=True, node_seconds=20
    ),
    Experiment("resync-copies", observe_resync, judge_resync, ("copied",), needs_node=True, node_seconds=30),
    Experiment(
        "storage-consistency",
        observe_storage,
        judge_storage,
        ("writes are shown at once, a copy renews the date",),
    ),
)
