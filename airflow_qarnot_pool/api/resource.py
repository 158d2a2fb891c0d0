"""What pools and tasks have in common: create, look up, list, search, read the output of, delete."""

from __future__ import annotations

import builtins
import logging
import re
import sys
import uuid as uuids
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
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
from airflow_qarnot_pool.api.transport import Transport

log = logging.getLogger(__name__)

SpecT = TypeVar("SpecT", PoolSpec, TaskSpec)
ModelT = TypeVar("ModelT", bound=RemoteObject)

#: The label that tells which call made an object, so that a lost answer can be found again.
REQUEST_LABEL = "airflow-qarnot-request"
#: How Qarnot names the fields of a request that it refuses.
_INVALID_FIELDS = re.compile(r"invalid fields?: *([\w., -]+)", re.IGNORECASE)

#: Maximum number of objects asked for in one search. A service may answer fewer, so nothing is concluded from it.
MAX_FOUND = 10_000
#: Maximum number of objects asked for in one page, because pages hold every field of each.
PAGE_SIZE = 1000


def quote_ref(ref: str, kind: str) -> str:
    """A uuid or shortname as part of a path. Raises QarnotInvalidSpecError for what would change the path."""
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
    """Return *error* with the values of the fields that Qarnot calls invalid: its own message has their names only."""
    named = _INVALID_FIELDS.search(error.server_message or "")
    if named is None or type(error) is not QarnotRefusedError:
        return error
    ours = {normalise(wire.name): field.name for field, wire in wire_fields(spec) if wire.name}
    sent = {normalise(key): value for key, value in body.items()}
    names = [normalise(one.strip()) for one in named[1].split(",")]
    # A constant may be a secret under any name.
    invalid = [
        f"{ours.get(one, one)} is not valid, got {short_repr(sent[one])}"
        for one in names
        if sent.get(one) is not None and one != "constants"
    ]
    if not invalid:
        return error
    return QarnotRefusedError(
        f"{error.message}: {'; '.join(invalid)}",
        status=error.status,
        server_message=error.server_message,
        kind=error.kind,
        ref=error.ref,
        method=error.method,
        path=error.path,
        remedy=error.remedy or "Correct it, or leave it out.",
    )


