"""Calls that pools and Qarnot tasks share: create, look up, list, search, read output, delete."""

from __future__ import annotations

import builtins
import logging
import re
import sys
import uuid as uuids
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, ClassVar, Generic, TypeVar
from urllib.parse import quote

from airflow_qarnot_pool.api.errors import (
    QarnotInvalidSpecError,
    QarnotNotFoundError,
    QarnotProtocolError,
    QarnotRefusedError,
    QarnotUnknownStateError,
)
from airflow_qarnot_pool.api.fields import normalise, short_repr, wire_fields
from airflow_qarnot_pool.api.filters import Filter, equal
from airflow_qarnot_pool.api.models import CarbonFacts, Page, RemoteObject
from airflow_qarnot_pool.api.specs import PoolSpec, TaskSpec
from airflow_qarnot_pool.api.states import is_ending
from airflow_qarnot_pool.api.transport import Recover, Transport

log = logging.getLogger(__name__)

SpecT = TypeVar("SpecT", PoolSpec, TaskSpec)
ModelT = TypeVar("ModelT", bound=RemoteObject)

#: Label of the call that created an object, by which a lost response can be recovered.
REQUEST_LABEL = "airflow-qarnot-request"
#: Matches the fields that Qarnot rejects in an error message.
_INVALID_FIELDS = re.compile(r"invalid fields?: *([\w., -]+)", re.IGNORECASE)

#: Maximum number of objects requested in one search. The server may return fewer.
MAX_FOUND = 10_000
#: Maximum number of objects requested in one page, because pages contain all their fields.
PAGE_SIZE = 1000


def quote_ref(ref: str, kind: str) -> str:
    """Quote a uuid or shortname for a path. Raises QarnotInvalidSpecError for one that would change the path."""
    text = ref.strip() if isinstance(ref, str) else ""
    if text in ("", ".", ".."):
        raise QarnotInvalidSpecError(
            f"{ref!r} is neither the uuid nor the shortname of a {kind}",
            field="ref",
            kind=kind,
            remedy=f"Give the uuid or shortname of the {kind}.",
        )
    return quote(text, safe="")


def with_rejected_values(
    error: QarnotRefusedError, spec: type[PoolSpec | TaskSpec], body: Mapping[str, Any]
) -> QarnotRefusedError:
    """Return *error* with the values of the rejected fields. The message of Qarnot has only their names."""
    listed = _INVALID_FIELDS.search(error.server_message or "")
    if listed is None or type(error) is not QarnotRefusedError:
        return error
    rejected = _rejected_values(listed[1].split(","), spec, body)
    if not rejected:
        return error
    return QarnotRefusedError(
        f"{error.message}: {'; '.join(rejected)}",
        status=error.status,
        server_message=error.server_message,
        kind=error.kind,
        ref=error.ref,
        method=error.method,
        path=error.path,
        remedy=error.remedy or "Correct it, or leave it out.",
    )


def _rejected_values(
    names: Sequence[str], spec: type[PoolSpec | TaskSpec], body: Mapping[str, Any]
) -> list[str]:
    ours = {normalise(wire.name or ""): field.name for field, wire in wire_fields(spec)}
    sent = {normalise(key): value for key, value in body.items()}
    # The value of any constant may be a secret.
    return [
        f"{ours.get(name, name)} is not valid, got {short_repr(sent[name])}"
        for name in (normalise(name.strip()) for name in names)
        if sent.get(name) is not None and name != "constants"
    ]


@dataclass(eq=False, repr=False)
class Endpoint:
    """A part of the API that is reached through one transport."""

    _transport: Transport


