"""What the instances of a Qarnot task write, seen through buffers that keep only the end of it: which lines are new.

Qarnot does not tell how much was written in all. So the place up to which an output has been written to a log is
remembered as a number of lines, which is where it is for as long as nothing has left the buffer, and as the hashes
of the last of them, by which it is found again afterwards. An output is read in pieces and may have any size: of each
instance no more is held than some hashes and the lines that can still be written. Nothing here does I/O.
"""

from __future__ import annotations

import base64
import re
import struct
import zlib
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from airflow_qarnot_pool.api.errors import end_of
from airflow_qarnot_pool.api.limits import reading

STREAMS = ("stdout", "stderr")
#: Lines of which the hashes are kept, to find the place again.
TAIL_SIZE = 16
#: Most characters of one stream that are written at a time; the end matters most.
MAX_CHARACTERS = 1_000_000
#: Minimum characters that are shown of a line that does not fit.
MIN_SHOWN = 1_000
#: Maximum places that are read back from a note.
_MAX_PLACES = 20_000
#: Characters at the end of a line that its hash is made of: the beginning of the first one may have left the buffer.
_HASHED = 1_024
#: The same for a line that is known in part, which is searched for its known end.
_HASHED_PART = 64
#: Minimum characters to search for. Fewer are found by chance.
_MIN_MATCH = 16
#: What stands in a text for bytes that are no character.
_REPLACEMENT = "\ufffd"
_PREFIX = re.compile(r"(\d{1,9})> ?")


class CursorPosition(NamedTuple):
    """How far the output of one instance has been written.

    ``lines``: complete lines before it in the buffer, as it was then. ``tail``: hashes of the last of them.
    ``part``: characters written of the line after them, and ``begun`` the hash of the last of those.
    """

    lines: int = 0
    tail: tuple[int, ...] = ()
    part: int = 0
    begun: int = 0

    def to_json(self) -> list[Any]:
        packed = struct.pack(f">{len(self.tail)}I", *self.tail)
        return [self.lines, base64.b64encode(packed).decode(), self.part, self.begun]

    @classmethod
    def from_json(cls, value: Sequence[Any]) -> CursorPosition:
        """Read back what :meth:`to_json` wrote."""
        lines, tail, part, begun = value
        packed = base64.b64decode(tail, validate=True)[: 4 * TAIL_SIZE]
        return cls(int(lines), struct.unpack(f">{len(packed) // 4}I", packed), int(part), int(begun))


class OmittedLines(NamedTuple):
    """How much of an output is left out of the log: characters, and whole lines."""

    characters: int = 0
    lines: int = 0

    def plus(self, characters: int, lines: int) -> OmittedLines:
        """Return the sum."""
        return OmittedLines(self.characters + characters, self.lines + lines)


class NewLines(NamedTuple):
    """What is new of one instance, and the place after it.

    ``last``: size and hash of the last line, if it may be incomplete. ``lost``: the output before the new lines is
    gone. ``doubtful``: the output repeats itself, so they may begin earlier.
    """

    place: CursorPosition
    lines: Sequence[str] = ()
    last: tuple[int, int] = (0, 0)
    lost: bool = False
    doubtful: bool = False
    omitted: OmittedLines = OmittedLines()
    #: Which of the lines lack their beginning.
    beheaded: frozenset[int] = frozenset()


@dataclass(slots=True)
class _Line:
    """The last line read, which may be incomplete.

    ``new``: the end of it that is new. ``known``: characters before that. ``omitted``: characters of the new part
    that are not held. ``length``: characters as read; ``size``: with those that were cut off before.
    """

    new: str
    known: int
    omitted: int
    length: int
    size: int
    hash: int
    part_hash: int
    broken: bool


