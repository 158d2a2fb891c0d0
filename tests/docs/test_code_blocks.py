"""Every code block of the README and of docs/ works as printed."""

from __future__ import annotations

import argparse
import configparser
import importlib.util
import json
import re
import runpy
import shlex
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from airflow.dag_processing.dagbag import DagBag

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.cli import get_cli_commands
from airflow_qarnot_pool.hooks.storage import QarnotStorageHook
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.operators.teardown_cost import tasks_beside
from tests.conftest import ROOT
from tests.dags.test_examples import LOCAL_BUNDLE, Run, client
from tests.docs.blocks import Block, blocks, blocks_of
from tools.reference import flat_commands

__all__ = ["client"]

#: Input files of the recipes, in the place of those of a user.
INPUTS = ROOT / "tests" / "docs" / "bucket"
SHELLS = ("console", "sh", "bash")
#: Languages of output and drawings, which do not run.
TEXT = ("text", "")
TESTED = ("python", *SHELLS, "json", "toml", "ini", "yaml")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run each block in an empty directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_language_is_tested() -> None:
    other = {one.language for page in sorted((ROOT / "docs").rglob("*.md")) for one in blocks_of(page)}
    assert other <= {*TESTED, *TEXT}


# --- Python


def test_no_retry_waits_for_five_minutes_beside_a_billed_pool() -> None:
    """Airflow's default retry_delay."""
    written = [block for block in blocks("python") if '"retries"' in block.code]
    assert {"README.md", "index.md", "fan-out.md"} <= {block.page for block in written}
    assert [str(block) for block in written if not re.search(r'"retry_(delay|policy)"', block.code)] == []


@pytest.mark.usefixtures("airflow_db", "qarnot_connection")
@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python(
    block: Block,
    client: QarnotClient,
    qarnot: LocalQarnot,
    elsewhere: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundles = [{"name": "docs", "classpath": LOCAL_BUNDLE, "kwargs": {"path": str(elsewhere)}}]
    monkeypatch.setenv("AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST", json.dumps(bundles))
    monkeypatch.setenv("QARNOT_CLUSTER_URL", qarnot.url)
    monkeypatch.setenv("QARNOT_CLIENT_TOKEN", qarnot.token)
    # Modules that the blocks name stand beside them.
    (elsewhere / "helpers.py").touch()
    (elsewhere / "my_lib").mkdir()
    (elsewhere / "my_lib" / "__init__.py").touch()
    file = elsewhere / f"{block.page.partition('.')[0].replace('-', '_')}_{block.line}.py"
    file.write_text(block.code)
    compile(block.code, str(file), "exec")
    if "excerpt" in block.words or ("peer" in block.words and not _is_installed(block)):
        return
    if "pytest" in block.words:
        # In this process, because another would have to import all of Airflow.
        assert pytest.main(["-q", "-p", "no:cacheprovider", f"--rootdir={elsewhere}", str(file)]) == 0
        return
    if "import qarnot\n" in block.code:
        # The SDK polls every ten seconds.
        monkeypatch.setattr(
            "qarnot.task.time", SimpleNamespace(time=time.time, sleep=lambda _: time.sleep(0.1))
        )
    if not re.search(r"\bDAG\(|^@dag\b", block.code, re.M):
        runpy.run_path(str(file))
        return
    bag = DagBag(dag_folder=str(file))
    assert not bag.import_errors, "\n".join(bag.import_errors.values())
    assert bag.dags, "the block defines no DAG"
    for dag in bag.dags.values():
        assert [tasks_beside(one) for one in dag.tasks if one.is_teardown and tasks_beside(one)] == []
    conf = json.loads(block.conf.replace("$PWD", str(elsewhere))) if block.conf else None
    if block.page == "recipes.md":
        for bucket in set(re.findall(r'resource_buckets=\["([\w-]+)"\]', block.code)):
            QarnotStorageHook().upload(bucket, INPUTS)
    for dag in () if {"parse", "peer"} & block.words else bag.dags.values():
        run = Run.of(dag.test(run_conf=conf), client)
        expected = "failed" if "fails" in block.words else "success"
        assert str(run.dag_run.state) == expected, run.states
        run.assert_nothing_left_on()
        if block.page == "recipes.md":
            for bucket in re.findall(r'result_bucket="([\w-]+)"', block.code):
                assert QarnotStorageHook().list(bucket), f"{bucket} has no results"


def _is_installed(block: Block) -> bool:
    """Return whether the providers of other vendors that *block* imports are here."""
    modules = re.findall(r"^from (airflow\.providers\.\S+) import", block.code, re.M)
    assert modules, "a peer imports from airflow.providers"
    try:
        return all(importlib.util.find_spec(module) for module in modules)
    except ModuleNotFoundError:
        return False


# --- Shells


@pytest.mark.parametrize("block", blocks(*SHELLS), ids=str)
def test_commands_exist(block: Block) -> None:
    """The make targets, modules, options and extras of a block exist."""
    text = block.code.replace("\\\n", " ")
    lines = [line.removeprefix("$ ").strip() for line in text.splitlines() if _is_command(line, block)]
    assert lines, "this block has no command; its language should be text"
    for line in lines:
        _check(shlex.split(line, comments=True))


def _is_command(line: str, block: Block) -> bool:
    # In a console block, lines without a prompt are output.
    return line.startswith("$ ") if block.language == "console" else bool(line.strip()) and line[0] != "#"


def _check(words: list[str]) -> None:
    command, *rest = words
    if command == "make":
        targets = re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.M)
        variables = re.findall(r"^([A-Z]+) \?=|\$\((DEMO)\)", (ROOT / "Makefile").read_text(), re.M)
        for one in rest:
            name, is_variable, _ = one.partition("=")
            assert name in ({x for pair in variables for x in pair} if is_variable else targets), one
    elif command == "export":
        for one in rest:
            name, _, value = one.partition("=")
            assert not name.startswith("AIRFLOW_CONN_") or json.loads(value)["conn_type"] == "qarnot"
            for section in ("qarnot", "qarnot_executor"):
                prefix = f"AIRFLOW__{section.upper()}__"
                option = name.removeprefix(prefix).lower()
                assert not name.startswith(prefix) or option in _options(section), name
    elif words[:2] == ["pip", "install"]:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for one in rest[1:]:
            name, _, extra = one.rstrip("]").partition("[")
            assert name in (project["name"], "--upgrade") or "==" in name, one
            assert not extra or set(extra.split(",")) <= project["optional-dependencies"].keys(), one
    elif words[:2] == ["python", "-m"]:
        _check_module(rest[1], rest[2:])
    elif command == "python":
        assert (ROOT / rest[0]).exists() or not Path(rest[0]).parent.name, rest
    elif command == "airflow":
        _check_airflow(rest)
    elif command in (".venv/bin/python", ".venv/bin/pytest"):
        paths = [one.partition("::")[0] for one in rest if "/" in one]
        assert all((ROOT / one).exists() for one in paths), paths
    else:
        assert command in ("git", "cd", "docker", "pip"), f"{command!r} is not known to this test"


