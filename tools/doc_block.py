"""Write the results of programs into documents, between two marks."""

from __future__ import annotations

from pathlib import Path


def split(path: Path, name: str) -> tuple[str, str, str]:
    """Return the document before the text between the marks, that text, and the document after it.

    :raises ValueError: the document has no such marks.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, found, rest = path.read_text().partition(begin)
    text, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{path} has no place for {name}: it needs the lines {begin} and {end}")
    return before + begin, text.strip(), end + after


def read(path: Path, name: str) -> str:
    """What stands between the marks.

    :raises ValueError: the document has no such marks.
    """
    return split(path, name)[1]


def write(path: Path, name: str, text: str) -> None:
    """Put *text* between the marks ``<!-- name -->`` and ``<!-- end of name -->`` of *path*.

    :raises ValueError: the document has no such marks.
    """
    before, _, after = split(path, name)
    path.write_text(joined(before, text, after))


def joined(before: str, text: str, after: str) -> str:
    """Return a document with *text* between the marks."""
    return f"{before}\n\n{text.strip()}\n\n{after}"
