"""Run many commands as the instances of one Qarnot task.

Constants of the Qarnot task have a compressed shell script with the command of each item. Each instance runs those of
its chunk, and reports every item as a line of its output. The image needs ``gzip`` and the programs of
:mod:`~airflow_qarnot_pool.api.commands`.
"""

from __future__ import annotations

import base64
import gzip
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from airflow_qarnot_pool.api.commands import MARK, RETURN_FILE

#: Maximum characters of a constant, and maximum number of Qarnot's 150 constants and of bytes for packed data.
PART_LENGTH = 2048
MAX_PARTS = 128
MAX_BYTES = MAX_PARTS * PART_LENGTH * 3 // 4
#: Prefix of the constants with the commands.
ITEMS = "AIRFLOW_QARNOT_ITEMS_"
#: Constant with the script that runs them.
SCRIPT = ITEMS + "RUN"
#: Environment variable with the number of the item.
ITEM = "QARNOT_ITEM"
#: Maximum bytes of the values that the items of an instance return. Qarnot keeps only the end of an output.
MAX_VALUES = 1_000_000
#: The command of each instance.
COMMAND = f"sh -c 'eval \"${SCRIPT}\"'"
#: Characters that have a meaning in double quotes. Constants are replaced there, as Qarnot does in a command.
_SPECIAL = re.compile(r'[\\"`]|\$(?!\{[A-Za-z_]\w*\})', re.ASCII)


_QUOTES, _WORD = re.compile(r"['\"\\]"), re.compile(r"[^ \t\r\n]+")


class CommandItem(NamedTuple):
    """An item: the words of its command, and its constants."""

    words: Sequence[str]
    constants: Mapping[str, str]


def split_command(command: str | Sequence[str]) -> list[str]:
    """Return the words of a command. Raises ValueError if a quotation has no end, or there is no word."""
    words = _split(command) if isinstance(command, str) else [str(word) for word in command]
    if not words:
        raise ValueError("it is empty")
    return words


@lru_cache(maxsize=16)  # most items share their command
def _split(command: str) -> list[str]:
    # The general way takes a millisecond for ten commands.
    return shlex.split(command) if _QUOTES.search(command) else _WORD.findall(command)


def pack(items: Mapping[int, CommandItem], *, skip_on_exit_code: Collection[int] = ()) -> bytes:
    """Return a compressed script with a function that runs an item, and the numbers of all items in order.

    :param skip_on_exit_code: exit codes of items that do not fail.
    """
    lines = [
        f"_qnumbers='{' '.join(map(str, items))}'",
        f"_qfine=' {' '.join(map(str, (0, *skip_on_exit_code)))} '",
        "_qitem() {",
        "case $1 in",
    ]
    for number, item in items.items():
        lines.append(f"{number})")
        lines += [f"export {name}={shlex.quote(value)}" for name, value in item.constants.items()]
        lines.append(f"exec {' '.join(map(_quoted, item.words))};;")
    text = "\n".join([*lines, "esac", "}", ""])
    return gzip.compress(text.encode(), 9, mtime=0)


def _quoted(word: str) -> str:
    return '"' + _SPECIAL.sub(r"\\\g<0>", word) + '"'


def as_constants(prefix: str, packed: bytes) -> dict[str, str]:
    """Return *packed* as constants.

    The alphabet has no '/' and no '$', because both have a meaning in constants.
    """
    text = base64.urlsafe_b64encode(packed).decode()
    parts = [text[start : start + PART_LENGTH] for start in range(0, len(text), PART_LENGTH)]
    return {
        f"{prefix}PARTS": str(len(parts)),
        **{f"{prefix}{index}": part for index, part in enumerate(parts)},
    }


def runner(nonce: str, size: int) -> dict[str, str]:
    """Return the constant with the script that runs the chunk of an instance.

    A report is ``<item>.<exit code>.<kind>.<value>``. All are printed once more at the end, with ``end.<instance>``
    after them. The script contains no ${...}, which Qarnot would replace. Each item writes its value to a file of its
    own, because an earlier item may have left a process that still writes.

    :param size: number of items in a chunk.
    """
    report = f"{MARK}{nonce} "
    script = f"""_qd=$(mktemp -d) || exit 1
_qk=0
while [ $_qk -lt ${ITEMS}PARTS ]; do
eval "printf %s \\"\\${ITEMS}$_qk\\""
_qk=$((_qk+1))
done | tr '_-' '/+' | base64 -d | gzip -dc > "$_qd/items" && . "$_qd/items" || exit 1
_qk=${ITEMS}PARTS
while [ $_qk -gt 0 ]; do
_qk=$((_qk-1))
unset {ITEMS}$_qk
done
unset {SCRIPT} {ITEMS}PARTS
_qk=0 _qbad=0 _qused=0
for _qi in $_qnumbers; do
if [ $((_qk/{size})) -eq $((INSTANCE_ID)) ]; then
_qf="$_qd/$_qi.json"
(export {ITEM}=$_qi {RETURN_FILE}="$_qf"; _qitem $_qi) < /dev/null
_qc=$?
_qv=none.
if [ $_qc -eq 0 ] && [ -s "$_qf" ]; then
_qn=$((_qused+$(wc -c < "$_qf")))
if [ $_qn -le {MAX_VALUES} ]; then
_qused=$_qn
_qv=json.$(base64 < "$_qf" | tr -d '\\n' | tr '/+' '_-')
else _qv=long.; fi
fi
rm -f "$_qf"
case "$_qfine" in *" $_qc "*) ;; *) _qbad=1; echo "Item $_qi exited with code $_qc" >&2;; esac
printf '\\n{report}%s.%s.%s\\n' $_qi $_qc $_qv
echo "{report}$_qi.$_qc.$_qv" >> "$_qd/reports"
fi
_qk=$((_qk+1))
done
echo
[ ! -e "$_qd/reports" ] || cat "$_qd/reports"
echo "{report}end.$((INSTANCE_ID))"
rm -rf "$_qd"
exit $_qbad"""
    return {SCRIPT: script}
