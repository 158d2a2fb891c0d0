"""How fields of a request are declared: their name on the wire, what they accept, how they are written.

A request is a frozen dataclass that derives from :class:`Record`; each field carries ``metadata=at(...)``. Values
are converted when the object is made, so that text from a rendered template ("4", "true", "00:10:00", JSON) is
as good as the real type, and whatever cannot be right is refused at once by a QarnotInvalidSpecError that names
the field.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any, ClassVar, Self
from uuid import UUID

from airflow_qarnot_pool.api.durations import format_span, parse_duration
from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError

Convert = Callable[[Any], Any]
SECRET = "***"

_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_NUMBER_WORDS = re.compile(r"[+-]?\d+")


def is_secret_constant(key: str) -> bool:
    """Whether the value of this constant must never be shown."""
    return key.upper().startswith(("QARNOT_SECRET__", "DOCKER_REGISTRY_PASSWORD"))


def mask_constants(constants: Mapping[str, str]) -> dict[str, str]:
    """Constants fit to be shown."""
    return {key: SECRET if is_secret_constant(key) else value for key, value in constants.items()}


def find_secrets(body: Any) -> set[str]:
    """The values of secret constants in a request body, or in a list of them."""
    if isinstance(body, list):
        return {secret for one in body for secret in find_secrets(one)}
    constants = body.get("constants") if isinstance(body, dict) else None
    return {
        pair["value"]
        for pair in constants or ()
        if is_secret_constant(pair["key"]) and len(pair["value"]) > 3
    }


def _same(value: Any) -> Any:
    return value


@dataclass(frozen=True, slots=True)
class Wire:
    """A field's name in the API's JSON, its conversion from what users write, and its way onto the wire."""

    name: str | None
    convert: Convert
    encode: Callable[[Any], Any]
    aliases: tuple[str, ...]


def at(
    name: str | None, convert: Convert, encode: Callable[[Any], Any] = _same, *, aliases: Iterable[str] = ()
) -> dict[str, Any]:
    """Field metadata. ``name`` None: a convenience of ours that is not sent under its own name."""
    return {"wire": Wire(name, convert, encode, tuple(aliases))}


def normalise(name: str) -> str:
    """``instance_count``, ``instanceCount`` and ``InstanceCount`` are the same name."""
    return name.replace("_", "").lower()


#: What people write, normalised, and what they mean: the first that there is.
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
    "instances": ("instance_count",),
    "keepalive": ("keep_warm",),
    "nodecount": ("instance_count",),
    "nodes": ("instance_count",),
    "numinstances": ("instance_count",),
    "numnodes": ("instance_count",),
    "outputbucket": ("result_bucket",),
    "outputs": ("result_bucket",),
    "parallelism": ("max_in_flight",),
    "pokeinterval": ("poll_interval",),
    "poolid": ("qarnot_pool",),
    "poolname": ("qarnot_pool",),
    "pooluuid": ("qarnot_pool",),
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
    """Return which of *names* somebody means who writes *name*, or None."""
    known = {normalise(one): one for one in names}
    for one in (name, *SYNONYMS.get(normalise(name), ())):
        if normalise(one) in known:
            return known[normalise(one)]
    import difflib  # only an error needs it, and every DAG file would pay for it

    close = [] if only_synonyms else difflib.get_close_matches(normalise(name), known, n=1)
    return known[close[0]] if close else None


def short_repr(value: object) -> str:
    """A value as an error message shows it: short."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


