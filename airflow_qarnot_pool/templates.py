"""Which parameters are known when a DAG is parsed, which only when the task runs, and which nobody may see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import jinja2
    from airflow.sdk import Context


def is_templated(value: Any) -> bool:
    """Whether *value* holds a Jinja template, an XCom reference or another value that comes at run time."""
    if isinstance(value, str):
        return "{{" in value or "{%" in value
    if isinstance(value, Mapping):
        return any(is_templated(one) for pair in value.items() for one in pair)
    if isinstance(value, (list, tuple, set, frozenset)):
        return any(is_templated(one) for one in value)
    # XComArg, mapped arguments and the like are resolved by Airflow before the task runs.
    return hasattr(value, "resolve") or hasattr(value, "iter_references")


#: Stands for text that comes at run time.
STAND_IN = "known-at-run-time"
#: Stand-ins for fields that others need: only whether they are given is known when the DAG is parsed.
_STAND_INS = {
    "resultbucket": STAND_IN,
    "snapshotbucket": STAND_IN,
    "schedulingtype": "Reserved",
    "job": "00000000-0000-0000-0000-000000000000",
    "jobuuid": "00000000-0000-0000-0000-000000000000",
}


def known_at_parse(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of *values* that is known already, with stand-ins for what the rest of it needs."""
    from airflow_qarnot_pool.api.fields import normalise

    known = {}
    for name, value in values.items():
        if not is_templated(value):
            known[name] = value
        elif isinstance(value, (list, tuple)) and (items := [one for one in value if not is_templated(one)]):
            known[name] = items
        elif stand_in := _STAND_INS.get(normalise(str(name))):
            known[name] = stand_in
    return known


class TemplatedParameters:
    """Mixin of operators and sensors: how the templates in their parameters are rendered.

    In a DAG with ``render_template_as_native_obj=True`` Airflow reads all text as Python: ``20260101`` becomes a
    number, ``1.10`` becomes 1.1 and a commit such as ``12e4567`` becomes infinite. Our parameters are text or the
    object that one expression yields, so text stays text here.
    """

    #: Fields that are no parameters of ours: Airflow renders them in its own way.
    rendered_by_airflow: ClassVar[tuple[str, ...]] = ()
    _in_airflows_way = False

    def render_template(
        self,
        content: Any,
        context: Context,
        jinja_env: jinja2.Environment | None = None,
        seen_oids: set[int] | None = None,
    ) -> Any:
        """Render templates in parts of a spec, too, such as the prefix of a ``ResourceBucket``."""
        render: Any = super().render_template  # type: ignore[misc]
        if not self._in_airflows_way and any(
            content is getattr(self, name, None) for name in self.rendered_by_airflow
        ):
            self._in_airflows_way = True
            try:
                return render(content, context, jinja_env, seen_oids)
            finally:
                self._in_airflows_way = False
        if is_dataclass(content) and not isinstance(content, type) and hasattr(content, "to_json"):
            given = {one.name: getattr(content, one.name) for one in fields(content)}
            changed = {
                name: rendered
                for name, value in given.items()
                if is_templated(value)
                and (rendered := self.render_template(value, context, jinja_env, seen_oids)) != value
            }
            return replace(content, **changed) if changed else content
        if isinstance(content, str) and not self._in_airflows_way and _is_native(jinja_env):
            return _rendered(jinja_env.from_string(content), context)  # type: ignore[union-attr]
        return render(content, context, jinja_env, seen_oids)


def _is_native(jinja_env: jinja2.Environment | None) -> bool:
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


class Hidden:
    """A secret that stands in a parameter as it is: the task gets it, the serialized DAG only shows that it is one.

    Airflow calls ``resolve`` where it renders templates, and ``serialize`` (or ``str``) where it stores the DAG.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def resolve(self, context: Any = None) -> str:
        """The secret."""
        return self._value

    def serialize(self) -> str:
        """What may be stored and shown."""
        return "***"

    __str__ = __repr__ = serialize


def hide_secrets(value: Any) -> Any:
    """*value* with the secret constants in it hidden from the serialized DAG. Templates hide themselves."""
    if isinstance(value, dict):
        return {name: _hidden(name, one) for name, one in value.items()}
    if isinstance(value, (list, tuple)) and any(isinstance(one, dict) for one in value):
        return type(value)(hide_secrets(one) for one in value)
    return value


def _hidden(name: Any, value: Any) -> Any:
    from airflow_qarnot_pool.api.fields import is_secret_constant

    if isinstance(value, str) and value and is_secret_constant(str(name)) and not is_templated(value):
        return Hidden(value)
    return hide_secrets(value)


def revealed(value: Any) -> Any:
    """*value* as it was before :func:`hide_secrets`, for a task that runs or a check."""
    if isinstance(value, Hidden):
        return value.resolve()
    if isinstance(value, dict):
        return {name: revealed(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)) and any(isinstance(one, (dict, Hidden)) for one in value):
        return type(value)(revealed(one) for one in value)
    return value
