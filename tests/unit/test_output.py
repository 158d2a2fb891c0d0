"""What a failure tells besides what Qarnot says."""

from __future__ import annotations

import pytest

from airflow_qarnot_pool.output import shell_word


@pytest.mark.parametrize(
    ("command", "word"),
    [
        ("cat a | sort", "|"),
        ("make && make install", "&&"),
        ("echo a > b", ">"),
        ("cd x; ls", "x;"),
        ("sh -c 'cat a | sort'", None),
        ("/bin/bash -c 'a && b'", None),
        ("grep 'a|b' file", None),
        ("render scene.blend", None),
        ("", None),
        ("echo 'not closed", None),
    ],
)
def test_a_word_that_needs_a_shell(command: str, word: str | None) -> None:
    assert shell_word(command) == word
