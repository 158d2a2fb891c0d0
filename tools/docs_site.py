"""Hooks of MkDocs: the reference, generated from the code, and the order of the pages.

A line ``::: some.module.Name`` of a page becomes the signature and docstring of a class or function, and a table of its
parameters with those it inherits; ``::: methods some.module.Name`` its public methods; ``::: record
some.module.Name`` its fields with their names in Qarnot's API; ``::: configuration`` and ``::: connection`` the tables
of the provider's metadata. A missing docstring is an error, and so is a parameter that is not documented.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_overloads

ROOT = Path(__file__).resolve().parent.parent
# Importing operators imports Airflow, which would make itself a home in that of the user.
os.environ.setdefault("AIRFLOW_HOME", str(ROOT / "build" / "airflow"))
#: Pages that live at the root of the repository, where people look for them.
AT_ROOT = {"contributing.md": "CONTRIBUTING.md", "security.md": "SECURITY.md", "changelog.md": "CHANGELOG.md"}
_DIRECTIVE = re.compile(r"^::: (?:(?P<how>methods|record) )?(?P<what>[\w.]+)$", re.M)
_FIELD = re.compile(
    r"(?:^[ \t]*|(?<=\. )):(?:param (?P<name>\w+)|(?P<other>raises \w+|returns?)):[ \t]*", re.M
)
#: The heading of a group of parameters, at the end of the text before them.
_GROUP = re.compile(r"(?:^|\n\n)([A-Z][\w ]*):\Z")
#: A link from a name to its module, which the site replaces with one to its entry.
_SOURCE = re.compile(r"\[(`(\w+)`[^\]]*)\]\(\.\./airflow_qarnot_pool/[\w/]+\.py\)")
#: Bases whose parameters are Airflow's business.
_FOREIGN = ("airflow.", "builtins", "abc", "typing")


class Undocumented(Exception):
    """A public class, function or parameter has no documentation."""


# --- Docstrings


@dataclass
class Doc:
    """A docstring, taken apart."""

    text: str
    parameters: dict[str, str] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)
    #: The heading above each parameter that has one.
    groups: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, thing: Any) -> Doc:
        raw = inspect.cleandoc(thing.__doc__ or "")
        found = list(_FIELD.finditer(raw))
        doc = cls("")
        group = doc._add_text(raw[: found[0].start()] if found else raw)
        for one, after in zip(found, [*found[1:], None], strict=False):
            said, _, more = raw[one.end() : after.start() if after else len(raw)].partition("\n\n")
            said = " ".join(said.split())
            if one["name"]:
                doc.parameters[one["name"]] = said
                if group:
                    doc.groups[one["name"]] = group
            else:
                doc.others[one["other"]] = said
            group = doc._add_text(more) or group
        return doc

    def _add_text(self, text: str) -> str | None:
        """Add *text* without the heading of a group at its end, and return that."""
        text = text.strip()
        heading = _GROUP.search(text)
        self.text = f"{self.text}\n\n{text[: heading.start()] if heading else text}".strip()
        return heading[1] if heading else None


def markdown(text: str) -> str:
    """reStructuredText as the docstrings use it, as Markdown."""
    text = re.sub(r"^Parameters besides these:.*?(?=\n\n|\Z)", "", text, flags=re.M | re.S)
    text = re.sub(
        r"\.\. code-block:: (\w+)\n\n((?:[ ]{4}.*\n|\n)+)",
        lambda found: f"```{found[1]}\n{textwrap.dedent(found[2]).strip()}\n```\n",
        text + "\n",
    )
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", text)
    return re.sub(r"(?<!`)``(?!`)", "`", text).strip()


def _cell(text: str) -> str:
    # A pipe between backticks is no separator, and a backslash would be shown there.
    parts = " ".join(markdown(text).split()).split("`")
    return "`".join(part if n % 2 else part.replace("|", "\\|") for n, part in enumerate(parts))


# --- Classes and functions


def _bases(thing: Any) -> Iterator[Any]:
    """The thing itself and the bases that are this project's."""
    if not inspect.isclass(thing):
        yield thing
        return
    for cls in thing.__mro__:
        if not cls.__module__.startswith(_FOREIGN):
            yield cls


