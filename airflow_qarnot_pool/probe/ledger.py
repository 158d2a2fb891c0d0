"""Everything that a probe run creates, and its deletion whatever happens."""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from airflow_qarnot_pool.api.errors import QarnotError, QarnotNotFoundError
from airflow_qarnot_pool.api.transport import Transport

#: Tag of every object of every probe run, and the start of the names of its buckets.
TAG = "airflow-qarnot-probe"
#: Pools first, because they cost.
KINDS = ("pools", "tasks", "jobs")


@dataclass(slots=True)
class Ledger:
    """The names, tags and objects of one run."""

    run: str = field(default_factory=lambda: secrets.token_hex(4))
    objects: set[tuple[str, str]] = field(default_factory=set)
    _names: int = 0

    @property
    def tag(self) -> str:
        """The tag of this run."""
        return f"{TAG}-{self.run}"

    @property
    def tags(self) -> list[str]:
        """The tags of every object of this run."""
        return [TAG, self.tag]

    def new_name(self) -> str:
        """Return a shortname that no other object has."""
        self._names += 1
        return f"probe-{self.run}-{self._names}"

    def record(self, kind: str, uuid: str) -> None:
        """Note an object that was created."""
        self.objects.add((kind, uuid))


def clean_up(
    transport: Transport,
    tag: str,
    known: Iterable[tuple[str, str]] = (),
    *,
    looks: int = 1,
    seconds: float = 300.0,
    pause: float = 2.0,
    sleep: Callable[[float], None] = time.sleep,
) -> list[str]:
    """Delete every object with a tag, and the known ones. Repeat until none is left, at most for so many seconds.

    A creation whose response was lost is found by its tag.

    :param looks: minimum number of times to look, because a list may be late to show such an object.
    :return: a sentence for each object that may be left.
    """
    ends, pending = time.monotonic() + seconds, set(known)
    for look in itertools.count(1):
        left: list[str] = []
        for kind in KINDS:
            left += _delete_all(transport, kind, tag, pending)
        if (not left and look >= looks) or time.monotonic() > ends:
            break
        sleep(pause)
    return left


def _delete_all(transport: Transport, kind: str, tag: str, pending: set[tuple[str, str]]) -> list[str]:
    """Request the deletion of all objects of one kind. Return sentences about those that still exist."""
    try:
        found = transport.request("GET", f"/{kind}", params=[("tag", tag)], idempotent=True, shape=list)
    except QarnotError as error:
        return [f"The {kind} with the tag {tag} could not be listed: {error.message}"]
    listed = {
        str(item["uuid"]): item.get("state") for item in found if isinstance(item, dict) and "uuid" in item
    }
    states = dict.fromkeys((uuid for of_kind, uuid in pending if of_kind == kind), "known") | listed
    return [
        sentence for uuid in states if (sentence := _delete(transport, kind, uuid, states[uuid], pending))
    ]


def _delete(
    transport: Transport, kind: str, uuid: str, state: object, pending: set[tuple[str, str]]
) -> str | None:
    where = f"{kind.removesuffix('s')} {uuid}"
    try:
        if state != "PendingDelete":
            transport.request("DELETE", f"/{kind}/{uuid}", idempotent=True)
    except QarnotNotFoundError:
        pending.discard((kind, uuid))
        return None if state == "known" else f"The {where} is listed, but not found"
    except QarnotError as error:
        return f"The {where} could not be deleted: {error.message}"
    return f"The {where} is being deleted"