class Record:
    """Base of the request dataclasses: conversion and checks when made, JSON in and out."""

    #: Names that users try here but that belong elsewhere, normalised, with the sentence that says where.
    misplaced: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        for field, wire in wire_fields(type(self)):
            value = getattr(self, field.name)
            if value is not None:
                object.__setattr__(self, field.name, convert_field(type(self), field.name, wire, value))
        self._check()

    def _check(self) -> None:
        """What involves several fields. Calls :meth:`_refuse`."""

    def _refuse(self, field: str, problem: str, remedy: str) -> None:
        raise invalid(type(self), field, problem, remedy)

    def to_json(self) -> dict[str, Any]:
        """The JSON body of the API; what is not set is left out."""
        body: dict[str, Any] = {}
        for field, wire in wire_fields(type(self)):
            value = getattr(self, field.name)
            if wire.name is None or value is None or (isinstance(value, (tuple, dict)) and not value):
                continue
            body[wire.name] = wire.encode(value)
        return body

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Build from a mapping with our field names or the API's (any case); None counts as not set.

        Raises QarnotInvalidSpecError, for an unknown name too.
        """
        found = cls._known(values)
        for field, _ in wire_fields(cls):
            required = field.default is field.default_factory is dataclasses.MISSING
            if required and field.name not in found:
                raise invalid(cls, field.name, "is missing", "It is required.")
        return cls(**found)

    @classmethod
    def encode_fields(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON of single fields, converted and checked one by one, as ``clone`` and ``retry`` take them."""
        by_name = {field.name: wire for field, wire in wire_fields(cls)}
        body = {}
        for name, value in cls._known(values).items():
            wire = by_name[name]
            if wire.name is None:
                raise invalid(cls, name, "cannot be overridden by this name", "Use the constants.")
            body[wire.name] = wire.encode(convert_field(cls, name, wire, value))
        return body

    @classmethod
    def _known(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        if not isinstance(values, Mapping):
            raise QarnotInvalidSpecError(
                f"{cls.__name__} is not a mapping, got {short_repr(values)}",
                remedy=f"Give a mapping of its fields: {', '.join(one.name for one, _ in wire_fields(cls))}.",
            )
        names = _names(cls)
        found: dict[str, Any] = {}
        spelled: dict[str, str] = {}
        for key, value in values.items():
            if value is None:
                continue
            name = names.get(normalise(str(key)))
            if name is None:
                raise _unknown(cls, str(key), names)
            if name in found:
                raise invalid(
                    cls, name, f"is given twice, as {spelled[name]!r} and as {key!r}", "Keep one of them."
                )
            found[name], spelled[name] = value, str(key)
        return found

    # By hand, because generated ones make the import twice as slow.
    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, one.name) == getattr(other, one.name) for one, _ in wire_fields(type(self)))

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


def wire_fields(cls: type[Record]) -> list[tuple[dataclasses.Field[Any], Wire]]:
    """The declared fields of a request class, in order."""
    return [(field, field.metadata["wire"]) for field in dataclasses.fields(cls)]  # type: ignore[arg-type]


def invalid(cls: type, field: str, problem: str, remedy: str) -> QarnotInvalidSpecError:
    """``PoolSpec.instance_count is -1, which is ...``: the refusal of one field."""
    return QarnotInvalidSpecError(f"{cls.__name__}.{field} {problem}", field=field, remedy=remedy)


def convert_field(cls: type, name: str, wire: Wire, value: Any) -> Any:
    """The field's value, converted; a refusal names the field, nested ones by their path."""
    try:
        return wire.convert(value)
    except QarnotInvalidSpecError as error:
        path = f"{name}.{error.field}" if error.field else name
        raise QarnotInvalidSpecError(
            f"{cls.__name__}.{name}: {error.message}", field=path.replace(".[", "["), remedy=error.remedy
        ) from None
    except Refusal as error:
        raise invalid(cls, name, error.problem, error.remedy) from None


def _names(cls: type[Record]) -> dict[str, str]:
    names = {}
    for field, wire in wire_fields(cls):
        for name in (field.name, wire.name, *wire.aliases):
            if name is not None:
                names[normalise(name)] = field.name
    return names


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
    """What a converter says no with; the caller adds the name of the field."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy


def as_text(value: Any) -> str | None:
    """Return the text that *value* stands for: its own, or that of a number, flag, date or uuid. None: it has none."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int, float, Decimal, date, time, UUID)):
        return str(value)
    return None


def text(*, minimum: int = 0, below: int | None = None) -> Convert:
    """A string of at least ``minimum`` and less than ``below`` characters."""

    def convert(value: Any) -> str:
        found = as_text(value)
        if found is None:
            raise Refusal(f"is not text, got {short_repr(value)}", "Give a string.")
        if len(found.strip()) < minimum:
            raise Refusal("is empty", "Give a value, or leave it out.")
        if below is not None and len(found) >= below:
            raise Refusal(
                f"has {len(found)} characters ({short_repr(found[:40])}...)",
                f"Stay under {below} characters.",
            )
        return found

    return convert


