"""Docstrings and signatures, taken apart: the parameters of a class with those it inherits, and their descriptions."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, get_overloads

_FIELD = re.compile(
    r"(?:^[ \t]*|(?<=\. )):(?:param (?P<name>\w+)|(?P<other>raises \w+|returns?)):[ \t]*", re.M
)
#: The heading of a group of parameters, at the end of the text before them.
_GROUP = re.compile(r"(?:^|\n\n)([A-Z][\w ]*):\Z")
#: Bases whose parameters are Airflow's business.
_FOREIGN = ("airflow.", "builtins", "abc", "typing")


class Undocumented(Exception):
    """A public class, function or parameter has no documentation."""


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


def first_sentence(text: str) -> str:
    """Return the first sentence of a docstring, as Markdown."""
    return markdown(re.split(r"(?<=[.:])\s+(?=[A-Z])|\n\n", text)[0])


def markdown(text: str) -> str:
    """reStructuredText as the docstrings use it, as Markdown. Examples are parts of DAGs, which cannot run alone."""
    text = re.sub(r"^Parameters besides these:.*?(?=\n\n|\Z)", "", text, flags=re.M | re.S)
    text = re.sub(
        r"\.\. code-block:: (\w+)\n\n((?:[ ]{4}.*\n|\n)+)",
        lambda found: f"<!-- test: excerpt -->\n```{found[1]}\n{textwrap.dedent(found[2]).strip()}\n```\n",
        text + "\n",
    )
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", text)
    return re.sub(r"(?<!`)``(?!`)", "`", text).strip()


def bases(thing: Any) -> Iterator[Any]:
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
    for one in overloads or bases(thing):
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
    for one in bases(thing):
        said = {**Doc.of(one).parameters, **said}
    return said


def groups(thing: Any) -> dict[str, str]:
    """Return the heading above each parameter, from the nearest docstring that has one."""
    found: dict[str, str] = {}
    for one in bases(thing):
        found = {**Doc.of(one).groups, **found}
    return found


def undocumented(thing: Any) -> list[str]:
    """Parameters that no docstring speaks of."""
    said = meanings(thing)
    return [name for name in parameters(thing) if not said.get(name)]
