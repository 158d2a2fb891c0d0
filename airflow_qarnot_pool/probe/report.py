"""The findings as a table, and as a file."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from airflow_qarnot_pool.probe.rows import Assumption
from airflow_qarnot_pool.probe.runner import Finding, Verdict

_HEADS = ("question", "reading taken", "seen", "does it matter")
#: Widths of the columns as shares of the line.
_SHARES = (0.26, 0.2, 0.26, 0.28)
_MIN_WIDTH = 100
_MAX_DETAILS = 160


def table(findings: Iterable[Finding], rows: Mapping[str, Assumption], width: int) -> str:
    """Return the findings as a table of text.

    :param width: maximum length of a line, at least 100 characters.
    """
    widths = [int(max(width, _MIN_WIDTH) * share) - 2 for share in _SHARES]
    lines = [_HEADS, *(cells(finding, rows[finding.row]) for finding in findings)]
    rule = "  ".join("-" * size for size in widths)
    return f"\n{rule}\n".join(_line(line, widths) for line in lines)


def cells(finding: Finding, row: Assumption) -> tuple[str, str, str, str]:
    """Return the four cells of a finding."""
    matters = row.effect if finding.verdict is Verdict.DIFFERS else ""
    if finding.verdict is Verdict.AS_ASSUMED:
        matters = "No, it is as assumed."
    return f"{row.id}: {row.question}", row.assumption, seen(finding), matters


def seen(finding: Finding) -> str:
    """Return the answer or the reason, and the observations."""
    details = ", ".join(f"{name} {value}" for name, value in finding.seen.items() if value not in (None, ""))
    first = finding.answer or f"{finding.verdict}: {finding.reason}"
    return f"{first} ({textwrap.shorten(details, _MAX_DETAILS, placeholder=' ...')})" if details else first


def _line(texts: Sequence[str], widths: Sequence[int]) -> str:
    columns = [textwrap.wrap(text, size) or [""] for text, size in zip(texts, widths, strict=True)]
    height = max(map(len, columns))
    padded = [column + [""] * (height - len(column)) for column in columns]
    return "\n".join(
        "  ".join(part.ljust(size) for part, size in zip(parts, widths, strict=True)).rstrip()
        for parts in zip(*padded, strict=True)
    )


def summary(findings: Sequence[Finding]) -> str:
    """Return the number of rows by verdict."""
    counts = {verdict: sum(1 for finding in findings if finding.verdict is verdict) for verdict in Verdict}
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)


def write_answers(path: Path, document: Mapping[str, Any]) -> None:
    """Replace the file in one step. It is never half written."""
    with NamedTemporaryFile("w", dir=path.absolute().parent, prefix=f".{path.name}.", delete=False) as draft:
        try:
            json.dump(document, draft, indent=2)
            draft.write("\n")
            draft.flush()
            os.fsync(draft.fileno())
            os.replace(draft.name, path)
        except BaseException:
            os.unlink(draft.name)
            raise
