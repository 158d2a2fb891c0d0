"""Read JSON objects: keys in any case, unknown keys ignored, null as absent, all bad fields named in the error.

Qarnot API: limits of qarnot-api.md 3.2 and 3.3, error wording of 2.3.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from airflow_qarnot_pool.local.schemas import formats
from airflow_qarnot_pool.local.schemas.errors import ApiError, invalid

PROFILES = (
    "docker-batch",
    "docker-network",
    "docker-network-ssh",
    "docker-cluster",
    "docker-cluster-network",
    "docker-cluster-network-ssh",
    "docker-batch-smt",
    "ubuntu",
)
SECRET_PREFIX = "QARNOT_SECRET__"
SECRET_TEXT = "[SECRET]"
MAX_TAGS, MAX_TAG = 10, 511
MAX_TEXT = 2047
MAX_CONSTANT = 2048
MAX_COMMAND = 1 << 20
"""Maximum length of a preparation command. Qarnot documents none."""
MAX_POOL_CONSTANTS, MAX_TASK_CONSTANTS = 50, 150
MAX_BUCKETS = 100
MAX_INSTANCES = 2048
SCHEDULING = ("flex", "onDemand", "reserved")
MAX_DEPTH = 200
"""Maximum number of levels in the JSON of a request."""
MAX_INTEGER = 2**31 - 1
"""Maximum of an int32, the type of all integers in requests."""
_KEY = re.compile(r"[A-Za-z0-9_.-]{1,2048}")
_SHORTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_BUCKET = re.compile(r"[A-Za-z0-9._-]{3,63}")


@dataclass(frozen=True, slots=True)
class Profiles:
    """The profiles of the account.

    :param more: names in addition to :data:`PROFILES`.
    :param any_name: accept every name.
    """

    more: tuple[str, ...] = ()
    any_name: bool = False

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*PROFILES, *self.more)))

    def __contains__(self, name: object) -> bool:
        return bool(name) and (self.any_name or name in PROFILES or name in self.more)

    def missing(self, name: object) -> str:
        """Return what to do about an unknown profile. Empty if there is no name."""
        return f"start the local Qarnot with --profile {name} or --any-profile" if name else ""


def has_network(profile: str) -> bool:
    """Return whether instances of a profile reach a network, which its name says."""
    return "network" in profile.lower()


def parse(body: bytes) -> Any:
    """Parse the JSON of a request. Raises ApiError 400, also for values that no response can return."""
    try:
        # Decoded here, because json.loads lets invalid UTF-8 pass.
        value = json.loads(body.decode("utf-8-sig") or "null")
        _check(value, 0)
    except (ValueError, RecursionError):
        raise ApiError(400, "The request body is not valid JSON") from None
    return value


def _check(value: Any, depth: int) -> None:
    """Raise ValueError for half of a surrogate pair, a number that is not finite, or a deeply nested value."""
    if depth > MAX_DEPTH:
        raise ValueError("nested too deeply")
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not JSON")
    elif isinstance(value, list):
        for item in value:
            _check(item, depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            key.encode()
            _check(item, depth + 1)


def compiled(pattern: str) -> re.Pattern[str] | None:
    """Return a compiled regular expression, or None if the text is none."""
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError):
        return None


def fold(value: Any) -> dict[str, Any]:
    """Return an object with its keys in lower case and without nulls."""
    if not isinstance(value, Mapping):
        return {}
    return {str(k).lower(): v for k, v in value.items() if v is not None}


def size(text: str) -> int:
    """Return the length of a text in UTF-16 units, as .NET counts it."""
    return len(text.encode("utf-16-le", errors="surrogatepass")) // 2


UNITS: dict[str, Callable[[str], int]] = {
    "UTF-16 units": size,
    "characters": len,
    "bytes": lambda text: len(text.encode(errors="surrogatepass")),
    "no limit of 511": lambda text: 1,
}
"""How the length of a tag may be counted."""


def is_uuid(text: object) -> bool:
    return isinstance(text, str) and bool(_UUID.fullmatch(text))


def keep_secrets(new: dict[str, str], old: Mapping[str, str]) -> dict[str, str]:
    """Keep the old value of a secret whose new value is the placeholder that responses show."""
    return {k: old.get(k, v) if v == SECRET_TEXT else v for k, v in new.items()}


class RequestFields:
    """The fields of one JSON object. `bad` collects the names of invalid ones.

    :param outer: marks the field of an outer object that has this one, if a field here is invalid.
    """

    def __init__(
        self,
        value: Any,
        kind: str,
        defaults: Mapping[str, Any] | None = None,
        outer: Callable[[], None] | None = None,
    ) -> None:
        if not isinstance(value, Mapping):
            raise ApiError(400, f"Invalid {kind} file. A JSON object is expected")
        self.kind, self._outer = kind, outer
        self._values = {**fold(defaults), **fold(value)}
        self.bad: list[str] = []
        self._note = ""

    def check(self) -> None:
        """Check that no field was invalid. Raises ApiError 400 with the names of all invalid fields."""
        if self.bad:
            raise invalid(self.kind, dict.fromkeys(self.bad), self._note)

    def wrong(self, name: str, note: str = "") -> None:
        self.bad.append(name)
        self._note = note or self._note
        if self._outer is not None:
            self._outer()

    def has(self, name: str) -> bool:
        return name.lower() in self._values

    def raw(self, name: str) -> Any:
        return self._values.get(name.lower())

    def text(self, name: str, *, required: bool = False, max_length: int = MAX_TEXT) -> str | None:
        value = self.raw(name)
        if value is None or value == "":
            if required:
                self.wrong(name)
            return None
        if not isinstance(value, str) or size(value) > max_length or "\0" in value:
            self.wrong(name)
            return None
        return value

    def regex(self, name: str) -> str | None:
        value = self.text(name)
        if value is not None and "${" not in value and compiled(value) is None:
            self.wrong(name)
        return value

    def bucket(self, name: str) -> str | None:
        """Return the name of a bucket that will be created if it does not exist."""
        value = self.text(name)
        if value is not None and not _BUCKET.fullmatch(value):
            self.wrong(name)
        return value

    def inner(self, name: str) -> RequestFields:
        """Return the fields of an inner object, which has none if it is not given."""
        return self._inner(name, {} if self.raw(name) is None else self.raw(name))

    def inner_list(self, name: str, maximum: int = 10_000) -> list[RequestFields]:
        """Return the fields of each object in a list."""
        return [self._inner(name, value) for value in self.items(name, maximum)]

    def stored(self, name: str) -> list[Any]:
        """Return a list of objects that is stored and returned unchanged."""
        self.inner_list(name)
        return self.items(name)

    def _inner(self, name: str, value: Any) -> RequestFields:
        if not isinstance(value, Mapping):
            self.wrong(name)
            value = {}
        return RequestFields(value, self.kind, outer=lambda: self.wrong(name))

    def integer(
        self, name: str, default: int | None = None, *, minimum: int = 0, maximum: int = MAX_INTEGER
    ) -> int | None:
        value = self.raw(name)
        if value is None:
            return default
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= maximum:
            self.wrong(name)
            return default
        return value

    def number(self, name: str, default: float, *, minimum: float, maximum: float) -> float:
        value = self.raw(name)
        if value is None:
            return default
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not minimum <= value <= maximum:
            self.wrong(name)
            return default
        return value if math.isfinite(value) else default

    def boolean(self, name: str, default: bool | None = False) -> bool | None:
        value = self.raw(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.wrong(name)
            return default
        return value

    def duration(self, name: str) -> float:
        value = self.raw(name)
        if value is None:
            return 0.0
        try:
            seconds = formats.parse_span(value)
        except ValueError:
            seconds = -1.0
        if seconds < 0:
            self.wrong(name)
            return 0.0
        return seconds

    def items(self, name: str, maximum: int = 10_000) -> list[Any]:
        value = self.raw(name)
        if value is None:
            return []
        if not isinstance(value, list) or len(value) > maximum:
            self.wrong(name)
            return []
        return value

    def strings(
        self, name: str, maximum: int, max_length: int, measure: Callable[[str], int] = size
    ) -> list[str]:
        values = self.items(name, maximum)
        if any(not isinstance(v, str) or not v or measure(v) > max_length for v in values):
            self.wrong(name)
            return []
        return list(dict.fromkeys(values))

    def tags(self, unit: str = "UTF-16 units") -> list[str]:
        return self.strings("tags", MAX_TAGS, MAX_TAG, UNITS[unit])

    def labels(self) -> dict[str, str]:
        value = self.raw("labels")
        if value is None:
            return {}
        if not isinstance(value, Mapping) or any(not isinstance(v, str) for v in value.values()):
            self.wrong("labels")
            return {}
        return dict(value)

    def constants(self, maximum: int) -> dict[str, str]:
        constants: dict[str, str] = {}
        for pair in self.inner_list("constants", maximum):
            key, value = pair.raw("key"), pair.raw("value")
            if isinstance(value, int) and not isinstance(value, bool):
                value = str(value)  # as Qarnot takes it; its own samples send integers
            if (
                not isinstance(key, str)
                or not _KEY.fullmatch(key)
                or not isinstance(value, str)
                or size(value) > MAX_CONSTANT
                or "\0" in value
            ):
                self.wrong("constants")
                return {}
            constants[key] = value
        return constants

    def shortname(self, max_length: int = 512) -> str | None:
        value = self.text("shortname", max_length=max_length)
        if value is not None and not _SHORTNAME.fullmatch(value):
            self.wrong("shortname")
        return value

    def buckets(self) -> tuple[list[str], list[dict[str, Any]]]:
        """Return resourceBuckets and advancedResourceBuckets, of which only one may have entries."""
        plain = self.strings("resourceBuckets", MAX_BUCKETS, 255)
        advanced: list[dict[str, Any]] = []
        for bucket in self.inner_list("advancedResourceBuckets", MAX_BUCKETS):
            name = bucket.text("bucketName", required=True, max_length=255)
            prefix = bucket.inner("filtering").inner("prefixFiltering").text("prefix")
            strip = bucket.inner("resourcesTransformation").inner("stripPrefix").text("prefix")
            ttl = bucket.integer("cacheTTLSec")
            advanced.append(
                {
                    "bucketName": name,
                    "filtering": {"prefixFiltering": {"prefix": prefix}} if prefix else None,
                    "resourcesTransformation": {"stripPrefix": {"prefix": strip}} if strip else None,
                    "cacheTTLSec": ttl,
                }
            )
        if plain and advanced:
            self.wrong("resourceBuckets-advancedResourceBuckets-exclusive")
        return plain, advanced

    def retries(self, name: str) -> dict[str, int | None]:
        """Return `{maxTotalRetries, maxPerInstanceRetries}`, with null for one that is not set."""
        inner = self.inner(name)
        return {key: inner.integer(key) for key in ("maxTotalRetries", "maxPerInstanceRetries")}

    def scheduling(self) -> str | None:
        value = self.text("schedulingType")
        if value is None:
            return None
        scheduling = {s.lower(): s for s in SCHEDULING}.get(value.lower())
        if scheduling is None:
            self.wrong("schedulingType")
        return scheduling
