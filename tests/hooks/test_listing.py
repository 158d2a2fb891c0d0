"""One pass over a bucket for many prefixes."""

from __future__ import annotations

import random
from typing import NamedTuple

import pytest

from airflow_qarnot_pool.hooks.listing import pages
from tests.fake_s3 import FakeS3


class Case(NamedTuple):
    keys: list[str]
    prefixes: list[str]
    requests: int


FAR = [f"archive/{number:04}" for number in range(400)]
CASES = {
    "the whole bucket": Case(FAR[:25], [""], 3),
    "an empty bucket": Case([], ["in/"], 1),
    "no prefix": Case(FAR[:5], [], 0),
    "a folder": Case([*FAR, "in/a", "in/b", "out/c"], ["in/"], 1),
    "a key that is the prefix": Case(["ready", "ready.flag", "rea"], ["ready"], 1),
    "the key of a prefix after a gap": Case(["a", *FAR, "in"], ["a!", "in"], 2),
    "a prefix in another one": Case([f"in/{n}" for n in range(5)], ["in/", "in/3"], 1),
    "many prefixes with few files": Case(
        [f"in/{n:03}/x" for n in range(9)], [f"in/{n:03}/" for n in range(1000)], 1
    ),
    # Two requests: the rest of the archive is skipped.
    "a long gap": Case(["alpha", *FAR, "beta"], ["alpha", "beta"], 2),
    "a gap before the first prefix": Case([*FAR, "beta", "boat"], ["beta", "boat"], 1),
    "a long gap among many": Case(
        ["alpha", *FAR, "beta", *(f"c{n}" for n in range(9))], ["alpha", "b", "c"], 2
    ),
    "all keys, and beyond them": Case(["in/é", "in/\U0001f600", "in/z", "j"], ["in/"], 1),
}


def listed(s3: FakeS3, prefixes: list[str]) -> list[str]:
    found = [entry["Key"] for page in pages(s3, "bucket", prefixes) for entry in page.get("Contents", ())]
    assert found == sorted(set(found)), "no key comes twice"
    return [key for key in found if any(key.startswith(prefix) for prefix in prefixes)]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_listing(case: Case) -> None:
    s3 = FakeS3(page_size=10)
    s3.put(*case.keys)
    assert listed(s3, case.prefixes) == sorted(
        key for key in case.keys if any(key.startswith(prefix) for prefix in case.prefixes)
    )
    assert len(s3.requests) == case.requests


def test_no_key_is_missing_whatever_the_prefixes() -> None:
    chance = random.Random(7)
    for _ in range(300):
        s3 = FakeS3(page_size=chance.randint(1, 6))
        s3.put(*{"".join(chance.choices("ab/-~é", k=chance.randint(1, 5))) for _ in range(60)})
        prefixes = [
            "".join(chance.choices("ab/-~é", k=chance.randint(0, 3))) for _ in range(chance.randint(1, 5))
        ]
        assert listed(s3, prefixes) == sorted(
            key for key in s3._files if any(key.startswith(prefix) for prefix in prefixes)
        )
