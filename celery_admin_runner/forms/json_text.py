"""JSON as people type it, and as it is shown to them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import partial
from typing import Any

from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _
from kombu.utils.json import loads
from pydantic import PydanticUserError

from celery_admin_runner.binding import Argument
from celery_admin_runner.calls import same, wire_of
from celery_admin_runner.encoding import CALL_MAX_BYTES, from_plain, readable, to_plain
from celery_admin_runner.exceptions import NotEncodable
from celery_admin_runner.parameters import UNREADABLE, Parameter

#: Python refuses to read longer integers.
DIGITS_MAX = 4300

#: What the decoders of kombu's types raise for values that are none of theirs.
_BAD_ENVELOPE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def parse_json(text: str) -> Any:
    """Return the value of a JSON text; kombu's notation of dates and the like counts.

    Raises Django's ValidationError, in words that never quote the text.
    """
    if len(text.encode(errors="surrogatepass")) > CALL_MAX_BYTES:
        raise ValidationError(_too_large(), code="too_large")
    try:
        return loads(text, _loads=_LOADS)
    except json.JSONDecodeError as error:
        raise ValidationError(
            _("Enter valid JSON: %(error)s (line %(line)s, column %(column)s)."),
            code="invalid",
            params={"error": error.msg, "line": error.lineno, "column": error.colno},
        ) from error
    except RecursionError as error:
        raise ValidationError(_("This JSON is nested too deeply."), code="too_deep") from error
    except _BAD_ENVELOPE as error:
        raise ValidationError(
            _(
                "A dict whose only keys are __type__ and __value__ is the notation of Celery's "
                "serializer for dates and the like; this one means nothing."
            ),
            code="envelope",
        ) from error


def _too_large() -> str:
    return _("This is too large: more than %(limit)s bytes of JSON.") % {"limit": CALL_MAX_BYTES}


def _no_constant(name: str) -> Any:
    raise ValidationError(
        _("%(name)s is no JSON: it can't be sent."), code="constant", params={"name": name}
    )


def _integer(digits: str) -> int:
    if len(digits) > DIGITS_MAX:
        raise ValidationError(
            _("A number has too many digits: more than %(limit)s."),
            code="digits",
            params={"limit": DIGITS_MAX},
        )
    return int(digits)


_LOADS = partial(json.loads, parse_constant=_no_constant, parse_int=_integer)


def json_text(value: Any, parameter: Parameter) -> str:
    """Return a value as the JSON that the parameter takes as the same value.

    Raises NotEncodable.
    """
    return _text(_short_plain(value, parameter))


def call_texts(arguments: Iterable[Argument]) -> dict[str, str]:
    """Return the positional and the keyword arguments of a call as JSON."""
    plain = [(item.key, _short_plain(item.value, item.parameter)) for item in arguments]
    return {
        "args": _text([value for key, value in plain if not key]),
        "kwargs": _text({key: value for key, value in plain if key}),
    }


def _text(plain: Any) -> str:
    indent = 2 if isinstance(plain, dict | list) else None
    return json.dumps(plain, ensure_ascii=False, indent=indent)


def _short_plain(value: Any, parameter: Parameter) -> Any:
    """Return plain data, without kombu's envelopes if pydantic reads the same from it."""
    plain = to_plain(value)
    short = readable(plain)
    return short if same(_read_back(short, parameter), from_plain(plain)) else plain


def _read_back(plain: Any, parameter: Parameter) -> Any:
    try:
        return wire_of(parameter, plain)
    except (*UNREADABLE, PydanticUserError, NotEncodable):
        return None
