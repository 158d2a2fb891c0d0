"""The reports that nodes print: found in an output in pieces, and never trusted."""

from __future__ import annotations

import json
import random

import pytest

from airflow_qarnot_pool import progress
from airflow_qarnot_pool.logs.report import ProgressFinder
from airflow_qarnot_pool.progress import MARK, parse_progress, report

MALFORMED: dict[str, str] = {
    "no JSON": "{a}",
    "a list": "[1]",
    "nothing": "{}",
    "nested": '{"a": {"b": 1}}',
    "deeply nested": '{"a": ' + "[" * 3_900 + "}",
    "no value": '{"a": null}',
    "not a number": '{"a": NaN}',
    "infinity": '{"a": 1e999}',
    "a large integer": '{"a": ' + "9" * 400 + "}",
    "a terminal's control characters": '{"a": "\\u001b[2J"}',
    "a line break in a name": '{"a\\nb": 1}',
    "half of a character": '{"a": "\\ud800"}',
    "a long name": json.dumps({"a" * 101: 1}),
    "a long text": json.dumps({"a": "b" * 501}),
    "many names": json.dumps({str(n): n for n in range(21)}),
    "a long report": '{"a": 1' + " " * 4_000 + "}",
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_report_of_progress_is_ignored(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_progress(text)
    finder = ProgressFinder()
    list(finder.watch([f'{MARK}{{"a": 1}}\n', f"{MARK}{text}\n", f'{MARK}{{"b": ']))
    assert finder.last == {"a": 1}


def test_the_last_report_of_progress_counts_however_the_output_is_cut(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for step in range(5):
        report(progress=step / 4, frames=step, what="Größe", last=step == 4)
        print("working", MARK + '{"frames": 99}')
    text = capsys.readouterr().out
    for seed in range(20):
        choice = random.Random(seed)
        cuts = sorted(choice.sample(range(len(text)), 6))
        pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        finder = ProgressFinder()
        assert "".join(finder.watch(pieces)) == text
        assert finder.last == {"progress": 1.0, "frames": 4, "what": "Größe", "last": True}


@pytest.mark.parametrize("value", [None, [1], {"a": 1}, float("nan"), "x" * 501, "a\nb", 2**63])
def test_a_report_that_airflow_would_ignore_is_refused_on_the_node(value: object) -> None:
    with pytest.raises(ValueError, match=r".+"):
        progress.report(value=value)
