"""Fields of the connection form. Airflow 3.2 and later read them as metadata, and 3.1 through two hook methods.

Plain data, with no imports beyond the standard library, because every Airflow process loads the provider metadata.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CONNECTION_TYPE = "qarnot"
HOOK_NAME = "Qarnot"
DEFAULT_API_URL = "https://api.qarnot.com"


@dataclass(frozen=True)
class FormField:
    """One extra field of the form. ``type`` is a JSON schema type. The value is stored in the connection's extra."""

    name: str
    label: str
    type: str
    description: str
    placeholder: str = ""
    default: Any = None
    minimum: float | None = None

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema of the field."""
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
        "S3 endpoint of the buckets. Default: the endpoint that the API announces.",
        "https://storage.qarnot.com",
    ),
    FormField(
        "namespace",
        "Namespace",
        "string",
        "Separates Airflow deployments that share a Qarnot account. QarnotExecutor needs one. Letters, digits, '-', "
        "'_' and '.'.",
        "production",
    ),
    FormField("verify", "Verify TLS", "boolean", "Verify the server's certificate.", default=True),
    FormField(
        "ca_bundle",
        "CA bundle",
        "string",
        "File of certificates to trust in place of the system's, on every worker and triggerer.",
        "/etc/ssl/certs/company.pem",
    ),
    FormField(
        "proxy",
        "HTTP proxy",
        "string",
        "Proxy for the API and the storage, in place of HTTP(S)_PROXY and NO_PROXY of the environment.",
        "http://proxy.example:3128",
    ),
    FormField(
        "timeout",
        "Request timeout (s)",
        "number",
        "Maximum duration of one attempt of a request.",
        "30",
        minimum=0.1,
    ),
    FormField(
        "retries",
        "Retries",
        "integer",
        "Maximum number of retries of a request after a transient failure.",
        "6",
        minimum=0,
    ),
    FormField(
        "poll_interval",
        "Polling interval (s)",
        "number",
        "Time between two polls of the waits of this connection. Default: [qarnot] poll_interval.",
        "5",
        minimum=0.01,
    ),
    FormField(
        "console_url",
        "Console URL",
        "string",
        "Web console that links point to.",
        "https://tasq.qarnot.com",
    ),
    FormField(
        "reference_datacenter",
        "Reference data centre",
        "string",
        "Data centre that carbon savings are compared with, by its Qarnot name. Default: Qarnot's choice.",
    ),
)

#: The port is not hidden, because Airflow 3.3.2 tests a saved connection only if it has one. Its Test button sends 0
#: for an empty port, treats that as another server, and refuses to send the saved token to it.
HIDDEN = ["login", "schema", "extra"]
RELABELING = {"host": "API URL", "password": "API token"}
PLACEHOLDERS = {
    "host": DEFAULT_API_URL,
    "port": "443",
    "password": "the token of your Qarnot account",
    **{field.name: field.placeholder for field in FIELDS if field.placeholder},
}


def metadata() -> dict[str, Any]:
    """Return the ``connection-types`` entry of the provider metadata (Airflow 3.2 and later)."""
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
    """Return the fields as WTForms widgets (Airflow 3.1, which mocks these imports if they are missing)."""
    from flask_appbuilder.fieldwidgets import BS3TextFieldWidget
    from wtforms import BooleanField, IntegerField, StringField

    # Airflow 3.1 drops the whole connection type if it has a field of another class.
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
    """Return labels and placeholders for ``get_ui_field_behaviour`` (Airflow 3.1)."""
    return {"hidden_fields": HIDDEN, "relabeling": RELABELING, "placeholders": PLACEHOLDERS}
