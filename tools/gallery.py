"""The gallery: the example DAGs with their graphs, in docs/gallery.md and docs/images/dags/.

``python -m tools.gallery`` writes them, and ``--check`` says which are old. Each text is the docstring of its file.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import runpy
import sys
from pathlib import Path
from typing import Any

from tools import dag_picture, doc_block

ROOT = Path(__file__).resolve().parent.parent
# Importing operators imports Airflow, which would make itself a home in that of the user.
os.environ.setdefault("AIRFLOW_HOME", str(ROOT / "build" / "airflow"))
EXAMPLES = ROOT / "example_dags"
PAGE = ROOT / "docs" / "gallery.md"
PICTURES = ROOT / "docs" / "images" / "dags"
_MARK = "gallery"


def dags_of(path: Path) -> list[Any]:
    """Return the DAGs of a file, in the order of their definition."""
    from airflow.sdk import DAG

    sys.path.insert(0, str(path.parent))  # as in the bundle of the DAG
    try:
        found = runpy.run_path(str(path)).values()
    finally:
        sys.path.remove(str(path.parent))
    return list({one.dag_id: one for one in found if isinstance(one, DAG)}.values())


def made() -> dict[Path, str]:
    """Return the text of each file of the gallery."""
    files, parts = {}, []
    for path in sorted(EXAMPLES.glob("qarnot_*.py")):
        dags = dags_of(path)
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        title, _, text = docstring.partition("\n\n")
        for dag in dags:
            files[PICTURES / f"{dag.dag_id}.svg"] = dag_picture.svg(dag_picture.Graph.of(dag))
        pictures = [f"![Graph of the DAG {dag.dag_id}](images/dags/{dag.dag_id}.svg)" for dag in dags]
        source = f"[`{path.name}`](../example_dags/{path.name})"
        parts += [f"## {path.stem}", _text(title), *pictures, _text(text), f"Source: {source}"]
    before, _, after = doc_block.split(PAGE, _MARK)
    files[PAGE] = doc_block.joined(before, "\n\n".join(parts), after)
    return files


def _text(docstring: str) -> str:
    return re.sub(r"``([^`]+)``", r"`\1`", docstring).strip()


def old() -> list[Path]:
    """Return the files that are not those of the examples, and pictures without an example."""
    files = made()
    wrong = [path for path, text in files.items() if not path.exists() or path.read_text() != text]
    return wrong + [path for path in sorted(PICTURES.glob("*.svg")) if path not in files]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.gallery", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, and fail if a file is old")
    if parser.parse_args().check:
        if found := [str(path.relative_to(ROOT)) for path in old()]:
            sys.exit("\n".join([*found, "Run `python -m tools.gallery`."]))
        return
    PICTURES.mkdir(parents=True, exist_ok=True)
    files = made()
    for path in [path for path in PICTURES.glob("*.svg") if path not in files]:
        path.unlink()
    for path, text in files.items():
        path.write_text(text)


if __name__ == "__main__":
    main()
