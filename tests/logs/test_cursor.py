"""Which lines of an output are new, when the buffers that keep it lose their beginning."""

from __future__ import annotations

import itertools
import json
import random
import re
import tracemalloc
from collections.abc import Iterator

import pytest

from airflow_qarnot_pool.exceptions import QarnotProtocolError
from airflow_qarnot_pool.logs.cursor import (
    MAX_CHARACTERS,
    CursorPosition,
    LineMatcher,
    LogCursor,
)


def follow(*looks: str, finished: bool = True, **options: object) -> list[list[str]]:
    """What a cursor writes at each look at an output of all instances; the last one comes after the end."""
    cursor = LogCursor(uuid="u", **options)  # type: ignore[arg-type]
    said = []
    for number, text in enumerate(looks, 1):
        cursor, lines = cursor.read("stdout", text, finished=finished and number == len(looks))
        said.append(lines)
    return said


# --- one instance, read by itself

CASES: dict[str, tuple[list[str], list[list[str]]]] = {
    "nothing at all": (["", ""], [[], []]),
    "grows": (["a\n", "a\nb\n", "a\nb\nc\n"], [["a"], ["b"], ["c"]]),
    "nothing new": (["a\n", "a\n", "a\n"], [["a"], [], []]),
    "the last line is not complete": (["a\nb", "a\nbc\n", "a\nbc\n"], [["a"], ["bc"], []]),
    "the last line stays incomplete": (["a\nb", "a\nb", "a\nb"], [["a"], ["b"], []]),
    "what was incomplete goes on": (["b", "b", "bc", "bcd\ne\n"], [[], ["b"], [], ["cd", "e"]]),
    "what was incomplete is complete": (["b", "b", "b\n", "b\n"], [[], ["b"], [], []]),
    "the end completes a line": (["a", "a"], [[], ["a"]]),
    "empty lines": (["\n\n", "\n\n\na\n"], [["", ""], ["", "a"]]),
    "the same line again": (["a\na\n", "a\na\na\n"], [["a", "a"], ["a"]]),
    "the beginning is gone": (["1\n2\n3\n", "2\n3\n4\n5\n"], [["1", "2", "3"], ["4", "5"]]),
    "the beginning of a line is gone": (["11\n12\n13\n", "2\n13\n14\n"], [["11", "12", "13"], ["14"]]),
    "all but one line is gone": (["1\n2\n", "2\n3\n"], [["1", "2"], ["3"]]),
    "more than is kept": (
        ["1\n2\n", "7\n8\n"],
        [["1", "2"], ["... output is missing here", "7", "8"]],
    ),
    "more than is kept, and then no more": (
        ["1\n2\n", "7\n8\n", "8\n9\n"],
        [["1", "2"], ["... output is missing here", "7", "8"], ["9"]],
    ),
    "a line that is known in part, and whose beginning is gone": (
        ["1\n2\nab", "1\n2\nab", "bc\nd\n"],
        [["1", "2"], ["ab"], ["... output is missing here", "bc", "d"]],
    ),
    "a line that is known in part, and all before it gone": (
        ["1\n2\nab", "1\n2\nab", "abc\nd\n"],
        [["1", "2"], ["ab"], ["c", "d"]],
    ),
    "the buffer begins anew": (
        ["1\n2\n", "", "5\n"],
        [["1", "2"], [], ["... output is missing here", "5"]],
    ),
    "it repeats itself": (
        ["a\nb\na\n", "b\na\nb\na\nc\n"],
        [["a", "b", "a"], ["c"]],
    ),
    "progress bars": (["\r10%\r20%", "\r10%\r20%\r30%\nend\r\n"], [[], ["30%", "end"]]),
}


@pytest.mark.parametrize(("looks", "written"), CASES.values(), ids=CASES.keys())
def test_new_lines_of_one_instance(looks: list[str], written: list[list[str]]) -> None:
    said = [[re.sub(r"^\[stdout\] ", "", line) for line in lines] for lines in follow(*looks, instance=0)]
    # A line about a gap goes on with how much is kept.
    said = [[re.sub(r"^(\.\.\. output is missing here).*", r"\1", line) for line in lines] for lines in said]
    assert said == written


