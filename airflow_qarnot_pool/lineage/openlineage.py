"""OpenLineage's objects, made from a :class:`~airflow_qarnot_pool.lineage.facets.Report`.

The only module that imports the OpenLineage client. Nothing imports this one before an event is made.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import attr
from openlineage.client.event_v2 import Dataset, InputDataset, OutputDataset
from openlineage.client.facet_v2 import JobFacet, RunFacet

from airflow_qarnot_pool import __version__
from airflow_qarnot_pool.lineage.facets import JOB_FACETS, RUN_FACETS, Report
from airflow_qarnot_pool.lineage.places import Place

#: The producer of our facets, as the URL of a package.
PRODUCER = f"pkg:pypi/airflow-qarnot-pool@{__version__}"


def schema_url(name: str) -> str:
    """Return the ``_schemaURL`` of a facet. It names the file of the schema in the package."""
    return f"{PRODUCER}#airflow_qarnot_pool/lineage/schemas/{name}.json"


def dataset(place: Place) -> Dataset:
    """Return the dataset of a place."""
    return Dataset(namespace=place.namespace, name=place.name)


def operator_lineage(report: Report, inputs: list[Dataset], outputs: list[Dataset]) -> Any:
    """Return the ``OperatorLineage`` of *report*.

    :param inputs: other datasets, of the ``inlets`` of the task.
    :param outputs: other datasets, of the ``outlets`` of the task.
    """
    from airflow.providers.openlineage.extractors import OperatorLineage

    return OperatorLineage(
        inputs=_datasets(InputDataset, report.inputs, inputs),
        outputs=_datasets(OutputDataset, report.outputs, outputs),
        run_facets={key: _facet(RunFacet, RUN_FACETS[key], values) for key, values in report.run.items()},
        job_facets={key: _facet(JobFacet, JOB_FACETS[key], values) for key, values in report.job.items()},
    )


def _datasets(made: Any, places: list[Place], others: list[Dataset]) -> list[Any]:
    names = [(place.namespace, place.name) for place in places]
    names += [(one.namespace, one.name) for one in others]
    return [made(namespace=namespace, name=name) for namespace, name in dict.fromkeys(names)]


def _facet(base: Any, name: str, values: dict[str, Any]) -> Any:
    return _facet_class(base, name, frozenset(values))(producer=PRODUCER, **values)


@cache
def _facet_class(base: Any, name: str, fields: frozenset[str]) -> Any:
    """Return the class of a facet that has these fields, because a missing one must not become null."""
    members = {field: attr.field(default=None) for field in sorted(fields)}
    schema = {"_get_schema": staticmethod(lambda: schema_url(name))}
    return attr.make_class(name, members, bases=(base,), class_body=schema)


__all__ = ["PRODUCER", "dataset", "operator_lineage", "schema_url"]
