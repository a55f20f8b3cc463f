"""The export page and action of the journal: who may, what of it, and the trace it leaves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from asgiref.sync import sync_to_async
from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import FieldError, PermissionDenied
from django.core.handlers.asgi import ASGIRequest
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.utils.translation import get_language, gettext_lazy, ngettext, override
from django.utils.translation import gettext as _
from import_export.admin import ExportActionMixin
from import_export.formats.base_formats import CSV
from import_export.forms import SelectableFieldsExportForm
from import_export.signals import post_export

from celery_admin_runner.admin.links import model_url
from celery_admin_runner.admin.pages import AFTER, BEFORE
from celery_admin_runner.encoding import storable_text
from celery_admin_runner.export import CsvBatch, TaskRunRecordResource, csv_batches
from celery_admin_runner.models import TaskRunRecord

#: The name of the hidden inputs that hold a selection.
SELECTION = "export_items"


@dataclass(frozen=True, kw_only=True)
class ExportEntry:
    """The LogEntry of one export: written before the first byte leaves, mended at the end."""

    pk: int
    #: What is exported: format and filter.
    what: str
    language: str | None

    @classmethod
    def start(cls, request: HttpRequest, what: str) -> ExportEntry:
        """Write that an export begins."""
        what = storable_text(what)
        entry = LogEntry.objects.create(
            user_id=request.user.pk,  # type: ignore[misc]
            content_type_id=ContentType.objects.get_for_model(TaskRunRecord).pk,
            object_repr=str(TaskRunRecord._meta.verbose_name_plural)[:200],
            action_flag=CHANGE,
            change_message=_("Export started: %(what)s") % {"what": what},
        )
        return cls(pk=entry.pk, what=what, language=get_language())

    def finish(self, rows: int, *, is_whole: bool = True) -> None:
        """Write how many runs left, all or until the client went away."""
        with override(self.language):
            if is_whole:
                text = ngettext(
                    "Exported %(rows)s run: %(what)s", "Exported %(rows)s runs: %(what)s", rows
                )
            else:
                text = ngettext(
                    "Export stopped after %(rows)s row: %(what)s",
                    "Export stopped after %(rows)s rows: %(what)s",
                    rows,
                )
        message = text % {"rows": rows, "what": self.what}
        LogEntry.objects.filter(pk=self.pk).update(change_message=message)


class ExportResponse(StreamingHttpResponse):
    """CSV on its way to the client, under WSGI and ASGI alike."""

    def __init__(
        self, request: HttpRequest, lines: Generator[str, None, None], **options: Any
    ) -> None:
        """Stream ``lines``; under ASGI they are made in the thread that Django's views run in."""
        self.lines = lines
        is_async = isinstance(request, ASGIRequest)
        super().__init__(_lines_in_thread(lines) if is_async else lines, **options)

    def close(self) -> None:
        """End the lines too, read or not: the server calls this when the client goes away."""
        self.lines.close()
        super().close()


class RunExportForm(SelectableFieldsExportForm):  # type: ignore[misc]
    """What to export as what: CSV, unless another format is chosen."""

    def __init__(self, formats: Sequence[Any], resources: Sequence[Any], **options: Any) -> None:
        """Choose the first format; a selection is checked against ``runs``."""
        runs: QuerySet[TaskRunRecord] = options.pop("runs")
        super().__init__(formats, resources, **options)
        self.fields["format"].initial = "0"
        self.fields[SELECTION] = forms.ModelMultipleChoiceField(
            queryset=runs.only("pk"), widget=forms.MultipleHiddenInput, required=False
        )

    @property
    def media(self) -> forms.Media:
        """The script that ticks all columns at once; the page works without it."""
        return forms.Media(js=["celery_admin_runner/export.js"])

    @property
    def columns(self) -> list[forms.BoundField]:
        """The boxes, one a column."""
        return [field for field in self if hasattr(field.field, "is_selectable_field")]

    @property
    def choices(self) -> list[forms.BoundField]:
        """The other visible fields."""
        return [
            field
            for field in self.visible_fields()
            if not hasattr(field.field, "is_selectable_field")
        ]


