"""Check OpenLineage events against OpenLineage's specification.

The core of an event is checked against :data:`CORE`, which states the requirements of version 2-0-2.
A facet of the specification is built by the class that OpenLineage generates from its schema, and a facet of ours is
checked against the file that its ``_schemaURL`` names.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from functools import cache
from importlib.resources import files
from typing import Any

import attr
import jsonschema

SPECIFICATION = "https://openlineage.io/spec/"
_URI = {"type": "string", "format": "uri"}
_FACETS = {
    "type": "object",
    "additionalProperties": {
        "type": "object",
        "properties": {"_producer": _URI, "_schemaURL": _URI},
        "required": ["_producer", "_schemaURL"],
    },
}
_NAMED = {
    "type": "object",
    "properties": {"namespace": {"type": "string"}, "name": {"type": "string"}, "facets": _FACETS},
    "required": ["namespace", "name"],
}
_DATASETS = {
    "type": "array",
    "items": {
        **_NAMED,
        "properties": {**_NAMED["properties"], "inputFacets": _FACETS, "outputFacets": _FACETS},
    },  # type: ignore[dict-item]
}
CORE = {
    "type": "object",
    "properties": {
        "eventTime": {"type": "string", "format": "date-time"},
        "producer": _URI,
        "schemaURL": _URI,
        "eventType": {"enum": ["START", "RUNNING", "COMPLETE", "ABORT", "FAIL", "OTHER"]},
        "run": {
            "type": "object",
            "properties": {"runId": {"type": "string", "format": "uuid"}, "facets": _FACETS},
            "required": ["runId"],
        },
        "job": _NAMED,
        "inputs": _DATASETS,
        "outputs": _DATASETS,
    },
    "required": ["eventTime", "producer", "schemaURL", "run", "job"],
}
_formats = jsonschema.Draft202012Validator.FORMAT_CHECKER


def check_event(event: dict[str, Any]) -> None:
    """Raise an error if *event* does not follow the specification, or one of its facets its schema."""
    jsonschema.Draft202012Validator(CORE, format_checker=_formats).validate(event)
    datasets = [*event.get("inputs", ()), *event.get("outputs", ())]
    for owner in (event["run"], event["job"], *datasets):
        for key, facet in owner.get("facets", {}).items():
            _check_facet(key, facet)


def _check_facet(key: str, facet: dict[str, Any]) -> None:
    url: str = facet["_schemaURL"]
    if url.startswith("pkg:pypi/airflow-qarnot-pool@"):
        package, _, path = url.partition("#")[2].partition("/")
        schema = json.loads(files(package).joinpath(path).read_text())
        jsonschema.Draft202012Validator(schema, format_checker=_formats).validate(facet)
    elif url.startswith(f"{SPECIFICATION}facets/"):
        fields = {name: value for name, value in facet.items() if not name.startswith("_")}
        _build(_generated()[url.rpartition("/")[2]], fields)


def _build(cls: Any, fields: dict[str, Any]) -> Any:
    """Build an object of a generated class, which refuses unknown and missing fields and wrong formats."""
    return cls(**fields)


@cache
def _generated() -> dict[str, Any]:
    """The classes of the facets by the end of the URL of their schema."""
    package = importlib.import_module("openlineage.client.generated")
    classes = {}
    for module in pkgutil.iter_modules(package.__path__):
        for cls in vars(importlib.import_module(f"{package.__name__}.{module.name}")).values():
            if isinstance(cls, type) and attr.has(cls) and hasattr(cls, "_get_schema"):
                classes[cls._get_schema().rpartition("/")[2]] = cls
    return classes
