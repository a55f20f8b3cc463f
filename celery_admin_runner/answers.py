"""The JSON answers that our views give, and what of a request they read alike."""

from __future__ import annotations

from http import HTTPStatus

from django.core.exceptions import BadRequest
from django.http import HttpRequest, JsonResponse
from django.utils.translation import gettext as _
from pydantic import ValidationError

from celery_admin_runner.exceptions import ALL

JSON = "application/json"


def is_json(request: HttpRequest) -> bool:
    """Tell whether the request brings JSON, and so wants JSON back."""
    return request.method == "POST" and request.content_type == JSON


def errors_response(errors: dict[str, list[str]], status: HTTPStatus) -> JsonResponse:
    """Answer with errors: by parameter, or under ``"__all__"``."""
    return JsonResponse({"errors": errors}, status=status)


def bad_request(*texts: str) -> JsonResponse:
    """Answer that the request can't be understood, and why."""
    return errors_response({ALL: list(texts)}, HTTPStatus.BAD_REQUEST)


def too_large() -> JsonResponse:
    """Answer that the body is larger than any that makes sense."""
    return bad_request(_("The body is too large."))


def forbidden() -> JsonResponse:
    """Answer that the user may not do this, or is nobody."""
    return errors_response({ALL: [forbidden_text()]}, HTTPStatus.FORBIDDEN)


def forbidden_text() -> str:
    """Say the same of what is another's and of what there is not."""
    return _("You are not allowed to do this.")


def validation_texts(error: ValidationError) -> list[str]:
    """Return what is wrong with a body, each message with its place."""
    return [
        ": ".join(filter(None, [".".join(map(str, item["loc"])), item["msg"]]))
        for item in error.errors(include_url=False, include_context=False, include_input=False)
    ]


def flag(request: HttpRequest, name: str) -> bool | None:
    """Return a yes (1) or no (0) of the query, or None; raises BadRequest for anything else."""
    text = request.GET.get(name, "")
    if text not in {"", "0", "1"}:
        raise BadRequest(
            _("%(name)s: 0 or 1 is needed, not “%(text)s”.") % {"name": name, "text": text[:50]}
        )
    return None if text == "" else text == "1"
