"""Get the source of a function that runs on a node, and check that it can run there.

Only the function is sent to the node, without its module and the functions around it. A function that would fail on the
node for that reason is refused when the DAG is parsed. An unclear case is accepted.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import symtable
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError

_BUILTINS = frozenset(dir(builtins))


@dataclass(frozen=True, kw_only=True)
class FunctionSource:
    """A function as text. ``source`` starts at ``def`` and keeps its indentation, because strings may span lines.

    ``line`` is that of the ``def`` in the file. It is not sent, because a retry would no longer recognize the call if
    lines above the function are added.
    """

    name: str
    source: str
    file: str
    line: int = 1

    @classmethod
    def of(cls, function: Callable[..., Any]) -> FunctionSource:
        """Return the source of *function*, without decorators.

        :raises QarnotInvalidSpecError: the function cannot run on a node.
        """
        name = getattr(function, "__name__", type(function).__name__)
        if not inspect.isfunction(function):
            raise _refusal(name, f"is {_article(function)}", "Give a plain function")
        if name == "<lambda>":
            raise _refusal(
                name, "is a lambda, whose source cannot be determined from its line", "Write it with def"
            )
        if hasattr(function, "__wrapped__"):
            raise _refusal(
                name,
                "is wrapped by another decorator, which cannot travel to the node",
                "Call inside it what that decorator does",
            )
        # A function that calls itself is also found on the node.
        if enclosed := [variable for variable in function.__code__.co_freevars if variable != name]:
            raise _refusal(
                name,
                f"uses {_list(enclosed)} of the function around it, and only its own "
                "source travels to the node",
                "Pass the values as arguments",
            )
        try:
            lines, first = inspect.getsourcelines(function)
        except (OSError, TypeError) as error:
            raise _refusal(
                name, f"has no source that could be sent ({error})", "Define it in the DAG file or a module"
            ) from None
        source, offset = _definition(name, lines)
        file = PurePath(function.__code__.co_filename).name
        function_source = cls(name=name, source=source, file=file, line=first + offset)
        if missing := function_source.missing_names():
            raise _refusal(
                name,
                f"uses {_list(missing)} from outside of itself, and only its own source travels to the node",
                "Import inside the function, and pass other values as arguments",
            )
        return function_source

    def missing_names(self) -> list[str]:
        """Return the names that are neither defined in the function nor builtins. Annotations do not count."""
        tree = _Unannotated().visit(_parsed(self.source))
        table = symtable.symtable(ast.unparse(ast.fix_missing_locations(tree)), self.file, "exec")
        assigned = {self.name}
        used: set[str] = set()
        for scope in _scopes(table):
            for symbol in scope.get_symbols():
                # The outermost scope is the module, in which the function's defaults are evaluated.
                outer = scope is table or symbol.is_global()
                if outer and (symbol.is_assigned() or symbol.is_imported()):
                    assigned.add(symbol.get_name())
                if outer and symbol.is_referenced():
                    used.add(symbol.get_name())
        return sorted(name for name in used - assigned - _BUILTINS if not name.startswith("__"))

    def imported_modules(self) -> list[str]:
        """Return the top-level modules that the function imports, without those that it can do without."""
        found: set[str] = set()
        pending: list[ast.AST] = [_parsed(self.source)]
        while pending:
            node = pending.pop()
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
            elif not isinstance(node, ast.Try):
                pending += ast.iter_child_nodes(node)
        return sorted(found)

    def with_lines_of_file(self, trace: str) -> str:
        """Return a traceback of the node, which counts lines from the ``def``, with the lines of the file."""
        place = re.compile(rf'^([\s|+]*File "{re.escape(self.file)}", line )(\d+)', re.MULTILINE | re.ASCII)
        return place.sub(lambda match: f"{match[1]}{int(match[2]) + self.line - 1}", trace)

    def to_json(self) -> dict[str, str]:
        """Return what the node gets."""
        return {"name": self.name, "source": self.source, "file": self.file}


class _Unannotated(ast.NodeTransformer):
    """Removes annotations, which are not evaluated on the node."""

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)


def _definition(name: str, lines: list[str]) -> tuple[str, int]:
    """Return the lines of the function from its ``def`` on, and the number of lines before that."""
    node = _parsed("".join(lines)).body[0]
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        raise _refusal(name, "has no separate source", "Write it with def")
    # Decorators are before the line of the def.
    before = node.lineno - 1
    return "".join(lines[before : node.end_lineno]).rstrip() + "\n", before


def _parsed(source: str) -> ast.Module:
    """Return the tree of *source*, which may be indented. Its lines count from 1."""
    if not source[:1].isspace():
        return ast.parse(source)
    tree = ast.increment_lineno(ast.parse("if True:\n" + source), -1)
    inner = tree.body[0]
    assert isinstance(inner, ast.If)
    return ast.Module(body=inner.body, type_ignores=[])


def _scopes(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    yield table
    for child in table.get_children():
        yield from _scopes(child)


def _article(value: Any) -> str:
    kind = (
        "class" if inspect.isclass(value) else "method" if inspect.ismethod(value) else type(value).__name__
    )
    return f"a {kind} and no function"


def _list(names: Any) -> str:
    return ", ".join(repr(name) for name in names)


def _refusal(name: str, problem: str, advice: str) -> QarnotInvalidSpecError:
    return QarnotInvalidSpecError(
        f"@task.qarnot: {name} {problem}. {advice}", field="python_callable", kind="function", ref=name
    )
