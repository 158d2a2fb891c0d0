"""The reference: tables of parameters from the code, between marks on the pages of docs/.

``python -m tools.reference`` writes them, and ``--check`` says which are old. The text between
``<!-- ::: some.module.Name -->`` and ``<!-- end of ::: some.module.Name -->`` is docstring and parameters of a class or
function, with those it inherits. ``::: methods some.module.Name`` are its public methods. ``::: operators``,
``::: sensors``, ``::: watchers``, ``::: specifications``, ``::: connection``, ``::: configuration``, ``::: executor``,
``::: commands`` and ``contents`` are lists. A missing docstring is an error, and so is a parameter without a
description or an example.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

from tools import doc_block, examples
from tools.docstrings import (
    Doc,
    Undocumented,
    bases,
    first_sentence,
    groups,
    markdown,
    meanings,
    parameters,
    undocumented,
)

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
# Importing operators imports Airflow, which would make itself a home in that of the user.
os.environ.setdefault("AIRFLOW_HOME", str(ROOT / "build" / "airflow"))
#: Their blocks are generated.
PAGES = (DOCS / "reference.md", DOCS / "reference-client.md")
_MARK = re.compile(r"^<!-- (::: (?P<words>[\w. ]+)) -->$", re.M)
#: A page that a docstring names.
_PAGE = re.compile(r"`?\bdocs/([\w-]+)\.md`?")
_COLUMNS = ("Type and unit", "Default", "Example", "Meaning")
#: A thing that hands other parameters on, and the class that takes them.
_HANDS_ON = {
    "QarnotPoolGroup": "airflow_qarnot_pool.operators.create_pool.QarnotCreatePoolOperator",
    "qarnot_task": "airflow_qarnot_pool.decorators.array._QarnotArrayOperator",
}
#: Parameters of that class which are set for it.
_SET = ("op_args", "op_kwargs", "array_names", "python_callable", "wait_for_completion")
#: Parameters that an operator takes and decides by itself.
_DECIDED = {("QarnotClosePoolOperator", "cancel_on_kill")}
#: Operators in the order in which a reader meets them. Others follow.
_ORDER = [
    f"Qarnot{name}Operator"
    for name in ("RunTask", "RunTasks", "RunArray", "CreatePool", "UpdatePool", "ClosePool")
]
#: Types that have a name in the code only.
_TYPES = {
    "Duration": "timedelta | float",
    "payload.Serializer": "'json' | 'pickle'",
    "Sequence[GroupBy]": "Sequence['dag' | 'task' | 'tag']",
    "Sequence[Period]": "Sequence[AlwaysPeriod | WeeklyPeriod]",
    "Sequence[Policy]": "Sequence[ManagedTasksQueuePolicy | FixedPolicy]",
    "qarnot_pool": "str | XComArg",
    "qarnot_task": "str | XComArg",
    "commands": "list[str] | list[dict] | XComArg",
    "value": "list | XComArg",
}


def load(name: str) -> Any:
    """Return the class or function of a full name."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


# --- Cells


def _cell(text: str) -> str:
    """Return *text* for a cell of a table.

    Renderers disagree on a pipe inside backticks: for some it ends the cell, and others would show a backslash.
    """
    parts = " ".join(markdown(text).split()).split("`")
    for n, part in enumerate(parts):
        if "|" in part:
            code = part.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;")
            parts[n] = f"<code>{code}</code>" if n % 2 else code
        elif n % 2:
            parts[n] = f"`{part}`"
    return "".join(parts)


def _row(*cells: str) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _table(head: Iterable[str], rows: Iterable[str]) -> str:
    names = list(head)
    return "\n".join([f"| {' | '.join(names)} |", "|" + "---|" * len(names), *rows])


def _prose(text: str) -> str:
    """Return the text of a docstring as Markdown, with links to the pages that it names."""

    def link(found: re.Match[str]) -> str:
        title = (DOCS / f"{found[1]}.md").read_text().partition("\n")[0].removeprefix("# ")
        return f"[{title}]({found[1]}.md)"

    return _PAGE.sub(link, markdown(text))


def kind_of(written: str, unit: str | None = None, *, none: bool = False, text: bool = True) -> str:
    """Return a type as Markdown, with the unit of its numbers.

    :param none: whether ``None`` goes without saying.
    :param text: whether ``str`` after a number is more than the place of a template.
    """
    options = [inner for one in _split_union(written) for inner in _split_union(_TYPES.get(one, one))]
    if not text and options[0] in ("int", "float", "bool"):
        options = [one for one in options if one != "str"]
    shown = [_linked(one) for one in options if one != "None" or not none]
    unit = "s" if {"timedelta", "float"} <= {*options} else unit
    return " or ".join(shown) + (f", {unit}" if unit else "")


