"""Declare the fields of a request: their names in the JSON, their conversion and their encoding.

A request is a frozen dataclass that derives from :class:`Record`. Each field has ``metadata=at(...)``. Values are
converted on creation, because a template renders text ("4", "true", "00:10:00", JSON) in place of the real type. An
invalid value raises a QarnotInvalidSpecError that names the field.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import functools
import hashlib
import json
import math
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any, ClassVar, Self
from uuid import UUID

from airflow_qarnot_pool.api.durations import parse_duration
from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError

Convert = Callable[[Any], Any]
SECRET = "***"
MAX_CONSTANT_LENGTH = 2048

_CONSTANT_KEY = re.compile(r"[A-Za-z0-9_.-]+")
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
#: A whole number of at most 18 digits, because Python converts thousands of digits slowly, or not at all.
_NUMBER_WORDS = re.compile(r"[+-]?[0-9]{1,18}")


def is_uuid(ref: str) -> bool:
    """Return whether *ref* is a uuid and not a shortname."""
    return _UUID.fullmatch(ref) is not None


def is_secret_constant(key: str) -> bool:
    """Return whether the value of this constant must never be shown."""
    return key.upper().startswith(("QARNOT_SECRET__", "DOCKER_REGISTRY_PASSWORD"))


def mask_constants(constants: Mapping[str, str]) -> dict[str, str]:
    """Return the constants with their secret values masked."""
    return {key: SECRET if is_secret_constant(key) else value for key, value in constants.items()}


def find_secrets(body: Any) -> set[str]:
    """Return the values of secret constants in a request body, or in a list of bodies."""
    if isinstance(body, list):
        return {secret for item in body for secret in find_secrets(item)}
    constants = body.get("constants") if isinstance(body, dict) else None
    return {
        pair["value"]
        for pair in constants or ()
        if is_secret_constant(pair["key"]) and len(pair["value"]) > 3
    }


@dataclass(frozen=True, slots=True)
class Wire:
    """The name of a field in the API's JSON, its converter for user input, and its encoder for the JSON, if any."""

    name: str | None
    convert: Convert
    encode: Callable[[Any], Any] | None
    aliases: tuple[str, ...]


def at(
    name: str | None,
    convert: Convert,
    encode: Callable[[Any], Any] | None = None,
    *,
    aliases: Iterable[str] = (),
) -> dict[str, Any]:
    """Return field metadata. ``name`` is None for a field that is not sent under its own name."""
    return {"wire": Wire(name, convert, encode, tuple(aliases))}


def normalise(name: str) -> str:
    """Return the same text for ``instance_count``, ``instanceCount`` and ``InstanceCount``."""
    return name.replace("_", "").lower()


#: Normalised names that users try, and the parameters they stand for. The first one that exists is suggested.
SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "bashcommand": ("command", "commands"),
    "bucket": ("result_bucket", "resource_buckets"),
    "buckets": ("resource_buckets",),
    "cmd": ("command", "commands"),
    "cmds": ("commands", "command"),
    "command": ("commands",),
    "commands": ("command",),
    "concurrency": ("max_in_flight",),
    "connid": ("qarnot_conn_id",),
    "container": ("image",),
    "dockerimage": ("image",),
    "env": ("constants",),
    "environment": ("constants",),
    "environmentvariables": ("constants",),
    "envs": ("constants",),
    "envvars": ("constants",),
    "idletimeout": ("keep_warm", "idle_timeout"),
    "inputbucket": ("resource_buckets",),
    "inputbuckets": ("resource_buckets",),
    "inputs": ("resource_buckets",),
    "instanceids": ("ranges",),
    "instances": ("instance_count",),
    "keepalive": ("keep_warm",),
    "nodecount": ("instance_count",),
    "nodes": ("instance_count",),
    "numinstances": ("instance_count",),
    "numnodes": ("instance_count",),
    "outputbucket": ("result_bucket",),
    "outputs": ("result_bucket",),
    "parallelism": ("max_in_flight",),
    "poolid": ("qarnot_pool",),
    "poolname": ("qarnot_pool",),
    "pooluuid": ("qarnot_pool",),
    "remoteretries": ("retry", "default_retry"),
    "results": ("result_bucket",),
    "resultsbucket": ("result_bucket",),
    "size": ("instance_count",),
    "slots": ("instance_count", "ready_slots"),
    "state": ("target_states",),
    "states": ("target_states",),
    "taskid": ("qarnot_task",),
    "taskuuid": ("qarnot_task",),
    "timeout": ("wait_timeout",),
    "ttl": ("completion_ttl", "keep_warm"),
    "wait": ("wait_for_completion",),
    "waittime": ("wait_timeout",),
    "workers": ("instance_count",),
}