# --- all instances, from their common output


def test_lines_are_told_apart_by_instance_whatever_their_order() -> None:
    assert follow("1> b\n0> a\n", "1> b\n0> a\n1> d\n0> c\n11> e\n1> f") == [
        [],
        ["[stdout 0] a", "[stdout 0] c", "[stdout 1] b", "[stdout 1] d", "[stdout 1] f", "[stdout 11] e"],
    ]


def test_an_output_without_instances_is_written_as_it_is() -> None:
    assert follow("a\nb\n") == [["[stdout] a", "[stdout] b"]]


def test_the_rest_of_a_line_is_not_taken_for_a_line_without_instance() -> None:
    assert follow("llo\n0> a\n") == [["[stdout 0] a"]]


def test_a_quiet_instance_is_not_written_again_when_the_others_push_it_out() -> None:
    looks = ["0> a\n1> 1\n", "0> a\n1> 1\n", "0> a\n1> 2\n1> 3\n", "1> 8\n1> 9\n", "1> 8\n1> 9\n"]
    assert [line for lines in follow(*looks) for line in lines if "stdout 0" in line] == ["[stdout 0] a"]


# --- restarts


def test_the_place_survives_in_json_and_holds_nothing_of_the_output() -> None:
    cursor, _ = LogCursor(uuid="u").read("stdout", "".join(f"0> secret {n}\n" for n in range(40)))
    text = json.dumps(cursor.to_json())
    assert "secret" not in text
    assert len(text) < 300
    assert LogCursor.from_json(json.loads(text)) == cursor


@pytest.mark.parametrize("seed", range(30))
def test_any_output_is_written_once_or_a_line_tells_that_it_is_not(seed: int) -> None:
    """Random outputs, buffers, looks and restarts; raw and common outputs."""
    dice = random.Random(seed)
    together = seed % 2 == 0
    instances = dice.choice([1, 2, 5]) if together else 1
    size = dice.choice([60, 300, 5_000, 10**6])
    buffer = ""
    wrote: dict[int, list[str]] = {n: [] for n in range(instances)}
    pieces: list[tuple[int, str]] = []
    for number in range(300):
        instance = dice.randrange(instances)
        line = f"n{number:03} " + "x" * dice.choice([0, 1, 8, 40])
        wrote[instance].append(line)
        pieces.append((instance, line))
    cursor = LogCursor(uuid="u", instance=None if together else 0)
    said: list[str] = []

    def look(finished: bool = False) -> None:
        nonlocal cursor
        cursor, lines = cursor.read("stdout", buffer, finished=finished)
        said.extend(lines)
        if dice.random() < 0.2:
            cursor = LogCursor.from_json(json.loads(json.dumps(cursor.to_json())))

    for instance, line in pieces:
        whole = f"{instance}> {line}\n" if together else f"{line}\n"
        # Part of a line may be seen before the rest is there.
        cut = dice.randrange(len(whole)) if not together and dice.random() < 0.3 else 0
        for part in (whole[:cut], whole[cut:]):
            buffer = (buffer + part)[-size:]
            while dice.random() < 0.3:
                look()
    look(finished=True)
    for instance in range(instances):
        label = f"[stdout {instance}] " if together else "[stdout] "
        mine = [line.removeprefix(label) for line in said if line.startswith(label)]
        gaps = sum(line.startswith("...") for line in mine)
        lines = [line for line in mine if not line.startswith("...")]
        if size >= 10**6:
            assert gaps == 0
        if not gaps:
            assert "".join(lines) == "".join(wrote[instance])
        else:
            # Nothing is there twice, and all is in order.
            begun = [line[:4] for line in lines if re.match(r"n\d{3}", line)]
            assert begun == sorted(set(begun))


