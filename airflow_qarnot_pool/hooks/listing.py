"""List the files of a bucket below many prefixes, in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

#: Sorts after nearly all keys.
_LAST = "~~~~"


def pages(s3: Any, bucket: str, prefixes: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield the pages of *bucket* that may have keys with one of *prefixes*, in the order of keys.

    Each page is a response of ``ListObjectsV2`` with up to 1,000 keys. Thousands of prefixes with few files cost one
    request. A gap between two prefixes that is longer than a page is skipped.
    """
    remaining = _outermost(prefixes)
    if not remaining:
        return
    common = _common_start(remaining[0], remaining[-1])
    position = {"StartAfter": _start(remaining[0])} if remaining[0] != common else {}
    while remaining:
        page: dict[str, Any] = s3.list_objects_v2(Bucket=bucket, Prefix=common, **position)
        yield page
        if not page.get("IsTruncated"):
            return
        position = {"ContinuationToken": page["NextContinuationToken"]}
        if not page.get("Contents"):
            continue
        last = page["Contents"][-1]["Key"]
        remaining = [prefix for prefix in remaining if last < prefix or last.startswith(prefix)]
        if remaining and last < _start(remaining[0]):
            position = {"StartAfter": _start(remaining[0])}


def date_of(page: dict[str, Any]) -> datetime | None:
    """Return the time of the storage's clock at which it sent *page*, if it says so."""
    try:
        return parsedate_to_datetime(page["ResponseMetadata"]["HTTPHeaders"]["date"])
    except (KeyError, ValueError):
        return None


def _outermost(prefixes: Iterable[str]) -> list[str]:
    """Return *prefixes* in the order of keys, without those below another one."""
    outermost: list[str] = []
    for prefix in sorted(set(prefixes)):
        if not outermost or not prefix.startswith(outermost[-1]):
            outermost.append(prefix)
    return outermost


def _common_start(first: str, last: str) -> str:
    """Return the start that two texts have in common, and all texts that are sorted between them."""
    length = 0
    while length < min(len(first), len(last)) and first[length] == last[length]:
        length += 1
    return first[:length]


def _start(prefix: str) -> str:
    """Return a text that is sorted closely before *prefix*, because ``StartAfter`` excludes the key itself."""
    if not prefix:
        return ""
    before = ord(prefix[-1]) - 1
    # Control characters and surrogates are no text of a key.
    return f"{prefix[:-1]}{chr(before)}{_LAST}" if 32 <= before < 0xD800 else prefix[:-1]
