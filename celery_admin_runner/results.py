"""A task's result, or its exception, as what fits a row; and back."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from traceback import format_exception_only
from typing import Any

from kombu.utils.encoding import safe_str

from celery_admin_runner.ansi import without_escapes
from celery_admin_runner.conf import settings
from celery_admin_runner.encoding import ForeignCode, from_plain, storable_text, text_of, to_plain
from celery_admin_runner.exceptions import NotEncodable
from celery_admin_runner.redaction import EVERYTHING, masked, scrub, scrubbed

#: What decoding a value raises where a mask stands in the middle of it (``UUID("***")``).
UNDECODABLE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)

#: What is stored in place of a text, where it can't be told which part of it is secret.
ALL_HIDDEN = "Not shown: which of the arguments are secret could not be told."


@dataclass(frozen=True, kw_only=True)
class StoredResult:
    """What is stored of a result."""

    #: Plain JSON data that fits a row, perhaps shortened.
    shown: Any
    #: The JSON text of all of it, where ``shown`` is shortened; else "".
    whole: str = ""


def storable_result(result: Any, secrets: Iterable[str] = ()) -> Any:
    """Return a task's result as plain JSON data that fits a row; see ``stored_result``."""
    return stored_result(result, secrets).shown


def stored_result(
    result: Any, secrets: Iterable[str] = (), *, force_json: bool = True
) -> StoredResult:
    """Return what is stored of a task's result.

    What JSON can't hold becomes ``{"value": str(result), "forced_json": true}``;
    without ``force_json`` it raises NotEncodable. What is larger than
    RESULT_MAX_BYTES is cut where it is shown, and says so:
    ``{"value": ..., "shortened": true, "bytes": n}``. Keys that REDACT names, and
    the call's own secrets, are masked.
    """
    try:
        with ForeignCode():
            plain = masked(to_plain(result))
    except NotEncodable:
        if not force_json:
            raise
        plain = {"value": _text_of(result), "forced_json": True}
    plain = scrubbed(plain, frozenset(secrets))
    whole = json.dumps(plain, ensure_ascii=False)
    text = whole.encode(errors="replace")
    if len(text) > settings.RESULT_MAX_BYTES:
        kept = text[: settings.RESULT_MAX_BYTES].decode(errors="ignore")
        shown = {"value": kept, "shortened": True, "bytes": len(text)}
        return StoredResult(shown=shown, whole=whole)
    return StoredResult(shown=plain)


def read_result(shown: Any, whole: str = "") -> Any:
    """Return a stored result with its types; its plain data where a mask broke one of them."""
    plain = json.loads(whole) if whole else shown
    try:
        return from_plain(plain)
    except UNDECODABLE:
        return plain


def exception_text(exception: BaseException) -> str:
    """Return the type and the message, as the last line of a traceback shows them."""
    try:
        with ForeignCode():
            return "".join(format_exception_only(exception)).strip()
    except NotEncodable:
        return type(exception).__name__


def task_text(text: Any, secrets: Iterable[str]) -> str:
    """Return a text of a task as it is stored: without secrets, and without ANSI escapes."""
    shown, hidden = safe_str(text or ""), set(secrets)
    if shown and EVERYTHING in hidden:
        return ALL_HIDDEN
    # A secret may hold an escape, and an escape may stand in the midst of a secret.
    return storable_text(scrub(without_escapes(scrub(shown, hidden)), hidden))


def _text_of(result: Any) -> str:
    """Return the text of a result that is no JSON, its secret keys masked; never raises."""
    try:
        with ForeignCode():
            shown = masked(result)
    except NotEncodable:
        # It holds itself, or lets nobody look into it: what may be in it is not shown.
        shown = f"<{type(result).__name__}>"
    return storable_text(text_of(shown))