def test_a_place_in_an_output_that_repeats_itself_is_doubtful() -> None:
    cursor, _ = LogCursor(uuid="u", instance=0).read("stdout", "tick\n" * 20 + "1\n")
    place = cursor.places["stdout", 0]
    matcher = LineMatcher(place)
    matcher.feed([*["tick"] * 18, "1", ""])
    assert not matcher.new_lines().doubtful
    repeats, _ = LogCursor(uuid="u", instance=0).read("stdout", "1\n" + "tick\n" * 20)
    _, lines = repeats.read("stdout", "tick\n" * 18 + "2\n", finished=True)
    assert lines[0].startswith("[stdout] ... output may be missing here")
    assert lines[1:] == ["[stdout] 2"]


# --- what is not for the log


def test_hidden_lines_and_the_empty_line_before_them_are_left_out() -> None:
    assert follow("a\n", "a\n\nREPORT 1\nb\n\nc\n", instance=0, hidden="REPORT ") == [
        ["[stdout] a"],
        ["[stdout] b", "[stdout] ", "[stdout] c"],
    ]


def test_of_a_great_deal_the_end_is_written() -> None:
    line = "x" * 99_980
    (lines,) = follow(f"{line}\n" * 15, instance=0)
    assert sum(map(len, lines[1:])) <= MAX_CHARACTERS
    assert lines[0] == f"[stdout] ... {5 * (99_980 + 9):,} characters in 5 lines left out here"
    assert len(lines) == 11


def test_places_are_compared_by_value() -> None:
    assert CursorPosition(3, (1, 2, 3)) == CursorPosition.from_json(
        json.loads(json.dumps(CursorPosition(3, (1, 2, 3)).to_json()))
    )


# --- bytes that are no text


PIECES = [
    "Größe: 5 GB – fertig\n".encode(),
    "строка сделана\n".encode(),
    "処理完了 🎉\n".encode(),
    "caf\xe9\n".encode("latin-1"),
    "größer\n".encode("utf-16-le"),
    b"\xf0\x9f\x8e \xff\xfe \xc3\n",
    b"plain\n",
    b"\n",
]


def as_kept(output: bytes, size: int, *, together: bool) -> str:
    """What a server shows of an *output* of which it keeps *size* bytes."""
    text = output[-size:].decode("utf-8", "replace")
    if not together:
        return text
    return "".join(f"7> {line}\n" for line in text.removesuffix("\n").split("\n")) if text else ""


@pytest.mark.parametrize("together", [True, False], ids=["common output", "one instance"])
@pytest.mark.parametrize("seed", range(20))
def test_every_line_is_written_once_wherever_its_bytes_are_cut(seed: int, together: bool) -> None:
    """Blocks of any size, as programs and servers cut them, and a restart now and then."""
    dice = random.Random(seed)
    whole = b"".join(dice.choices(PIECES, k=80))
    cursor = LogCursor(uuid="u", instance=None if together else 7)
    said: list[str] = []
    at = 0
    while at < len(whole):
        at = min(len(whole), at + dice.choice([1, 2, 3, 40, 97, 400]))
        for _ in range(dice.choice([1, 1, 2, 3])):
            finished = at == len(whole)
            cursor, lines = cursor.read(
                "stdout", as_kept(whole[:at], 10**6, together=together), finished=finished
            )
            said += lines
            if dice.random() < 0.1:
                cursor = LogCursor.from_json(json.loads(json.dumps(cursor.to_json())))
            if finished:
                break
    label = "[stdout 7] " if together else "[stdout] "
    assert not [line for line in said if "missing" in line]
    expected = whole.decode("utf-8", "replace")
    assert "".join(line.removeprefix(label) for line in said) == expected.replace("\n", "")


