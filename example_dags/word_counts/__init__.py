"""A package beside the DAG file, which its environment brings to the nodes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping


def counted(text: str) -> dict[str, int]:
    """Count the words of a text."""
    return dict(Counter(re.findall(r"\w+", text.lower())))


def merged(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Add counts up."""
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(total)
