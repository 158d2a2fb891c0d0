"""Validate names of buckets, prefixes of keys and patterns of files, which Qarnot rejects only after the work.

Storage: Ceph's S3 (Qarnot API: ``/settings``). Patterns such as ``resultsWhitelist`` are regular expressions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.api.fields import Refusal, normalise, short_repr, text

MAX_PATTERN_LENGTH = 2048
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_URL = re.compile(r"(?:[a-z0-9+.-]+://)?(?:[^@/]*@)?", re.IGNORECASE)
#: A literal, a star and an extension, as in ``out/*.png`` and ``frame_*_left.png``, which hardly ever match as regular
#: expressions.
_GLOB = re.compile(r"^[*?]|\*\*|(?<!\\)[\w/?-][*?]\.\w+$|^[\w./ -]*[\w/-]\*[\w./ *?-]*\.\w+$")
#: Error messages of Python for expressions that are valid in other dialects.
_OTHER_DIALECTS = ("unknown extension", "bad escape", "look-behind", "flag", "group name")


def bucket(path: Callable[[str, str], str]) -> Callable[[Any], str]:
    """Return a converter to the name of a bucket.

    :param path: returns the remedy for a bucket with a path.
    """

    def convert(value: Any) -> str:
        if isinstance(value, Mapping):
            by_name = {normalise(str(name)): entry for name, entry in value.items()}
            value = by_name.get("bucket", by_name.get("bucketname"))
        name = str(text(minimum=1)(value))
        if _BUCKET.fullmatch(name):
            return name
        bare = name[_URL.match(name).end() :]  # type: ignore[union-attr]
        first, slash, rest = bare.partition("/")
        if (slash or bare != name) and _BUCKET.fullmatch(first):
            remedy = path(first, rest) if rest.strip("/") else f"Write {first!r}."
            raise Refusal(f"is {'a URL' if bare != name else 'a path'}, got {short_repr(name)}", remedy)
        raise Refusal(
            f"is not the name of a bucket, got {short_repr(name)}",
            "Use at most 63 letters, digits, '-', '.' and '_', and start with a letter or digit.",
        )

    return convert


def check_bucket(value: Any, field: str, remedy: str) -> str:
    """Return the name of a bucket that was passed as *field*.

    :param remedy: the remedy for a path, with ``{bucket}`` and ``{path}`` in it.
    :raises QarnotInvalidSpecError: names *field*.
    """
    try:
        return bucket(lambda name, path: remedy.format(bucket=name, path=path))(value)
    except Refusal as refusal:
        raise QarnotInvalidSpecError(
            f"{field} {refusal.problem}", field=field, remedy=refusal.remedy
        ) from None


def key_prefix(value: Any) -> str:
    """Convert to a prefix of keys. It has no leading slash, because no key has one."""
    words = str(text()(value))
    parts = words.split("/")
    if len(parts) > 1 and not parts[0]:
        raise Refusal(f"starts with '/', got {short_repr(words)}", f"Write {words.lstrip('/')!r}.")
    if "" in parts[:-1] or {".", ".."} & set(parts[:-1]) or parts[-1] in (".", ".."):
        raise Refusal(f"has '//', '.' or '..', got {short_repr(words)}", "Write the path without it.")
    if any(ord(character) < 32 or ord(character) == 127 for character in words):
        raise Refusal(f"has a control character, got {short_repr(words)}", "Leave it out.")
    return words


def pattern(value: Any) -> str:
    """Convert to a regular expression. Expressions in other dialects, or with ``${CONSTANT}``, are accepted."""
    words = str(text(below=MAX_PATTERN_LENGTH)(value))
    if "${" in words:
        return words
    if _GLOB.search(words):
        raise Refusal(
            f"is a regular expression that is searched in the path and looks like a glob, got {short_repr(words)}",
            f"Write {_of_glob(words)!r}.",
        )
    try:
        re.compile(words)
    except re.error as error:
        if any(message in error.msg for message in _OTHER_DIALECTS):
            return words
        raise Refusal(
            f"is not a regular expression ({error.msg}), got {short_repr(words)}",
            "Write one such as '\\\\.png$'; it is searched in the path of each file.",
        ) from None
    except (OverflowError, RecursionError):
        raise Refusal(
            f"is not a regular expression, got {short_repr(words)}", "Write a simpler one."
        ) from None
    return words


def _of_glob(glob: str) -> str:
    """Return the regular expression that is equivalent to a glob."""
    parts = {"**/": ".*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    expression = re.sub(
        r"\*\*/|\*\*|\*|\?|[^*?]+", lambda match: parts.get(match[0]) or re.escape(match[0]), glob
    )
    short = re.sub(r"^(?:\.\*|\[\^/\]\*)+", "", f"{expression}$")
    return ".*" if short == "$" else short
