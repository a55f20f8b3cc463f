"""What the pages have in common that ask first, and then do something to runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.db import router, transaction
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.utils.crypto import constant_time_compare, salted_hmac
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.http import require_http_methods

from celery_admin_runner.admin import display
from celery_admin_runner.admin.links import model_url, record_address, record_url
from celery_admin_runner.admin.pages import COUNT_MAX_OF_SEVERAL, Counted
from celery_admin_runner.admin.sheets import Preview
from celery_admin_runner.encoding import storable_text
from celery_admin_runner.forms.keys import run_key
from celery_admin_runner.models import TaskRunRecord

#: The field that says that what is done was shown and confirmed: a digest of it.
CONFIRMED = "_confirmed"
#: The style sheet of these pages, and of the buttons that lead to them.
QUESTIONS_CSS = "celery_admin_runner/questions.css"
#: The style sheet of what is sent, as it is shown before.
TASKS_CSS = "celery_admin_runner/tasks.css"
#: The field with why something is run.
REASON = "reason"
#: The field with the newest such run, by this user, that the page with the button knew of.
KNOWN = "known"
#: So many runs can be cancelled, or run again, at once.
MAX_SELECTED = 100
#: So many different obstacles are told of after several were asked for.
REFUSALS_SHOWN = 5
READ_OR_POST = ("GET", "HEAD", "POST")
POST = ("POST",)


@dataclass(frozen=True, kw_only=True)
class Item:
    """A selected run on a page that asks."""

    pk: int
    url: str
    state: SafeString
    task_name: str
    label: str
    #: By whom it was asked for, and when.
    about: str
    #: What happens to it, or why nothing can.
    text: str


class AskingAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Finds the runs that are asked about, and shows the question."""

    templates = "admin/celery_admin_runner/taskrunrecord"

    def asked_run(self, request: HttpRequest, object_id: str) -> TaskRunRecord:
        """Return the run of a page; raises Http404 for one that the user may not see."""
        run: TaskRunRecord | None = self.get_object(request, unquote(object_id))
        if run is None:
            raise Http404
        if not self.has_view_permission(request, run):
            raise PermissionDenied
        return run

    def selected_runs(self, request: HttpRequest) -> list[TaskRunRecord]:
        """Return the posted runs that the user may see, the oldest first; at most MAX_SELECTED."""
        posted = request.POST.getlist(ACTION_CHECKBOX_NAME)
        keys = [key for text in posted if (key := run_key(text)) is not None]
        runs = self.get_queryset(request).filter(pk__in=keys[:MAX_SELECTED])
        return list(runs.order_by("pk"))

    def is_sane_number(self, request: HttpRequest, selected: QuerySet[Any]) -> bool:
        """Tell whether so many can be asked about at once; if not, say so."""
        counted = Counted.of(selected, at_most=COUNT_MAX_OF_SEVERAL)
        if counted.number > MAX_SELECTED:
            text = _("%(number)s are selected; at most %(limit)s can be taken at once.")
            self.message_user(
                request, text % {"number": counted, "limit": MAX_SELECTED}, messages.ERROR
            )
        return counted.number <= MAX_SELECTED

    def protected(
        self, view: Callable[..., HttpResponse], methods: Sequence[str]
    ) -> Callable[..., HttpResponse]:
        """Return a view as URLs take it.

        Non-atomic, so that with ATOMIC_REQUESTS too a run is committed before it is
        sent, and its user is told what came of it.
        """
        database = router.db_for_write(TaskRunRecord)
        protected = self.admin_site.admin_view(require_http_methods(methods)(view))
        return transaction.non_atomic_requests(using=database)(protected)

    def ask(
        self, request: HttpRequest, template: str, *, title: str, **context: Any
    ) -> HttpResponse:
        """Show a page that asks: ``question.html`` says what it needs."""
        request.current_app = self.admin_site.name
        return TemplateResponse(
            request,
            f"{self.templates}/{template}",
            {
                **self.admin_site.each_context(request),
                "title": title,
                "original": title,
                "opts": self.opts,
                "media": self.media,
                "has_view_permission": True,
                "confirmed_field": CONFIRMED,
                "selection_field": ACTION_CHECKBOX_NAME,
                **context,
            },
        )

    def about(self, run: TaskRunRecord) -> dict[str, Any]:
        """Return what a page that asks about one run shows of it."""
        return {
            "run": run,
            "run_url": self.run_url(run),
            "back_url": self.run_url(run),
            "state_badge": display.state_badge(run.state),
            "user_text": display.user_text(run),
        }

    def item(self, run: TaskRunRecord, text: str) -> Item:
        """Return a run of a selection, with what happens to it."""
        return Item(
            pk=run.pk,
            url=self.run_url(run),
            state=display.state_badge(run.state),
            task_name=run.task_name,
            label=run.label,
            about=_("asked for by %(user)s, %(moment)s")
            % {"user": display.user_text(run), "moment": display.time_text(run.created_at)},
            text=text,
        )

    def before_starting(
        self,
        request: HttpRequest,
        previews: Sequence[Preview],
        newest: TaskRunRecord | None,
        *,
        needs_reason: bool,
        error: str = "",
        repeated: TaskRunRecord | None = None,
    ) -> dict[str, Any]:
        """Return what a page shows that asks before it starts runs.

        ``newest`` is the newest such run, and ``repeated`` a ``repeated_run``.
        """
        return {
            "known": key_of(newest),
            "digest": digest_of(previews),
            "reason_field": REASON,
            "needs_reason": needs_reason,
            "reason": request.POST.get(REASON, ""),
            "errors": error,
            "repeated": repeated,
            "repeated_url": (repeated and record_url(self.admin_site, request, repeated)) or "",
            "media": self.media + forms.Media(css={"all": [TASKS_CSS]}),
        }

    def log_runs(self, request: HttpRequest, runs: Sequence[TaskRunRecord], text: str) -> None:
        """Leave a LogEntry for each of these runs."""
        LogEntry.objects.log_actions(
            user_id=request.user.pk,  # type: ignore[arg-type]
            queryset=runs,
            action_flag=CHANGE,
            change_message=text,
        )

    def tell_alike(self, request: HttpRequest, texts: Sequence[str]) -> None:
        """Say each of these once, with how often; not too many."""
        counted = list(Counter(texts).items())
        for text, count in counted[:REFUSALS_SHOWN]:
            times = f" (× {count})" if count > 1 else ""
            self.message_user(request, text + times, messages.ERROR)
        if hidden := sum(count for _text, count in counted[REFUSALS_SHOWN:]):
            text = ngettext("And %(count)s more.", "And %(count)s more.", hidden)
            self.message_user(request, text % {"count": hidden}, messages.ERROR)

    def run_url(self, run: TaskRunRecord) -> str:
        """Return the address of a run's page."""
        return record_address(self.admin_site, run)

    def view_url(self, view: str, *args: object) -> str:
        """Return the address of one of the journal's views."""
        return model_url(self.admin_site, self.model, view, *args)

    def back_to_list(self, request: HttpRequest) -> HttpResponse:
        """Go back to the list, as it was filtered if the question came from there."""
        return redirect(self.list_url(request))

    def list_url(self, request: HttpRequest) -> str:
        """Return the address of the list, with the filter that this request names."""
        query = request.GET.urlencode()
        return self.view_url("changelist") + (f"?{query}" if query else "")

    def selected_url(self, request: HttpRequest, view: str) -> str:
        """Return the address to which a question about a selection is answered."""
        query = request.GET.urlencode()
        return self.view_url(view) + (f"?{query}" if query else "")


