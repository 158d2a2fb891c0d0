"""Options of the executor: the section ``[qarnot_executor]``, and ``executor_config`` of a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.api.fields import (
    Refusal,
    closest_name,
    duration,
    integer,
    mapping,
    number,
    short_repr,
    text,
)
from airflow_qarnot_pool.api.limits import parse_json
from airflow_qarnot_pool.executors.environment import IMAGE
from airflow_qarnot_pool.executors.running import KEPT_FOR
from airflow_qarnot_pool.executors.workload_task import TOKEN_OPTION, forwarded_settings
from airflow_qarnot_pool.ownership.identity import DEFAULT_KEEP_WARM

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.specs import PoolSpec

SECTION = "qarnot_executor"
DEFAULT_POOL = "airflow"
#: Maximum characters of the name of a pool. Its name on Qarnot has a digest of its specification besides.
MAX_POOL_NAME = 40
#: Maximum of ``max_cost_per_day``, in euros.
MAX_COST = 1e9
#: Profile of the pool. Its nodes must reach Airflow's api-server, and ``docker-batch`` has no network.
DEFAULT_PROFILE = "docker-network"


class SupportsGet(Protocol):
    """Airflow's configuration, or that of a team."""

    def get(self, section: str, key: str, *, fallback: Any = None) -> Any:
        """Return the value of an option."""


