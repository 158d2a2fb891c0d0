"""The code blocks of the README and of docs/, with the instructions in the hidden comments above them.

``<!-- test: ... -->`` on the line above a block contains words of this list:

- ``parse``: load the DAG and do not run it, because its needs are too expensive for a test;
- ``continue``: continue the Python block before it on the page;
- ``excerpt``: compile the block, which is part of a DAG;
- ``pytest``: run the block as a test file;
- ``peer``: code of another provider: load the DAG if that provider is installed, and compile it anyway;
- ``fails``: expect the DAG run to fail;
- ``conf={...}``: the conf of the run, as JSON, to the end of the comment; ``$PWD`` is a temporary directory.
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
WORDS = {"parse", "continue", "fails", "pytest", "excerpt", "peer"}


@dataclass(frozen=True)
class Block:
    """A fenced block. ``code`` starts with the block that it continues, and has the line numbers of the page."""

    page: str
    line: int
    language: str
    code: str
    words: frozenset[str] = frozenset()
    conf: str | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(path: Path) -> list[Block]:
    """Return the blocks of one page, in order."""
    text, found, python = path.read_text(), [], ""
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        comment = _COMMENT.search(text[: match.start()].rstrip(" "))
        words, conf = _read(comment["words"] if comment else "")
        unknown = words - WORDS
        assert not unknown, f"{path.name}:{line}: unknown words {sorted(unknown)}"
        code = match["code"]
        if match["language"] == "python":
            # Pad the code, because a traceback should name the line of the page.
            head = python if "continue" in words else ""
            code = head + "\n" * (line - head.count("\n")) + code
            python = code
        found.append(Block(path.name, line, match["language"], code, words, conf))
    return found


def _read(words: str) -> tuple[frozenset[str], str | None]:
    before, given, conf = words.partition("conf=")
    return frozenset(before.split()), conf if given else None


def blocks(*languages: str) -> list[Block]:
    """Return all blocks in one of *languages*."""
    return [one for page in PAGES if page.exists() for one in blocks_of(page) if one.language in languages]
