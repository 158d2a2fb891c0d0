"""Check the parameters of operators and sensors, and render their templates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.parameters.places import naming, place, place_in_dag
from airflow_qarnot_pool.parameters.references import as_reference
from airflow_qarnot_pool.parameters.templating import hide_secrets, is_templated
from airflow_qarnot_pool.parameters.unknown import refuse_unknown, refuse_unknown_defaults
from airflow_qarnot_pool.version_compat import partial_operator_class

if TYPE_CHECKING:
    import jinja2
    from airflow.sdk import Context


def checked_partial(operator: type, make: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    """Call Airflow's ``partial()``, with the checks of ``__init__``, which a mapped task does not call at parse time.

    :param make: Airflow's ``partial()``.
    """
    with naming(lambda: place_in_dag("Task", parameters.get("task_id"), parameters)):
        refuse_unknown(operator, parameters)
        for name in ("qarnot_pool", "qarnot_task"):
            if name in parameters:
                parameters[name] = as_reference(parameters[name], name)
        for name in ("constants", "pool_spec", "task_spec", "commands"):
            if name in parameters:
                parameters[name] = hide_secrets(parameters[name])
        made = make(**parameters)
        for owner in (made.kwargs.get("dag"), made.kwargs.get("task_group")):
            refuse_unknown_defaults(operator, getattr(owner, "default_args", None))
    made.__class__ = _checked_partial_class()
    return made


@cache
def _checked_partial_class() -> type:
    """Return the class of a task that is to be mapped, which refuses unknown parameters as the constructors do."""
    base: Any = partial_operator_class()

    class CheckedPartial(base):  # type: ignore[misc]
        __slots__ = ()

        def expand(self, **mapped: Any) -> Any:
            self._check(mapped)
            return super().expand(**mapped)

        def expand_kwargs(self, kwargs: Any, *, strict: bool = True) -> Any:
            for row in kwargs if isinstance(kwargs, (list, tuple)) else ():
                self._check(row if isinstance(row, Mapping) else ())
            return super().expand_kwargs(kwargs, strict=strict)

        def _check(self, names: Iterable[str]) -> None:
            with naming(lambda: place("Task", self.kwargs["task_id"], self.kwargs["dag"])):
                refuse_unknown(self.operator_class, dict.fromkeys(names))

    return CheckedPartial


def mapped_count(operator: Any) -> int | None:
    """Return the number of mapped instances of *operator*, or None if it is not mapped or maps over results."""
    mapped = operator.dag.task_dict.get(operator.task_id) if operator.has_dag() else None
    # A function has its values under the second name.
    inputs = (getattr(mapped, name, None) for name in ("expand_input", "op_kwargs_expand_input"))
    values = [value for one in inputs if (value := getattr(one, "value", None))]
    axes = [axis for value in values for axis in (value.values() if isinstance(value, dict) else [value])]
    if not axes or not all(isinstance(axis, (list, tuple, dict)) for axis in axes):
        return None
    return math.prod(map(len, axes))


def render(
    content: Any,
    context: Context,
    jinja_env: jinja2.Environment | None,
    seen_oids: set[int] | None,
    by_airflow: Callable[..., Any],
) -> Any:
    """Render the templates in a parameter, those in parts of a spec such as ``ResourceBucket`` included.

    In a DAG with ``render_template_as_native_obj=True`` Airflow reads all text as Python: ``20260101`` becomes a
    number, ``1.10`` becomes 1.1 and a commit such as ``12e4567`` becomes infinite. Our parameters are text or the
    object that a single expression yields, so text stays text here.
    """
    if is_dataclass(content) and not isinstance(content, type) and hasattr(content, "to_json"):
        values = {field.name: getattr(content, field.name) for field in fields(content)}
        changed = {
            name: rendered
            for name, value in values.items()
            if is_templated(value)
            and (rendered := render(value, context, jinja_env, seen_oids, by_airflow)) != value
        }
        return replace(content, **changed) if changed else content
    if isinstance(content, str) and jinja_env is not None and _is_native(jinja_env):
        return _rendered(jinja_env.from_string(content), context)
    return by_airflow(content, context, jinja_env, seen_oids)


def _is_native(jinja_env: jinja2.Environment) -> bool:
    from jinja2.nativetypes import NativeEnvironment

    return isinstance(jinja_env, NativeEnvironment)


def _rendered(template: jinja2.Template, context: Context) -> Any:
    """Return the object that the only expression of a native template yields, or the text of the template."""
    from jinja2 import Undefined

    try:
        parts = list(template.root_render_func(template.new_context(dict(context))))
    except Exception:
        template.environment.handle_exception()  # Makes the traceback point into the template.
    if len(parts) == 1 and not isinstance(parts[0], (str, Undefined)):
        return parts[0]
    return "".join(map(str, parts))
