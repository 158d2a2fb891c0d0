"""The code blocks of the README and of docs/, and what a hidden comment above one says about it.

``<!-- test: ... -->`` on the line above a block holds words of this list:

- ``parse``: the DAG is loaded and not run (it needs something that a test cannot give it cheaply);
- ``continue``: the block goes on where the Python block before it on the page ended;
- ``pytest``: the block is a test file, and its tests pass;
- ``fails``: the DAG runs and is shown to fail;
- ``conf={...}``: the conf of the run, as JSON, to the end of the comment; ``$PWD`` is a directory of its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(
    r"^(?P<fence>```+|~~~+)(?P<language>\w*)[^\n]*\n(?P<code>.*?)^(?P=fence)[ \t]*$", re.M | re.S
)
_COMMENT = re.compile(r"<!--\s*test:\s*(?P<words>(?:(?!-->).)*?)\s*-->\s*\Z", re.S)
WORDS = {"parse", "continue", "fails", "pytest"}


@dataclass(frozen=True)
class Block:
    """A fenced block. ``code`` has what it continues before it, at the same line numbers as on the page."""

    page: str
    line: int
    language: str
    code: str
    words: frozenset[str] = frozenset()
    conf: str | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(path: Path) -> list[Block]:
    """The blocks of one page, in order."""
    text, found, python = path.read_text(), [], ""
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        comment = _COMMENT.search(text[: match.start()].rstrip(" "))
        words, conf = _read(comment["words"] if comment else "")
        unknown = words - WORDS
        assert not unknown, f"{path.name}:{line}: unknown words {sorted(unknown)}"
        code = match["code"]
        if match["language"] == "python":
            # Padded, so that a traceback names the line of the page.
            head = python if "continue" in words else ""
            code = head + "\n" * (line - head.count("\n")) + code
            python = code
        found.append(Block(path.name, line, match["language"], code, words, conf))
    return found


def _read(words: str) -> tuple[frozenset[str], str | None]:
    before, given, conf = words.partition("conf=")
    return frozenset(before.split()), conf if given else None


def blocks(*languages: str) -> list[Block]:
    """All blocks in one of *languages*."""
    return [one for page in PAGES if page.exists() for one in blocks_of(page) if one.language in languages]
