"""A Dockerfile for nodes, and what their versions differ in."""

from __future__ import annotations

import sys

import pytest

from airflow_qarnot_pool import __version__
from airflow_qarnot_pool.executors.image import Installed, differences, dockerfile, installed

HERE = Installed(
    python="3.12",
    packages={
        "apache-airflow": "3.3.2",
        "apache-airflow-core": "3.3.2",
        "apache-airflow-providers-git": "1.0.0",
        "airflow-qarnot-pool": "0.1.0",
    },
)


def test_the_dockerfile_has_this_airflow_this_python_and_these_providers() -> None:
    text = dockerfile(HERE)
    lines = text.splitlines()
    assert "FROM apache/airflow:slim-3.3.2-python3.12" in lines
    assert '    "apache-airflow-providers-git==1.0.0" \\' in lines
    assert '    "airflow-qarnot-pool[storage]==0.1.0"' in lines
    assert '"apache-airflow==' not in text
    assert "AIRFLOW__" not in text, "the executor sets the options for each task"
    assert lines[-1] == "ENTRYPOINT []"
    assert "wheels" not in text


def test_requirements_and_packages_that_no_index_has_are_copied() -> None:
    here = Installed(python="3.12", packages=HERE.packages, local=["airflow-qarnot-pool"])
    lines = dockerfile(here, "dags.txt").splitlines()
    assert "COPY wheels wheels" in lines
    assert "    --find-links wheels \\" in lines
    assert "COPY dags.txt requirements.txt" in lines
    assert "    -r requirements.txt" in lines


def test_what_is_installed_here_is_read_from_the_distributions() -> None:
    here = installed()
    assert here.python == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert here.packages["airflow-qarnot-pool"] == __version__
    assert here.airflow.startswith("3.")
    assert "apache-airflow-providers-standard" in here.packages
    assert "requests" not in here.packages
    assert "requests" in installed(freeze=True).packages


DIFFERENCES = {
    "none": ({}, []),
    "more packages": ({"pandas": "1"}, []),
    "another Airflow": (
        {"apache-airflow-core": "3.3.1"},
        ["The image has apache-airflow-core 3.3.1, and this machine 3.3.2."],
    ),
    "a provider is missing": (
        {"apache-airflow-providers-git": None},
        ["The image lacks apache-airflow-providers-git, which this machine has in version 1.0.0."],
    ),
}


@pytest.mark.parametrize("case", DIFFERENCES)
def test_versions_that_differ_are_named(case: str) -> None:
    changes, expected = DIFFERENCES[case]
    packages = {name: one for name, one in {**HERE.packages, **changes}.items() if one is not None}
    assert differences(HERE, Installed(python="3.12", packages=packages)) == expected


def test_another_python_is_named() -> None:
    (sentence,) = differences(HERE, Installed(python="3.11", packages=HERE.packages))
    assert sentence.startswith("The image has Python 3.11, and this machine 3.12.")
