"""Operator parameters on their way into a spec."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.specs import PoolSpec, TaskSpec


def given(
    operator: Any, names: Iterable[str], others: Mapping[str, Any] | None = None, others_name: str = ""
) -> dict[str, Any]:
    """The parameters of *operator* that are set, and those of its free-form spec; a name in both is refused."""
    values = {name: getattr(operator, name) for name in names if getattr(operator, name) not in (None, "")}
    for name, value in (others or {}).items():
        if name in values:
            raise QarnotInvalidSpecError(
                f"{name} is given as a parameter and in {others_name}; keep one of them", field=name
            )
        values[name] = value
    return values


def pool_spec(values: Mapping[str, Any]) -> PoolSpec:
    """A checked pool spec. Loaded here and not above: importing an operator module must cost nothing."""
    from airflow_qarnot_pool.api.specs import PoolSpec

    _check_tags(values.get("tags"))
    return PoolSpec.from_mapping(values)


def task_spec(values: Mapping[str, Any]) -> TaskSpec:
    """A checked spec of a Qarnot task."""
    from airflow_qarnot_pool.api.specs import TaskSpec

    _check_tags(values.get("tags"))
    return TaskSpec.from_mapping(values)


def _check_tags(tags: Any) -> None:
    """Qarnot takes ten tags, of which three are ours."""
    from airflow_qarnot_pool.api.specs import MAX_TAGS, MAX_USER_TAGS, OUR_TAGS

    if isinstance(tags, (list, tuple)) and len(tags) > MAX_USER_TAGS:
        raise QarnotInvalidSpecError(
            f"{len(tags)} tags are too many: Qarnot takes {MAX_TAGS}, of which this provider needs "
            f"{OUR_TAGS}, so {MAX_USER_TAGS} are yours",
            field="tags",
        )


def command_text(command: Any) -> Any:
    """A command as one text: words are quoted as a shell would need it."""
    return shlex.join(map(str, command)) if isinstance(command, (list, tuple)) else command


def names_registry(image: str | None) -> bool:
    """Whether an image name says which registry it is from."""
    from airflow_qarnot_pool.api.specs import image_constants

    return bool(image) and "DOCKER_SRV" in image_constants(str(image))


def is_uuid(ref: str) -> bool:
    """Whether *ref* is a uuid rather than a shortname."""
    parts = ref.split("-")
    return [len(part) for part in parts] == [8, 4, 4, 4, 12] and all(
        character in "0123456789abcdefABCDEF" for part in parts for character in part
    )
