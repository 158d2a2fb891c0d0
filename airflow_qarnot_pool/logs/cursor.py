"""Find the new lines in the output of a Qarnot task, of which Qarnot keeps only the end.

Qarnot does not report how much was written in all. So a cursor stores in two ways how much of an output is in the log.
The number of lines finds the place again while nothing has left Qarnot's buffer, and the hashes of the last lines find
it afterwards. An output is read in pieces and may have any size. Only some hashes and the lines that can still be
written are held of each instance. Nothing here does I/O.
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
from airflow_qarnot_pool.api.limits import parsing_stored_state

STREAMS = ("stdout", "stderr")
#: Number of lines whose hashes are kept, to find the place again.
TAIL_SIZE = 16
#: Maximum characters of one stream that are written at a time. The end matters most.
MAX_CHARACTERS = 1_000_000
#: Minimum characters that are shown of a line that does not fit.
MIN_SHOWN = 1_000
#: Maximum number of places that are read from a checkpoint.
_MAX_PLACES = 20_000
#: Number of characters at the end of a line that are hashed, because the start of a line may have left the buffer.
_HASHED = 1_024
#: The same for a line of which a part is written. Its text is searched for the end of that part.
_HASHED_PART = 64
#: Minimum characters to search for, because fewer are found by chance.
_MIN_MATCH = 16
#: The character that replaces bytes that are no character.
_REPLACEMENT = "\ufffd"
_PREFIX = re.compile(r"(\d{1,9})> ?")


class CursorPosition(NamedTuple):
    """The place in the output of one instance up to which it has been written.

    ``lines`` is the number of complete lines before it in the buffer of that time, and ``tail`` has the hashes of the
    last of them. ``part`` is the number of characters written of the next line. ``part_hash`` is the hash of the
    last of those characters.
    """

    lines: int = 0
    tail: tuple[int, ...] = ()
    part: int = 0
    part_hash: int = 0

    def to_json(self) -> list[Any]:
        """Return a JSON value."""
        packed = struct.pack(f">{len(self.tail)}I", *self.tail)
        return [self.lines, base64.b64encode(packed).decode(), self.part, self.part_hash]

    @classmethod
    def from_json(cls, value: Sequence[Any]) -> CursorPosition:
        """Return the place of which :meth:`to_json` returned *value*."""
        lines, tail, part, part_hash = value
        packed = base64.b64decode(tail, validate=True)[: 4 * TAIL_SIZE]
        return cls(int(lines), struct.unpack(f">{len(packed) // 4}I", packed), int(part), int(part_hash))


class OmittedLines(NamedTuple):
    """Number of characters, and of whole lines, that the log omits."""

    characters: int = 0
    lines: int = 0

    def plus(self, characters: int, lines: int) -> OmittedLines:
        """Return the sum."""
        return OmittedLines(self.characters + characters, self.lines + lines)


class NewLines(NamedTuple):
    """The new lines of one instance, and the place after them.

    ``last`` has the size and hash of the last line if it may be incomplete. ``lost`` is set if the output before the
    new lines is gone. ``doubtful`` is set if the output repeats itself, because the new lines may start earlier then.
    """

    place: CursorPosition
    lines: Sequence[str] = ()
    last: tuple[int, int] = (0, 0)
    lost: bool = False
    doubtful: bool = False
    omitted: OmittedLines = OmittedLines()
    #: Indices of the lines that lack their start.
    beheaded: frozenset[int] = frozenset()


@dataclass(slots=True)
class _Line:
    """The last line read, which may be incomplete.

    ``new`` is its new end, ``written`` the number of characters before that, and ``omitted`` the number of new
    characters that are not held. ``length`` is the number of characters read. ``size`` includes those that were cut off
    before.
    """

    new: str
    written: int
    omitted: int
    length: int
    size: int
    hash: int
    part_hash: int
    broken: bool

    @property
    def can_be_written(self) -> bool:
        """Return whether it has new text. A line that ends within a character is incomplete, even if it never grows."""
        return self.length > self.written and not self.broken


class LineMatcher:
    """Find the new lines of one instance.

    If the place fits several times the last one counts, because no line may be written twice.

    :param place: the place up to which the output is written.
    :param width: number of characters before each line in the log.
    :param hidden: prefix of lines that are not logged. An empty line before such a line is not logged either.
    """

    def __init__(self, place: CursorPosition, width: int = 0, hidden: str = "") -> None:
        self._place, self._width, self._hidden = place, width, hidden
        #: Number of characters of the output that Qarnot keeps.
        self.size = 0
        #: Number of characters in memory, including those before each line in the log.
        self.held = 0
        self._count = 0  # lines before the last one
        self._hashes: deque[int] = deque(maxlen=TAIL_SIZE)
        self._last: _Line | None = None
        self._new: deque[str] = deque()
        self._omitted = OmittedLines()
        self._beheaded: set[int] = set()  # numbers of new lines, counting the dropped ones
        nothing_written = not (place.tail or place.part)
        self._start: int | None = 0 if nothing_written else None
        self._settled = nothing_written
        self._fitted = 0
        self._doubtful = False

    def feed(self, lines: Sequence[str], cut: int = 0) -> None:
        """Read the next *lines*.

        :param cut: number of characters that are missing at the start of the first line, which was too long to hold.
        """
        done = 0
        hashes = [] if self._settled else [_hash(line) for line in lines]
        while done < len(lines):
            end = done if cut else self._next_likely(hashes, done, len(lines))
            if end > done:
                self._pass(lines, done, end)
            if end < len(lines):
                self._complete()
                self._put(lines[end], cut, self._written_in(lines[end], cut))
            done, cut = end + 1, 0

    def _pass(self, lines: Sequence[str], start: int, end: int) -> None:
        """Read lines before which the new lines cannot start."""
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
        """Drop the first *excess* characters that are held."""
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
        """Return the new lines, after the last line was read.

        :param last: ``NewLines.last`` of the previous read. A last line that has not grown since is complete enough.
        :param finished: whether nothing follows any more, which completes the last line.
        """
        if self._last is None or not (self._count or self._last.size):
            return NewLines(self._place)
        if finished and self._last.size:
            self.feed([""])
        line = self._last
        size_and_hash = (line.size, line.hash) if line.size else (0, 0)
        written = not finished and line.size > 0 and size_and_hash == last and line.can_be_written
        place = self._place_after(line, written=written)
        if written:
            self._take_last(line)
        beheaded = frozenset(number - self._omitted.lines for number in self._beheaded)
        lost = self._start is None
        return NewLines(place, self._new, size_and_hash, lost, self._doubtful, self._omitted, beheaded)

    def _place_after(self, line: _Line, *, written: bool) -> CursorPosition:
        """Return the place before or, if it is *written*, after the last *line*."""
        part_hash = self._place.part_hash if line.written else 0
        part, part_hash = (line.length, line.part_hash) if written else (line.written, part_hash)
        return CursorPosition(self._count, self._tail(), part, part_hash)

    def _tail(self) -> tuple[int, ...]:
        """Return the hashes of the last complete lines."""
        since = self._count - (self._start or 0)
        new = list(self._hashes)[-since:] if since else []
        return (*(() if self._start is None else self._place.tail), *new)[-TAIL_SIZE:]

    def _put(self, line: str, cut: int, written: int) -> None:
        new = line[written:] if written else line
        self._last = _Line(
            new=new,
            written=written,
            omitted=0 if written else cut,
            length=len(line),
            size=len(line) + cut,
            hash=_hash(line),
            part_hash=_crc(line[-_HASHED_PART:]),
            broken=line.endswith(_REPLACEMENT),
        )
        self.size += len(line) + cut + 1
        self.held += len(new)

    def _complete(self) -> None:
        """Complete the last line, because another one follows."""
        if self._last is None:
            return
        line, self._last = self._last, None
        self._count += 1
        self._hashes.append(line.hash)
        if line.written and line.written == line.length:
            self.held -= len(line.new)
        else:
            self._take_last(line)

    def _take_last(self, line: _Line) -> None:
        self.held -= len(line.new)
        if self._append(line.new) and line.omitted:
            self._omitted = self._omitted.plus(line.omitted, 0)
            self._beheaded.add(self._omitted.lines + len(self._new) - 1)

    def _append(self, line: str) -> bool:
        """Add a new line, and return whether it is logged."""
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

    # --- the start of the new lines

    def _next_likely(self, hashes: Sequence[int], start: int, end: int) -> int:
        """Return the number of the next line before which the place may be, or *end*.

        :param hashes: hashes of the lines.
        """
        if self._settled:
            return end
        place, index = self._place, self._count + (self._last is not None)
        # Only the end of a partly written line, or of the line before it, may be kept.
        if index == place.lines or (place.part and index <= 1):
            return start
        if place.lines > index:
            end = min(end, start + place.lines - index)
        if not place.tail:
            return end
        if self._last is not None and self._last.hash == place.tail[-1]:
            return start
        try:
            return hashes.index(place.tail[-1], start, end) + 1
        except ValueError:
            return end

    def _written_in(self, line: str, cut: int) -> int:
        """Return how many characters at the start of the next *line* are written. The new lines may start here."""
        if self._settled:
            return 0
        place, index = self._place, self._count
        exact = index == place.lines
        written: int | None = 0
        repeats = False
        if place.part:
            written, repeats = _end_of_part(line, place, beheaded=index == 0 or cut > 0)
        if written is None or not self._fits(index):
            return 0
        self.held -= sum(map(len, self._new)) + len(self._new) * self._width
        self._new.clear()
        self._omitted = OmittedLines()
        self._beheaded.clear()
        self._start = index
        if exact and written == place.part:
            self._settled, self._doubtful = True, False
        else:
            self._fitted += index >= len(place.tail)
            self._doubtful = self._fitted > 1 or repeats
        return written

    def _fits(self, index: int) -> bool:
        """Return whether the lines before line *index* are the last that were written, as far as Qarnot keeps them."""
        tail = self._place.tail
        count = min(len(tail), index)
        hashes = tuple(self._hashes)[len(self._hashes) - count :]
        if hashes and hashes == tail[-count:]:
            return True
        # The buffer may start in the middle of a line, whose hash then differs.
        rest = hashes[1:] if index <= len(tail) else hashes
        return bool(rest or self._place.part) and rest == (tail[-len(rest) :] if rest else ())


def _end_of_part(line: str, place: CursorPosition, *, beheaded: bool) -> tuple[int | None, bool]:
    """Return the index in *line* at which its written part ends, and whether the end of that part occurs repeatedly.

    The index is None if *line* does not contain the part.

    :param beheaded: whether the start of the line may be missing.
    """
    size = min(place.part, _HASHED_PART)
    if len(line) >= place.part and _crc(line[place.part - size : place.part]) == place.part_hash:
        return place.part, False
    if beheaded and size >= _MIN_MATCH:
        for end in range(len(line), size - 1, -1):
            piece = line[end - size : end]
            if _crc(piece) == place.part_hash:
                return end, line.find(piece) < end - size
    return None, False


def split_by_instance(text: str) -> dict[int | None, list[str]]:
    """Return the lines of all instances by their ids, in any order. Lines without an id have the key None."""
    match = _PREFIX.match(text)
    # The lines of an instance mostly come together, for which this is much faster.
    if match and text.count(f"\n{match[0]}") == text.count("\n"):
        return {int(match[1]): text[match.end() :].split(f"\n{match[0]}")}
    lines: dict[int | None, list[str]] = {}
    for line in text.split("\n"):
        match = _PREFIX.match(line)
        lines.setdefault(int(match[1]) if match else None, []).append(line[match.end() :] if match else line)
    return lines


@dataclass(frozen=True, kw_only=True)
class LogCursor:
    """Position in the output of a Qarnot task up to which it has been written to a log.

    :param uuid: uuid of the Qarnot task.
    :param instance: the only instance that is read. None to read all of them, from their common output.
    :param hidden: prefix of lines that are not logged. An empty line before such a line is not logged either.
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
        """Return the cursor after *text*, and the new lines, ready for the log.

        :param text: everything that is kept of a stream, as a text or in pieces.
        :param finished: whether the Qarnot task has finished, which completes its last line.
        """
        matchers = self._match(stream, [text] if isinstance(text, str) else text)
        places, last = dict(self.places), dict(self._last)
        log_lines: list[str] = []
        omitted, beheaded = OmittedLines(), set[int]()
        for instance in sorted(matchers, key=_order):
            key = stream, instance
            new = matchers[instance].new_lines(last.get(key, (0, 0)), finished=finished)
            places[key], last[key] = new.place, new.last
            omitted = omitted.plus(*new.omitted)
            label = self._label(*key)
            if (new.lost or (new.doubtful and new.lines)) and not new.omitted.lines:
                log_lines.append(f"{label} {_gap(new, matchers[instance].size)}")
            beheaded |= {len(log_lines) + number for number in new.beheaded}
            log_lines += [f"{label} {line}" for line in new.lines]
        lines = _truncated(log_lines, omitted, beheaded, f"[{stream}]")
        return replace(self, places=places, _last=last), lines

    def _match(self, stream: str, pieces: Iterable[str]) -> dict[int | None, LineMatcher]:
        """Feed the lines of each instance to a matcher, and hold no more of them than can be written."""
        matchers: dict[int | None, LineMatcher] = {}
        held = 0
        for instance, lines, cut in self._lines(pieces):
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
            matchers.pop(None, None)  # the rest of a line whose start is not kept
        return matchers

    def _lines(self, pieces: Iterable[str]) -> Iterator[tuple[int | None, list[str], int]]:
        """Yield the lines by instance, as they come, with the number of characters cut from a line too long to hold."""
        cut, size = 0, 0
        unfinished: list[str] = []
        for piece in pieces:
            lines, newline, rest = piece.rpartition("\n")
            if newline:
                unfinished.append(lines)
                yield from self._sorted("".join(unfinished), cut)
                unfinished, size, cut = [], 0, 0
            unfinished.append(rest)
            size += len(rest)
            if size > 2 * MAX_CHARACTERS:
                text, more = self._shortened("".join(unfinished))
                unfinished, size, cut = [text], len(text), cut + more
        if self.instance is not None or size:
            yield from self._sorted("".join(unfinished), cut)

    def _sorted(self, lines: str, cut: int) -> Iterator[tuple[int | None, list[str], int]]:
        if self.instance is not None:
            yield self.instance, lines.split("\n"), cut
            return
        for instance, own_lines in split_by_instance(lines).items():
            yield instance, own_lines, cut
            cut = 0  # it concerned the first line

    def _shortened(self, line: str) -> tuple[str, int]:
        """Return a *line* that is too long to hold without its middle, and the number of characters cut.

        The start, which names the instance, and the end remain.
        """
        match = _PREFIX.match(line) if self.instance is None else None
        start = match.end() if match else 0
        if self.hidden and line.startswith(self.hidden, start):
            return line[: start + len(self.hidden)], 0
        cut = max(0, len(line) - start - MAX_CHARACTERS)
        return line[:start] + line[start + cut :], cut

    def _label(self, stream: str, instance: int | None) -> str:
        return f"[{stream}]" if instance is None or instance == self.instance else f"[{stream} {instance}]"

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value, which contains no text of the output."""
        places = [[stream, instance, *place.to_json()] for (stream, instance), place in self.places.items()]
        return {"uuid": self.uuid, "instance": self.instance, "hidden": self.hidden, "places": places}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> LogCursor:
        """Return the cursor of which :meth:`to_json` returned *value*.

        :raises QarnotProtocolError: *value* is something else.
        """
        with parsing_stored_state("The place in the output of a Qarnot task"):
            stored = list(value.get("places") or ())[:_MAX_PLACES]
            places = {(str(entry[0]), entry[1]): CursorPosition.from_json(entry[2:6]) for entry in stored}
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
    """Drop the lines of the first instances that exceed the limit. Return the number of characters still held."""
    for instance in sorted(matchers, key=_order):
        matcher = matchers[instance]
        before = matcher.held
        matcher.drop_oldest(held - MAX_CHARACTERS)
        held -= before - matcher.held
        if held <= MAX_CHARACTERS:
            break
    return held


def _gap(new: NewLines, size: int) -> str:
    if new.lost:
        return (
            "... output is missing here: since the last poll more was written than Qarnot keeps "
            f"(the last {size:,} characters)"
        )
    return (
        f"... output may be missing here: of more than Qarnot keeps (the last {size:,} characters) it "
        "repeats itself"
    )


def _truncated(lines: list[str], omitted: OmittedLines, beheaded: Collection[int], label: str) -> list[str]:
    """Return the end of *lines* that fits into the log, after a line about everything that is omitted."""
    space_left, first = MAX_CHARACTERS, len(lines)
    while first and len(lines[first - 1]) <= space_left:
        first -= 1
        space_left -= len(lines[first])
    shown = lines[first:]
    if first:
        line = lines[first - 1]
        omitted = omitted.plus(sum(map(len, lines[:first])), first)
        if space_left >= MIN_SHOWN:
            before, space, text = line.partition("] ")
            end = before + space + end_of(text, space_left - len(before) - len(space))
            shown.insert(0, end)
            omitted = omitted.plus(-len(end), 0)
    if not omitted.characters:
        return shown
    count = omitted.lines + sum(number >= first for number in beheaded)
    counted = f"{omitted.characters:,} characters in {count:,} line{'s' if count > 1 else ''}"
    return [f"{label} ... {counted} left out here", *shown]