class Resource(Generic[SpecT, ModelT]):
    """The calls that ``/pools`` and ``/tasks`` share. A ``ref`` is a uuid or a shortname.

    All raise QarnotNotFoundError for an unknown ref, QarnotCredentialsError, and QarnotUnavailableError once
    retries and deadline are used up.
    """

    kind: ClassVar[str]
    base: ClassVar[str]
    spec: type[SpecT]
    model: type[ModelT]

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def _path(self, ref: str, *rest: str) -> str:
        return "/".join((self.base, quote_ref(ref, self.kind), *rest))

    def _read(self, method: str, path: str, **options: Any) -> Any:
        return self._transport.request(method, path, idempotent=True, kind=self.kind, **options)

    def create(self, spec: SpecT) -> str:
        """Create and submit; returns the uuid.

        With a shortname a lost answer loses nothing: before the request is sent again the name is looked up,
        and what this very call made is taken. Without one an answer that never came raises
        QarnotUnavailableError with ``ambiguous``. Raises QarnotNameTakenError, QarnotQuotaError,
        QarnotCreditsError, QarnotBucketNotFoundError, QarnotRefusedError.

        Qarnot API: ``POST /pools``, ``POST /tasks``.
        """
        return self._make(self.base, spec.to_json())

    def create_once(self, spec: SpecT) -> str:
        """As ``create``, but an answer that never came always raises QarnotUnavailableError with ``ambiguous``.

        For callers that know better than this client how to find what they may have made.
        """
        return self._make(self.base, spec.to_json(), once=True)

    def clone(self, ref: str, **overrides: Any) -> str:
        """Create a copy with other values for some fields; returns its uuid. The shortname is not copied.

        With a shortname a lost answer loses nothing, as with ``create``; unless labels are given, that takes a
        look at the source first.
        Qarnot API: ``POST /pools/{u}/clone``, ``POST /tasks/{u}/clone``.
        """
        return self._make(self._path(ref, "clone"), self.spec.encode_fields(overrides), ref=ref)

    def clone_once(self, ref: str, **overrides: Any) -> str:
        """As ``clone``, with ``create_once``'s way with an answer that never came."""
        path = self._path(ref, "clone")
        return self._make(path, self.spec.encode_fields(overrides), ref=ref, once=True, creating=True)

    def _make(
        self,
        path: str,
        body: dict[str, Any],
        ref: str | None = None,
        once: bool = False,
        creating: bool | None = None,
    ) -> str:
        """POST what makes an object; with a shortname the answer may get lost."""
        shortname = body.get("shortname")
        recover = None
        if shortname and not once:
            if path != self.base and "labels" not in body:
                # Any labels take the place of all those of the source, and the stamp is one.
                body = {**body, "labels": dict(self.get(ref or "").labels)}
            body, stamp = with_request_label(body)

            def recover(left: float) -> str | None:
                return self._made_by(str(shortname), stamp, left)

        try:
            data = self._transport.request(
                "POST",
                path,
                json=body,
                idempotent=False,
                kind=self.kind,
                ref=ref or shortname,
                shape=(dict, str),
                creating=ref is None if creating is None else creating,
                recover=recover,
            )
        except QarnotRefusedError as error:
            raise with_rejected_values(error, self.spec, body) from None
        uuid = data if isinstance(data, str) else _field(data, "uuid")
        if not uuid and recover is not None:
            uuid = recover(self._transport.deadline)
        if not isinstance(uuid, str) or not uuid:
            raise QarnotProtocolError(
                f"Qarnot created a {self.kind} but did not say its uuid", kind=self.kind, ref=shortname
            )
        return uuid

    def _made_by(self, shortname: str, stamp: str, left: float) -> str | None:
        """The uuid of what the call with this stamp made; None if it made nothing."""
        quick = type(self)(self._transport.limited(deadline=left))
        try:
            first = quick.get(shortname)
        except QarnotNotFoundError:
            return None
        # Where names can be taken twice, the one in hand need not be the only one.
        for one in chain([first], quick._named(shortname)):
            if one.labels.get(REQUEST_LABEL) == stamp:
                log.info("%s %s was created although its answer was lost", self.kind, shortname)
                return one.uuid
        return None

    def get(self, ref: str) -> ModelT:
        """The object, with every field. Qarnot API: ``GET /pools/{u}``, ``GET /tasks/{u}``."""
        return self.model.from_json(self._read("GET", self._path(ref), ref=ref, shape=dict))

    def find(self, shortname: str) -> ModelT | None:
        """The object of that shortname (or uuid), or None."""
        try:
            return self.get(shortname)
        except QarnotNotFoundError:
            return None

    def find_all(self, shortname: str) -> builtins.list[ModelT]:
        """Every object of that shortname: more than one only where the server lets names be taken twice."""
        return builtins.list(self._named(shortname))

    def _named(self, shortname: str) -> Iterator[ModelT]:
        for one in self._search_each(equal("Shortname", shortname)):
            if one.shortname == shortname:
                yield one

    def list(self, tags: Sequence[str] = ()) -> builtins.list[ModelT]:
        """All objects, or those with any of the tags. Qarnot API: ``GET /pools``, ``GET /tasks``."""
        return self._listed(self.base, tags)

    def list_summaries(self, tags: Sequence[str] = ()) -> builtins.list[ModelT]:
        """As ``list`` with fewer fields each. Qarnot API: ``GET /pools/summaries``, ``GET /tasks/summaries``."""
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
        """Objects a filter matches; only some ``fields`` of each (PascalCase), at most ``limit`` of them.

        The server may answer fewer without saying so: see :meth:`search_all`. Uuid is always asked for.
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
        self, filter: Filter | None = None, *, fields: Sequence[str] | None = None
    ) -> builtins.list[ModelT]:
        """Return every object a filter matches, whatever limit of its own the server puts on an answer.

        No length of an answer proves that it is whole, except 0. So a page of one object is asked for the number of
        all matches; if that differs, or is unknown, the pages are read. Objects from pages have every field.
        Qarnot API: ``/search``, ``/summaries/paginate``, ``/paginate``.
        """
        return builtins.list(self._search_each(filter, fields))

    def _search_each(
        self, filter: Filter | None = None, fields: Sequence[str] | None = None
    ) -> Iterator[ModelT]:
        """Yield what :meth:`search_all` returns; the pages are read only if more is wanted than a search answers."""
        try:
            found = self.search(filter, fields=fields, limit=MAX_FOUND)
        except QarnotRefusedError as error:
            if error.status != 400:
                raise
            yield from self._paged(filter)  # a server may refuse a limit beyond its own
            return
        yield from found
        if found and self.page(filter, limit=1, summaries=True).total != len(found):
            known = {one.uuid for one in found}
            yield from (one for one in self._paged(filter) if one.uuid not in known)

    def _paged(self, filter: Filter | None) -> builtins.list[ModelT]:
        """Return every object a filter matches, in pages of our size or else of the server's."""
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
        """One page; its ``next_token`` gives the next. ``order_by``: creationDate, executionTime, name, state.

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
        following = _field(data, "nextToken")
        return Page(
            items=self._models(items),
            next_token=following if following and _field(data, "isTruncated") is not False else None,
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
        """All objects a filter matches, page by page of ``limit``; each once, even if pages shift meanwhile."""
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
                return
            if token in tokens:
                raise QarnotProtocolError(f"Qarnot's pages of {self.kind}s go round in circles")
            tokens.add(token)

    def _models(self, items: Sequence[Any]) -> builtins.list[ModelT]:
        return [self.model.from_json(item) for item in items]

    def _put(self, ref: str, body: dict[str, Any]) -> None:
        self._read("PUT", self._path(ref), ref=ref, json=body)

    def end(self, ref: str) -> None:
        """Close a pool, abort a task: nothing of it runs or costs any longer."""
        raise NotImplementedError

    def sync_resources(self, ref: str) -> None:
        """Bring new files of the resource buckets to the nodes; files deleted there stay.

        Qarnot API: ``PATCH /pools/{u}``, ``PATCH /tasks/{u}``.
        """
        self._read("PATCH", self._path(ref), ref=ref)

    def _end(self, ref: str, verb: str) -> None:
        """Close or abort. After a lost answer the state is looked at first: doing it twice is refused."""

        def ended(left: float) -> bool | None:
            now = type(self)(self._transport.limited(deadline=left)).get(ref)
            with suppress(QarnotUnknownStateError):  # then better once too often than not at all
                return True if is_ending(now.state) else None
            return None

        self._read("POST", self._path(ref, verb), ref=ref, recover=ended)

    def delete(self, ref: str) -> None:
        """Delete; what runs is ended first. Qarnot API: ``DELETE /pools/{u}``, ``DELETE /tasks/{u}``."""
        self._read("DELETE", self._path(ref), ref=ref)

    def stdout(self, ref: str, instance: int | None = None, *, fresh: bool = False) -> str:
        """Standard output of all instances, each line after ``<id>> ``, or of one instance, as it is.

        All that is kept (the buffer is circular), or with ``fresh`` only what is new since the last time
        somebody asked so; a fresh answer that gets lost on the way is not sent again.
        Qarnot API: ``GET`` and ``POST /pools/{u}/stdout``, ``/stdout/{i}``, same for tasks.
        """
        return self._output("stdout", ref, instance, fresh)

    def stderr(self, ref: str, instance: int | None = None, *, fresh: bool = False) -> str:
        """Standard error; as ``stdout``."""
        return self._output("stderr", ref, instance, fresh)

    def stream_output(self, ref: str, stream: str, instance: int | None = None) -> Iterator[str]:
        """Yield all that is kept of ``"stdout"`` or ``"stderr"`` in pieces, which takes little memory.

        The request is sent at once. A connection that breaks off later raises QarnotUnavailableError.
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
        """What it has cost so far, in euros. Qarnot API: ``GET /credits/v1/pools/{u}/credits``."""
        path = f"/credits/v1{self._path(ref, 'credits')}"
        return parse_credits(self._read("GET", path, ref=ref, shape=dict))

    def carbon_facts(self, ref: str, comparison: str | None = None) -> CarbonFacts:
        """Energy and carbon it has used, compared with a kind of data centre.

        Qarnot API: ``GET /carbon/v1/pools/{u}/carbon-facts``.
        """
        path = f"/carbon/v1{self._path(ref, 'carbon-facts')}"
        params = {"comparisonDatacenter": comparison} if comparison else None
        return CarbonFacts.from_json(self._read("GET", path, ref=ref, params=params, shape=dict))


def with_request_label(body: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The body with a label that is this call's alone, and the label's value."""
    stamp = uuids.uuid4().hex
    return {**body, "labels": {**body.get("labels", {}), REQUEST_LABEL: stamp}}, stamp


def parse_credits(data: Mapping[str, Any]) -> float:
    """The ``credits`` of an answer. Not known is not 0, nor NaN: whoever watches a limit must notice."""
    value = _field(data, "credits")
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) <= sys.float_info.max:
        raise QarnotProtocolError(f"Qarnot's answer names no number of credits but {value!r}")
    return float(value)


def _field(data: Mapping[str, Any], name: str) -> Any:
    """A field of an answer, whatever its case."""
    if name in data:
        return data[name]
    return next((value for key, value in data.items() if str(key).lower() == name.lower()), None)


def is_uuid(ref: str) -> bool:
    """Whether *ref* is a uuid rather than a shortname."""
    parts = ref.split("-")
    return [len(part) for part in parts] == [8, 4, 4, 4, 12] and all(
        character in "0123456789abcdefABCDEF" for part in parts for character in part
    )