class Resource(Endpoint, Generic[SpecT, ModelT]):
    """The calls that ``/pools`` and ``/tasks`` share. A ``ref`` is a uuid or a shortname.

    All raise QarnotNotFoundError for an unknown ref, QarnotCredentialsError, and QarnotUnavailableError after the last
    retry or the deadline.
    """

    kind: ClassVar[str]
    base: ClassVar[str]
    #: The last part of the path of a request that ends an object.
    end_verb: ClassVar[str]
    spec: type[SpecT]
    model: type[ModelT]
    #: Number of objects in the largest response to a search that was complete. The server's limit is not below it.
    _largest_complete = 0

    def _path(self, ref: str, *rest: str) -> str:
        return "/".join((self.base, quote_ref(ref, self.kind), *rest))

    def _read(self, method: str, path: str, **options: Any) -> Any:
        return self._transport.request(method, path, idempotent=True, kind=self.kind, **options)

    def create(self, spec: SpecT) -> str:
        """Create and submit an object, and return its uuid.

        If it has a shortname, a lost response is recovered: before a retry the shortname is looked up, and the object
        is used if this call has created it. Without a shortname, a lost response raises QarnotUnavailableError with
        ``ambiguous``. Raises QarnotNameTakenError, QarnotQuotaError, QarnotCreditsError, QarnotBucketNotFoundError,
        QarnotRefusedError.

        Qarnot API: ``POST /pools``, ``POST /tasks``.
        """
        return self._make(self.base, spec, creating=True)

    def create_once(self, spec: SpecT) -> str:
        """Create as ``create`` does, but raise QarnotUnavailableError with ``ambiguous`` for any lost response.

        For callers that can find the object that they may have created.
        """
        return self._make(self.base, spec, once=True, creating=True)

    def clone(self, ref: str, **overrides: Any) -> str:
        """Create a copy with other values for some fields, and return its uuid. The shortname is not copied.

        With a shortname, a lost response is recovered, as with ``create``. That reads the labels of the source first,
        unless labels are given.
        Qarnot API: ``POST /pools/{u}/clone``, ``POST /tasks/{u}/clone``.
        """
        return self._make(self._path(ref, "clone"), overrides, ref=ref)

    def clone_once(self, ref: str, **overrides: Any) -> str:
        """Clone, and handle a lost response as ``create_once`` does."""
        return self._make(self._path(ref, "clone"), overrides, ref=ref, once=True, creating=True)

    def _make(
        self,
        path: str,
        given: SpecT | Mapping[str, Any],
        ref: str | None = None,
        once: bool = False,
        creating: bool = False,
    ) -> str:
        """Send the POST request that creates an object. Recovers a lost response by its shortname, unless *once*.

        :param given: the specification, or the fields of the original that are overridden.
        """
        body = self.spec.encode_fields(given) if isinstance(given, Mapping) else given.to_json()
        shortname = body.get("shortname")
        recover: Recover | None = None
        if shortname and not once:
            if path != self.base and "labels" not in body:
                # Labels in the request replace those of the source.
                body = {**body, "labels": dict(self.get(ref or "").labels)}
            body, request_id = with_request_label(body)
            recover = partial(self._find_created, str(shortname), request_id)
        try:
            data = self._transport.request(
                "POST",
                path,
                json=body,
                idempotent=False,
                kind=self.kind,
                ref=ref or shortname,
                shape=(dict, str),
                creating=creating,
                recover=recover,
            )
        except QarnotRefusedError as error:
            raise with_rejected_values(error, self.spec, body) from None
        return self._created_uuid(data, shortname, recover)

    def _created_uuid(self, data: Any, shortname: str | None, recover: Recover | None) -> str:
        """Return the uuid in the response to the creation; if there is none, that of the object that is found."""
        uuid = data if isinstance(data, str) else _field(data, "uuid")
        if not uuid and recover is not None:
            uuid = recover(self._transport.deadline)
        if uuid and isinstance(uuid, str):
            return uuid
        raise QarnotProtocolError(
            f"Qarnot created a {self.kind} but did not return its uuid", kind=self.kind, ref=shortname
        )

    def _find_created(self, shortname: str, request_id: str, seconds_left: float) -> str | None:
        """Return the uuid of the object that the request with this label created, or None."""
        quick = type(self)(self._transport.limited(deadline=seconds_left))
        first = quick.find(shortname)
        # A server may have several objects of this name, or take no shortnames in paths.
        for candidate in chain([first] if first else [], quick._named(shortname)):
            if candidate.labels.get(REQUEST_LABEL) == request_id:
                log.info("%s %s was created although the response was lost", self.kind, shortname)
                return candidate.uuid
        return None

    def get(self, ref: str) -> ModelT:
        """Return the object with all fields. Qarnot API: ``GET /pools/{u}``, ``GET /tasks/{u}``."""
        return self.model.from_json(self._read("GET", self._path(ref), ref=ref, shape=dict))

    def find(self, shortname: str) -> ModelT | None:
        """Return the object of that shortname (or uuid), or None."""
        try:
            return self.get(shortname)
        except QarnotNotFoundError:
            return None

    def find_all(self, shortname: str) -> builtins.list[ModelT]:
        """Return every object of that shortname. There may be several if the server does not enforce unique names."""
        return builtins.list(self._named(shortname))

    def _named(self, shortname: str) -> Iterator[ModelT]:
        for candidate in self.search_each(equal("Shortname", shortname)):
            if candidate.shortname == shortname:
                yield candidate

    def list(self, tags: Sequence[str] = ()) -> builtins.list[ModelT]:
        """List all objects, or those with any of the tags. Qarnot API: ``GET /pools``, ``GET /tasks``."""
        return self._listed(self.base, tags)

    def list_summaries(self, tags: Sequence[str] = ()) -> builtins.list[ModelT]:
        """List objects with fewer fields. Qarnot API: ``GET /pools/summaries``, ``GET /tasks/summaries``."""
        return self._listed(f"{self.base}/summaries", tags)

    def _listed(self, path: str, tags: Sequence[str]) -> builtins.list[ModelT]:
        params = [("tag", tag) for tag in tags]
        return self._models(self._read("GET", path, params=params or None, shape=builtins.list))

    def search(
        self,
        filter: Filter | None = None,
        *,
        fields: Sequence[str] | None = None,
        limit: int | None = None,
    ) -> builtins.list[ModelT]:
        """Return at most ``limit`` objects that match a filter, with some ``fields`` of each (PascalCase).

        The server may return fewer without notice: see :meth:`search_all`. Uuid is always requested.
        Qarnot API: ``POST /pools/search``, ``POST /tasks/search``.
        """
        body: dict[str, Any] = {}
        if fields is not None:
            names = {"Uuid": None} | dict.fromkeys(fields)
            body["select"] = {"fields": builtins.list(names)}
        if filter is not None:
            body["filter"] = filter
        if limit is not None:
            body["maximumResults"] = limit
        return self._models(self._read("POST", f"{self.base}/search", json=body, shape=builtins.list))

    def search_all(
        self, filter: Filter | None = None, *, fields: Sequence[str] | None = None, trust_limit: bool = False
    ) -> builtins.list[ModelT]:
        """Return every object that matches a filter, whatever the limit of the server.

        Only an empty response is surely complete. So a page of one object is requested for the total. If that differs
        from the response, or is unknown, the pages are read. Objects from pages have all fields.

        :param trust_limit: take a response for complete if an earlier one with more objects was. This saves a request,
            and is right unless the server has lowered its limit since.

        Qarnot API: ``/search``, ``/summaries/paginate``, ``/paginate``.
        """
        return builtins.list(self.search_each(filter, fields=fields, trust_limit=trust_limit))

    def search_each(
        self,
        filter: Filter | None = None,
        *,
        fields: Sequence[str] | None = None,
        trust_limit: bool = False,
    ) -> Iterator[ModelT]:
        """Yield the objects of :meth:`search_all`. A caller that has found enough in one search saves the others."""
        try:
            matches = self.search(filter, fields=fields, limit=MAX_FOUND)
        except QarnotRefusedError as error:
            if error.status != 400:
                raise
            # A server may reject a limit beyond its own.
            yield from self._paged(filter)
            return
        yield from matches
        if not matches or (trust_limit and len(matches) < self._largest_complete):
            return
        if self.page(filter, limit=1, summaries=True).total == len(matches):
            self._largest_complete = max(self._largest_complete, len(matches))
        else:
            uuids_seen = {match.uuid for match in matches}
            yield from (match for match in self._paged(filter) if match.uuid not in uuids_seen)

    def _paged(self, filter: Filter | None) -> builtins.list[ModelT]:
        """Return every object that matches a filter, in pages of our size, or of the server's if it rejects ours."""
        try:
            return builtins.list(self.iterate(filter, limit=PAGE_SIZE))
        except QarnotRefusedError as error:
            if error.status != 400:
                raise
            return builtins.list(self.iterate(filter))

    def page(
        self,
        filter: Filter | None = None,
        *,
        token: str | None = None,
        limit: int | None = None,
        order_by: str | None = None,
        descending: bool = False,
        summaries: bool = False,
    ) -> Page[ModelT]:
        """Return one page. ``next_token`` is for the next one. ``order_by``: creationDate, executionTime, name, state.

        Qarnot API: ``POST /pools/paginate``, ``POST /pools/summaries/paginate``, same for tasks.
        """
        path = f"{self.base}/summaries/paginate" if summaries else f"{self.base}/paginate"
        body: dict[str, Any] = {"filter": filter, "token": token, "maximumResults": limit}
        if order_by is not None:
            body |= {"orderBy": order_by, "orderType": "DESC" if descending else "ASC"}
        body = {key: value for key, value in body.items() if value is not None}
        data = self._read("POST", path, json=body, shape=dict)
        items = _field(data, "data")
        if not isinstance(items, builtins.list):
            raise QarnotProtocolError(f"Qarnot sent a page of {self.kind}s without its list", path=path)
        next_token = _field(data, "nextToken")
        if not isinstance(next_token, str | None):
            raise QarnotProtocolError(f"Qarnot sent a page of {self.kind}s whose token is no text", path=path)
        return Page(
            items=self._models(items),
            next_token=next_token if next_token and _field(data, "isTruncated") is not False else None,
            total=_field(data, "total"),
            count=_field(data, "count"),
            is_truncated=bool(_field(data, "isTruncated")),
        )

    def iterate(
        self,
        filter: Filter | None = None,
        *,
        limit: int | None = None,
        order_by: str | None = None,
        descending: bool = False,
        summaries: bool = False,
    ) -> Iterator[ModelT]:
        """Yield all objects that match a filter, from pages of ``limit``. Each once, even if pages shift meanwhile."""
        seen: set[str] = set()
        tokens: set[str] = set()
        token: str | None = None
        while True:
            page = self.page(
                filter,
                token=token,
                limit=limit,
                order_by=order_by,
                descending=descending,
                summaries=summaries,
            )
            for item in page:
                if item.uuid not in seen:
                    seen.add(item.uuid)
                    yield item
            token = page.next_token
            if token is None:
                if page.is_truncated and page.total != len(seen):
                    raise QarnotProtocolError(
                        f"Qarnot sent a page of {self.kind}s without the token of the next"
                    )
                return
            if token in tokens:
                raise QarnotProtocolError(f"Qarnot returned the same page of {self.kind}s again")
            tokens.add(token)

    def _models(self, items: Sequence[Any]) -> builtins.list[ModelT]:
        return [self.model.from_json(item) for item in items]

    def _put(self, ref: str, body: dict[str, Any]) -> None:
        self._read("PUT", self._path(ref), ref=ref, json=body)

    def end(self, ref: str, *, unless: Callable[[Any], bool] | None = None) -> None:
        """Close a pool, or abort a Qarnot task. Raises QarnotRefusedError if that is not possible.

        After a lost response the state is checked first, because a second request is rejected.
        Qarnot API: ``POST /pools/{u}/close``, ``POST /tasks/{u}/abort``.

        :param unless: is called with the object before each further request, and returns whether to send none.
        """

        def has_ended(seconds_left: float) -> bool | None:
            current = type(self)(self._transport.limited(deadline=seconds_left)).get(ref)
            if unless is not None and unless(current):
                return True
            # For an unknown state the request is repeated, because a rejection does no harm.
            with suppress(QarnotUnknownStateError):
                return True if is_ending(current.state) else None
            return None

        self._read("POST", self._path(ref, self.end_verb), ref=ref, recover=has_ended)

    def sync_resources(self, ref: str) -> None:
        """Copy new files of the resource buckets to the nodes. Files that were deleted in a bucket stay there.

        Qarnot API: ``PATCH /pools/{u}``, ``PATCH /tasks/{u}``.
        """
        self._read("PATCH", self._path(ref), ref=ref)

    def delete(self, ref: str) -> None:
        """Delete an object. A running one is ended first. Qarnot API: ``DELETE /pools/{u}``, ``DELETE /tasks/{u}``."""
        self._read("DELETE", self._path(ref), ref=ref)

    def stdout(self, ref: str, instance: int | None = None, *, fresh: bool = False) -> str:
        """Return the standard output of one instance, or of all instances with ``<id>> `` before each line.

        Qarnot keeps the end of an output. With ``fresh`` the response has only the output since the last request with
        ``fresh``; Qarnot does not repeat it if the response is lost.
        Qarnot API: ``GET`` and ``POST /pools/{u}/stdout``, ``/stdout/{i}``, same for tasks.
        """
        return self._output("stdout", ref, instance, fresh)

    def stderr(self, ref: str, instance: int | None = None, *, fresh: bool = False) -> str:
        """Return the standard error; see ``stdout``."""
        return self._output("stderr", ref, instance, fresh)

    def stream_output(self, ref: str, stream: str, instance: int | None = None) -> Iterator[str]:
        """Yield the stored ``"stdout"`` or ``"stderr"`` in pieces, which takes little memory.

        The request is sent at once. A connection that is interrupted later raises QarnotUnavailableError.
        Qarnot API: ``GET /pools/{u}/stdout``, ``/stdout/{i}``, ``/stderr``, ``/stderr/{i}``, same for tasks.
        """
        path = self._output_path(ref, stream, instance)
        pieces: Iterator[str] = self._read("GET", path, ref=ref, pieces=True)
        return pieces

    def _output(self, stream: str, ref: str, instance: int | None, fresh: bool) -> str:
        method = "POST" if fresh else "GET"
        text: str = self._read(method, self._output_path(ref, stream, instance), ref=ref, text=True)
        return text

    def _output_path(self, ref: str, stream: str, instance: int | None) -> str:
        return self._path(ref, stream, *(() if instance is None else (str(int(instance)),)))

    def credits(self, ref: str) -> float:
        """Return the cost so far, in euros. Qarnot API: ``GET /credits/v1/pools/{u}/credits``."""
        path = f"/credits/v1{self._path(ref, 'credits')}"
        return parse_credits(self._read("GET", path, ref=ref, shape=dict))

    def carbon_facts(self, ref: str, comparison: str | None = None) -> CarbonFacts:
        """Return the energy and carbon used so far, compared with a kind of data centre.

        Qarnot API: ``GET /carbon/v1/pools/{u}/carbon-facts``.
        """
        path = f"/carbon/v1{self._path(ref, 'carbon-facts')}"
        params = {"comparisonDatacenter": comparison} if comparison else None
        return CarbonFacts.from_json(self._read("GET", path, ref=ref, params=params, shape=dict))


def with_request_label(body: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Return *body* with a label that is unique to this call, and the value of the label."""
    request_id = uuids.uuid4().hex
    return {**body, "labels": {**body.get("labels", {}), REQUEST_LABEL: request_id}}, request_id


def parse_credits(data: Mapping[str, Any]) -> float:
    """Return the ``credits`` of a response. A missing or invalid value raises, because cost limits depend on it."""
    value = _field(data, "credits")
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) <= sys.float_info.max:
        raise QarnotProtocolError(f"Qarnot returned an invalid `credits` value: {value!r}")
    return float(value)


def _field(data: Mapping[str, Any], name: str) -> Any:
    """Return a field of a response, in any case."""
    if name in data:
        return data[name]
    return next((value for key, value in data.items() if str(key).lower() == name.lower()), None)
