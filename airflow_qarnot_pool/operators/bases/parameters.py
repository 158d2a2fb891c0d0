"""What operators and sensors share."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_qarnot_pool.parameters.references import as_reference
from airflow_qarnot_pool.parameters.templating import hide_secrets, is_templated
from airflow_qarnot_pool.parameters.unknown import refuse_unknown

if TYPE_CHECKING:
    import jinja2
    from airflow.sdk import Context


class ParametersMixin:
    """Mixin of operators and sensors: which parameters they take, and what templates in them render to.

    In a DAG with ``render_template_as_native_obj=True`` Airflow reads all text as Python: ``20260101`` becomes a
    number, ``1.10`` becomes 1.1 and a commit such as ``12e4567`` becomes infinite. Our parameters are text or the
    object that one expression yields, so text stays text here.
    """

    #: Fields that are no parameters of ours: Airflow renders them in its own way.
    rendered_by_airflow: ClassVar[tuple[str, ...]] = ()
    _in_airflows_way = False

    def __init__(self, **kwargs: Any) -> None:
        refuse_unknown(type(self), kwargs)
        super().__init__(**kwargs)

    @classmethod
    def partial(cls, **kwargs: Any) -> Any:
        """Do as Airflow does, and what ``__init__`` does to parameters: a mapped task has no other place for it."""
        refuse_unknown(cls, kwargs)
        for name in ("qarnot_pool", "qarnot_task"):
            if name in kwargs:
                kwargs[name] = as_reference(kwargs[name], name)
        for name in ("constants", "pool_spec", "task_spec", "commands"):
            if name in kwargs:
                kwargs[name] = hide_secrets(kwargs[name])
        make: Any = super().partial  # type: ignore[misc]
        return make(**kwargs)

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