class LineMatcher:
    """Find what is new of one instance, line by line.

    If the place fits several times the last one counts, so that nothing is written twice.

    :param place: up to where the output is written.
    :param width: characters that stand before each line in the log.
    :param hidden: lines that begin so are not for the log, nor is an empty line before them.
    """

    def __init__(self, place: CursorPosition, width: int = 0, hidden: str = "") -> None:
        self._place, self._width, self._hidden = place, width, hidden
        #: Characters of the output that is kept.
        self.size = 0
        #: Characters in memory, with those that stand before each line in the log.
        self.held = 0
        self._count = 0  # lines before the last one
        self._hashes: deque[int] = deque(maxlen=TAIL_SIZE)
        self._last: _Line | None = None
        self._new: deque[str] = deque()
        self._omitted = OmittedLines()
        self._beheaded: set[int] = set()  # numbers of new lines, those that are let go of included
        nothing_written = not (place.tail or place.part)
        self._start: int | None = 0 if nothing_written else None
        self._settled = nothing_written
        self._fitted = 0
        self._doubtful = False

    def feed(self, lines: Sequence[str], cut: int = 0) -> None:
        """Read the next *lines*.

        :param cut: characters that are missing at the beginning of the first one, which was too long to hold.
        """
        done = 0
        hashes = [] if self._settled else [_hash(line) for line in lines]
        while done < len(lines):
            end = done if cut else self._next_likely(hashes, done, len(lines))
            if end > done:
                self._pass(lines, done, end)
            if end < len(lines):
                self._complete()
                self._put(lines[end], cut, self._known(lines[end], cut))
            done, cut = end + 1, 0

    def _pass(self, lines: Sequence[str], start: int, end: int) -> None:
        """Read lines at which nothing begins."""
        self._complete()
        end -= 1
        between = lines[start:end]
        self.size += sum(map(len, between)) + len(between)
        if self._hidden or any("\r" in line for line in between):
            for line in between:
                self._append(line)
        else:
            self._new.extend(between)
            self.held += sum(map(len, between)) + len(between) * self._width
        self._hashes.extend(map(_hash, between[-TAIL_SIZE:]))
        self._count += len(between)
        self._put(lines[end], 0, 0)

    def drop_oldest(self, excess: int) -> None:
        """Let go of *excess* characters of what is held, those that come first, as far as there are so many."""
        new, width, size, lines = self._new, self._width, 0, 0
        while new and size < excess and len(new[0]) - (excess - size) < MIN_SHOWN:
            size += len(new.popleft()) + width
            lines += 1
        self._omitted = self._omitted.plus(size, lines)
        if self._beheaded:
            self._beheaded = {number for number in self._beheaded if number >= self._omitted.lines}
        if new and size < excess:
            line = new[0]
            new[0] = end_of(line, len(line) - (excess - size))
            self._beheaded.add(self._omitted.lines)
            self._omitted = self._omitted.plus(len(line) - len(new[0]), 0)
            size += len(line) - len(new[0])
        self.held -= size
        excess -= size
        if excess > 0 and self._last:
            kept = end_of(self._last.new, len(self._last.new) - excess)
            size = len(self._last.new) - len(kept)
            self._last.new = kept
            self._last.omitted += size
            self.held -= size

    def new_lines(self, last: tuple[int, int] = (0, 0), *, finished: bool = False) -> NewLines:
        """Return what is new, after the last line.

        :param last: ``NewLines.last`` of the look before: a last line that has not grown since is written as it is.
        :param finished: nothing follows any more, so the last line is complete.
        """
        if self._last is None or not (self._count or self._last.size):
            return NewLines(self._place)
        if finished and self._last.size:
            self.feed([""])
        end = self._last
        lost = self._start is None
        since = self._count - (self._start or 0)
        fresh = list(self._hashes)[-since:] if since else []
        tail = (*(() if lost else self._place.tail), *fresh)[-TAIL_SIZE:]
        part, begun = end.known, self._place.begun if end.known else 0
        now = (end.size, end.hash)
        # A line that ends within a character is incomplete, however long it stays so.
        if not finished and end.size and now == last and end.length > part and not end.broken:
            part, begun = end.length, end.part_hash
            self._take_last(end)
        place = CursorPosition(self._count, tail, part, begun)
        beheaded = frozenset(number - self._omitted.lines for number in self._beheaded)
        return NewLines(
            place, self._new, now if end.size else (0, 0), lost, self._doubtful, self._omitted, beheaded
        )

    def _put(self, line: str, cut: int, known: int) -> None:
        new = line[known:] if known else line
        self._last = _Line(
            new=new,
            known=known,
            omitted=0 if known else cut,
            length=len(line),
            size=len(line) + cut,
            hash=_hash(line),
            part_hash=_crc(line[-_HASHED_PART:]),
            broken=line.endswith(_REPLACEMENT),
        )
        self.size += len(line) + cut + 1
        self.held += len(new)

    def _complete(self) -> None:
        """The last line is complete, as another one follows."""
        if self._last is None:
            return
        line, self._last = self._last, None
        self._count += 1
        self._hashes.append(line.hash)
        if line.known and line.known == line.length:
            self.held -= len(line.new)
        else:
            self._take_last(line)

    def _take_last(self, line: _Line) -> None:
        self.held -= len(line.new)
        if self._append(line.new) and line.omitted:
            self._omitted = self._omitted.plus(line.omitted, 0)
            self._beheaded.add(self._omitted.lines + len(self._new) - 1)

    def _append(self, line: str) -> bool:
        """Note a new line; returns whether it is for the log."""
        if self._hidden and line.startswith(self._hidden):
            if self._new and not self._new[-1]:
                self._new.pop()
                self.held -= self._width
            return False
        if "\r" in line:  # as a terminal would leave it: progress bars write over themselves
            line = line.rstrip("\r").rpartition("\r")[2]
        self._new.append(line)
        self.held += len(line) + self._width
        return True

    # --- where the new lines begin

    def _next_likely(self, hashes: Sequence[int], start: int, end: int) -> int:
        """The number of the next line before which the place may be, of those whose *hashes* these are; or *end*."""
        if self._settled:
            return end
        place, index = self._place, self._count + (self._last is not None)
        # Of the line that is known in part, or of the one before it, only the end may be kept.
        if index == place.lines or (place.part and index <= 1):
            return start
        if place.lines > index:
            end = min(end, start + place.lines - index)
        if place.part and index <= 1 < index + end - start:
            end = start + 1 - index
        if place.tail and self._last is not None and self._last.hash == place.tail[-1]:
            return start
        try:
            return hashes.index(place.tail[-1], start, end) + 1 if place.tail else end
        except ValueError:
            return end

    def _known(self, line: str, cut: int) -> int:
        """How many characters at the beginning of the next *line* are known; what is new may begin here."""
        if self._settled:
            return 0
        place, index = self._place, self._count
        exact = index == place.lines
        known: int | None = 0
        repeats = False
        if place.part:
            known, repeats = _end_of_part(line, place, beheaded=index == 0 or cut > 0)
        if known is None or not self._fits(index):
            return 0
        self.held -= sum(map(len, self._new)) + len(self._new) * self._width
        self._new.clear()
        self._omitted = OmittedLines()
        self._beheaded.clear()
        self._start = index
        if exact and known == place.part:
            self._settled, self._doubtful = True, False
        else:
            self._fitted += index >= len(place.tail)
            self._doubtful = self._fitted > 1 or repeats
        return known

    def _fits(self, index: int) -> bool:
        """Whether the lines before that of *index* are the last that were written, as far as they are kept."""
        tail = self._place.tail
        count = min(len(tail), index)
        known = tuple(self._hashes)[len(self._hashes) - count :]
        if known and known == tail[-count:]:
            return True
        # The buffer may begin in the middle of a line, which then does not look the same.
        rest = known[1:] if index <= len(tail) else known
        return bool(rest or self._place.part) and rest == (tail[-len(rest) :] if rest else ())


