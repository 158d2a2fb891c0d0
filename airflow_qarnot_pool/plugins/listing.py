"""The list of pools with its revisions, so that a page is sent only changes. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

#: Maximum number of pools that have left the list whose uuids are kept. A page that is further behind is sent all.
MAX_GONE = 1_000
#: Maximum number of words of a search, and characters of each.
MAX_WORDS, MAX_WORD = 10, 250


class RowEntry(NamedTuple):
    """A row of the page, and the parts of it that the tab of each DAG run shows of its own.

    ``left_out`` has the texts in lower case that do not fit into the row, for the search. Each part has its own.
    """

    row: dict[str, Any]
    runs: Mapping[tuple[str, str], dict[str, Any]]
    left_out: str = ""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """All rows, in the order of the page, and the revision in which each has changed last."""

    revision: int = 0
    #: By uuid.
    entries: Mapping[str, RowEntry] = field(default_factory=dict)
    changed: Mapping[str, int] = field(default_factory=dict)
    gone: Mapping[str, int] = field(default_factory=dict)
    #: The changes since this revision are known.
    oldest: int = 0

    def updated(self, entries: Iterable[RowEntry]) -> Listing:
        """Return the list with new rows, or this one if nothing has changed."""
        current = {entry.row["uuid"]: entry for entry in entries}
        changed = {uuid for uuid, entry in current.items() if self.entries.get(uuid) != entry}
        left = self.entries.keys() - current.keys()
        if not changed and not left:
            return self
        revision = self.revision + 1
        gone = {uuid: at for uuid, at in self.gone.items() if uuid not in current} | dict.fromkeys(
            left, revision
        )
        oldest = self.oldest
        while len(gone) > MAX_GONE:
            oldest = gone.pop(next(iter(gone)))
        return Listing(
            revision=revision,
            entries=current,
            changed={uuid: revision if uuid in changed else self.changed[uuid] for uuid in current},
            gone=gone,
            oldest=oldest,
        )

    def since(self, revision: int | None) -> tuple[list[dict[str, Any]], list[str]] | None:
        """Return the rows that have changed since a revision and the uuids that have left; None if that is unknown."""
        if revision is None or not self.oldest <= revision <= self.revision:
            return None
        rows = [self.entries[uuid].row for uuid, at in self.changed.items() if at > revision]
        return rows, [uuid for uuid, at in self.gone.items() if at > revision]


def words_of(search: str) -> list[str]:
    """Return the words of a search, in lower case."""
    return [word[:MAX_WORD] for word in dict.fromkeys(search.lower().split())][:MAX_WORDS]


def found_in(left_out: Mapping[str, str], words: Iterable[str]) -> dict[str, list[str]]:
    """Return the pools whose left out texts have a word, for each word. A page has the other texts itself."""
    return {word: [uuid for uuid, text in left_out.items() if word in text] for word in words}