def _check_module(module: str, options: list[str]) -> None:
    assert importlib.util.find_spec(module), module
    if module == "airflow_qarnot_pool.local":
        module = "airflow_qarnot_pool.local.__main__"
    if importlib.util.find_spec(module).origin.endswith("__init__.py"):  # type: ignore[union-attr]
        module += ".__main__"
    if module.startswith(("airflow_qarnot_pool", "tools", "benchmarks")):
        _check_options(module, options)


def _check_options(module: str, options: list[str]) -> None:
    """Parse the options with the module's parser, and stop there."""

    class Parsed(Exception):
        pass

    real = argparse.ArgumentParser.parse_args

    def parse(self: argparse.ArgumentParser, *_: Any) -> None:
        real(self, options)
        raise Parsed

    with mock.patch.object(argparse.ArgumentParser, "parse_args", parse), pytest.raises(Parsed):
        runpy.run_module(module, run_name="__main__")


def _check_airflow(words: list[str]) -> None:
    if words[0] == "qarnot":
        named = dict(flat_commands(get_cli_commands()))
        command = next(one for name, one in named.items() if tuple(words[: len(name)]) == name)
        known = {flag for arg in command.args for flag in arg.flags}
        assert {one.partition("=")[0] for one in words[2:] if one.startswith("-")} <= known
        return
    from airflow.cli.cli_parser import get_parser

    get_parser().parse_args(words)


def _options(section: str = "qarnot") -> set[str]:
    from airflow_qarnot_pool.get_provider_info import get_provider_info

    return set(get_provider_info()["config"][section]["options"])


# --- Data


@pytest.mark.parametrize("block", blocks("json", "toml", "ini", "yaml"), ids=str)
def test_data_parses(block: Block) -> None:
    if block.language == "json":
        json.loads(block.code)
    elif block.language == "toml":
        tomllib.loads(block.code)
    elif block.language == "yaml":
        import yaml  # type: ignore[import-untyped]

        assert yaml.safe_load(block.code)
    else:
        parser = configparser.ConfigParser()
        parser.read_string(block.code)
        for section in ("qarnot", "qarnot_executor"):
            if parser.has_section(section):
                assert set(parser[section]) <= _options(section)