def _end_of_part(line: str, place: CursorPosition, *, beheaded: bool) -> tuple[int | None, bool]:
    """Where in *line* its known part ends, and whether the end of that comes more than once; None: nowhere.

    :param beheaded: the beginning of the line may be missing.
    """
    size = min(place.part, _HASHED_PART)
    if len(line) >= place.part and _crc(line[place.part - size : place.part]) == place.begun:
        return place.part, False
    if beheaded and size >= _MIN_MATCH:
        for end in range(len(line), size - 1, -1):
            piece = line[end - size : end]
            if _crc(piece) == place.begun:
                return end, line.find(piece) < end - size
    return None, False


def split_by_instance(text: str) -> dict[int | None, list[str]]:
    """Sort the lines of all instances by their ids, whatever their order; those without an id by None."""
    match = _PREFIX.match(text)
    if match and text.count(f"\n{match[0]}") == text.count(
        "\n"
    ):  # they mostly come one instance after the other
        return {int(match[1]): text[match.end() :].split(f"\n{match[0]}")}
    found: dict[int | None, list[str]] = {}
    for line in text.split("\n"):
        match = _PREFIX.match(line)
        found.setdefault(int(match[1]) if match else None, []).append(line[match.end() :] if match else line)
    return found


@dataclass(frozen=True, kw_only=True)
class LogCursor:
    """How far the output of a Qarnot task has been written to a log.

    :param uuid: of the Qarnot task.
    :param instance: the only instance that is read, by itself; None: all of them, from their common output.
    :param hidden: lines that begin so are not for the log, nor is an empty line before them.
    """

    uuid: str
    instance: int | None = None
    hidden: str = ""
    places: Mapping[tuple[str, int | None], CursorPosition] = field(default_factory=dict)
    _last: Mapping[tuple[str, int | None], tuple[int, int]] = field(
        default_factory=dict, compare=False, repr=False
    )

    def read(
        self, stream: str, text: str | Iterable[str], *, finished: bool = False
    ) -> tuple[LogCursor, list[str]]:
        """Return the cursor after *text*, and the lines of it that are new, ready for the log.

        :param text: all that is kept of a stream, as a whole or in pieces.
        :param finished: the Qarnot task has ended: its last line is complete.
        """
        matchers: dict[int | None, LineMatcher] = {}
        held = 0
        for instance, lines, cut in self._lines([text] if isinstance(text, str) else text):
            matcher = matchers.get(instance)
            if matcher is None:
                place = self.places.get((stream, instance), CursorPosition())
                matcher = LineMatcher(place, len(self._label(stream, instance)) + 1, self.hidden)
                matchers[instance] = matcher
            held -= matcher.held
            matcher.feed(lines, cut)
            held += matcher.held
            if held > 2 * MAX_CHARACTERS:
                held = _drop_oldest(matchers, held)
        if len(matchers) > 1:
            matchers.pop(None, None)  # the rest of a line whose beginning is not kept
        places, last = dict(self.places), dict(self._last)
        said: list[str] = []
        omitted, beheaded = OmittedLines(), set[int]()
        for instance in sorted(matchers, key=_order):
            key = stream, instance
            found = matchers[instance].new_lines(last.get(key, (0, 0)), finished=finished)
            places[key], last[key] = found.place, found.last
            omitted = omitted.plus(*found.omitted)
            label = self._label(*key)
            if (found.lost or (found.doubtful and found.lines)) and not found.omitted.lines:
                said.append(f"{label} {_gap(found, matchers[instance].size)}")
            beheaded |= {len(said) + number for number in found.beheaded}
            said += [f"{label} {line}" for line in found.lines]
        return replace(self, places=places, _last=last), _truncated(said, omitted, beheaded, f"[{stream}]")

    def _lines(self, pieces: Iterable[str]) -> Iterator[tuple[int | None, list[str], int]]:
        """Yield the lines by instance, as they come. Of one that is too long to hold, the last has how much is cut."""
        cut, size = 0, 0
        begun: list[str] = []
        for piece in pieces:
            lines, newline, rest = piece.rpartition("\n")
            if newline:
                begun.append(lines)
                yield from self._sorted("".join(begun), cut)
                begun, size, cut = [], 0, 0
            begun.append(rest)
            size += len(rest)
            if size > 2 * MAX_CHARACTERS:
                text, more = self._shortened("".join(begun))
                begun, size, cut = [text], len(text), cut + more
        if self.instance is not None or size:
            yield from self._sorted("".join(begun), cut)

    def _sorted(self, lines: str, cut: int) -> Iterator[tuple[int | None, list[str], int]]:
        if self.instance is not None:
            yield self.instance, lines.split("\n"), cut
            return
        for instance, mine in split_by_instance(lines).items():
            yield instance, mine, cut
            cut = 0  # it was of the first line

    def _shortened(self, line: str) -> tuple[str, int]:
        """The end of a *line* that is too long to hold, after what tells its instance, and how much is cut off."""
        match = _PREFIX.match(line) if self.instance is None else None
        start = match.end() if match else 0
        if self.hidden and line.startswith(self.hidden, start):
            return line[: start + len(self.hidden)], 0
        cut = max(0, len(line) - start - MAX_CHARACTERS)
        return line[:start] + line[start + cut :], cut

    def _label(self, stream: str, instance: int | None) -> str:
        return f"[{stream}]" if instance is None or instance == self.instance else f"[{stream} {instance}]"

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; nothing of the output itself is in it."""
        places = [[stream, instance, *place.to_json()] for (stream, instance), place in self.places.items()]
        return {"uuid": self.uuid, "instance": self.instance, "hidden": self.hidden, "places": places}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> LogCursor:
        """Read back what :meth:`to_json` wrote.

        :raises QarnotProtocolError: it is something else.
        """
        with reading("The place in the output of a Qarnot task"):
            stored = list(value.get("places") or ())[:_MAX_PLACES]
            places = {(str(one[0]), one[1]): CursorPosition.from_json(one[2:6]) for one in stored}
            instance = value.get("instance")
            hidden = str(value.get("hidden") or "")
            return cls(uuid=str(value["uuid"]), instance=instance, hidden=hidden, places=places)


def _order(instance: int | None) -> int:
    return -1 if instance is None else instance


def _hash(line: str) -> int:
    return _crc(line[-_HASHED:])


def _crc(text: str) -> int:
    return zlib.crc32(text.encode(errors="replace"))


def _drop_oldest(matchers: Mapping[int | None, LineMatcher], held: int) -> int:
    """Let go of what cannot be written any more, which is that of the first instances; returns what is still held."""
    for instance in sorted(matchers, key=_order):
        matcher = matchers[instance]
        before = matcher.held
        matcher.drop_oldest(held - MAX_CHARACTERS)
        held -= before - matcher.held
        if held <= MAX_CHARACTERS:
            break
    return held


def _gap(found: NewLines, size: int) -> str:
    if found.lost:
        return (
            "... output is missing here: since the last look more was written than Qarnot keeps "
            f"(the last {size:,} characters)"
        )
    return (
        f"... output may be missing here: of more than Qarnot keeps (the last {size:,} characters) it "
        "repeats itself"
    )


def _truncated(said: list[str], omitted: OmittedLines, beheaded: Collection[int], label: str) -> list[str]:
    """The end of what there is to say, as far as it is worth keeping, with a line that tells the rest."""
    left, first = MAX_CHARACTERS, len(said)
    while first and len(said[first - 1]) <= left:
        first -= 1
        left -= len(said[first])
    shown = said[first:]
    if first:
        line = said[first - 1]
        omitted = omitted.plus(sum(map(len, said[:first])), first)
        if left >= MIN_SHOWN:
            before, space, text = line.partition("] ")
            end = before + space + end_of(text, left - len(before) - len(space))
            shown.insert(0, end)
            omitted = omitted.plus(-len(end), 0)
    if not omitted.characters:
        return shown
    lines = omitted.lines + sum(number >= first for number in beheaded)
    counted = f"{omitted.characters:,} characters in {lines:,} line{'s' if lines > 1 else ''}"
    return [f"{label} ... {counted} left out here", *shown]
