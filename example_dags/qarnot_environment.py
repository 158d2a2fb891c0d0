"""Python functions with packages and modules, on nodes without a network.

The environment has a package of the index and the package `word_counts`, which is beside this file. `open_pool`
resolves and uploads it once. Later runs find it in its bucket. Qarnot brings it to the nodes, which unpack it once and
install nothing.
"""

from __future__ import annotations

import sys
from datetime import timedelta

from airflow.sdk import DAG

from airflow_qarnot_pool.decorators.qarnot import qarnot_task
from airflow_qarnot_pool.environments import QarnotEnvironment
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup

#: The nodes have the Python of the workers here. With uv on the workers they may have another one.
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
IMAGE = f"python:{PYTHON}-slim"
ENVIRONMENT = QarnotEnvironment(requirements=["natsort==8.4.0"], modules=["word_counts"], python=PYTHON)
TEXTS = ["page 10 and page 9", "page 9 and page 1"]


@qarnot_task(image=IMAGE, timeout=timedelta(minutes=10))
def count(text: str) -> dict[str, int]:
    """Count the words of one text."""
    from word_counts import counted

    return counted(text)


@qarnot_task(image=IMAGE, timeout=timedelta(minutes=10))
def listing(counts: list[dict[str, int]]) -> list[str]:
    """List all words with their counts, numbers in the order of their values."""
    from natsort import natsorted
    from word_counts import merged

    total = merged(counts)
    return [f"{word}: {total[word]}" for word in natsorted(total)]


with DAG(
    "qarnot_environment",
    description="Packages and modules on nodes without a network",
    doc_md=__doc__,
    schedule=None,
    catchup=False,
    tags=["qarnot"],
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
) as dag:
    with QarnotPoolGroup("nodes", instance_count=2, environment=ENVIRONMENT):
        listing(count.expand(text=TEXTS))
