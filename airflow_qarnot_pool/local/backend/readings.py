"""How the local Qarnot reads the open questions of docs/assumptions.md, and the alternatives that it can be given."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


def _reading(*answers: str) -> Any:
    """Return a field. Its values are the answers of the probe that can be simulated, the default first."""
    return field(default=answers[0], metadata={"answers": answers})


@dataclass(frozen=True, slots=True)
class Readings:
    """One answer for each question. A field is the id of a row of docs/assumptions.md, with underscores."""

    queued_at_close: str = _reading("cancelled", "queued ones stay")
    task_on_closed_pool: str = _reading("400", "403")
    pool_name_taken: str = _reading("400", "403", "409", "422", "accepted")
    name_of_closed_pool: str = _reading("taken until deleted", "free once closed", "not enforced")
    shortname_in_path: str = _reading("yes", "no")
    shortname_in_pool_uuid: str = _reading("no", "yes")
    names_as_uuids: str = _reading("no", "yes")
    shortname_length: str = _reading("256 or more", "63", "64 to 255")
    unknown_references: str = _reading("400", "404")
    unit_of_limits: str = _reading("UTF-16 units", "characters", "bytes", "no limit of 511")
    range_end: str = _reading("included", "not included")
    max_instances: str = _reading("2048", "more than 2048", "fewer than 2048")
    instances_in_search: str = _reading("returned", "not returned", "refused")
    output_kept: str = _reading("kept", "lost")
    results_of_failed: str = _reading("yes", "no")
    result_patterns: str = _reading(
        "expressions, searched in the path", "whole paths, or another dialect", "ignored"
    )
    empty_prefix: str = _reading("yes", "the task fails")
    resync_copies: str = _reading("copied", "not copied")
    storage_consistency: str = _reading(
        "writes are shown at once, a copy renews the date", "writes are shown at once, a copy keeps the date"
    )
    retries_replaced: str = _reading("replaced", "not replaced")
    progress_scale: str = _reading("0 to 100", "0 to 1")
    scheduling_spelling: str = _reading("flex", "Flex")
    in_filter: str = _reading("either", "value", "values")
    carbon_keys: str = _reading("both", "as the SDKs", "as OpenAPI")
    close_again: str = _reading("403", "200")
    abort_again: str = _reading("200", "403")
    put_on_closed: str = _reading("refused", "changed", "ignored")
    put_instance_count: str = _reading("ignored", "applied", "refused")
    put_absent_keys: str = _reading("unchanged", "reset")
    output_cursor: str = _reading("GET does not move it", "GET moves it", "POST repeats")
    capacity_unit: str = _reading("slots", "nodes")
    elastic_and_scaling: str = _reading("an error", "no")
    resize_bounds: str = _reading("both accepted", "not resizePeriod 1")
    count_with_elastic: str = _reading("ignored", "refused")
    resync_without_nodes: str = _reading("200", "400")
    bulk_all_fail: str = _reading("207 list", "400 list", "400 message")
    job_without_tasks: str = _reading("the pool closes, the job stays", "the pool closes, the job goes")
    job_creation: str = _reading("no pool, listed at once", "it needs a pool")
    labels_of_copies: str = _reading("replaced", "merged", "kept")
    clone_of_closed: str = _reading("yes", "no")
    date_header: str = _reading("a close clock", "another clock", "no date")
    execution_time: str = _reading("of nodes", "of slots")
    costs_at_first: str = _reading("credits 0, carbon facts 200", "credits 404, carbon facts 404")
    credits_of_deleted: str = _reading("reported", "not reported")
    credits_of_tasks: str = _reading("0", "its own", "not reported")
    secret_variables: str = _reading("its own name", "without the prefix")
    error_codes: str = _reading("LOCAL_EXIT_CODE", "GHX0001E")
    other_states: str = _reading("none seen", "Idle")

    @classmethod
    def choices(cls) -> dict[str, tuple[str, ...]]:
        """Return the possible answers of each question."""
        return {field.name: field.metadata["answers"] for field in dataclasses.fields(cls)}

    def with_answers(self, answers: Mapping[str, Any]) -> tuple[Readings, list[str]]:
        """Return readings with other answers, and a sentence for each answer that cannot be simulated.

        :param answers: answers by id, with hyphens or underscores.
        """
        choices, changes, unknown = self.choices(), {}, []
        for row, answer in answers.items():
            name = row.replace("-", "_")
            if answer in choices.get(name, ()):
                changes[name] = answer
            else:
                known = " or ".join(map(repr, choices.get(name, ()))) or "no answer to this question"
                unknown.append(f"{row}: {answer!r} is not simulated, but {known}")
        return dataclasses.replace(self, **changes), unknown


#: The readings of a local Qarnot that is given no others.
DEFAULT_READINGS = Readings()
#: Rows whose answers are numbers. They become settings of searches.
NOT_SIMULATED = frozenset({"search-cap", "search-lag", "page-tokens"})


def read_answers(text: str) -> dict[str, str]:
    """Return the decided answers of an answers.json, by row. Raises ValueError."""
    document = json.loads(text)
    rows = document.get("rows") if isinstance(document, dict) else None
    if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
        raise ValueError("it has no rows; it is written by python -m airflow_qarnot_pool.probe")
    return {id: row["answer"] for id, row in rows.items() if isinstance(row.get("answer"), str)}


def search_limits(answers: dict[str, str]) -> tuple[int | None, float]:
    """Take the answers about searches out of *answers*. Return the cap and the lag in seconds that they mean."""
    taken = {row: answers.pop(row, "") for row in ("search-cap", "search-lag")}
    cap, lag = taken["search-cap"], re.fullmatch(r"up to (\d{1,6}(?:\.\d{1,6})?) s", taken["search-lag"])
    return int(cap) if re.fullmatch("[0-9]{1,9}", cap) else None, float(lag[1]) if lag else 0.0


def token_limit(answers: dict[str, str]) -> float | None:
    """Take the answer about page tokens out of *answers*. Return their life in seconds, or None for no limit."""
    life = re.fullmatch(r"less than (\d{1,6}) s", answers.pop("page-tokens", ""))
    return float(life[1]) if life else None