def _linked(kind: str) -> str:
    """Return a type with links to the classes in it that are on the page."""
    known = {cls.__name__ for cls in specifications()} | {"QarnotEnvironment"}
    if kind in known:
        return f"[`{kind}`](#{kind.lower()})"
    links = [f"[{name}](#{name.lower()})" for name in re.findall(r"\w+", kind) if name in known]
    return f"`{kind}`" + (f" ({', '.join(links)})" if links else "")


def _split_union(written: str) -> list[str]:
    """Split a type at the pipes that are outside of brackets."""
    parts, depth = [""], 0
    for letter in written:
        depth += (letter in "[(") - (letter in "])")
        if letter == "|" and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def _default(parameter: inspect.Parameter) -> str:
    return "required" if parameter.default is parameter.empty else _shown(parameter.default)


def _shown(value: Any) -> str:
    """Return a default as in a DAG file, as Markdown."""
    if repr(value) == "NOTSET":
        return "omitted"
    if value in ((), {}):
        return "none"
    if isinstance(value, tuple):
        return _shown([*value])
    if isinstance(value, timedelta):
        return f"`{_shown_duration(value)}`"
    return f'`"{value}"`' if isinstance(value, str) else "`" + repr(value).replace("'", '"') + "`"


def _shown_duration(value: timedelta) -> str:
    for unit, seconds in {"days": 86400, "hours": 3600, "minutes": 60, "seconds": 1}.items():
        number, rest = divmod(value.total_seconds(), seconds)
        if number and not rest:
            return f"timedelta({unit}={number:.0f})"
    return repr(value)


# --- Classes and functions


def all_parameters(thing: Any) -> dict[str, tuple[inspect.Parameter, Any]]:
    """Return what the author of a DAG can write: each parameter of *thing*, or one it hands on, with its owner."""
    given = {
        name: (one, thing)
        for name, one in parameters(thing).items()
        if (thing.__name__, name) not in _DECIDED
    }
    if other := _takes_rest(thing):
        given |= {
            name: (one, other) for name, one in parameters(other).items() if name not in (*given, *_SET)
        }
    return given


def _takes_rest(thing: Any) -> Any:
    """Return the class that *thing* hands other parameters on to, or None."""
    return load(_HANDS_ON[thing.__name__]) if thing.__name__ in _HANDS_ON else None


def _rows(thing: Any) -> list[str]:
    """Return the rows of the table of parameters, by group: those without one, the thing's own, the inherited."""
    rows: dict[str, list[str]] = {"": []}
    templated = getattr(_takes_rest(thing) or thing, "template_fields", ())
    for name, (one, owner) in all_parameters(thing).items():
        example = examples.example(thing.__name__, name)
        if example is None:
            raise Undocumented(f"{thing.__name__}.{name} has no example in tools/examples.py")
        kind = kind_of(
            _TYPES.get(name, "" if one.annotation is one.empty else str(one.annotation)),
            examples.find(examples.UNITS, thing.__name__, name),
            none=one.default is None,
            text=name not in templated,
        )
        mark = " †" if name in templated else ""
        row = _row(f"`{name}`{mark}", kind, _default(one), f"`{example}`", _prose(meanings(owner)[name]))
        rows.setdefault(groups(owner).get(name, ""), []).append(row)
    return [
        row
        for group, found in rows.items()
        for row in ([f"| **{group}** | | | | |"] if group else []) + found
    ]


def entry(thing: Any) -> str:
    """Return the reference of a class or function."""
    doc = Doc.of(thing)
    if not doc.text:
        raise Undocumented(f"{thing.__module__}.{thing.__qualname__} has no docstring")
    if missing := undocumented(thing):
        raise Undocumented(f"{thing.__module__}.{thing.__qualname__}: {', '.join(missing)} without :param:")
    lines = [
        f"### {thing.__name__}",
        f"`from {import_place(thing)} import {thing.__name__}`",
        _prose(doc.text),
    ]
    if rows := _rows(thing):
        lines.append(_table(("Parameter", *_COLUMNS), rows))
    if not _takes_rest(thing):
        rest = {name: said for name, said in doc.parameters.items() if name not in parameters(thing)}
        doc.others = {**rest, **doc.others}
    for name, meaning in doc.others.items():
        lines.append(f"*{name[0].upper()}{name[1:]}*: {_prose(meaning)}")
    return "\n\n".join(lines)


def import_place(thing: Any) -> str:
    """Return the module that DAGs import *thing* from."""
    if thing in specifications():
        return "airflow_qarnot_pool.api.specs"
    package = thing.__module__.rpartition(".")[0]
    if getattr(importlib.import_module(package), thing.__name__, None) is thing:
        return package
    return next((place for place, one in _listed() if one is thing), thing.__module__)


