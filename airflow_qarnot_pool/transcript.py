"""What the instances of a Qarnot task write, seen through buffers that keep only the end of it: which lines are new.

Qarnot does not tell how much was written in all. So the place up to which an output has been written to a log is
remembered as a number of lines, which is where it is for as long as nothing has left the buffer, and as the hashes
of the last of them, by which it is found again afterwards. Nothing here does I/O.
"""

from __future__ import annotations

import base64
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

STREAMS = ("stdout", "stderr")
#: Lines of which the hashes are kept, to find the place again.
TAIL = 16
#: Most characters of one stream that are written at a time; the end matters most.
MOST_CHARACTERS = 1_000_000
_PREFIX = re.compile(r"(\d+)> ?")


class Place(NamedTuple):
    """How far the output of one instance has been written.

    ``lines``: complete lines before it in the buffer, as it was then. ``tail``: hashes of the last of them.
    ``part``: characters written of the line after them, and ``begun`` their hash.
    """

    lines: int = 0
    tail: tuple[int, ...] = ()
    part: int = 0
    begun: int = 0

    def to_json(self) -> list[Any]:
        packed = struct.pack(f">{len(self.tail)}I", *self.tail)
        return [self.lines, base64.b64encode(packed).decode(), self.part, self.begun]

    @classmethod
    def from_json(cls, value: Sequence[Any]) -> Place:
        lines, tail, part, begun = value
        packed = base64.b64decode(tail)
        return cls(int(lines), struct.unpack(f">{len(packed) // 4}I", packed), int(part), int(begun))


class Found(NamedTuple):
    """Where in the kept lines the new ones begin. ``lost``: what came before them is gone. ``doubtful``: the
    output repeats itself, so they may begin earlier.
    """

    start: int
    lost: bool = False
    doubtful: bool = False


class News(NamedTuple):
    """What is new of one instance, and the place after it."""

    place: Place
    lines: list[str]
    lost: bool = False
    doubtful: bool = False


def find(place: Place, kept: Sequence[str], hashes: Sequence[int]) -> Found:
    """Find *place* among the lines that are kept; *hashes* are those of the complete ones.

    Where it can be in several places the last one is taken: nothing is written twice.
    """
    nothing_written = not (place.tail or place.part)
    if nothing_written or _fits(place, kept, hashes, place.lines):
        return Found(0 if nothing_written else place.lines)
    last = place.tail[-1:]
    ends = [end for end in range(len(hashes), 0, -1) if (hashes[end - 1],) == last]
    if place.part:
        ends += [1, 0]  # of the line that is known in part, or of the one before it, only the end may be kept
    fitting = [end for end in ends if _fits(place, kept, hashes, end)]
    if not fitting:
        return Found(0, lost=True)
    whole = [end for end in fitting if end >= len(place.tail)]
    return Found((whole or fitting)[0], doubtful=len(whole) > 1)


def _fits(place: Place, kept: Sequence[str], hashes: Sequence[int], end: int) -> bool:
    """Whether the lines before ``kept[end]`` are the last that were written, as far as they are kept."""
    if end > len(hashes):
        return False
    if place.part and (end >= len(kept) or _hash(kept[end][: place.part]) != place.begun):
        return False
    known = tuple(hashes[max(0, end - len(place.tail)) : end])
    if known and known == place.tail[-len(known) :]:
        return True
    # The buffer may begin in the middle of a line, which then does not look the same.
    rest = known[1:] if end <= len(place.tail) else known
    return bool(rest or place.part) and rest == (place.tail[-len(rest) :] if rest else ())


def news(place: Place, kept: Sequence[str], *, held: str = "", over: bool = False) -> News:
    """What *kept* has beyond *place*.

    :param kept: the lines that are kept; the last one may not be complete.
    :param held: the last line as it was a look ago: one that has not grown since is written as it is.
    :param over: nothing follows any more.
    """
    complete, rest = list(kept[:-1]), kept[-1] if kept else ""
    if not complete and not rest:
        return News(place, [])
    if over and rest:
        complete, rest = [*complete, rest], ""
    hashes = [_hash(line) for line in complete]
    start, lost, doubtful = find(place, [*complete, rest], hashes)
    new = complete[start:]
    part, begun = (0, 0) if lost or new else (place.part, place.begun)
    if new and place.part and not lost:
        new = [new[0][place.part :], *new[1:]] if len(new[0]) > place.part else new[1:]
    if not over and rest and rest == held and len(rest) > part:
        new.append(rest[part:])
        part, begun = len(rest), _hash(rest)
    tail = (*(() if lost else place.tail), *hashes[start:])[-TAIL:]
    return News(Place(len(complete), tail, part, begun), new, lost, doubtful)


