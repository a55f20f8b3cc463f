"""A user's own runs as JSON: as they are, what has changed, and which end was seen."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Annotated, cast

from django.contrib.auth.decorators import login_not_required
from django.core.exceptions import (
    BadRequest,
    PermissionDenied,
    RequestDataTooBig,
    TooManyFieldsSent,
)
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_protect
from django.views.decorators.http import require_POST, require_safe
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from celery_admin_runner import answers
from celery_admin_runner.live import payload, selection
from celery_admin_runner.live.payload import RUNS_MAX
from celery_admin_runner.live.selection import ID_MAX, Selected, Selection

if TYPE_CHECKING:
    from celery_admin_runner.querysets import AnyUser

#: Versions that a page may know: of the runs it asks for, and of as many that it was shown.
KNOWN_MAX = 2 * RUNS_MAX
#: Larger bodies are refused: RUNS_MAX ids are a tenth of it.
BODY_MAX_BYTES = 64 * 1024
_ID = re.compile(r"[1-9][0-9]{0,18}")
#: A version is opaque: only what never was one is refused.
_VERSION = re.compile(r"[0-9A-Za-z_-]{1,64}")

View = Callable[[HttpRequest], HttpResponse]


class SeenRequest(BaseModel):
    """The body of a request to mark runs as seen."""

    model_config = ConfigDict(extra="forbid", strict=True)

    ids: Annotated[list[Annotated[int, Field(ge=1, le=ID_MAX)]], Field(max_length=RUNS_MAX)]


def own_view(view: View) -> View:
    """Answer in JSON, and only who is signed in; also where a site sends others to its login.

    Without a transaction of the request: a page asks each second, and with ATOMIC_REQUESTS
    each could lock the file of SQLite. Each statement holds by itself.
    """

    @wraps(view)
    def answer(request: HttpRequest) -> HttpResponse:
        if not (request.user.is_authenticated and request.user.is_active):
            return answers.forbidden()
        try:
            return view(request)
        except PermissionDenied:
            return answers.forbidden()
        except BadRequest as error:
            return answers.bad_request(str(error))
        except ValidationError as error:
            return answers.bad_request(*answers.validation_texts(error))
        except RequestDataTooBig:
            return answers.too_large()
        except TooManyFieldsSent:
            return answers.bad_request(_("There are too many parameters."))

    for alias in connections:
        transaction.non_atomic_requests(using=alias)(answer)
    return login_not_required(never_cache(answer))


@own_view
@require_safe
def snapshot(request: HttpRequest) -> HttpResponse:
    """Answer with the runs as they are: those of ``ids``, else all for display, or both."""
    selected = _selected(request)
    return JsonResponse(payload.snapshot(selected.runs, more=selected.more))


@own_view
@require_safe
def changes(request: HttpRequest) -> HttpResponse:
    """Answer with what differs from the versions that the page knows; ``ids`` as above."""
    known = _known(request)
    return JsonResponse({"messages": list(payload.changes(_selected(request).runs, known))})


@own_view
@csrf_protect
@require_POST
def mark_seen(request: HttpRequest) -> HttpResponse:
    """Mark the runs as seen that JSON or a form names: all of them one's own, or none."""
    return JsonResponse(selection.mark_seen(_user(request), _posted_ids(request)))


def _selected(request: HttpRequest) -> Selected:
    ids, display = _asked_ids(request), answers.flag(request, "display")
    asked = Selection(
        ids=frozenset(ids or ()), display=ids is None if display is None else display
    )
    return selection.select(_user(request), asked, timezone.now())


def _asked_ids(request: HttpRequest) -> list[int] | None:
    """Return the ids of the query; None: it names none, not even an empty list."""
    return _ids(request.GET.getlist("ids")) if "ids" in request.GET else None


def _posted_ids(request: HttpRequest) -> list[int]:
    """Return the ids of the body; raises BadRequest, ValidationError or RequestDataTooBig."""
    if answers.is_json(request):
        if len(request.body) > BODY_MAX_BYTES:
            raise RequestDataTooBig
        return SeenRequest.model_validate_json(request.body).ids
    if "ids" not in request.POST:
        raise BadRequest(_("ids: say which runs."))
    return _ids(request.POST.getlist("ids"))


def _known(request: HttpRequest) -> dict[int, str]:
    """Return the versions by id that the page knows; raises BadRequest."""
    texts = _listed(request.GET.getlist("known"))
    if len(texts) > KNOWN_MAX:
        raise _too_many("known", KNOWN_MAX)
    known = {}
    for text in texts:
        pk, _colon, version = text.partition(":")
        if not _VERSION.fullmatch(version):
            raise BadRequest(_("known: “%(text)s” is no version of a run.") % {"text": text[:50]})
        known[_number("known", pk)] = version
    return known


def _ids(values: list[str]) -> list[int]:
    """Return ids that are separated by commas, or given each by itself; raises BadRequest."""
    texts = _listed(values)
    if len(texts) > RUNS_MAX:
        raise _too_many("ids", RUNS_MAX)
    return [_number("ids", text) for text in texts]


def _listed(values: list[str]) -> list[str]:
    joined = ",".join(filter(None, values))
    return joined.split(",") if joined else []


def _number(name: str, text: str) -> int:
    number = int(text) if _ID.fullmatch(text) else 0
    if not 1 <= number <= ID_MAX:
        raise BadRequest(
            _("%(name)s: “%(text)s” is no id of a run.") % {"name": name, "text": text[:50]}
        )
    return number


def _too_many(name: str, limit: int) -> BadRequest:
    return BadRequest(
        _("%(name)s: no more than %(limit)d at once.") % {"name": name, "limit": limit}
    )


def _user(request: HttpRequest) -> AnyUser:
    return cast("AnyUser", request.user)
