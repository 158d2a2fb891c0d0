"""Print the figures by which the shape of the code and its prose are judged.

Lines, loose modules, class names in two modules, functions over the complexity limit, docstrings that do not start with
a verb, named parameters, and turns of phrase that make prose hard to read, per 1,000 words.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import subprocess
import sys
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "airflow_qarnot_pool"
#: Maximum cyclomatic complexity of a function.
MAX_COMPLEXITY = 12
#: Phrases that are counted. See "Prose" in CONTRIBUTING.md.
PHRASES = re.compile(
    "|".join(
        (
            r"\b(?:whoever|somebody|nobody|everybody|anybody)\b",
            r"\bwhat (?:is|was|are|it|they|he|has|had|runs|ran|came|comes|cannot|may|must|holds|reached)\b",
            r"\bwhat (?:an?|the|this|that|others|somebody|no)\b",
            r"\bwhere (?:it|that|there|nothing|nobody|none|one|the|they|no|this|he|Airflow|Qarnot|all|several|not)\b",
            r"\bso that\b",
            r"\bof (?:its|their|our|one's|his) own\b",
            r"\bby (?:itself|themselves)\b",
            r"\b(?:is|are|was) over\b",
            r"\b(?:a|one|first|next|each|the|two|this|every|another|later|earlier|newest|quick|third) looks?\b",
            r"\b(?:come by|came by|take[sn]? up|took up)\b",
            r"\bleft (?:alone|on)\b",
            r"\b(?:begun|begin|begins|began)\b",
        )
    ),
    re.IGNORECASE,
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.figures", description=__doc__)
    parser.add_argument(
        "paths", nargs="*", type=Path, help="files or folders whose prose is shown line by line"
    )
    paths = parser.parse_args().paths
    if paths:
        for path in paths:
            print(prose(path, show=True))
        return
    modules = [path for path in PACKAGE.glob("*.py") if path.name != "__init__.py"]
    lines = sum(
        len(path.read_text().splitlines())
        for path in PACKAGE.rglob("*.py")
        if PACKAGE / "local" not in path.parents
    )
    print(f"lines without local/: {lines:,}")
    print(f"loose modules in the package root: {len(modules)}")
    for name, places in sorted(repeated_classes().items()):
        print(f"class {name} in {', '.join(places)}")
    print(f"functions with a complexity over {MAX_COMPLEXITY} (ruff): {violations('C901')}")
    print(f"functions with a complexity over {MAX_COMPLEXITY} (radon): {complex_functions()}")
    print(f"docstrings that do not start with a verb (D401): {violations('D401')}")
    for name, count in named_parameters().items():
        print(f"named parameters of {name}: {count}")
    for root in (PACKAGE, ROOT / "docs", ROOT / "README.md"):
        print(prose(root))


def named_parameters() -> dict[str, int]:
    """Return how many parameters of this provider the author of a DAG can give to an operator, group or decorator."""
    from airflow_qarnot_pool.decorators.qarnot import qarnot_task
    from airflow_qarnot_pool.operators.array import QarnotRunArrayOperator
    from airflow_qarnot_pool.operators.pool import QarnotCreatePoolOperator
    from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
    from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator
    from tools.docstrings import parameters

    things = {
        "QarnotRunTaskOperator": QarnotRunTaskOperator,
        "QarnotRunTasksOperator": QarnotRunTasksOperator,
        "QarnotRunArrayOperator": QarnotRunArrayOperator,
        "QarnotCreatePoolOperator": QarnotCreatePoolOperator,
        "@task.qarnot": qarnot_task,
    }
    return {name: len(parameters(thing).keys() - {"python_callable"}) for name, thing in things.items()}


def repeated_classes() -> dict[str, list[str]]:
    """Return the names of classes that are defined in more than one module, with these modules."""
    places = defaultdict(set)
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                places[node.name].add(path.relative_to(PACKAGE).as_posix())
    return {name: sorted(modules) for name, modules in places.items() if len(modules) > 1}


def complex_functions() -> str:
    """Return number and names of the functions that radon, which also counts boolean operators, finds complex."""
    try:
        from radon.complexity import cc_visit
    except ImportError:
        return "not counted, because radon is not installed"
    blocks = [
        (block.complexity, f"{path.relative_to(PACKAGE)}:{block.name}")
        for path in PACKAGE.rglob("*.py")
        for block in cc_visit(path.read_text())
        if block.complexity > MAX_COMPLEXITY and block.letter != "C"
    ]
    names = [f"  {complexity:3} {name}" for complexity, name in sorted(blocks, reverse=True)]
    return "\n".join([str(len(blocks)), *names])


def violations(rule: str) -> int:
    """Return how often the package violates a rule of ruff."""
    options = (
        "lint.pydocstyle.convention='pep257'",
        f"lint.mccabe.max-complexity={MAX_COMPLEXITY}",
    )
    command = [sys.executable, "-m", "ruff", "check", "--quiet", "--select", rule, "--output-format=concise"]
    command += [word for option in options for word in ("--config", option)]
    output = subprocess.run([*command, PACKAGE], capture_output=True, text=True, check=False).stdout
    return output.count(f" {rule} ")


def prose(root: Path, *, show: bool = False) -> str:
    """Count the phrases in the docstrings, comments and pages below *root*."""
    words, hits = 0, Counter[str]()
    files = [root] if root.is_file() else sorted([*root.rglob("*.py"), *root.rglob("*.md")])
    for path in files:
        for line, text in texts(path):
            words += len(text.split())
            for match in PHRASES.findall(text):
                hits[match.lower()] += 1
                if show:
                    print(f"{path}:{line}: {match}: {text.strip()[:140]}")
    share = sum(hits.values()) / max(words, 1) * 1000
    common = ", ".join(f"{phrase} {count}" for phrase, count in hits.most_common(5))
    return f"prose of {root.name}: {share:.1f} per 1,000 of {words:,} words ({common or 'none'})"


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line of prose in a page or module."""
    source = path.read_text()
    if path.suffix == ".md":
        yield from enumerate(source.splitlines(), 1)
        return
    documented = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, documented) and (docstring := ast.get_docstring(node)):
            yield from enumerate(docstring.splitlines(), node.body[0].lineno)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


if __name__ == "__main__":
    main()
