"""What lets pages follow their runs: what changed of a run, and of the runs of a list."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import wraps
from typing import Any, TypedDict

from django.contrib.admin import ModelAdmin
from django.contrib.admin.helpers import AdminForm, Fieldset
from django.contrib.admin.utils import flatten_fieldsets, unquote
from django.core.exceptions import PermissionDenied
from django.db.models import Count, F, Sum, Window
from django.db.models.functions import Length
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.template.loader import render_to_string
from django.urls import URLPattern, path
from django.utils import timezone
from django.utils.duration import duration_iso_string
from django.utils.html import conditional_escape
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from celery_admin_runner import answers
from celery_admin_runner.admin import display
from celery_admin_runner.admin.dependencies import dependencies_context
from celery_admin_runner.admin.links import model_url
from celery_admin_runner.admin.move import kept_text, overdue_text
from celery_admin_runner.capture import NOTE
from celery_admin_runner.models import TaskRunOutput, TaskRunRecord

#: Characters of output that a page shows, and that an answer adds to it.
PART_MAX_LENGTH = 256 * 1024
#: Pieces of output that a page shows, and that an answer adds to it.
PART_MAX_PIECES = 5000
#: Notes of what was left out that an answer repeats.
NOTES_MAX = 20
#: Runs of a list that are asked for at once.
LIST_MAX = 200
#: The columns of the list that change while a run goes on.
LIVE_COLUMNS = ("state_column", "earliest_start", "started", "took")
#: What a page's list of runs needs of a run.
_LIST_FIELDS = ("state", "run_by", "eta", "due_at", "started_at", "finished_at")
#: The largest number of a piece of output that a database keeps.
_SEQ_MAX = 2**63 - 1
_DIGITS = re.compile(r"[0-9]{1,19}")
_TEMPLATES = "admin/celery_admin_runner/taskrunrecord"


class Piece(TypedDict):
    """A piece of output."""

    seq: int
    stream: str
    text: str


class Moment(TypedDict):
    """A moment, or a duration, in ISO 8601 and as the page shows it."""

    iso: str
    text: str


class Progress(TypedDict):
    """How far a run is; ``total`` None: unknown."""

    current: int
    total: int | None
    message: str


class Answer(TypedDict):
    """What a page that follows a run is told."""

    state: str
    label: str
    finished: bool
    times: dict[str, Moment | None]
    progress: Progress | None
    output: list[Piece]
    last_seq: int
    #: There is more output than this answer holds.
    more: bool
    #: The parts of the page, as its own templates show them.
    fragments: dict[str, str]


class ListedRun(TypedDict):
    """What a list that follows its runs is told of one of them."""

    state: str
    label: str
    finished: bool
    #: The HTML of each column that changes, by its name.
    cells: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class OutputPart:
    """Pieces of a run's output in their order; not all that were asked for if ``is_cut``."""

    pieces: Sequence[TaskRunOutput]
    #: Where something was left out of the output: such a piece comes later than its number says.
    notes: Sequence[TaskRunOutput] = ()
    is_cut: bool
    #: The number of the latest piece that is known.
    last_seq: int

    @classmethod
    def latest(cls, run: TaskRunRecord) -> OutputPart:
        """Return the end of the output."""
        pieces, is_cut = _cut(run.output.all(), order="-seq")
        pieces.reverse()
        return cls(pieces=pieces, is_cut=is_cut, last_seq=pieces[-1].seq if pieces else 0)

    @classmethod
    def after(cls, run: TaskRunRecord, seq: int) -> OutputPart:
        """Return the beginning of what came after the piece ``seq``."""
        pieces, is_cut = _cut(run.output.filter(seq__gt=seq), order="seq")
        notes = run.output.filter(stream=NOTE, seq__lte=seq).order_by("-seq")[:NOTES_MAX]
        last_seq = pieces[-1].seq if pieces else seq
        return cls(pieces=pieces, notes=list(notes), is_cut=is_cut, last_seq=last_seq)

    @property
    def html(self) -> str:
        """The pieces as the page shows them."""
        return display.output_pieces(self.pieces)

    @property
    def notes_html(self) -> str:
        """The notes as the page shows them."""
        return display.output_pieces(self.notes)


