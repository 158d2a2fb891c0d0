"""Validate keys of objects in buckets. Pure functions.

S3 accepts nearly any text as a key. Nodes and workers store the object as a file, so the key must be a valid path.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError

#: Maximum bytes of a key, which S3 sets, and of one part of a path, which file systems set.
MAX_KEY_BYTES = 1024
MAX_PART_BYTES = 255


def check_key(key: str) -> None:
    """Reject a key that cannot be the path of a file.

    :raises QarnotInvalidSpecError: names *key* and its problem.
    """
    if rejection := _problem(key):
        problem, remedy = rejection
        raise QarnotInvalidSpecError(f"The key {_shown(key)} {problem}", field="key", remedy=remedy)


def local_paths(keys: Iterable[str], prefix: str) -> list[tuple[str, PurePosixPath]]:
    """Return each key with its path in a directory: the key without *prefix*.

    :raises QarnotInvalidSpecError: a key is not the path of a file, or two keys need the same path.
    """
    paths = []
    for key in keys:
        check_key(key)
        name = key.removeprefix(prefix).lstrip("/") or PurePosixPath(key).name
        if rejection := _problem(name):
            raise QarnotInvalidSpecError(
                f"The key {_shown(key)} without prefix {_shown(prefix)} {rejection[0]}",
                field="prefix",
                remedy="Give a prefix that ends with '/'.",
            )
        paths.append((key, PurePosixPath(name)))
    taken: dict[str, str] = {}
    for key, path in paths:
        if (other := taken.setdefault(str(path), key)) != key:
            raise _clash(key, other)
    for key, path in paths:
        for folder in folders_of(str(path)):
            if folder in taken:
                raise _clash(key, taken[folder])
    return paths


def folders_of(key: str) -> list[str]:
    """Return the folders of a key, the outermost first: ``a`` and ``a/b`` for ``a/b/c``."""
    parts = key.split("/")
    return ["/".join(parts[:length]) for length in range(1, len(parts))]


def _clash(key: str, other: str) -> QarnotInvalidSpecError:
    return QarnotInvalidSpecError(
        f"The keys {_shown(other)} and {_shown(key)} cannot both be files in one directory",
        field="key",
        remedy="Leave one of them out with whitelist, or download them with a prefix each.",
    )


def _problem(key: str) -> tuple[str, str] | None:
    """Return the problem of a key and its remedy, or None."""
    if not isinstance(key, str) or not key:
        return "is empty", "Give the name of the file."
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        return "is not text", "Give the file a name in UTF-8."
    if rejection := _problem_of_parts(key, key.split("/")):
        return rejection
    if any(ord(character) < 32 or ord(character) == 127 for character in key):
        return "has a control character", "Rename the file."
    if size > MAX_KEY_BYTES:
        return f"has {size} bytes", f"Storage takes {MAX_KEY_BYTES}; shorten it."
    return None


def _problem_of_parts(key: str, parts: list[str]) -> tuple[str, str] | None:
    if not parts[0]:
        return "starts with '/'", f"Write {_shown(key.lstrip('/'))}."
    if not parts[-1]:
        return "ends with '/', as the name of a folder does", "Add the name of the file."
    if "" in parts:
        return "has two slashes in a row", "Write one."
    if {".", ".."} & set(parts):
        return "leads out of its folder: it has '.' or '..' as a part", "Write the path without them."
    if any(len(part.encode()) > MAX_PART_BYTES for part in parts):
        return "has a part that is too long for the name of a file", f"Use {MAX_PART_BYTES} bytes at most."
    return None


def _shown(key: object) -> str:
    text = repr(key)
    return text if len(text) <= 120 else f"{text[:117]}..."