def methods(cls: type) -> str:
    """Return the public methods of a class, those of its bases of this project included."""
    rows: dict[str, str] = {}
    for one in bases(cls):
        for name, method in vars(one).items():
            function = method.__func__ if isinstance(method, (classmethod, staticmethod)) else method
            if name.startswith("_") or name in rows or not inspect.isfunction(function):
                continue
            if not function.__doc__:
                raise Undocumented(f"{cls.__module__}.{cls.__name__}.{name} has no docstring")
            rows[name] = _row(f"`{name}{_signature(function)}`", _prose(Doc.of(function).text))
    return "\n\n".join(
        [
            f"### {cls.__name__}",
            f"`from {cls.__module__} import {cls.__name__}`",
            _prose(Doc.of(cls).text),
            _table(("Method", "Meaning"), rows.values()),
        ]
    )


def _signature(function: Any) -> str:
    """Return the parameters of a function, with their types as in the source."""
    signature = inspect.signature(function)
    given = [one for one in signature.parameters.values() if one.name not in ("self", "cls")]
    shown = str(signature.replace(parameters=given, return_annotation=inspect.Signature.empty))
    return re.sub(r""": (['"])(.*?)\1(?=[,)]| =)""", r": \2", shown).replace("'", '"')


# --- Specifications


def record(cls: Any) -> str:
    """Return the fields of a specification or of a part of one, with their names in the API."""
    rows = [_field_row(cls, one) for one in fields(cls)]
    parts = [
        f"### {cls.__name__}",
        f"`from {import_place(cls)} import {cls.__name__}`",
        _prose(Doc.of(cls).text),
        _table(("Field", *_COLUMNS), rows),
    ]
    if makers := [
        _row(f"`{cls.__name__}.{name}{_signature(maker.__func__)}`", _prose(maker.__func__.__doc__))
        for name, maker in vars(cls).items()
        if isinstance(maker, classmethod) and not name.startswith(("from_", "_")) and name != "of"
    ]:
        parts.append(_table(("Class method", "Meaning"), makers))
    return "\n\n".join(parts)


def _field_row(cls: Any, one: Any) -> str:
    said, example = meanings(cls).get(one.name), examples.example_of_field(cls.__name__, one.name)
    if said is None or example is None:
        problem = "example in tools/examples.py" if said else ":param:"
        raise Undocumented(f"{cls.__name__}.{one.name} has no {problem}")
    default = one.default_factory() if one.default_factory is not MISSING else one.default
    wire = one.metadata["wire"].name
    unit = examples.find(examples.UNITS, cls.__name__, one.name)
    return _row(
        f"`{one.name}`" + (f"<br>`{wire}`" if wire not in (None, one.name) else ""),
        kind_of(str(one.type).replace("timedelta", "Duration"), unit, none=True),
        "required" if default is MISSING else _shown(default),
        f"`{example}`",
        _prose(said),
    )


def specifications() -> list[Any]:
    """Return the specifications, the two of pools and tasks first."""
    from airflow_qarnot_pool.api import specs
    from airflow_qarnot_pool.api.fields import Record

    found = [vars(specs)[name] for name in specs.__all__]
    found = [one for one in found if inspect.isclass(one) and issubclass(one, Record)]
    return sorted(found, key=lambda cls: cls not in (specs.PoolSpec, specs.TaskSpec))


# --- Lists of what there is


def _listed() -> list[tuple[str, Any]]:
    """Return the operators, sensors and triggers of the provider, with the modules that DAGs import them from."""
    from airflow_qarnot_pool.get_provider_info import get_provider_info

    info, found = get_provider_info(), []
    for entry in [*info["operators"], *info["sensors"], *info["triggers"]]:
        for module in map(importlib.import_module, entry["python-modules"]):
            found += [
                (module.__name__, thing)
                for name, thing in vars(module).items()
                if inspect.isclass(thing)
                and name[0] != "_"
                and (thing.__module__ == module.__name__ or name in getattr(module, "__all__", ()))
            ]
    return found


def operators() -> list[Any]:
    """Return the operators."""
    found = [thing for module, thing in _listed() if ".operators." in module]
    return sorted(found, key=lambda thing: (*_ORDER, thing.__name__).index(thing.__name__))


def sensors() -> list[Any]:
    """Return the sensors."""
    return [thing for module, thing in _listed() if ".sensors." in module]


def watchers() -> list[Any]:
    """Return the triggers for an ``AssetWatcher``."""
    return [thing for module, thing in _listed() if module.endswith("_watcher")]


def configuration() -> str:
    """Return the options of the ``[qarnot]`` section of airflow.cfg."""
    return _options_of("qarnot")


def executor() -> str:
    """Return the options of the ``[qarnot_executor]`` section of airflow.cfg."""
    return _options_of("qarnot_executor")