def uuid_text(value: Any) -> str:
    """Convert to a uuid as text. Qarnot refuses names in its place."""
    words = str(text(minimum=1)(value)).strip()
    if _UUID.fullmatch(words) is None:
        raise Refusal(f"is no uuid, got {short_repr(words)}", "Give the uuid; a name does not stand for it.")
    return words


def integer(minimum: int, maximum: int | None = None) -> Convert:
    """A whole number, also as text."""
    span = f"{minimum} or more" if maximum is None else f"between {minimum} and {maximum}"

    def convert(value: Any) -> int:
        number: int | None = None
        if (
            (isinstance(value, int) and not isinstance(value, bool))
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
    """A number within bounds, also as text; ``above`` leaves the lower bound out."""
    span = f"{'above' if above else 'from'} {minimum} up to {maximum}"

    def convert(value: Any) -> float:
        try:
            if isinstance(value, bool):
                raise ValueError
            number = float(value)
        except (TypeError, ValueError):
            raise Refusal(f"is not a number, got {short_repr(value)}", f"Give a number {span}.") from None
        if not (minimum <= number <= maximum) or (above and number == minimum):
            raise Refusal(f"is {number}", f"Give a number {span}.")
        return number

    return convert


def boolean(value: Any) -> bool:
    """True or False, also as text."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    raise Refusal(f"is neither true nor false, got {short_repr(value)}", "Give True or False.")


def duration(value: Any) -> timedelta:
    """A timedelta; seconds, a time span or an ISO 8601 duration as number or text."""
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
    """A duration on the wire as whole seconds, rounded up."""
    return math.ceil(value.total_seconds())


span = format_span


def choice(*options: str) -> Convert:
    """One of these words, whatever the case."""
    known = {option.lower(): option for option in options}

    def convert(value: Any) -> str:
        word = known.get(str(value).strip().lower())
        if word is None:
            raise Refusal(f"is not known, got {short_repr(value)}", f"Give one of {', '.join(options)}.")
        return word

    return convert


def parse_literal(value: Any) -> Any:
    """What a template that renders a list or mapping leaves behind: JSON or a Python literal. Else the value."""
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        for decode in (json.loads, ast.literal_eval):
            try:
                return decode(value.strip())
            except (
                ValueError,
                SyntaxError,
                RecursionError,
                MemoryError,
            ):  # the last two if nested too deeply
                continue
    return value


def listing(item: Convert, *, most: int | None = None) -> Convert:
    """A list of converted items, as a tuple."""

    def convert(value: Any) -> tuple[Any, ...]:
        value = parse_literal(value)
        if isinstance(value, (set, frozenset)):
            value = sorted(value, key=str)
        if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
            raise Refusal(f"is not a list, got {short_repr(value)}", "Give a list, even for a single item.")
        items = []
        for index, one in enumerate(value):
            try:
                items.append(item(one))
            except Refusal as refusal:
                raise Refusal(f"[{index}] {refusal.problem}", refusal.remedy) from None
            except QarnotInvalidSpecError as error:
                error_path = f"[{index}].{error.field}" if error.field else f"[{index}]"
                raise QarnotInvalidSpecError(
                    f"[{index}]: {error.message}", field=error_path, remedy=error.remedy
                ) from None
        if most is not None and len(items) > most:
            raise Refusal(f"has {len(items)} items", f"Give at most {most}.")
        return tuple(items)

    return convert


def record(cls: type[Record]) -> Convert:
    """An object of this class, or a mapping it can be made from."""

    def convert(value: Any) -> Any:
        value = parse_literal(value)
        return value if isinstance(value, cls) else cls.from_mapping(value)

    return convert


def mapping(value: Any) -> dict[str, str]:
    """A mapping of text to text, also in the API's ``[{key, value}]`` form; see :func:`as_text`."""
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


def to_pairs(value: Mapping[str, str]) -> list[dict[str, str]]:
    """A mapping as the API writes it: ``[{key, value}]``."""
    return [{"key": key, "value": entry} for key, entry in value.items()]


def nested(value: Any) -> Any:
    """A record, or several, on the wire."""
    return [one.to_json() for one in value] if isinstance(value, tuple) else value.to_json()