def _cut(pieces: Any, *, order: str) -> tuple[list[TaskRunOutput], bool]:
    """Return the first pieces in this order, and whether there are more; one query.

    The piece that goes over PART_MAX_LENGTH is still given, so that there is always a next one.
    """
    read = pieces.annotate(
        length=Length("text"),
        so_far=Window(Sum(Length("text")), order_by=order),
        number=Window(Count("pk")),
    ).filter(so_far__lt=F("length") + PART_MAX_LENGTH)
    first = list(read.order_by(order)[:PART_MAX_PIECES])
    return first, bool(first) and first[0].number > len(first)


class RunLiveMixin(ModelAdmin):  # type: ignore[type-arg]
    """The pages of runs that follow them, and a run's complete output."""

    def get_urls(self) -> list[URLPattern]:
        """Add what the pages ask for, and the complete output."""
        names = f"{self.opts.app_label}_{self.opts.model_name}"
        live = self._json_view
        return [
            path("live/", live(self.live_list_view), name=f"{names}_live_list"),
            path("<path:object_id>/live/", live(self.live_view), name=f"{names}_live"),
            path(
                "<path:object_id>/output/",
                self.admin_site.admin_view(require_safe(self.output_view)),
                name=f"{names}_output",
            ),
            *super().get_urls(),
        ]

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        """Add the parts of the page that follow the run, and the end of its output."""
        run: TaskRunRecord = context["original"]
        output = OutputPart.latest(run)
        context |= self._parts(request, run, list(context["adminform"]))
        context |= {
            "output": output,
            "live_url": model_url(self.admin_site, self.model, "live", run.pk),
            "live_after": str(output.last_seq),
            "output_url": model_url(self.admin_site, self.model, "output", run.pk),
        }
        return super().render_change_form(request, context, *args, **kwargs)

    def live_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Answer with the run as it is, and with its output after the piece ``?after=``."""
        run = self._visible_run(request, object_id)
        after = request.GET.get("after", "0")
        if not _DIGITS.fullmatch(after) or int(after) > _SEQ_MAX:
            return answers.bad_request(_("“after” is not the number of a piece of output."))
        output = OutputPart.after(run, int(after))
        context = self._parts(request, run, self._fieldsets(request, run))
        return JsonResponse(_answer(run, output, fragments=_fragments(request, context)))

    def live_list_view(self, request: HttpRequest) -> HttpResponse:
        """Answer with those of the runs ``?ids=`` that the user may see; one query."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        keys = request.GET.get("ids", "").split(",")[:LIST_MAX]
        if not all(_DIGITS.fullmatch(key) and int(key) <= _SEQ_MAX for key in keys):
            return answers.bad_request(_("“ids” are not the numbers of runs."))
        runs = self.get_queryset(request).filter(pk__in=keys).only(*_LIST_FIELDS)
        return JsonResponse({"runs": {str(run.pk): self._listed(run) for run in runs}})

    def output_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Answer with the complete output as a file of plain text.

        Before the run's own stands that of its dependencies, as far as the user may see them.
        """
        run = self._visible_run(request, object_id)
        return HttpResponse(
            run.complete_output(self.get_queryset(request)),  # type: ignore[arg-type]
            content_type="text/plain; charset=utf-8",
            headers={
                "Content-Disposition": f'attachment; filename="run-{run.pk}.txt"',
                "X-Content-Type-Options": "nosniff",
            },
        )

    def _visible_run(self, request: HttpRequest, object_id: str) -> TaskRunRecord:
        run: TaskRunRecord | None = self.get_object(request, unquote(object_id))
        if not self.has_view_permission(request, run):
            raise PermissionDenied
        if run is None:
            raise Http404
        return run

    def _listed(self, run: TaskRunRecord) -> ListedRun:
        cells = {
            name: str(conditional_escape(getattr(self, name)(run)))
            for name in LIVE_COLUMNS
            if name in {*self.list_display, "earliest_start"}
        }
        return ListedRun(
            state=run.state,
            label=display.state_label(run.state),
            finished=run.is_finished,
            cells=cells,
        )

    def _parts(
        self, request: HttpRequest, run: TaskRunRecord, fieldsets: Sequence[Fieldset]
    ) -> dict[str, Any]:
        """Return the context of the parts that follow the run."""
        head: dict[str, Any] = self.get_head_context(request, run)  # type: ignore[attr-defined]
        now = timezone.now()
        overdue = overdue_text(run, now)
        return head | {
            "is_stale": run.is_stale(now),
            "kept_text": "" if head["doubt"] or overdue else kept_text(run, now),
            "overdue_text": overdue,
            "heard_of": display.time_text(run.heard_of_at),
            "progress": display.progress_of(run),
            "outcome_fieldsets": fieldsets[:1],
            "detail_fieldsets": fieldsets[1:],
            **dependencies_context(run, self.get_queryset(request), self.admin_site),  # type: ignore[arg-type]
        }

    def _fieldsets(self, request: HttpRequest, run: TaskRunRecord) -> list[Fieldset]:
        """Return the fields of the page as admin makes them."""
        fieldsets: Any = self.get_fieldsets(request, run)
        names = flatten_fieldsets(fieldsets)
        form = self.get_form(request, run, change=True, fields=names)(instance=run)
        return list(AdminForm(form, list(fieldsets), {}, names, model_admin=self))

    def _json_view(self, view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
        """Protect a view as admin does, but answer who is not logged in with JSON."""
        protected = self.admin_site.admin_view(require_safe(view))

        @wraps(view)
        @never_cache
        def answer(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
            if not self.admin_site.has_permission(request):
                return answers.forbidden()
            return protected(request, *args, **kwargs)

        return answer


def _answer(run: TaskRunRecord, output: OutputPart, *, fragments: dict[str, str]) -> Answer:
    return Answer(
        state=run.state,
        label=display.state_label(run.state),
        finished=run.is_finished,
        times=_times(run),
        progress=_progress(run),
        output=list(_pieces(output)),
        last_seq=output.last_seq,
        more=output.is_cut,
        fragments=fragments | {"output": output.html, "notes": output.notes_html},
    )


def _fragments(request: HttpRequest, context: dict[str, Any]) -> dict[str, str]:
    """Render the parts of the page that follow the run; their forms hold a token that is valid."""
    return {
        name: render_to_string(f"{_TEMPLATES}/run_{name}.html", context, request)
        for name in ("head", "progress", "outcome", "details", "dependencies")
    }


def _times(run: TaskRunRecord) -> dict[str, Moment | None]:
    return {
        "created": _moment(run.created_at),
        "eta": _moment(run.eta),
        "due": _moment(run.due_at),
        "started": _moment(run.started_at),
        "finished": _moment(run.finished_at),
        "duration": _duration(run.duration),
    }


def _moment(moment: datetime | None) -> Moment | None:
    if moment is None:
        return None
    return Moment(iso=moment.isoformat(), text=display.time_text(moment))


def _duration(duration: timedelta | None) -> Moment | None:
    if duration is None:
        return None
    return Moment(iso=duration_iso_string(duration), text=display.duration_text(duration))


def _progress(run: TaskRunRecord) -> Progress | None:
    if display.progress_of(run) is None:
        return None
    return Progress(
        current=run.progress_current,
        total=run.progress_total,
        message=run.progress_message,
    )


def _pieces(output: OutputPart) -> Iterator[Piece]:
    for piece in output.pieces:
        yield Piece(seq=piece.seq, stream=piece.stream, text=piece.text)