@pytest.mark.parametrize("seed", range(20))
def test_a_buffer_that_begins_within_a_character_hides_nothing_that_is_kept(seed: int) -> None:
    dice = random.Random(seed)
    lines = [f"строка {number:03} сделана – fertig\n".encode() for number in range(300)]
    size = dice.choice([400, 1000, 3000])
    cursor = LogCursor(uuid="u", instance=0)
    said: list[str] = []
    at = 0
    while at < len(lines):
        # Never more between two looks than is kept, with some lines to find the place by.
        at = min(len(lines), at + dice.randrange(1, size // len(lines[0]) - 3))
        cursor, new = cursor.read("stdout", as_kept(b"".join(lines[:at]), size, together=False))
        said += new
        if dice.random() < 0.2:
            cursor = LogCursor.from_json(json.loads(json.dumps(cursor.to_json())))
    assert said == [f"[stdout] {line.decode()[:-1]}" for line in lines]


def test_a_line_that_ends_within_a_character_waits_for_the_rest_of_it() -> None:
    line = "Größe: 5 GB – fertig\n".encode()
    cut = line.index(b"\xc3") + 1
    looks = [
        as_kept(b"a\n" + one, 10**6, together=True) for one in (line[:cut], line[:cut], line[:cut], line)
    ]
    assert follow(*looks) == [["[stdout 7] a"], [], [], ["[stdout 7] Größe: 5 GB – fertig"]]


def test_a_last_line_that_never_becomes_text_is_written_at_the_end() -> None:
    assert follow("a\ncaf\ufffd", "a\ncaf\ufffd", instance=0) == [["[stdout] a"], ["[stdout] caf\ufffd"]]


# --- lines and outputs of any size


@pytest.mark.parametrize("restart", [False, True], ids=["the same reader", "another reader"])
def test_a_line_that_grows_beyond_the_buffer_is_followed_without_a_false_gap(restart: bool) -> None:
    """As a progress bar does, which never ends its line."""
    states = [f"\r{number:6} of 100000 |{'#' * (number % 50)}" for number in range(3000)]
    cursor = LogCursor(uuid="u", instance=0)
    said: list[str] = []
    for number in range(0, 3000, 30):
        kept = "".join(states[: number + 1])[-5_000:]
        for _ in range(2):
            cursor, new = cursor.read("stdout", kept)
            said += new
            if restart:
                cursor = LogCursor.from_json(cursor.to_json())
        if restart:  # it does not know how the line was a look ago
            cursor, new = cursor.read("stdout", kept)
            cursor, more = cursor.read("stdout", kept)
            said += new + more
    assert not [line for line in said if "missing" in line]
    assert said == [f"[stdout] {states[number][1:]}" for number in range(0, 3000, 30)]


@pytest.mark.parametrize("last", ["", "\n", "\ndone", "\ndone\n"], ids=repr)
@pytest.mark.parametrize("together", [True, False], ids=["common output", "one instance"])
@pytest.mark.parametrize("size", [1_000_001, 1_500_000, 3_000_000, 5_000_000])
def test_of_a_line_of_more_than_a_million_characters_the_end_is_written(
    size: int, last: str, together: bool
) -> None:
    text = "first\n" + ("word " * (size // 5)) + "END" + last
    if together:
        text = "".join(f"3> {line}\n" for line in text.removesuffix("\n").split("\n"))
    (lines,) = follow(text, instance=None if together else 0)
    label = "[stdout 3] " if together else "[stdout] "
    note, end, *rest = lines
    assert re.fullmatch(r"\[stdout\] \.\.\. [\d,]+ characters in 2 lines left out here", note)
    assert end.startswith(f"{label}word ")
    assert end.endswith(" END")
    assert rest == ([f"{label}done"] if "done" in last else [])
    assert MAX_CHARACTERS - 1_000 < sum(map(len, lines[1:])) <= MAX_CHARACTERS
    omitted = int(re.sub(r"\D", "", note.split(" characters")[0]))
    total = sum(len(label) + len(line) for line in ("first", "word " * (size // 5) + "END"))
    assert omitted == total - len(end)


def test_of_a_line_that_cannot_be_shown_whole_no_part_of_a_word_is_shown() -> None:
    for size in range(1_000_000, 1_000_040):
        (lines,) = follow("x " * 10_000 + " secret-of-the-node " + "y" * (size - 100), instance=0)
        assert "secret-of-the-node" in lines[-1] or "node" not in lines[-1]


@pytest.mark.parametrize("seed", range(30))
def test_an_output_says_the_same_in_whatever_pieces_it_comes(seed: int) -> None:
    dice = random.Random(seed)
    instances = dice.choice([1, 3])
    hidden = "REPORT "
    words = ["a", "строка", "", "\r1%\r2%", "REPORT x", "y" * 300]
    lines = [f"{dice.randrange(instances)}> {dice.choice(words)} {n if n % 3 else ''}\n" for n in range(200)]
    looks = ["".join(lines[dice.randrange(20) : end]) for end in (50, 120, 121, 200)]
    cursors = [LogCursor(uuid="u", hidden=hidden) for _ in range(2)]
    for number, text in enumerate(looks):
        pieces, at = [], 0
        while at < len(text):
            size = dice.choice([1, 7, 100, 5000])
            pieces.append(text[at : at + size])
            at += size
        said: list[list[str]] = []
        for one, whole in enumerate((text, pieces)):
            cursors[one], new = cursors[one].read("stdout", whole, finished=number == 3)
            said.append(new)
        assert said[0] == said[1]
        assert cursors[0] == cursors[1]


def endless(instances: int, lines: int, line: str, size: int = 65_536) -> Iterator[str]:
    """A common output of all instances, in pieces."""
    for instance in range(instances):
        block = f"{instance}> {line}\n" * (size // (len(line) + 4))
        for _ in range(max(1, lines * (len(line) + 4) // size)):
            yield block


@pytest.mark.parametrize(
    ("instances", "lines", "line"),
    [(64, 1_000, "0123456789" * 100), (1, 300_000, "x"), (5_000, 1, "y"), (2, 10_000, "🎉" * 100)],
    ids=["many instances", "short lines", "thousands of instances", "wide characters"],
)
def test_an_output_of_any_size_takes_little_memory(instances: int, lines: int, line: str) -> None:
    small = 64 if instances == 5_000 else 65_536
    tracemalloc.start()
    try:
        _, said = LogCursor(uuid="u").read("stdout", endless(instances, lines, line, small), finished=True)
        assert tracemalloc.get_traced_memory()[1] < 40_000_000
    finally:
        tracemalloc.stop()
    assert "left out here" in said[0] or instances == 5_000
    assert said[-1] == f"[stdout {instances - 1}] {line}"
    assert MAX_CHARACTERS * 0.9 < sum(map(len, said)) <= MAX_CHARACTERS + 200 or instances == 5_000


def test_a_line_without_end_takes_little_memory_and_is_hidden_where_it_should_be() -> None:
    tracemalloc.start()
    try:
        for hidden in ("", "REPORT "):
            pieces = itertools.chain(
                ["0> a\n0> REPORT "], itertools.repeat("z" * 65_536, 2_000), ["\n0> end\n"]
            )
            _, said = LogCursor(uuid="u", hidden=hidden).read("stdout", pieces, finished=True)
            assert said[-1] == "[stdout 0] end"
            assert len(said) == (2 if hidden else 3)
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "note",
    [None, [], {}, {"uuid": "u", "places": 5}, {"uuid": "u", "places": [["stdout", 0, 1]]}]
    + [
        {"uuid": "u", "places": [["stdout", 0, lines, tail, 0, 0]]}
        for lines, tail in (("x", ""), (1, "@"), (1, "AAA="))
    ],
    ids=repr,
)
def test_a_place_that_cannot_be_read_back_is_a_qarnot_error(note: object) -> None:
    with pytest.raises(QarnotProtocolError, match="place in the output"):
        LogCursor.from_json(note)  # type: ignore[arg-type]
