"""Who asks for a run, about what and why: given with a call, and sent with its message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from django.contrib.auth import get_user_model
from django.db.models import Model
from kombu.utils.json import register_type

from celery_admin_runner.headers import CONTEXT_HEADER, ROW_HEADER

#: What is longer is no label of a run.
LABEL_MAX_LENGTH = 255


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """Who asks for a run, about what and why; a call with a context has a row in the journal."""

    #: A saved user; None: nobody in particular, or whoever started the task that calls.
    user: Any = None
    #: A saved model instance.
    obj: Any = None
    label: str = ""
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class PlainContext:
    """A RunContext as it travels; "" for what is not given."""

    user_pk: str = ""
    user_name: str = ""
    #: The object's model, as ``"app_label.modelname"``.
    model: str = ""
    object_id: str = ""
    label: str = ""
    reason: str = ""

    @classmethod
    def of(cls, context: RunContext | PlainContext) -> PlainContext:
        """Return what travels; raises TypeError for what is no context, user or object.

        ValueError for a user or an object that is not saved.
        """
        if isinstance(context, PlainContext):
            return context
        if not isinstance(context, RunContext):
            raise TypeError(f"Give a RunContext, and not {context!r}.")
        check_user(context.user)
        user, obj = context.user, context.obj
        if user is not None and user.is_anonymous:
            user = None
        check_saved(user)
        check_saved(obj)
        return cls(
            user_pk="" if user is None else str(user.pk),
            user_name="" if user is None else user.get_username(),
            model="" if obj is None else obj._meta.concrete_model._meta.label_lower,
            object_id="" if obj is None else str(obj.pk),
            label=str(context.label),
            reason=str(context.reason),
        )

    @property
    def values(self) -> list[str]:
        """The fields in their order, for a message."""
        return [
            *(self.user_pk, self.user_name, self.model, self.object_id, self.label, self.reason)
        ]

    @classmethod
    def from_values(cls, values: list[str]) -> PlainContext:
        """Return the context that has these ``values``."""
        user_pk, user_name, model, object_id, label, reason = values
        return cls(
            user_pk=user_pk,
            user_name=user_name,
            model=model,
            object_id=object_id,
            label=label,
            reason=reason,
        )


def check_user(user: Any) -> None:
    """Raise TypeError for what is no user: a name, a primary key, an object of another model.

    None, an anonymous user, and ``request.user``, which is read from the database when it is
    needed, are fine.
    """
    if user is None:
        return
    model = get_user_model()
    if isinstance(user, model._meta.concrete_model or model):
        return
    # Nobody in particular is no row, and has no permissions, but can be asked for them.
    if isinstance(user, Model | type) or not hasattr(user, "has_perm"):
        raise TypeError(f"Give a user object, and not {user!r}.")


def check_saved(obj: Any) -> None:
    """Raise TypeError for what is no object of a model, ValueError for one that is not saved."""
    if obj is None:
        return
    if not isinstance(obj, Model):
        raise TypeError(f"Give an object of a model, and not {obj!r}.")
    # A primary key that is made beforehand, as a UUID, tells nothing.
    if obj.pk is None or obj._state.adding:
        raise ValueError(f"{obj!r} is not saved: a run can't be about it.")


def check_label(label: str) -> None:
    """Raise ValueError for a label that not every database takes: SQLite takes any."""
    if len(label) > LABEL_MAX_LENGTH or "\0" in label:
        raise ValueError(
            f"A label has {LABEL_MAX_LENGTH} characters at most, and no NUL: {label[:80]!r} ..."
        )


_LENGTH = len(fields(PlainContext))


def context_of(headers: Mapping[str, Any] | None) -> PlainContext | None:
    """Return the context in the headers of a message; None if it has none."""
    values = (headers or {}).get(CONTEXT_HEADER)
    if not isinstance(values, list) or len(values) != _LENGTH:
        return None
    return PlainContext.from_values(values)


def starter_of(headers: Mapping[str, Any] | None) -> PlainContext | None:
    """Return the user of the run in the headers of its message, as a context; None if none."""
    row = (headers or {}).get(ROW_HEADER)
    if not isinstance(row, list) or len(row) != 3 or not row[1]:
        return None
    return PlainContext(user_pk=row[1], user_name=row[2])


def register_types() -> None:
    """Teach kombu's JSON the context of a call that is itself sent: a later link of a chain."""
    for kind in (RunContext, PlainContext):
        register_type(kind, f"celery_admin_runner.{kind.__name__}", _values, _context)


def _values(context: Any) -> list[str]:
    return PlainContext.of(context).values


def _context(values: list[str]) -> PlainContext:
    return PlainContext.from_values(values)