def _options_of(section: str) -> str:
    from airflow_qarnot_pool.get_provider_info import get_provider_info

    rows = [
        _row(
            f"`{name}`<br>`AIRFLOW__{section.upper()}__{name.upper()}`",
            f"`{one['type']}`",
            f"`{one['default']}`" if one["default"] else "none",
            f"`{one['example'] if section != 'qarnot' and one['example'] else examples.setting(name)}`",
            one["description"],
        )
        for name, one in get_provider_info()["config"][section]["options"].items()
    ]
    return _table(("Option, and in the environment", "Type", *_COLUMNS[1:]), rows)


def connection() -> str:
    """Return the fields of the connection."""
    from airflow_qarnot_pool.hooks import connection_form
    from airflow_qarnot_pool.hooks.connection_settings import ConnectionSettings

    defaults = {one.name: one.default for one in fields(ConnectionSettings)}
    rows = [
        _row("API token", "`password`", "`string`", "required", "`5e1f...`", "Token of the Qarnot account."),
        _row(
            "API URL",
            "`host`",
            "`string`",
            f"`{connection_form.DEFAULT_API_URL}`",
            "`http://127.0.0.1:8600`",
            "Address of the API.",
        ),
    ]
    for one in connection_form.FIELDS:
        default = one.default if one.default is not None else defaults.get(one.name, MISSING)
        rows.append(
            _row(
                one.label,
                f"`extra.{one.name}`",
                f"`{one.type}`",
                "none" if default in (None, MISSING) else f"`{str(default).lower()}`",
                f"`{examples.setting(one.name)}`",
                one.description,
            )
        )
    return _table(("Field", "In JSON", "Type", *_COLUMNS[1:]), rows)


def commands() -> str:
    """Return the subcommands of ``airflow qarnot``, with their options."""
    from airflow_qarnot_pool.cli import get_cli_commands

    parts = []
    for words, command in flat_commands(get_cli_commands()):
        rows = []
        for arg in command.args:
            about = {"help": "", "default": "", **arg.kwargs}
            default = f"`{about['default']}`" if about["default"] not in ("", None) else "none"
            rows.append(_row(", ".join(f"`{flag}`" for flag in arg.flags), default, _prose(about["help"])))
        parts += [f"### airflow {' '.join(words)}", f"{_prose(command.help)}."]
        parts += [_table(("Option", "Default", "Meaning"), rows)] if rows else []
    return "\n\n".join(parts)


def flat_commands(commands: Iterable[Any], *above: str) -> Iterable[tuple[tuple[str, ...], Any]]:
    """Yield the words of each command, and the command, whatever groups it is in."""
    for command in commands:
        if hasattr(command, "subcommands"):
            yield from flat_commands(command.subcommands, *above, command.name)
        else:
            yield (*above, command.name), command


def contents(page: str) -> str:
    """Return the names on a page, with the modules that DAGs import them from."""
    rows = [
        _row(
            f"[`{thing.__name__}`](#{thing.__name__.lower()})",
            f"`{import_place(thing)}`",
            first_sentence(Doc.of(thing).text),
        )
        for mark in _MARK.finditer(page)
        for thing in _things(mark["words"])
    ]
    return _table(("Name", "Import from", "Purpose"), rows)


# --- The pages


def _things(words: str) -> list[Any]:
    """Return the classes and functions of a mark."""
    lists: dict[str, Callable[[], list[Any]]] = {
        "operators": operators,
        "sensors": sensors,
        "watchers": watchers,
        "specifications": specifications,
    }
    if words in lists:
        return lists[words]()
    name = words.rpartition(" ")[2]
    return [load(name)] if "." in name else []


def block(words: str, page: str) -> str:
    """Return the text of a mark."""
    if words in ("configuration", "executor", "connection", "commands"):
        return str(globals()[words]())
    if words == "contents":
        return contents(page)
    how = methods if words.startswith("methods ") else record if words == "specifications" else entry
    return "\n\n".join(map(how, _things(words)))


def blocks(page: str) -> dict[str, str]:
    """Return the names and texts of all marks of a page."""
    return {mark[1]: block(mark["words"], page) for mark in _MARK.finditer(page)}


def old(path: Path) -> list[str]:
    """Return the marks of a page whose text is not that of the code."""
    return [
        name for name, text in blocks(path.read_text()).items() if doc_block.read(path, name) != text.strip()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.reference", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, and fail if a page is old")
    if parser.parse_args().check:
        if found := [f"{path.relative_to(ROOT)}: {name}" for path in PAGES for name in old(path)]:
            sys.exit("\n".join([*found, "Run `python -m tools.reference`."]))
        return
    for path in PAGES:
        for name, text in blocks(path.read_text()).items():
            doc_block.write(path, name, text)


if __name__ == "__main__":
    main()
