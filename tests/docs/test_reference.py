"""The reference is that of the code, and its examples are accepted."""

from __future__ import annotations

import inspect
import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, BaseOperator, BaseSensorOperator

from airflow_qarnot_pool.api.specs import PoolSpec, TaskSpec
from airflow_qarnot_pool.environments import QarnotEnvironment
from airflow_qarnot_pool.operators import task, teardown_cost
from airflow_qarnot_pool.ownership import xcoms
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup
from tests.conftest import ROOT
from tools import docstrings, examples, reference

REFERENCE = (ROOT / "docs" / "reference.md").read_text()
#: Fields that an example cannot be without, beside the required ones.
COMPANIONS: dict[str, dict[str, Any]] = {
    "linger": {"shared": "nightly"},
    "dependencies": {"job": "6ba7b811-9dad-41d1-80b4-00c04fd430c8"},
    "return_file": {"command": "true"},
    "skip_on_exit_code": {"command": "true"},
    "snapshot_every": {"command": "true", "result_bucket": "outputs"},
    "strip_prefix": {"prefix": "today/"},
    "targeted_reservation_name": {"scheduling_type": "Reserved"},
    "targeted_reserved_machine_key": {"scheduling_type": "Reserved"},
    "upload_results_on_cancellation": {"result_bucket": "outputs"},
    "HardwareConstraint.discriminator": {"value": 16},
    **{
        f"results_{name}": {"result_bucket": "outputs"}
        for name in ("prefix", "whitelist", "blacklist", "cache_ttl")
    },
    **{f"snapshot_{name}": {"snapshot_bucket": "saved"} for name in ("prefix", "whitelist", "blacklist")},
}


@pytest.mark.parametrize("page", reference.PAGES, ids=lambda page: page.name)
def test_the_page_is_that_of_the_code(page: Path) -> None:
    assert reference.old(page) == [], "Run `python -m tools.reference`."


def test_a_change_in_the_page_is_found(tmp_path: Path) -> None:
    page = tmp_path / "reference.md"
    page.write_text(REFERENCE.replace("how many slots share one node", "how many nodes share one slot", 1))
    assert reference.old(page) == ["::: airflow_qarnot_pool.task_groups.pool.QarnotPoolGroup"]


@pytest.mark.parametrize("cls", reference.specifications(), ids=lambda cls: cls.__name__)
def test_the_example_of_each_field_is_accepted(cls: Any) -> None:
    def value(name: str) -> Any:
        return examples.evaluate(str(examples.example_of_field(cls.__name__, name)))

    required = {
        one.name: value(one.name) for one in fields(cls) if one.default is MISSING is one.default_factory
    }
    for one in fields(cls):
        more = COMPANIONS.get(f"{cls.__name__}.{one.name}", COMPANIONS.get(one.name, {}))
        given = {**required, **more, one.name: value(one.name)}
        made = cls(**{name: given[name] for name in given if name in {field.name for field in fields(cls)}})
        assert getattr(made, one.name) != one.default, one.name
        if cls in (PoolSpec, TaskSpec):
            assert made.to_json()


def test_the_examples_of_the_group_and_the_environment_are_accepted() -> None:
    for name in docstrings.parameters(QarnotPoolGroup).keys() - {"group_id"}:
        given = {**COMPANIONS.get(name, {}), **_given(QarnotPoolGroup, name)}
        with DAG("d", schedule=None), QarnotPoolGroup("g", **given):
            pass
    for name in docstrings.parameters(QarnotEnvironment):
        given = {"requirements": ["numpy==2.1.3"], **_given(QarnotEnvironment, name)}
        assert getattr(QarnotEnvironment(**given), name) == given[name]


@pytest.mark.parametrize("watcher", reference.watchers(), ids=lambda cls: cls.__name__)
def test_the_examples_of_a_watcher_are_accepted(watcher: Any) -> None:
    given = docstrings.parameters(watcher)
    required = {name for name, one in given.items() if one.default is one.empty}
    for name in given:
        values = {key: value for one in {*required, name} for key, value in _given(watcher, one).items()}
        assert watcher(**values).serialize()
        assert values[name] != given[name].default, name


def _given(thing: Any, name: str) -> dict[str, Any]:
    return {name: examples.evaluate(str(examples.example(thing.__name__, name)))}


def test_every_example_is_that_of_something() -> None:
    known = {
        (thing.__name__, name)
        for thing in [
            *reference.operators(),
            *reference.sensors(),
            *reference.watchers(),
            *(reference.load(name) for name in re.findall(r"^<!-- ::: ([\w.]+\.\w+) -->$", REFERENCE, re.M)),
        ]
        for name in reference.all_parameters(thing)
    }
    known |= {(cls.__name__, one.name) for cls in reference.specifications() for one in fields(cls)}
    names = {name for _, name in known}
    for key in [*examples.PARAMETERS, *examples.FIELDS, *examples.UNITS]:
        owner, _, name = key.rpartition(".")
        assert (owner, name) in known if owner else name in names, key


def test_the_parameters_of_airflow_have_their_defaults() -> None:
    section = REFERENCE.partition("## Parameters of Airflow")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)`( \(sensors\))?[ †]* \|[^|]*\| (\S[^|]*) \|", section, re.M)
    assert len(rows) > 10
    for name, of_sensor, default in rows:
        operator = BaseSensorOperator if of_sensor else BaseOperator
        parameter = inspect.signature(operator.__init__).parameters[name]
        shown = {"required": parameter.empty, "none": None}.get(default, default)
        if isinstance(shown, str):
            shown = examples.evaluate(shown.strip("`"))
        found = getattr(parameter.default, "value", parameter.default)
        assert found == shown, name


def test_the_results_name_xcoms_that_exist() -> None:
    section = REFERENCE.partition("## Results")[2].partition("\n## ")[0]
    known = {value for name, value in vars(xcoms).items() if name.endswith("_KEY")}
    known |= {task.PROGRESS_KEY, teardown_cost.COST_KEY}
    assert set(re.findall(r"`(qarnot_\w+)`", section)) <= known


def test_what_has_no_documentation_is_an_error() -> None:
    class Silent:
        """Describe the class and no parameter."""

        def __init__(self, *, volume: int) -> None: ...

    with pytest.raises(docstrings.Undocumented, match="volume without :param:"):
        reference.entry(Silent)

    class Spoken:
        """Describe the class.

        :param volume: how loud it is.
        """

        def __init__(self, *, volume: int) -> None: ...

    with pytest.raises(docstrings.Undocumented, match=r"Spoken\.volume has no example in tools/examples\.py"):
        reference.entry(Spoken)


def test_docstrings_become_markdown() -> None:
    text = "Of :class:`~a.b.C` and ``x | y``.\n\n.. code-block:: python\n\n    f(1)\n\nParameters besides these: more."
    expected = "Of `C` and `x | y`.\n\n<!-- test: excerpt -->\n```python\nf(1)\n```"
    assert docstrings.markdown(text) == expected


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("int | str | None", "`int`, slots"),
        ("Duration", "`timedelta` or `float`, s"),
        ("str | int", "`str` or `int`, slots"),
        ("dict[str, int | float]", "`dict[str, int | float]`, slots"),
        ("Sequence[Elastic]", "`Sequence[Elastic]` ([Elastic](#elastic)), slots"),
        ("Elastic", "[`Elastic`](#elastic), slots"),
    ],
)
def test_types_are_written_for_a_template(written: str, expected: str) -> None:
    assert reference.kind_of(written, "slots", none=True, text=False) == expected
