"""The connection form as one table: Airflow 3.2 and later read it as metadata, 3.1 through two hook methods.

Plain data and no imports beyond the standard library: Airflow loads it with the provider metadata,
in every process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CONNECTION_TYPE = "qarnot"
HOOK_NAME = "Qarnot"
DEFAULT_API_URL = "https://api.qarnot.com"


@dataclass(frozen=True)
class FormField:
    """One extra field of the form. ``type`` is a JSON schema type; the value lands in the connection's extra."""

    name: str
    label: str
    type: str
    description: str
    placeholder: str = ""
    default: Any = None
    minimum: float | None = None

    def schema(self) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": [self.type, "null"]}
        if self.default is not None:
            schema["default"] = self.default
        if self.minimum is not None:
            schema["minimum"] = self.minimum
        return schema


FIELDS = (
    FormField(
        "storage_url",
        "Storage URL",
        "string",
        "S3 endpoint of the buckets. Empty: the one the API announces.",
        "https://storage.qarnot.com",
    ),
    FormField(
        "namespace",
        "Namespace",
        "string",
        "Tells two Airflow deployments on one Qarnot account apart. Letters, digits, '-', '_' and '.'.",
        "production",
    ),
    FormField("verify", "Verify TLS", "boolean", "Check the server's certificate.", default=True),
    FormField(
        "ca_bundle",
        "CA bundle",
        "string",
        "Path of a file of certificates to trust instead of the system's, on every worker and triggerer.",
        "/etc/ssl/certs/company.pem",
    ),
    FormField(
        "proxy",
        "HTTP proxy",
        "string",
        "For requests to the API and the storage, in place of the environment's HTTP(S)_PROXY and NO_PROXY.",
        "http://proxy.example:3128",
    ),
    FormField(
        "timeout",
        "Request timeout (s)",
        "number",
        "Longest one attempt of a request may take.",
        "30",
        minimum=0.1,
    ),
    FormField(
        "retries",
        "Retries",
        "integer",
        "How often a request that failed for a passing reason is sent again.",
        "6",
        minimum=0,
    ),
    FormField(
        "console_url",
        "Console URL",
        "string",
        "Web console that links lead to.",
        "https://tasq.qarnot.com",
    ),
    FormField(
        "reference_datacenter",
        "Reference data centre",
        "string",
        "What carbon savings are compared with, by Qarnot's name for it. Empty: Qarnot's own choice.",
    ),
)

#: The port stays: Airflow 3.3.2 tests a saved connection only when it has one. Its Test button sends 0 for none, takes
#: that for another server than the one saved, and refuses to use the saved token there.
HIDDEN = ["login", "schema", "extra"]
RELABELING = {"host": "API URL", "password": "API token"}
PLACEHOLDERS = {
    "host": DEFAULT_API_URL,
    "port": "443",
    "password": "the token of your Qarnot account",
    **{field.name: field.placeholder for field in FIELDS if field.placeholder},
}


def metadata() -> dict[str, Any]:
    """The ``connection-types`` entry of the provider metadata (Airflow 3.2 and later)."""
    return {
        "connection-type": CONNECTION_TYPE,
        "hook-class-name": "airflow_qarnot_pool.hooks.qarnot.QarnotHook",
        "hook-name": HOOK_NAME,
        "conn-fields": {
            field.name: {
                "label": field.label,
                "description": field.description,
                "schema": field.schema(),
            }
            for field in FIELDS
        },
        "ui-field-behaviour": {
            "hidden-fields": HIDDEN,
            "relabeling": RELABELING,
            "placeholders": PLACEHOLDERS,
        },
    }


def widgets() -> dict[str, Any]:
    """The same fields as WTForms widgets (Airflow 3.1, which mocks these imports where they are absent)."""
    from flask_appbuilder.fieldwidgets import BS3TextFieldWidget
    from wtforms import BooleanField, IntegerField, StringField

    # Airflow 3.1 knows no other fields: one of another kind makes it leave out the whole connection type.
    kinds = {"string": StringField, "number": StringField, "integer": IntegerField}
    form: dict[str, Any] = {}
    for field in FIELDS:
        if field.type == "boolean":
            form[field.name] = BooleanField(
                label=field.label, description=field.description, default=field.default
            )
        else:
            form[field.name] = kinds[field.type](
                label=field.label, description=field.description, widget=BS3TextFieldWidget()
            )
    return form


def behaviour() -> dict[str, Any]:
    """The same labels and placeholders in the shape of ``get_ui_field_behaviour`` (Airflow 3.1)."""
    return {"hidden_fields": HIDDEN, "relabeling": RELABELING, "placeholders": PLACEHOLDERS}
