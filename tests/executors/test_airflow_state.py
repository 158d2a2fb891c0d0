"""Queries of the executor, on a database with Airflow's tables."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from airflow_qarnot_pool.executors.airflow_state import read_instances, read_replaced

if TYPE_CHECKING:
    from sqlalchemy.orm import Session


@pytest.fixture
def session() -> Iterator[Session]:
    from airflow.models import import_all_models
    from airflow.models.base import Base
    from sqlalchemy import create_engine
    from sqlalchemy.orm import Session

    import_all_models()
    engine = create_engine("sqlite://")
    for name in {"task_instance", "task_instance_history"} & set(Base.metadata.tables):
        Base.metadata.tables[name].create(engine)
    with Session(engine) as session:
        yield session
    engine.dispose()


def test_ids_of_task_instances_and_of_their_earlier_tries_are_known(session: Session) -> None:
    from airflow.models.base import Base
    from airflow.models.taskinstance import TaskInstance
    from sqlalchemy import insert

    current, cleared, unknown = (str(uuid.uuid4()) for _ in range(3))
    key = {"dag_id": "dag", "task_id": "task", "run_id": "run", "map_index": -1, "pool": "default_pool"}
    as_id = TaskInstance.id.type.python_type
    session.execute(
        insert(TaskInstance).values(id=as_id(current), state="running", try_number=2, pool_slots=1, **key)
    )
    earlier = {"try_number": 1, "pool_slots": 1, **key}
    if (history := Base.metadata.tables.get("task_instance_history")) is not None:
        session.execute(insert(history).values(task_instance_id=as_id(cleared), **earlier))
    else:  # 3.4
        session.execute(insert(TaskInstance).values(id=as_id(cleared), working_set=None, **earlier))
    # A tag of a Qarnot task is any text.
    ids = [current, cleared, unknown, "no id"]
    assert {each: one.state for each, one in read_instances(session, ids, 7).items()} == {current: "running"}
    assert read_replaced(session, ids) == {cleared}