def parameters(thing: Any) -> dict[str, inspect.Parameter]:
    """Return the parameters of ours that *thing* takes, its own first. Those of all overloads count."""
    found: dict[str, inspect.Parameter] = {}
    rejected = getattr(thing, "rejected_parameters", {})
    overloads = [] if inspect.isclass(thing) else get_overloads(thing)
    for one in overloads or _bases(thing):
        function = vars(one).get("__init__") if inspect.isclass(one) else one
        if function is None:
            continue
        for name, parameter in inspect.signature(function).parameters.items():
            if name not in ("self", *rejected) and parameter.kind not in (
                parameter.VAR_KEYWORD,
                parameter.VAR_POSITIONAL,
            ):
                found.setdefault(name, parameter)
    return found


def meanings(thing: Any) -> dict[str, str]:
    """Return the description of each parameter, from the nearest docstring."""
    said: dict[str, str] = {}
    for one in _bases(thing):
        said = {**Doc.of(one).parameters, **said}
    return said


def groups(thing: Any) -> dict[str, str]:
    """Return the heading above each parameter, from the nearest docstring that has one."""
    found: dict[str, str] = {}
    for one in _bases(thing):
        found = {**Doc.of(one).groups, **found}
    return found


def _rows(thing: Any) -> list[str]:
    """Return the rows of the table of parameters, by group: those without one, the thing's own, the inherited."""
    said, templated, grouped = meanings(thing), getattr(thing, "template_fields", ()), groups(thing)
    given = parameters(thing)
    rows = []
    for group in dict.fromkeys(["", *(grouped[name] for name in given if name in grouped)]):
        if group:
            rows.append(f"| **{group}** | | |")
        rows += [
            f"| `{name}`{' †' if name in templated else ''} | {_cell(_type_and_default(one))} | {_cell(said[name])} |"
            for name, one in given.items()
            if grouped.get(name, "") == group
        ]
    rest = [name for name in said if name not in given]
    rows += [f"| *{name}* | | {_cell(said[name])} |" for name in rest if inspect.isclass(thing)]
    return rows


def undocumented(thing: Any) -> list[str]:
    """Parameters that no docstring speaks of."""
    said = meanings(thing)
    return [name for name in parameters(thing) if not said.get(name)]


def _type_and_default(parameter: inspect.Parameter) -> str:
    kind = "" if parameter.annotation is parameter.empty else str(parameter.annotation)
    if parameter.default is parameter.empty:
        return f"`{kind}`, required"
    default = "None" if parameter.default is None else repr(parameter.default)
    default = re.sub(r"datetime\.timedelta\((.*)\)", r"timedelta(\1)", default)
    return f"`{kind} = {default}`"


def entry(thing: Any) -> str:
    """The reference of a class or function."""
    doc = Doc.of(thing)
    if not doc.text:
        raise Undocumented(f"{thing.__module__}.{thing.__qualname__} has no docstring")
    if missing := undocumented(thing):
        raise Undocumented(f"{thing.__module__}.{thing.__qualname__}: {', '.join(missing)} without :param:")
    lines = [
        f"### {thing.__name__}",
        f"`from {thing.__module__} import {thing.__name__}`",
        markdown(doc.text),
    ]
    if rows := _rows(thing):
        lines.append("\n".join(["| Parameter | Type and default | Meaning |", "|---|---|---|", *rows]))
    for name, meaning in doc.others.items():
        lines.append(f"*{name[0].upper()}{name[1:]}*: {markdown(meaning)}")
    return "\n\n".join(lines)