def yes_now(number: int) -> str:
    """Return the text of the button that runs so many at once; "" for none."""
    text = ngettext("Yes, run it now", "Yes, run these %(count)s now", number)
    return text % {"count": number} if number else ""


def key_of(run: TaskRunRecord | None) -> str:
    """Return a run's primary key for the field KNOWN; no run's is 0."""
    return str(run.pk if run else 0)


def repeated_run(request: HttpRequest, newest: TaskRunRecord | None) -> TaskRunRecord | None:
    """Return the run that a page of which the button was pressed twice has made already.

    ``newest`` is the newest such run of this user. Of two requests at the very same moment
    neither sees the other's run.
    """
    known = run_key(request.POST.get(KNOWN, "")) or 0
    return newest if newest and newest.pk > known else None


def reason_of(request: HttpRequest) -> str:
    """Return why something is run, as every database can store it."""
    return storable_text(request.POST.get(REASON, "").strip())


def digest_of(previews: Iterable[Preview]) -> str:
    """Return what only this server can make of exactly these calls."""
    text = json.dumps([asdict(preview) for preview in previews])
    return salted_hmac("celery_admin_runner.confirm", text, algorithm="sha256").hexdigest()


def is_confirmed(request: HttpRequest, digest: str) -> bool:
    """Tell whether the request answers a page that showed what has this digest."""
    return constant_time_compare(request.POST.get(CONFIRMED, ""), digest)
