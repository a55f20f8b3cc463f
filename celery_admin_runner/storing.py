"""A call that was made without us, as the journal stores it: nothing is validated or refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from celery.utils.saferepr import saferepr
from kombu.utils.encoding import safe_repr
from pydantic import PydanticUserError

from celery_admin_runner import redaction, wire
from celery_admin_runner.binding import Argument, bind
from celery_admin_runner.calls import is_secret, may_hold_secret, signature_of
from celery_admin_runner.encoding import (
    CALL_MAX_BYTES,
    FORCED,
    SHORTENED,
    readable,
    storable_text,
    to_plain,
)
from celery_admin_runner.exceptions import NotEncodable, TaskNotFound
from celery_admin_runner.parameters import UNREADABLE, Signature, typed_secrets
from celery_admin_runner.redaction import MASK, is_secret_name, scrubbed
from celery_admin_runner.registry import get_task

#: Length at which Celery too shortens what it shows of arguments.
REPR_MAX_LENGTH = 1024


@dataclass(frozen=True, kw_only=True)
class StoredCall:
    """The arguments of a call as plain JSON, secrets masked, and the texts of these secrets."""

    args: list[Any]
    kwargs: dict[str, Any]
    secrets: set[str]

    @property
    def argsrepr(self) -> str:
        """For Celery's events and logs."""
        return str(saferepr(tuple(readable(self.args)), REPR_MAX_LENGTH))

    @property
    def kwargsrepr(self) -> str:
        """For Celery's events and logs."""
        return str(saferepr(readable(self.kwargs), REPR_MAX_LENGTH))


def stored_call(task_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> StoredCall:
    """Return the arguments of a call as the journal stores them; never raises.

    What JSON can't hold is stored as ``{"value": text, "forced_json": true}``, what is too
    large as ``{"value": text, "shortened": true}``. A task that is not registered here has
    no signature: then only REDACT tells what is secret.
    """
    places: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    bound = _bound(task_name, args, kwargs)
    stored: dict[int | str, Any] = {}
    secrets: set[str] = set()
    for place, value in places:
        stored[place], found = _stored(place, value, bound.get(place))
        secrets |= found
    texts = frozenset(secrets)
    clean = _bounded({place: scrubbed(value, texts) for place, value in stored.items()})
    return StoredCall(
        args=[clean[place] for place in range(len(args))],
        kwargs={storable_text(str(name)): clean[name] for name in kwargs},
        secrets=secrets,
    )


def _bound(
    task_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[int | str, Argument]:
    """Return the argument at each place of the call, as far as the task's signature is known."""
    signature = _signature(task_name)
    if signature is None:
        return {}
    arguments = bind(signature, args, kwargs).arguments
    positional = [argument for argument in arguments if not argument.key]
    bound: dict[int | str, Argument] = dict(enumerate(positional))
    return bound | {argument.key: argument for argument in arguments if argument.key}


def _signature(task_name: str) -> Signature | None:
    try:
        return signature_of(get_task(task_name))
    except (TaskNotFound, *UNREADABLE):
        return None


def _stored(place: int | str, value: Any, argument: Argument | None) -> tuple[Any, set[str]]:
    """Return a value as plain JSON, masked, and the texts of the secrets in it."""
    is_hidden = (isinstance(place, str) and is_secret_name(place)) or (
        argument is not None and is_secret(argument.parameter)
    )
    try:
        tree = wire.to_wire(value, only_held=True)
        sent = wire.revealed(tree)
        secrets = [] if argument is None else list(_typed_secrets(argument, sent))
        texts = wire.secret_texts([tree, wire.Hidden(sent if is_hidden else secrets)])
        # In a list, as the row holds it: that is one level more.
        [plain] = to_plain([MASK if is_hidden else wire.masked(tree)])
    except (NotEncodable, PydanticUserError, *UNREADABLE):
        is_hidden = is_hidden or (argument is not None and may_hold_secret(argument.parameter))
        texts = wire.secret_texts(wire.Hidden(value)) if is_hidden else set()
        plain = MASK if is_hidden else {"value": _text(value), FORCED: True}
    return plain, texts


def _typed_secrets(argument: Argument, sent: Any) -> list[Any]:
    return list(typed_secrets(argument.parameter.annotation, sent, is_secret_name))


def _text(value: Any) -> str:
    """Return a value as text for people, the secret keys in it masked."""
    try:
        shown = redaction.masked(value)
    except RecursionError:
        # It holds itself: what may be in it is not shown.
        shown = f"<{type(value).__name__}>"
    return storable_text(safe_repr(shown))[:REPR_MAX_LENGTH]


def _bounded(stored: dict[int | str, Any]) -> dict[int | str, Any]:
    """Return the values, the largest as text if all together are too large for a row."""
    sizes = {place: len(json.dumps(value)) for place, value in stored.items()}
    for place in sorted(sizes, key=lambda place: -sizes[place]):
        if sum(sizes.values()) <= CALL_MAX_BYTES:
            break
        text = json.dumps(stored[place], ensure_ascii=False)[:REPR_MAX_LENGTH]
        stored[place] = {"value": f"{text}…", SHORTENED: True}
        sizes[place] = len(text)
    return stored
