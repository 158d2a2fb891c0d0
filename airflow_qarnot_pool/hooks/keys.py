"""Names of files in buckets: what an object may be called so that it is a file everywhere. Pure functions.

S3 takes nearly any text as a key. A node and a worker hold the same object as a file, under a path.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError

#: Maximum bytes of a key, because S3 takes no more, and of one part of a path, because file systems take no more.
MAX_KEY_BYTES = 1024
MAX_PART_BYTES = 255


def check_key(key: str) -> None:
    """Refuse a key that names no file.

    :raises QarnotInvalidSpecError: names *key* and its problem.
    """
    if found := _problem(key):
        raise QarnotInvalidSpecError(f"The key {_shown(key)} {found[0]}", field="key", remedy=found[1])


def local_paths(keys: Iterable[str], prefix: str) -> list[tuple[str, PurePosixPath]]:
    """Return each key with its path in a directory: the key without *prefix*.

    :raises QarnotInvalidSpecError: a key names no file, or two keys need the same path.
    """
    paths = []
    for key in keys:
        check_key(key)
        name = key.removeprefix(prefix).lstrip("/") or PurePosixPath(key).name
        if found := _problem(name):
            raise QarnotInvalidSpecError(
                f"The key {_shown(key)} without prefix {_shown(prefix)} {found[0]}",
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
    """Return the folders that a key is in, the outermost first: ``a`` and ``a/b`` for ``a/b/c``."""
    parts = key.split("/")
    return ["/".join(parts[:length]) for length in range(1, len(parts))]


def _clash(key: str, other: str) -> QarnotInvalidSpecError:
    return QarnotInvalidSpecError(
        f"The keys {_shown(other)} and {_shown(key)} cannot both be files in one directory",
        field="key",
        remedy="Leave one of them out with whitelist, or download them with a prefix each.",
    )


def _problem(key: str) -> tuple[str, str] | None:
    if not isinstance(key, str) or not key:
        return "is empty", "Give the name of the file."
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        return "is not text", "Give the file a name in UTF-8."
    parts = key.split("/")
    if not parts[0]:
        return "begins with '/'", f"Write {_shown(key.lstrip('/'))}."
    if not parts[-1]:
        return "ends with '/', as the name of a folder does", "Add the name of the file."
    if "" in parts:
        return "has two slashes in a row", "Write one."
    if {".", ".."} & set(parts):
        return "leads out of its folder: it has '.' or '..' as a part", "Write the path without them."
    if any(ord(one) < 32 or ord(one) == 127 for one in key):
        return "has a control character", "Rename the file."
    if size > MAX_KEY_BYTES:
        return f"has {size} bytes", f"Storage takes {MAX_KEY_BYTES}; shorten it."
    if any(len(one.encode()) > MAX_PART_BYTES for one in parts):
        return "has a part that is too long for the name of a file", f"Use {MAX_PART_BYTES} bytes at most."
    return None


def _shown(key: object) -> str:
    text = repr(key)
    return text if len(text) <= 120 else f"{text[:117]}..."