class RunExportMixin(ExportActionMixin):  # type: ignore[misc]
    """Export of what the user sees on the list, for who has ``export_taskrunrecord``."""

    resource_classes = (TaskRunRecordResource,)
    export_form_class = RunExportForm
    export_template_name = "admin/celery_admin_runner/taskrunrecord/export.html"
    show_change_form_export = False
    actions = ("export_admin_action",)

    def has_export_permission(self, request: HttpRequest) -> bool:
        """Tell whether the user may take runs away, and may see any."""
        permission = f"{self.opts.app_label}.export_{self.opts.model_name}"
        return request.user.has_perm(permission) and self.has_view_permission(request)

    def get_actions(self, request: HttpRequest, action_location: Any = None) -> Any:
        """Return the actions; import-export would add its own, without a permission.

        ``action_location`` is what Django 6.1 gives besides.
        """
        where = {} if action_location is None else {"action_location": action_location}
        return super(ExportActionMixin, self).get_actions(request, **where)

    @admin.action(
        permissions=["export"],
        description=gettext_lazy("Export selected %(verbose_name_plural)s"),
    )
    def export_admin_action(self, request: HttpRequest, queryset: Any) -> HttpResponseBase:
        """Show the export page for the selected runs.

        "Select all" goes there with the list's filter in the address: no run is
        named, so the request is small however many they are.
        """
        if self.is_skip_export_form_from_action_enabled():
            return self._do_file_export(self.get_export_formats()[0](), request, queryset)
        if request.POST.get("select_across") == "1":
            return redirect(self._export_url(request))
        selection = list(queryset.values_list("pk", flat=True))
        return self._export_page(
            request, self._export_form(request, initial={SELECTION: selection})
        )

    def export_action(self, request: HttpRequest) -> HttpResponseBase:
        """Show the export page, or export what it asks for."""
        if not self.has_export_permission(request):
            raise PermissionDenied
        try:
            runs = self.get_export_queryset(request)
        except IncorrectLookupParameters:
            text = _("This filter can't be read; choose the runs once more.")
            self.message_user(request, text, messages.ERROR)
            return redirect(self._list_url())
        if self.is_skip_export_form_enabled():
            return self._do_file_export(self.get_export_formats()[0](), request, runs)
        form = self._export_form(request, data=request.POST or None)
        if form.is_valid():
            if SELECTION in request.POST:
                selection = [run.pk for run in form.cleaned_data[SELECTION]]
                runs = self.get_queryset(request).filter(pk__in=selection)
            file_format = self.get_export_formats()[int(form.cleaned_data["format"])]()
            try:
                return self._do_file_export(file_format, request, runs, export_form=form)
            except (ValueError, FieldError) as error:
                self.message_user(request, str(error), messages.ERROR)
        return self._export_page(request, form)

    def get_export_queryset(self, request: HttpRequest) -> Any:
        """Return the runs of the list's search and filters, with all their columns."""
        return super().get_export_queryset(request).defer(None)

    def get_export_data(
        self, file_format: Any, request: HttpRequest, queryset: Any, **options: Any
    ) -> Any:
        """Return the file in one piece: every format but CSV."""
        entry = ExportEntry.start(request, self._what(request, file_format))
        return super().get_export_data(file_format, request, queryset, entry=entry, **options)

    def get_data_for_export(self, request: HttpRequest, queryset: Any, **options: Any) -> Any:
        """Return the table that a file is made of, and note its number of rows."""
        entry: ExportEntry = options.pop("entry")
        data = super().get_data_for_export(request, queryset, **options)
        entry.finish(len(data))
        return data

    def _do_file_export(
        self, file_format: Any, request: HttpRequest, queryset: Any, export_form: Any = None
    ) -> HttpResponseBase:
        """Return the file: CSV as a stream, the other formats as import-export makes them."""
        if type(file_format) is not CSV:
            response: HttpResponse = super()._do_file_export(
                file_format, request, queryset, export_form=export_form
            )
            return response
        resource_class = self.choose_export_resource_class(export_form, request)
        resource = resource_class(**self.get_export_resource_kwargs(request))
        fields = self.get_export_resource_fields_from_form(export_form)
        runs = resource.filter_export(queryset)
        entry = ExportEntry.start(request, self._what(request, file_format))
        filename = self.get_export_filename(request, queryset, file_format)
        stream = ExportResponse(
            request,
            _counted(csv_batches(runs, resource, fields), entry),
            content_type="text/csv; charset=utf-8",
            headers={"Content-Disposition": f'attachment; filename="{filename}"'},
        )
        post_export.send(sender=None, model=self.model)
        return stream

    def _export_form(self, request: HttpRequest, **options: Any) -> Any:
        return self.get_export_form_class()(
            self.get_export_formats(),
            self.get_export_resource_classes(request),
            runs=self.get_queryset(request),
            **options,
        )

    def _export_page(self, request: HttpRequest, form: Any) -> TemplateResponse:
        selection = form[SELECTION].value() or ()
        context = {
            **self.admin_site.each_context(request),
            **self.get_export_context_data(),
            "title": _("Export"),
            "original": _("Export"),
            "has_view_permission": True,
            "opts": self.opts,
            "form": form,
            "media": self.media + form.media,
            "selected": len(selection),
            "filter": _filter_text(request),
            "export_url": self._export_url(request),
        }
        request.current_app = self.admin_site.name
        return TemplateResponse(request, self.export_template_name, context)

    def _export_url(self, request: HttpRequest) -> str:
        """Return the address of the export page, the list's filter in it."""
        query = request.GET.urlencode()
        return f"{model_url(self.admin_site, self.model, 'export')}{'?' if query else ''}{query}"

    def _list_url(self) -> str:
        return model_url(self.admin_site, self.model, "changelist")

    def _what(self, request: HttpRequest, file_format: Any) -> str:
        """Return what is exported, for the log: format, filter and selection."""
        selection = request.POST.getlist(SELECTION) or request.POST.getlist(ACTION_CHECKBOX_NAME)
        parts = [str(file_format.get_title()).upper(), _filter_text(request) or _("no filter")]
        if selection and request.POST.get("select_across") != "1":
            parts.append(_("selected: %(keys)s") % {"keys": ", ".join(selection)})
        return "; ".join(parts)


def _filter_text(request: HttpRequest) -> str:
    """Return the list's search and filters as they stand in the address, or ""."""
    unfiltering = {"o", "p", "all", "e", BEFORE, AFTER, "_changelist_filters"}
    return "; ".join(
        f"{name}={value}"
        for name, values in request.GET.lists()
        if name not in unfiltering
        for value in values
        if value
    )


def _counted(batches: Iterator[CsvBatch], entry: ExportEntry) -> Generator[str, None, None]:
    """Yield the text of the batches; at the end, or when closed before it, note the rows."""
    rows = 0
    is_whole = False
    try:
        for batch in batches:
            rows += batch.rows
            yield batch.text
        is_whole = True
    finally:
        entry.finish(rows, is_whole=is_whole)


async def _lines_in_thread(lines: Generator[str, None, None]) -> AsyncIterator[str]:
    """Yield ``lines`` without holding up the event loop while they are read."""
    while (text := await sync_to_async(_next)(lines)) is not None:
        yield text


def _next(lines: Iterator[str]) -> str | None:
    return next(lines, None)