def closest_name(name: str, names: Iterable[str], *, only_synonyms: bool = False) -> str | None:
    """Return the one of *names* that a misspelt *name* stands for, or None."""
    by_normalised = {normalise(candidate): candidate for candidate in names}
    for synonym in (name, *SYNONYMS.get(normalise(name), ())):
        if normalise(synonym) in by_normalised:
            return by_normalised[normalise(synonym)]
    import difflib  # Imported here because only an error needs it.

    close = [] if only_synonyms else difflib.get_close_matches(normalise(name), by_normalised, n=1)
    return by_normalised[close[0]] if close else None


def short_repr(value: object) -> str:
    """Return the ``repr`` of a value, shortened for an error message."""
    try:
        text = repr(value)
    except ValueError:
        text = f"a number of more than {sys.get_int_max_str_digits()} digits"
    return text if len(text) <= 80 else text[:77] + "..."


class Record:
    """Base of the request dataclasses. Converts and validates on creation, and reads and writes JSON."""

    #: Value of ``type`` in the JSON, by which the API tells classes apart.
    type_name: ClassVar[str] = ""
    #: Whether the JSON has the fields that are not set, too.
    sends_empty: ClassVar[bool] = False
    #: Normalised names that users try here but that belong elsewhere, with the remedy.
    misplaced: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        for field, wire in wire_fields(type(self)):
            value = getattr(self, field.name)
            if value is not None and value is not field.default:
                object.__setattr__(self, field.name, convert_field(type(self), field.name, wire, value))
        self._check()

    def with_values(self, **values: Any) -> Self:
        """Return a copy with other values for fields that no other field depends on. Only these are converted."""
        copied = copy.copy(self)
        for field, wire in wire_fields(type(self)):
            if field.name in values:
                value = convert_field(type(self), field.name, wire, values[field.name])
                object.__setattr__(copied, field.name, value)
        return copied

    def _check(self) -> None:
        """Validate fields that depend on each other. Calls :meth:`_refuse`."""

    def _refuse(self, field: str, problem: str, remedy: str) -> None:
        raise invalid(type(self), field, problem, remedy)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON body for the API."""
        body: dict[str, Any] = {"type": self.type_name} if self.type_name else {}
        for field, wire in wire_fields(type(self)):
            value = getattr(self, field.name)
            is_set = value is not None and (value or not isinstance(value, (tuple, dict)))
            if wire.name is not None and (is_set or self.sends_empty):
                body[wire.name] = value if wire.encode is None else wire.encode(value)
        return body

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Build from a mapping with our field names or the API's, in any case. None counts as not set.

        :raises QarnotInvalidSpecError: a name is unknown, or a value is not valid.
        """
        arguments = cls._by_field(values)
        for field, _ in wire_fields(cls):
            required = field.default is field.default_factory is dataclasses.MISSING
            if required and field.name not in arguments:
                raise invalid(cls, field.name, "is missing", "It is required.")
        return cls(**arguments)

    @classmethod
    def encode_fields(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the JSON of single fields, converted and validated one by one, for ``clone`` and ``retry``."""
        by_name = {field.name: wire for field, wire in wire_fields(cls)}
        body = {}
        for name, value in cls._by_field(values).items():
            wire = by_name[name]
            if wire.name is None:
                raise invalid(cls, name, "cannot be overridden by this name", "Use the constants.")
            converted = convert_field(cls, name, wire, value)
            body[wire.name] = converted if wire.encode is None else wire.encode(converted)
        return body

    @classmethod
    def _by_field(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return *values* by the names of our fields, without None. Reject unknown names."""
        if not isinstance(values, Mapping):
            raise QarnotInvalidSpecError(
                f"{cls.__name__} is not a mapping, got {short_repr(values)}",
                remedy=f"Give a mapping of its fields: {', '.join(field.name for field, _ in wire_fields(cls))}.",
            )
        names = _names(cls)
        for key, value in values.items():
            if value is not None and normalise(str(key)) not in names:
                raise _unknown(cls, str(key), names)
        return cls.by_our_names(values)

    @classmethod
    def by_our_names(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return *values* by the names of our fields, without None. Unknown names stay as they are.

        :raises QarnotInvalidSpecError: a field is given twice, under two of its names.
        """
        names = _names(cls)
        renamed: dict[str, Any] = {}
        spelled: dict[str, str] = {}
        for key, value in values.items():
            if value is None:
                continue
            name = names.get(normalise(str(key)), str(key))
            if name in renamed:
                raise invalid(
                    cls, name, f"is given twice, as {spelled[name]!r} and as {key!r}", "Keep one of them."
                )
            renamed[name], spelled[name] = value, str(key)
        return renamed

    # Not generated by dataclass, which would make the import twice as slow.
    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(
            getattr(self, field.name) == getattr(other, field.name) for field, _ in wire_fields(type(self))
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        parts = []
        for field, _ in wire_fields(type(self)):
            value = getattr(self, field.name)
            if value is None or (isinstance(value, (tuple, dict)) and not value):
                continue
            if field.name == "constants":
                value = mask_constants(value)
            parts.append(f"{field.name}={value!r}")
        return f"{type(self).__name__}({', '.join(parts)})"


def _wire_fields(cls: type) -> tuple[tuple[dataclasses.Field[Any], Wire], ...]:
    """Return the declared fields of a request class, in order."""
    return tuple((field, field.metadata["wire"]) for field in dataclasses.fields(cls))


#: The type is that of a plain class, because mypy takes a class whose instances have no hash for unhashable.
wire_fields: Callable[[type], tuple[tuple[dataclasses.Field[Any], Wire], ...]] = functools.cache(_wire_fields)


def invalid(cls: type, field: str, problem: str, remedy: str) -> QarnotInvalidSpecError:
    """Return the error for one field, such as ``PoolSpec.instance_count is -1``."""
    return QarnotInvalidSpecError(f"{cls.__name__}.{field} {problem}", field=field, remedy=remedy)


def convert_field(cls: type, name: str, wire: Wire, value: Any) -> Any:
    """Return the converted value of a field. An error names the field, by its path if it is nested."""
    try:
        return wire.convert(value)
    except QarnotInvalidSpecError as error:
        path = f"{name}.{error.field}" if error.field else name
        raise QarnotInvalidSpecError(
            f"{cls.__name__}.{name}: {error.message}", field=path.replace(".[", "["), remedy=error.remedy
        ) from None
    except Refusal as error:
        raise invalid(cls, name, error.problem, error.remedy) from None


def _field_names(cls: type) -> Mapping[str, str]:
    """Return the names of our fields by each of their names, normalised."""
    names = {}
    for field, wire in wire_fields(cls):
        for name in (field.name, wire.name, *wire.aliases):
            if name is not None:
                names[normalise(name)] = field.name
    return names


_names: Callable[[type], Mapping[str, str]] = functools.cache(_field_names)


def _unknown(cls: type[Record], key: str, names: Mapping[str, str]) -> QarnotInvalidSpecError:
    hint = cls.misplaced.get(normalise(key))
    if hint is None:
        close = closest_name(key, names)
        hint = (
            f"Did you mean {names[close]!r}?"
            if close
            else f"It has {', '.join(sorted(set(names.values())))}."
        )
    return QarnotInvalidSpecError(f"{cls.__name__} has no field {key!r}", field=key, remedy=hint)


class Refusal(ValueError):
    """A converter rejects a value. The caller adds the name of the field."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy


def as_text(value: Any) -> str | None:
    """Return *value* as text if it is text, a number, a flag, a date or a uuid, else None."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int, float, Decimal, date, time, UUID)):
        return str(value)
    return None


def text(
    *,
    minimum: int = 0,
    below: int | None = None,
    form: re.Pattern[str] | None = None,
    what: str = "text",
    remedy: str = "Give a string.",
) -> Convert:
    """Return a converter to a string of at least ``minimum`` and less than ``below`` characters.

    :param form: pattern of the whole string; ``what`` and ``remedy`` name it in an error.
    """

    def convert(value: Any) -> str:
        converted = as_text(value)
        if converted is None or (form is not None and form.fullmatch(converted) is None):
            raise Refusal(f"is not {what}, got {short_repr(value)}", remedy)
        if len(converted.strip()) < minimum:
            raise Refusal("is empty", "Give a value, or leave it out.")
        if below is not None and len(converted) >= below:
            raise Refusal(
                f"has {len(converted)} characters ({short_repr(converted[:40])}...)",
                f"Stay under {below} characters.",
            )
        return converted

    return convert


def uuid_text(value: Any) -> str:
    """Convert to a uuid as text. Qarnot does not accept a name in its place."""
    words = str(text(minimum=1)(value)).strip()
    if not is_uuid(words):
        raise Refusal(f"is not a uuid, got {short_repr(words)}", "Give the uuid, not the name.")
    return words


def integer(minimum: int, maximum: int | None = None) -> Convert:
    """Return a converter to a whole number, also from text."""
    span = f"{minimum} or more" if maximum is None else f"between {minimum} and {maximum}"

    def convert(value: Any) -> int:
        number: int | None = None
        if (
            (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**18)
            or (isinstance(value, float) and value.is_integer())
            or (isinstance(value, str) and _NUMBER_WORDS.fullmatch(value.strip()))
        ):
            number = int(value)
        if number is None:
            raise Refusal(f"is not a whole number, got {short_repr(value)}", f"Give a number, {span}.")
        if number < minimum or (maximum is not None and number > maximum):
            raise Refusal(f"is {number}", f"Give a number {span}.")
        return number

    return convert


def number(minimum: float, maximum: float, *, above: bool = False) -> Convert:
    """Return a converter to a number in a range, also from text. ``above`` excludes the minimum."""
    span = f"{'above' if above else 'from'} {minimum} up to {maximum}"

    def convert(value: Any) -> float:
        try:
            if isinstance(value, bool):
                raise ValueError
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise Refusal(f"is not a number, got {short_repr(value)}", f"Give a number {span}.") from None
        if not (minimum <= number <= maximum) or (above and number == minimum):
            raise Refusal(f"is {number}", f"Give a number {span}.")
        return number

    return convert


def boolean(value: Any) -> bool:
    """Convert to True or False, also from text."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    raise Refusal(f"is neither true nor false, got {short_repr(value)}", "Give True or False.")


def duration(value: Any) -> timedelta:
    """Convert to a timedelta, from seconds, a time span or an ISO 8601 duration."""
    try:
        if isinstance(value, bool):
            raise ValueError
        if isinstance(value, timedelta):
            result = value
        elif isinstance(value, (int, float)):
            result = timedelta(seconds=value)
        elif isinstance(value, str):
            result = parse_duration(value)
        else:
            raise ValueError
    except (ValueError, OverflowError):
        raise Refusal(
            f"is not a duration, got {short_repr(value)}",
            "Give a timedelta, seconds, '00:10:00' or 'PT10M'.",
        ) from None
    if result < timedelta(0):
        raise Refusal(f"is negative, got {result}", "Give a duration of zero or more.")
    return result


def seconds(value: timedelta) -> int:
    """Encode a duration as whole seconds, rounded up."""
    return math.ceil(value.total_seconds())


def span(value: timedelta) -> str:
    """Encode a duration as a .NET time span, such as ``7.00:00:00``."""
    sign = "-" if value < timedelta(0) else ""
    value = abs(value)
    hours, rest = divmod(value.seconds, 3600)
    minutes, rest = divmod(rest, 60)
    words = f"{hours:02}:{minutes:02}:{rest:02}"
    if value.days:
        words = f"{value.days}.{words}"
    if value.microseconds:
        words += f".{value.microseconds:06}0"
    return sign + words


def choice(*options: str) -> Convert:
    """Return a converter to one of these words, in any case."""
    by_lower = {option.lower(): option for option in options}

    def convert(value: Any) -> str:
        word = by_lower.get(str(value).strip().lower())
        if word is None:
            raise Refusal(f"is not known, got {short_repr(value)}", f"Give one of {', '.join(options)}.")
        return word

    return convert


def parse_literal(value: Any) -> Any:
    """Parse the text of a list or mapping, in JSON or Python, that a template has rendered. Else return *value*."""
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        for decode in (json.loads, ast.literal_eval):
            try:
                return decode(value.strip())
            # RecursionError and MemoryError mean that it is nested too deeply.
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
    return value


def listing(
    item: Convert, *, max_items: int | None = None, noun: str = "items", remedy: str | None = None
) -> Convert:
    """Return a converter to a tuple of converted items, of at most ``max_items``."""

    def convert(value: Any) -> tuple[Any, ...]:
        value = parse_literal(value)
        if isinstance(value, (set, frozenset)):
            value = sorted(value, key=str)
        if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
            raise Refusal(f"is not a list, got {short_repr(value)}", "Give a list, even for a single item.")
        items = []
        for index, entry in enumerate(value):
            try:
                items.append(item(entry))
            except Refusal as refusal:
                raise Refusal(f"[{index}] {refusal.problem}", refusal.remedy) from None
            except QarnotInvalidSpecError as error:
                error_path = f"[{index}].{error.field}" if error.field else f"[{index}]"
                raise QarnotInvalidSpecError(
                    f"[{index}]: {error.message}", field=error_path, remedy=error.remedy
                ) from None
        if max_items is not None and len(items) > max_items:
            raise Refusal(f"has {len(items)} {noun}", remedy or f"Give at most {max_items}.")
        return tuple(items)

    return convert


def record(cls: type[Record]) -> Convert:
    """Return a converter to an object of this class, also from a mapping."""

    def convert(value: Any) -> Any:
        value = parse_literal(value)
        return value if isinstance(value, cls) else cls.from_mapping(value)

    return convert


def mapping(value: Any) -> dict[str, str]:
    """Convert to a mapping of text to text, also from the API's ``[{key, value}]``; see :func:`as_text`."""
    value = parse_literal(value)
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        try:
            value = {pair["key"]: pair["value"] for pair in value}
        except (TypeError, KeyError):
            raise Refusal(
                f"is a list of something else than {{key, value}}, got {short_repr(value)}", "Give a mapping."
            ) from None
    if not isinstance(value, Mapping):
        raise Refusal(
            f"is not a mapping, got {short_repr(value)}", "Give a mapping such as {'NAME': 'value'}."
        )
    result = {}
    for key, entry in value.items():
        words = as_text(entry)
        if words is None:
            raise Refusal(
                f"has the value {type(entry).__name__} under {key!r}, which is not text",
                "Give a string; json.dumps() makes one of a structure.",
            )
        result[str(key)] = words
    return result


def command_line(value: Any) -> str:
    """Convert to a command, from text or a list of words, which are quoted for a shell."""
    words = shlex.join(map(str, value)) if isinstance(value, (list, tuple)) else value
    return str(text(minimum=1)(words))


def constants(value: Any) -> dict[str, str]:
    """Convert to the constants of a pool or Qarnot task: a mapping as :func:`mapping` returns it."""
    result = mapping(value)
    for key, entry in result.items():
        if _CONSTANT_KEY.fullmatch(key) is None:
            raise Refusal(f"has the key {short_repr(key)}", "Keys take letters, digits, '_', '.' and '-'.")
        for what, length in (("key", len(key)), ("value", len(entry))):
            if length > MAX_CONSTANT_LENGTH:
                raise Refusal(
                    f"has a {what} of {length} characters at {short_repr(key[:40])}",
                    f"Qarnot takes {MAX_CONSTANT_LENGTH}; put anything longer in a file of a resource bucket.",
                )
    return result


def short_hash(value: Any, length: int = 8) -> str:
    """Return the first digits of a hash of the JSON of *value*."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:length]


def to_pairs(value: Mapping[str, str]) -> list[dict[str, str]]:
    """Encode a mapping in the form of the API: ``[{key, value}]``."""
    return [{"key": key, "value": entry} for key, entry in value.items()]


def nested(value: Any) -> Any:
    """Encode a record, or a list of records."""
    return [one.to_json() for one in value] if isinstance(value, tuple) else value.to_json()
