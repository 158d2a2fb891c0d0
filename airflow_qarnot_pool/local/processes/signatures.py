"""Check whether the key of the account signed an S3 request (Signature Version 4 or 2). No I/O.

boto3 signs requests with version 4, and presigned URLs with version 2.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from email.message import Message
from typing import Any
from urllib.parse import SplitResult, quote, unquote

_VERSION_4 = "AWS4-HMAC-SHA256"
_VERSION_2 = re.compile(r"AWS ([^:]+):(.+)")


@dataclass(frozen=True, slots=True)
class S3Request:
    """A request as it was sent.

    :param target: path and query, not decoded.
    """

    method: str
    target: str
    headers: Message

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def query(self) -> list[tuple[str, str]]:
        pairs = (pair.partition("=") for pair in self.target.partition("?")[2].split("&") if pair)
        return [(unquote(name), unquote(value)) for name, _, value in pairs]


@dataclass(frozen=True, slots=True)
class _Signature:
    key: str
    value: str
    version: int
    date: str
    scope: str = ""
    signed_headers: str = ""


def refusal(request: S3Request, key: str, secret: str) -> str | None:
    """Return the S3 error code of a request that this key has not signed, or None if it has."""
    signature = _read(request)
    if signature is None:
        return "AccessDenied"
    if signature.key != key:
        return "InvalidAccessKeyId"
    compute = _version_4 if signature.version == 4 else _version_2
    is_valid = hmac.compare_digest(compute(request, signature, secret).encode(), signature.value.encode())
    return None if is_valid else "SignatureDoesNotMatch"


def _read(request: S3Request) -> _Signature | None:
    """Return the signature in the header or in the query of a presigned URL."""
    header, query = request.headers.get("Authorization", ""), dict(request.query)
    date = request.headers.get("x-amz-date", "")
    if header.startswith(_VERSION_4):
        parts = (part.strip().partition("=") for part in header[len(_VERSION_4) :].split(","))
        fields = {name: value for name, _, value in parts}
        return _read_version_4(fields, "", date)
    if query.get("X-Amz-Algorithm") == _VERSION_4:
        return _read_version_4(query, "X-Amz-", query.get("X-Amz-Date", ""))
    if match := _VERSION_2.fullmatch(header):
        return _Signature(match[1], match[2], 2, "" if date else request.headers.get("Date", ""))
    if {"AWSAccessKeyId", "Signature", "Expires"} <= set(query):
        return _Signature(query["AWSAccessKeyId"], query["Signature"], 2, query["Expires"])
    return None


def _read_version_4(fields: dict[str, str], prefix: str, date: str) -> _Signature:
    credential, headers, value = (
        fields.get(prefix + name, "") for name in ("Credential", "SignedHeaders", "Signature")
    )
    key, _, scope = credential.partition("/")
    return _Signature(key, value, 4, date, scope, headers)


def _version_4(request: S3Request, signature: _Signature, secret: str) -> str:
    parameters = sorted(
        (quote(name, safe=""), quote(value, safe=""))
        for name, value in request.query
        if name != "X-Amz-Signature"
    )
    names = signature.signed_headers.split(";")
    headers = "".join(
        f"{name}:{','.join(' '.join(v.split()) for v in request.headers.get_all(name, []))}\n"
        for name in names
    )
    canonical = "\n".join(
        (
            request.method,
            quote(unquote(request.path), safe="/"),
            "&".join(f"{name}={value}" for name, value in parameters),
            headers,
            signature.signed_headers,
            request.headers.get("x-amz-content-sha256", "UNSIGNED-PAYLOAD"),
        )
    )
    # Headers are bytes that the server decoded as Latin-1.
    digest = hashlib.sha256(canonical.encode("latin-1", "replace")).hexdigest()
    signing_key = f"AWS4{secret}".encode()
    for part in signature.scope.split("/"):
        signing_key = hmac.digest(signing_key, part.encode(), "sha256")
    text = "\n".join((_VERSION_4, signature.date, signature.scope, digest))
    return hmac.digest(signing_key, text.encode(), "sha256").hex()


def _version_2(request: S3Request, signature: _Signature, secret: str) -> str:
    from botocore.auth import HmacV1Auth
    from botocore.credentials import Credentials

    class AtItsDate(HmacV1Auth):  # type: ignore[misc]
        def _get_date(self) -> str:
            return signature.date

    headers = Message()
    for name, value in request.headers.items():
        headers[name] = value
    path, _, query = request.target.partition("?")
    if path != "/" and path.count("/") == 1:
        path += "/"  # a bucket alone is signed with a slash
    signer: Any = AtItsDate(Credentials(signature.key, secret))
    return str(signer.get_signature(request.method, SplitResult("", "", path, query, ""), headers))
