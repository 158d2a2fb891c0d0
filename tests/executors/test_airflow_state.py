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
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.taskinstancehistory import TaskInstanceHistory
    from sqlalchemy import create_engine
    from sqlalchemy.orm import Session

    import_all_models()
    engine = create_engine("sqlite://")
    for model in (TaskInstance, TaskInstanceHistory):
        model.__table__.create(engine)
    with Session(engine) as session:
        yield session
    engine.dispose()


def test_ids_of_task_instances_and_of_their_earlier_tries_are_known(session: Session) -> None:
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.taskinstancehistory import TaskInstanceHistory
    from sqlalchemy import insert

    current, cleared, unknown = (str(uuid.uuid4()) for _ in range(3))
    key = {"dag_id": "dag", "task_id": "task", "run_id": "run", "map_index": -1, "pool": "default_pool"}
    as_id = TaskInstance.id.type.python_type
    session.execute(
        insert(TaskInstance).values(id=as_id(current), state="running", try_number=2, pool_slots=1, **key)
    )
    session.execute(
        insert(TaskInstanceHistory).values(task_instance_id=as_id(cleared), try_number=1, pool_slots=1, **key)
    )
    # A tag of a Qarnot task is any text.
    ids = [current, cleared, unknown, "no id"]
    assert {each: one.state for each, one in read_instances(session, ids, 7).items()} == {current: "running"}
    assert read_replaced(session, ids) == {cleared}
