"""The text that says which items the instances of an array run.

Its source is sent to nodes, too, for Python 3.8 or newer, so it uses the standard library only.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence


def round_text(number: int, size: int, items: Sequence[int], total: int) -> str:
    """Return ``<round> <chunk size> <items>``. The items are a bit mask in base64, or ``*`` for all *total* items."""
    mask = "*"
    if len(items) < total:
        bits = sum(1 << item for item in items)
        mask = base64.urlsafe_b64encode(bits.to_bytes(math.ceil(total / 8), "little")).decode()
    return f"{number} {size} {mask}"


def items_of(text: str, total: int, instance: int) -> list[int]:
    """Return the items that an instance runs.

    :param text: a :func:`round_text` of an array of *total* items.
    """
    _, size, mask = text.split(" ")
    items = list(range(total))
    if mask != "*":
        bits = int.from_bytes(base64.urlsafe_b64decode(mask), "little")
        items = [item for item in items if bits >> item & 1]
    return items[instance * int(size) : (instance + 1) * int(size)]
