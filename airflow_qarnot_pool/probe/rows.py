"""The rows of docs/assumptions.md, which is the only place of their words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).parent
#: In the wheel, and in a source tree.
_PLACES = (_HERE / "assumptions.md", _HERE.parent.parent / "docs" / "assumptions.md")
_CELL = re.compile(r"(?<!\\)\|")
_ID = re.compile(r"`([a-z0-9-]+)`")
_LINK = re.compile(r"\[([^]]*)\]\([^)]*\)")


@dataclass(frozen=True, slots=True)
class Assumption:
    """One open question. ``effect`` says what happens if the service differs."""

    id: str
    question: str
    assumption: str
    effect: str


def read_rows() -> dict[str, Assumption]:
    """Return the rows by id, in the order of the page."""
    page = next(place for place in _PLACES if place.exists())
    return parse_rows(page.read_text(encoding="utf-8"))


def parse_rows(page: str) -> dict[str, Assumption]:
    """Parse the table of the page. Each row starts with an id in backticks."""
    rows: dict[str, Assumption] = {}
    for line in page.splitlines():
        cells = [_plain(cell) for cell in _CELL.split(line)[1:-1]]
        if len(cells) == 4 and (named := _ID.fullmatch(cells[0])):
            rows[named[1]] = Assumption(named[1], *cells[1:])
    return rows


def _plain(cell: str) -> str:
    return _LINK.sub(r"\1", cell).replace("\\|", "|").strip()