def methods(cls: type) -> str:
    """The public methods of a class, those of its bases of this project included."""
    lines = [
        f"### {cls.__name__}",
        f"`from {cls.__module__} import {cls.__name__}`",
        markdown(Doc.of(cls).text),
    ]
    seen: set[str] = set()
    for one in _bases(cls):
        for name, method in vars(one).items():
            function = method.__func__ if isinstance(method, (classmethod, staticmethod)) else method
            if name.startswith("_") or name in seen or not inspect.isfunction(function):
                continue
            seen.add(name)
            doc = Doc.of(function)
            if not doc.text:
                raise Undocumented(f"{cls.__module__}.{cls.__name__}.{name} has no docstring")
            given = [
                str(p)
                for p in inspect.signature(function).parameters.values()
                if p.name not in ("self", "cls")
            ]
            lines.append(f"`{name}({', '.join(given)})`\n:   {' '.join(markdown(doc.text).split())}")
    return "\n\n".join(lines)


def record(cls: Any) -> str:
    """Return the fields of a part of a specification, with their names in the API."""
    from dataclasses import MISSING, fields

    rows = []
    for one in fields(cls):
        default = one.default_factory() if one.default_factory is not MISSING else one.default
        shown = "required" if default is MISSING else "" if default in (None, (), {}) else f"`{default}`"
        kind = f"`{one.type}`"
        rows.append(f"| `{one.name}` | {kind} | {shown} | `{one.metadata['wire'].name or 'constants'}` |")
    table = "\n".join(["| Field | Type | Default | In the API |", "|---|---|---|---|", *rows])
    where = f"`from {cls.__module__} import {cls.__name__}`"
    return "\n\n".join([f"### {cls.__name__}", where, markdown(Doc.of(cls).text), table])


# --- Tables of the metadata


def configuration() -> str:
    """Options of the ``[qarnot]`` section of airflow.cfg."""
    from airflow_qarnot_pool.get_provider_info import get_provider_info

    options = get_provider_info()["config"]["qarnot"]["options"]
    rows = [
        f"| `{name}` | `{one['default'] or ''}` | `AIRFLOW__QARNOT__{name.upper()}` | {_cell(one['description'])} |"
        for name, one in options.items()
    ]
    return "\n".join(
        ["| Option | Default | In the environment | Meaning |", "|---|---|---|---|", *rows]
    ).replace("``", "")


def connection() -> str:
    """Fields of the connection."""
    from airflow_qarnot_pool.hooks import connection_form

    rows = [
        "| API token | `password` | The token of your Qarnot account. |",
        f"| API URL | `host` | Default `{connection_form.DEFAULT_API_URL}`. |",
        *(
            f"| {one.label} | `extra.{one.name}` | {_cell(one.description)} |"
            for one in connection_form.FIELDS
        ),
    ]
    return "\n".join(["| Field | In JSON | Meaning |", "|---|---|---|", *rows])


def expand(text: str) -> str:
    """A page with its directives carried out."""

    def one(found: re.Match[str]) -> str:
        if found["what"] in ("configuration", "connection"):
            return str(globals()[found["what"]]())
        module, _, name = found["what"].rpartition(".")
        thing = getattr(importlib.import_module(module), name)
        return {"methods": methods, "record": record, None: entry}[found["how"]](thing)

    return _DIRECTIVE.sub(one, text)


# --- hooks of MkDocs


def on_config(config: Any) -> Any:
    """Append pages that the navigation does not name, because each page must be reachable."""
    named = set(re.findall(r"[\w/-]+\.md", repr(config["nav"])))
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    rest = sorted(pages - named)
    if rest:
        config["nav"] = [*config["nav"], {"More": rest}]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Pages of the repository's root."""
    from mkdocs.structure.files import File

    for page, source in AT_ROOT.items():
        if (ROOT / source).exists():
            text = (ROOT / source).read_text().replace("](docs/", "](")
            files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill the reference, and link to the site's copies of CONTRIBUTING.md and of the docstrings."""
    markdown = _SOURCE.sub(lambda found: f"[{found[1]}](#{found[2].lower()})", markdown)
    return expand(markdown).replace("](../CONTRIBUTING.md", "](contributing.md")