def by_instance(text: str) -> dict[int | None, list[str]]:
    """The lines of an output of all instances by their ids, whatever their order; None where none has an id."""
    found: dict[int | None, list[str]] = {}
    for line in text.removesuffix("\n").split("\n") if text else ():
        match = _PREFIX.match(line)
        found.setdefault(int(match[1]) if match else None, []).append(line[match.end() :] if match else line)
    if len(found) > 1:
        found.pop(None, None)  # the rest of a line whose beginning is not kept
    return found


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """How far the output of a Qarnot task has been written to a log.

    :param uuid: of the Qarnot task.
    :param instance: the only instance that is read, by itself; None: all of them, from their common output.
    :param hidden: lines that begin so are not for the log, nor is an empty line before them.
    """

    uuid: str
    instance: int | None = None
    hidden: str = ""
    places: Mapping[tuple[str, int | None], Place] = field(default_factory=dict)
    _held: Mapping[tuple[str, int | None], str] = field(default_factory=dict, compare=False, repr=False)

    def read(self, stream: str, text: str, *, over: bool = False) -> tuple[Transcript, list[str]]:
        """The transcript after *text*, and the lines of it that are new, ready for the log.

        :param text: all that is kept of a stream.
        :param over: the Qarnot task has ended: its last line is complete.
        """
        kept: dict[int | None, list[str]] = (
            by_instance(text) if self.instance is None else {self.instance: text.split("\n")}
        )
        places, held = dict(self.places), dict(self._held)
        said: list[str] = []
        for instance in sorted(kept, key=_order):
            key = stream, instance
            found = news(places.get(key, Place()), kept[instance], held=held.get(key, ""), over=over)
            places[key], held[key] = found.place, kept[instance][-1]
            label = self._label(*key)
            if found.lost or (found.doubtful and found.lines):
                size = sum(len(line) + 1 for line in kept[instance])
                said.append(f"{label} {_gap(found, size)}")
            said += [f"{label} {_shown(line)}" for line in self._seen(found.lines)]
        return replace(self, places=places, _held=held), _end_of(said, f"[{stream}]")

    def _label(self, stream: str, instance: int | None) -> str:
        return f"[{stream}]" if instance is None or instance == self.instance else f"[{stream} {instance}]"

    def _seen(self, lines: list[str]) -> list[str]:
        if not self.hidden:
            return lines
        hides = [*(line.startswith(self.hidden) for line in lines), False]
        return [line for n, line in enumerate(lines) if not hides[n] and (line or not hides[n + 1])]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; nothing of the output itself is in it."""
        places = [[stream, instance, *place.to_json()] for (stream, instance), place in self.places.items()]
        return {"uuid": self.uuid, "instance": self.instance, "hidden": self.hidden, "places": places}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Transcript:
        """Read back what :meth:`to_json` of this or an earlier release wrote."""
        places = {(one[0], one[1]): Place.from_json(one[2:6]) for one in value.get("places") or ()}
        instance = value.get("instance")
        return cls(uuid=value["uuid"], instance=instance, hidden=value.get("hidden") or "", places=places)


def _order(instance: int | None) -> int:
    return -1 if instance is None else instance


def _hash(line: str) -> int:
    return zlib.crc32(line.encode(errors="replace"))


def _shown(line: str) -> str:
    """A line as a terminal would leave it: progress bars write over themselves."""
    return line.rstrip("\r").rpartition("\r")[2]


def _gap(found: News, size: int) -> str:
    if found.lost:
        return (
            "... output is missing here: since the last look more was written than Qarnot keeps "
            f"(the last {size:,} characters)"
        )
    return (
        f"... output may be missing here: of more than Qarnot keeps (the last {size:,} characters) it "
        "repeats itself"
    )


def _end_of(said: list[str], label: str) -> list[str]:
    """The end of what there is to say, as far as it is worth keeping, with a line that tells the rest."""
    left = MOST_CHARACTERS
    for index in range(len(said) - 1, -1, -1):
        left -= len(said[index])
        if left < 0:
            omitted = said[: index + 1]
            note = (
                f"{label} ... {sum(map(len, omitted)):,} characters in {len(omitted):,} lines left out here"
            )
            return [note, *said[index + 1 :]]
    return said
