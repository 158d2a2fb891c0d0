"""Which lines of an output are new, when the buffers that keep it lose their beginning."""

from __future__ import annotations

import json
import random
import re

import pytest

from airflow_qarnot_pool.transcript import MOST_CHARACTERS, Place, Transcript, by_instance, news


def follow(*looks: str, over: bool = True, **options: object) -> list[list[str]]:
    """What a transcript writes at each look at an output of all instances; the last one comes after the end."""
    transcript = Transcript(uuid="u", **options)  # type: ignore[arg-type]
    said = []
    for number, text in enumerate(looks, 1):
        transcript, lines = transcript.read("stdout", text, over=over and number == len(looks))
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
def test_what_is_new_of_one_instance(looks: list[str], written: list[list[str]]) -> None:
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
    assert by_instance("a\nb\n") == {None: ["a", "b"]}
    assert follow("a\nb\n") == [["[stdout] a", "[stdout] b"]]


def test_what_is_left_of_a_line_is_not_taken_for_a_line_without_instance() -> None:
    assert by_instance("llo\n0> a\n") == {0: ["a"]}


def test_a_quiet_instance_is_not_written_again_when_the_others_push_it_out() -> None:
    looks = ["0> a\n1> 1\n", "0> a\n1> 1\n", "0> a\n1> 2\n1> 3\n", "1> 8\n1> 9\n", "1> 8\n1> 9\n"]
    assert [line for lines in follow(*looks) for line in lines if "stdout 0" in line] == ["[stdout 0] a"]


# --- restarts


def test_the_place_survives_in_json_and_holds_nothing_of_the_output() -> None:
    transcript, _ = Transcript(uuid="u").read("stdout", "".join(f"0> secret {n}\n" for n in range(40)))
    text = json.dumps(transcript.to_json())
    assert "secret" not in text
    assert len(text) < 300
    assert Transcript.from_json(json.loads(text)) == transcript


@pytest.mark.parametrize("seed", range(60))
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
    transcript = Transcript(uuid="u", instance=None if together else 0)
    said: list[str] = []

    def look(over: bool = False) -> None:
        nonlocal transcript
        transcript, lines = transcript.read("stdout", buffer, over=over)
        said.extend(lines)
        if dice.random() < 0.2:
            transcript = Transcript.from_json(json.loads(json.dumps(transcript.to_json())))

    for instance, line in pieces:
        whole = f"{instance}> {line}\n" if together else f"{line}\n"
        # Part of a line may be seen before the rest is there.
        cut = dice.randrange(len(whole)) if not together and dice.random() < 0.3 else 0
        for part in (whole[:cut], whole[cut:]):
            buffer = (buffer + part)[-size:]
            while dice.random() < 0.3:
                look()
    look(over=True)
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
    transcript, _ = Transcript(uuid="u", instance=0).read("stdout", "tick\n" * 20 + "1\n")
    place = transcript.places["stdout", 0]
    assert not news(place, [*["tick"] * 18, "1", ""]).doubtful
    repeats, _ = Transcript(uuid="u", instance=0).read("stdout", "1\n" + "tick\n" * 20)
    _, lines = repeats.read("stdout", "tick\n" * 18 + "2\n", over=True)
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
    assert sum(map(len, lines[1:])) <= MOST_CHARACTERS
    assert lines[0] == f"[stdout] ... {5 * (99_980 + 9):,} characters in 5 lines left out here"
    assert len(lines) == 11


def test_places_are_compared_by_value() -> None:
    assert Place(3, (1, 2, 3)) == Place.from_json(json.loads(json.dumps(Place(3, (1, 2, 3)).to_json())))
