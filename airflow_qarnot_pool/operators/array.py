"""Run many commands as the instances of one Qarnot task."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_qarnot_pool.api import command_array
from airflow_qarnot_pool.api.commands import MARK
from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.api.fields import Refusal, closest_name, is_secret_constant, short_hash
from airflow_qarnot_pool.api.fields import constants as as_constants
from airflow_qarnot_pool.exceptions import QarnotTaskFailedError
from airflow_qarnot_pool.logs.array_reports import MAX_VALUES, ArrayFinder, parse_command_report
from airflow_qarnot_pool.operators.bases.array import ArrayOperator
from airflow_qarnot_pool.operators.bases.task import COMMON_FIELDS, TaskOperator
from airflow_qarnot_pool.parameters.json_values import json_problem
from airflow_qarnot_pool.parameters.shell import find_commands, warn_of_shell_characters
from airflow_qarnot_pool.parameters.templating import PLACEHOLDER, hide_secrets, is_templated, reveal_secrets
from airflow_qarnot_pool.parameters.validation import parse_commands

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.command_array import CommandItem
    from airflow_qarnot_pool.api.specs import TaskSpec

#: Names of constants that a shell can set for an item.
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)


class QarnotRunArrayOperator(ArrayOperator):
    """Run many commands as the instances of one Qarnot task, and wait for its end.

    All items share the image, the buckets and the pool, and differ in their command and constants. Creating them costs
    one request, and an item costs no Qarnot task. A retry of the Airflow task runs exactly the items that have not
    succeeded. Fails after all have ended, if any failed. Returns ``{total, succeeded, failed, skipped}``.

    With ``task_spec={"return_file": True}`` it returns the list of the values that the items return, in order. With
    ``task_spec={"skip_on_exit_code": 99}`` an item that exits with that code has no value, and no retry runs it again.
    If all items skip, the Airflow task is skipped. See ``docs/fan-out.md``.

    Parameters besides these: :class:`~airflow_qarnot_pool.operators.bases.task.TaskOperator`; they hold for all items.

    Work:

    :param commands: the items, each as text, as a list of words, or as a mapping with ``command`` and ``constants``.
        At most 10,000. ``${QARNOT_ITEM}`` is the number of the item.
    :param command: the command of the items that have none.
    :param log_output: write the output to the Airflow task log: True: when all have ended; "live": while they run.
    """

    items_parameter = "commands"
    rejected_parameters: ClassVar[Mapping[str, str]] = {
        "wait_for_completion": "Leave it out, because an array waits for its items.",
        "instance_count": "Leave it out. The number of instances follows from commands and chunk_size.",
    }
    spec_fields = (*COMMON_FIELDS, "command")
    template_fields = (*TaskOperator.template_fields, "commands", "command")
    template_fields_renderers = {
        "commands": "json",
        "command": "bash",
        "task_spec": "json",
        "constants": "json",
    }
    _noun = "commands"
    _noun_of_items = "commands"

    def __init__(self, *, commands: Any, **kwargs: Any) -> None:
        self.commands = hide_secrets(commands)
        kwargs["wait_for_completion"], kwargs["instance_count"] = True, None
        super().__init__(**kwargs)
        self._items: list[CommandItem] = []
        # A rendered command may have braces, too. So the placeholder is for this check only.
        common = PLACEHOLDER if is_templated(self.command) else self.command
        if not is_templated(commands):
            self._packed(dict(enumerate(self._items_of(commands, common))))
        elif isinstance(commands, (list, tuple)):
            for index, one in enumerate(commands):
                if not is_templated(one):
                    self._item(index, one, common)
        if isinstance(commands, (list, tuple)):
            self._check_total(len(commands))
            warn_of_shell_characters(self.task_id, find_commands(*commands))

    def _needs_command(self) -> bool:
        return False  # the items may have all of them

    # --- the items

    def _items_of(self, commands: Any, common: Any) -> list[CommandItem]:
        given = reveal_secrets(parse_commands(commands))
        return [self._item(index, one, common) for index, one in enumerate(given)]

    def _item(self, index: int, one: Any, common: Any) -> CommandItem:
        """Return an item, whose command is *common* unless it has its own."""
        given = dict(one) if isinstance(one, Mapping) else {"command": one}
        command = given.pop("command", None) or common
        constants = given.pop("constants", None) or {}
        if given:
            name = str(min(given, key=str))
            near = closest_name(name, ("command", "constants"))
            raise self._refused(
                index,
                f"{name} is not a parameter of an item of an array",
                f"Write {near}."
                if near
                else "Give it to the operator for all items, or use QarnotRunTasksOperator.",
            )
        if not command:
            raise self._refused(
                index,
                "command is missing",
                "Give each item a command, or give command to the operator for all of them.",
            )
        if not isinstance(command, (str, list, tuple)):
            raise self._refused(
                index, f"command is no text, got {type(command).__name__}", "Give text or a list of words."
            )
        try:
            constants = as_constants(constants)
            words = command_array.split_command(command)
        except Refusal as refusal:
            raise self._refused(index, f"constants {refusal.problem}", refusal.remedy) from None
        except ValueError as error:
            raise self._refused(
                index, f"command cannot be split into words: {error}", "Give a list of words."
            ) from None
        for name in constants:
            self._check_constant(index, name)
        if problem := json_problem({"command": words, "constants": constants}, for_xcom=True):
            raise self._refused(index, f"it has {problem}", "Give text without it.")
        return command_array.CommandItem(words, constants)

    def _check_constant(self, index: int, name: str) -> None:
        if is_secret_constant(name):
            raise self._refused(
                index, f"constants has the secret {name}", "Give it in constants of the operator."
            )
        if name.startswith("DOCKER_"):
            raise self._refused(
                index, f"constants has {name}, which all items share", "Give it to the operator."
            )
        if _NAME.fullmatch(name) is None:
            raise self._refused(
                index,
                f"constants has {name!r}, which is no name of a shell variable",
                "Use letters, digits and '_'.",
            )

    @staticmethod
    def _refused(index: int, problem: str, remedy: str) -> QarnotInvalidSpecError:
        return QarnotInvalidSpecError(f"commands[{index}]: {problem}", field="commands", remedy=remedy)

    def _packed(self, items: Mapping[int, CommandItem], skip_codes: Collection[int] = ()) -> dict[str, str]:
        """Return *items* as constants."""
        packed = command_array.pack(items, skip_on_exit_code=skip_codes)
        if len(packed) > command_array.MAX_BYTES:
            raise QarnotInvalidSpecError(
                f"commands has {len(packed):,} bytes when compressed, and {command_array.MAX_BYTES:,} fit in the "
                "constants of a Qarnot task",
                field="commands",
                remedy="Give a common command and items that differ in constants, make several arrays, or use "
                "QarnotRunTasksOperator.",
            )
        return command_array.as_constants(command_array.ITEMS, packed)

    def _count_items(self) -> int:
        self._items = self._items_of(self.commands, self.command)
        return len(self._items)

    # --- lineage

    def _describe_work(self, spec: Any) -> dict[str, Any]:
        items = parse_commands(self.commands)
        first = self._item(0, reveal_secrets(items[0]), self.command).words if items else ()
        return {"command": shlex.join(first), "items": len(items)}

    # --- submit a round

    def _given_now(self) -> dict[str, Any]:
        values = super()._given_now()
        # They are part of the fingerprint. Those of a round replace them.
        packed = self._packed(dict(enumerate(self._items)))
        return {**values, "constants": {**values["constants"], **packed, command_array.SCRIPT: ""}}

    def _spec(self, values: Mapping[str, Any], pool: str | None) -> TaskSpec:
        return super()._spec({"command": PLACEHOLDER, **values}, pool)

    def _of_items(self, spec: TaskSpec, items: Sequence[int], values: Mapping[str, Any]) -> TaskSpec:
        constants = {
            name: value
            for name, value in values["constants"].items()
            if not name.startswith(command_array.ITEMS)
        }
        constants |= self._packed({item: self._items[item] for item in items}, spec.skip_on_exit_code)
        constants |= command_array.runner(self._nonce, self._size(len(items)))
        made = super()._of_items(spec, items, {**values, "constants": constants})
        return made.with_values(command=command_array.COMMAND, return_file=False, skip_on_exit_code=())

    # --- the reports

    @property
    def _nonce(self) -> str:
        """Return a value that is the same in every try of a lineage, which may adopt the previous Qarnot task."""
        assert self._identity is not None
        return short_hash(["commands", self._identity.lineage], 32)

    @property
    def _mark(self) -> str:
        return f"{MARK}{self._nonce} "

    def _new_finder(self) -> ArrayFinder:
        codes = self._plain_spec.skip_on_exit_code
        return ArrayFinder(self._mark, partial(parse_command_report, skip_codes=codes))

    @property
    def _plain_spec(self) -> TaskSpec:
        return self._spec(self._given(), self._some_pool)

    def _lines_of(self, error: Mapping[str, str]) -> list[str]:
        return [error["summary"]]

    # --- the result

    def _results(self) -> Any:
        """Return the values in the order of the items, or the counts if the items return no values."""
        found = self._found
        if not self._plain_spec.return_file:
            skipped = len(found.skipped)
            return {"total": found.total, "succeeded": found.total - skipped, "failed": 0, "skipped": skipped}
        if found.size > MAX_VALUES:
            raise QarnotTaskFailedError(
                f"The values of the items have more than {MAX_VALUES:,} characters together",
                remedy="Write them to files, give result_bucket= and return their names.",
                kind="task",
            )
        return [json.loads(found.values.get(item, "null")) for item in range(found.total)]


__all__ = ["QarnotRunArrayOperator"]