@dataclass(frozen=True, kw_only=True)
class PoolOptions:
    """One pool of the executor.

    :param name: the name by which ``executor_config`` refers to it.
    :param slots: maximum number of Airflow tasks that run on it at the same time.
    :param slots_per_node: number of slots that share a node.
    :param keep_warm: how long an idle node stays up.
    :param profile: profile of the nodes, one with a network.
    :param image: image of tasks that have no other.
    :param pool_spec: further fields of :class:`~airflow_qarnot_pool.api.specs.PoolSpec`.
    :param requirements: packages of its nodes besides Airflow and its providers. None if the image has all.
    :param max_cost_per_day: euros in a day, in UTC, from which on no task is submitted to it. None for no limit.
    """

    name: str = DEFAULT_POOL
    slots: int = 8
    slots_per_node: int = 1
    keep_warm: timedelta = DEFAULT_KEEP_WARM
    profile: str = DEFAULT_PROFILE
    image: str | None = None
    pool_spec: Mapping[str, Any] = field(default_factory=dict)
    requirements: Sequence[str] | None = None
    max_cost_per_day: float | None = None

    def spec(self, slots: int = 1) -> PoolSpec:
        """Return the specification of the pool for tasks of *slots* slots. It scales to zero when it is idle.

        Qarnot gives each task one slot. So a pool for larger tasks has as many nodes with fewer slots.
        """
        from airflow_qarnot_pool.api.specs import PoolSpec
        from airflow_qarnot_pool.operators.bases.warm_up import scaling_to_zero

        nodes = -(-self.slots // self.slots_per_node)
        per_node = max(1, self.slots_per_node // slots)
        size = self.slots if slots == 1 else nodes * per_node
        values: dict[str, Any] = {
            "name": f"Airflow executor, {self.name}" + (f", {slots} slots a task" if slots > 1 else ""),
            "profile": self.profile,
            "image": self.image,
            "slots_per_node": per_node if self.slots_per_node > 1 else None,
            "scaling": scaling_to_zero(size, self.keep_warm),
            # Closed pools count against the account's quota.
            "completion_ttl": KEPT_FOR,
        }
        return PoolSpec.from_mapping(
            {name: value for name, value in {**values, **self.pool_spec}.items() if value is not None}
        )


@dataclass(frozen=True, kw_only=True)
class ExecutorOptions:
    """All options of the executor.

    :param pools: the pools by name; the one of the section itself is ``default_pool``.
    :param api_url: address of Airflow's execution API as the nodes reach it.
    :param parallelism: maximum number of tasks that a scheduler has submitted. None for the slots of all pools.
    :param python: the nodes' Python, which has Airflow.
    :param node_environment: environment variables of every task. They may be secret.
    :param token_seconds: seconds for which the token of a queued task is valid.
    :param boot_seconds: seconds in which a node is expected to boot.
    """

    conn_id: str = "qarnot_default"
    pools: Mapping[str, PoolOptions] = field(default_factory=lambda: {DEFAULT_POOL: PoolOptions()})
    default_pool: str = DEFAULT_POOL
    api_url: str = ""
    parallelism: int | None = None
    python: str = "python"
    node_environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    token_seconds: float = 600.0
    boot_seconds: float = 300.0

    @property
    def slots(self) -> int:
        """Number of slots of all pools."""
        return sum(pool.slots for pool in self.pools.values())


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """Validated ``executor_config`` of an Airflow task, with defaults from the options.

    :param pool: name of the pool.
    :param slots: number of slots of a node that the task takes.
    :param image: image that the task runs in.
    """

    pool: str = DEFAULT_POOL
    slots: int = 1
    image: str | None = None


_name = text(minimum=1, below=MAX_POOL_NAME + 1)
_TASK_KEYS = tuple(each.name for each in fields(TaskConfig))


def _image(value: Any) -> str:
    from airflow_qarnot_pool.api.specs import image_constants

    image = str(text(minimum=1)(value)).strip()
    try:
        image_constants(image)
    except ValueError as error:
        raise Refusal(f"{error}, got {short_repr(image)}", "Write [registry/]repository[:tag].") from None
    return image


def _object(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except ValueError:
            raise Refusal(
                f"is not JSON, got {short_repr(value)}", 'Write an object such as {"a": 1}.'
            ) from None
    if not isinstance(value, Mapping):
        raise Refusal(f"is not an object, got {short_repr(value)}", 'Write an object such as {"a": 1}.')
    return {str(key): entry for key, entry in value.items()}


def _lines(value: Any) -> tuple[str, ...]:
    """Convert a list, JSON of one, or lines of text to requirements."""
    if isinstance(value, str):
        try:
            value = parse_json(value) if value.strip().startswith("[") else value.splitlines()
        except ValueError:
            raise Refusal(f"is not JSON, got {short_repr(value)}", "Write a list such as ['a==1'].") from None
    if not isinstance(value, (list, tuple)) or not all(isinstance(line, str) for line in value):
        raise Refusal(
            f"is no list of texts, got {short_repr(value)}", 'Write a list such as ["pandas==2.2.3"].'
        )
    return tuple(line.strip() for line in value if line.strip())


def _url(value: Any) -> str:
    url = str(text(minimum=1)(value)).strip()
    if not url.startswith(("http://", "https://")):
        raise Refusal(
            f"is not an address, got {short_repr(url)}",
            "Write one such as https://airflow.example/execution/.",
        )
    return url


#: Options of a pool, each with its converter.
_POOL: Mapping[str, Callable[[Any], Any]] = {
    "slots": integer(1),
    "slots_per_node": integer(1),
    "keep_warm": duration,
    "profile": text(minimum=1),
    "image": _image,
    "pool_spec": _object,
    "requirements": _lines,
    "max_cost_per_day": number(0, MAX_COST, above=True),
}


def read_options(conf: SupportsGet) -> ExecutorOptions:
    """Read and validate the section, and the pools that it describes.

    :raises QarnotInvalidSpecError: names the invalid option.
    """

    def option(name: str, convert: Callable[[Any], Any], default: Any) -> Any:
        value = conf.get(SECTION, name, fallback=None)
        if value is None or not str(value).strip():
            return default
        return _converted(
            f"[{SECTION}] {name} (or AIRFLOW__{SECTION.upper()}__{name.upper()})", name, convert, value
        )

    base = {name: option(name, convert, None) for name, convert in _POOL.items()}
    base = {name: value for name, value in base.items() if value is not None}
    default_pool = option("pool", _name, DEFAULT_POOL)
    pools = {default_pool: _pool(default_pool, base)}
    for name, given in option("pools", _object, {}).items():
        pools[name] = _pool(name, {**base, **_pool_values(name, given)})
    return ExecutorOptions(
        conn_id=option("conn_id", text(minimum=1), "qarnot_default"),
        pools=pools,
        default_pool=default_pool,
        api_url=option("execution_api_server_url", _url, "") or _airflows_api_url(conf),
        parallelism=option("parallelism", integer(1), None),
        python=option("python", text(minimum=1), "python"),
        node_environment={
            **forwarded_settings(conf),
            **option("environment", lambda value: mapping(_object(value)), {}),
        },
        token_seconds=float(conf.get(*TOKEN_OPTION, fallback=600)),
        boot_seconds=option("boot_seconds", lambda value: duration(value).total_seconds(), 300.0),
    )


def task_config(config: Any, options: ExecutorOptions) -> TaskConfig:
    """Validate ``executor_config`` of a task.

    :raises QarnotInvalidSpecError: names the invalid key.
    """
    given = _converted("executor_config", "executor_config", _object, config or {})
    for key in given:
        if key not in _TASK_KEYS:
            raise _unknown("executor_config", key, _TASK_KEYS)
    given = {key: value for key, value in given.items() if value is not None}
    name = given.get("pool", options.default_pool)
    pool = options.pools.get(name) if isinstance(name, str) else None
    if pool is None:
        raise QarnotInvalidSpecError(
            f"executor_config 'pool' names no pool of the executor, got {short_repr(name)}",
            field="pool",
            remedy=f"Give one of {', '.join(sorted(options.pools))}, or add it to [{SECTION}] pools.",
        )
    slots = _converted("executor_config 'slots'", "slots", integer(1), given.get("slots", 1))
    if slots > pool.slots_per_node and slots > 1:
        raise QarnotInvalidSpecError(
            f"executor_config 'slots' is more than a node of pool {pool.name!r} has, got {slots}",
            field="slots",
            remedy=f"Give at most {pool.slots_per_node}, or raise slots_per_node of the pool.",
        )
    image = given.get("image", pool.image)
    if image is not None:
        image = _converted("executor_config 'image'", "image", _image, image)
    return TaskConfig(pool=pool.name, slots=slots, image=image)


def _pool(name: str, values: Mapping[str, Any]) -> PoolOptions:
    if values.get("requirements") is not None:
        values = {"image": IMAGE, **values}
    pool = PoolOptions(name=name, **values)
    if pool.slots_per_node > pool.slots:
        raise QarnotInvalidSpecError(
            f"slots_per_node of pool {name!r} is more than its slots, got {pool.slots_per_node}",
            field="slots_per_node",
            remedy=f"Give at most {pool.slots}, or raise slots.",
        )
    pool.spec()
    return pool


def _pool_values(name: str, given: Any) -> dict[str, Any]:
    where = f"[{SECTION}] pools, pool {name!r}"
    _converted(f"[{SECTION}] pools, the name of a pool,", "pools", _name, name)
    values = _converted(where, "pools", _object, given)
    for key in values:
        if key not in _POOL:
            raise _unknown(where, key, tuple(_POOL))
    return {
        key: _converted(f"{where}, {key}", key, _POOL[key], value)
        for key, value in values.items()
        if value is not None
    }


def _converted(where: str, name: str, convert: Callable[[Any], Any], value: Any) -> Any:
    try:
        return convert(value)
    except Refusal as refusal:
        raise QarnotInvalidSpecError(
            f"{where} {refusal.problem}", field=name, remedy=refusal.remedy
        ) from None


def _unknown(where: str, key: str, known: tuple[str, ...]) -> QarnotInvalidSpecError:
    close = closest_name(key, known)
    hint = f"Did you mean {close!r}?" if close else f"Known are {', '.join(known)}."
    return QarnotInvalidSpecError(f"{where} has an unknown key, got {key!r}", field=key, remedy=hint)


def _airflows_api_url(conf: SupportsGet) -> str:
    """Return the address of the execution API that Airflow's own workers use."""
    url = conf.get("core", "execution_api_server_url", fallback=None)
    if url:
        return str(url)
    base = str(conf.get("api", "base_url", fallback="/") or "/")
    base = f"http://localhost:8080{base}" if base.startswith("/") else base
    return f"{base.rstrip('/')}/execution/"
