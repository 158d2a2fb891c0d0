"""Wrap a command so that it reports its exit code and the JSON that it wrote to a file, or resumes from a snapshot.

The API has no field for these. So a shell script runs the command, and prints the report as the last line of its
output. The image needs ``sh``, ``mktemp``, ``head``, ``base64`` and ``tr``, which Debian, Alpine and their like have.
To resume it needs ``sh``, ``cp`` and ``rm``.
"""

from __future__ import annotations

import base64
from collections.abc import Collection
from typing import NamedTuple

#: Environment variable with the path of the file to which a command writes the value that it returns.
RETURN_FILE = "QARNOT_RETURN_FILE"
#: Constant with the script. It contains no ${...}, which Qarnot would replace.
SCRIPT = "AIRFLOW_QARNOT_RUN"
#: Prefix of the line with the report.
MARK = "AIRFLOW_QARNOT_RETURN "
#: Maximum bytes of a returned value.
MAX_VALUE = 1_000_000
#: Maximum characters of a report: base64, and the exit code.
MAX_REPORT = MAX_VALUE * 4 // 3 + 100
#: Folder with the files of the last snapshot, in the directory in which a command starts.
SNAPSHOT_FOLDER = "airflow-snapshot"
#: Moves them to where they were when the snapshot was taken. Qarnot uploads only files that are new or changed.
#: Resources that stay in their place are neither.
#: The names of the variables are long, because a constant of the user with the same name would change.
_RESTORE = f"""AIRFLOW_QARNOT_TO=$TASK_PATH
[ -n "$AIRFLOW_QARNOT_TO" ] || AIRFLOW_QARNOT_TO=.
AIRFLOW_QARNOT_FROM="$AIRFLOW_QARNOT_TO/{SNAPSHOT_FOLDER}"
if [ -d "$AIRFLOW_QARNOT_FROM" ]; then
cp -R "$AIRFLOW_QARNOT_FROM/." "$AIRFLOW_QARNOT_TO/" && rm -rf "$AIRFLOW_QARNOT_FROM" || exit 1
fi
"""
_WRAPPER = f"sh -c 'eval \"${SCRIPT}\"' sh "


class CommandReport(NamedTuple):
    """The report of a wrapped command. ``text`` is None if it wrote nothing to the file."""

    exit_code: int
    text: str | None


def wrapped(
    command: str, *, skip_on_exit_code: Collection[int], return_file: bool, resumes: bool
) -> dict[str, str]:
    """Return the constants that run *command*.

    :param skip_on_exit_code: exit codes with which the Qarnot task succeeds.
    :param resumes: whether it starts with the files of the last snapshot.
    """
    restore = _RESTORE if resumes else ""
    if not (skip_on_exit_code or return_file):
        return {"DOCKER_CMD": _WRAPPER + command, SCRIPT: restore + 'exec "$@"'}
    print_value = f"""if [ -s "$_qf" ]; then printf json.
head -c {MAX_VALUE + 1} "$_qf" | base64 | tr -d '\\n' | tr '/+' '_-'
else printf none.; fi"""
    script = f"""{f'_qd=$(mktemp -d) && export {RETURN_FILE}="$_qd/value.json"' if return_file else ""}
"$@"
_qc=$?
_qf=${RETURN_FILE}
printf '\\n%s%s.' '{MARK}' $_qc
{print_value if return_file else "printf none."}
echo
{'rm -rf "$_qd"' if return_file else ""}
case " {" ".join(map(str, skip_on_exit_code))} " in *" $_qc "*) exit 0;; esac
exit $_qc"""
    return {"DOCKER_CMD": _WRAPPER + command, SCRIPT: restore + script}


def parse_report(encoded: str) -> CommandReport:
    """Decode the rest of the line with the report. Raises ValueError if it is malformed."""
    code, kind, data = [*encoded.split("."), "", ""][:3]
    if not (code.isdecimal() and len(code) < 4) or kind not in ("none", "json"):
        raise ValueError("its report is malformed")
    if kind == "none":
        return CommandReport(int(code), None)
    if not data:
        raise ValueError("the image lacks one of the programs head, base64 and tr")
    value = base64.urlsafe_b64decode(data)
    if len(value) > MAX_VALUE:
        raise ValueError(f"it has more than {MAX_VALUE:,} bytes")
    return CommandReport(int(code), value.decode())
